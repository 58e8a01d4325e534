"""Packed row → hidden states → log-probs."""

from .bunny import convert_bunny
from .load import load, load_processor
from .logps import encode_images, sequence_logps
from .policy import PackedPolicy
from .reference_cache import ReferenceCache, fingerprint

__all__ = [
    "PackedPolicy",
    "ReferenceCache",
    "convert_bunny",
    "encode_images",
    "fingerprint",
    "load",
    "load_processor",
    "sequence_logps",
]
