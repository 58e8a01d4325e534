"""sample_prompts: answers at every evaluation, on a page and in lines; a run that has them is the run without them."""

import json
import logging
import re

import pytest
import torch
from peft import LoraConfig

from mdpo import InputError, MDPOConfig, MDPOTrainer
from mdpo.data import read_rows
from mdpo.evaluation import generate
from mdpo.objectives import PRESETS
from mdpo.run_folder import remove_run
from mdpo.trainer import samples
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return read_rows(tiny.world(tmp_path_factory.mktemp("world"), count=8)[1])


def trainer(folder, train, evaluate=None, callbacks=None, **settings) -> MDPOTrainer:
    defaults = {
        "learning_rate": 5e-2,
        "examples_per_step": 2,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "sample_prompts": 2,
        "check_start": False,
    }
    return MDPOTrainer(
        model=tiny.llava(),
        args=MDPOConfig(**{"output_dir": str(folder), **defaults, **settings}),
        train_dataset=train,
        eval_dataset=evaluate,
        processing_class=tiny.processor(),
        callbacks=callbacks,
        peft_config=LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj"),
    )


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "sample_answers.jsonl").read_text().splitlines()]


def test_every_evaluation_adds_a_column_and_changes_no_weight(tmp_path, rows):
    evaluated = {"eval_strategy": "steps", "eval_steps": 1}
    run = trainer(tmp_path / "with", rows[:4], rows[4:], **evaluated)
    run.train()
    plain = trainer(tmp_path / "without", rows[:4], rows[4:], **evaluated, sample_prompts=0)
    plain.train()
    weights = run.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.model.state_dict().items())
    assert not (tmp_path / "without" / "sample_answers.html").exists()
    written = lines(tmp_path / "with")
    assert [(line["step"], line["row"]) for line in written] == [(1, "row4"), (1, "row5"), (2, "row4"), (2, "row5")]
    assert written[0]["prompt"] == "what is this?" and written[0]["chosen"] == rows[4].chosen
    now = list(generate(run.model, run.processing_class, list(rows[4:6]), max_new_tokens=256))
    assert [line["answer"] for line in written[2:]] == now
    page = (tmp_path / "with" / "sample_answers.html").read_text()
    assert re.findall(r"<th>(.*?)</th>", page) == ["picture", "prompt", "chosen", "step 1", "step 2"]
    assert page.count("data:image/jpeg;base64,") == 2


def test_a_resumed_run_keeps_its_columns(tmp_path, rows):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, rows[:4], {"a": rows[4:6], "b": rows[6:]}, **settings).train()
    whole = lines(tmp_path)
    resumed = trainer(tmp_path, rows[:4], {"a": rows[4:6], "b": rows[6:]}, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert lines(tmp_path) == whole and len(whole) == 4, "of the first data set alone, and each step once"
    remove_run(tmp_path)
    assert not list(tmp_path.glob("sample_answers*"))


def test_a_run_without_evaluation_samples_its_training_rows_each_epoch(tmp_path, rows):
    trainer(tmp_path, rows[:4], num_train_epochs=2).train()
    assert [(line["step"], line["row"]) for line in lines(tmp_path)] == [
        (2, "row0"),
        (2, "row1"),
        (4, "row0"),
        (4, "row1"),
    ]


def test_what_fails_is_one_line_and_the_run_goes_on(tmp_path, rows, monkeypatch, caplog):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory\nmany lines")

    monkeypatch.setattr(samples, "generate", fails)
    run = trainer(tmp_path, rows[:4])
    with caplog.at_level(logging.WARNING):
        run.train()
    (said,) = [record.getMessage() for record in caplog.records if "sample_prompts" in record.getMessage()]
    assert "could not be made (CUDA out of memory" in said and said.endswith("training goes on") and "\n" not in said
    assert run.state.global_step == 2 and not list(tmp_path.glob("sample_answers*"))


def test_words_of_others_stay_words_on_the_page():
    evil = "<script>alert(1)</script>\u202e"
    page = samples.page([samples.Sample(1, "a", evil, evil, evil)], {"a": None})
    assert "<script" not in page and "\u202e" not in page


def test_a_negative_number_is_refused(tmp_path):
    with pytest.raises(InputError, match="sample_prompts is -1; expected a number of at least 0"):
        MDPOConfig(output_dir=str(tmp_path), use_cpu=True, sample_prompts=-1)


# Trackers: the names under which metrics arrive, and the table


def arrived(run: MDPOTrainer, logged: list[dict]) -> None:
    """Everything that the run has logged reached the tracker under its group, and the answers as a table."""
    names = {name for entry in logged for name in entry}
    for group, key in (("train", "loss"), ("eval", "eval_loss")):
        entry = next(entry for entry in run.state.log_history if key in entry)
        wanted = {f"{group}/{name.removeprefix('eval_')}" for name in entry if name not in ("step", "epoch")}
        assert wanted - names == set()
    assert {
        "train/rewards/margins",
        "train/logps/chosen",
        "eval/rewards/accuracies",
        "train/terms/anchor_chosen",
    } <= names


def test_wandb_gets_metrics_under_trls_groups_and_the_answers(tmp_path, rows, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    logged, log = [], wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, "log", lambda self, data, **more: logged.append(data) or log(self, data, **more)
    )
    run = trainer(tmp_path, rows[:4], rows[4:], report_to=["wandb"])
    run.train()
    wandb.finish()
    arrived(run, logged)
    (table,) = [entry["sample_answers"] for entry in logged if "sample_answers" in entry]
    assert [row[3] for row in table.data] == [line["answer"] for line in lines(tmp_path)]


def test_trackio_gets_metrics_under_trls_groups_and_the_answers(tmp_path, rows, monkeypatch):
    trackio = pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    logged, log = [], trackio.log
    monkeypatch.setattr(trackio, "log", lambda data, *more, **named: logged.append(data) or log(data, *more, **named))
    run = trainer(tmp_path, rows[:4], rows[4:], report_to=["trackio"], project="dogs")
    run.train()
    arrived(run, logged)
    assert [True for entry in logged if "sample_answers" in entry] == [True]


def test_tensorboard_gets_metrics_under_trls_groups_and_the_answers(tmp_path, rows):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(
        tmp_path, rows[:4], rows[4:], report_to=["tensorboard"], objective=list(PRESETS["symmpo"].terms[:1])
    ).train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out*")}
    found = EventAccumulator(str(folder)).Reload().Tags()
    assert {"train/rewards/chosen", "train/rewards/margins", "train/logps/rejected", "eval/rewards/accuracies"} <= {
        *found["scalars"]
    }
    assert any("sample_answers" in name for name in found["tensors"])
