"""`sequence_logps` under pytest-benchmark: `pytest bench/test_sequence_logps.py`."""

from typing import Any

from bench.pytest_cases import cases, run_case
from bench.suite.group import Group, Implementation


@cases("kernels", "sequence_logps")
def test_sequence_logps(benchmark: Any, group: Group, implementation: Implementation) -> None:
    run_case(benchmark, group, implementation)
