"""The part `scaling`: time and memory of an optimizer step as one size grows and the others stay.

Prompt, response, vocabulary and pairs, each over a factor of sixteen or so around one middle point, through the
trainers of `step`; `bench.render` draws a line a trainer on log axes. A step is one micro-batch. (How a step spreads
over GPUs is `bench.scripts.ranks`.)
"""

import copy
from dataclasses import dataclass, replace

import torch

from bench.inputs.models import LLAVA_7B, TINY, Shape
from bench.inputs.preference_rows import even_rows
from bench.suite.group import Group, Prepared
from bench.suite.implementations.train_problem import TrainProblem
from bench.suite.implementations.train_step import TRAIN_STEP
from bench.suite.parts.step import prepared_steps

IMAGE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """P prompt tokens, the image's among them; R response tokens; V entries of the vocabulary; B pairs."""

    P: int
    R: int
    V: int
    B: int


GPU_MIDDLE, CPU_MIDDLE = Sizes(640, 128, 32064, 4), Sizes(320, 64, 8192, 2)
GPU_AXES = {
    "P": (256, 1024, 2048, 4096),
    "R": (32, 64, 256, 512, 1024),
    "V": (65536, 131072, 262144),
    "B": (1, 2, 8, 16),
}
CPU_AXES = {"P": (80, 640), "R": (16, 128), "V": (2048, 16384), "B": (1, 4)}


def groups(device: torch.device, tiny: bool = False) -> list[Group]:
    """Layers of the 7B model's width on a GPU, eight of them so that every vocabulary is built in seconds; on a CPU a
    tiny model, in which Python takes much of the time and memory says more."""
    if device.type == "cuda":
        text = copy.deepcopy(LLAVA_7B.text)
        text.num_hidden_layers = 8
        shape, middle, axes = replace(LLAVA_7B, name="llava-1.5-7b of 8 layers", text=text), GPU_MIDDLE, GPU_AXES
    else:
        shape, middle, axes = TINY, CPU_MIDDLE, {"P": (80,), "B": (1,)} if tiny else CPU_AXES
    listed = [
        (axis, sorted({*values, getattr(middle, axis)})) for axis, values in axes.items()
    ]  # the middle belongs to every line
    return [
        _group(shape, axis, replace(middle, **{axis: value}), device) for axis, values in listed for value in values
    ]


def _group(shape: Shape, axis: str, sizes: Sizes, device: torch.device) -> Group:
    text = copy.deepcopy(shape.text)
    text.vocab_size = sizes.V
    text.max_position_embeddings = max(text.max_position_embeddings, sizes.P + 2 * sizes.R)
    sized = replace(shape, text=text)

    def prepare() -> Prepared:
        examples = even_rows(sized, sizes.P, sizes.R, sizes.B, image_tokens=IMAGE_TOKENS)
        problem = TrainProblem(
            shape=sized, image_tokens=IMAGE_TOKENS, examples=examples, batch=sizes.B, checkpointing=False, device=device
        )
        return prepared_steps(problem)

    return Group(
        part="scaling",
        op=f"over {axis}",
        shape={"model": shape.name, "P": sizes.P, "R": sizes.R, "V": sizes.V, "B": sizes.B},
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        implementations=TRAIN_STEP,
        prepare=prepare,
    )
