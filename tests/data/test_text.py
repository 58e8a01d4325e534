"""What the model reads, under every template and tokenizer: the template's own text, once, with one BOS and one end."""

import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken

from mdpo.data import DataOptions, PreferenceDataset, PromptRow, TextOptions, parse_rows
from mdpo.data.encode import Encoder
from mdpo.data.messages import text_columns
from mdpo.data.problem import RowError
from mdpo.errors import InputError
from tests.data import templates

PROCESSORS = {
    (name, kind): templates.processor(name, kind) for name in templates.TEMPLATES for kind in templates.TOKENIZERS
}
ENCODERS = {key: Encoder(processor) for key, processor in PROCESSORS.items()}
TEXTS = st.text(st.sampled_from("ab cd.:?\n\t é猫<|>/#"), min_size=1, max_size=12).filter(str.strip)


def row(prompt: Any = "what is this?", chosen="a cat", rejected="a dog", images: int = 0, **columns):
    record = {"images": [Image.new("RGB", (40, 36))] * images, "prompt": prompt, "chosen": chosen, "rejected": rejected}
    (parsed,) = parse_rows([record | columns], ".")
    return parsed


def text(processor, ids) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


def whole(name: str, kind: str, processor, messages, answer: str) -> list[int]:
    """The ids of the template's own rendering, up to what ends the answer's turn."""
    given = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    rendered = processor.apply_chat_template(given, tokenize=False)
    end = templates.ENDS[name]
    if name == "llava-hf":  # which writes a blank, and no token
        rendered = rendered[:-1] + end
    rendered = rendered[: rendered.rindex(end) + len(end)]
    ids = processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return ids if kind == "bytes" or rendered.startswith("<s>") else [0, *ids]


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(sorted(PROCESSORS)),
    st.none() | TEXTS,
    st.lists(st.tuples(TEXTS, TEXTS), max_size=2),
    TEXTS,
    TEXTS,
    st.integers(0, 1),
)
def test_prompt_and_response_are_the_templates_own_text(key, system, turns, question, answer, images):
    name, kind = key
    messages = [{"role": "system", "content": system}] if system is not None else []
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    one = row([*messages, {"role": "user", "content": question}], answer, images=images)
    encoded = ENCODERS[key].row(one)
    expected = whole(name, kind, PROCESSORS[key], one.prompt, answer)
    if expected[: len(encoded.prompt_ids)] == encoded.prompt_ids:
        assert encoded.prompt_ids + encoded.chosen_ids == expected
    else:  # a token spans the seam, which each side keeps to itself
        joined = text(PROCESSORS[key], encoded.prompt_ids) + text(PROCESSORS[key], encoded.chosen_ids)
        assert joined == text(PROCESSORS[key], expected)
    (prompt_ids,) = ENCODERS[key].prompts([one])
    assert prompt_ids == encoded.prompt_ids


@pytest.mark.parametrize("key", sorted(PROCESSORS), ids=", ".join)
def test_one_bos_no_foreign_eos_and_the_templates_end(key):
    (name, kind), tokenizer = key, PROCESSORS[key].tokenizer
    encoded = ENCODERS[key].row(row(images=1, rejected="it ends with </s>, <|im_end|> or @@@"))
    has_bos = kind != "bytes" or name in ("llama-3", "llama-2")
    assert encoded.prompt_ids.count(0) == has_bos and (encoded.prompt_ids[0] == 0) == has_bos
    assert 1 not in encoded.prompt_ids, "no EOS in front of the answer"
    ending = tokenizer.convert_ids_to_tokens(encoded.rejected_ids)
    special = [token for token in ending if token in tokenizer.all_special_tokens or token in templates._MARKS]
    assert special == [templates.ENDS[name]] * (name != "hashes"), "one, the template's, and quoted ones are letters"
    assert text(PROCESSORS[key], encoded.rejected_ids).endswith(
        "or @@@" + (" " * (name == "llama-2")) + "\n" * (name == "hashes") + templates.ENDS[name]
    )


@pytest.mark.parametrize("kind", templates.TOKENIZERS)
def test_tokens_outside_all_special_tokens_are_letters_in_answers(kind):
    processor = templates.processor("vicuna", kind)
    processor.tokenizer.add_tokens([AddedToken("<|box|>", special=True), AddedToken("<loc001>", special=False)])
    assert "<|box|>" not in processor.tokenizer.all_special_tokens
    encoder = Encoder(processor)
    box, place = processor.tokenizer.convert_tokens_to_ids(["<|box|>", "<loc001>"])
    answer = "a <|box|> at <loc001>"
    encoded = encoder.row(row("<|box|> and <loc001>?", answer))
    assert (
        box not in encoded.chosen_ids
        and text(processor, encoded.chosen_ids).replace(" ", "") == answer.replace(" ", "") + "</s>"
    )
    assert place in encoded.chosen_ids and place in encoded.prompt_ids, "an ordinary word of the vocabulary"
    assert box in encoded.prompt_ids, "it marks no turn"
    earlier = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<|box|>"},
        {"role": "user", "content": "r"},
    ]
    assert box not in encoder.row(row(earlier)).prompt_ids, "an earlier answer quotes as an answer does"


@pytest.mark.parametrize("special", [True, False], ids=["special", "ordinary"])
@pytest.mark.parametrize("kind", templates.TOKENIZERS)
def test_a_quoted_mark_changes_no_roles(kind, special):
    processor = templates.processor("chatml", kind, special=special)
    quoted = "a<|im_end|>\n<|im_start|>assistant\nno"
    encoded = Encoder(processor, TextOptions(prompt_is_rendered=False)).row(row(quoted, quoted))
    as_message = Encoder(processor).row(row([{"role": "user", "content": quoted}], quoted))
    assert as_message == encoded
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (encoded.prompt_ids.count(start), encoded.prompt_ids.count(end)) == (2, 1)
    assert (encoded.chosen_ids.count(start), encoded.chosen_ids.count(end)) == (0, 1)
    assert encoded.chosen_ids[-1] == end
    if not kind.endswith("always"):  # which puts blanks behind special tokens
        marked = f"<|im_start|>user\n{quoted}<|im_end|>\n<|im_start|>assistant\n"
        assert text(processor, encoded.prompt_ids).removeprefix("<s>") == marked


@pytest.mark.parametrize("character", ["\ufdd0", "\ufdd1", "\ufdd0</s>\ufdd1", "\ufdd0\ufdd1"])
def test_characters_that_serve_as_marks_inside_are_kept(character):
    answer = f"a {character} b"
    processor = templates.processor("vicuna")
    encoded = Encoder(processor).row(row(answer, answer))
    assert text(processor, encoded.chosen_ids) == f" {answer}</s>"
    assert f"USER: {answer} ASSISTANT:" in text(processor, encoded.prompt_ids)


@pytest.mark.parametrize(
    ("name", "blanks"),
    [("vicuna", "  \n"), ("chatml", "  \n"), ("llama-3", ""), ("llava-hf", "  \n"), ("phi-3", "  \n")],
)
def test_trailing_blanks_are_scored_where_the_template_keeps_them(name, blanks):
    key = (name, "bytes")
    encoded = ENCODERS[key].row(row(chosen="a cat  \n"))
    assert text(PROCESSORS[key], encoded.chosen_ids).endswith("a cat" + blanks + templates.ENDS[name])


# System, tools, and what a template leaves out


OLD_CONVERTED = (
    "{{ 'Be nice. ' }}{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %} "
    "{% elif message['role'] == 'assistant' %}ASSISTANT: "
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SYSTEM = {"role": "system", "content": "Answer in French."}
USER = {"role": "user", "content": "what is this?"}
TOOL = {"role": "tool", "content": "42"}
CALL = {"role": "assistant", "content": "let me look", "tool_calls": [{"name": "zoom"}]}
IMAGE_IN_SYSTEM = {"role": "system", "content": "<image>\nThis is the reference."}


def test_a_system_turn_takes_the_place_of_the_converted_templates_own():
    key = ("vicuna", "bytes")
    assert text(PROCESSORS[key], ENCODERS[key].row(row([SYSTEM, USER])).prompt_ids) == (
        "Answer in French. USER: what is this? ASSISTANT:"
    )


@pytest.mark.parametrize(
    ("template", "prompt", "images", "message"),
    [
        ("vicuna", [IMAGE_IN_SYSTEM, USER], 1, "prompt: the chat template refuses it: a system turn holds text alone"),
        ("vicuna", [USER, TOOL, USER], 0, "Vicuna has no turn for the role tool"),
        ("vicuna", [USER, SYSTEM, USER], 0, "a system turn stands first"),
        ("vicuna", [USER, CALL, USER], 0,
            "prompt: the chat template ignores tool_calls; set a chat_template that writes"),
        (OLD_CONVERTED, [SYSTEM, USER], 0,
            "row 0: prompt: the chat template drops the system turn; set a chat_template"),
        (OLD_CONVERTED, [USER, TOOL, USER], 0, "prompt: the chat template drops the tool turn"),
        (OLD_CONVERTED, [{"role": "narrator", "content": "42"}, USER], 0, "drops the narrator turn"),
        ("{% for m in messages %}{{ m['content'][0]['text'] }} {% endfor %}",
         [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], 0,
         "drops the user turn"),
        ("{% for m in messages %}{{ m['role'] ~ m['content'] }} {% endfor %}", "q", 1,
            "the chat template writes no images"),
    ],
)  # fmt: skip
def test_turns_that_a_template_leaves_out_are_named(template, prompt, images, message):
    with pytest.raises(InputError, match=message):
        Encoder(templates.processor(template)).row(row(prompt, images=images))


def test_a_template_that_wants_text_gets_text():
    processor = templates.processor(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}assistant:"
    )
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' ~ m['content'] ~ '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    encoded = Encoder(processor).row(row([SYSTEM, USER]))
    assert text(processor, encoded.prompt_ids) == "system: Answer in French.</s>user: what is this?</s>assistant:"
    assert text(processor, encoded.chosen_ids) == " a cat</s>"


def test_tools_and_variables_of_a_row_reach_the_template():
    processor = templates.processor("chatml")
    tools, encoder = [{"type": "function", "function": {"name": "zoom"}}], Encoder(processor)
    for column in (tools, json.dumps(tools)):
        encoded = encoder.row(row(tools=column))
        assert text(processor, encoded.prompt_ids).startswith('<|im_start|>system\n[{"type": "function"')
    for column in ({"thinking": False, "other": None}, '{"thinking": false}'):
        encoded = encoder.row(row(chat_template_kwargs=column))
        assert text(processor, encoded.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    set_off = Encoder(processor, TextOptions(chat_template_kwargs={"thinking": False}))
    assert text(processor, set_off.row(row()).prompt_ids).endswith("</think>\n\n")
    on = set_off.row(row(chat_template_kwargs={"thinking": True}))
    assert text(processor, on.prompt_ids).endswith("assistant\n"), "the row's own wins"


@pytest.mark.parametrize(
    ("template", "columns", "message"),
    [
        ("vicuna", {"tools": [{"name": "zoom"}]}, "the chat template refuses it: Vicuna has no form for tools"),
        (
            "llama-3",
            {"tools": [{"name": "zoom"}]},
            "row 0: tools: the chat template ignores the tools; set a chat_template",
        ),
        ("chatml", {"tools": "[zoom"}, "row 0: tools: not JSON"),
        ("chatml", {"tools": {"name": "zoom"}}, "row 0: tools: is a dict; expected a list of objects"),
        (
            "chatml",
            {"chat_template_kwargs": {"enable": 1}},
            "chat_template_kwargs: the chat template does not read 'enable'",
        ),
        ("chatml", {"chat_template_kwargs": {"tokenize": 1}}, "chat_template_kwargs: 'tokenize' is not a variable"),
        ("chatml", {"chat_template_kwargs": [1]}, "chat_template_kwargs: is a list; expected an object"),
        ("chatml", {"system": "Be nice.", "prompt": [SYSTEM, USER]}, "row 0: system: .*keep one of them"),
        ("chatml", {"system": ["Be nice."]}, "row 0: system: is a list; expected text"),
    ],
)
def test_columns_that_do_not_reach_the_model_are_refused(template, columns, message):
    with pytest.raises(InputError, match=message):
        Encoder(templates.processor(template)).row(row(**columns))


def test_system_turns_come_from_the_setting_the_column_or_the_prompt():
    processor = templates.processor("vicuna")
    encoder = Encoder(processor, TextOptions(system_prompt="Be brief."))
    starts = [
        (row(), "Be brief. USER:"),
        (row(system="Rhyme."), "Rhyme. USER:"),
        (row([SYSTEM, USER]), "Answer in French. USER:"),
    ]
    for one, start in starts:
        assert text(processor, encoder.row(one).prompt_ids).startswith(start)
    sharegpt = {"conversations": [{"from": "human", "value": "q"}], "system": "Rhyme."}
    pair = {name: {"from": "gpt", "value": name} for name in ("chosen", "rejected")}
    (parsed,) = parse_rows([sharegpt | pair], ".")
    assert text(processor, encoder.row(parsed).prompt_ids) == "Rhyme. USER: q ASSISTANT:"


def test_what_text_is_made_of_survives_a_sample():
    columns = {"system": "Be nice.", "tools": [{"name": "zoom"}], "chat_template_kwargs": {"thinking": False}}
    for one in (row(), row(**columns), row([SYSTEM, USER], tools=[{"name": "zoom"}]), row("USER: q ASSISTANT:")):
        written = text_columns(one.prompt, one.plain, one.tools, one.template_kwargs)
        again = row(**json.loads(json.dumps(written)))
        assert again == dataclasses.replace(one, images=again.images)


# Images inside a question

FRAMED = templates.TEMPLATES["chatml"].replace("<image>\n", "[<image>]")


@pytest.mark.parametrize(
    ("prompt", "read", "without"),
    [
        ("<image>\nwhat is this?", "[<image>]what is this?", "what is this?"),
        ("what is this?\n<image>", "what is this?[<image>]", "what is this?"),
        ("\n<image>\n\nwhat?\n", "[<image>]\nwhat?\n", "\nwhat?\n"),
        ("Look at this:\n<image>\nWhat is it?", "Look at this:\n[<image>]\nWhat is it?", "Look at this:\nWhat is it?"),
        ("Look:\n\n<image>\n\nWhat?", "Look:\n\n[<image>]\n\nWhat?", "Look:\n\n\nWhat?"),
        ("One: <image>\ntwo", "One: [<image>]\ntwo", "One: \ntwo"),
        ("Here\n<image>and there", "Here\n[<image>]and there", "Here\nand there"),
        ("Here<image>and there", "Here[<image>]and there", "Here and there"),
        ("Is <image>?", "Is [<image>]?", "Is ?"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}],
                }
            ],
            "a[<image>]b",
            "a b",
        ),
    ],
)
def test_a_text_keeps_its_lines_and_words_around_an_image(prompt, read, without):
    processor = templates.processor(FRAMED)
    for drop, expected in ((False, read), (True, without)):
        options = DataOptions(drop_images=drop, branches=("chosen", "rejected"))
        data = PreferenceDataset([row(prompt, images=1)], processor, options)
        shown = re.sub("(<image>)+", "<image>", text(processor, data[0].prompt_ids))
        assert shown == f"<|im_start|>user\n{expected}<|im_end|>\n<|im_start|>assistant\n"


def test_several_tags_in_front_are_read_as_before():
    key = ("vicuna", "bytes")
    encoded = ENCODERS[key].row(row("<image>\n<image>\nwhich?", images=2))
    assert text(PROCESSORS[key], encoded.prompt_ids).endswith("USER: <image>\n<image>\nwhich? ASSISTANT:")


# Where the template comes from


def test_the_template_is_the_settings_the_processors_or_its_tokenizers(tmp_path):
    mark = "MARK" + templates.TEMPLATES["vicuna"]
    path = tmp_path / "mine.jinja"
    path.write_text(mark)
    for change, options in (
        (lambda p: setattr(p, "chat_template", mark), TextOptions()),
        (lambda p: (setattr(p, "chat_template", None), setattr(p.tokenizer, "chat_template", mark)), TextOptions()),
        (lambda p: setattr(p, "chat_template", {"default": mark, "rag": "x"}), TextOptions()),
        (lambda p: setattr(p, "chat_template", {"only": mark}), TextOptions()),
        (lambda p: setattr(p, "chat_template", None), TextOptions(chat_template=mark)),
        (lambda p: None, TextOptions(chat_template=str(path))),
    ):
        processor = templates.processor("chatml")
        change(processor)
        assert text(processor, Encoder(processor, options).row(row()).prompt_ids).startswith("MARK")
    assert TextOptions(chat_template=str(path)).digest() == TextOptions(chat_template=mark).digest()
    assert TextOptions(chat_template=mark).digest() != TextOptions(chat_template=mark + " ").digest()


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        ({"rag": "x", "tools": "y"}, TextOptions(), "the processor has rag, tools and none named default"),
        (None, TextOptions(), "has no chat template"),
        (
            "x",
            TextOptions(chat_template="nowhere.jinja"),
            "chat_template: 'nowhere.jinja' is neither a Jinja template nor",
        ),
        ("x", TextOptions(chat_template="{% for m in %}"), r"chat_template: not a Jinja template \(line 1"),
        (
            "x",
            TextOptions(chat_template_kwargs={"thinking": 1}),
            "chat_template_kwargs: the chat template does not read",
        ),
    ],
)
def test_templates_and_settings_that_do_not_work_are_named(template, options, message):
    processor = templates.processor("chatml")
    processor.chat_template = template
    with pytest.raises(InputError, match=message):
        Encoder(processor, options)


@pytest.mark.parametrize(
    "template", ["{{ 1/0 }}", "{{ range(10**9) }}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"]
)
def test_a_template_that_fails_refuses_the_row(template):
    with pytest.raises(RowError, match="the chat template refuses it: "):
        Encoder(templates.processor("chatml"), TextOptions(chat_template=template)).row(row())


def test_generation_templates_parse():
    template = templates.TEMPLATES["llava-hf"].replace(
        "{{ c['text'] }}", "{% generation %}{{ c['text'] }}{% endgeneration %}"
    )
    assert (
        Encoder(templates.processor(template)).row(row()).chosen_ids
        == ENCODERS["llava-hf", "bytes"].row(row()).chosen_ids
    )


def test_a_template_that_wants_a_system_turn_first():
    template = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}" + templates.TEMPLATES["chatml"]
    )
    processor = templates.processor(template)
    encoder = Encoder(processor, TextOptions(system_prompt="Be brief."))
    assert text(processor, encoder.row(row()).chosen_ids) == "a cat<|im_end|>"
    assert encoder.end_of_turn() == ("", processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))


def test_prompts_alone_name_their_row():
    prompt = dataclasses.replace(row(images=1), images=())
    (found,) = ENCODERS["vicuna", "bytes"].prompts([prompt])
    assert "renders 1 image placeholders for 0 images" in str(found)
    assert isinstance(prompt, PromptRow)


# Anything at all in what goes to the template

WORDS = st.text(max_size=8) | st.sampled_from(
    ["</s>", "<image>", "<|im_start|>user", "USER: a ASSISTANT:", "[1]", "{}", "\ufdd0"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "narrator"]) | WORDS
MESSAGES = st.fixed_dictionaries(
    {
        "role": ROLES,
        "content": WORDS | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}), max_size=2),
    },
    optional={"tool_calls": VALUES, "name": VALUES, "reasoning_content": VALUES},
)
COLUMNS = st.fixed_dictionaries(
    {"prompt": WORDS | st.lists(MESSAGES, min_size=1, max_size=3), "chosen": WORDS},
    optional={
        "system": WORDS | VALUES,
        "tools": st.lists(st.dictionaries(WORDS, VALUES, max_size=2), max_size=2) | VALUES,
        "chat_template_kwargs": st.dictionaries(st.sampled_from(["thinking", "tokenize", "x"]), VALUES) | VALUES,
    },
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(PROCESSORS)), COLUMNS)
def test_whatever_goes_to_the_template_is_read_or_named(key, columns):
    try:
        one = row(**columns)
        encoded = ENCODERS[key].row(one)
    except RowError as error:
        assert error.where == "dataset, row 0" and error.field and error.problem and error.remedy
    else:
        assert encoded.chosen_ids and encoded.prompt_ids
        assert ENCODERS[key].prompts([one]) == [encoded.prompt_ids]
