"""Counting what a step keeps: the real classes on a CPU, a byte at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn

from mdpo.memory import Adaptation, ModelShape, Setup, read_shape
from mdpo.memory.precision import Precision
from mdpo.models import LANGUAGE_LINEAR, PackedPolicy, checkpoint_first_layers, fuse_lora, share_inputs
from mdpo.models.logps import unwrap
from mdpo.packing import Batch, PackedBatch, PreferenceTokens, SeparateBatch, pack
from tests import tiny, wide
from tests.models import separate_models, test_separate
from tests.models.packed_examples import examples

LAYERS = 4
RANK = 8


@dataclass
class Case:
    """A model ready to step, and what the arithmetic is told of it."""

    model: nn.Module
    policy: PackedPolicy
    packed: Batch
    shape: ModelShape
    precision: Precision

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=self.precision.autocast))
            yield

    def forward(self) -> torch.Tensor:
        """The loss of the packed row, as the trainer computes it, with its reference known."""
        reference = torch.zeros(3, len(self.packed.ids))
        with self.running():
            return self.policy(self.packed, reference).loss.loss

    def setup(self, checkpointed: int) -> Setup:
        return Setup(
            precision=self.precision,
            quantized=False,
            optimizer="adamw_torch_fused",
            checkpointed=checkpointed,
            tokens=self.tokens,
            scored=len(self.packed.targets),
            images=self.images,
            longest=self.longest,
        )

    @property
    def tokens(self) -> int:
        """That the model reads, what fills sequences up included."""
        return self.packed.input_ids.numel()

    @property
    def longest(self) -> int:
        return self.packed.input_ids.shape[1]

    @property
    def images(self) -> int:
        if isinstance(self.packed, SeparateBatch):
            return sum(bool(row.entries) for row in self.packed.rows)
        assert isinstance(self.packed, PackedBatch)
        return len(self.packed.image_index)


@contextmanager
def case(kind: str, dtype: torch.dtype, *, autocast: bool, rank: int = RANK, checkpointed: int = 0) -> Iterator[Case]:
    """A four-layer model of a family, LoRA on the language model's linear layers, or none and all of that trained."""
    model: nn.Module = wide.model(kind, hidden_size=128, layers=LAYERS).to(dtype)
    model.config.dtype = dtype
    shape = read_shape(model.config, Adaptation(rank=rank, pattern=LANGUAGE_LINEAR))
    packed = pack(examples(kind) * 2, model)
    frozen = None if rank else wide.model(kind, hidden_size=128, layers=LAYERS)
    with _ready(model, packed, shape, dtype, frozen, autocast=autocast, rank=rank, checkpointed=checkpointed) as ready:
        yield ready


@contextmanager
def counted_case(
    kind: str, dtype: torch.dtype, *, autocast: bool, rank: int = RANK, checkpointed: int = 0
) -> Iterator[Case]:
    """A tiny model whose layers have no equation, with LoRA: one whose branches are read separately, or a packed
    mixture. The prompts are long enough for tokens to weigh more than weights."""
    if kind == "qwen3_vl_moe":
        model, batch = tiny.qwen3_vl_moe(), examples("qwen3_vl")
    else:
        model, batch = separate_models.build(kind), test_separate.examples(kind)
    model = model.to(dtype)
    model.config.dtype = dtype
    shape = read_shape(model.config, Adaptation(rank=rank, pattern=LANGUAGE_LINEAR))
    packed = pack([_longer(example) for example in batch], model)
    with _ready(model, packed, shape, dtype, None, autocast=autocast, rank=rank, checkpointed=checkpointed) as ready:
        yield ready


def _longer(example: PreferenceTokens) -> PreferenceTokens:
    fields = {name: getattr(example, name) for name in example.__slots__}
    return PreferenceTokens(**{**fields, "prompt_ids": [*fields["prompt_ids"], *[20] * 150]})


@contextmanager
def _ready(
    model: nn.Module,
    packed: Batch,
    shape: ModelShape,
    dtype: torch.dtype,
    frozen: nn.Module | None,
    *,
    autocast: bool,
    rank: int,
    checkpointed: int,
) -> Iterator[Case]:
    if rank:
        model = get_peft_model(model, fuse_lora(LoraConfig(r=rank, target_modules=LANGUAGE_LINEAR)))
        share_inputs(model)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(("model.language_model.", "lm_head")))
    if checkpointed:
        base = unwrap(model)
        getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)()
        checkpoint_first_layers(model, checkpointed)
    precision = Precision(weight_bytes=dtype.itemsize, autocast=autocast, cuda=False)
    with disable_input_dtype_casting(model, active=autocast):
        policy = PackedPolicy(model, frozen).train()
        yield Case(model, policy, packed, shape, precision)
