"""What the policy is measured against: the model as training finds it, frozen.

Which weights that takes depends on what trains. Switching a fresh adapter off brings the starting model back for free.
It does not where base weights train beside the adapter (LoRA's ``bias``, an unfrozen projector), where the adapter has
been trained before, or where its initialisation changed the base (PiSSA and relatives). Then the starting values of
what differs are kept, and put in place for the reference's forward.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.func import functional_call

from mdpo.errors import InputError
from mdpo.packing import Batch, PreferenceTokens, pack

from .logps import ImageFeatures, branch_logps, check_adapter_kinds, without_adapter

_CHOICES = ("start", "base")
# LoRA initialisations after which the adapter adds exactly nothing.
_ADDS_NOTHING = (True, "gaussian")
# Initialisations that move part of the base's weights into the adapter: without it, the base is no longer what it was.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, eq=False)
class Reference:
    """How the reference's log-probs are computed.

    frozen: a second model; where there is one, nothing else counts.
    adapter: whether the policy's adapter stays on.
    values: parameters of the policy that neither state brings back, with the values they started from, by name.
    description: for the line that says which reference a run has.
    """

    frozen: nn.Module | None = None
    adapter: bool = False
    values: dict[str, Tensor] = field(default_factory=dict)
    description: str = "the model with its adapter off"

    @torch.no_grad()
    def branch_logps(self, model: nn.Module, batch: Batch, features: ImageFeatures | None = None) -> Tensor:
        """(K, B) float32, as ``mdpo.models.branch_logps``. model: the policy. features: shared with the policy."""
        self._move_to(batch.input_ids.device)
        if self.frozen is not None:
            return branch_logps(self.frozen, batch, image_features=features)
        with nullcontext() if self.adapter else without_adapter(model), in_mode(model, training=False):
            if not self.values:
                return branch_logps(model, batch, image_features=features)
            starting_values = {f"model.{name}": value for name, value in self.values.items()}
            return functional_call(_BranchLogps(model), starting_values, (batch, features))

    def _move_to(self, device: torch.device) -> None:
        """Under DeepSpeed the policy reaches its device after the reference was made."""
        if self.frozen is not None and next(self.frozen.parameters()).device != device:
            self.frozen.to(device)
        for name, value in self.values.items():
            self.values[name] = value.to(device)


class _BranchLogps(nn.Module):
    """``branch_logps`` as a module's forward, for ``functional_call``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, features: ImageFeatures | None) -> Tensor:
        return branch_logps(self.model, batch, image_features=features)


def establish_reference(
    model: nn.Module,
    choice: str = "start",
    *,
    fresh: bool = False,
    examples: Callable[[], Sequence[PreferenceTokens]] = list,
    whole: bool = True,
) -> Reference:
    """The reference of a run that is about to start; what differs between it and the policy is copied here.

    Args:
        model: the policy before its first step, bare or PEFT.
        choice: "start", the model as it is now; "base", the model without its adapter.
        fresh: whether the adapter was made for this run.
        examples: reads some of the data to train on, to see whether the adapter changes anything yet; where there are
            none, a text stands in.
        whole: whether every parameter is whole on this process and can be swapped. False under FSDP.

    Raises InputError where nothing trains, where the packed forward cannot see the adapter (prompt learning), or where
    the chosen reference cannot be had.
    """
    if choice not in _CHOICES:
        raise InputError(f"reference: {choice!r} is unknown; choose from {', '.join(_CHOICES)}")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        remedy = "load the adapter with is_trainable=True" if isinstance(model, PeftModel) else "unfreeze what should"
        raise InputError(f"model: none of its parameters trains; {remedy}")
    if not isinstance(model, PeftModel):
        if choice == "base":
            raise InputError(
                "reference: base is the model without its adapter, and this model has no adapter; leave it out"
            )
        return _frozen_copy(model, trained)
    check_adapter_kinds(model)
    left_on = [name for name in trained if not is_adapter_parameter(model, name)]
    adapter = _measured_with_adapter(model, choice, fresh=fresh, examples=examples, whole=whole)
    values = {name: trained[name].detach().clone() for name in (trained if adapter else left_on)}
    if values and not whole:
        raise InputError(
            f"FSDP shards {_some(list(values))}, whose starting values the reference needs; train it under DDP"
        )
    if adapter:
        description = f"the adapter as it starts, frozen ({_size(values)} kept)"
        if choice == "start" and not fresh:
            description += "; reference: base measures against the model without it"
    elif values:
        description = (
            f"the model with its adapter off, and the starting values of {_some(left_on)} ({_size(values)} kept)"
        )
    else:
        description = "the model with its adapter off"
    return Reference(adapter=adapter, values=values, description=description)


def _measured_with_adapter(
    model: PeftModel, choice: str, *, fresh: bool, examples: Callable[[], Sequence[PreferenceTokens]], whole: bool
) -> bool:
    """Whether the reference has the adapter on."""
    configs = [model.peft_config[name] for name in model.active_adapters]
    if choice == "base":
        changing = next((how for config in configs if (how := _base_changing(config)) is not None), None)
        if changing is not None:
            raise InputError(
                f"reference: base is gone, because init_lora_weights {changing!r} moved part of it into the adapter; "
                "take reference: start"
            )
        if not fresh and any(getattr(config, "bias", "none") != "none" for config in configs):
            raise InputError(
                "reference: base is gone, because the adapter brought biases of its own into it (bias in its config); "
                "take reference: start"
            )
        return False
    if fresh and all(_adds_nothing(config) for config in configs):
        return False
    if not whole:
        raise InputError(
            "FSDP: whether the adapter changes the model already cannot be tried on sharded weights; set reference: "
            "base to measure against the model without it, or train under DDP"
        )
    batch = pack(examples() or [_text(model)], model).to(next(model.parameters()).device)
    with torch.no_grad(), in_mode(model, training=False):
        on = branch_logps(model, batch)
        with without_adapter(model):
            off = branch_logps(model, batch)
    # Bit by bit: an adapter that adds nothing adds zeros. Anything else has something to be measured against.
    return not torch.equal(on.nan_to_num(), off.nan_to_num())


def _adds_nothing(config: Any) -> bool:
    return isinstance(config, LoraConfig) and config.init_lora_weights in _ADDS_NOTHING and not config.use_dora


def _base_changing(config: Any) -> str | None:
    how = getattr(config, "init_lora_weights", None)
    return how if isinstance(how, str) and how.lower().startswith(_CHANGES_BASE) else None


def _text(model: nn.Module) -> PreferenceTokens:
    """A text to try an adapter on where there is no data yet."""
    config: Any = model.config
    ids = [token for token in range(2, 40) if token != config.image_token_id][:24]
    return PreferenceTokens("start", ids[:16], ids[16:20], ids[20:], None)


def is_adapter_parameter(model: nn.Module, name: str) -> bool:
    """Whether ``disable_adapter()`` takes the parameter, or module, of this name out of the forward."""
    module: nn.Module = model
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            # A wrapper's names may have several parts: token_adapter.trainable_tokens_delta.
            rest = ".".join(parts[depth:]) + "."
            if any(rest.startswith(f"{own}.") for own in (*module.adapter_layer_names, *module.other_param_names)):
                return True
        if depth < len(parts) - 1:
            module = getattr(module, part)
    return False


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode for as long as the context lasts; then every module is as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def _frozen_copy(model: nn.Module, trained: dict[str, nn.Parameter]) -> Reference:
    """The reference of full fine-tuning. What does not train is shared with the policy instead of copied."""
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    frozen = copy.deepcopy(model, shared).requires_grad_(False).eval()
    return Reference(frozen=frozen, description=f"a frozen copy of what trains ({_size(trained)})")


def _size(values: dict[str, Any]) -> str:
    size = sum(value.numel() * value.element_size() for value in values.values())
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
