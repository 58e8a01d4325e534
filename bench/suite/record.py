"""The record: one JSON file per measurement, the only place a number comes from."""

import dataclasses
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

SCHEMA = 1
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
    role: str
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
    schema: int = SCHEMA

    @property
    def case(self) -> str:
        """The shape as one word, as `Group.case`."""
        return case_of(self.shape)

    def path(self, folder: Path) -> Path:
        """Where this record lies under `folder`."""
        return record_path(folder, self.part, self.op, self.case, self.dtype, self.implementation)

    def write(self, folder: Path) -> Path:
        """Write it under `folder`; a run that dies leaves whole records only."""
        path = self.path(folder)
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        return path


def tell(found: Mapping[str, Any], out: Path | None) -> None:
    """Prints what a bench of its own has found as one JSON object. out: where it goes as well."""
    text = json.dumps(found, indent=1)
    print(text)
    if out is not None:
        write_text(out, text + "\n")


def case_of(shape: dict[str, int | str]) -> str:
    """A shape as one word: head=llava-1.5-7b,N=4096."""
    return ",".join(f"{name}={value}" for name, value in shape.items())


def record_path(folder: Path, part: str, op: str, case: str, dtype: str, implementation: str) -> Path:
    """folder/part/op/case,dtype/implementation.json"""
    safe = implementation.replace("/", "-").replace(" ", "_")
    return folder / part / op / f"{case},{dtype}" / f"{safe}.json"


def read_records(folder: Path) -> list[Record]:
    """Every record under `folder`, in a fixed order. ValueError if one has another schema or cannot be read."""
    records = []
    for path in sorted(folder.rglob("*.json")):
        records.append(read_record(path))
    return records


def read_record(path: Path) -> Record:
    """One record. ValueError naming the file if it is none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); delete it and measure again") from error
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        found = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(f"{path}: schema {found}, expected {SCHEMA}; keep records in a folder of their own")
    return Record(**fields)


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
