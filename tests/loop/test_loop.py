"""The loop: its commands in order, each once whatever ended it, and a page of what became of the model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mdpo.answers import read_scored
from mdpo.commands import check_words
from mdpo.errors import InputError
from mdpo.loop.config import read_loop, words_of
from mdpo.loop.report import result_of
from mdpo.loop.run import JOURNAL, planned, run_loop

SETTINGS = {
    "prompts": "prompts.jsonl",
    "train": {"model_name_or_path": "llava", "learning_rate": "1e-4", "system_prompt": "Look."},
    "rounds": 2,
    "sample": {"n": 4, "temperature": 0.9},
    "rank": {"by": "chair", "objects": "objects.jsonl", "length_control": True},
    "pairs": {"margin": 0.1},
    "evaluate": {"prompts": "held-out.jsonl", "sample": {"batch_size": 3}},
}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Those that ``SETTINGS`` names, in the folder that the loop runs in."""
    monkeypatch.chdir(tmp_path)
    for name in ("prompts.jsonl", "held-out.jsonl", "objects.jsonl"):
        Path(name).write_text(f'{{"id": "q of {name}", "objects": ["dog"]}}\n')


def config(tmp_path, **changes):
    path = tmp_path / "loop.yaml"
    values = {**SETTINGS, "output_dir": str(tmp_path / "out"), **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}, sort_keys=False))
    return read_loop(path)


def no_check(words):
    assert words


class Commands:
    """Stands in for the commands: writes what they would. fails: the number of the command that fails."""

    def __init__(self, fails=None):
        self.ran, self.fails = [], fails

    def __call__(self, words, journal):
        assert journal.fileno() > 0
        self.ran.append(list(words))
        if len(self.ran) == self.fails:
            return 143
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        output = Path(options.get("output") or options["output_dir"])
        output.parent.mkdir(parents=True, exist_ok=True)
        if words[0] == "rank":
            number = int(output.parts[-3].removeprefix("round-")) if "evaluation" in output.parts else 0
            lines = [
                {"id": str(n), "prompt": "What?", "response": f"a dog {number}", "writer": "me", "tokens": 3 + number,
                 "score": float(number > n), "by": "chair",
                 "details": {"named": ["dog", "cat"], "false": [] if number > n else ["cat"], "found": ["dog"],
                     "present": ["dog"]}}
                for n in range(3)
            ]  # fmt: skip
            output.write_text("".join(json.dumps(line) + "\n" for line in lines))
        elif words[0] == "train":
            output.mkdir()
        else:
            output.write_text("")
        return 0


def names(commands):
    return [words[0] for words in commands.ran]


def test_the_commands_of_two_rounds(tmp_path):
    out = tmp_path / "out"
    found = [list(stage.words) for stage in planned(config(tmp_path), no_check)]
    assert [words[0] for words in found] == ["sample", "rank"] + 2 * [
        "sample",
        "rank",
        "pairs",
        "train",
        "sample",
        "rank",
    ]
    before, second = found[0], found[8]
    assert before[:3] == ["sample", "llava", "held-out.jsonl"] and not any(
        word.startswith("--adapter") for word in before
    )
    assert {"--n=1", "--temperature=0", "--batch-size=3", "--system-prompt=Look."} <= set(
        before
    ) and "--n=4" not in before
    assert second[:3] == ["sample", "llava", "prompts.jsonl"]
    assert {
        f"--adapter={out}/round-1/model",
        "--n=4",
        "--temperature=0.9",
        "--seed=44",
        "--system-prompt=Look.",
    } <= set(second)
    assert found[3] == [
        "rank",
        f"{out}/round-1/answers.jsonl",
        f"--output={out}/round-1/scored.jsonl",
        "--by=chair",
        "--objects=objects.jsonl",
        "--length-control",
    ]
    assert found[4] == ["pairs", f"{out}/round-1/scored.jsonl", f"--output={out}/round-1/pairs.jsonl", "--margin=0.1"]
    assert found[5] == [
        "train",
        f"{out}/train.yaml",
        f"--train_data={out}/round-1/pairs.jsonl",
        f"--image_dir={out}/round-1",
        f"--output_dir={out}/round-1/model",
    ]
    assert found[11][-1] == f"--adapter_name_or_path={out}/round-1/model"


def test_a_model_trained_whole_is_the_next_rounds_model(tmp_path):
    train = {**SETTINGS["train"], "use_lora": False}
    found = [list(stage.words) for stage in planned(config(tmp_path, train=train), no_check)]
    model = f"{tmp_path}/out/round-1/model"
    assert found[8][1] == model and found[11][-1] == f"--model_name_or_path={model}"
    assert not any("adapter" in word for words in found for word in words)


def test_an_adapter_is_started_from(tmp_path):
    train = {**SETTINGS["train"], "adapter_name_or_path": "sft"}
    found = [list(stage.words) for stage in planned(config(tmp_path, train=train), no_check)]
    assert "--adapter=sft" in found[0] and "--adapter=sft" in found[2] and "--adapter_name_or_path=sft" in found[5]


def test_the_model_itself_ranks_with_its_own_adapter(tmp_path):
    found = [list(stage.words) for stage in planned(config(tmp_path, rank={"by": "self"}), no_check)]
    assert "--model=llava" in found[3] and not any(word.startswith("--adapter") for word in found[3])
    assert f"--adapter={tmp_path}/out/round-1/model" in found[9] and "--system-prompt=Look." in found[9]
    found = [
        list(stage.words) for stage in planned(config(tmp_path, rank={"by": "self", "model": "labeler"}), no_check)
    ]
    assert "--model=labeler" in found[9] and not any(word.startswith("--adapter") for word in found[9])


@pytest.mark.parametrize("use_lora", [True, False])
def test_all_rounds_are_measured_by_the_doubts_of_one_model(tmp_path, use_lora):
    train = {**SETTINGS["train"], "use_lora": use_lora}
    stages = planned(config(tmp_path, rank={"by": "self"}, train=train), no_check)
    measured = [stage.words for stage in stages if stage.name == "measure"]
    assert len(measured) == 3
    assert {tuple(word for word in words if word.startswith(("--model", "--adapter"))) for words in measured} == {
        ("--model=llava",)
    }


def test_without_questions_to_evaluate_on(tmp_path):
    found = planned(config(tmp_path, evaluate=None), no_check)
    assert [stage.words[0] for stage in found] == 2 * ["sample", "rank", "pairs", "train"]
    assert run_loop(config(tmp_path, evaluate=None), no_check, Commands()) == 0
    assert "own samples" in (tmp_path / "out" / "report.md").read_text()
    by_itself = config(tmp_path, evaluate=None, rank={"by": "self"}, output_dir=str(tmp_path / "by itself"))
    assert run_loop(by_itself, no_check, Commands()) == 0
    assert "do not compare" in (tmp_path / "by itself" / "report.md").read_text()


def test_a_page_over_the_rounds(tmp_path):
    commands = Commands()
    assert run_loop(config(tmp_path), no_check, commands) == 0 and len(commands.ran) == 14
    text = (tmp_path / "out" / "report.md").read_text()
    lines = {line.split(" |")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert [cell.split("**")[1] for cell in lines["CHAIR_s ↓"].split(" |")[1:4]] == ["100.0%", "66.7%", "33.3%"]
    assert [cell.split("**")[1] for cell in lines["win rate ↑"].split(" |")[1:4]] == ["50.0%", "66.7%", "83.3%"]
    assert [cell.split("**")[1] for cell in lines["tokens"].split(" |")[1:4]] == ["3.00", "4.00", "5.00"]
    assert "changed" in lines["tokens"] and "better" not in lines["tokens"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Answers that changed most" in page and "<mark>" not in page.split("after round 2</h4>")[-1]
    assert (tmp_path / "out" / "report.png").is_file()


@pytest.mark.parametrize("fails", [1, 2, 4, 5, 6, 7, 8, 14])
def test_each_stage_is_done_once_whatever_ended_the_loop(tmp_path, fails, capsys):
    commands = Commands(fails)
    assert run_loop(config(tmp_path), no_check, commands) == 143
    assert "the same command goes on" in capsys.readouterr().out
    again = Commands()
    assert run_loop(config(tmp_path), no_check, again) == 0
    assert names(commands)[: fails - 1] + names(again) == [
        stage.words[0] for stage in planned(config(tmp_path), no_check)
    ]
    nothing = Commands()
    assert run_loop(config(tmp_path), no_check, nothing) == 0 and not nothing.ran


def test_more_rounds_go_on(tmp_path):
    assert run_loop(config(tmp_path), no_check, Commands()) == 0
    more = Commands()
    assert run_loop(config(tmp_path, rounds=3), no_check, more) == 0
    assert names(more) == ["sample", "rank", "pairs", "train", "sample", "rank"]
    with pytest.raises(InputError, match="more rounds than 2"):
        run_loop(config(tmp_path), no_check, Commands())


def test_other_settings_are_another_loop(tmp_path):
    run_loop(config(tmp_path), no_check, Commands(5))
    with pytest.raises(InputError, match=r"round 1's sample .*--n=4, --n=5"):
        run_loop(config(tmp_path, sample={"n": 5, "temperature": 0.9}), no_check, Commands())
    sample = dict(reversed(SETTINGS["sample"].items()))
    assert run_loop(config(tmp_path, sample=sample), no_check, Commands(1)) == 143, "another order is the same loop"


@pytest.mark.parametrize(
    ("name", "since"),
    [
        ("prompts.jsonl", "round 1's sample"),
        ("held-out.jsonl", "round 0's answer"),
        ("objects.jsonl", "round 0's measure"),
        ("rubric.yaml", "round 0's measure"),
    ],
)
def test_a_file_that_has_changed_between_rounds_is_named(tmp_path, name, since):
    rank = SETTINGS["rank"]
    if name == "rubric.yaml":
        rank = {"by": "judge", "judge": "m", "rubric": name}
        Path(name).write_text("scale: [1, 5]\n")
    assert run_loop(config(tmp_path, rank=rank, rounds=1), no_check, Commands()) == 0
    was = Path(name).read_text()
    Path(name).write_text(was + "\n")
    more = Commands()
    with pytest.raises(InputError, match=f"{name} has changed since {since}"):
        run_loop(config(tmp_path, rank=rank), no_check, more)
    assert not more.ran, "not after hours of sampling"
    Path(name).write_text(was)
    assert run_loop(config(tmp_path, rank=rank), no_check, Commands()) == 0


def test_a_file_that_changes_while_the_loop_runs_is_named(tmp_path):
    commands = Commands()

    def run(words, journal):
        if words[0] == "train":
            Path("prompts.jsonl").write_text('{"id": "another"}\n')
        return commands(words, journal)

    with pytest.raises(InputError, match="prompts.jsonl has changed since round 1's sample"):
        run_loop(config(tmp_path), no_check, run)
    assert names(commands) == ["sample", "rank", "sample", "rank", "pairs", "train", "sample", "rank"]


@pytest.mark.parametrize("as_file", [True, False])
def test_other_settings_of_training_are_said(tmp_path, capsys, as_file):
    def train(**changes):
        settings = {**SETTINGS["train"], **changes}
        if not as_file:
            return settings
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
        return str(tmp_path / "train.yaml")

    assert run_loop(config(tmp_path, train=train()), no_check, Commands()) == 0
    said = "round 2 was trained with other settings than now: learning_rate, beta"
    assert said not in capsys.readouterr().out
    changed = train(learning_rate=1e-5, beta=0.2)
    assert run_loop(config(tmp_path, train=changed), no_check, Commands()) == 0
    assert "other settings" not in capsys.readouterr().out, "nothing is left to train"
    assert run_loop(config(tmp_path, train=changed, rounds=3), no_check, Commands()) == 0
    assert said in capsys.readouterr().out
    assert run_loop(config(tmp_path, train=changed, rounds=4), no_check, Commands()) == 0
    assert "other settings" not in capsys.readouterr().out


def test_a_loop_that_ran_out_of_memory_goes_on_with_smaller_batches(tmp_path):
    run_loop(config(tmp_path), no_check, Commands(5))
    again = Commands(1)
    sample = {**SETTINGS["sample"], "batch_size": 2}
    assert run_loop(config(tmp_path, sample=sample, evaluate={"prompts": "held-out.jsonl"}), no_check, again) == 143
    assert names(again) == ["pairs"]


def test_answers_without_a_score_are_said(tmp_path):
    path = tmp_path / "scored.jsonl"
    one = {"id": "q", "prompt": "What?", "response": "a dog", "by": "function", "score": 1.0}
    silent = {**one, "response": "", "score": None}
    path.write_text("".join(json.dumps(line) + "\n" for line in (one, silent)))
    found = result_of(read_scored(path), {}, "held-out")
    assert found.warnings == ["1 of 2 answers have no score, as empty ones have none: no figure counts them"]
    path.write_text(json.dumps(one) + "\n")
    assert not result_of(read_scored(path), {}, "held-out").warnings


def test_a_stage_that_was_cut_short_begins_on_free_ground(tmp_path):
    run_loop(config(tmp_path), no_check, Commands(6))  # ended in training
    folder = tmp_path / "out" / "round-1"
    (folder / "model" / "checkpoint-3").mkdir(parents=True)
    (folder / "model" / "checkpoint-3" / "trainer_state.json").write_text("{}")
    again = Commands(1)
    run_loop(config(tmp_path), no_check, again)
    assert again.ran[0][-2:] == ["--resume_from_checkpoint", "true"]
    journal = tmp_path / "out" / JOURNAL
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))  # ended between pairs and its line
    assert (folder / "pairs.jsonl").is_file()

    def free(words, journal):
        assert words[0] != "pairs" or not (folder / "pairs.jsonl").exists()
        return 1

    assert run_loop(config(tmp_path), no_check, free) == 1


def test_a_folder_that_is_a_file_is_said_before_the_first_command_runs(tmp_path):
    (tmp_path / "out").touch()
    for folder in ("out", "out/below"):
        with pytest.raises(InputError, match="output_dir: .* is a file; give a"):
            planned(config(tmp_path, output_dir=folder), no_check)


def test_what_is_wrong_with_a_command_is_said_before_the_first_runs(tmp_path):
    def check(words):
        if words[0] == "rank":
            raise InputError("mdpo rank: no such way")

    with pytest.raises(InputError, match="before the first round: measure: mdpo rank: no such way"):
        run_loop(config(tmp_path), check, Commands())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": None}, "'prompts' is missing"), ({"train": None}, "'train' is missing"),
        ({"round": 3}, "unknown key 'round'.*'rounds'"),
        ({"rounds": 0}, "rounds is 0; expected a whole number from 1"), ({"rounds": "two"}, "rounds"),
        ({"seed": -1}, "seed"),
        ({"sample": [1]}, "sample is a list; expected options of mdpo sample"),
        ({"train": 3}, "train is a int; expected the path"),
        ({"sample": {"output": "x"}}, "sample: output is set by the loop"),
        ({"sample": {"seed": 3}}, "seed is set by the loop"),
        ({"train": {"model_name_or_path": "m", "train_data": "x"}}, "train: train_data is set by the loop"),
        ({"train": {"model_name_or_path": "m", "learning_rat": 1}}, "unknown key 'learning_rat'"),
        ({"train": "nowhere.yaml"}, "nowhere.yaml"),
        ({"evaluate": {"sample": {}}}, "evaluate: key 'prompts' is missing"),
        ({"evaluate": {"prompts": "prompts.jsonl"}}, "evaluate: prompts: these are the questions that are trained on"),
        ({"evaluate": {"prompts": ""}}, "evaluate: prompts is empty; expected a path"),
        ({"prompts": 3}, "prompts is a int; expected a path"),
        ({"evaluate": {"prompts": "p", "sample": {"temperature": 0.7}}},
            "evaluate: sample: temperature is set by the loop"),
        ({"evaluate": {"prompts": "p", "sample": {"top-p": 0.7}}}, "evaluate: sample: top_p is set by the loop"),
        ({"evaluate": {"prompts": "p", "pairs": {}}},
            "evaluate: unknown key 'pairs'; there are 'prompts', 'sample', 'rank'"),
        ({"rank": {"by": "judge", "judge": "m", "dry_run": True}}, "rank: dry_run is set by the loop"),
        ({"sample": {"max-new-tokens": 3, "max_new_tokens": 4}}, "sample: max_new_tokens appears twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as found:
        planned(config(tmp_path, **changes), no_check)
    assert "\n" not in str(found.value)


def test_paths_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_loop(config(tmp_path, output_dir="~/runs"), no_check, Commands()) == 0
    assert (tmp_path / "runs" / "train.yaml").is_file() and (tmp_path / "runs" / "report.md").is_file()
    (tmp_path / "own.yaml").write_text("model_name_or_path: llava\n")
    found = planned(config(tmp_path, train="~/own.yaml"), no_check)
    assert found[5].words[:2] == ("train", f"{tmp_path}/own.yaml")


def test_options_as_words():
    options = {
        "n": 6,
        "by": "self",
        "length_control": True,
        "dry_run": False,
        "rubric": None,
        "price": [1, 2.5],
        "margin": -1,
    }
    assert words_of(options) == ["--n=6", "--by=self", "--length-control", "--price", "1", "2.5", "--margin=-1"]


def test_the_shipped_configuration_makes_commands_that_are_right():
    root = Path(__file__).parents[2]
    loop = read_loop(root / "configs" / "loop" / "llava-1.5-7b.yaml")
    assert (root / str(loop.train)).is_file()
    here = str(root / "README.md")  # in place of questions that are not here, and a training that is for a GPU
    assert loop.evaluate is not None
    loop = replace(
        loop, prompts=here, evaluate=replace(loop.evaluate, prompts=here), train={"model_name_or_path": "llava"}
    )
    found = planned(loop, check_words)
    assert [stage.name for stage in found] == [
        "answer",
        "measure",
        *2 * ["sample", "rank", "pairs", "train", "answer", "measure"],
    ]
    assert "--adapter_name_or_path=runs/own-answers/round-1/model" in found[11].words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample": {"nn": 4}}, "round 1 of 2: sample: mdpo sample: unrecognized arguments: --nn=4"),
        ({"sample": {"temp": 0.3}}, "sample: mdpo sample: unrecognized arguments: --temp=0.3"),
        ({"pairs": {"outp": "x"}}, "pairs: mdpo pairs: unrecognized arguments: --outp=x"),
        ({"rank": {"by": "luck"}}, "invalid choice: 'luck'"),
        ({"pairs": {"margin": "wide"}}, "round 1 of 2: pairs.*--margin"),
        ({"rank": {}}, "--by"),
        ({"prompts": "gone.jsonl"}, "round 1 of 2: sample: data file gone.jsonl does not exist"),
        ({"rank": {"by": "chair", "objects": "nowhere.json"}}, "rank: nowhere.json does not exist"),
        ({"rank": {"by": "chair"}}, "rank: --by chair needs --objects"),
        ({"sample": {"temperature": -1}}, "sample: temperature is -1"),
        ({"pairs": {"margin": -1}}, "pairs: --margin is -1; expected"),
    ],
)
def test_an_option_that_a_command_does_not_have_is_said_with_its_stage(tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "objects.jsonl").write_text('{"id": "q", "objects": ["dog"]}\n')
    (tmp_path / "questions.jsonl").touch()
    prompts = {"prompts": str(tmp_path / "questions.jsonl")}
    with pytest.raises(InputError, match=words) as found:
        planned(config(tmp_path, **{"rank": {"by": "agreement"}, **prompts, **changes}, evaluate=None), check_words)
    assert "\n" not in str(found.value)
