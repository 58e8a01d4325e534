"""Layers that read one input, computed together: the same numbers as one by one, and nothing kept for a call that never
comes.
"""

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mdpo.models import LANGUAGE_LINEAR, fuse_lora, language_layers, share_inputs
from mdpo.models import shared_input as module
from tests import tiny

IDS = torch.arange(8, 20).view(2, 6)


def model(**changes: Any) -> Any:
    torch.manual_seed(0)
    given = {"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE_LINEAR, "init_lora_weights": False, **changes}
    return get_peft_model(tiny.llava(), fuse_lora(LoraConfig(**given))).train()


def shared(**changes: Any) -> Any:
    found = model(**changes)
    share_inputs(found)
    return found


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def groups(model: nn.Module) -> list[Any]:
    return [layer.shared_input for layer in model.modules() if getattr(layer, "shared_input", None) is not None]


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The number of layers of each call of lora_linears."""
    found: list[int] = []
    lora_linears = module.lora_linears

    def counted(x: Tensor, layers: Any) -> Any:
        found.append(len(layers))
        return lora_linears(x, layers)

    monkeypatch.setattr(module, "lora_linears", counted)
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_the_same_numbers_and_nothing_is_left(calls: list[int]) -> None:
    own = shared()
    share_inputs(own)  # a second time changes nothing
    assert_close(gradients(own), gradients(model()))
    assert calls == [3, 2] * len(language_layers(own))
    assert all(not group._waiting and group._input is None for group in groups(own))


@pytest.mark.slow
def test_checkpointed_and_compiled_the_same(calls: list[int]) -> None:
    own = shared()
    expected = gradients(own)
    own.gradient_checkpointing_enable({"use_reentrant": False})
    own.enable_input_require_grads()
    found = gradients(own)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    own.gradient_checkpointing_disable()
    for layer in language_layers(own):
        layer.compile(backend="aot_eager", dynamic=True, fullgraph=True)
    assert_close(gradients(own), expected)
    assert all(not group._waiting for group in groups(own))


def test_without_gradients_and_in_inference_mode() -> None:
    own, plain = shared().eval(), model().eval()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(own(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_without_the_adapter_and_with_another(calls: list[int]) -> None:
    own = shared()
    with own.disable_adapter():
        torch.testing.assert_close(own(input_ids=IDS).logits, tiny.llava()(input_ids=IDS).logits)
    assert not calls
    own.add_adapter("second", fuse_lora(LoraConfig(r=2, target_modules=LANGUAGE_LINEAR, init_lora_weights=False)))
    before = own(input_ids=IDS).logits
    own.set_adapter("second")
    after = own(input_ids=IDS).logits
    assert calls and not torch.equal(before, after)
    own.set_adapter("default")
    assert torch.equal(own(input_ids=IDS).logits, before)


@pytest.mark.parametrize("names", [["q_proj", "v_proj"], ["q_proj"], ["up_proj", "k_proj"]], ids=str)
def test_groups_of_which_some_are_adapted(names: list[str], calls: list[int]) -> None:
    targets = rf".*language_model\..*\.({'|'.join(names)})"
    own = shared(target_modules=targets)
    assert_close(gradients(own), gradients(model(target_modules=targets)))
    assert calls == ([2] * len(language_layers(own)) if names == ["q_proj", "v_proj"] else [])


def attention() -> tuple[Any, Any, Any]:
    found = language_layers(shared())[0].self_attn
    return found.q_proj, found.k_proj, found.v_proj


def alone(layer: Any, x: Tensor) -> Tensor:
    held, layer.shared_input = layer.shared_input, None
    y = layer(x)
    layer.shared_input = held
    return y


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_layers_that_read_different_inputs_are_right(context: Any, calls: list[int]) -> None:
    q, k, v = attention()
    x, y = torch.randn(3, 32), torch.randn(3, 32)
    with context():
        for _ in range(2):
            for layer, given in ((q, x), (k, y), (v, y)):
                torch.testing.assert_close(layer(given), alone(layer, given))
    assert calls == [3] * 4  # by q, and by k for itself and v


def test_what_is_left_of_a_forward_changes_nothing_in_a_backward_s() -> None:
    """A checkpointed forward of q alone, one without gradients, and then the recomputation."""
    q, k, _ = attention()
    x = torch.randn(3, 32, requires_grad=True)
    y = checkpoint(lambda x: q(x * 2).sum(), x, use_reentrant=False)
    with torch.no_grad():
        q(torch.randn(3, 32))
        k(torch.randn(3, 32))
    (found,) = torch.autograd.grad(y, x)
    (expected,) = torch.autograd.grad(alone(q, x * 2).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("order", ["kvq", "qkv", "qq", "qkxv", "k"])
def test_in_any_order_and_checkpointed_the_first_time(order: str) -> None:
    """x: an input of its own for what follows."""
    layers = dict(zip("qkv", attention(), strict=True))
    inputs = torch.randn(3, 32, requires_grad=True)

    def forward(x: Tensor) -> Tensor:
        total = torch.zeros(())
        for letter in order:
            if letter == "x":
                x = x * 2
            else:
                total = total + layers[letter](x).square().sum()
        return total

    (found,) = torch.autograd.grad(checkpoint(forward, inputs, use_reentrant=False), inputs)
    for layer in layers.values():
        layer.shared_input = None
    (expected,) = torch.autograd.grad(forward(inputs), inputs)
    torch.testing.assert_close(found, expected)


def set_scale(q: Any, k: Any, x: Tensor) -> None:
    k.set_scale("default", 3.0)


def write_x(q: Any, k: Any, x: Tensor) -> None:
    x.mul_(2)


def write_weight(q: Any, k: Any, x: Tensor) -> None:
    with torch.no_grad():
        k.lora_B["default"].weight.mul_(2)


def another_adapter(q: Any, k: Any, x: Tensor) -> None:
    for layer in (q, k):
        layer.update_layer("second", r=2, lora_alpha=4, config=LoraConfig(r=2, init_lora_weights=False))
        layer.set_adapter("second")


def want_a_gradient(q: Any, k: Any, x: Tensor) -> None:
    x.requires_grad_()


@pytest.mark.parametrize("change", [set_scale, write_x, write_weight, another_adapter, want_a_gradient])
def test_what_has_changed_in_between_is_computed_anew(change: Any) -> None:
    q, k, _ = attention()
    x = torch.randn(3, 32)
    q(x)
    change(q, k, x)
    found = k(x)
    torch.testing.assert_close(found, alone(k, x))
    (found.sum() + 0 * x.sum()).backward()
    assert change is not want_a_gradient or (x.grad is not None and x.grad.any())


def test_what_was_computed_without_a_graph_is_not_taken_with_one() -> None:
    q, k, _ = attention()
    x = torch.randn(3, 32)
    with torch.no_grad():
        q(x)
    assert k(x).requires_grad


def test_layers_that_nobody_reads_get_no_gradient() -> None:
    q, k, v = attention()
    x = torch.randn(3, 32)
    kept = q(x), k(x), v(x)
    kept[0].sum().backward()
    assert q.lora_A["default"].weight.grad is not None
    assert k.lora_A["default"].weight.grad is None and v.lora_B["default"].weight.grad is None


def test_copied_and_pickled_in_the_middle_of_a_step() -> None:
    own = shared()
    attention = language_layers(own)[0].self_attn
    attention.q_proj(torch.randn(3, 32))
    assert attention.q_proj.shared_input._waiting
    for again in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        group = again.q_proj.shared_input
        assert group is not attention.q_proj.shared_input and group._layers[0] is again.q_proj and not group._waiting
