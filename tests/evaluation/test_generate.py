"""Generation: the same answers batched, resumed or not; settings that differ are refused; layouts are the official
ones.
"""

import base64
import json

import pytest

from mdpo import InputError
from mdpo.commands import program
from mdpo.data import PromptRow, read_rows
from mdpo.evaluation import generate
from mdpo.evaluation.answering import Settings, answer_all, read_settings
from mdpo.evaluation.chair.files import read_captions
from mdpo.evaluation.mmhal.files import read_mmhal
from mdpo.evaluation.questions import read_questions, write_answers
from mdpo.evaluation.responses import read_answers
from mdpo.models import load, load_processor
from tests import tiny

SETTINGS = {"model": "m", "adapter": None, "data": "d", "dtype": "auto", "max_new_tokens": 4, "num_beams": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=5)


def run(*arguments):
    options = program().parse_args([str(argument) for argument in arguments])
    options.run(options)


def test_answers_do_not_depend_on_the_batch(world):
    model, data = world
    rows = read_rows(data, kind=PromptRow)
    loaded, processor = load(model), load_processor(model)
    one = list(generate(loaded, processor, rows, max_new_tokens=6, batch_size=1))
    assert list(generate(loaded, processor, rows, max_new_tokens=6, batch_size=3)) == one
    beams = list(generate(loaded, processor, rows, max_new_tokens=6, batch_size=2, num_beams=3))
    assert len(beams) == len(rows)
    loaded.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    assert list(generate(loaded, processor, rows, max_new_tokens=6, batch_size=3)) == one, (
        "the model's own sampling is off"
    )


def test_the_command_resumes_and_refuses_other_settings(world, tmp_path, capsys):
    model, data = world
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run("generate", model, data, "--output", whole, "--max-new-tokens", 5, "--batch-size", 2)
    lines = whole.read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["id"] for line in lines] == [f"row{index}" for index in range(5)]
    assert read_settings(whole)["settings"]["max_new_tokens"] == 5

    run("generate", model, data, "--output", output, "--max-new-tokens", 5)
    output.write_bytes(b"".join(lines[:2]) + lines[2][:9])  # interrupted in the middle of a line
    run("generate", model, data, "--output", output, "--max-new-tokens", 5, "--batch-size", 1)
    assert output.read_bytes() == whole.read_bytes()
    assert "2 of 5 answers are there; 3 to go" in capsys.readouterr().out

    with pytest.raises(InputError, match=r"max_new_tokens: 5 then, 1024 now.*another --output"):
        run("generate", model, data, "--output", output)
    with pytest.raises(InputError, match="num_beams: 1 then, 3 now"):
        run("generate", model, data, "--output", output, "--max-new-tokens", 5, "--preset", "rlhfv")
    assert output.read_bytes() == whole.read_bytes()


def rows(*ids):
    return [PromptRow(id, id, (), []) for id in ids]


def test_a_finished_run_asks_for_nothing(tmp_path):
    output, asked = tmp_path / "o.jsonl", []

    def answerer(todo):
        asked.append([row.id for row in todo])
        yield from (row.id.upper() for row in todo)

    settings = Settings(**SETTINGS)
    assert answer_all(rows("a", "b"), answerer, settings, output, output) == {"a": "A", "b": "B"}
    assert answer_all(rows("a", "b"), answerer, settings, output, output) == {"a": "A", "b": "B"}
    assert asked == [["a", "b"]]


def test_an_error_in_the_middle_loses_nothing(tmp_path):
    output = tmp_path / "o.jsonl"

    def breaks(todo):
        yield "A"
        raise MemoryError

    with pytest.raises(MemoryError):
        answer_all(rows("a", "b"), breaks, Settings(**SETTINGS), output, output)
    assert read_answers(output) == {"a": "A"}
    assert answer_all(rows("a", "b"), lambda todo: ["B"], Settings(**SETTINGS), output, output) == {"a": "A", "b": "B"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "z", "response": "x"}\n', "'z' is not among the questions"),
        ('{"id": "a", "response": "x"}\n' * 2, "'a' is answered twice"),
        ('{"id": 1}\n', "line 1 has no id or no response"),
    ],
)
def test_a_journal_of_something_else_is_refused(tmp_path, content, message):
    output = tmp_path / "o.jsonl"
    answer_all(rows("a"), lambda todo: ["A"], Settings(**SETTINGS), output, output)
    output.write_text(content)
    with pytest.raises(InputError, match=message):
        answer_all(rows("a"), lambda todo: ["A"], Settings(**SETTINGS), output, output)


def test_answers_without_settings_are_refused(tmp_path):
    output = tmp_path / "o.jsonl"
    output.write_text('{"id": "a", "response": "x"}\n')
    with pytest.raises(InputError, match="no o.jsonl.settings.json"):
        answer_all(rows("a"), lambda todo: ["A"], Settings(**SETTINGS), output, output)


@pytest.fixture
def images(tmp_path):
    tiny.records(tmp_path, 2)
    return tmp_path


def test_ambers_layout(world, images):
    questions = images / "query_generative.json"
    questions.write_text(
        json.dumps([{"id": id, "image": f"{id - 6}.png", "query": "Describe this image."} for id in (6, 7)])
    )
    output = images / "answers.json"
    run("generate", world[0], questions, "--benchmark", "amber", "--output", output, "--max-new-tokens", 3)
    answers = json.loads(output.read_text())
    assert [answer["id"] for answer in answers] == [6, 7]
    assert all(isinstance(answer["response"], str) for answer in answers)
    assert not output.with_name("answers.json.part").exists()


def test_mmhals_layout(images):
    record = {"image_content": ["Cat"], "question": "How many?", "gt_answer": "One.", "model_answer": ""}
    records = [
        record | {"image_src": "https://x/y/0.png"},
        record | {"image_id": "1", "image_src": "https://x/y/z.jpg"},
    ]
    questions = images / "template.json"
    questions.write_text(json.dumps(records))
    parsed = read_questions(questions, "mmhal")
    assert [row.images[0].name for row in parsed] == ["0.png", "1.png"], "by address, or by id"
    output = images / "out.json"
    write_answers(output, "mmhal", questions, {"0": "a", "1": "b"})
    assert [record["model_answer"] for record in read_mmhal(output)] == ["a", "b"]
    assert json.loads(output.read_text())[0].keys() == records[0].keys()
    output.write_text(json.dumps([records[0], records[1] | {"model_answer": 1.5}]))
    with pytest.raises(InputError, match="record 1: model_answer is 1.5; expected text"):
        read_mmhal(output)


def test_object_halbenchs_layout(images):
    encoded = base64.b64encode((images / "0.png").read_bytes()).decode()
    assert len(encoded) > 256
    questions = images / "obj.jsonl"
    lines = [
        {"image_id": 42, "question": "Describe.", "image": encoded},
        {"image_id": 43, "question": "What?", "image": "1.png"},
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    parsed = read_questions(questions, "object-halbench")
    assert [row.id for row in parsed] == ["0", "1"]
    output = images / "out.jsonl"
    write_answers(output, "object-halbench", questions, {"0": "Assistant: a dog ", "1": "b"})
    assert read_captions(output) == [
        {"image_id": 42, "question": "Describe.", "caption": "a dog"},
        {"image_id": 43, "question": "What?", "caption": "b"},
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "x"}, "record 0 has no id, only question; is this another benchmark"),
        ({"id": 1, "query": "x"}, "has no image, only id, query"),
        ({"id": 1, "query": "x", "image": "none.png"}, "no image none.png in .*--image-dir"),
        ({"id": 1, "query": "x", "image": "!" * 300}, "neither a path nor an image in base64"),
    ],
)
def test_bad_questions_are_named(tmp_path, record, message):
    (tmp_path / "q.json").write_text(json.dumps([record]))
    with pytest.raises(InputError, match=message):
        read_questions(tmp_path / "q.json", "amber")
