"""The part `attention`: one packed call with a shared prefix against three causal calls, forward and backward.

The floor is plain matrix products of as many flops. Every group carries what sharing promises: the pairs of query and
key that three calls compute over those of the packed one.
"""

from collections.abc import Callable

import torch

from bench.suite.group import Bound, Floor, Group, Outputs, Prepared
from bench.suite.implementations.attention import VARLEN_ATTENTION, AttentionProblem, Laid
from mdpo_kernels import reference

# (name, query heads, key heads, head_dim)
HEADS = (("llava-1.5-7b", 32, 32, 128), ("bunny-3b", 32, 32, 80), ("qwen2.5-vl-3b", 16, 2, 128))
CPU_HEADS = (("llava-1.5-small", 8, 8, 64), ("qwen2.5-vl-small", 8, 2, 64))
PROMPTS, RESPONSES = (650, 100, 1500), (100, 50, 300)
CPU_PROMPTS, CPU_RESPONSES = (650, 100), (100, 50)
_ROWS = 8192  # packed rows in a call on a GPU, about what a micro-batch holds
_BACKWARD = 2.5  # flops of the backward over the forward's: five matrix products for two


def groups(device: torch.device, tiny: bool = False) -> list[Group]:
    """P × R for each model's heads: bfloat16 on a GPU, float32 and one example on a CPU."""
    gpu = device.type == "cuda"
    heads, dtype = (HEADS, torch.bfloat16) if gpu else (CPU_HEADS, torch.float32)
    prompts, responses = (PROMPTS, RESPONSES) if gpu else ((100,), (50,)) if tiny else (CPU_PROMPTS, CPU_RESPONSES)
    return [
        attention_group(
            head, prompt, response, max(1, _ROWS // (2 * prompt + 3 * response)) if gpu else 1, dtype, device
        )
        for prompt in prompts
        for response in responses
        for head in heads
    ]


def attention_group(
    head: tuple[str, int, int, int], prompt: int, response: int, examples: int, dtype: torch.dtype, device: torch.device
) -> Group:
    """`varlen_attention` of `examples` examples, forward and backward."""
    name, query_heads, key_heads, head_dim = head
    length = prompt + response
    whole = length * (length + 1) // 2
    pairs = 2 * whole + response * prompt + response * (response + 1) // 2
    flops = 4.0 * pairs * examples * query_heads * head_dim * (1 + _BACKWARD)

    def prepare() -> Prepared:
        generator = torch.Generator(device).manual_seed(0)
        rows = examples * (2 * prompt + 3 * response)
        query, key, value, upstream = (
            torch.randn(rows, heads, head_dim, generator=generator, device=device, dtype=torch.float32).to(dtype)
            for heads in (query_heads, key_heads, key_heads, query_heads)
        )
        for leaf in (query, key, value):
            leaf.requires_grad_()
        problem = AttentionProblem(query, key, value, upstream, examples, prompt, response)
        truth = _float64(problem)

        def bind(function: Callable[[AttentionProblem], Laid]) -> Bound:
            run, is_packed = function(problem)
            return Bound(run=run, errors=lambda outputs: _errors(outputs, truth) if is_packed else {})

        return Prepared(floor=_matmul_floor(flops, dtype, device), bind=bind)

    return Group(
        part="attention",
        op="varlen_attention",
        dtype=dtype,
        implementations=VARLEN_ATTENTION,
        prepare=prepare,
        flops=flops,
        shape={"head": name, "P": prompt, "R": response, "B": examples},
        extra={"promised speed-up over three calls": 3 * whole / pairs},
    )


def _matmul_floor(flops: float, dtype: torch.dtype, device: torch.device) -> Floor:
    size = 4096 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    return Floor(name="matrix products of as many flops", run=lambda: left @ right, factor=flops / (2.0 * size**3))


def _float64(problem: AttentionProblem) -> Outputs:
    """(out, dquery, dkey, dvalue) of the first example by the oracle in float64; the examples do not see each other."""
    rows = 2 * problem.prompt + 3 * problem.response
    query, key, value, upstream = (
        t.detach()[:rows].double() for t in (problem.query, problem.key, problem.value, problem.upstream)
    )
    leaves = [query.requires_grad_(), key.requires_grad_(), value.requires_grad_()]
    alone = AttentionProblem(query, key, value, upstream, 1, problem.prompt, problem.response)
    out = reference.varlen_attention(query, key, value, alone.segments)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


def _errors(outputs: Outputs, truth: Outputs) -> dict[str, float]:
    names = ("out", "dquery", "dkey", "dvalue")
    return {
        name: ((got.detach()[: len(wanted)].double() - wanted).norm() / wanted.norm()).item()
        for name, got, wanted in zip(names, outputs, truth, strict=True)
    }
