"""How long, and how much memory: the device is waited for inside what is timed."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mdpo.memory.live import LiveMemory

_L2_BYTES = 256 * 2**20  # larger than any L2 cache, so that one run does not find its inputs warm from the last


def time_box(text: str) -> float:
    """A command line's minutes or seconds, at least 0. Raises ArgumentTypeError, of which argparse makes one line."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not found >= 0:  # NaN is not, and no clock would ever reach it
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Milliseconds of one call; the spread is from the 20th to the 80th percentile."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    min_ms: float
    runs: int


def time_callables(
    runs: Sequence[Callable[[], object]], device: torch.device, *, seconds: float, warmup: int = 1, max_runs: int = 100
) -> list[Timing]:
    """Time the callables in turns for about `seconds` in all, three turns at least, after `warmup` turns not counted.

    In turns, because a machine that others use drifts: what is compared has to see the same machine. On a GPU a run is
    what lies between two events with the device idle before the first, so launches that the device has to wait for
    count; its L2 cache is overwritten before. On a CPU it is the wall clock.
    """
    for _ in range(warmup):
        for run in runs:
            run()
    samplers = [_cuda_sampler(run, device) if device.type == "cuda" else _cpu_sampler(run) for run in runs]
    samples: list[list[float]] = []
    deadline = time.perf_counter() + seconds
    while len(samples) < 3 or (time.perf_counter() < deadline and len(samples) < max_runs):
        samples.append([sample() for sample in samplers])
    return [_timing(column) for column in zip(*samples, strict=True)]


def _timing(samples: Sequence[float]) -> Timing:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(
        median_ms=statistics.median(ordered),
        p20_ms=ordered[round(0.2 * last)],
        p80_ms=ordered[round(0.8 * last)],
        min_ms=ordered[0],
        runs=len(ordered),
    )


def _cpu_sampler(run: Callable[[], object]) -> Callable[[], float]:
    def sample() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    return sample


def _cuda_sampler(run: Callable[[], object], device: torch.device) -> Callable[[], float]:
    cache = torch.empty(_L2_BYTES, dtype=torch.int8, device=device)

    def sample() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        cache.zero_()
        torch.cuda.synchronize(device)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return sample


def peak_memory(run: Callable[[], object], device: torch.device, *, countable: bool = True) -> tuple[int | None, str]:
    """(bytes, how they were found): the most that was alive at once during one run above what was alive before it.

    On a GPU the caching allocator counts, everything included. On a CPU the tensors that PyTorch's dispatcher creates
    are counted: what a kernel allocates for itself is not seen, and for an implementation that is not `countable`
    nothing is.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, "CUDA caching allocator"
    if not countable:
        return None, "not seen by PyTorch's dispatcher"
    with LiveMemory() as memory:
        run()
    return memory.peak, "live tensors counted at PyTorch's dispatcher"
