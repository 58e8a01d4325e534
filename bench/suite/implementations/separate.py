"""A model whose branches are read separately: our one padded batch, and plain padded passes with the same head.

What lies between the two is ours: finding what the model does behind its head, rows of a batch that are put together
and taken apart, the loss. The model is a small Gemma 3, whose image tokens attend to each other in both directions.
"""

# A PEFT model's attributes are Tensor or Module to a type checker, and transformers' configs take their keywords
# through a decorator that it does not see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalSubscript=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import transformers
from peft import PeftModel, get_peft_model

from bench.inputs.models import Shape, adapter
from bench.suite.group import Implementation, Outputs
from bench.suite.implementations.padded import Padded, pad, padded_logps
from bench.suite.implementations.step import finish
from mdpo.models import branch_logps, fuse_lora, share_inputs
from mdpo.objectives import PRESETS
from mdpo.packing import PreferenceTokens, Separate, family_of, pack

# The tower's patches are pooled two by two: a token is a square of 28 pixels.
_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
GEMMA_60M = Shape(
    "gemma3-60m",
    transformers.Gemma3TextConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=512,
    ),
    transformers.SiglipVisionConfig,
    _TOWER,
    28,
)
GEMMA_TINY = Shape(
    "gemma3-tiny",
    transformers.Gemma3TextConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=32,
    ),
    transformers.SiglipVisionConfig,
    _TOWER,
    28,
)


@dataclass(frozen=True, slots=True)
class SeparateProblem:
    model: PeftModel
    examples: Sequence[PreferenceTokens]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def build_gemma(shape: Shape, image_tokens: int, device: torch.device, *, lora_r: int = 64) -> PeftModel:
    """image_tokens: a square."""
    torch.manual_seed(0)
    side = round(image_tokens**0.5) * shape.patch_size
    config = transformers.Gemma3Config(
        text_config=shape.text.to_dict(),
        vision_config=shape.vision(**shape.tower, patch_size=14, image_size=side, vision_use_head=False).to_dict(),
        mm_tokens_per_image=image_tokens,
        image_token_id=shape.text.vocab_size - 1,
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        base = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model = get_peft_model(base, fuse_lora(adapter(lora_r))).train()
    share_inputs(model)
    if not isinstance(family_of(model), Separate):
        raise ValueError(f"{shape.name} has a packed row by now; measure another model")
    return model


def separate(problem: SeparateProblem) -> Callable[[], Outputs]:
    """Ours: the branches of all examples in one padded batch."""
    batch = pack(problem.examples, problem.model).to(problem.device)
    return lambda: finish(problem.model, branch_logps(problem.model, batch), PRESETS["mdpo"])


def plain_passes(problem: SeparateProblem) -> Callable[[], Outputs]:
    """A padded pass for each branch through transformers' own forward, and our head on the rows that are scored."""
    batches = [_with_types(problem, pad(problem.examples, (branch,), problem.device)) for branch in range(3)]

    def run() -> Outputs:
        policy = torch.stack([padded_logps(problem.model, batch, full_logits=False) for batch in batches])
        return finish(problem.model, policy, PRESETS["mdpo"])

    return run


def _with_types(problem: SeparateProblem, batch: Padded) -> Padded:
    """Gemma's processor marks image tokens."""
    types = (batch.inputs["input_ids"] == problem.model.config.image_token_id).long()
    return Padded(batch.inputs | {"token_type_ids": types}, batch.labels)


OURS, PLAIN = "ours, branches read separately", "three plain padded passes"
SEPARATE = (
    Implementation(name=OURS, role="ours", load=lambda: separate, note="reference cached: from the second epoch on"),
    Implementation(name=PLAIN, role="torch", load=lambda: plain_passes, note="the model's own forward, our head"),
)
