"""Fused LoRA layers beside peft's: the same bits before a step, the same adapter to rounding after many; all else
peft's.
"""

import copy

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from mdpo.models import LANGUAGE_LINEAR, fuse_lora
from mdpo.models.fused_lora import FusedLoraLinear
from tests import tiny
from tests.models.fused_lora_steps import IDS, assert_the_same_after_twenty_steps


def config(**changes) -> LoraConfig:
    return LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE_LINEAR, "task_type": "CAUSAL_LM", **changes}
    )


def pair(dtype=torch.float32, **changes) -> tuple[PeftModel, PeftModel]:
    """peft's model and the fused one, of the same weights."""
    models = []
    for make in (lambda given: given, fuse_lora):
        torch.manual_seed(0)
        models.append(get_peft_model(tiny.llava().to(dtype), make(config(**changes))))
    return models[0], models[1]


def learnt(model: PeftModel) -> PeftModel:
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: nn.Module, **given) -> torch.Tensor:
    return model(input_ids=IDS, **given).logits


def fused(model: nn.Module) -> list[FusedLoraLinear]:
    return [module for module in model.modules() if isinstance(module, FusedLoraLinear)]


def takes_the_fused_way(model: nn.Module) -> bool:
    x = torch.zeros(1, 32, dtype=fused(model)[0].base_layer.weight.dtype)
    return all(layer.obstacle(x.dtype) is None for layer in fused(model))


@pytest.mark.parametrize("rslora", [False, True])
def test_the_same_bits_at_the_start_and_the_same_adapter_after_twenty_steps(rslora, capsys):
    plain, own = pair(use_rslora=rslora)
    for model in (plain, own):
        model.print_trainable_parameters()
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and "trainable params" in first
    assert (
        len(fused(own))
        == len([m for m in plain.modules() if type(m).__name__ == "Linear" and hasattr(m, "lora_A")])
        > 10
    )
    assert takes_the_fused_way(own) and torch.equal(logits(plain), logits(own))
    assert_the_same_after_twenty_steps(plain, own)


def test_gradients_under_autocast_as_peft_s(tmp_path):
    plain, own = (learnt(model) for model in pair(torch.bfloat16))
    for model in (plain, own):
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=IDS, labels=IDS).loss.backward()
    theirs = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.grad is not None}
    ours = {name: parameter.grad for name, parameter in own.named_parameters() if parameter.grad is not None}
    assert ours.keys() == theirs.keys() and all(grad.dtype == torch.float32 for grad in ours.values())
    for name, grad in ours.items():
        assert (grad - theirs[name]).norm() <= 0.05 * theirs[name].norm(), name


def test_saved_loaded_and_merged_by_peft(tmp_path):
    _, own = pair()
    learnt(own).save_pretrained(tmp_path)
    assert "_custom_modules" not in (tmp_path / "adapter_config.json").read_text()
    expected = logits(own)
    plainly = PeftModel.from_pretrained(tiny.llava(), tmp_path)
    again = PeftModel.from_pretrained(tiny.llava(), tmp_path, config=fuse_lora(LoraConfig.from_pretrained(tmp_path)))
    assert not fused(plainly) and takes_the_fused_way(again)
    assert torch.equal(logits(again), expected)
    torch.testing.assert_close(logits(plainly), expected)
    own.merge_adapter()
    assert not takes_the_fused_way(own)
    torch.testing.assert_close(logits(own), expected)
    own.unmerge_adapter()
    merged = own.merge_and_unload()
    assert not fused(merged)
    torch.testing.assert_close(logits(merged), expected)


def test_without_the_adapter_and_with_several():
    plain, own = (learnt(model) for model in pair())
    with own.disable_adapter():
        assert torch.equal(logits(own), logits(tiny.llava()))
    for model, given in ((plain, config(r=2)), (own, fuse_lora(config(r=2)))):
        torch.manual_seed(5)
        model.add_adapter("second", given)
        learnt(model)
    torch.testing.assert_close(logits(own), logits(plain))
    for model in (plain, own):
        model.set_adapter("second")
    assert takes_the_fused_way(own)
    torch.testing.assert_close(logits(own), logits(plain))
    for model in (plain, own):
        model.base_model.set_adapter(["default", "second"])
    assert not takes_the_fused_way(own)
    assert torch.equal(logits(own), logits(plain))


@pytest.mark.parametrize(
    "changes",
    [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True, "bias": "none"}, {"bias": "lora_only"}],
    ids=lambda changes: ", ".join(changes),
)
def test_what_is_not_plain_is_peft_s(changes):
    plain, own = (learnt(model).train() for model in pair(**changes))
    if "bias" in changes and changes["bias"] == "lora_only":  # which trains the base's, where it has one
        assert not any(
            p.requires_grad for n, p in own.named_parameters() if "lora_" not in n
        ) or not takes_the_fused_way(own)
        return
    assert fused(own) and not takes_the_fused_way(own)
    results = []
    for model in (plain, own):
        torch.manual_seed(1)
        results.append(logits(model))
    assert torch.equal(*results)


def own_forward(module: nn.Module) -> None:
    module.forward = lambda x: 0 * nn.functional.linear(x, module.weight)


def another_kind(layer: FusedLoraLinear) -> None:
    class Other(nn.Linear):
        pass

    layer.lora_A["default"].__class__ = Other


CHANGES = {
    "a hook on the base": lambda layer: layer.base_layer.register_forward_hook(lambda *args: None),
    "a hook on A": lambda layer: layer.lora_A["default"].register_forward_hook(lambda *args: None),
    "a hook in front of B": lambda layer: layer.lora_B["default"].register_forward_pre_hook(lambda *args: None),
    "a hook on the dropout": lambda layer: layer.lora_dropout["default"].register_forward_hook(lambda *args: None),
    "a backward hook on A": lambda layer: layer.lora_A["default"].register_full_backward_hook(lambda *args: None),
    "another forward of the base": lambda layer: own_forward(layer.base_layer),
    "another forward of B": lambda layer: own_forward(layer.lora_B["default"]),
    "an A of another kind": another_kind,
    "an A that is no layer": lambda layer: layer.lora_A.update({"default": nn.Sequential(layer.lora_A["default"])}),
    "dropout that drops in a layer that does not train": lambda layer: layer.lora_dropout.update(
        {"default": nn.Dropout(0.5)}
    ),
    "a scale that is a tensor": lambda layer: layer.scaling.update({"default": torch.tensor(2.0)}),
    "a base that trains": lambda layer: layer.base_layer.weight.requires_grad_(),
    "an adapter of another dtype": lambda layer: layer.lora_B["default"].double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_watched_replaced_or_trains_is_peft_s(change):
    layer = fused(pair()[1])[0].eval()
    x = torch.zeros(1, layer.in_features)
    assert layer.obstacle(x.dtype) is None
    CHANGES[change](layer)
    assert layer.obstacle(x.dtype) is not None


def test_dtypes_that_peft_would_cast_are_peft_s():
    layer = fused(pair()[1])[0]
    x = torch.zeros(1, layer.in_features)
    assert layer.obstacle(torch.bfloat16) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.obstacle(x.dtype) is not None
    layer = fused(pair(torch.bfloat16)[1])[0]
    layer.lora_A["default"].half()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.obstacle(torch.bfloat16) is not None


class Quantised(Tensor):
    """A linear layer's weight by another name, as torchao's are."""


def test_other_linear_layers_are_left():
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict({"plain": nn.Linear(4, 4), "own": Own(4, 4), "quantised": nn.Linear(4, 4)})
    weight = model["quantised"].weight.detach().as_subclass(Quantised)
    model["quantised"].weight = nn.Parameter(weight, requires_grad=False)
    adapted = get_peft_model(model, fuse_lora(LoraConfig(target_modules=["plain", "own", "quantised"])))
    kinds = {
        name.rpartition(".")[2]: type(module) for name, module in adapted.named_modules() if hasattr(module, "lora_A")
    }
    assert {name: kind is FusedLoraLinear for name, kind in kinds.items()} == {
        "plain": True,
        "own": False,
        "quantised": False,
    }


def test_custom_modules_of_the_user_are_not_hidden():
    given = LoraConfig(target_modules=["plain"])
    assert copy.deepcopy(fuse_lora(given))._custom_modules and given._custom_modules is None
    given._register_custom_module({nn.Linear: FusedLoraLinear})
    with pytest.raises(ValueError, match="custom modules of its own"):
        fuse_lora(given)


@pytest.mark.parametrize(
    "config", [None, "lora", IA3Config(), AdaLoraConfig(total_step=10)], ids=lambda value: type(value).__name__
)
def test_other_configs_are_refused_by_kind(config):
    with pytest.raises(ValueError, match=f"config is a {type(config).__name__}; expected a peft.LoraConfig"):
        fuse_lora(config)


def test_a_hook_on_every_module_is_seen_and_meta_tensors_are_taken():
    layer = fused(pair()[1])[0].eval()
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        assert layer.obstacle(torch.float32) is not None
    finally:
        handle.remove()
    assert layer.obstacle(torch.float32) is None
    meta = pair()[1].to("meta")
    assert fused(meta)[0](torch.zeros(2, 32, device="meta")).shape == (2, fused(meta)[0].out_features)
