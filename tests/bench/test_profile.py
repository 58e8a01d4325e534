"""The profile's attribution at a tiny shape: every component has its operators, and the shares are the whole step."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile, record_function

from bench.inputs.models import TINY, adapter, build, build_base
from bench.inputs.preference_rows import preference_rows
from bench.render import report as render
from bench.scripts import profile_step
from bench.suite.components import COMPONENTS, STEP, milliseconds, scopes
from bench.suite.implementations.train_problem import TrainProblem
from bench.suite.implementations.train_step import ours
from bench.suite.record import environment
from bench.suite.shelf import Shelf
from mdpo.models import fuse_lora
from mdpo.models.fused_lora import FusedLoraLinear

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def problem(checkpointing: bool) -> TrainProblem:
    return TrainProblem(
        shape=TINY,
        image_tokens=64,
        examples=preference_rows(TINY, 2, image_tokens=64, shrink=4),
        batch=2,
        lora_r=4,
        checkpointing=checkpointing,
        device=CPU,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_component_is_seen_forward_and_backward(checkpointing, tmp_path: Path, monkeypatch):
    tiny = problem(checkpointing)
    found = profile_step.profiled(ours(tiny, cached=True), CPU)
    assert list(found) == list(COMPONENTS)
    for name, (forward, backward) in found.items():
        assert forward > 0
        # The tower is frozen; the optimizer's own operators are no autograd.
        assert (backward > 0) == (name not in ("vision", "optimizer")) or name == "other"
    written = profile_step.records(tiny, found, environment(CPU))
    assert sum(record.rates["share, %"] for record in written) == pytest.approx(100)
    for record in written:
        Shelf(tmp_path).add(record)
    pytest.importorskip("matplotlib")
    report, picture = render.render(tmp_path, tmp_path / "report")
    text = report.read_text(encoding="utf-8")
    assert "| implementation | ms | forward, ms | backward, ms | share, % |" in text and "FP8's limit" in text
    assert picture.name.endswith("profile-profile.png")


@pytest.mark.parametrize("fused", [True, False])
def test_the_backward_of_one_component_is_its_own(fused):
    """Against a loss that only a part of the model feeds: nothing is said of what did not run, and the base's products,
    a hundred times the adapter's, are not taken for the adapter's."""
    text = copy.deepcopy(TINY.text)
    text.hidden_size, text.intermediate_size = 256, 512
    base, config = build_base(replace(TINY, text=text), 64, CPU), adapter(4)
    model = get_peft_model(base, fuse_lora(config) if fused else config)
    mlp = model.get_base_model().get_decoder().layers[0].mlp
    assert fused == isinstance(mlp.up_proj, FusedLoraLinear)
    with scopes(model), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        assert not fused or mlp.up_proj.obstacle(torch.float32) is None
        with record_function(STEP):
            for _ in range(10 if fused else 1):  # enough that another program does not turn the times about
                mlp(torch.randn(1, 300, 256, requires_grad=True)).square().sum().backward()
    found = milliseconds(profiler.events(), "cpu", TINY.text.vocab_size, rank=4)
    assert {name for name, (forward, _) in found.items() if forward} == {"MLP", "LoRA", "loss", "other"}
    assert {name for name, (_, backward) in found.items() if backward} - {"other"} == {"MLP", "LoRA", "loss"}
    # peft's own adds whole outputs to whole outputs.
    assert not fused or all(base > adapter for base, adapter in zip(found["MLP"], found["LoRA"], strict=True))


def test_hooks_are_gone_after():
    model = build(TINY, 64, CPU, lora_r=4)
    with scopes(model):
        assert any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
