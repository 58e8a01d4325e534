"""Whether a record is one that a session writes: anybody can write JSON, and tables, pictures and paths are
made of it.
"""

import math
import re
from typing import Any, get_args

from bench.commit import is_commit
from bench.render.targets import RATIOS
from bench.suite.record import Record, Role, Status

# What names things in our records: no markup, no path separators, no formulas for matplotlib.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.,:;'()%@+=×-]*")
_LONGEST_NAME, _LONGEST_TEXT = 100, 20_000  # characters
_MOST_ENTRIES = 32  # of a mapping
_MOST = 1e18  # of any number
_OPERATIONS_OF_MODELS = {ratio.op for ratio in RATIOS}


class NotARecord(ValueError):
    """A record that no session writes. The message says in a few words why."""


def check_record(record: Record) -> None:
    """Raises NotARecord where a table, a picture or a path could not be made of the record, or not safely.

    Its texts (reason, note, what the floor is and how memory was measured) may say anything; whoever shows them escapes
    them.
    """
    _check_names(record)
    for name in ("reason", "note", "floor", "memory_method"):
        text = getattr(record, name)
        _require(isinstance(text, str) and len(text) <= _LONGEST_TEXT, f"its {name} is not text")
    _check_numbers(record)
    _check_environment(record.environment)
    _require(record.status in get_args(Status) and record.role in get_args(Role), "its role or status is unknown")
    _require(record.op not in _OPERATIONS_OF_MODELS or "model" in record.shape, "its shape names no model")
    _require(record.part != "session" or "seconds" in record.rates, "it does not say how long it took")


def _check_names(record: Record) -> None:
    for name in ("part", "op", "dtype"):
        _require(_is_name(getattr(record, name)), f"its {name} is not a name")
    _require(
        isinstance(record.implementation, str) and _is_name(record.implementation.replace("/", "-")),
        "its implementation is not a name",
    )
    for name in ("shape", "rates", "errors", "extra"):
        mapping = getattr(record, name)
        _require(isinstance(mapping, dict) and len(mapping) <= _MOST_ENTRIES, f"its {name} is not a mapping")
        _require(all(_is_name(key.replace("/", "-")) for key in mapping), f"a key of its {name} is not a name")
    for value in record.shape.values():
        _require(
            _is_name(value) or (_is_number(value) and type(value) is int),
            "a value of its shape is neither a name nor a size",
        )


def _check_numbers(record: Record) -> None:
    """Finite, and none below 0; only an error may be infinite or no number, which says how wrong a result was."""
    for name in (
        "median_ms",
        "p20_ms",
        "p80_ms",
        "min_ms",
        "peak_bytes",
        "floor_ms",
        "ratio_to_floor",
        "tflops_per_s",
        "gbytes_per_s",
    ):
        value = getattr(record, name)
        _require(value is None or _is_number(value), f"its {name} is not a number from 0 to {_MOST:g}")
    _require(type(record.runs) is int and _is_number(record.runs), f"its runs is not a number from 0 to {_MOST:g}")
    numbers = [*record.rates.values(), *record.extra.values()]
    broken = [value for value in record.errors.values() if not (type(value) is float and not math.isfinite(value))]
    _require(
        all(map(_is_number, numbers + broken)),
        f"a value of its rates, extra or errors is not a number from 0 to {_MOST:g}",
    )


def _check_environment(environment: Any) -> None:
    _require(isinstance(environment, dict), "its environment is not a mapping")
    versions = environment.get("versions", {})
    _require(isinstance(versions, dict) and len(versions) <= _MOST_ENTRIES, "its versions are not a mapping")
    texts = [environment.get("device"), *versions, *versions.values()]
    texts += [environment[name] for name in ("python", "cuda") if environment.get(name) is not None]
    _require(all(map(_is_name, texts)), "its device, a package or a version is not a name")
    _require(is_commit(environment.get("commit")), "its commit is not the name of a commit")
    known = {"device", "device_type", "threads", "python", "cuda", "versions", "commit"}
    _require(environment.keys() <= known, "its environment holds more than a session writes")
    device_type, threads = environment.get("device_type", "cuda"), environment.get("threads")
    _require(device_type in ("cpu", "cuda"), "its device_type is unknown")
    counted = type(threads) is int and _is_number(threads)
    _require(counted or (threads is None and device_type != "cpu"), "its threads are not a number")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NAME and _NAME.fullmatch(value) is not None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MOST  # NaN is not


def _require(found: bool, fault: str) -> None:
    if not found:
        raise NotARecord(fault)
