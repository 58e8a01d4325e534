"""`fused_mdpo_loss` under pytest-benchmark: `pytest bench/test_fused_mdpo_loss.py`."""

from typing import Any

from bench.pytest_cases import cases, run_case
from bench.suite.group import Group, Implementation


@cases("kernels", "fused_mdpo_loss")
def test_fused_mdpo_loss(benchmark: Any, group: Group, implementation: Implementation) -> None:
    run_case(benchmark, group, implementation)
