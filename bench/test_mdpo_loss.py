"""`mdpo_loss` under pytest-benchmark: `pytest bench/test_mdpo_loss.py`."""

from typing import Any

from bench.pytest_cases import cases, run_case
from bench.suite.group import Group, Implementation


@cases("kernels", "mdpo_loss")
def test_mdpo_loss(benchmark: Any, group: Group, implementation: Implementation) -> None:
    run_case(benchmark, group, implementation)
