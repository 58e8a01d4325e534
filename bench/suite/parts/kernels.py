"""The part `kernels`: log-probs and losses at the heads of LLaVA-1.5, Bunny and Qwen2.5-VL; a LoRA on their linear
layers (bench/suite/parts/lora.py).

Floors. From hidden states: the head's matrix products alone, two for a frozen head with gradient (4NHV flops), one
without gradient, four with a trainable head (8NHV). From logits: a copy of them, times 1.5, because forward and
backward read them twice and write once.
"""

from collections.abc import Callable

import torch

from bench.inputs.problems import (
    CPU_HEADS,
    HEADS,
    Head,
    float64_logps,
    linear_problem,
    relative_error,
    sampled_rows,
    sequence_bounds,
)
from bench.suite.group import Bound, Floor, Group, Implementation, Outputs, Prepared
from bench.suite.implementations import logps, loss
from bench.suite.parts.lora import lora_groups
from mdpo_kernels import mdpo_loss, reference, sequence_logps

_TYPICAL_ROWS = {"cuda": 4096, "cpu": 1024}
_ROWS_PER_EXAMPLE = 384  # three responses of 128 tokens on average
# How many products of the head with N rows there are, by what is asked for.
_PRODUCTS = {"no grad": 1, "frozen head": 2, "trainable head": 4}


def groups(device: torch.device, tiny: bool = False) -> list[Group]:
    """All of the part's groups for a device: real heads in bfloat16 on a GPU, small ones in float32 on a CPU."""
    gpu = device.type == "cuda"
    heads, dtype = (HEADS, torch.bfloat16) if gpu else (CPU_HEADS, torch.float32)
    typical = 64 if tiny else _TYPICAL_ROWS[device.type]
    sizes = (4096, 1024, 16384, 256) if gpu else (typical,) if tiny else (1024, 256)
    listed: list[Group] = []
    for rows in sizes:
        for head in heads:
            listed.append(linear_group(head, rows, dtype, device, "frozen head"))
            listed.append(fused_linear_group(head, rows, dtype, device))
            if rows != 256 or not gpu:
                listed.append(logits_group(head, rows, dtype, device))
        if rows == typical:  # all there is at this size, before any other
            listed += lora_groups(dtype, device, tiny)
            for head in heads:
                listed.append(fused_logits_group(head, rows, dtype, device))
                listed += [linear_group(head, rows, dtype, device, mode) for mode in ("no grad", "trainable head")]
            listed += [sequence_group(rows, device), loss_group(rows, device)]
    return listed


def _measured(
    implementations: tuple[Implementation, ...], rows: int, device: torch.device
) -> tuple[Implementation, ...]:
    """Those that compile for seconds are measured at the typical size only, or they would fill the time box."""
    return tuple(i for i in implementations if not i.compiles or rows == _TYPICAL_ROWS[device.type])


def linear_group(head: Head, rows: int, dtype: torch.dtype, device: torch.device, mode: str) -> Group:
    """`linear_token_logps` forward, and backward unless mode is "no grad"."""

    def prepare() -> Prepared:
        problem = linear_problem(head, rows, dtype, device)
        truth = float64_logps(problem)
        upstream = torch.randn(rows, generator=torch.Generator(device).manual_seed(1), device=device)
        hidden = problem.hidden.requires_grad_(mode != "no grad")
        weight = problem.weight.requires_grad_(mode == "trainable head")
        leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
        sample = sampled_rows(rows, device)
        gradient = (
            _float64_gradient(problem.hidden, problem.weight, problem.targets, upstream, sample) if leaves else None
        )

        def errors(outputs: Outputs) -> dict[str, float]:
            found = {"logps, max abs": (outputs[0].detach().double() - truth).abs().max().item()}
            return found if gradient is None else found | relative_error(outputs[1][sample], gradient)

        def bind(function: Callable[..., torch.Tensor]) -> Bound:
            return Bound(
                run=_differentiating(lambda: function(hidden, weight, problem.targets), leaves, upstream), errors=errors
            )

        return Prepared(floor=_products(problem.hidden, problem.weight, _PRODUCTS[mode]), bind=bind)

    return Group(
        part="kernels",
        op="linear_token_logps",
        shape={"head": head.name, "mode": mode.replace(" ", "-"), "N": rows},
        dtype=dtype,
        implementations=_measured(
            logps.LINEAR_TOKEN_LOGPS if mode == "trainable head" else (*logps.LINEAR_TOKEN_LOGPS, logps.EPILOGUE),
            rows,
            device,
        ),
        prepare=prepare,
        flops=2.0 * _PRODUCTS[mode] * rows * head.hidden * head.vocabulary,
    )


def logits_group(head: Head, rows: int, dtype: torch.dtype, device: torch.device) -> Group:
    """`token_logps` forward and backward, from logits."""

    def prepare() -> Prepared:
        logits, targets = _logits(head, rows, dtype, device)
        upstream = torch.randn(rows, generator=torch.Generator(device).manual_seed(1), device=device)
        sample = sampled_rows(rows, device)
        leaf = logits[sample].detach().double().requires_grad_()
        truth = reference.token_logps(leaf, targets[sample])
        (gradient,) = torch.autograd.grad(truth, leaf, upstream[sample].double())

        def errors(outputs: Outputs) -> dict[str, float]:
            worst = (outputs[0].detach()[sample].double() - truth.detach()).abs().max().item()
            return {"logps, max abs": worst} | relative_error(outputs[1][sample], gradient)

        def bind(function: Callable[..., torch.Tensor]) -> Bound:
            return Bound(run=_differentiating(lambda: function(logits, targets), [logits], upstream), errors=errors)

        return Prepared(floor=_copy(logits), bind=bind)

    return _logits_group("token_logps", head, rows, dtype, _measured(logps.TOKEN_LOGPS, rows, device), prepare)


def fused_logits_group(head: Head, rows: int, dtype: torch.dtype, device: torch.device) -> Group:
    """`fused_mdpo_loss` forward and backward, from logits."""

    def prepare() -> Prepared:
        logits, targets = _logits(head, rows, dtype, device)
        token_logps = torch.cat(
            [
                reference.token_logps(x.detach().double(), y)
                for x, y in zip(logits.split(512), targets.split(512), strict=True)
            ]
        )
        bounds, frozen, coefficients, truth = _loss_of(token_logps, rows, device)
        sample = sampled_rows(rows, device)
        leaf = logits[sample].detach().double().requires_grad_()
        (gradient,) = torch.autograd.grad(reference.token_logps(leaf, targets[sample]), leaf, coefficients[sample])

        def bind(function: Callable[..., torch.Tensor]) -> Bound:
            run = _differentiating(lambda: function(logits, targets, bounds, frozen), [logits], None)
            return Bound(run=run, errors=lambda outputs: _loss_errors(outputs, truth, gradient, sample))

        return Prepared(floor=_copy(logits), bind=bind)

    return _logits_group("fused_mdpo_loss", head, rows, dtype, _measured(loss.FUSED_MDPO_LOSS, rows, device), prepare)


def fused_linear_group(head: Head, rows: int, dtype: torch.dtype, device: torch.device) -> Group:
    """`fused_linear_mdpo_loss` forward and backward with a frozen head, the reference's log-probs given."""

    def prepare() -> Prepared:
        problem = linear_problem(head, rows, dtype, device)
        bounds, frozen, coefficients, truth = _loss_of(float64_logps(problem), rows, device)
        sample = sampled_rows(rows, device)
        gradient = _float64_gradient(problem.hidden, problem.weight, problem.targets, coefficients, sample)
        hidden = problem.hidden.requires_grad_()

        def bind(function: Callable[..., torch.Tensor]) -> Bound:
            run = _differentiating(
                lambda: function(hidden, problem.weight, problem.targets, bounds, frozen), [hidden], None
            )
            return Bound(run=run, errors=lambda outputs: _loss_errors(outputs, truth, gradient, sample))

        return Prepared(floor=_products(problem.hidden, problem.weight, 2), bind=bind)

    return Group(
        part="kernels",
        op="fused_linear_mdpo_loss",
        shape={"head": head.name, "N": rows},
        dtype=dtype,
        implementations=_measured(loss.FUSED_LINEAR_MDPO_LOSS, rows, device),
        prepare=prepare,
        flops=4.0 * rows * head.hidden * head.vocabulary,
    )


def sequence_group(rows: int, device: torch.device) -> Group:
    """`sequence_logps` forward and backward: a launch, not work, so it has no floor."""
    sequences = 3 * max(1, rows // _ROWS_PER_EXAMPLE)

    def prepare() -> Prepared:
        generator = torch.Generator(device).manual_seed(0)
        logps = -torch.rand(rows, generator=generator, device=device).requires_grad_()
        upstream = torch.randn(sequences, generator=generator, device=device)
        bounds = sequence_bounds(sequences, rows, device)
        lengths = bounds.diff().tolist()
        truth = torch.stack([part.sum() for part in logps.detach().double().split(lengths)])

        def bind(function: Callable[..., torch.Tensor]) -> Bound:
            return Bound(
                run=_differentiating(lambda: function(logps, bounds), [logps], upstream),
                errors=lambda outputs: {"sums, max abs": (outputs[0].detach().double() - truth).abs().max().item()},
            )

        return Prepared(floor=None, bind=bind)

    return Group(
        part="kernels",
        op="sequence_logps",
        shape={"S": sequences, "N": rows},
        dtype=torch.float32,
        implementations=loss.SEQUENCE_LOGPS,
        prepare=prepare,
    )


def loss_group(rows: int, device: torch.device) -> Group:
    """`mdpo_loss` forward and backward, for as many examples as a batch of `rows` scored rows holds."""
    examples = max(1, rows // _ROWS_PER_EXAMPLE)

    def prepare() -> Prepared:
        generator = torch.Generator(device).manual_seed(0)
        policy = (-20 * torch.rand(3, examples, generator=generator, device=device)).requires_grad_()
        frozen = policy.detach() + torch.randn(3, examples, generator=generator, device=device)
        leaf = policy.detach().double().requires_grad_()
        truth = mdpo_loss(leaf, frozen.double(), beta=loss.BETA).loss
        (gradient,) = torch.autograd.grad(truth, leaf)
        every = torch.arange(3, device=device)

        def bind(function: Callable[..., torch.Tensor]) -> Bound:
            return Bound(
                run=_differentiating(lambda: function(policy, frozen), [policy], None),
                errors=lambda outputs: _loss_errors(outputs, truth.detach(), gradient, every),
            )

        return Prepared(floor=None, bind=bind)

    return Group(
        part="kernels",
        op="mdpo_loss",
        shape={"B": examples},
        dtype=torch.float32,
        implementations=loss.MDPO_LOSS,
        prepare=prepare,
    )


def _logits_group(
    op: str,
    head: Head,
    rows: int,
    dtype: torch.dtype,
    implementations: tuple[Implementation, ...],
    prepare: Callable[[], Prepared],
) -> Group:
    return Group(
        part="kernels",
        op=op,
        shape={"head": head.name, "N": rows},
        dtype=dtype,
        implementations=implementations,
        prepare=prepare,
        bytes=3.0 * rows * head.vocabulary * dtype.itemsize,
    )


def _differentiating(
    forward: Callable[[], torch.Tensor], leaves: list[torch.Tensor], upstream: torch.Tensor | None
) -> Callable[[], Outputs]:
    """forward() and its gradients with respect to the leaves, if there are any; `grad` keeps nothing from run to
    run."""

    def run() -> Outputs:
        if not leaves:
            with torch.no_grad():
                return (forward(),)
        out = forward()
        return out, *torch.autograd.grad(out, leaves, None if upstream is None else upstream.to(out.dtype))

    return run


def _logits(head: Head, rows: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    problem = linear_problem(head, rows, dtype, device)
    return (problem.hidden @ problem.weight.t()).requires_grad_(), problem.targets


def _products(hidden: torch.Tensor, weight: torch.Tensor, count: int) -> Floor:
    """One product makes the logits, every further one consumes N·V numbers: the same flops in each."""
    hidden, weight = hidden.detach(), weight.detach()

    def run() -> None:
        logits = hidden @ weight.t()
        for _ in range(count - 1):
            torch.mm(logits, weight)

    return Floor(name=f"{count} plain matrix product{'s' if count > 1 else ''}", run=run)


def _copy(logits: torch.Tensor) -> Floor:
    source, target = logits.detach(), torch.empty_like(logits)
    # A copy reads and writes once; forward and backward read twice and write once.
    return Floor(name="copy of the logits × 1.5", run=lambda: target.copy_(source), factor=1.5)


def _loss_of(
    token_logps: torch.Tensor, rows: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """bounds (3B + 1,), the reference's log-probs (3, B), d loss / d token log-prob (N,) and the loss, the last two
    in float64."""
    examples = max(1, rows // _ROWS_PER_EXAMPLE)
    bounds = sequence_bounds(3 * examples, rows, device)
    policy = sequence_logps(token_logps, bounds).view(3, examples).double().requires_grad_()
    generator = torch.Generator(device).manual_seed(2)
    # A policy that has moved by a few nats: no sigmoid is saturated.
    frozen = (policy.detach() + 4 * torch.randn(3, examples, generator=generator, device=device)).float()
    truth = mdpo_loss(policy, frozen.double(), beta=loss.BETA).loss
    (per_sequence,) = torch.autograd.grad(truth, policy)
    lengths = bounds.diff().long()
    return bounds, frozen, per_sequence.flatten().repeat_interleave(lengths, output_size=rows), truth.detach()


def _float64_gradient(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, upstream: torch.Tensor, sample: torch.Tensor
) -> torch.Tensor:
    leaf = hidden.detach()[sample].double().requires_grad_()
    out = reference.token_logps(leaf @ weight.detach().double().t(), targets[sample])
    return torch.autograd.grad(out, leaf, upstream[sample].double())[0]


def _loss_errors(
    outputs: Outputs, truth: torch.Tensor, gradient: torch.Tensor, sample: torch.Tensor
) -> dict[str, float]:
    return {"loss, abs": (outputs[0].detach().double() - truth).abs().item()} | relative_error(
        outputs[1][sample], gradient
    )
