"""The part `step`: forward and backward of a micro-batch, packed against three passes and two-branch DPO.

P prompt tokens (image included) × R response tokens. Every group carries what sharing promises: the tokens of three
passes over those of the packed row.
"""

import random
from collections.abc import Callable

import torch
from peft import PeftModel

from bench.group import Bound, Group, Outputs, Prepared
from bench.implementations.step import STEP, Step, StepProblem, three_unpadded
from bench.models import BUNNY_3B, CPU_60M, LLAVA_7B, Shape, build
from mdpo.packing import PreferenceTokens

PROMPTS, RESPONSES = (650, 100, 1500), (100, 50, 300)
_TOKENS = 8192  # of a packed row on a GPU
_IMAGE_TOKENS = {"bunny-3b": 729}
_cached: dict[tuple, PeftModel] = {}


def groups(device: torch.device) -> list[Group]:
    """P × R for each model: two real shapes on a GPU, a 60M-parameter one and a single example on a CPU."""
    shapes = (LLAVA_7B, BUNNY_3B) if device.type == "cuda" else (CPU_60M,)
    return [
        step_group(shape, prompt, response, device) for shape in shapes for prompt in PROMPTS for response in RESPONSES
    ]


def step_group(shape: Shape, prompt: int, response: int, device: torch.device) -> Group:
    """One micro-batch: as many examples as fill a packed row on a GPU, one on a CPU."""
    examples = max(1, _TOKENS // (2 * prompt + 3 * response)) if device.type == "cuda" else 1
    # The image leaves some of the prompt to text; small prompts take a small image.
    image_tokens = _IMAGE_TOKENS.get(shape.name, 576) if prompt >= 650 else 64
    prompt = max(prompt, image_tokens + 16)

    def prepare() -> Prepared:
        problem = StepProblem(
            _model(shape, image_tokens, device), _examples(shape, prompt, response, examples, image_tokens)
        )
        truth = three_unpadded(problem)()

        def bind(function: Callable[[StepProblem], Step]) -> Bound:
            return Bound(run=function(problem), errors=lambda outputs: _differences(outputs, truth))

        return Prepared(floor=None, bind=bind)

    tokens = 2 * prompt + 3 * response
    return Group(
        part="step",
        op="step",
        shape={"model": shape.name, "P": prompt, "R": response, "B": examples},
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        implementations=STEP,
        prepare=prepare,
        extra={
            "promised speed-up over three passes": 3 * (prompt + response) / tokens,
            "packed tokens": examples * tokens,
        },
    )


def _model(shape: Shape, image_tokens: int, device: torch.device) -> PeftModel:
    key = (shape.name, image_tokens, device)
    if key not in _cached:
        _cached.clear()  # one model fits at a time
        _cached[key] = build(shape, image_tokens, device)
    return _cached[key]


def _examples(shape: Shape, prompt: int, response: int, count: int, image_tokens: int) -> list[PreferenceTokens]:
    """Responses around R, their lengths spread by a quarter: padding has something to pad."""
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    side = round(image_tokens**0.5) * shape.patch_size
    vocabulary = shape.text.vocab_size - 1

    def ids(length: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(length)]

    def image() -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.randn(1, 3, side, side, generator=generator)}

    spreads = [round(response * (1 + spread)) for spread in (-0.25, 0.25)]
    return [
        PreferenceTokens(
            id=str(index),
            prompt_ids=[vocabulary] * image_tokens + ids(prompt - image_tokens),
            chosen_ids=ids(spreads[index % 2] if count > 1 else response),
            rejected_ids=ids(spreads[(index + 1) % 2] if count > 1 else response),
            images=image(),
            rejected_images=image(),
        )
        for index in range(count)
    ]


def _differences(outputs: Outputs, truth: Outputs) -> dict[str, float]:
    """Against three unpadded passes: the log-probs' largest difference, the gradient's relative one."""
    (policy, gradient), (expected, reference) = outputs, truth
    return {
        "logps": (policy - expected).abs().max().item(),
        "gradient": ((gradient - reference).norm() / reference.norm()).item(),
    }
