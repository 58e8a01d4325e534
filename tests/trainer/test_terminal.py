"""What a run shows as it goes: a line a log that fits a terminal, whatever the objective."""

import re

import pytest
from peft import LoraConfig
from transformers import PrinterCallback, ProgressCallback

from mdpo import MDPOConfig, MDPOTrainer
from mdpo.data import read_rows
from mdpo.models import LANGUAGE_LINEAR, load, load_processor
from mdpo.objectives import PRESETS
from mdpo.trainer.metrics import metrics_of
from mdpo.trainer.terminal import Lines, Progress, line_of
from tests import tiny

MDPO = {
    "loss": 2.047,
    "grad_norm": 2.179,
    "learning_rate": 0.0002714,
    "rewards/chosen": -0.01631,
    "logps/chosen": -1.301,
    "rewards/margins": -0.001735,
    "terms/response_preference": 0.69,
    "terms/response_preference/margins": -0.001735,
    "terms/response_preference/accuracies": 0.3286,
    "terms/image_preference/margins": 0.1172,
    "terms/image_preference/accuracies": 0.5143,
    "terms/anchor_chosen": 0.7026,
    "epoch": 1.25,
}


def test_a_training_log():
    line = line_of(MDPO, 5, 12, 1234.5)
    assert line == (
        "step 5/12  loss 2.0470  margin -0.002 (33%)  image +0.117 (51%)  chosen -0.016  lr 2.7e-04  1,234 tok/s"
    )


@pytest.mark.parametrize(("start", "name"), [("eval_", "eval"), ("eval_held_out_", "eval_held_out")])
def test_an_evaluation(start, name):
    logs = {f"{start}{key}": value for key, value in MDPO.items() if key not in ("grad_norm", "learning_rate", "epoch")}
    logs |= {f"{start}runtime": 3.0, f"{start}samples_per_second": 5.0, "epoch": 1.25}
    assert line_of(logs, 5, 12, 1234.5) == (
        f"step 5/12  {name}  loss 2.0470  margin -0.002 (33%)  image +0.117 (51%)  chosen -0.016"
    )


def test_the_end():
    logs = {"train_runtime": 3725.4, "train_samples_per_second": 22.74, "train_loss": 1.902, "epoch": 3.0}
    assert line_of(logs, 12, 12) == "12 steps in 1 h 2 min, 22.74 pairs a second, mean loss 1.9020"
    assert line_of(logs | {"train_runtime": 75.2}, 12, 12).startswith("12 steps in 1 min 15 s")


def test_what_has_no_numbers():
    assert line_of({"epoch": 1.0}, 1, 2) == "step 1/2" and line_of({"loss": "nan"}, 1, 2) == "step 1/2"


@pytest.mark.parametrize("name", PRESETS)
def test_a_line_of_every_objective_fits_a_wide_terminal(name):
    preset = PRESETS[name]
    logs = {metric.name: 0.1234 for metric in metrics_of(preset.branches, preset.terms)} | {"learning_rate": 1e-5}
    assert len(line_of(logs, 123, 1234, 12345.6)) <= 135


def test_of_more_than_two_terms_the_shares_are_shown():
    logs = {f"terms/{name}/{kind}": 0.25 for name in "abc" for kind in ("margins", "accuracies")}
    assert line_of(logs, 1, 2) == "step 1/2  a 25%  b 25%  c 25%"
    del logs["terms/c/margins"]
    assert line_of(logs, 1, 2) == "step 1/2  a +0.250 (25%)  b +0.250 (25%)"


def test_an_evaluation_without_training_has_no_steps():
    assert line_of({"eval_loss": 0.5}, 0, 0) == "eval  loss 0.5000"


def trainer(tmp_path, *, bars: bool, callbacks: list | None = None) -> MDPOTrainer:
    model, data = tiny.world(tmp_path / "world", count=4)
    args = MDPOConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        logging_steps=1,
        examples_per_step=2,
        learning_rate=1e-3,
        objective="dpo",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=not bars,
    )
    return MDPOTrainer(
        load(model),
        args,
        read_rows(data),
        processing_class=load_processor(model),
        peft_config=LoraConfig(r=2, target_modules=LANGUAGE_LINEAR),
        callbacks=callbacks,
    )


@pytest.mark.parametrize(("kind", "bars"), [(ProgressCallback, True), (PrinterCallback, False)])
def test_a_user_s_own_kind_of_callback_stays(tmp_path, kind, bars):
    own = type("Own", (kind,), {})()
    callbacks = trainer(tmp_path, bars=bars, callbacks=[own]).callback_handler.callbacks
    assert own in callbacks
    assert sum(isinstance(callback, (ProgressCallback, PrinterCallback)) for callback in callbacks) == 2


@pytest.mark.parametrize("bars", [True, False])
def test_a_run(tmp_path, capsys, bars):
    run = trainer(tmp_path, bars=bars)
    kinds = {type(callback) for callback in run.callback_handler.callbacks}
    assert (Progress in kinds, Lines in kinds) == (bars, not bars) and not {ProgressCallback, PrinterCallback} & kinds
    run.train()
    said = [line for line in capsys.readouterr().out.splitlines() if line]
    assert re.fullmatch(
        r"step 1/2  loss 0\.6931  margin [+-]0\.000 \(\d+%\)  chosen \+0\.000  lr \S+  [\d,]+ tok/s", said[-3]
    )
    assert said[-2].startswith("step 2/2  loss") and said[-1].startswith("2 steps in ")


def test_what_keeps_a_process_busy_while_others_train_is_no_token_trained(tmp_path):
    run = trainer(tmp_path, bars=False)
    run.train()
    step, before = next(iter(run.get_train_dataloader())), run.tokens_trained
    run._run_step(run.model_wrapped, step.padded(len(step.micro_batches) + 1))
    assert run.tokens_trained - before == sum(batch.num_tokens for batch in step.micro_batches) > 0
