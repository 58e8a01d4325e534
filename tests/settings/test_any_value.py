"""Any value of any setting, from a file, the command line or Python: a configuration, or one line that says what is
wrong.
"""

import contextlib
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdpo import InputError, MDPOConfig
from mdpo.cli import main
from mdpo.config import RunConfig, build_config, load_config, parse_overrides

ODD = [
    "nan", ".nan", "inf", "-.inf", "1e999", "-1", "0", "1", "0.5", "1e-4", "1" + "0" * 400, "9" * 5000, "true", "no",
    "~", "none",
    "''", "x", "../..", "/", "/etc", "/dev/null", "[]", "[1, x]", "[~]", "[[1]]", "{}", "{a: 1}", "{min_lr: x}",
    "{1: {2: 3}}",
    "'{'", "'{\"a\": 1}'", "2024-01-01", "2024-13-45", "12:30", "0x1f", "!!binary x", "&a [*a]", "*a", "\"\\0\"",
    "'\ud800'",
    "a=b", "a=b,c", "momentum=x", "%s", "{use_reentrant: 5}", "{split_batches: true}", "{use_configured_state: 3}",
    "[true, 1e5]",
]  # fmt: skip
NAMES = sorted({f.name for kind in (RunConfig, MDPOConfig) for f in fields(kind) if f.init} - {"use_cpu"})
anything = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.floats().map(str),
    st.integers().map(str),
)


def one_line(error: InputError) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 2500


@pytest.mark.parametrize("name", NAMES)
def test_odd_values_on_the_command_line_and_in_python(name, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"model_name_or_path: m\ntrain_data: d\noutput_dir: {tmp_path}\nuse_cpu: true\n")
    for value in ODD:
        try:
            load_config(path, parse_overrides([f"--{name}={value}"]))
        except InputError as error:
            one_line(error)
    if name in {f.name for f in fields(MDPOConfig)}:
        for value in (float("nan"), -1, 1e999, "x", [], {}, {"a": object()}, 10**400, True, b"x", object()):
            # What is not even of the setting's type is Python's own to name.
            with contextlib.suppress(InputError, TypeError, AttributeError):
                MDPOConfig(**{"output_dir": str(tmp_path), "use_cpu": True, name: value})


@given(st.dictionaries(st.sampled_from(NAMES), anything, min_size=1, max_size=3))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_together_in_a_file(tmp_path, values):
    path = tmp_path / "run.yaml"
    lines = {"model_name_or_path": "m", "train_data": "d", "output_dir": str(tmp_path), "use_cpu": "true"} | values
    path.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()), errors="surrogatepass")
    try:
        load_config(path)
    except InputError as error:
        one_line(error)


@given(
    st.lists(
        st.one_of(st.sampled_from(["--", "--=", "--beta", "--bf16", "--beta=", "-1", "--x", *ODD]), st.text(max_size=8))
    )
)
@settings(max_examples=80, deadline=None)
def test_any_words_on_the_command_line(words):
    try:
        parse_overrides(words)
    except InputError as error:
        one_line(error)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("save_total_limit", 10**30, "expected a number of at most 9223372036854775807"),
        ("lora_alpha", 10**30, "expected a number of at most 9223372036854775807"),
        ("beta", 1e300, "expected a number in [1e-30, 1e30]"),
        ("anchor", [-1e300], "expected a number in [-1e30, 1e30]"),
        ("lora_r", 2**31, "expected a number in [1, 16384]"),
        ("dataloader_num_workers", 100_000, "expected a number in [0, 1024]"),
        ("system_prompt", "a\x00b", "contains a character that is not text"),
        ("train_data", "caf\udce9", "contains a character that is not text"),
        ("ignore_columns", ["a", "b\ud800"], "contains a character that is not text"),
    ],
)
def test_what_no_run_can_use_is_refused_by_its_kind(tmp_path, name, value, message):
    values = {"model_name_or_path": "m", "train_data": "d", "output_dir": str(tmp_path), "use_cpu": True, name: value}
    with pytest.raises(InputError) as error:
        build_config(values, source="run.yaml")
    said = str(error.value)
    assert said.startswith((f"run.yaml: {name}: ", f"run.yaml: {name} is ")) and message in said
    one_line(error.value)


@pytest.mark.parametrize(
    "words", [["data", "check", "a\x00b"], ["data", "check", "caf\udce9"], ["\x1b[2J"], ["score", "x" * 10**5]]
)
def test_an_argument_is_repeated_in_one_line_that_leaves_the_terminal_alone(words, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(line) < 500 and line.isprintable()
