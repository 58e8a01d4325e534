"""Packed row → hidden states → log-probs."""

from .bunny import convert_bunny
from .load import load, load_processor
from .logps import encode_images, sequence_logps
from .policy import PackedPolicy

__all__ = ["PackedPolicy", "convert_bunny", "encode_images", "load", "load_processor", "sequence_logps"]
