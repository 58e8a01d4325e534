"""Log-probs without the softmax, the mDPO loss, and the packed attention: the part to use in a trainer of your own.

from mdpo_kernels import linear_token_logps, mdpo_loss, sequence_logps
"""

from . import reference
from .attention import Segments, varlen_attention
from .fused_loss import fused_linear_mdpo_loss, fused_linear_preference_loss, fused_mdpo_loss
from .linear_token_logps import linear_token_logps
from .lora_linear import LoraLayer, lora_linear, lora_linears
from .loss import MDPOLoss, PreferenceLoss, mdpo_loss, preference_loss, sequence_logps
from .terms import Term, mdpo_terms
from .token_logps import token_logps

__all__ = [
    "LoraLayer",
    "MDPOLoss",
    "PreferenceLoss",
    "Segments",
    "Term",
    "fused_linear_mdpo_loss",
    "fused_linear_preference_loss",
    "fused_mdpo_loss",
    "linear_token_logps",
    "lora_linear",
    "lora_linears",
    "mdpo_loss",
    "mdpo_terms",
    "preference_loss",
    "reference",
    "sequence_logps",
    "token_logps",
    "varlen_attention",
]
