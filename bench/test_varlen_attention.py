"""`varlen_attention` under pytest-benchmark: `pytest bench/test_varlen_attention.py`."""

from typing import Any

from bench.pytest_cases import cases, run_case
from bench.suite.group import Group, Implementation


@cases("attention", "varlen_attention")
def test_varlen_attention(benchmark: Any, group: Group, implementation: Implementation) -> None:
    run_case(benchmark, group, implementation)
