"""What happens before the first step: dropout off, and one look whether the numbers are what they should be."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from mdpo.config import MDPOConfig
from mdpo.errors import InputError
from mdpo.models.dropout import attention_dropout, disable_dropout
from mdpo.models.logps import unwrap
from mdpo.models.policy import PolicyOutput
from mdpo.models.start_check import check_equal_start, check_packed, rounding_of
from mdpo.packing import Batch, PreferenceTokens, Separate, family_of, pack

_log = logging.getLogger(__name__)

# The reference goes the policy's way through the model, so that less than rounding between two ways is left.
_SAME_WAY = 4


def switch_dropout_off(model: nn.Module, args: MDPOConfig) -> None:
    """Sets the model's dropout to 0 where the settings say so, and says what was on.

    Raises InputError for attention dropout that is to stay on: a packed row has none. A model whose branches are read
    separately keeps its own.
    """
    if args.disable_dropout:
        switched_off = disable_dropout(model)
        if switched_off:
            _log.warning("disable_dropout: off while preferences are trained: %s", ", ".join(switched_off))
        return
    found = None if isinstance(family_of(model), Separate) else attention_dropout(model)
    if found is not None:
        raise InputError(
            f"disable_dropout is false, and the model has {found}; a packed row has no attention dropout: set "
            "disable_dropout to true"
        )


def describe_trained(model: nn.Module) -> str:
    """How many of the model's parameters train, and in which part of it."""
    text = {id(parameter) for parameter in unwrap(model).get_decoder().parameters()}
    sizes = Counter[str]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = (
                "lm_head" if "lm_head" in name else "language model" if id(parameter) in text else "tower and projector"
            )
            sizes[part] += parameter.numel()
    parts = ", ".join(f"{size:,} in the {part}" for part, size in sizes.most_common())
    if isinstance(model, PeftModel):
        total = model.get_nb_trainable_parameters()[1]  # two 4-bit weights share a number, which peft knows
    else:
        total = sum(parameter.numel() for parameter in model.parameters())  # without an adapter none is in 4 bits
    return f"{sum(sizes.values()):,} of {total:,} parameters: {parts}"


def check_start(
    model: nn.Module,
    args: MDPOConfig,
    examples: Sequence[PreferenceTokens],
    branches: Sequence[str],
    autocast: torch.dtype | None,
    forward: Callable[[Batch], PolicyOutput],
) -> str:
    """Compares the way in use with the model's own forward, and policy with reference.

    Args:
        model: the policy, before its first step.
        examples: of the data to train on.
        branches: of the objective.
        forward: policy and reference of a micro-batch, the reference from the cache where it is there.

    Returns the line that says how close they are. Raises InputError beyond rounding.
    """
    rounding = rounding_of(model, autocast)
    check = check_packed(model, examples, branches=branches, rounding=rounding, training=args.disable_dropout)
    if args.reference == "base":  # then a trained adapter starts away from its reference, as asked for
        return check.line
    batch = pack(examples, model, branches=branches).to(_device(model))
    with torch.no_grad():
        output = forward(batch)
    largest = check_equal_start(batch, output.policy, output.reference, rounding / _SAME_WAY)
    return f"{check.line}; policy and reference by {largest:.1e}"


def _device(model: nn.Module) -> Any:
    parameter: Tensor = next(model.parameters())
    return parameter.device
