"""The first contact with a device: `python -m bench.session.probe --out DIR`, a record a check.

Memory, a matrix product, a copy, one of our Triton kernels, the packed attention forward and backward, and whether the
allocator's expandable segments work, which decides whether the stages to come use them. What fails is said and the next
check made: a session is worth having without any one of them but a device.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from bench.commit import require_commit
from bench.session.runner import ALLOCATOR
from bench.suite.record import Record, environment
from bench.suite.shelf import Shelf
from mdpo_kernels import Segments, reference, token_logps, varlen_attention

GIB = 2**30
_ALLOCATE = "import torch; [torch.empty(size << 28, dtype=torch.uint8, device='cuda').fill_(1) for size in (4, 5, 6)]"


class Found(NamedTuple):
    """What a check saw, in words and in numbers."""

    text: str
    rates: dict[str, float]


def device_check(device: torch.device) -> Found:
    if device.type != "cuda":
        return Found(f"{os.cpu_count()} processors, no GPU asked for", {})
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    name, version = torch.cuda.get_device_name(device), ".".join(map(str, torch.cuda.get_device_capability(device)))
    sizes = {"GiB": total / GIB, "GiB free": free / GIB, "multiprocessors": properties.multi_processor_count}
    return Found(f"{name}, capability {version}, CUDA {torch.version.cuda}", sizes)


def memory_check(device: torch.device) -> Found:
    """1 GiB written and read back; on a CPU a sixteenth of it."""
    size = GIB if device.type == "cuda" else GIB // 16
    whole = torch.full((size // 4,), 3, dtype=torch.int32, device=device)
    assert int(whole.sum(dtype=torch.int64)) == 3 * (size // 4)
    return Found(f"{size >> 20} MiB written and read", {})


def product_check(device: torch.device) -> Found:
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = _seconds(lambda: left @ right, device)
    return Found(
        f"{size} × {size} × {size}, {str(dtype).removeprefix('torch.')}", {"TFLOP/s": 2 * size**3 / seconds / 1e12}
    )


def copy_check(device: torch.device) -> Found:
    source = torch.ones((4 * GIB if device.type == "cuda" else GIB // 16) // 4, device=device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), device)
    return Found("bytes read and written", {"GB/s": 2 * source.nbytes / seconds / 1e9})


def triton_check(device: torch.device) -> Found:
    """`token_logps` of ours against its plain twin, compiled here: a compiler, a launcher and a driver that agree."""
    rows = 64 if device.type == "cuda" else 4  # the interpreter takes its time
    logits = torch.randn(rows, 1000, device=device)
    targets = torch.randint(1000, (rows,), device=device)
    started = time.perf_counter()
    found = token_logps(logits, targets)
    seconds = time.perf_counter() - started
    torch.testing.assert_close(found, reference.token_logps(logits, targets), atol=1e-5, rtol=1e-5)
    return Found("token_logps equals its plain twin", {"seconds to the first result": seconds})


def attention_check(device: torch.device) -> Found:
    """The packed attention, forward and backward, as a bfloat16 model calls it, against the plain twin."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    segments = Segments.build([(0, 96), (96, 128), (128, 224)], [[(0, 96)], [(0, 64), (96, 128)], [(128, 224)]])
    segments = segments.to(device)
    query, key, value = (torch.randn(224, 4, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    gradients = []
    for function in (varlen_attention, reference.varlen_attention):
        out = function(query, key, value, segments)
        gradients.append([out, *torch.autograd.grad(out.float().square().sum(), (query, key, value))])
    error = max(
        ((ours - theirs).float().norm() / theirs.float().norm()).item() for ours, theirs in zip(*gradients, strict=True)
    )
    assert error < (3e-2 if dtype == torch.bfloat16 else 1e-4), f"{error:.1e} beside its plain twin"
    return Found("packed attention, forward and backward, equals its plain twin", {"relative error": error})


def allocator_check(device: torch.device) -> Found:
    """In a process of its own, because the setting is read once."""
    if device.type != "cuda":
        return Found("a CPU has no such allocator", {})
    settings = {**os.environ, "PYTORCH_ALLOC_CONF": ALLOCATOR}
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ALLOCATE], env=settings, capture_output=True, text=True, timeout=45
    )
    if child.returncode:
        raise RuntimeError((child.stderr.strip().splitlines() or [f"exit {child.returncode}"])[-1])
    return Found(f"{ALLOCATOR} works", {})


CHECKS: dict[str, Callable[[torch.device], Found]] = {
    "device": device_check,
    "memory": memory_check,
    "matrix product": product_check,
    "copy": copy_check,
    "triton kernel": triton_check,
    "attention": attention_check,
    "allocator": allocator_check,
}


def _seconds(run: Callable[[], object], device: torch.device, count: int = 5) -> float:
    """Of one run, after one that is not counted."""
    run()
    _wait(device)
    started = time.perf_counter()
    for _ in range(count):
        run()
    _wait(device)
    return (time.perf_counter() - started) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check(name: str, device: torch.device, conditions: dict) -> Record:
    """One check's record; what it raises is the reason."""
    record = Record(
        part="session",
        op="probe",
        shape={"on": "GPU" if device.type == "cuda" else "CPU-rehearsal"},
        dtype="all",
        implementation=name,
        role="ours",
        status="ok",
        environment=conditions,
    )
    started = time.perf_counter()
    try:
        record.note, found = CHECKS[name](device)
        record.rates = {"seconds": time.perf_counter() - started, **found}
    except Exception as error:  # whatever a strange machine comes up with
        record.status, record.reason = "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        record.rates = {"seconds": time.perf_counter() - started}
    return record


def main(arguments: list[str] | None = None) -> int:
    """0 if every check was passed, 1 if one was not, 3 if there is no device."""
    parser = argparse.ArgumentParser(
        prog="bench.session.probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the records; device.json goes beside it")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    args = parser.parse_args(arguments)
    require_commit(parser)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("device: failed: PyTorch sees no CUDA device")
        return 3
    conditions = environment(device)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out.parent / "device.json").write_text(json.dumps(conditions, indent=1) + "\n", encoding="utf-8")
    failed = False
    for name in CHECKS:
        record = check(name, device, conditions)
        Shelf(args.out).add(record)
        failed |= record.status == "failed"
        numbers = ", ".join(f"{value:.3g} {unit}" for unit, value in record.rates.items())
        print(f"{name}: {record.status}: {record.note or record.reason} ({numbers})", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
