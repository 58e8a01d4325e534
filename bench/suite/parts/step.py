"""The part `step`: whole optimizer steps against the peers' trainers, and a micro-batch against other layouts.

`train_step` takes rows with the lengths of real preference data through each trainer: checkpointing on and off, the
decoder layers as they are, compiled, or Liger's; ours with the reference cached, as from the second epoch on, and with
the reference computed in the step, as in the first; and ours with peft's LoRA layers in the place of the fused ones.
`step` is forward and backward of one micro-batch of P prompt tokens (image included) × R response tokens; every such
group carries what sharing promises: the tokens of three passes over those of the packed row. `objective` is the same
for objectives of more branches, packed and in a pass for each branch. `separate` is a model that has no packed row,
against plain padded passes; the two are timed in turns.
"""

from collections.abc import Callable
from functools import partial

import torch
from peft import PeftModel

from bench.inputs.models import BUNNY_3B, CPU_60M, LLAVA_7B, TINY, Shape, build
from bench.inputs.preference_rows import even_rows, preference_rows
from bench.suite.group import Bound, Floor, Group, Outputs, Prepared
from bench.suite.implementations.separate import (
    GEMMA_60M,
    GEMMA_TINY,
    PLAIN,
    SEPARATE,
    SeparateProblem,
    build_gemma,
    plain_passes,
)
from bench.suite.implementations.step import OBJECTIVE, STEP, Step, StepProblem, separate_passes
from bench.suite.implementations.train_problem import Layers, TrainProblem, TrainStep
from bench.suite.implementations.train_step import PEFT_LORA, TRAIN_STEP, TRAIN_STEP_COMPILED, TRAIN_STEP_LIGER
from mdpo.objectives import PRESETS, rows

PROMPTS, RESPONSES = (650, 100, 1500), (100, 50, 300)
OBJECTIVES = ("symmpo", "misp")
_TOKENS = 8192  # of a packed row on a GPU
_IMAGE_TOKENS = {"bunny-3b": 729}
_cached: dict[tuple, PeftModel] = {}


def groups(device: torch.device, tiny: bool = False) -> list[Group]:
    """Two real shapes on a GPU; on a CPU a 60M-parameter one, with everything of the rows divided by four."""
    if device.type != "cuda":
        shape = TINY if tiny else CPU_60M
        small = partial(train_group, shape, device, pairs=4, batch=2, image_tokens=144, shrink=4)
        micro = step_group(shape, 650, 100, device)
        others = [step_group(shape, 650, 100, device, name) for name in OBJECTIVES]
        separate = separate_group(GEMMA_TINY if tiny else GEMMA_60M, 160, 24, device)
        return [
            small(False),
            micro,
            small(True),
            *others,
            separate,
            small(False, layers="compiled"),
            small(True, layers="liger"),
        ]
    llava = partial(train_group, LLAVA_7B, device, image_tokens=576)
    bunny = partial(train_group, BUNNY_3B, device, image_tokens=_IMAGE_TOKENS[BUNNY_3B.name])
    micro = [
        step_group(shape, prompt, response, device)
        for prompt in PROMPTS
        for response in RESPONSES
        for shape in (LLAVA_7B, BUNNY_3B)
    ]
    return [
        *(
            llava(checkpointing, layers=layers)
            for layers in ("transformers", "compiled")
            for checkpointing in (False, True)
        ),
        micro[0],
        *(step_group(LLAVA_7B, 650, 100, device, name) for name in OBJECTIVES),
        *(bunny(checkpointing) for checkpointing in (False, True)),
        # Liger has nothing for Bunny's Phi.
        *(llava(checkpointing, layers="liger") for checkpointing in (False, True)),
        *(bunny(checkpointing, layers="compiled") for checkpointing in (False, True)),
        *micro[1:],
    ]


def prepared_steps(problem: TrainProblem) -> Prepared:
    """Each trainer's optimizer step on the problem; nothing to compare outputs with."""

    def bind(function: Callable[[TrainProblem], TrainStep]) -> Bound:
        step = function(problem)
        return Bound(
            run=lambda: (step.run(),),
            errors=lambda outputs: {},
            amounts={"examples": step.examples, "tokens": step.tokens, "model flops": step.model_flops},
            remark=f"{step.tokens:,} tokens without padding in {step.micro_batches} micro-batches",
        )

    return Prepared(floor=None, bind=bind)


def train_group(
    shape: Shape,
    device: torch.device,
    checkpointing: bool,
    *,
    image_tokens: int,
    pairs: int = 16,
    batch: int = 4,
    shrink: int = 1,
    layers: Layers = "transformers",
) -> Group:
    """One optimizer step of `pairs` pairs, `batch` a micro-batch, by each trainer."""
    implementations = {
        "transformers": (*TRAIN_STEP, PEFT_LORA),
        "compiled": TRAIN_STEP_COMPILED,
        "liger": TRAIN_STEP_LIGER,
    }

    def prepare() -> Prepared:
        problem = TrainProblem(
            shape=shape,
            image_tokens=image_tokens,
            batch=batch,
            checkpointing=checkpointing,
            device=device,
            layers=layers,
            examples=preference_rows(shape, pairs, image_tokens=image_tokens, shrink=shrink),
        )
        _cached.clear()  # each trainer builds a model of its own
        return prepared_steps(problem)

    return Group(
        part="step",
        op="train_step",
        shape={
            "model": shape.name,
            "image": image_tokens,
            "pairs": pairs,
            "batch": batch,
            "checkpointing": "on" if checkpointing else "off",
            "layers": layers,
        },
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        implementations=implementations[layers],
        prepare=prepare,
        own_process=layers == "liger",
    )


def step_group(shape: Shape, prompt: int, response: int, device: torch.device, objective: str = "mdpo") -> Group:
    """One micro-batch: as many examples as fill a packed row on a GPU, one on a CPU. mdpo's is compared with all
    layouts.
    """
    terms = PRESETS[objective]
    # The image leaves some of the prompt to text; small prompts take a small image.
    image_tokens = _IMAGE_TOKENS.get(shape.name, 576) if prompt >= 650 else 64
    prompt = max(prompt, image_tokens + 16)
    row = next(row for row in rows(prompt, prompt - image_tokens, response) if row.name == objective)
    examples = max(1, _TOKENS // row.packed) if device.type == "cuda" else 1

    def prepare() -> Prepared:
        pairs = even_rows(
            shape,
            prompt,
            response,
            examples,
            image_tokens=image_tokens,
            negatives=terms.negatives,
            contrast=terms.reads_contrast,
        )
        problem = StepProblem(_model(shape, image_tokens, device), pairs, terms)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            truth = separate_passes(problem)()

        def bind(function: Callable[[StepProblem], Step]) -> Bound:
            step = function(problem)

            def run() -> Outputs:
                with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                    return step()

            return Bound(run=run, errors=lambda outputs: _differences(outputs, truth))

        return Prepared(floor=None, bind=bind)

    is_mdpo = objective == "mdpo"
    promised = "promised speed-up over three passes" if is_mdpo else "promised speed-up over separate passes"
    return Group(
        part="step",
        op="step" if is_mdpo else "objective",
        shape={
            "model": shape.name,
            **({} if is_mdpo else {"objective": objective}),
            "P": prompt,
            "R": response,
            "B": examples,
        },
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        implementations=STEP if is_mdpo else OBJECTIVE,
        prepare=prepare,
        extra={promised: row.unshared / row.packed, "packed tokens": examples * row.packed},
    )


def separate_group(shape: Shape, prompt: int, response: int, device: torch.device, pairs: int = 2) -> Group:
    """One micro-batch of a model whose branches are read separately. The plain passes stand as the floor as well, which
    is timed in turns with ours: the two differ by less than a machine drifts."""
    image_tokens = 64

    def prepare() -> Prepared:
        examples = even_rows(shape, prompt, response, pairs, image_tokens=image_tokens)
        problem = SeparateProblem(build_gemma(shape, image_tokens, device), examples)
        plain = plain_passes(problem)
        truth = plain()

        def bind(function: Callable[[SeparateProblem], Step]) -> Bound:
            return Bound(run=function(problem), errors=lambda outputs: _differences(outputs, truth))

        return Prepared(floor=Floor(name=PLAIN, run=plain), bind=bind)

    return Group(
        part="step",
        op="separate",
        shape={"model": shape.name, "P": prompt, "R": response, "B": pairs},
        dtype=torch.float32,
        implementations=SEPARATE,
        prepare=prepare,
    )


def _model(shape: Shape, image_tokens: int, device: torch.device) -> PeftModel:
    key = (shape.name, image_tokens, device)
    if key not in _cached:
        _cached.clear()  # one model fits at a time
        _cached[key] = build(shape, image_tokens, device)
    return _cached[key]


def _differences(outputs: Outputs, truth: Outputs) -> dict[str, float]:
    """Against separate passes: the log-probs' largest difference, the gradient's relative one."""
    (policy, gradient), (expected, reference) = outputs, truth
    return {
        "logps": (policy - expected).abs().max().item(),
        "gradient": ((gradient - reference).norm() / reference.norm()).item(),
    }
