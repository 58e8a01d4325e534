"""Which layers LoRA adapts: names as other libraries take them, kept off the vision tower."""

import copy
import logging
import re
from collections.abc import Sequence
from typing import cast

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mdpo.errors import InputError

from .folder import short
from .fused_lora import can_fuse, fuse_lora
from .layers import IN_LANGUAGE_MODEL, LANGUAGE_LINEAR
from .patterns import check_patterns, texts_of

_log = logging.getLogger(__name__)

_NAME = re.compile(r"\w+(\.\w+)*")
# peft adapts more kinds of layers; these are the ones that a model of transformers has.
_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)


def lora_expression(targets: str | Sequence[str] | None) -> str:
    """The regular expression over module names that ``lora_target_modules`` stands for.

    Args:
        targets: names of layers, as a list or separated by commas: those of the language model, and lm_head; peft
            itself would take a plain name in the vision tower too. Other text is a regular expression over whole
            module names. None and "all-linear": every linear layer of the language model.

    Raises:
        InputError: names that are none, or text that is not an expression.
    """
    names = _names(targets)
    if names == ["all-linear"] or targets is None:
        return LANGUAGE_LINEAR
    if names is not None:
        return "|".join(_of_the_language_model(name) for name in names)
    assert isinstance(targets, str)
    try:
        re.compile(targets)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(
            f"lora_target_modules: {_shown(targets)} is neither a list of layer names nor a regular expression: {error}"
        ) from error
    return targets


def adapted(model: PreTrainedModel, config: PeftConfig, *, fused: bool) -> PeftModel:
    """``get_peft_model``; a LoRA without target_modules goes to every linear layer of the language model, and says so.

    fused: whether LoRA layers are ``fuse_lora``'s, where the config has no custom modules of its own.

    Raises InputError where peft refuses the config.
    """
    if isinstance(config, LoraConfig) and not config.target_modules and not getattr(config, "target_parameters", None):
        config = copy.copy(config)
        config.target_modules = LANGUAGE_LINEAR
        _log.warning("peft_config: target_modules is not set; every linear layer of the language model is adapted")
    patterns = {
        f"peft_config: {name}": text
        for name in (
            "target_modules",
            "exclude_modules",
            "layers_pattern",
            "modules_to_save",
            "rank_pattern",
            "alpha_pattern",
        )
        for text in texts_of(getattr(config, name, None))
    }
    check_patterns(patterns, [name for name, _ in model.named_modules() if name], "correct it")
    experts = stacked_experts(model)
    if fused and can_fuse(config):
        config = fuse_lora(config)
    try:
        wrapped = cast(PeftModel, get_peft_model(model, config))
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"peft_config: {short(error)}; correct it") from error
    # Asked of what came out: of some models peft adapts the stacks where their layers of old are named.
    adapts = any(".experts." in name and parameter.requires_grad for name, parameter in wrapped.named_parameters())
    if isinstance(config, LoraConfig) and experts is not None and not adapts:
        _log.warning(
            "LoRA leaves out the weights of the experts (%s): they are stacked tensors; a peft_config "
            "with target_parameters adapts them",
            experts,
        )
    return wrapped


def stacked_experts(model: nn.Module) -> str | None:
    """The names of a mixture's expert weights that are one stack for all experts; None where there is none."""
    names = {
        name.rpartition(".")[2]
        for name, parameter in model.named_parameters()
        if ".experts." in name and parameter.dim() == 3
    }
    return ", ".join(sorted(names)) or None


def check_lora_targets(model: nn.Module, targets: str | Sequence[str] | None) -> None:
    """Whether every target is a layer of the model.

    Args:
        model: bare.
        targets: as for ``lora_expression``.

    Raises:
        InputError: a target matches nothing, or what peft cannot adapt.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    names = _names(targets)
    expressions = {name: _of_the_language_model(name) for name in names or [] if name != "all-linear"}
    if not expressions:
        expressions = {str(targets or "all-linear"): lora_expression(targets)}
    for target, expression in expressions.items():
        if names is None:
            check_patterns({"lora_target_modules": expression}, list(modules), "name the layers, or correct it")
        found = [name for name in modules if re.fullmatch(expression, name)]
        odd = [name for name in found if not isinstance(modules[name], _ADAPTABLE)]
        if odd:
            raise InputError(
                f"lora_target_modules: {_shown(target)} is a {type(modules[odd[0]]).__name__} ({odd[0]}); name "
                f"linear layers, such as {_linear_names(modules)}"
            )
        if not found:
            raise InputError(
                f"lora_target_modules: {_shown(target)} matches no layer; the language model has "
                f"{_linear_names(modules)}"
            )


def _names(targets: str | Sequence[str] | None) -> list[str] | None:
    """The targets as plain names, None where they are an expression or nothing."""
    if targets is None:
        return None
    words = [word.strip() for word in targets.split(",")] if isinstance(targets, str) else list(targets)
    if not words or not any(words):
        raise InputError("lora_target_modules: it names no layer; leave it out for every linear layer")
    if all(_NAME.fullmatch(word) or word == "all-linear" for word in words):
        return words
    if not isinstance(targets, str):
        odd = next(word for word in words if not _NAME.fullmatch(word))
        raise InputError(
            f"lora_target_modules: {_shown(odd)} is not the name of a layer; a regular expression stands alone, "
            "not in a list"
        )
    return None


def _of_the_language_model(name: str) -> str:
    escaped = re.escape(name)
    inside = rf"{IN_LANGUAGE_MODEL}(?:.*\.)?{escaped}"
    return rf"{inside}|lm_head" if name == "lm_head" else inside


def _linear_names(modules: dict[str, nn.Module]) -> str:
    inside = re.compile(IN_LANGUAGE_MODEL + ".*")
    linear = {
        name.rpartition(".")[2]
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and inside.fullmatch(name)
    }
    return ", ".join(sorted(linear))


def _shown(target: str) -> str:
    return repr(target) if len(target) <= 80 else f"{target[:77]!r}..."
