"""Packed row → hidden states → log-probs."""

from .adapters import load_with_adapter
from .bunny import convert_bunny
from .compiler import not_compiled
from .freeze import freeze_vision
from .fused_lora import fuse_lora
from .layers import LANGUAGE_LINEAR, check_checkpoint_layers, checkpoint_first_layers, compile_layers, language_layers
from .llava import convert_llava
from .load import check_model, check_trainable, load, load_processor, torch_dtype
from .logps import branch_logps, encode_images, sequence_logps
from .lora_targets import check_lora_targets, lora_expression
from .policy import PackedPolicy
from .reference import Reference, establish_reference
from .reference_cache import ReferenceCache, fingerprint, reference_weights
from .shared_input import share_inputs

__all__ = [
    "LANGUAGE_LINEAR",
    "PackedPolicy",
    "Reference",
    "ReferenceCache",
    "branch_logps",
    "check_checkpoint_layers",
    "check_lora_targets",
    "check_model",
    "check_trainable",
    "checkpoint_first_layers",
    "compile_layers",
    "convert_bunny",
    "convert_llava",
    "encode_images",
    "establish_reference",
    "fingerprint",
    "freeze_vision",
    "fuse_lora",
    "language_layers",
    "load",
    "load_processor",
    "load_with_adapter",
    "not_compiled",
    "reference_weights",
    "lora_expression",
    "sequence_logps",
    "share_inputs",
    "torch_dtype",
]
