"""What the settings say of the model's layers: checkpointed, compiled, Liger's."""

import logging
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import TrainerCallback
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from mdpo.config import MDPOConfig
from mdpo.errors import InputError
from mdpo.models import check_checkpoint_layers, checkpoint_first_layers, compile_layers, not_compiled, share_inputs

from .machine import compiler_fault_anywhere

_log = logging.getLogger(__name__)

EAGER, COMPILED, LIGERS = "eager", "compiled", "Liger's"
# Text models for which Liger has RMSNorm, rotary positions and SwiGLU.
_LIGER = ("llama", "mistral", "qwen2", "qwen2_5_vl_text")


def prepare_layers(model: nn.Module, frozen: nn.Module | None, args: MDPOConfig) -> str:
    """Checks the settings against the model, and makes its layers what they ask for. Returns which they are.

    frozen: the reference, where it is a model of its own. Its layers become the policy's kind, so that no rounding lies
        between the two; transformers gives the policy Liger's when it trains.

    Raises InputError where a setting does not fit the model.
    """
    if args.fused_lora:
        share_inputs(model)
    if args.checkpoint_layers is not None:
        check_checkpoint_layers(model, args.checkpoint_layers)
    _check_checkpointing(model, args)
    if args.use_liger_kernel:
        _check_liger(model, args)
        if frozen is not None:
            apply_liger_kernel(frozen, args.liger_kernel_config)
    if args.compile_layers and _can_be_compiled(model, args) and _compiles(args):
        for part in filter(None, (model, frozen)):
            compile_layers(part)
        return COMPILED
    return LIGERS if args.use_liger_kernel else EAGER


def _can_be_compiled(model: Any, args: MDPOConfig) -> bool:
    """Whether the layers see packed rows, which are what they are compiled for, and the same work in each; says so if
    not.
    """
    reason = not_compiled(model)
    if reason is not None and args.process_index == 0:
        _log.info("compile_layers: layers run eagerly, because %s", reason)
    return reason is None


def _compiles(args: MDPOConfig) -> bool:
    """Whether layers can be compiled, on every rank; says so where they cannot."""
    fault = compiler_fault_anywhere(args)
    if fault is not None and args.process_index == 0:
        _log.warning("compile_layers: layers run eagerly, because torch.compile fails on this machine: %s", fault)
    return fault is None


def _check_checkpointing(model: nn.Module, args: MDPOConfig) -> None:
    """Reentrant checkpointing gives gradients to what a layer is passed by position, and to nothing else that
    it reads.
    """
    if not args.gradient_checkpointing or not any(
        getattr(part, "is_kv_shared_layer", False) for part in model.modules()
    ):
        return
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if (getattr(args, name, None) or {}).get("use_reentrant"):
            raise InputError(
                f"{name}: use_reentrant: true loses gradients of this model, some of whose layers read the keys "
                "and values of earlier ones; leave it out"
            )


def _check_liger(model: Any, args: MDPOConfig) -> None:
    kind = model.config.text_config.model_type
    if kind not in _LIGER:
        raise InputError(
            f"use_liger_kernel: Liger does not support the text model {kind!r}; it has {', '.join(_LIGER)}"
        )
    if not is_liger_kernel_available():
        raise InputError("use_liger_kernel needs liger-kernel: pip install liger-kernel")
    if args.liger_kernel_config is None:
        # Its losses replace the forward that ends in a head; ours is linear_token_logps.
        args.liger_kernel_config = {"cross_entropy": False, "fused_linear_cross_entropy": False}


class CheckpointLayers(TrainerCallback):
    """Leaves checkpointing on in the first k layers, after transformers has switched it on in all of them."""

    def __init__(self, model: nn.Module | PeftModel) -> None:
        self.model = model

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.checkpoint_layers:
            checkpoint_first_layers(self.model, args.checkpoint_layers)
