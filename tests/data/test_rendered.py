"""Prompts that are rendered already: taken as the authors' collator takes them, recognised, and never mistaken."""

import json
import logging
import re

import pytest
from PIL import Image
from tokenizers import AddedToken

from mdpo.data import DataOptions, PreferenceDataset, TextOptions, parse_rows, read_rows
from mdpo.data.check import check_file
from mdpo.data.encode import Encoder
from mdpo.data.rows import image_root
from mdpo.errors import InputError
from tests import tiny
from tests.data import templates

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\nwhat is this? ASSISTANT:"
)
SAYS = "prompts that already contain the chat template's turns are taken as they are"


def rows(*prompts, chosen="a cat", rejected="a dog", images: int = 1, **columns):
    record = {"images": [Image.new("RGB", (40, 36))] * images, "chosen": chosen, "rejected": rejected}
    return parse_rows([record | columns | {"prompt": prompt} for prompt in prompts], ".")


def encode(processor, *arguments, options: TextOptions | None = None, **columns):
    (one,) = rows(*arguments, **columns)
    return Encoder(processor, options).row(one)


def text(processor, ids) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


def authors_ids(prompt: str, tokenizer, image: int) -> list[int]:
    """As the authors' collator has them: every stretch between two tags tokenised by itself, the image's id between."""
    stretches = [tokenizer(stretch)["input_ids"] for stretch in prompt.split("<image>")]
    bos = [tokenizer.bos_token_id] if stretches[0][0] == tokenizer.bos_token_id else []
    ids = [*bos, *stretches[0][len(bos) :]]
    for stretch in stretches[1:]:
        ids += [image, *stretch[len(bos) :]]
    return ids


@pytest.mark.parametrize("template", ["vicuna", "llava-hf"])
@pytest.mark.parametrize("kind", ["bytes", "bytes, adds bos", "words always"])
@pytest.mark.parametrize(
    "prompt",
    [VICUNA, VICUNA.replace("this? ", "this? ASSISTANT: a cat USER: <image>\nsure? "), VICUNA[VICUNA.index("USER") :]],
)
def test_ids_are_the_authors_and_the_blank_before_the_answer_is_the_templates(template, kind, prompt):
    processor = templates.processor(template, kind)
    encoded = encode(processor, prompt, images=prompt.count("<image>"))
    assert encoded.rendered
    assert encoded.prompt_ids == authors_ids(prompt, processor.tokenizer, processor.image_token_id)
    assert text(processor, encoded.chosen_ids) == " a cat</s>"
    if kind == "bytes, adds bos":
        stored = encode(processor, "<s>" + prompt, images=prompt.count("<image>"))
        assert stored.prompt_ids == encoded.prompt_ids, "one BOS, whoever writes it"


@pytest.mark.parametrize("kind", templates.TOKENIZERS)
@pytest.mark.parametrize(
    ("name", "system"),
    [(name, None) for name in templates.TEMPLATES]
    + [(name, "Be nice.") for name in templates.TEMPLATES if name not in ("llama-2", "hashes")],  # with no form for one
)
def test_what_trl_renders_is_read_as_the_conversation_is(name, kind, system):
    """Prompt and answers as TRL's own rendering leaves them in plain-text columns."""
    processor = templates.processor(name, kind)
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "b"}]
    (conversation,) = rows([*messages, {"role": "user", "content": "what is this?"}])
    apply = processor.apply_chat_template
    prompt = apply(conversation.prompt, add_generation_prompt=True, tokenize=False)
    answers = {}
    for column in ("chosen", "rejected"):
        answer = {"role": "assistant", "content": [{"type": "text", "text": getattr(conversation, column)}]}
        answers[column] = apply([*conversation.prompt, answer], tokenize=False).removeprefix(prompt)
    assert answers["chosen"] != "a cat", "with what the template puts around it"
    encoder = Encoder(processor)
    (plain,) = rows(prompt, **answers)
    (bare,) = rows(prompt)
    (shortened,) = rows(prompt.removeprefix("<s>").rstrip())
    wanted, *found = encoder.rows([conversation, plain, bare, shortened])
    for row in found:
        assert row.rendered and not wanted.rendered
        assert (row.prompt_ids, row.chosen_ids, row.rejected_ids) == (
            wanted.prompt_ids,
            wanted.chosen_ids,
            wanted.rejected_ids,
        )


def test_a_blank_that_the_prompt_ends_with_is_not_written_twice():
    processor = templates.processor("vicuna")
    encoded = encode(processor, VICUNA + " ")
    assert text(processor, encoded.prompt_ids).endswith("ASSISTANT: ")
    assert text(processor, encoded.chosen_ids) == "a cat</s>"


@pytest.mark.parametrize("name", ["vicuna", "llava-hf", "chatml", "llama-3", "llama-2", "idefics"])
@pytest.mark.parametrize(
    "prompt",
    [
        "what does ASSISTANT: mean?",
        "what does ASSISTANT:",
        "In a log I read USER: and then ASSISTANT:",
        "How does USER: differ from ASSISTANT:",
        "Complete it.\nASSISTANT:",
        "what is [/INST]",
        "What is [INST] x [/INST]?",
        "What is [INST] x [/INST]",
        "Is the label USER: or ASSISTANT: or neither?",
        "A human: what is it? And an assistant: what is that?",
        "what does </s> mean?",
        "A chat between friends. Who speaks?",
        "xUSER: a ASSISTANT:",
    ],
)
def test_ordinary_questions_are_not_taken_for_rendered_ones(name, prompt, caplog):
    processor = templates.processor(name)
    encoded = encode(processor, prompt, images=0)
    assert not encoded.rendered and SAYS not in caplog.text
    as_message = encode(processor, [{"role": "user", "content": prompt}], images=0)
    assert encoded.prompt_ids == as_message.prompt_ids


@pytest.mark.parametrize("image", [0, 1])
def test_messages_and_the_setting_false_are_a_users_own_words(image):
    processor = templates.processor("vicuna")
    given = VICUNA if image else VICUNA.replace("<image>\n", "")
    twice = "USER: " + "<image>\n" * image + given.replace("<image>", "") + " ASSISTANT:"
    for prompt, options in (
        (given, TextOptions(prompt_is_rendered=False)),
        ([{"role": "user", "content": given}], None),
    ):
        encoded = encode(processor, prompt, images=image, options=options)
        assert not encoded.rendered and text(processor, encoded.prompt_ids).endswith(twice)


@pytest.mark.parametrize(
    "prompt", ["Here is a log.\nUSER: hi\nASSISTANT:", "<image>\nComplete this. USER: hi ASSISTANT:"]
)
def test_what_only_looks_rendered_is_left_to_the_user(prompt):
    processor, images = templates.processor("vicuna"), prompt.count("<image>")
    with pytest.raises(
        InputError, match=r"row 0: prompt: looks as if .*\(USER: ... ASSISTANT:\); set prompt_is_rendered"
    ):
        encode(processor, prompt, images=images)
    for setting in (True, False):
        encoded = encode(processor, prompt, images=images, options=TextOptions(prompt_is_rendered=setting))
        assert encoded.rendered == setting
    assert (
        text(processor, encode(processor, "Hi. USER: hi <image> ASSISTANT:").prompt_ids)
        == "Hi. USER: hi <image> ASSISTANT:"
    )
    assert not encode(templates.processor("chatml"), prompt, images=images).rendered


CHATML = "<|im_start|>user\n<image>\nwhat is this?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("name", "prompt", "form"),
    [
        ("chatml", VICUNA, "Vicuna"),
        ("llama-3", "USER: <image>\nq ASSISTANT:", "Vicuna"),
        ("vicuna", CHATML, "ChatML"),
        ("vicuna", "[INST] <image>\nq [/INST]", "Llama 2 or Mistral"),
        ("vicuna", "<start_of_turn>user\n<image>q<end_of_turn>\n<start_of_turn>model\n", "Gemma"),
        ("chatml", "###Human: <image>\nq\n###Assistant:", "LLaVA v0"),
        ("chatml", "User:<image>q<end_of_utterance>\nAssistant:", "Idefics"),
        ("chatml", "<s>[INST] <image>\nq [/INST]", "Llama 2 or Mistral"),
        ("vicuna", "\n\nHuman: <image>\nq\n\nAssistant:", "HH-RLHF"),
        ("hashes", "Human: <image>\nq Assistant:", "HH-RLHF"),
        ("chatml", "<|User|>: <image>q\n<|Assistant|>", "DeepSeek"),
        ("chatml", "Below is an instruction.\n\n### Instruction:\n<image>q\n\n### Response:", "Alpaca"),
        ("chatml", "### Human: <image>q\n### Assistant:", "Guanaco"),
    ],
)
def test_a_prompt_of_another_template_is_refused_by_name(name, prompt, form):
    processor = templates.processor(name)
    with pytest.raises(
        InputError, match=f"row 0: prompt: already contains turns as {form} writes them, .*prompt_is_rendered"
    ):
        encode(processor, prompt)
    taken = encode(processor, prompt, options=TextOptions(prompt_is_rendered=True))
    assert text(processor, taken.prompt_ids).rstrip() == ("<s>" * (name == "llama-3") + prompt).rstrip()
    assert not encode(processor, prompt, options=TextOptions(prompt_is_rendered=False)).rendered


@pytest.mark.parametrize(
    ("name", "prompt", "end"),
    [
        ("chatml", CHATML[: CHATML.rindex("<|im_start|>")], "<|im_start|>assistant"),
        ("chatml", CHATML + "<think>\n\n</think>\n\n", "<|im_start|>assistant"),
        ("chatml", "<|im_start|>system\nBe nice.<|im_end|>\nwhat is <image> this?", "<|im_start|>assistant"),
        ("vicuna", CHATML + "Sure, ", "<|im_start|>assistant"),
        ("vicuna", "<|im_start|>system\nBe nice.<|im_end|>\n" + CHATML + "Sure, ", "<|im_start|>assistant"),
        ("phi-3", "<|user|>\n<image>\nq<|end|>\n", "<|assistant|>"),
        ("vicuna", "<|user|>\n<image>\nq</s>\n", "<|assistant|>"),
        ("llama-3", "<|start_header_id|>user<|end_header_id|>\n\n<image>q<|eot_id|>", "<|start_header_id|>assistant"),
        ("vicuna", "USER: <image>\nq", "ASSISTANT:"),
        ("chatml", "USER: <image>\nq", "ASSISTANT:"),
        ("vicuna", "USER: ASSISTANT: <image>", "ASSISTANT:"),
        ("vicuna", VICUNA.removesuffix(" ASSISTANT:"), "ASSISTANT:"),
        ("vicuna", VICUNA + " Sure, ", "ASSISTANT:"),
        ("llava-hf", "<s>" + VICUNA + " Sure, ", "ASSISTANT:"),
        ("vicuna", "<image>\nComplete it. USER: a ASSISTANT: b. And now?", "ASSISTANT:"),
        ("llama-2", "[INST] <image>\nq", "[/INST]"),
        ("llama-2", "<s>[INST] <image>\nq [/INST] Sure,", "[/INST]"),
        ("vicuna", "\n\nHuman: <image>q", "Assistant:"),
        ("vicuna", "Below is an instruction.\n\n### Instruction:\n<image>q", "### Response:"),
    ],
)
def test_a_rendered_prompt_that_lacks_its_end_is_refused(name, prompt, end):
    processor = templates.processor(name)
    with pytest.raises(
        InputError,
        match=r"row 0: prompt: .* does not end as a rendered prompt; "
        rf"end it with {re.escape(end)}.*, or set prompt_is_r",
    ):
        encode(processor, prompt)
    for setting in (True, False):
        assert encode(processor, prompt, options=TextOptions(prompt_is_rendered=setting)).rendered == setting
    assert not encode(processor, [{"role": "user", "content": prompt}]).rendered


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("vicuna", VICUNA, "ASSISTANT: a cat"),
        ("vicuna", "<image>\nq", "ASSISTANT: a cat"),
        ("chatml", CHATML, "<|im_start|>assistant\na cat<|im_end|>\n"),
        ("chatml", [{"role": "user", "content": "q"}], "<|im_start|>assistant\na cat"),
        ("phi-3", "q", "<|assistant|>\na cat"),
        ("idefics", "q", "\nAssistant: a cat"),
    ],
)
def test_an_answer_that_begins_with_the_assistants_mark_is_refused(name, prompt, answer):
    processor = templates.processor(name)
    for column in ("chosen", "rejected"):
        with pytest.raises(InputError, match=f"row 0: {column}: begins with .* in front of every answer; move it"):
            encode(processor, prompt, **{column: answer})
    said = encode(processor, prompt, chosen=answer, options=TextOptions(prompt_is_rendered=False))
    assert answer.strip() in text(processor, said.chosen_ids), "its letters"
    assert encode(processor, prompt, chosen="It says " + answer.strip()).chosen_ids


def test_the_setting_takes_any_text_as_it_is():
    processor = templates.processor("vicuna")
    encoded = encode(processor, "Question: <image> what? Answer:", options=TextOptions(prompt_is_rendered=True))
    assert text(processor, encoded.prompt_ids) == "Question: <image> what? Answer:"
    assert text(processor, encoded.chosen_ids) == " a cat</s>"


def test_quoted_tokens_in_answers_are_letters_here_too():
    processor = templates.processor("vicuna")
    encoded = encode(processor, VICUNA, chosen="it </s> holds <image> </s>")
    assert encoded.chosen_ids.count(1) == 1 and processor.image_token_id not in encoded.chosen_ids
    assert text(processor, encoded.chosen_ids) == " it </s> holds <image> </s>"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, TextOptions(system_prompt="Be nice."), "row 0: prompt: .*so system_prompt has no place in it"),
        ({"system": "Be nice."}, None, "row 0: system: the prompt already contains the template's turns"),
        ({"tools": [{"name": "zoom"}]}, None, "row 0: tools: the prompt already contains"),
        ({"chat_template_kwargs": {"x": 1}}, None, "row 0: chat_template_kwargs: the prompt already"),
        ({"chosen": "</s>"}, None, "row 0: chosen: is empty"),
        ({"images": 2}, None, "the prompt has 1 <image> but the row has 2 images"),
        (
            {"prompt": VICUNA.replace("<image>\n", "")},
            None,
            "contains 0 image placeholders for 1 images.*give one <image> per image, or set prompt_is_rendered: false",
        ),
        (
            {"prompt": VICUNA.replace("<image>\n", "")},
            TextOptions(prompt_is_rendered=True),
            "give one <image> per image$",
        ),
        ({"prompt": [{"role": "user", "content": "q"}]}, TextOptions(prompt_is_rendered=True), "is a list of messages"),
    ],
)
def test_what_a_rendered_prompt_cannot_take_is_named(columns, options, message):
    columns = {"prompt": VICUNA, **columns}
    with pytest.raises(InputError, match=message):
        encode(templates.processor("vicuna"), columns.pop("prompt"), options=options, **columns)


def test_variables_from_the_settings_have_no_place_in_a_rendered_prompt_either():
    settings = TextOptions(chat_template_kwargs={"thinking": True})
    with pytest.raises(InputError, match="row 0: chat_template_kwargs: the prompt already contains"):
        encode(templates.processor("chatml"), CHATML, options=settings)


def test_the_tag_becomes_what_the_template_writes_for_an_image():
    processor = templates.processor(templates.TEMPLATES["chatml"].replace("<image>\n", "<|look|><|spot|>"))
    processor.tokenizer.add_tokens([AddedToken(mark, special=True) for mark in ("<|look|>", "<|spot|>")])
    processor.image_token, processor.image_token_id = "<|spot|>", processor.tokenizer.convert_tokens_to_ids("<|spot|>")
    for prompt in (CHATML, CHATML.replace("<image>", "<|look|><|spot|>")):
        encoded = encode(processor, prompt)
        assert text(processor, encoded.prompt_ids) == CHATML.replace("<image>", "<|look|><|spot|>")


FRAMED = templates.TEMPLATES["chatml"].replace("<image>\n", "<|im_start|><image><|im_end|>")


@pytest.mark.parametrize(
    ("template", "prompt", "left"),
    [
        ("vicuna", VICUNA, VICUNA.replace("<image>\n", "")),
        ("vicuna", "USER: see\n<image>\nand tell ASSISTANT:", "USER: see\nand tell ASSISTANT:"),
        ("vicuna", "USER: see<image>and tell ASSISTANT:", "USER: see and tell ASSISTANT:"),
        ("vicuna", "Hi. USER: hi <image> ASSISTANT:", "Hi. USER: hi  ASSISTANT:"),
        ("idefics", "User:<image> q<end_of_utterance>\nAssistant:", "User: q<end_of_utterance>\nAssistant:"),
        ("chatml", CHATML, CHATML.replace("<image>\n", "")),
        (FRAMED, CHATML, CHATML.replace("<image>\n", "")),
        (FRAMED, CHATML.replace("<image>\n", "<|im_start|><image><|im_end|>"), CHATML.replace("<image>\n", "")),
    ],
)
def test_without_images_what_stands_for_them_goes_too(template, prompt, left):
    processor = templates.processor(template)
    data = PreferenceDataset(rows(prompt), processor, DataOptions(drop_images=True, branches=("chosen", "rejected")))
    assert text(processor, data[0].prompt_ids) == left


def test_one_line_says_so_and_data_check_counts_them(tmp_path, caplog):
    processor = templates.processor("vicuna")
    records = [{**record, "prompt": VICUNA} for record in tiny.records(tmp_path, 5)]
    records[0]["prompt"] = "what is this?"
    path = tmp_path / "vlfeedback_llava_10k.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with caplog.at_level(logging.WARNING):
        data = PreferenceDataset(read_rows(path), processor, DataOptions())
    said = [line for line in caplog.messages if SAYS in line]
    assert len(said) == 1 and "row 1 (line 2)" in said[0] and "prompt_is_rendered: false" in said[0]
    assert data[0].prompt_ids == data[1].prompt_ids
    report = check_file(path, image_root(tmp_path), processor=processor)
    assert not report.errors and sum(note.kind == "already rendered" for note in report.notes) == 4
