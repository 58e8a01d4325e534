"""Where a packed training step makes the host wait for a GPU: nowhere in our code, and where each vision tower does."""

from typing import Any

import pytest
import torch
from peft import LoraConfig

from mdpo import MDPOConfig, MDPOTrainer
from mdpo.data import read_rows
from mdpo.models import LANGUAGE_LINEAR, PackedPolicy, load, load_processor
from mdpo.packing import pack
from mdpo.trainer.steps import Step
from tests import tiny
from tests.fake_cuda import Wait, needs_cuda_build, waits
from tests.graph import run_backward
from tests.models.adapters import with_lora
from tests.models.packed_examples import FAMILIES, examples
from tests.models.separate_forwards import gradients

LLAVA_NEXT = "transformers/models/llava_next/modeling_llava_next.py"
READ = "_local_scalar_dense"


def _model(name: str) -> str:
    return f"transformers/models/{name}/modeling_{name}.py"


def _pixel_mask(name: str) -> set[Wait]:
    """Which tiles, and which patches of them, are not padding."""
    return {
        Wait(f"{_model(name)} get_image_features", "index"),
        Wait(f"{_model(name)} get_image_features", READ),
        Wait(f"{_model(name)} forward", "index"),
        Wait(f"{_model(name)} forward", "index_put_"),
    }


# All of them in the vision towers, but for what Qwen3-VL adds behind its first text layers.
KNOWN: dict[str, set[Wait]] = {
    "llava-llama": set(),
    "bunny": set(),
    "internvl": set(),
    "llava_next": {Wait(f"{LLAVA_NEXT} pack_image_features", "copy")},
    "llava_onevision": {Wait(f"{_model('llava_onevision')} pack_image_features", "copy")},
    "qwen2_vl": set(),
    "qwen2_5_vl": set(),
    "qwen3_vl": {
        Wait(f"{_model('qwen3_vl')} _deepstack_process", "index"),
        Wait(f"{_model('qwen3_vl')} _deepstack_process", "index_put_"),
        Wait("backward IndexBackward0", "index_put"),
        Wait("backward IndexPutBackward0", "index"),
        Wait("backward IndexPutBackward0", "index_put"),
    },
    "qwen3_5": set(),
    "gemma4": {  # which patches are not fill, and how many; its tiny heads are all small enough for FlashAttention
        Wait(f"{_model('gemma4')} get_image_features", READ),
        Wait(f"{_model('gemma4')} forward", "index"),
    },
    "idefics3": _pixel_mask("idefics3"),
    "smolvlm": _pixel_mask("smolvlm"),
}


def policy_of(kind: str) -> PackedPolicy:
    model = with_lora(FAMILIES[kind]())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return PackedPolicy(model.train())


def device_of(policy: PackedPolicy) -> torch.device:
    return next(policy.parameters()).device


@needs_cuda_build
@pytest.mark.parametrize("kind", KNOWN)
def test_a_micro_batch_waits_only_where_it_is_known_to(kind):
    """Policy and reference, forward and backward, checkpointing on."""
    policy = policy_of(kind)

    def step(batches, backward):
        (batch,) = batches
        backward(policy(batch.to(device_of(policy), non_blocking=True)).loss.loss)

    seen = waits(step, policy, [pack(examples(kind)[:2], policy.model)])
    assert set(seen.waits) <= KNOWN[kind]
    assert seen.trained == {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


@needs_cuda_build
def test_training_all_weights_waits_nowhere():
    """Tower, projector and head train, and the reference is cached."""
    policy = PackedPolicy(tiny.llava().train())

    def step(batches, backward):
        (batch,) = batches
        batch = batch.to(device_of(policy), non_blocking=True)
        cached = torch.zeros(3, len(batch.ids), device=device_of(policy))
        backward(policy(batch, cached).loss.loss)

    seen = waits(step, policy, [pack(examples("llava-llama")[:2], policy.model)])
    assert not seen.waits
    assert any("lm_head" in name for name in seen.trained) and any("vision_tower" in name for name in seen.trained)


@needs_cuda_build
def test_a_training_step_reads_its_loss_alone(tmp_path, monkeypatch):
    """To see whether each micro-batch's is finite: at once, or from a copy whose arrival is waited for."""
    folder, data = tiny.world(tmp_path, count=4)
    trainer = MDPOTrainer(
        model=load(folder),
        args=MDPOConfig(
            output_dir=str(tmp_path / "run"),
            token_budget=120,
            gradient_checkpointing=True,
            bf16=True,
            use_cpu=True,
            cache_reference=False,
            report_to="none",
        ),
        train_dataset=read_rows(data),
        processing_class=load_processor(folder),
        peft_config=LoraConfig(r=4, target_modules=LANGUAGE_LINEAR),
    )
    planned: Step = next(iter(trainer.get_train_dataloader()))
    assert len(planned.micro_batches) > 1
    # The trainer's own idea of its device, which without a GPU is the CPU.
    monkeypatch.setattr(MDPOConfig, "device", property(lambda self: device_of(trainer.policy)))

    def step(batches, backward):
        monkeypatch.setattr(trainer.accelerator, "backward", backward)
        trainer._metrics = trainer._new_metrics()
        trainer.training_step(trainer.policy, Step(batches, planned.num_examples, planned.weights))

    seen = waits(step, trainer.policy, planned.micro_batches)
    assert set(seen.waits) <= {Wait("mdpo/trainer/host_copy.py get", "event")}


@needs_cuda_build
@pytest.mark.parametrize(
    ("does", "operation"),
    [
        (lambda loss: loss.item(), READ),
        (lambda loss: bool(loss > 0), READ),
        (lambda loss: loss.expand(3).tolist(), READ),
        (lambda loss: loss.expand(3)[loss.expand(3) > 0], "index"),
        (lambda loss: loss.expand(3).clone().masked_fill_(loss > 0, 1)[loss.expand(3) > 0].sum(), "index"),
        (lambda loss: loss.detach().expand(3).clone().__setitem__(loss.expand(3) > 0, 1), "index_put_"),
        (lambda loss: loss.expand(3).nonzero(), "nonzero"),
        (lambda loss: loss.cpu(), "copy"),
        (lambda loss: loss.new_tensor([1.0, 2.0]), "copy"),
        (lambda loss: loss.is_cuda and torch.cuda.synchronize(), "synchronize"),
        (lambda loss: loss.is_cuda and torch.cuda.Event().synchronize(), "event"),
    ],
)
def test_a_wait_is_seen(does, operation):
    """One each in forward and backward, and nothing that does not wait."""
    policy = policy_of("llava-llama")

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.clone()

        @staticmethod
        def backward(ctx, *grad_outputs):
            does(grad_outputs[0])
            return grad_outputs[0]

    def step(batches, backward):
        weight = next(p for p in policy.parameters() if p.requires_grad)
        loss: Any = Identity.apply(weight.sum())
        assert loss.to("cpu", non_blocking=True).device.type == "cpu"
        does(loss)
        backward(loss)

    found = waits(step, policy, []).waits
    assert [wait.operation for wait in found] == [operation] * len(found)
    assert {wait.where for wait in found} == {"test_waits.py <lambda>"} and len(found) in (2, 6)


def test_the_graph_run_in_python_gives_the_engines_gradients():
    """Without CUDA: what the step on the fake device takes for PyTorch's engine."""
    ours, theirs = policy_of("llava-llama"), policy_of("llava-llama")
    batch = pack(examples("llava-llama")[:2], ours.model)
    names = list(run_backward(ours(batch).loss.loss))
    theirs(batch).loss.loss.backward()
    assert any("varlen_attention" in name for name in names)
    expected = gradients(theirs)
    assert gradients(ours).keys() == expected.keys()
    for name, gradient in gradients(ours).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)
