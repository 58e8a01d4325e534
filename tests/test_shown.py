"""Text of strangers: it forges no line, repaints no terminal, adds no markup, and carries no credentials on."""

import logging

import pytest

from mdpo.cli import main
from mdpo.shown import Formatter, html_text, markdown, redacted, shown, shown_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\nerror: b", r"a\nerror: b"),
        ("\x9b31m\x7f\x85", r"\x9b31m\x7f\x85"),
        ("\u202eabc\u2066\u200f", r"\u202eabc\u2066\u200f"),
        ("\u2028\ufeff\ud800", r"\u2028\ufeff\ud800"),
        ("Grüße 家 👩\u200d🚀 \u00a0e\u0301", "Grüße 家 👩\u200d🚀 \u00a0e\u0301"),
    ],
)
def test_controls_are_spelled_out_and_writing_is_not(text, expected):
    assert shown(text) == expected


def test_lines_of_others_are_indented():
    assert shown_lines("first\nerror: forged\n\x1b[0m") == "first\n  error: forged\n  \\x1b[0m"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://user:pa%20ss@host/v1", "https://[redacted]@host/v1"),
        ("http://token@host:8000/v1?a=b", "http://[redacted]@host:8000/v1?a=b"),
        ("http://u:p@ss@host/v1", "http://[redacted]@host/v1"),
        (
            "https://host/v1?api_key=abc&model=x&X-Amz-Signature=f00#a",
            "https://host/v1?api_key=[redacted]&model=x&X-Amz-Signature=[redacted]#a",
        ),
        ("hf://hf_abcdefghijklmnopqrstuv/x", "hf://[redacted]/x"),
        ("Authorization: Bearer abcdefgh.ijkl", "Authorization: Bearer [redacted]"),
        ("sk-proj-0123456789abcdefgh", "[redacted]"),
        ("me@example.org, http://host/a@b, ?q=key, skeleton", "me@example.org, http://host/a@b, ?q=key, skeleton"),
    ],
)
def test_credentials_are_taken_out_and_nothing_else(text, kept):
    assert redacted(text) == kept
    assert redacted({"a": [text, 1, None]}) == {"a": [kept, 1, None]}


def test_markdown_and_html_show_what_was_written():
    assert markdown("# a\n<script>|`x`[y](z)\x1b") == r"\# a \<script\>\|\`x\`\[y\](z)\\x1b"
    assert markdown("_a_b_ - #") == r"\_a_b\_ - #"
    assert html_text('<b>"a"\n\u202e') == "&lt;b&gt;&quot;a&quot;\n\\u202e"


def test_log_records_are_spelled_out_with_their_tracebacks():
    try:
        raise ValueError("\x1b[31mred")
    except ValueError:
        import sys

        record = logging.LogRecord("x", logging.INFO, "", 0, "id %s", ("a\nb\x1b",), sys.exc_info())
    text = Formatter("%(message)s").format(record)
    assert "\x1b" not in text and text.startswith("id a\n  b\\x1b\n  Traceback")


def test_an_error_stays_one_line_on_the_terminal(tmp_path, capsys):
    name = "a\x1b[31m\nerror: forged\u202e"
    assert main(["data", "check", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "\x1b" not in said
        and "\u202e" not in said
        and r"a\x1b[31m\nerror: forged\u202e" in said
    )
