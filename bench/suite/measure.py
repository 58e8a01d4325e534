"""Groups measured one after the other: what is done already is skipped, what fails is a result too."""

import gc
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.suite.flops import peak_flops
from bench.suite.group import Bound, Floor, Group, Implementation, Prepared
from bench.suite.parts import PARTS
from bench.suite.record import Record, environment, same_conditions
from bench.suite.shelf import Shelf
from bench.suite.timing import peak_memory, time_callables


def measure_group(
    group: Group,
    device: torch.device,
    folder: Path,
    conditions: dict[str, Any],
    seconds: float,
    deadline: float = math.inf,
) -> list[Record]:
    """Measure what `folder` does not have yet of one group; the new records, which are in `folder` as well.

    deadline: of time.monotonic(); no measurement is begun after it.
    """
    prepared: Prepared | None = None
    records = []
    shelf = Shelf(folder)
    for implementation in group.implementations:
        record = _new_record(group, implementation, conditions)
        if _is_done(record, shelf):
            continue
        if time.monotonic() > deadline:
            break
        function = _load(implementation, device, record)
        if function is not None:
            prepared = prepared or group.prepare()
            _measure(record, group, implementation, function, prepared, device, seconds)
            _release(device)
        shelf.add(record)
        records.append(record)
        print(f"  {_line(record)}", flush=True)
    return records


def run_part(
    name: str,
    device: torch.device,
    folder: Path,
    minutes: float,
    seconds: float,
    only: str = "",
    alone: bool = False,
    tiny: bool = False,
) -> list[Record]:
    """Measure one part within `minutes`; `only` keeps the groups whose operation or case contains it; `alone` measures
    in this process what would get one of its own; `tiny` takes sizes that show no more than that the part runs."""
    conditions = environment(device)
    deadline = time.monotonic() + 60 * minutes
    chosen = _chosen(name, device, only, tiny)
    records: list[Record] = []
    for index, group in enumerate(chosen):
        if time.monotonic() > deadline:
            print(f"{name}: {minutes:g} minutes are up, {len(chosen) - index} groups left; the same command goes on")
            break
        print(f"{name} {index + 1}/{len(chosen)}: {group.op} {group.case}", flush=True)
        if group.own_process and not alone and _has_work(group, device, folder, conditions):
            left = (deadline - time.monotonic()) / 60
            records += _measure_apart(group, device, folder, conditions, seconds, left, tiny)
        else:
            records += measure_group(group, device, folder, conditions, seconds, deadline)
        _release(device)
    return records


def listed(name: str, device: torch.device, only: str = "", tiny: bool = False) -> list[str]:
    """What `run_part` would measure: a line a group, with the implementations that are for this device; their names
    have commas in them."""
    lines = []
    for group in _chosen(name, device, only, tiny):
        names = "; ".join(each.name for each in group.implementations if device.type in each.devices)
        lines.append(f"{name}: {group.op} {group.case}, {_name(group.dtype)}: {names or f'none on {device.type}'}")
    return lines


def _chosen(name: str, device: torch.device, only: str, tiny: bool) -> list[Group]:
    return [group for group in PARTS[name].groups(device, tiny) if only in f"{group.op} {group.case}"]


def _measure_apart(
    group: Group,
    device: torch.device,
    folder: Path,
    conditions: dict[str, Any],
    seconds: float,
    minutes: float,
    tiny: bool,
) -> list[Record]:
    """`measure_group` in a process that ends with it; the group's records, old and new."""
    command = [sys.executable, "-m", "bench.suite", group.part, "--out", folder, "--device", device.type, "--alone"]
    limits = ["--only", f"{group.op} {group.case}", "--minutes", str(minutes), "--seconds", str(seconds)]
    limits += ["--tiny"] if tiny else []
    # It lists our failures too; they are read from the records.
    subprocess.run([str(each) for each in (*command, *limits)], check=False)
    found = [Shelf(folder).find(_new_record(group, each, conditions)) for each in group.implementations]
    return [record for record in found if record is not None]


def _has_work(group: Group, device: torch.device, folder: Path, conditions: dict[str, Any]) -> bool:
    """Whether anything of it is left that can be loaded: else no process need be started to say so."""
    shelf = Shelf(folder)
    return any(
        not _is_done(record := _new_record(group, each, conditions), shelf) and _load(each, device, record) is not None
        for each in group.implementations
    )


def _is_done(record: Record, shelf: Shelf) -> bool:
    """Whether what it would say is there, measured under the same conditions."""
    found = shelf.find(record)
    return (
        found is not None
        and found.status in ("ok", "out of memory")
        and same_conditions(found.environment, record.environment)
    )


def _load(implementation: Implementation, device: torch.device, record: Record) -> Callable[..., Any] | None:
    """The function, or None with the reason in the record."""
    if device.type not in implementation.devices:
        record.status, record.reason = "skipped", f"needs {' or '.join(implementation.devices)}"
        return None
    try:
        return implementation.load()
    except ImportError as error:
        record.status, record.reason = "skipped", str(error)
        return None


def _new_record(group: Group, implementation: Implementation, conditions: dict[str, Any]) -> Record:
    return Record(
        part=group.part,
        op=group.op,
        shape=group.shape,
        dtype=_name(group.dtype),
        implementation=implementation.name,
        role=implementation.role,
        status="ok",
        note=implementation.note,
        extra=group.extra,
        environment=conditions,
    )


def _measure(
    record: Record,
    group: Group,
    implementation: Implementation,
    function: Callable[..., Any],
    prepared: Prepared,
    device: torch.device,
    seconds: float,
) -> None:
    try:
        bound = prepared.bind(function)
        record.note = "; ".join(text for text in (record.note, bound.remark) if text)
        outputs = bound.run()
        record.errors = bound.errors(outputs) if implementation.comparable else {}
        del outputs
        record.peak_bytes, record.memory_method = peak_memory(bound.run, device, countable=implementation.countable)
        _time(record, group, bound, prepared.floor, device, seconds)
    except torch.OutOfMemoryError as error:
        record.status, record.reason = "out of memory", str(error).splitlines()[0]
    except Exception as error:  # a failure is a result of the bench too, and must not end it
        traceback.print_exc()
        record.status, record.reason = "failed", f"{type(error).__name__}: {error}"[:500]


def _time(
    record: Record, group: Group, bound: Bound, floor: Floor | None, device: torch.device, seconds: float
) -> None:
    if floor is not None:
        floor.run()
    # Both have run by now: what has been measured for its memory needs no warm-up.
    runs = [bound.run] if floor is None else [bound.run, floor.run]
    timing, *floors = time_callables(runs, device, seconds=seconds, warmup=0)
    record.median_ms, record.p20_ms, record.p80_ms = timing.median_ms, timing.p20_ms, timing.p80_ms
    record.min_ms, record.runs = timing.min_ms, timing.runs
    if floor is not None:
        record.floor, record.floor_ms = floor.name, floor.factor * floors[0].median_ms
        record.ratio_to_floor = timing.median_ms / record.floor_ms
    if group.flops:
        record.tflops_per_s = group.flops / timing.median_ms / 1e9
    if group.bytes:
        record.gbytes_per_s = group.bytes / timing.median_ms / 1e6
    record.rates = _rates(bound.amounts, timing.median_ms / 1e3, device) | bound.facts


def _rates(amounts: dict[str, float], seconds: float, device: torch.device) -> dict[str, float]:
    rates = {f"{name}/s": amount / seconds for name, amount in amounts.items() if name != "model flops"}
    peak = peak_flops(device)
    if "model flops" in amounts and peak is not None:
        rates["MFU"] = amounts["model flops"] / seconds / peak
    return rates


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _line(record: Record) -> str:
    if record.status != "ok" or record.median_ms is None:
        return f"{record.implementation:<22} {record.status}: {record.reason}"
    ratio = "" if record.ratio_to_floor is None else f"  {record.ratio_to_floor:5.2f} x floor"
    memory = "" if record.peak_bytes is None else f"  {record.peak_bytes / 2**20:9.1f} MiB"
    rates = "".join(f"  {value:.3g} {name}" for name, value in record.rates.items())
    return f"{record.implementation:<22} {record.median_ms:9.3f} ms{ratio}{memory}{rates}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
