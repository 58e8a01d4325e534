"""What the modules bench/test_*.py share: a group's implementations as pytest-benchmark cases."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.suite.group import Group, Implementation, Prepared
from bench.suite.parts import PARTS
from bench.suite.record import environment

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_prepared: dict[str, Prepared] = {}


def cases(part: str, op: str) -> Callable[[Any], Any]:
    """Parametrises a test over (group, implementation) of one operation."""
    pairs = [(group, i) for group in PARTS[part].groups(DEVICE) if group.op == op for i in group.implementations]
    names = [f"{group.case}-{i.name}".replace(" ", "_") for group, i in pairs]
    return pytest.mark.parametrize(("group", "implementation"), pairs, ids=names)


def run_case(benchmark: Any, group: Group, implementation: Implementation) -> None:
    """Time one implementation; pytest-benchmark reads the host's clock, so what it times waits for the device."""
    if DEVICE.type not in implementation.devices:
        pytest.skip(f"{implementation.name} needs {' or '.join(implementation.devices)}")
    if implementation.patches:
        pytest.skip(
            f"{implementation.name} changes other packages for the process; bench.suite gives it one of its own"
        )
    try:
        function = implementation.load()
    except ImportError as error:
        pytest.skip(f"{implementation.name}: {error}")
    run = _prepare(group).bind(function).run

    def synchronised() -> None:
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    benchmark.group = f"{group.op} {group.case}"
    benchmark.extra_info.update(environment(DEVICE))
    synchronised()  # compiles
    benchmark(synchronised)


def _prepare(group: Group) -> Prepared:
    """The group's inputs; those of one group at a time, because a group may fill the device."""
    key = f"{group.op} {group.case}"
    if key not in _prepared:
        _prepared.clear()
        _prepared[key] = group.prepare()
    return _prepared[key]
