"""Claims: how answers are cut, what a model is asked, how sure it is of yes, and that nothing is asked twice."""

import argparse
import json

import pytest
import torch
from PIL import Image

from mdpo.answers import rank, read_answers, read_scored
from mdpo.answers.ranking import Claims, confirm
from mdpo.answers.ranking.claims import claims_of
from mdpo.answers.ranking.confirm import _first_tokens
from mdpo.cli import main
from mdpo.data import PromptRow, TextOptions
from mdpo.data.encode import EncodedRow
from mdpo.errors import InputError
from mdpo.models import load, load_processor
from mdpo.stops import what_is_kept
from tests import tiny
from tests.answers.pool import lines, picture, record

LONG = "The man in the long black coat walks his small dog along the river bank on a cold morning"


@pytest.mark.parametrize(
    ("answer", "claims"),
    [
        ("A dog sits. It is red! Is it?", ["A dog sits.", "It is red!", "Is it?"]),
        ("Red", ["Red"]),
        ("", []),
        (" \n", []),
        ("Yes. There is a dog.", ["Yes. There is a dog."]),
        ("He is Mr. Smith of 3.5 years", ["He is Mr.", "Smith of 3.5 years"]),
        ("1. A dog\n2. A cat\n- one bird", ["A dog", "A cat", "one bird"]),
        ("A dog, and a cat.", ["A dog, and a cat."]),
        (f"{LONG}, and it rains; a bird sings.", [LONG, "it rains", "a bird sings."]),
        ("It is red.\n\nOK.", ["It is red.", "OK."]),
    ],
)
def test_how_answers_are_cut(answer, claims):
    assert claims_of(answer) == claims


def test_cutting_takes_time_in_proportion_to_length():
    assert len(claims_of("; " * 50_000 + " " * 200_000 + "x. " * 50_000 + '."' * 50_000)) > 0


@pytest.fixture
def pool(tmp_path):
    picture(tmp_path / "a.png")
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image> What is {it}?"}]
    path = lines(
        tmp_path / "answers.jsonl",
        record("q", "A dog sits. A cat sits. A bird sits.", prompt=prompt),
        record("q", "A dog sits.", prompt=prompt),
        record("q", "", prompt=prompt),
    )
    return read_answers([path])


def test_the_score_counts_the_claims_that_are_rejected(pool, tmp_path):
    asked = []

    def ask(rows):
        for row in rows:
            asked.append(row)
            text = row.prompt[0]["content"][1]["text"]
            yield 0.9 if "dog" in text else 0.5 if "cat" in text else 0.2

    found = rank(pool, Claims(ask, {"model": "m"}, tmp_path / "j.jsonl"))
    assert [each.score for each in found] == [-2.0, 0.0, None]
    assert found[0].details["rejected"] == 2
    assert found[0].details["claims"][2] == {"claim": "A bird sits.", "yes": 0.2}
    assert len(asked) == 3, "a claim that two answers make of one picture is asked once"
    assert [part["type"] for part in asked[0].prompt[0]["content"]] == ["image", "text"] and asked[0].images == pool[
        0
    ].row.images
    text = asked[0].prompt[0]["content"][1]["text"]
    assert "What is {it}?" in text and "A dog sits." in text and "Be brief" not in text


def test_claims_that_are_answered_are_kept_and_not_asked_again(pool, tmp_path, capsys):
    asked = []

    def ask(rows):
        for row in rows:
            asked.append(row.id)
            if len(asked) == 2:
                raise KeyboardInterrupt
            yield 1.0

    way = Claims(ask, {"model": "m"}, tmp_path / "j.jsonl")
    with pytest.raises(KeyboardInterrupt):
        rank(pool, way)
    with (tmp_path / "j.jsonl").open("a") as file:
        file.write('{"key": "torn')
    assert [each.score for each in rank(pool, way)] == [0.0, 0.0, None] and len(asked) == 4
    assert "1 of 3 claims are answered; 2 to go" in capsys.readouterr().out
    rank(pool, way)
    assert len(asked) == 4
    rank(pool, Claims(ask, {"model": "other"}, tmp_path / "j.jsonl"))
    assert len(asked) == 7, "another model is asked anew"
    picture(tmp_path / "a.png", "blue")
    rank(pool, way)
    assert len(asked) == 10, "another picture, too"


@pytest.mark.parametrize("line", ['{"id": "q"}', '{"key": "k", "yes": 2}', '{"key": "k", "yes": true}'])
def test_a_journal_of_something_else_is_refused(pool, tmp_path, line):
    (tmp_path / "j.jsonl").write_text(f"{line}\n")
    with pytest.raises(InputError, match="which is not the answer to a claim; move the file away"):
        rank(pool, Claims(lambda rows: [], {}, tmp_path / "j.jsonl"))


# The model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return tiny.world(folder, count=3)


def asking(folder, *texts):
    images = (folder / "0.png",)
    return [
        PromptRow(
            text, text, images, [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        )
        for text in texts
    ]


def by_hand(model, processor, row, template=None):
    """P(yes) / (P(yes) + P(no)) by one forward of transformers' own processor's input, behind the words that lead
    there.
    """

    def told(word):
        answer = {"role": "assistant", "content": [{"type": "text", "text": word}]}
        return processor.apply_chat_template([*row.prompt, answer], chat_template=template)

    prompt = processor.apply_chat_template(row.prompt, add_generation_prompt=True, chat_template=template)
    start = processor(text=prompt, images=Image.open(row.images[0]).convert("RGB"), return_tensors="pt")
    begun = {
        word: processor.tokenizer(told(word)).input_ids[len(processor.tokenizer(prompt).input_ids) :]
        for word in ("Yes", "yes", "No", "no")
    }
    lead = next(at for at in range(9) if len({ids[at] for ids in begun.values()}) > 1)
    ids = torch.cat([start["input_ids"], torch.tensor([begun["Yes"][:lead]], dtype=torch.int64)], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=start["pixel_values"]).logits[
            0, -1
        ]
    p = logits.double().softmax(-1)
    yes, no = ({begun[word][lead] for word in words} for words in (("Yes", "yes"), ("No", "no")))
    return float(p[list(yes - no)].sum() / (p[list(yes - no)].sum() + p[list(no - yes)].sum())), lead


# Without the blank that the other one has between "ASSISTANT:" and the answer, which is a token of its own here.
TIGHT = tiny.TEMPLATE.replace("}}: ", "}}:{% if m['role'] != 'assistant' %} {% endif %}")


@pytest.mark.parametrize(("template", "lead"), [(None, 1), (TIGHT, 0)])
def test_the_probability_is_that_of_a_plain_forward(world, template, lead):
    model, processor = load(world[0]), load_processor(world[0])
    rows = asking(world[0].parent, "Is it a dog?", "Does the big cat sit under the table?", "Red?")
    text = TextOptions(chat_template=template)
    found = list(confirm(model, processor, rows, batch_size=3, text=text))
    wanted = [by_hand(model, processor, row, template) for row in rows]
    assert found == pytest.approx([each for each, _ in wanted], abs=1e-5)
    assert len(set(found)) == 3 and all(0 < each < 1 for each in found)
    assert {each for _, each in wanted} == {lead}
    assert list(confirm(model, processor, rows, batch_size=1, text=text)) == pytest.approx(found, abs=1e-5)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    assert list(confirm(model, processor, rows, batch_size=3, text=text)) == pytest.approx(found, abs=1e-6)


class Encoder:
    """Of a tokenizer that makes these ids of words."""

    def __init__(self, **ids):
        self.ids = ids

    def row(self, row):
        return EncodedRow([], self.ids[row.chosen], [])


def test_what_tells_yes_from_no_is_the_first_token_that_differs(world):
    (row,) = asking(world[0].parent, "Red?")
    assert _first_tokens(Encoder(Yes=[7, 3], yes=[7, 4], No=[7, 5], no=[7, 6]), row) == ([7], [3, 4], [5, 6])
    assert _first_tokens(Encoder(Yes=[3, 9], yes=[8, 4], No=[5, 9], no=[8, 6]), row) == ([], [3], [5])
    with pytest.raises(InputError, match="begins yes and no with the same token"):
        _first_tokens(Encoder(Yes=[1], yes=[2], No=[1], no=[2]), row)


def test_the_command_goes_on_where_it_was_and_says_which_model_it_was(world, tmp_path, capsys):
    model, data = world
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    answers = lines(
        data.parent / "answers.jsonl",
        *(
            {"id": row["id"], "image": row["img_path"], "prompt": row["prompt"], "response": f"{row[side]}. A red dog."}
            for row in rows
            for side in ("chosen", "rejected")
        ),
    )
    words = ["rank", str(answers), "--by", "self", "--model", str(model), "--output", str(tmp_path / "s.jsonl")]
    assert main(words) == 0
    first = read_scored(tmp_path / "s.jsonl")
    assert len(first) == 6 and all(each.by == "self" and -2 <= each.score <= 0 for each in first)
    about = json.loads((tmp_path / "s.jsonl.settings.json").read_text())["settings"]
    assert about["model"].startswith("model@") and about["adapter"] is None
    journal = tmp_path / "s.jsonl.claims.jsonl"
    kept = journal.read_text().splitlines(keepends=True)
    assert len(kept) == 9
    journal.write_text("".join(kept[:4]))
    (tmp_path / "s.jsonl").unlink()
    assert main([*words, "--batch-size", "2"]) == 0
    assert "4 of 9 claims are answered; 5 to go" in capsys.readouterr().out
    again = read_scored(tmp_path / "s.jsonl")
    assert [each.score for each in again] == [each.score for each in first]
    assert [line["yes"] for line in map(json.loads, journal.read_text().splitlines())] == pytest.approx(
        [json.loads(line)["yes"] for line in kept], abs=1e-5
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--by", "self"], "--by self needs --model"),
        (["--by", "agreement", "--system-prompt", "x"], "belong to --by self"),
        (["--by", "self", "--model", "m", "--batch-size", "0"], "--batch-size is 0; expected a number above 0"),
        (["--by", "self", "--model", "nowhere"], "nowhere"),
        (["--by", "chair", "--model", "m"], "--model belongs to --by self"),
    ],
)
def test_options_that_do_not_go_together_are_named(tmp_path, capsys, more, words):
    picture(tmp_path / "a.png")
    path = lines(tmp_path / "answers.jsonl", record("q", "a car"))
    assert main(["rank", str(path), "--output", str(tmp_path / "s.jsonl"), *more]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_a_run_that_is_stopped_says_that_the_claims_are_kept():
    options = argparse.Namespace(words=["rank"], run=None, by="self", judge=None, output="s.jsonl")
    assert "claims answered so far are kept beside s.jsonl: the same command goes on" in what_is_kept(options)
    assert "begins again" in what_is_kept(argparse.Namespace(**{**vars(options), "by": "agreement"}))
