"""`lora_linear` under pytest-benchmark: `pytest bench/test_lora_linear.py`."""

from typing import Any

from bench.pytest_cases import cases, run_case
from bench.suite.group import Group, Implementation


@cases("kernels", "lora_linear")
def test_lora_linear(benchmark: Any, group: Group, implementation: Implementation) -> None:
    run_case(benchmark, group, implementation)
