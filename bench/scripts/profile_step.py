"""Where the time of our step goes: `python -m bench.scripts.profile_step --out DIR`, a table and records for
`bench.render`.

One optimizer step of MDPOTrainer, the reference cached, at the shapes of the suite's part `step`, under torch.profiler:
milliseconds of each component forward and backward (bench/suite/components.py), in shares that sum to the whole step.
On a GPU what no kernel fills of the unprofiled step's time is "GPU idle"; on a CPU the profiled step is the whole, and
what no component claims is "other".
"""

import argparse
import gc
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bench.commit import require_commit
from bench.inputs.models import BUNNY_3B, CPU_60M, LLAVA_7B, TINY
from bench.inputs.preference_rows import preference_rows
from bench.suite.components import STEP, milliseconds, scopes
from bench.suite.implementations.train_problem import TrainProblem, TrainStep
from bench.suite.implementations.train_step import ours
from bench.suite.record import Record, environment
from bench.suite.shelf import Shelf, require_shelf
from bench.suite.timing import time_box, time_callables

IDLE = "GPU idle"


def problems(device: torch.device, tiny: bool = False) -> list[TrainProblem]:
    """Those of the part `step`: real shapes on a GPU, with and without checkpointing; a small one on a CPU."""
    if device.type == "cuda":
        shapes, batch, shrink = ((LLAVA_7B, 576), (BUNNY_3B, 729)), 4, 1
    else:
        shapes, batch, shrink = ((TINY if tiny else CPU_60M, 144),), 2, 4
    return [
        TrainProblem(
            shape=shape,
            image_tokens=image,
            batch=batch,
            checkpointing=checkpointing,
            device=device,
            lora_r=4 if tiny else 64,  # none of the widths
            # One micro-batch shows what a step of many does, but for the optimizer: its share is of so few pairs.
            examples=preference_rows(shape, 2 * batch, image_tokens=image, shrink=shrink),
        )
        for shape, image in shapes
        for checkpointing in (False, True)
    ]


def profiled(step: TrainStep, device: torch.device) -> dict[str, tuple[float, float]]:
    """(forward, backward) milliseconds by component, the whole step's time among them."""
    wall = time_callables([step.run], device, seconds=0.0)[0].median_ms
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with scopes(step.model):
        step.run()
        with profile(activities=activities, record_shapes=True) as profiler:
            with record_function(STEP):
                step.run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    lora: Any = step.model.peft_config["default"]
    found = milliseconds(profiler.events() or [], device.type, step.model.config.text_config.vocab_size, lora.r)
    if device.type == "cuda":
        found[IDLE] = (max(0.0, wall - sum(map(sum, found.values()))), 0.0)
    return found


def records(problem: TrainProblem, found: dict[str, tuple[float, float]], conditions: dict) -> list[Record]:
    """One record a component: its milliseconds, and its share of the step."""
    whole = sum(map(sum, found.values()))
    base = sum(sum(found[name]) for name in ("projections", "MLP")) / whole
    pairs = len(problem.examples)
    note = (
        f"the frozen base's layers, projections and MLP, are {base:.0%} of the step: at twice their rate, FP8's limit, "
        f"the step would be {1 / (1 - base / 2):.2f} × as fast"
    )
    record = Record(
        part="profile",
        op="profile",
        dtype="bfloat16" if problem.autocast else "float32",
        implementation="",
        role="ours",
        shape={
            "model": problem.shape.name,
            "image": problem.image_tokens,
            "pairs": pairs,
            "batch": problem.batch,
            "checkpointing": "on" if problem.checkpointing else "off",
        },
        status="ok",
        runs=1,
        environment=conditions,
    )
    return [
        replace(
            record,
            implementation=name,
            median_ms=sum(times),
            note=note if name == "MLP" else "",
            rates={"forward, ms": times[0], "backward, ms": times[1], "share, %": 100 * sum(times) / whole},
        )
        for name, times in found.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench.scripts.profile_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the records, that of bench.suite")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="on a CPU: a size that shows no more than that it runs")
    parser.add_argument("--minutes", type=time_box, default=math.inf, help="after them no further profile is begun")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: PyTorch sees no CUDA device; give --device cpu")
    require_commit(parser)
    require_shelf(parser, args.out, ["profile"])
    device = torch.device(args.device)
    conditions = environment(device)
    deadline = time.monotonic() + 60 * args.minutes
    for problem in problems(device, args.tiny):
        if time.monotonic() > deadline:
            print(f"{args.minutes:g} minutes are up; not profiled: {problem.shape.name} and what comes after it")
            break
        try:
            found = profiled(ours(problem, cached=True), device)
        except torch.OutOfMemoryError as error:
            print(
                f"{problem.shape.name}, checkpointing {problem.checkpointing}: {str(error).splitlines()[0]}", flush=True
            )
            continue
        finally:  # a trainer is a circle of references, and the next one needs its room
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        written = records(problem, found, conditions)
        print(f"{written[0].case}: forward, backward, share")
        for record in sorted(written, key=lambda r: -(r.median_ms or 0)):
            forward, backward, share = record.rates.values()
            print(f"  {record.implementation:<12} {forward:9.1f} ms {backward:9.1f} ms {share:5.1f} %")
            Shelf(args.out).add(record)
        print(f"  {next(record.note for record in written if record.note)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
