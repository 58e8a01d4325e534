"""Token ids: what the template says, nothing doubled and nothing lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import processors

from mdpo.data import PreferenceRow, parse_rows
from mdpo.data.encode import Encoder
from mdpo.errors import InputError
from tests import tiny

BOS, EOS, IMAGE = 0, 1, 3


@pytest.fixture(scope="module")
def processor():
    return tiny.processor()


def row(chosen: str = "a cat", rejected: str = "a dog", prompt="what is this?", images: int = 1) -> PreferenceRow:
    image = [Image.new("RGB", (40, 36))] * images
    (parsed,) = parse_rows([{"images": image, "prompt": prompt, "chosen": chosen, "rejected": rejected}], ".")
    return parsed


def with_template(template: str):
    changed = tiny.processor()
    changed.chat_template = template
    return changed


def text(processor, ids) -> str:
    return processor.tokenizer.decode(ids, skip_special_tokens=False)


def test_the_separator_is_the_templates_and_one_eos_ends_a_response(processor):
    encoded = Encoder(processor).row(row())
    assert text(processor, encoded.prompt_ids) == "USER: <image>\nwhat is this? ASSISTANT:"
    assert text(processor, encoded.chosen_ids) == " a cat</s>"
    assert text(processor, encoded.rejected_ids) == " a dog</s>"
    assert encoded.chosen_ids.count(EOS) == encoded.rejected_ids.count(EOS) == 1
    assert encoded.prompt_ids.count(IMAGE) == 1


def test_prompt_and_response_are_tokenised_as_one_text(processor):
    encoded = Encoder(processor).row(row())
    whole = processor.tokenizer("USER: <image>\nwhat is this? ASSISTANT: a cat</s>")["input_ids"]
    assert encoded.prompt_ids + encoded.chosen_ids == whole


@pytest.mark.parametrize(
    "answer", ["it says <image> here", "<image>", "</s> is the end", "a<s>b", "<pad>", "ends in </s>", "\n<image>\n"]
)
def test_special_tokens_in_an_answer_are_its_letters(processor, answer):
    encoded = Encoder(processor).row(row(chosen=answer))
    assert IMAGE not in encoded.chosen_ids and BOS not in encoded.chosen_ids
    assert encoded.chosen_ids.count(EOS) == 1 and encoded.chosen_ids[-1] == EOS
    assert text(processor, encoded.chosen_ids[:-1]) == " " + answer


def test_special_tokens_in_a_separator_stay_special():
    thinking = tiny.TEMPLATE.replace(
        "{{ c['text'] }}", "{% if m['role'] == 'assistant' %}<pad> {% endif %}{{ c['text'] }}"
    )
    encoded = Encoder(with_template(thinking)).row(row(chosen="a <pad>"))
    assert encoded.chosen_ids.count(EOS) == 1
    assert encoded.chosen_ids[1:].count(tiny.tokenizer().pad_token_id) <= 1


def test_a_text_that_the_separator_holds_too_is_found_in_its_place():
    thinking = tiny.TEMPLATE.replace(
        "{{ c['text'] }}", "{% if m['role'] == 'assistant' %}think: {% endif %}{{ c['text'] }}"
    )
    processor = with_template(thinking)
    encoded = Encoder(processor).row(row(chosen="think", rejected="s"))
    assert text(processor, encoded.chosen_ids) == " think: think</s>"
    assert text(processor, encoded.rejected_ids) == " think: s</s>"


@pytest.mark.parametrize("writes_bos", [False, True])
def test_bos_stands_once(writes_bos):
    processor = with_template(("<s>" if writes_bos else "") + tiny.TEMPLATE)
    processor.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    encoded = Encoder(processor).row(row(chosen="an <image>"))
    assert encoded.prompt_ids.count(BOS) == 1 and encoded.prompt_ids[0] == BOS
    assert BOS not in encoded.chosen_ids + encoded.rejected_ids


def test_a_token_across_the_seam_leaves_the_prompt_as_it_is():
    # A prompt that ends in a space: the tokenizer would pull that space into the answer's first token.
    processor = with_template(
        tiny.TEMPLATE.replace("ASSISTANT:", "ASSISTANT: ").replace("upper() }}: ", "upper() }}: ")
    )
    encoder = Encoder(processor)
    encoded = encoder.row(row(chosen="cat", rejected="dog"))
    assert text(processor, encoded.prompt_ids).endswith("ASSISTANT: ")
    assert text(processor, encoded.chosen_ids) == "cat</s>"
    assert encoded.prompt_ids == encoder.row(row(chosen="dog")).prompt_ids


def test_several_images_and_none(processor):
    encoder = Encoder(processor)
    assert encoder.row(row(prompt="<image> or <image>?", images=2)).prompt_ids.count(IMAGE) == 2
    assert encoder.row(row(images=0)).prompt_ids.count(IMAGE) == 0


ASSISTANT_FIRST = "{{ raise_exception('roles must alternate') }}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ASSISTANT_FIRST, "row 0: prompt: the chat template refuses it: roles must alternate"),
        ("{{ messages[0]['content'] + 3 }}", "row 0: prompt: the chat template refuses it"),
        (
            tiny.TEMPLATE.replace("<image>\n", ""),
            "row 0: prompt: the chat template renders 0 image placeholders for 1 images",
        ),
        (
            tiny.TEMPLATE.replace("{{ c['text'] }}", "{{ c['text'] | upper }}"),
            "row 0: chosen: .* changes the answer's text",
        ),
        ("{{ messages | length }}" + tiny.TEMPLATE, "row 0: chosen: .*changes the prompt"),
    ],
)
def test_templates_that_do_not_fit_are_named(template, message):
    with pytest.raises(InputError, match=message):
        Encoder(with_template(template)).row(row())


def test_a_placeholder_in_the_questions_text_is_an_error(processor):
    parts = [{"type": "image"}, {"type": "text", "text": "what does <image> mean?"}]
    with pytest.raises(InputError, match="2 image placeholders for 1 images; the text itself must not hold <image>"):
        Encoder(processor).row(row(prompt=[{"role": "user", "content": parts}]))


def test_processors_that_lack_something_are_named():
    bare = tiny.processor()
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        Encoder(bare)
    bare = tiny.processor()
    bare.tokenizer.eos_token = None
    with pytest.raises(InputError, match="no EOS token"):
        Encoder(bare)


PROCESSOR = tiny.processor()


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
    st.sampled_from(["", "<image>", "</s>"]),
)
def test_any_answer_decodes_to_itself(answer, quoted):
    answer += quoted
    encoded = Encoder(PROCESSOR).row(row(chosen=answer))
    assert text(PROCESSOR, encoded.chosen_ids) == f" {answer}</s>"
    assert encoded.chosen_ids.count(EOS) == 1
