"""Log-probs without the softmax, the mDPO loss, and the packed attention: the part to use in a trainer of your own.

    from mdpo_kernels import linear_token_logps, mdpo_loss, sequence_logps

token_logps.py                     log-probs from logits
head.py                            the head as one value
linear_token_logps.py              log-probs from hidden states and the head
linear_token_logps_backward.py     its backward for a head that trains
linear_token_logps_epilogue.py     an experiment: its exponentials in the product's epilogue
terms.py                           an objective as a matrix over branches
loss.py                            sequence log-probs → the loss, in plain PyTorch
fused_loss.py                      logits, or hidden states, → the loss in one call
lora_linear.py                     linear layers with LoRA
attention.py                       the packed attention, and the choice of its backend
attention_segments.py              which rows attend to which
attention_flash.py                 by FlashAttention
attention_segmentwise.py           one segment at a time
attention_gather.py                keys that several segments read
reference.py                       every op in plain PyTorch: the oracle, and what runs on a CPU
attention_reference.py             the packed attention's
checks.py                          what a public function checks
backend.py                         Triton, if it is here
online_softmax.py, tiling.py       what the kernels share
derivatives.py, autocast.py        what the ops say to autograd, and to autocast
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
