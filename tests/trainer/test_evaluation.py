"""What is evaluated, when, and what comes back: rows, dicts of rows, predictions, and no rows at all."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers.trainer_utils import IntervalStrategy

from mdpo import InputError, MDPOConfig, MDPOTrainer, TrainingError
from mdpo.data import read_rows
from mdpo.evaluation import row_logps, score
from mdpo.trainer.arguments import check_fsdp, check_run, check_weights
from mdpo.trainer.checkpoints import last_whole_checkpoint
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return read_rows(tiny.world(tmp_path_factory.mktemp("world"), count=10)[1])


def trainer(folder, train, evaluate=None, **settings) -> MDPOTrainer:
    defaults = {
        "learning_rate": 5e-2,
        "examples_per_step": 4,
        "token_budget": 200,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    return MDPOTrainer(
        model=tiny.llava(),
        args=MDPOConfig(**{"output_dir": str(folder), **defaults, **settings}),
        train_dataset=train,
        eval_dataset=evaluate,
        processing_class=tiny.processor(),
        peft_config=LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj"),
    )


def evaluations(run: MDPOTrainer, key: str = "eval_loss") -> int:
    return sum(key in entry for entry in run.state.log_history)


def test_held_out_rows_are_evaluated_once_an_epoch_and_it_is_said(tmp_path, rows, caplog):
    run = trainer(tmp_path, rows[:6], rows[6:])
    run.train()
    assert evaluations(run) == 2
    assert sum("eval_strategy: epoch, because there are 4" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("no", ["no", IntervalStrategy.NO])
def test_an_explicit_no_wins_and_is_said(tmp_path, rows, caplog, no):
    run = trainer(tmp_path, rows[:6], rows[6:], eval_strategy=no)
    run.train()
    assert evaluations(run) == 0
    assert any("eval_strategy: no, so the 4 evaluation rows" in record.getMessage() for record in caplog.records)
    assert "eval_loss" in run.evaluate()


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({"eval_steps": 1}, 4),
        ({"save_strategy": "epoch", "load_best_model_at_end": True}, 2),
        ({"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}, 2),
        ({"save_strategy": "best", "metric_for_best_model": "loss"}, 2),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, 2),
    ],
)
def test_the_strategy_follows_what_else_was_asked_for(tmp_path, rows, settings, times):
    run = trainer(tmp_path, rows[:6], rows[6:], **settings)
    run.train()
    assert evaluations(run) == times


def test_a_dict_of_data_sets_is_evaluated_by_name(tmp_path, rows):
    run = trainer(tmp_path, rows[:6], {"a": rows[6:8], "b": rows[8:]}, num_train_epochs=1)
    run.train()
    assert evaluations(run, "eval_a_loss") == evaluations(run, "eval_b_rewards/margins") == 1
    both = run.evaluate()
    alone = run.evaluate(rows[8:])
    assert both["eval_b_loss"] == pytest.approx(alone["eval_loss"], abs=1e-6)
    assert run.evaluate({"c": rows[8:]})["eval_c_loss"] == pytest.approx(alone["eval_loss"], abs=1e-6)


def test_an_empty_data_set_of_a_dict_is_named(tmp_path, rows):
    with pytest.raises(InputError, match=r"^eval_dataset\['b'\]"):
        trainer(tmp_path, rows[:6], {"a": rows[6:8], "b": []})


def test_a_trainer_with_a_dict_of_rows_alone_evaluates(tmp_path, rows):
    assert "eval_a_loss" in trainer(tmp_path, None, {"a": rows[:2]}).evaluate()


def test_the_best_model_of_one_data_set_of_a_dict(tmp_path, rows):
    best = {"save_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "b_loss"}
    run = trainer(tmp_path, rows[:6], {"a": rows[6:8], "b": rows[8:]}, **best, greater_is_better=False)
    run.train()
    history = [entry["eval_b_loss"] for entry in run.state.log_history if "eval_b_loss" in entry]
    assert run.evaluate()["eval_b_loss"] == pytest.approx(min(history), abs=1e-6)
    with pytest.raises(InputError, match="metric_for_best_model: 'loss' is not measured; choose from a_loss, "):
        trainer(tmp_path, rows[:6], {"a": rows[6:8]}, **{**best, "metric_for_best_model": "loss"})


@pytest.mark.parametrize("metric", ["acuracy", "eval_rewards/margin"])
def test_a_metric_that_is_not_measured_is_named_before_training(tmp_path, rows, metric):
    with pytest.raises(InputError, match="metric_for_best_model: .*choose from loss, rewards/chosen"):
        trainer(tmp_path, rows[:6], rows[6:], metric_for_best_model=metric)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"eval_strategy": "epoch"}, "eval_strategy"),
        ({"eval_steps": 3}, "eval_steps"),
        ({"eval_on_start": True}, "eval_on_start"),
        ({"do_eval": True}, "do_eval"),
        ({"save_strategy": "best", "metric_for_best_model": "loss"}, "save_strategy"),
        ({"save_strategy": "epoch", "load_best_model_at_end": True}, "load_best_model_at_end"),
    ],
)
def test_an_evaluation_without_rows_is_named_before_anything_else(settings, name, tmp_path, rows):
    for evaluate in (None, {}):
        with pytest.raises(InputError, match=f"^{name}: no rows to evaluate on"):
            trainer(tmp_path, rows, evaluate, **settings)


def test_predictions_are_every_row_s_numbers_in_their_order(tmp_path, rows):
    run = trainer(tmp_path, rows, token_budget=90)
    run.train()
    output = run.predict(rows)
    assert output.label_ids is None
    assert output.metrics["test_loss"] == pytest.approx(run.evaluate(rows)["eval_loss"], abs=1e-6)
    base = row_logps(tiny.llava(), run.train_dataset)
    records = {record["id"]: record for record in score(run.model, run.train_dataset, reference=base)}
    for name, numbers in output.predictions.items():
        assert numbers.shape == (10, 3)
        for row, values in zip(rows, numbers, strict=True):
            np.testing.assert_allclose(values, list(records[row.id][name].values()), atol=1e-4)
    assert np.abs(output.predictions["rewards"]).max() > 1e-3


def test_a_branch_that_a_row_does_not_have_is_nan(tmp_path, rows):
    run = trainer(tmp_path, rows, conditional=False)
    rewards = run.predict(rows[:3]).predictions["rewards"]
    assert np.isnan(rewards[:, 2]).all() and np.isfinite(rewards[:, :2]).all()


def test_a_loss_that_is_not_finite_is_nan_and_never_the_best(tmp_path, rows, caplog):
    run = trainer(tmp_path, rows)
    with torch.no_grad():
        run.model.get_base_model().lm_head.weight[5] = torch.nan
    metrics = run.evaluate(rows[:3])
    assert math.isnan(metrics["eval_loss"])
    (line,) = [record.getMessage() for record in caplog.records if "not finite" in record.getMessage()]
    assert "row0" in line and "row2" in line
    run.args.metric_for_best_model = "loss"
    assert not run._determine_best_metric(metrics, None)


def test_a_score_that_is_no_number_is_no_absent_branch(tmp_path, rows):
    run = trainer(tmp_path, rows)
    model = tiny.llava()
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(InputError, match="^row 'row[0-9]', chosen: the log-prob is nan"):
        row_logps(model, run.train_dataset)


def broken(run, row: str):
    """The run, whose evaluation has no log-prob of a row's chosen answer."""
    forward = run._forward

    def breaks(model, packed, num_examples=None):
        output = forward(model, packed, num_examples)
        if model.training or row not in packed.ids:
            return output
        policy = output.policy.clone()
        policy[0, packed.ids.index(row)] = torch.nan
        return output._replace(policy=policy)

    run._forward = breaks
    return run


def test_a_row_that_is_not_finite_ends_the_run_with_a_checkpoint(tmp_path, rows):
    run = broken(trainer(tmp_path, rows[:6], rows[6:], eval_steps=1, check_start=False), "row8")
    with pytest.raises(
        TrainingError, match=r"after step 1: the loss is not finite, with examples row8; .*checkpoint-1\. Look"
    ):
        run.train()
    assert math.isnan(run.state.log_history[-1]["eval_loss"]) and run.state.best_metric is None
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    again = trainer(tmp_path, rows[:6], rows[6:], eval_steps=1, check_start=False, eval_skip_not_finite=True)
    broken(again, "row8").train(resume_from_checkpoint=True)
    assert again.state.global_step == again.state.max_steps


def test_rows_that_are_not_finite_are_left_out_by_name(tmp_path, rows, caplog):
    run = broken(trainer(tmp_path, rows, eval_skip_not_finite=True), "row1")
    metrics = run.evaluate(rows[:3])
    others = run.evaluate([rows[0], rows[2]])
    assert "with examples row1: 1 of 3 rows are left out of the means" in caplog.text
    for name in ("eval_loss", "eval_rewards/chosen", "eval_logps/imageless_chosen"):
        assert metrics[name] == pytest.approx(others[name], abs=1e-5)
    assert math.isnan(broken(run, "row0").evaluate(rows[:2])["eval_loss"]), "no row is left"


def test_evaluation_steps_and_training_samples_are_counted_as_they_are(tmp_path, rows, monkeypatch):
    times = iter(range(10_000))
    monkeypatch.setattr("time.time", lambda: next(times) * 1000.0)
    run = trainer(tmp_path, rows[:6], max_steps=3)
    (summary,) = [run.train().metrics]
    assert summary["train_samples_per_second"] * summary["train_runtime"] == pytest.approx(10, rel=0.2), "4 + 2 + 4"
    metrics = run.evaluate(rows)
    assert metrics["eval_steps_per_second"] / metrics["eval_samples_per_second"] == pytest.approx(0.3, rel=0.2), (
        "10 rows, 3 steps"
    )


def test_tokens_are_counted_in_training_alone(tmp_path, rows):
    run = trainer(tmp_path, rows, rows[:2], include_num_input_tokens_seen="non_padding", max_steps=3)
    run.train()
    seen = [entry["num_input_tokens_seen"] for entry in run.state.log_history if "loss" in entry]
    assert seen == sorted(seen) and seen[-1] == sum(run.train_dataset.lengths)
    assert any("train_tokens_per_second" in entry for entry in run.state.log_history)


def test_the_first_fsdp_is_refused():
    check_fsdp(SimpleNamespace(fsdp_version=2))
    with pytest.raises(InputError, match="fsdp: version 1"):
        check_fsdp(SimpleNamespace(fsdp_version=1))


def test_fp16_needs_weights_that_it_can_train(tmp_path):
    args = MDPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    args.fp16 = True  # as on a GPU
    with pytest.raises(InputError, match="fp16: a CPU"):
        check_run(args, ())
    with pytest.raises(InputError, match="fp16: the weights are bfloat16"):
        check_weights(args, torch.nn.Linear(2, 2, dtype=torch.bfloat16))
    with pytest.raises(InputError, match="fp16: gradients of float16"):
        check_weights(args, torch.nn.Linear(2, 2, dtype=torch.float16))
    check_weights(args, torch.nn.Linear(2, 2, dtype=torch.float16).requires_grad_(False))
    check_weights(args, torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("optim", "given", "message"),
    [
        ("sgd", "momentumm=0.9", "optim_args: sgd reads no 'momentumm'"),
        ("sgd", "momentum=0.9,foo=1", "optim_args: sgd reads no 'foo'"),
        ("sgd", "momentum=fast", "optim_args: sgd does not take momentum=fast"),
        ("adamw_torch", "momentum=0.9", "optim_args: adamw_torch reads no 'momentum'"),
    ],
)
def test_an_optimizer_argument_that_is_not_read_is_named(tmp_path, optim, given, message):
    with pytest.raises(InputError, match=message):
        check_run(MDPOConfig(output_dir=str(tmp_path), use_cpu=True, optim=optim, optim_args=given), ())


@pytest.mark.parametrize("given", ["momentum=0.9,nesterov=true", "dampening=0", "nesterov=false, momentum=0.5"])
def test_an_optimizer_argument_that_is_read_passes(tmp_path, given):
    check_run(MDPOConfig(output_dir=str(tmp_path), use_cpu=True, optim="sgd", optim_args=given), ())


def test_what_has_no_effect_is_logged_by_one_logger_alone(tmp_path, rows, caplog):
    trainer(tmp_path, rows, label_names=["x"])
    (record,) = [record for record in caplog.records if "label_names" in record.getMessage()]
    assert record.levelno == logging.WARNING and record.name == "mdpo.trainer.arguments"
