"""A micro-batch → hidden states → log-probs → the loss.

Loading
  folder.py              a model folder's files, before anything is built from them
  proportion.py          a config against the weights beside it
  quantize.py            the language model in 4 bits
  load.py                a model and its processor
  freeze.py              tower and projector kept from training
Adapters
  patterns.py            regular expressions over layer names, under a bound
  lora_targets.py        which layers LoRA adapts
  base_digest.py         which base model an adapter belongs to
  adapters.py            an adapter onto its base, whole or not at all
  fused_lora.py          LoRA layers in one kernel
  fused_lora_4bit.py     the same on 4-bit layers
  shared_input.py        query, key and value, or gate and up, in one
The forward
  layers.py              the language model's layers: checkpointed, compiled
  compiler.py            whether they can be compiled here
  dropout.py             dropout off
  norms.py               LayerNorms under autocast
  attention.py           the packed attention, as transformers knows it
  linear_attention.py    layers that carry a state along a packed row
  tower.py               what the vision tower is called with
  inputs.py              what a model's own forward is called with
  head.py                hidden states → log-probs, with an adapter on the head
  logps.py               one forward of a micro-batch
  separate.py            the same for branches that are sequences of their own
  image_embeddings.py    one vector for each picture
Policy and reference
  reference.py           what the policy is measured against
  tensors_digest.py      a digest of many tensors
  reference_cache.py     the reference's log-probs on disk
  policy.py              PackedPolicy: policy, reference and loss
  plain.py               a branch through the model's own forward, for comparison
  start_check.py         that comparison, before the first step
``mdpo merge`` and ``mdpo convert``
  commands.py            both commands
  official.py            what the converters share
  bunny.py, llava.py     the two official layouts
  merge.py               an adapter into the weights
  generation_config.py   a generation config that can be saved
  model_card.py          the README.md of what was made
"""

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
    "lora_expression",
    "not_compiled",
    "reference_weights",
    "sequence_logps",
    "share_inputs",
    "torch_dtype",
]
