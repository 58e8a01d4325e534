"""``mdpo sample``: its file reads as a pool, is gone on with wherever it was interrupted, and is of one writer's
making.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo.answers import draw, read_answers, sample_command, vllm_engine
from mdpo.cli import main
from mdpo.evaluation.generate import Writer
from tests import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=4)


@pytest.fixture
def command(world, tmp_path):
    """The command line, with more options."""

    def words(*more, output: Path = tmp_path / "pool" / "a.jsonl", data: Path = world[1]):
        given = ["--output", output, "--n", 3, "--max-new-tokens", 4, *more]  # the last of two wins
        return [str(word) for word in ("sample", world[0], data, *given)]

    return words


def error_of(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers_of(path: Path) -> dict[tuple[str, int], str]:
    return {(line["id"], line["answer"]): line["response"] for line in lines(path)}


def test_the_file_is_a_pool_with_its_pictures_below_it(world, command, tmp_path, capsys):
    assert main(command()) == 0
    found = read_answers([tmp_path / "pool" / "a.jsonl"])
    assert [(answer.row.id, answer.number) for answer in found] == [
        (f"row{row}", n) for row in range(4) for n in range(3)
    ]
    for answer in found:
        (picture,) = answer.row.images
        assert picture.is_relative_to((tmp_path / "pool").resolve())
        assert picture.read_bytes() == (world[1].parent / f"{answer.row.id.removeprefix('row')}.png").read_bytes()
        assert 0 <= answer.tokens <= 4 and (answer.whole or answer.tokens == 4)
    (writer,) = {answer.writer for answer in found}
    assert re.fullmatch(r"model@[0-9a-f]{8}", writer)
    mean, cut = sum(answer.tokens for answer in found) / 12, sum(not answer.whole for answer in found)
    said = capsys.readouterr().out.splitlines()[-1]
    assert f"a.jsonl: 12 answers to 4 questions, {mean:.1f} tokens on average, {cut} cut at the limit, " in said
    assert re.search(r", \d+ tokens a second$", said)


def test_more_answers_are_added_and_a_finished_run_loads_nothing(command, tmp_path, capsys, monkeypatch):
    eight, more = tmp_path / "eight.jsonl", tmp_path / "more.jsonl"
    assert main(command("--n", 8, output=eight)) == 0
    assert main(command("--n", 6, output=more)) == 0
    before = more.read_bytes()
    capsys.readouterr()
    assert main(command("--n", 8, "--batch-size", 3, output=more)) == 0
    assert "24 of 32 answers are there; 8 to go" in capsys.readouterr().out
    assert more.read_bytes().startswith(before) and len(lines(more)) == 32
    assert answers_of(more) == answers_of(eight)

    monkeypatch.setattr(sample_command, "open_model", None)
    assert main(command("--n", 8, output=more)) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("cut at the limit"), "no speed, since nothing was drawn"
    assert main(command("--n", 6, output=more)) == 2
    assert "more.jsonl has 8 answers to a question already; give --n 8 or more, or another --output" in error_of(capsys)


@pytest.mark.parametrize("after", [0, 1, 5, 11])
def test_an_interrupted_run_goes_on_with_the_same_answers(command, tmp_path, monkeypatch, after):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    assert main(command(output=whole)) == 0
    appended = []
    real = sample_command.Journal.append

    def append(journal, record):
        if len(appended) == after:
            raise MemoryError  # as good as a kill: nothing after it is written
        appended.append(record)
        real(journal, record)

    with monkeypatch.context() as patch:
        patch.setattr(sample_command.Journal, "append", append)
        with pytest.raises(MemoryError):
            main(command(output=output))
    with output.open("ab") as file:  # and a line is torn
        file.write(b'{"id": "row')
    assert main(command("--batch-size", 5, output=output)) == 0
    assert lines(output) == lines(whole)


def test_other_settings_are_refused(command, capsys):
    assert main(command()) == 0
    for more, message in [
        (["--temperature", "0.9"], "temperature: 1.0 then, 0.9 now"),
        (["--top-p", "0.9"], "top_p: 1.0 then, 0.9 now"),
        (["--seed", "1"], "seed: 42 then, 1 now"),
        (["--max-new-tokens", "5"], "max_new_tokens: 4 then, 5 now"),
        (["--system-prompt", "Be brief."], "text: "),
    ]:
        capsys.readouterr()
        assert main(command(*more)) == 2
        assert f"was begun with other settings ({message}" in error_of(capsys)


def test_what_else_lies_there_is_refused(command, tmp_path, capsys):
    output = tmp_path / "pool" / "a.jsonl"
    output.parent.mkdir()
    output.write_text('{"id": "row0", "response": "mine"}\n')
    assert main(command()) == 2
    assert "has answers but no a.jsonl.settings.json" in error_of(capsys)
    output.unlink()
    assert main(command()) == 0
    good = output.read_text().splitlines(keepends=True)
    for line, message in [
        ('{"id": "row0", "response": "mine"}\n', "line 2: not an answer that mdpo sample wrote"),
        (good[0], "line 2: answer 0 to 'row0' appears twice"),
        (good[0].replace('"row0"', '"other"'), "line 2: id 'other' is not among the questions"),
    ]:
        output.write_text(good[0] + line)
        assert main(command()) == 2
        assert message in error_of(capsys)


def test_writers_are_told_apart_by_what_they_wrote_with(world, command, tmp_path):
    adapters = []
    for seed in (0, 1):
        base = tiny.llava()
        torch.manual_seed(seed)
        model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        adapters.append(tmp_path / str(seed) / "sft")
        model.save_pretrained(str(adapters[-1]))
    (tmp_path / "run").mkdir()
    adapters.append(adapters[0].rename(tmp_path / "run" / "checkpoint-5"))
    runs = [[], ["--temperature", 0.5], ["--adapter", adapters[1]], ["--adapter", adapters[2]]]
    outputs = [tmp_path / f"{number}.jsonl" for number in range(len(runs))]
    for more, output in zip(runs, outputs, strict=True):
        assert main(command(*more, output=output)) == 0
    pool = read_answers(outputs)
    names = list(dict.fromkeys(answer.writer for answer in pool))
    assert len(pool) == 48
    assert len({tuple(answer.response for answer in pool if answer.writer == name) for name in names}) == 4
    assert [name.partition("@")[0] for name in names] == ["model", "model", "sft", "run/checkpoint-5"]
    assert len({name.partition("@")[2] for name in names}) == 4


def test_the_same_writer_answers_parts_of_the_questions(world, command, tmp_path):
    rows = world[1].read_text().splitlines(keepends=True)
    outputs = []
    for part in range(2):
        data, output = world[1].with_name(f"part{part}.jsonl"), tmp_path / f"{part}.jsonl"
        data.write_text("".join(rows[2 * part : 2 * part + 2]))
        outputs.append(output)
        assert main(command(output=output, data=data)) == 0
    assert len({answer.writer for answer in read_answers(outputs)}) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--n", "0"], "n is 0"),
        (
            ["--output", "answers.json"],
            "--output answers.json: answers are written as JSONL; give a name that ends in .jsonl",
        ),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--temperature", "0"], "at temperature 0 all answers are the same"),
        (["--top-p", "0"], "top_p is 0.0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--batch-size", "0"], "--batch-size is 0; expected a number above 0"),
        (["--adapter", "nowhere"], "nowhere"),
        (["--engine", "vllm"], "--engine vllm: it does not import (it is not installed); install it, or give"),
    ],
)
def test_what_cannot_be_is_said_before_the_model_is_loaded(command, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.setattr(sample_command, "open_model", None)
    assert main(command(*more)) == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "pool").exists()


def test_questions_without_pictures_are_refused_only_where_no_row_has_one(world, command, tmp_path, capsys):
    rows = lines(world[1])
    blind = [{name: value for name, value in row.items() if name != "img_path"} for row in rows]
    data = world[1].with_name("blind.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in blind))
    assert main(command(data=data)) == 2
    assert "blind.jsonl: no row has an image" in error_of(capsys)
    data.write_text("".join(json.dumps(row) + "\n" for row in [*blind[:3], rows[3]]))
    assert main(command(data=data)) == 0
    assert len(lines(tmp_path / "pool" / "a.jsonl")) == 12


def test_an_adapter_of_another_base_is_refused(world, command, tmp_path, capsys):
    model = get_peft_model(tiny.bunny(), LoraConfig(r=2, target_modules=["fc1"]))
    model.save_pretrained(str(tmp_path / "adapter"))
    assert main(command("--adapter", tmp_path / "adapter")) == 2
    assert "it was trained on another model; give it its own base" in error_of(capsys)


@pytest.mark.parametrize("name", ["sample", "generate"])
def test_a_gpu_without_room_is_one_line_with_what_to_lower(world, tmp_path, capsys, monkeypatch, name):
    def full(self, rows, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Writer, "__call__", full)
    assert main([name, str(world[0]), str(world[1]), "--output", str(tmp_path / "a.jsonl"), "--batch-size", "7"]) == 2
    said = error_of(capsys)
    assert "too small for 7 answers of up to 1024 tokens at a time: lower --batch-size" in said


def test_a_stopped_run_says_that_it_goes_on(world, command, tmp_path, capsys, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_command, "draw", stopped)
    assert main(command()) == 130
    assert "a.jsonl: the same command goes on" in capsys.readouterr().err


def test_auto_takes_transformers_where_there_is_no_gpu_or_no_vllm(capsys, monkeypatch):
    assert vllm_engine.choose_engine("auto") == "transformers" and not capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert vllm_engine.choose_engine("auto") == "transformers"
    assert capsys.readouterr().out == "engine: transformers, because vLLM does not import: it is not installed\n"
    assert vllm_engine.choose_engine("transformers") == "transformers" and not capsys.readouterr().out


def test_python_and_the_command_draw_the_same(world, command, tmp_path):
    from mdpo.data import PromptRow, read_rows
    from mdpo.models import load, load_processor

    assert main(command()) == 0
    rows = read_rows(world[1], kind=PromptRow)
    found = draw.sample(load(world[0]), load_processor(world[0]), rows, n=3, max_new_tokens=4)
    assert {(answer.row.id, answer.number): answer.response for answer in found} == answers_of(
        tmp_path / "pool" / "a.jsonl"
    )
