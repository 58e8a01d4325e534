"""The attention of B examples of three branches, forward and backward: packed with a shared prefix, or one call per
branch.

Every implementation is a function of an `AttentionProblem` that lays out its own inputs and returns what is to be
timed, and whether its outputs are in the packed layout (and so can be held against the oracle's).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bench.suite.group import Implementation, Outputs
from mdpo_kernels import Segments, varlen_attention

Laid = tuple[Callable[[], Outputs], bool]


@dataclass(frozen=True, slots=True)
class AttentionProblem:
    """B examples, each laid out as [prefix][y_w][y_l][prefix'][y_w] on 2P + 3R rows; T = B(2P + 3R)."""

    query: torch.Tensor  # (T, Hq, D)
    key: torch.Tensor  # (T, Hkv, D)
    value: torch.Tensor  # (T, Hkv, D)
    upstream: torch.Tensor  # (T, Hq, D)
    examples: int
    prompt: int
    response: int

    @property
    def segments(self) -> Segments:
        """The packed pattern, on the problem's device."""
        n, r, prompt = self.prompt + self.response, self.response, self.prompt
        queries, keys = [], []
        for start in range(0, self.query.shape[0], 2 * n + r):
            fork, other, stop = start + n, start + n + r, start + 2 * n + r
            queries += [(start, fork), (fork, other), (other, stop)]
            keys += [[(start, fork)], [(start, start + prompt), (fork, other)], [(other, stop)]]
        return Segments.build(queries, keys).to(self.query.device)

    def branches(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """(T, H, D) → chosen, rejected, image_rejected, each (B, P + R, H, D) and contiguous: what three passes would
        hold."""
        n, r, p = self.prompt + self.response, self.response, self.prompt
        rows = tensor.detach().view(self.examples, 2 * n + r, *tensor.shape[1:])
        rejected = torch.cat([rows[:, :p], rows[:, n : n + r]], dim=1)
        return [rows[:, :n].contiguous(), rejected, rows[:, n + r :].contiguous()]


def packed(problem: AttentionProblem, deterministic: bool = False) -> Laid:
    """One call, the prefix shared."""
    query, key, value = problem.query, problem.key, problem.value
    segments = problem.segments

    def run() -> Outputs:
        out = varlen_attention(query, key, value, segments, deterministic=deterministic)
        return out, *torch.autograd.grad(out, [query, key, value], problem.upstream)

    return run, True


def three_varlen_calls(problem: AttentionProblem) -> Laid:
    """The same kernels once per branch, nothing padded and nothing shared."""
    length = problem.prompt + problem.response
    ranges = [(start, start + length) for start in range(0, problem.examples * length, length)]
    segments = Segments.build(ranges, [[r] for r in ranges]).to(problem.query.device)
    calls = _per_branch(problem, lambda tensor: tensor.flatten(0, 1))

    def run() -> Outputs:
        outputs: Outputs = ()
        for query, key, value, upstream in calls:
            out = varlen_attention(query, key, value, segments)
            outputs += (out, *torch.autograd.grad(out, [query, key, value], upstream))
        return outputs

    return run, False


def three_sdpa_calls(problem: AttentionProblem) -> Laid:
    """scaled_dot_product_attention(is_causal=True) once per branch, in the layout that it likes."""
    calls = _per_branch(problem, lambda tensor: tensor.transpose(1, 2).contiguous())
    grouped = problem.query.shape[1] != problem.key.shape[1]

    def run() -> Outputs:
        outputs: Outputs = ()
        for query, key, value, upstream in calls:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
            outputs += (out, *torch.autograd.grad(out, [query, key, value], upstream))
        return outputs

    return run, False


def _per_branch(problem: AttentionProblem, layout: Callable[[torch.Tensor], torch.Tensor]) -> list[list[torch.Tensor]]:
    """[query, key, value, upstream] of each branch, the first three leaves that want a gradient."""
    tensors = (problem.query, problem.key, problem.value, problem.upstream)
    apart = zip(*([layout(branch) for branch in problem.branches(t)] for t in tensors), strict=True)
    return [[*(t.requires_grad_() for t in branch[:3]), branch[3]] for branch in apart]


VARLEN_ATTENTION = (
    Implementation(name="ours", role="ours", load=lambda: packed),
    Implementation(
        name="ours deterministic",
        role="ours",
        load=lambda: lambda problem: packed(problem, deterministic=True),
        devices=("cuda",),
        note="deterministic=True",
    ),
    Implementation(
        name="three varlen calls", role="torch", load=lambda: three_varlen_calls, note="our backend, nothing shared"
    ),
    Implementation(name="three sdpa calls", role="torch", load=lambda: three_sdpa_calls, note="is_causal=True"),
)
