"""Every operation of the kernels under pytest-benchmark: `pytest bench/`; one of them: `-k linear_token_logps-`."""

from typing import Any

import pytest
import torch

from bench.suite.group import Group, Implementation, Prepared
from bench.suite.parts import PARTS
from bench.suite.record import environment

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    pytest.param(group, implementation, id=f"{group.op}-{group.case}-{implementation.name}".replace(" ", "_"))
    for part in ("kernels", "attention")
    for group in PARTS[part].groups(DEVICE)
    for implementation in group.implementations
]
_prepared: dict[str, Prepared] = {}


@pytest.mark.parametrize(("group", "implementation"), CASES)
def test_operation(benchmark: Any, group: Group, implementation: Implementation) -> None:
    """pytest-benchmark reads the host's clock, so what it times waits for the device."""
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
