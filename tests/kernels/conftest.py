"""Where the kernels run: on the GPU if there is one, else in Triton's interpreter, which must then have been asked for.

    TRITON_INTERPRET=1 pytest tests/kernels     everywhere; the tests marked gpu are skipped
    pytest tests/kernels                        on a machine with a GPU

Triton decides when the package is imported, so one process cannot do both. A test that needs the kernels takes the
`device` fixture. Where neither holds pytest ends in one line instead of skipping such tests: otherwise a forgotten
variable would leave every kernel untested and the suite green.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mdpo_kernels import backend


def pytest_report_header() -> str:
    where = "in the interpreter" if backend.INTERPRETED else "on the GPU" if torch.cuda.is_available() else "not at all"
    return f"mdpo_kernels: Triton kernels run {where}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if backend.INTERPRETED:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs compiled kernels, and TRITON_INTERPRET is set"))


def pytest_collection_finish(session: pytest.Session) -> None:
    if backend.INTERPRETED or torch.cuda.is_available():
        return
    if any("device" in getattr(item, "fixturenames", ()) for item in session.items):
        raise pytest.UsageError(
            "tests/kernels: no GPU is here; set TRITON_INTERPRET=1, in a process of its own, or run make test"
        )


@pytest.fixture
def device(poisoned_memory: None, rounding_to_bfloat16: None) -> torch.device:
    """The device on which the Triton kernels run in this process; uninitialised memory is full of NaN."""
    return torch.device("cpu" if backend.INTERPRETED else "cuda")


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """With it, an output that a kernel forgets to write does not pass for a number."""
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # the default
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def rounding_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6's interpreter truncates float32 to bfloat16, twice a GPU's error; for a test, it rounds to nearest."""
    if not backend.INTERPRETED:
        return
    from triton import language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounding(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if source != tl.float32 or target != tl.bfloat16:
            return convert(data, source, target, mode)
        return torch.from_numpy(data.copy()).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", rounding)
