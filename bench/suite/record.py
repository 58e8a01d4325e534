"""The record of a measurement, the only place a number comes from; bench/suite/shelf.py says where records lie."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.commit import known_commit
from mdpo.outputs import write_text

if TYPE_CHECKING:  # what reads records has no need of it, and it takes seconds
    import torch

Role = Literal["ours", "torch", "peer"]
Status = Literal["ok", "skipped", "out of memory", "failed"]
_PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "peft",
    "accelerate",
    "flash-attn",
    "liger-kernel",
    "trl",
    "cut-cross-entropy",
    "bitsandbytes",
    "numpy",
)


@dataclass(kw_only=True, slots=True)
class Record:
    """One measurement. Times in milliseconds, memory in bytes, rates per second; None is not measured."""

    part: str
    op: str
    shape: dict[str, int | str]
    dtype: str
    implementation: str
    role: Role
    status: Status
    reason: str = ""
    """Why there is no measurement, where status is not ok."""
    note: str = ""
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    min_ms: float | None = None
    runs: int = 0
    peak_bytes: int | None = None
    """Most bytes alive at once during one run, above the inputs; the outputs count."""
    memory_method: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    """Errors against float64, by name."""
    floor: str = ""
    """What the floor is; its time was measured in the same run."""
    floor_ms: float | None = None
    ratio_to_floor: float | None = None
    tflops_per_s: float | None = None
    gbytes_per_s: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    """What this implementation gets through a second, by name; "MFU" is a share of the device's peak."""
    extra: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def case(self) -> str:
        """The shape as one word, as `Group.case`."""
        return case_of(self.shape)

    @property
    def measurement(self) -> tuple[str, str, str, str, str]:
        """What was measured, whenever and with whatever."""
        return self.part, self.op, self.case, self.dtype, self.implementation


def tell(found: Mapping[str, Any], out: Path | None) -> None:
    """Prints what a bench of its own has found as one JSON object. out: where it goes as well."""
    text = json.dumps(found, indent=1)
    print(text)
    if out is not None:
        write_text(out, text + "\n")


def case_of(shape: dict[str, int | str]) -> str:
    """A shape as one word: head=llava-1.5-7b,N=4096."""
    return ",".join(f"{name}={value}" for name, value in shape.items())


def environment(device: "torch.device") -> dict[str, Any]:
    """What a measurement depends on: device, versions, commit. The same dict for a whole run.

    Raises UnknownCommit where nothing says which code this is.
    """
    import torch

    return {
        "device": _device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": _versions(),
        "commit": known_commit(),
    }


def same_conditions(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a record taken under `one` need not be taken again under `other`."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _device_name(device: "torch.device") -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    import torch

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    # The installed package says nothing of a local build's suffix, the module does.
    found["torch"] = str(torch.__version__)
    return found
