"""The language model's linear layers in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from mdpo.errors import InputError

# A pattern of the modules to leave alone: tower, projector and lm_head, which is everything outside the language model.
_OUTSIDE_LANGUAGE_MODEL = r"(?!.*\b(?:language|text)_model\.).*"

_BLOCK = 64  # weights that share a scale


def nf4_config(compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation: 0.516 bytes a weight. compute_dtype: of the products, and of what is left whole.

    Raises InputError where bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError('load_in_4bit needs bitsandbytes: pip install -e ".[quant]" in the clone of mDPO')
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=[_OUTSIDE_LANGUAGE_MODEL],
    )


def keep_training_layout(model: PreTrainedModel) -> None:
    """On CPUs with AVX512-BF16, keeps bitsandbytes from repacking weights in evaluation mode.

    The reference runs in that mode between the policy's steps. A repacked weight has bf16 scales, so the reference
    would be another model than the policy's base, and has no backward, so training would end silently.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantized_modules(model: PreTrainedModel) -> list[str]:
    """The names of the modules whose weights are in 4 bits."""
    return [
        name.removesuffix(".weight")
        for name, parameter in model.named_parameters()
        if hasattr(parameter, "quant_state")
    ]


def check_quantized(model: PreTrainedModel) -> None:
    """Raises InputError unless 4-bit weights are there, and in the language model alone.

    A checkpoint that was saved in 4 bits by someone else may hold its tower so: the features, and with them the
    reference, would differ from what the model was tuned with.
    """
    names = quantized_modules(model)
    decoder = set(model.get_decoder().modules())
    outside = [name for name in names if model.get_submodule(name) not in decoder]
    if outside:
        raise InputError(
            f"load_in_4bit: the checkpoint contains {outside[0]} in 4 bits; only the language model's linear layers "
            "may be: start from the unquantised weights"
        )
    if not names:
        raise InputError("load_in_4bit: the model has no linear layer that could be quantised")
    for name in names:
        module: Any = model.get_submodule(name)
        # Measured on bitsandbytes 0.50.2: with 32 inputs the restored weight is off by 37% instead of 9%.
        if module.weight.device.type == "cpu" and module.in_features % _BLOCK:
            raise InputError(
                f"load_in_4bit: {name} has {module.in_features} inputs, and bitsandbytes restores weights wrongly "
                f"on a CPU unless that is a multiple of {_BLOCK}; use a GPU, or leave load_in_4bit out"
            )
