"""Compiled layers: another order of the same sums, and no more kept for the backward."""

import copy
import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn

from mdpo.models import LANGUAGE_LINEAR, PackedPolicy, compile_layers, fuse_lora, sequence_logps
from mdpo.packing import PackedBatch, pack
from tests import tiny, wide
from tests.models.packed_examples import examples
from tests.numerics import relative_error

pytestmark = pytest.mark.slow


def adapted(kind: str, layers: int = 1) -> nn.Module:
    """bf16 weights and fp32 adapters that add something, as a step has them."""
    torch.manual_seed(0)
    config = fuse_lora(LoraConfig(r=8, target_modules=LANGUAGE_LINEAR))
    model = get_peft_model(wide.model(kind, layers=layers).bfloat16(), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape)
    return model


def step(model: nn.Module, packed: PackedBatch, autocast: bool = True) -> tuple[Tensor, Tensor]:
    """Log-probs of the policy, and the gradient of their mean margin."""
    with disable_input_dtype_casting(model, active=autocast), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logps = sequence_logps(model, packed)
    (logps[0] - logps[1]).mean().backward()
    return logps.detach().nan_to_num(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["llava-llama", "bunny"])
def test_what_compiling_changes_is_within_the_noise_of_bf16(kind):
    """Against float64, compiled layers are as far off as eager ones: by the rule of tests/numerics.py, for the norm."""
    eager = adapted(kind)
    compiled, exact = copy.deepcopy(eager), copy.deepcopy(eager).double()
    packed = pack(examples(kind), eager)
    compile_layers(compiled)
    truth, ours, theirs = step(exact, packed, autocast=False), step(compiled, packed), step(eager, packed)
    for what, true, value, other in zip(("log-probs", "gradient"), truth, ours, theirs, strict=True):
        assert relative_error(value, true) <= 2 * relative_error(other, true), what
    assert not torch.equal(ours[1], theirs[1]), "nothing was fused"


def kept_bytes(model: nn.Module, packed: PackedBatch) -> int:
    """Bytes of the distinct storages that a policy's forward keeps, weights left out."""
    found: dict[int, Tensor] = {}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            found.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    policy = PackedPolicy(model).train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        policy(packed, torch.zeros(3, len(packed.ids)))
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.long
@pytest.mark.parametrize("kind", ["llava-llama", "bunny"])
def test_compiled_layers_keep_no_more_than_the_plan_counts_for_eager_ones(kind, monkeypatch):
    """As inductor partitions them into forward and backward, without the minute that compiling the parts takes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager_decomp_partition"))
    eager = adapted(kind)
    compiled = copy.deepcopy(eager)
    packed = pack(examples(kind) * 2, eager)
    compile_layers(compiled)
    with disable_input_dtype_casting(eager):
        expected = kept_bytes(eager, packed)
    with disable_input_dtype_casting(compiled):
        found = kept_bytes(compiled, packed)
    assert 0.2 * expected < found <= expected


def test_a_process_by_itself_keeps_pytorch_s_settings():
    before = torch._dynamo.config.optimize_ddp
    compile_layers(tiny.llava())
    assert torch._dynamo.config.optimize_ddp == before is not False
