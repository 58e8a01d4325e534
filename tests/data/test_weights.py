"""How much tokens count: spans of characters over tokens, and what differs between two answers."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from mdpo.data import DataOptions, PreferenceDataset, parse_rows, read_rows, tokenise
from mdpo.data import read as read_module
from mdpo.data.encode import Encoder
from mdpo.data.spans import changed_spans
from mdpo.errors import InputError
from tests import tiny
from tests.data import templates

PROCESSOR = tiny.processor()
DPO = ("chosen", "rejected")


def rows(*records: dict):
    return parse_rows(
        [{"prompt": "what is this?", "chosen": "a cat", "rejected": "a dog", **row} for row in records], "."
    )


def weights(spans: list, processor=PROCESSOR, **row) -> list[tuple[str, float]]:
    """Each token of the chosen answer, and its weight."""
    encoded = Encoder(processor).row(rows({**row, "chosen_weights": spans})[0])
    assert len(encoded.chosen_weights) == len(encoded.chosen_ids) and not encoded.rejected_weights
    tokens = [processor.tokenizer.decode([id]) for id in encoded.chosen_ids]
    return list(zip(tokens, encoded.chosen_weights, strict=True))


def test_a_token_that_a_span_touches_has_its_weight():
    text = "the red cat sits"
    found = weights([[4, 7, 5], [8, 9, 0.5]], chosen=text)
    assert found == [(" the", 1), (" red", 5), (" cat", 0.5), (" sits", 1), ("</s>", 1)]
    assert dict(weights([[7, 8, 5]], chosen=text))[" red"] == 1, "a blank alone is no token's"
    assert weights([[0, len(text), 0.5]], chosen=text)[-1] == ("</s>", 1)


def test_of_two_spans_in_one_token_the_larger_counts():
    assert weights([[0, 1, 2], [1, 3, 3]], chosen="red")[0] == (" red", 3)


@pytest.mark.parametrize("answer", ["猫 a red 猫", "  a red cat\n", "🐈 red é", "a <image> red </s> cat", "red"])
@pytest.mark.parametrize("name", [*templates.TEMPLATES, None])
def test_characters_are_counted_in_the_answer_as_the_row_has_it(answer, name):
    processor = PROCESSOR
    if name is not None:
        processor = tiny.processor()
        processor.chat_template = templates.TEMPLATES[name]
    start = answer.index("red")
    found = weights([[start, start + 3, 7]], processor, chosen=answer, image=Image.new("RGB", (9, 9)))
    heavy = "".join(token for token, weight in found if weight == 7)
    assert heavy.strip() == "red" and {weight for _, weight in found} == {1, 7}


def llama() -> transformers.PreTrainedTokenizerFast:
    """As Llama 2's: a blank is a letter, one stands in front of all, and what has no token is its bytes."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", "<image>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([" ".join(tiny.WORDS), "what is this? USER: ASSISTANT:"] * 8, trainer)
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", extra_special_tokens={"image_token": "<image>"}
    )


@pytest.mark.parametrize("answer", ["猫 a red 猫", "  a red cat", "🐈 red é", "a <image> red </s> cat", "red"])
def test_characters_are_counted_where_blanks_are_letters(answer):
    start = answer.index("red")
    found = weights([[start, start + 3, 7]], tiny.processor(llama()), chosen=answer, image=Image.new("RGB", (9, 9)))
    assert "".join(token for token, weight in found if weight == 7).strip() == "red"


def test_a_separator_of_several_tokens_has_no_characters():
    processor = tiny.processor()
    separator = r"{{ m['role'].upper() }}:{{ ' \n \n ' if m['role'] == 'assistant' else ' ' }}"
    processor.chat_template = tiny.TEMPLATE.replace("{{ m['role'].upper() }}: ", separator)
    found = weights([[0, 3, 7]], processor, chosen="the red cat")
    assert [token.strip() for token, _ in found] == ["", "", "", "", "the", "red", "cat", "</s>"]
    assert [weight for _, weight in found] == [1, 1, 1, 1, 7, 1, 1, 1]


def test_weights_go_with_their_tokens_and_are_cut_with_them():
    image = {"image": Image.new("RGB", (40, 36))}
    given = rows({**image, "chosen": "the red cat sits", "chosen_weights": [[0, 3, 0], [4, 7, 5]]}, image)
    whole = PreferenceDataset(given, PROCESSOR, DataOptions(DPO))
    assert list(whole[0].chosen_weights) == [0, 5, 1, 1, 1] and whole[0].rejected_weights is None
    assert whole[1].chosen_weights is None
    prompt = len(whole[0].prompt_ids)
    cut = PreferenceDataset(given, PROCESSOR, DataOptions(DPO, max_length=prompt + 2))
    assert list(cut[0].chosen_weights) == [0, 5] and len(cut[0].chosen_ids) == 2
    with pytest.raises(
        InputError, match="row 0: chosen_weights: each of the 1 tokens that max_length leaves has the weight 0"
    ):
        PreferenceDataset(given, PROCESSOR, DataOptions(DPO, max_length=prompt + 1))
    other = rows({**image, "chosen": "the red cat sits", "chosen_weights": [[0, 3, 0], [4, 7, 4]]}, image)
    assert PreferenceDataset(other, PROCESSOR, DataOptions(DPO)).digest() != whole.digest()


def test_an_answer_of_which_no_token_counts_is_an_error():
    # One token, of which the span is a part.
    with pytest.raises(InputError, match="row 0: chosen_weights: every token has the weight 0"):
        weights([[0, 2, 0]], chosen="red")


def test_a_slow_tokenizer_cannot_say_where_a_token_stands(monkeypatch):
    monkeypatch.setattr(type(PROCESSOR.tokenizer), "is_fast", False)
    with pytest.raises(InputError, match="row 0: chosen_weights: .* does not say which characters .*; use a fast"):
        weights([[0, 1, 2]], chosen="red")


def test_spans_count_the_answer_and_not_a_prompt_inside_it():
    row = {"chosen": "what is this? a cat", "rejected": "what is this? a dog", "chosen_weights": [[0, 1, 2]]}
    with pytest.raises(InputError, match="row 0: chosen_weights: counts the characters of an answer that begins with"):
        parse_rows([row], ".")


CHOSEN = "there is a red cat under the table and a dog sits on the grass today"
REJECTED = "there is a big blue dog under the table and a dog runs on the grass now or later"


def test_changes_stand_between_runs_of_three_words():
    ours, theirs = changed_spans(CHOSEN, REJECTED, 5.0)
    assert [CHOSEN[start:end] for start, end, _ in ours] == ["red cat", "sits", "today"]
    assert [REJECTED[start:end] for start, end, _ in theirs] == ["big blue dog", "runs", "now or later"]
    assert {weight for *_, weight in (*ours, *theirs)} == {5.0}
    assert changed_spans("one two three", "one two three four", 5.0) == ((), ()), "what only one has is no change"
    short = changed_spans("a red cat", "a blue cat", 5.0)
    assert short == (((0, 9, 5.0),), ((0, 10, 5.0),)), "runs shorter than three are part of the change"


def test_the_diff_is_made_where_it_is_asked_for_and_a_row_brings_no_weights():
    mine = {"chosen": CHOSEN, "rejected": REJECTED}
    given = rows(mine, {**mine, "rejected_weights": [[0, 5, 2]]})
    data = PreferenceDataset(given, PROCESSOR, DataOptions(DPO, changed_weight=5.0))
    heavy = [id for id, weight in zip(data[0].chosen_ids, data[0].chosen_weights, strict=True) if weight == 5]
    assert PROCESSOR.tokenizer.decode(heavy).split() == ["red", "cat", "sits", "today"]
    assert data[1].chosen_weights is None and sorted(set(data[1].rejected_weights)) == [1, 2]
    with pytest.raises(InputError, match="changed_weight is 0; expected a finite number above 0"):
        DataOptions(changed_weight=0)


def test_what_was_kept_has_its_weights_and_another_weight_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("mdpo.data.cache.SMALLEST", 0)
    monkeypatch.setattr(tokenise, "MANY", 0)
    monkeypatch.setattr(tokenise, "processes", lambda: 2)
    monkeypatch.setattr(read_module, "processes", lambda: 2)
    lines = [
        {
            "prompt": "q?",
            "chosen": CHOSEN,
            "rejected": REJECTED,
            **({"chosen_weights": [[at, at + 1, 3]]} if at % 2 else {}),
        }
        for at in range(8)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = {}
    for weight in (None, 5.0, 2.0, None):
        data = PreferenceDataset(read_rows(path), PROCESSOR, DataOptions(DPO, changed_weight=weight))
        made[weight] = [data[at].chosen_weights for at in range(8)]
    want = PreferenceDataset(parse_rows(lines, "."), PROCESSOR, DataOptions(DPO, changed_weight=5.0))
    assert made[5.0] == [want[at].chosen_weights for at in range(8)]
    assert [found is None for found in made[None]] == [at % 2 == 0 for at in range(8)]
    assert np.max(made[2.0][0]) == 2 and np.max(made[2.0][1]) == 3
    assert len(list((tmp_path / ".mdpo-cache").glob("tokens-*"))) == 3
