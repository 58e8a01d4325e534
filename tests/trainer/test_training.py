"""MDPOTrainer end to end on a tiny model: what is saved, logged and resumed."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import TrainerCallback

from mdpo import InputError, MDPOConfig, MDPOTrainer, TrainingError
from mdpo.data import read_rows
from mdpo.models import load, load_processor, sequence_logps
from mdpo.packing import pack
from tests import tiny
from tests.numerics import relative_distance
from tests.trainer.runs import trainer

pytestmark = pytest.mark.slow

METRICS = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "rewards/imageless_chosen",
    "rewards/imageless_accuracies",
    "rewards/imageless_margins",
    "logps/imageless_chosen",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("world"), count=10)


def logged(run: MDPOTrainer, key: str) -> list[float]:
    return [entry[key] for entry in run.state.log_history if key in entry]


def test_a_run_logs_saves_and_loads_back(world, tmp_path):
    run = trainer(world, tmp_path)
    run.train()
    run.save_model()
    first = run.state.log_history[0]
    assert first.keys() >= METRICS
    assert first["rewards/margins"] == first["rewards/imageless_margins"] == 0.0
    assert first["loss"] == pytest.approx(3 * math.log(2), abs=1e-6)
    assert logged(run, "loss")[-1] < first["loss"]
    assert run.state.global_step == 6, "10 rows, 4 a step: 3 steps an epoch, the last one smaller"

    fresh = PeftModel.from_pretrained(load(world[0]), tmp_path)
    batch = pack([run.train_dataset[0]], fresh)
    torch.testing.assert_close(sequence_logps(fresh, batch), sequence_logps(run.model.eval(), batch), atol=0, rtol=0)
    assert load_processor(tmp_path).chat_template == tiny.TEMPLATE


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_adapter(world, tmp_path):
    whole = trainer(world, tmp_path / "whole", negative_per_epoch=True)
    whole.train()
    whole.save_model()
    resumed = trainer(world, tmp_path / "resumed", negative_per_epoch=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))  # in the middle of an epoch
    resumed.save_model()
    ours = load_file(tmp_path / "resumed" / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_the_step_does_not_depend_on_the_budget(world, tmp_path):
    runs = [trainer(world, tmp_path / str(budget), token_budget=budget, max_steps=2) for budget in (120, 1000)]
    for run in runs:
        run.train()
    small, large = ({n: p for n, p in run.model.named_parameters() if p.requires_grad} for run in runs)
    for name, parameter in large.items():
        torch.testing.assert_close(small[name], parameter, atol=1e-5, rtol=1e-4)


def test_adapters_leave_tower_projector_and_head_alone(world, tmp_path):
    from peft import get_peft_model

    from mdpo.models import LANGUAGE_LINEAR

    for model in (tiny.llava(), tiny.bunny(), tiny.qwen2_5_vl()):
        peft = get_peft_model(model, LoraConfig(r=2, target_modules=LANGUAGE_LINEAR))
        trained = {name for name, parameter in peft.named_parameters() if parameter.requires_grad}
        assert trained and all("language_model" in name for name in trained)
        linears = [n for n, m in model.model.language_model.named_modules() if isinstance(m, torch.nn.Linear)]
        assert not [n for n in linears if "lora" not in n and "base_layer" not in n], "a linear layer was left out"


def test_full_fine_tuning_against_a_frozen_copy(world, tmp_path):
    run = trainer(world, tmp_path, peft=False)
    before = {name: parameter.clone() for name, parameter in load(world[0]).named_parameters()}
    run.train()
    assert logged(run, "rewards/margins")[0] == 0.0
    assert logged(run, "loss")[-1] < logged(run, "loss")[0]
    run.save_model()
    assert not torch.equal(before["lm_head.weight"], load(tmp_path).lm_head.weight)


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({"conditional": False, "anchors": []}, 1),
        ({"conditional": False}, 2),
        ({"anchors": []}, 2),
        ({"anchors": ["chosen", "rejected", "image_rejected"]}, 5),
        ({"drop_images": True, "conditional": False, "anchors": []}, 1),
        ({"negative": "random_image"}, 3),
        ({"negative": "moco_v2"}, 3),
        ({"negative": "crop_20_50"}, 3),
    ],
)
def test_every_row_of_the_papers_tables_is_a_setting(world, tmp_path, settings, terms):
    run = trainer(world, tmp_path, max_steps=1, save_strategy="no", **settings)
    run.train()
    assert logged(run, "loss") == [pytest.approx(terms * math.log(2), abs=1e-6)]
    uses_third_branch = settings.get("conditional", True) or "image_rejected" in settings.get("anchors", [])
    assert bool(logged(run, "rewards/imageless_chosen")) == uses_third_branch


@pytest.mark.slow
def test_evaluation_is_the_mean_over_the_rows(world, tmp_path):
    rows = read_rows(world[1])
    run = trainer(world, tmp_path, rows=rows[:6], eval_rows=rows[6:], eval_strategy="epoch", num_train_epochs=1)
    run.train()
    evaluated = run.evaluate()
    assert logged(run, "eval_loss")[-1] == pytest.approx(evaluated["eval_loss"], abs=1e-7)
    assert {f"eval_{name}" for name in METRICS} <= evaluated.keys()


def test_rows_in_trl_format_with_pil_images(world, tmp_path):
    from PIL import Image

    rows = [
        {
            "images": [Image.new("RGB", (40, 36), (index * 20, 80, 9))],
            "prompt": [{"role": "user", "content": "what is this?"}],
            "chosen": [{"role": "assistant", "content": "a cat"}],
            "rejected": [{"role": "assistant", "content": "a dog and a cat"}],
        }
        for index in range(4)
    ]
    run = trainer(world, tmp_path, rows=rows, max_steps=1, save_strategy="no")
    run.train()
    assert logged(run, "rewards/margins") == [0.0]


def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_state(world, tmp_path):
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 3:
                control.should_save = False
                self.good = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
                with torch.no_grad():
                    model.get_base_model().lm_head.weight[0, 0] = math.nan

    run = trainer(world, tmp_path, save_strategy="no")
    callback = Break()
    run.add_callback(callback)
    with pytest.raises(TrainingError, match=r"step 4 is not finite, with examples .*row\d.*checkpoint-3"):
        run.train()
    saved = load_file(tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    good = {name.replace(".default", ""): parameter for name, parameter in callback.good.items()}
    assert all(torch.equal(saved[name], good[name]) for name in saved)


def test_the_log_is_json(world, tmp_path):
    run = trainer(world, tmp_path, max_steps=2)
    run.train()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["log_history"][0].keys() >= METRICS


def relative_difference(one: MDPOTrainer, other: MDPOTrainer) -> float:
    """‖Δ − Δ'‖ / ‖Δ‖ of two runs' trained weights, from the same start."""
    start, ones, others = (
        {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
        for model in (one.start, one.model, other.model)
    )
    return relative_distance(ones, others, start)


@pytest.mark.slow
def test_the_cached_reference_changes_nothing_but_the_work(world, tmp_path):
    cached = trainer(world, tmp_path / "cached", num_train_epochs=3)
    without = trainer(world, tmp_path / "without", num_train_epochs=3, cache_reference=False)
    cached.start = copy.deepcopy(cached.model)
    forwards = []
    original = cached.policy._reference_logps
    cached.policy._reference_logps = lambda *a: (forwards.append(cached.state.global_step), original(*a))[1]
    cached.train()
    without.train()
    assert forwards and max(forwards) < 3, "the reference runs in the first epoch alone"
    assert relative_difference(cached, without) <= 1e-4
    again = trainer(world, tmp_path / "again", reference_cache_dir=str(tmp_path / "cached" / "reference_cache"))
    again.policy._reference_logps = lambda *a: pytest.fail("the reference is on disk")
    again.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size"),
        ({"token_budget": 0}, "token_budget"),
        ({"beta": -1.0}, "beta"),
        ({"anchors": ["image"]}, "'image' is not a branch"),
        ({"anchor": [0.0, 1.0]}, "2 values for 1 anchors"),
        ({"negative": "blurred"}, "'blurred' is unknown"),
        ({"token_budget": 30}, "30"),
        ({"max_length": 12}, "max_length"),
    ],
)
def test_bad_settings_are_named_before_training(world, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        trainer(world, tmp_path, **settings).get_train_dataloader()


def test_zero_3_is_refused_before_anything_is_trained(world, tmp_path):
    args = MDPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    args.deepspeed_plugin = SimpleNamespace(zero_stage=3)  # what TrainingArguments makes of accelerate's settings
    with pytest.raises(InputError, match="ZeRO-3.*ZeRO-2"):
        MDPOTrainer(load(world[0]), args, read_rows(world[1]), processing_class=load_processor(world[0]))
