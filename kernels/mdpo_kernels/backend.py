"""The one place that chooses between the Triton kernels and plain PyTorch (`varlen_attention` chooses its own backend).

    CUDA tensors                    the Triton kernels; plain PyTorch for float64 or where Triton cannot be imported
    CPU tensors                     plain PyTorch (`mdpo_kernels.reference`)
    any, with TRITON_INTERPRET=1    the Triton kernels, in Triton's interpreter, except for float64

TRITON_INTERPRET counts when this module is imported, because that is when `triton.jit` looks at it.
"""

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

_log = logging.getLogger("mdpo_kernels")
_said: set[str] = set()

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Kernel files import these two from here, so that the package imports, and runs in plain PyTorch, where there is no
# Triton (it has wheels for Linux alone).
if TYPE_CHECKING:
    # Triton's language is not Python to a type checker: to it, everything in there is Any.
    class _Language(type):
        def __getattr__(cls, name: str) -> Any: ...

    class tl(metaclass=_Language):
        class constexpr(int): ...

    triton: Any
    INTERPRETED: bool
    _why_not: str
else:
    try:
        import triton
        import triton.language as tl

        INTERPRETED = bool(triton.knobs.runtime.interpret)
        _why_not = ""
    except ImportError as error:
        triton = SimpleNamespace(jit=lambda function=None, **options: function or (lambda kernel: kernel))
        tl = SimpleNamespace(constexpr=lambda value: value)
        INTERPRETED = False
        _why_not = f"Triton cannot be imported ({error})"


def use_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernels run on tensors like this one; otherwise `mdpo_kernels.reference` does.

    Says its choice once per kind of tensor on the logger "mdpo_kernels": as a warning, with the reason, where a GPU has
    to do without the kernels.
    """
    kind = f"{tensor.device.type} {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.dtype not in KERNEL_DTYPES:
        _say(
            logging.WARNING if tensor.is_cuda else logging.INFO,
            f"{kind}: plain PyTorch, the kernels compute in float32",
        )
        return False
    if INTERPRETED:
        _say(
            logging.WARNING,
            f"{kind}: Triton kernels in the interpreter, which is slow, because TRITON_INTERPRET is set",
        )
        return True
    if tensor.is_cuda and not _why_not:
        _say(logging.INFO, f"{kind}: Triton kernels")
        return True
    if tensor.is_cuda:
        _say(logging.WARNING, f"{kind}: plain PyTorch, which is slower, because {_why_not}")
    else:
        _say(logging.INFO, f"{kind}: plain PyTorch, because the Triton kernels need a GPU")
    return False


def _say(level: int, message: str) -> None:
    # A log call breaks torch.compile's graph.
    if not torch.compiler.is_compiling() and message not in _said:
        _said.add(message)
        _log.log(level, message)
