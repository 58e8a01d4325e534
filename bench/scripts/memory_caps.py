"""The memory caps, shown: `python -m bench.scripts.memory_caps [CASE ...] --out DIR` on a GPU. Not measured yet.

A case is a model of real shape with random weights, in bf16 or 4 bits, and a cap on PyTorch's allocator
(`torch.cuda.set_per_process_memory_fraction`), in a process of its own. One optimizer step of 32 pairs, response
lengths log-normal (median 120, at most 400, the longest of both at once among them), LoRA r = 64 on all linear layers
of the language model, fp32 adapters, nothing paged or offloaded, with the settings that `mdpo plan` chooses for the
cap. Printed and recorded: the plan's figure and the allocator's, and the second step's seconds; for `llava-24GiB` also
with every layer checkpointed. `--rehearse` takes a small case through the same on a CPU, where live tensors are counted
and nothing is capped.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Before PyTorch reads it: packed rows differ in length, and blocks of a fixed size would leave holes.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch
from peft import PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn

from bench.commit import require_commit
from bench.inputs.lengths import LONGEST, RESPONSE_MEDIAN, SPREAD
from bench.inputs.models import BUNNY_3B, CPU_60M, LLAVA_7B, Shape, adapter, build, build_nf4_base, config_of
from bench.suite.record import Record, environment
from bench.suite.shelf import Shelf, require_shelf
from mdpo.memory import SHAPES, Adaptation, Plan, choose, log_normal, parse_size, read_shape
from mdpo.memory.choose import Constraints
from mdpo.memory.live import LiveMemory
from mdpo.memory.precision import Precision
from mdpo.models import LANGUAGE_LINEAR, PackedPolicy, checkpoint_first_layers, fuse_lora, language_layers
from mdpo.models.logps import unwrap
from mdpo.packing import Batch, PreferenceTokens, pack, plan

GIB = 2**30
RANK = 64
TEXT_TOKENS = 74  # of a prompt, as what bench/LOG.md predicts was computed


@dataclass(frozen=True, slots=True)
class Case:
    """shape: of the weights. known_as: to the plan; empty where the shape itself is planned for. side: of a square of
    image tokens. cap: of the allocator. pairs: of the step. shrink: divides all text lengths."""

    shape: Shape
    known_as: str
    side: int
    quantized: bool
    cap: str
    pairs: int = 32
    shrink: int = 1


CASES = {
    "llava-nf4-7.25GiB": Case(LLAVA_7B, "llava-1.5-7b", 24, True, "7.25GiB"),
    "llava-18GiB": Case(LLAVA_7B, "llava-1.5-7b", 24, False, "18GiB"),
    "llava-24GiB": Case(LLAVA_7B, "llava-1.5-7b", 24, False, "24GiB"),
    "bunny-nf4-5.25GiB": Case(BUNNY_3B, "bunny-v1.0-3b", 27, True, "5.25GiB"),
    "llava-nf4-8GiB": Case(LLAVA_7B, "llava-1.5-7b", 24, True, "8GiB"),
}
SMALL = {"small-0.5GiB": Case(CPU_60M, "", 8, False, "0.5GiB", pairs=4, shrink=8)}


def planned(case: Case, device: str = "cuda") -> tuple[Plan, list[PreferenceTokens]]:
    """The plan for the cap, and the pairs, the longest possible among them. SystemExit where nothing fits."""
    config = SHAPES[case.known_as]() if case.known_as else config_of(case.shape, case.side**2)
    shape = read_shape(config, Adaptation(rank=RANK, pattern=LANGUAGE_LINEAR))
    prompt_tokens = case.side**2 + TEXT_TOKENS // case.shrink
    lengths = log_normal(
        prompt_tokens=prompt_tokens,
        response_tokens_median=RESPONSE_MEDIAN // case.shrink,
        response_tokens_max=LONGEST // case.shrink,
        image_tokens=case.side**2,
    )
    on_gpu = device == "cuda"
    constraints = Constraints(
        precision=Precision(weight_bytes=2 if on_gpu else 4, autocast=on_gpu),
        quantized=(case.quantized,),
        optimizers=("adamw_torch_fused", "adamw_8bit"),
        token_budget=12288,
        examples_per_step=case.pairs,
        driver_bytes=0,
    )
    chosen = choose(shape, lengths, constraints, parse_size(case.cap))
    if chosen is None:
        raise SystemExit(f"the plan has nothing for {case.cap}")
    return chosen, pairs(case, prompt_tokens)


def pairs(case: Case, prompt_tokens: int) -> list[PreferenceTokens]:
    """Random tokens and images, of log-normal lengths; the first pair is the longest there can be."""
    draw = torch.Generator().manual_seed(0)
    longest = LONGEST // case.shrink
    lengths = RESPONSE_MEDIAN / case.shrink * (SPREAD * torch.randn(case.pairs, 2, generator=draw)).exp()
    responses = lengths.clamp(1, longest).int().tolist()
    responses[0] = [longest, longest]
    image_token, pixels = case.shape.text.vocab_size - 1, case.side * case.shape.patch_size
    prompt = [image_token] * case.side**2 + [7] * (prompt_tokens - case.side**2)
    found = []
    for number, (chosen, rejected) in enumerate(responses):
        image, crop = torch.randn(2, 1, 3, pixels, pixels, generator=draw)
        tokens = ([5] * chosen, [6] * rejected, {"pixel_values": image}, {"pixel_values": crop})
        found.append(PreferenceTokens(str(number), prompt, *tokens))
    return found


def step(
    policy: PackedPolicy, micro_batches: Sequence[Batch], optimizer: torch.optim.Optimizer, count: int, device: str
) -> float:
    """One optimizer step of `count` pairs; returns its seconds."""
    start = time.perf_counter()
    for packed in micro_batches:
        packed = packed.to(device, non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            output = policy(packed, torch.zeros(3, len(packed.ids), device=device), count)
        output.loss.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(slots=True)
class Usage:
    """Bytes at a step's peak, and its seconds."""

    allocated: int = 0
    reserved: int = 0
    seconds: float = 0.0


def measured(run: Callable[[], float], model: nn.Module, device: str) -> Usage:
    """The second step of two; on a CPU weights, moments and the step's live tensors."""
    run()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        seconds = run()
        return Usage(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), seconds)
    with LiveMemory() as memory:
        seconds = run()
    parameters = list(model.parameters())
    standing = sum(p.nbytes for p in parameters) + sum(8 * p.numel() for p in parameters if p.requires_grad)
    return Usage(memory.peak + standing, 0, seconds)


def measure(name: str, case: Case, out: Path | None, device: str) -> None:
    """Prints a line a setting, and writes a record of it."""
    chosen, examples = planned(case, device)
    cap = parse_size(case.cap)
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(cap / torch.cuda.get_device_properties(0).total_memory)
    model = _model(case, torch.device(device))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = len(language_layers(model))
    steps = plan([e.packed_length for e in examples], chosen.token_budget, examples_per_step=case.pairs)
    micro_batches = [pack([examples[index] for index in batch], model) for batch in steps[0]]
    for checkpointed in sorted(
        {chosen.checkpoint_layers, layers} if name == "llava-24GiB" else {chosen.checkpoint_layers}
    ):
        unwrap(model).gradient_checkpointing_enable({"use_reentrant": False})
        checkpoint_first_layers(model, checkpointed)
        optimizer = _optimizer(chosen.optimizer, trained)
        policy = PackedPolicy(model)
        record = _record(case, f"ours, {checkpointed} of {layers} layers checkpointed", device)
        record.note = f"{chosen.optimizer}, token budget {chosen.token_budget}"
        with disable_input_dtype_casting(model):
            try:
                run = partial(step, policy, micro_batches, optimizer, case.pairs, device)
                usage = measured(run, model, device)
                record.median_ms, record.runs = usage.seconds * 1e3, 1
                record.rates = {
                    "GiB planned": chosen.footprint.allocated / GIB,
                    "GiB allocated": usage.allocated / GIB,
                    "GiB reserved": usage.reserved / GIB,
                    "pairs/s": case.pairs / usage.seconds,
                }
            except torch.OutOfMemoryError as error:
                record.status, record.reason = "out of memory", str(error).splitlines()[0]
        _say(name, record, out)


def _model(case: Case, device: torch.device) -> PeftModel:
    if case.quantized:
        base = build_nf4_base(case.shape, case.side**2, device)
        return get_peft_model(base, fuse_lora(adapter(RANK))).train()  # type: ignore[return-value]
    return build(case.shape, case.side**2, device, lora_r=RANK)


def _optimizer(name: str, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    if name == "adamw_8bit":
        import bitsandbytes as bnb  # pyright: ignore[reportMissingImports]  (an optional package)

        return bnb.optim.AdamW8bit(trained)
    return torch.optim.AdamW(trained, fused=True)


def _record(case: Case, implementation: str, device: str) -> Record:
    return Record(
        part="memory",
        op="cap of a plan",
        dtype="bfloat16" if device == "cuda" else "float32",
        implementation=implementation,
        role="ours",
        status="ok",
        environment=environment(torch.device(device)),
        shape={"model": case.shape.name, "weights": "nf4" if case.quantized else "whole", "cap": case.cap},
    )


def _say(name: str, record: Record, out: Path | None) -> None:
    numbers = (
        ", ".join(f"{value:.2f} {what}" for what, value in record.rates.items()) or f"{record.status}, {record.reason}"
    )
    print(f"{name}: {record.implementation}, {record.note}; {numbers}", flush=True)
    if out is not None:
        Shelf(out).add(record)


def main(arguments: list[str] | None = None) -> int:
    """1 if a case failed; what lacks bitsandbytes is skipped by name."""
    parser = argparse.ArgumentParser(
        prog="bench.scripts.memory_caps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--plan-only", action="store_true", help="print the plans; needs no GPU")
    parser.add_argument("--out", type=Path, help="folder of the records")
    parser.add_argument("--rehearse", action="store_true", help="a small case on a CPU")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # this command's own child
    options = parser.parse_args(arguments)
    cases, device = (SMALL, "cpu") if options.rehearse else (CASES, "cuda")
    unknown = set(options.cases) - set(cases)
    if unknown:
        parser.error(f"unknown case {min(unknown)}; choose from {', '.join(cases)}")
    if options.plan_only:
        for name in options.cases or cases:
            chosen, _ = planned(cases[name], device)
            print(f"{name}: {chosen.settings}, planned {chosen.footprint.allocated / GIB:.2f} GiB")
        return 0
    require_commit(parser)
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("needs a CUDA device, and there is none; --plan-only prints the plans")
    if options.out is not None:
        require_shelf(parser, options.out, ["memory"])
    if options.alone:
        return _alone(options.cases[0], cases[options.cases[0]], options.out, device)
    failed = 0
    for name in options.cases or cases:
        child = [sys.executable, "-m", "bench.scripts.memory_caps", name, "--alone"]
        child += ["--out", str(options.out)] if options.out is not None else []
        failed |= subprocess.run([*child, *(["--rehearse"] if options.rehearse else [])], check=False).returncode
    return int(bool(failed))


def _alone(name: str, case: Case, out: Path | None, device: str) -> int:
    try:
        measure(name, case, out, device)
    except ImportError as error:
        record = _record(case, "ours", device)
        record.status, record.reason = "skipped", str(error)
        _say(name, record, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
