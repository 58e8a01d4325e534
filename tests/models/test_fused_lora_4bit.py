"""Fused LoRA layers on weights in 4 bits, beside peft's: as tests/models/test_fused_lora.py holds those on
plain ones.
"""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from mdpo.models import LANGUAGE_LINEAR, fuse_lora, load
from mdpo.models.fused_lora import FusedLora, describe_lora
from tests import wide
from tests.models.fused_lora_steps import assert_the_same_after_twenty_steps

pytest.importorskip("bitsandbytes", reason='4-bit weights need bitsandbytes: pip install -e ".[quant]"')

IDS = torch.arange(8, 20).view(2, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    wide.model("llava-llama").bfloat16().save_pretrained(folder)
    return folder


def pair(folder) -> tuple[PeftModel, PeftModel]:
    """peft's model and the fused one, of the same weights in 4 bits, their adapters in float32."""
    models = []
    for make in (lambda given: given, fuse_lora):
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=LANGUAGE_LINEAR)
        models.append(get_peft_model(load(folder, load_in_4bit=True), make(config)))
    return models[0], models[1]


def learnt(model: PeftModel) -> PeftModel:
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def loss(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=IDS, labels=IDS).loss


def logits(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=IDS).logits


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def test_the_same_bits_at_the_start_and_every_layer_takes_the_fused_way(folder):
    plain, own = pair(folder)
    assert torch.equal(logits(plain), logits(own))
    found = describe_lora(own, torch.bfloat16)
    assert found == f"LoRA: {sum(isinstance(m, FusedLora) for m in own.modules())} of 14 layers fused"
    assert "peft computes the adapter in another dtype" in describe_lora(own, None)
    assert "made without" not in describe_lora(plain, torch.bfloat16) and "0 of 14" in describe_lora(
        plain, torch.bfloat16
    )


def test_gradients_are_peft_s_and_the_same_bits_under_checkpointing(folder):
    plain, own = (learnt(model).train() for model in pair(folder))
    theirs, ours = gradients(plain), gradients(own)
    assert ours.keys() == theirs.keys() and all(grad.dtype == torch.float32 for grad in ours.values())
    for name, grad in ours.items():
        assert (grad - theirs[name]).norm() <= 0.05 * theirs[name].norm(), name
    own.gradient_checkpointing_enable({"use_reentrant": False})
    own.enable_input_require_grads()
    again = gradients(own)
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_the_same_adapter_after_twenty_steps(tmp_path):
    wide.model("llava-llama").save_pretrained(tmp_path)
    plain, own = pair(tmp_path)
    assert describe_lora(own, None) == "LoRA: 14 of 14 layers fused"
    assert_the_same_after_twenty_steps(plain, own)


def test_saved_loaded_and_switched_off_by_peft(folder, tmp_path):
    plain, own = (learnt(model) for model in pair(folder))
    with own.disable_adapter(), plain.disable_adapter():
        assert torch.equal(logits(own), logits(plain))
    own.save_pretrained(tmp_path)
    config = fuse_lora(LoraConfig.from_pretrained(tmp_path))
    again = PeftModel.from_pretrained(load(folder, load_in_4bit=True), tmp_path, config=config)
    assert torch.equal(logits(again), logits(own))
    plainly = PeftModel.from_pretrained(load(folder, load_in_4bit=True), tmp_path)
    torch.testing.assert_close(logits(plainly), logits(own), rtol=0.05, atol=0.05)


def test_merged_and_with_several_adapters_by_peft(folder, capsys):
    plain, own = (learnt(model) for model in pair(folder))
    for model in (plain, own):
        model.print_trainable_parameters()
        torch.manual_seed(5)
        given = LoraConfig(r=2, target_modules=LANGUAGE_LINEAR, init_lora_weights=False)
        model.add_adapter("second", given if model is plain else fuse_lora(given))
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and "trainable params" in first
    for names in ("second", ["default", "second"], "default"):
        for model in (plain, own):
            model.base_model.set_adapter(names)
        assert ("14 of 14" in str(describe_lora(own, torch.bfloat16))) == isinstance(names, str)
        torch.testing.assert_close(logits(own), logits(plain), rtol=0.05, atol=0.05)
    merged = [model.merge_and_unload() for model in (plain, own)]
    assert not any(isinstance(module, FusedLora) for module in merged[1].modules())
    assert torch.equal(*map(logits, merged))


def kept(model: nn.Module) -> int:
    """Bytes of the distinct storages that a forward keeps beside the parameters."""
    known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(model)
    return sum(size for storage, size in found.items() if storage not in known)


def test_no_more_is_kept_for_the_backward(folder):
    plain, own = (learnt(model).train() for model in pair(folder))
    assert kept(own) <= kept(plain)


def test_compiled_to_the_same_numbers(folder):
    _, own = pair(folder)
    learnt(own).train()
    expected = gradients(own)
    for layer in own.get_base_model().model.language_model.layers:
        layer.compile(backend="aot_eager", dynamic=True)
    for name, grad in gradients(own).items():
        torch.testing.assert_close(grad, expected[name], rtol=0.02, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", ["bunny", "qwen2_5_vl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_with_a_bias_whose_product_is_a_view(kind, dtype, tmp_path):
    wide.model(kind).to(dtype).save_pretrained(tmp_path)
    plain, own = (learnt(model).train() for model in pair(tmp_path))
    biased = [layer for layer in own.modules() if isinstance(layer, FusedLora) and layer.base_layer.bias is not None]
    assert biased
    x = torch.randn(2, 3, biased[0].in_features, dtype=dtype, requires_grad=True)
    theirs = dict(plain.named_modules())
    names = {layer: name for name, layer in own.named_modules()}
    for layer in biased:
        given = (
            x
            if layer.in_features == x.shape[-1]
            else torch.randn(2, 3, layer.in_features, dtype=dtype, requires_grad=True)
        )
        results = []
        for module in (layer, theirs[names[layer]]):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                y = module(given)
            results.append((y, *torch.autograd.grad(y.float().square().sum(), given)))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
