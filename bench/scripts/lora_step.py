"""A whole training step with fused LoRA layers against the same step with peft's, on a CPU:
`python -m bench.scripts.lora_step`.

LLaVA-1.5-7B in miniature: its widths, its rank and the lengths of its rows divided by eight, as is the rank's share of
a layer's flops and, with the lengths, attention's; four decoder layers, and a vocabulary of which the head's share
stays. One step is forward and backward of 32 pairs, the reference cached, in one micro-batch, and the optimizer, by
MDPOTrainer; both trainers live in one process and take steps in turn, so that both see the same machine. float32, the
CPU's own; a LoRA's time goes by bytes and the base's by flops, and --hidden says which of them a step has more of: the
narrower, the more bytes.

Wall-clock and processor time: with one thread the second is the better one where other programs share the cores.
"""

import argparse
import os
import time
from pathlib import Path
from statistics import median

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from bench.commit import require_commit
from bench.inputs.models import Shape
from bench.inputs.preference_rows import preference_rows
from bench.suite.implementations.train_problem import TrainProblem, TrainStep
from bench.suite.implementations.train_step import ours
from bench.suite.record import environment, tell

CPU = torch.device("cpu")
IMAGE_TOKENS, SHRINK = 64, 8


def shape_of(hidden: int, layers: int) -> Shape:
    """LLaVA-1.5-7B's proportions at another width."""
    text = transformers.LlamaConfig(
        vocab_size=hidden,
        hidden_size=hidden,
        intermediate_size=hidden * 11008 // 4096,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 128),
        max_position_embeddings=4096,
    )
    tower = {"hidden_size": hidden // 4, "intermediate_size": hidden, "num_hidden_layers": 3, "num_attention_heads": 2}
    return Shape(f"llava-1.5 of width {hidden}", text, transformers.CLIPVisionConfig, tower, 14)


def miniature(hidden: int, layers: int, pairs: int, checkpointing: bool) -> TrainProblem:
    """What both take a step of."""
    shape = shape_of(hidden, layers)
    return TrainProblem(
        shape=shape,
        image_tokens=IMAGE_TOKENS,
        batch=pairs,
        checkpointing=checkpointing,
        device=CPU,
        examples=preference_rows(shape, pairs, image_tokens=IMAGE_TOKENS, shrink=SHRINK),
        lora_r=max(1, 64 * hidden // 4096),
    )


def timed(steps: dict[str, TrainStep], turns: int) -> dict[str, float]:
    """Medians in milliseconds over turns of one step each, and the medians of the ratios within a turn."""
    samples: dict[str, list[float]] = {}
    for turn in range(-1, turns):  # the first is not counted
        for name, step in steps.items():
            wall, processor = time.perf_counter(), time.process_time()
            step.run()
            found = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
            for clock, seconds in found.items() if turn >= 0 else ():
                samples.setdefault(f"{name}, {clock} ms", []).append(1e3 * seconds)
    ratios = {
        f"speed, {clock} time": median(
            theirs / ours
            for ours, theirs in zip(samples[f"fused, {clock} ms"], samples[f"peft, {clock} ms"], strict=True)
        )
        for clock in ("wall", "processor")
    }
    return ratios | {name: median(each) for name, each in samples.items()}


def profiled(step: TrainStep, rows: int) -> str:
    """The operators of a step, those that take longest by themselves first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step.run()
    return profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=40)


def main(arguments: list[str] | None = None) -> None:
    """Print the medians and the ratios, peft's time over the fused, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of 128 (default: 512)")
    parser.add_argument("--layers", type=int, default=4, help="decoder layers (default: 4)")
    parser.add_argument("--pairs", type=int, default=32, help="of the step (default: 32)")
    parser.add_argument("--checkpointing", action="store_true", help="of every layer")
    parser.add_argument("--turns", type=int, default=7, help="steps of each (default: 7)")
    parser.add_argument(
        "--profile", type=int, default=0, metavar="ROWS", help="print where each step's time goes as well"
    )
    parser.add_argument("--out", type=Path, help="where the JSON goes as well")
    options = parser.parse_args(arguments)
    require_commit(parser)
    problem = miniature(options.hidden, options.layers, options.pairs, options.checkpointing)
    steps = {"fused": ours(problem, cached=True), "peft": ours(problem, cached=True, fused_lora=False)}
    found = timed(steps, options.turns)
    if options.profile:
        for name, step in steps.items():
            print(f"{name}\n{profiled(step, options.profile)}")
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "profile")}
    settings |= {"rank": problem.lora_r, "tokens": steps["fused"].tokens}
    settings |= {"load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}
    tell(settings | found | {"environment": environment(CPU)}, options.out)


if __name__ == "__main__":
    main()
