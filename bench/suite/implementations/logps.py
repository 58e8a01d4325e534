"""Token log-probs: `token_logps` (logits (N, V), targets (N,)) and `linear_token_logps` (hidden (N, H), weight (V,
H), targets (N,))."""

from collections.abc import Callable

import torch

from bench.suite.group import Implementation
from bench.suite.implementations import peers


def eager_token_logps(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What trainers write: a float32 log-softmax of all the logits."""
    return logits.float().log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)


def eager_linear_token_logps(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The same behind the head's matrix product."""
    return eager_token_logps(hidden @ weight.t(), targets)


def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`function` under torch.compile, specialised to the shape that it is called with."""
    # A fresh cache: after eight shapes PyTorch would stop compiling and run eagerly without an error.
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def _ours_token_logps() -> Callable[..., torch.Tensor]:
    from mdpo_kernels import token_logps

    return token_logps


def _ours_linear_token_logps() -> Callable[..., torch.Tensor]:
    from mdpo_kernels import linear_token_logps

    return linear_token_logps


def _epilogue() -> Callable[..., torch.Tensor]:
    from mdpo_kernels.linear_token_logps_epilogue import linear_token_logps_epilogue

    return linear_token_logps_epilogue


# For a frozen head alone.
EPILOGUE = Implementation(
    name="ours, epilogue",
    role="ours",
    load=_epilogue,
    devices=("cuda",),
    note="an experiment: the exponentials in the first product's epilogue, both products Triton's",
)

# token_logps has no `inplace_backward` row: overwriting the logits would change the inputs of the next run.
TOKEN_LOGPS = (
    Implementation(name="ours", role="ours", load=_ours_token_logps),
    Implementation(name="torch eager", role="torch", load=lambda: eager_token_logps),
    Implementation(
        name="torch.compile", role="torch", load=lambda: compiled(eager_token_logps), compiles=True, countable=False
    ),
    Implementation(
        name="liger cross-entropy",
        role="peer",
        load=peers.liger_cross_entropy,
        devices=("cuda",),
        note="overwrites the logits with their gradient, so it is given a copy, which is timed",
    ),
)

LINEAR_TOKEN_LOGPS = (
    Implementation(name="ours", role="ours", load=_ours_linear_token_logps),
    Implementation(name="torch eager", role="torch", load=lambda: eager_linear_token_logps),
    Implementation(
        name="torch.compile",
        role="torch",
        load=lambda: compiled(eager_linear_token_logps),
        compiles=True,
        countable=False,
    ),
    Implementation(name="trl chunked", role="peer", load=peers.trl_chunked),
    Implementation(name="liger flce", role="peer", load=peers.liger_flce, devices=("cuda",), note='reduction="none"'),
    Implementation(
        name="cce",
        role="peer",
        load=lambda: peers.cce(None),
        devices=("cuda",),
        note="filter_eps=None: every gradient is kept",
    ),
    Implementation(
        name="cce filtered",
        role="peer",
        load=lambda: peers.cce("high"),
        devices=("cuda",),
        note="its default: gradients below the dtype's resolution are dropped",
    ),
)
