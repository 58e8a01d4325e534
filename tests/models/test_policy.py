"""PackedPolicy: the reference it computes, and the loss around both."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mdpo.models import PackedPolicy, sequence_logps
from mdpo.packing import pack
from tests import tiny
from tests.models.adapters import with_lora
from tests.models.packed_examples import examples


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", [False, True], ids=["frozen-head", "adapted-head"])
def test_margins_are_exactly_zero_at_step_0(dtype, head):
    model = tiny.llava().to(dtype)
    targets = r"lm_head|.*q_proj" if head else r".*language_model.*q_proj"
    policy = PackedPolicy(get_peft_model(model, LoraConfig(r=4, target_modules=targets))).train()
    output = policy(pack(examples("llava-llama"), model))
    rewards = output.loss.rewards
    assert torch.equal(rewards[~rewards.isnan()], torch.zeros(13))


def test_reference_is_the_model_with_its_adapter_off():
    batch = examples("llava-llama")
    base, peft = tiny.llava(), with_lora(tiny.llava())
    packed = pack(batch, base)
    output = PackedPolicy(peft).train()(packed)
    torch.testing.assert_close(output.reference, sequence_logps(base, packed).detach(), atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(output.policy, sequence_logps(peft, packed), atol=0, rtol=0, equal_nan=True)
    assert peft.training, "the policy is left in training mode"


def test_dropout_is_off_for_the_reference():
    model = get_peft_model(tiny.llava(), LoraConfig(r=4, target_modules=r".*language_model.*q_proj", lora_dropout=0.9))
    policy = PackedPolicy(model, reference_model=tiny.llava().eval()).train()
    packed = pack(examples("llava-llama"), model)
    first, second = policy(packed), policy(packed)
    torch.testing.assert_close(first.reference, second.reference, atol=0, rtol=0, equal_nan=True)


def test_cached_reference_is_used_as_it_is():
    model = with_lora(tiny.llava())
    packed = pack(examples("llava-llama"), model)
    computed = PackedPolicy(model)(packed)
    cached = PackedPolicy(model)(packed, computed.reference)
    assert torch.equal(computed.loss.loss, cached.loss.loss)


def test_the_reference_model_is_no_part_of_the_module():
    policy = PackedPolicy(tiny.llava(), reference_model=tiny.llava())
    assert len(list(policy.parameters())) == len(list(tiny.llava().parameters()))
