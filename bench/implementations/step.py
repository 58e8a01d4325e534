"""Forward and backward of one micro-batch of preference pairs: ours, and the layouts it is compared with.

Each implementation is a function of a ``StepProblem`` that lays out its own inputs and returns what is timed: the
image encoding, the language model, the log-probs, the loss and the backward into the adapter. The optimizer is left out:
it is the same work for all. The reference is computed only where a name says so.
"""

# A PEFT model's attributes are Tensor or Module to a type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalSubscript=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor

from bench.group import Implementation, Outputs
from bench.implementations.padded import pad, padded_logps
from mdpo.models import PackedPolicy, sequence_logps
from mdpo.packing import PackedBatch, PreferenceTokens, family_of, pack
from mdpo_kernels import MDPOLoss, Segments, mdpo_loss

Step = Callable[[], Outputs]


@dataclass(frozen=True, slots=True)
class StepProblem:
    model: PeftModel
    examples: Sequence[PreferenceTokens]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def _finish(problem: StepProblem, policy: Tensor, **objective) -> Outputs:
    """The loss against a reference of zeros, and its backward."""
    return _backward(problem, mdpo_loss(policy, torch.zeros_like(policy), **objective), policy)


def _backward(problem: StepProblem, loss: MDPOLoss, policy: Tensor) -> Outputs:
    loss.loss.backward()
    return policy.detach(), *_gradients(problem)


def _gradients(problem: StepProblem) -> Outputs:
    """The adapter's gradients, flattened, and taken away."""
    parameters = [parameter for parameter in problem.model.parameters() if parameter.requires_grad]
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return (gradient,)


def packed(problem: StepProblem) -> Step:
    """Ours: three branches on one row, the prefix shared."""
    row = pack(problem.examples, problem.model).to(problem.device)
    return lambda: _finish(problem, sequence_logps(problem.model, row))


def three_unpadded(problem: StepProblem) -> Step:
    """Three passes, one per branch, each an unpadded row: our kernels, nothing shared."""
    rows = [_branch_row(problem, branch).to(problem.device) for branch in range(3)]

    def run() -> Outputs:
        policy = torch.stack([sequence_logps(problem.model, row)[0] for row in rows])
        return _finish(problem, policy)

    return run


def _branch_row(problem: StepProblem, branch: int) -> PackedBatch:
    """One branch of every example, each a segment of its own; its log-probs are in the row of the chosen ones."""
    family = family_of(problem.model)
    rows, ranges, start = [], [], 0
    for example in problem.examples:
        response = example.rejected_ids if branch == 1 else example.chosen_ids
        images = example.rejected_images if branch == 2 else example.images
        # A row of its own for the branch: pack it as the chosen one and keep its first segment.
        alone = pack(
            [replace(example, chosen_ids=response, rejected_ids=[0], images=images, rejected_images=None)], family
        )
        length = len(example.prompt_ids) + len(response)
        rows.append((alone, length, len(response)))
        ranges.append((start, start + length))
        start += length
    offsets = torch.tensor([first for first, _ in ranges])
    lengths = torch.tensor([0, *(scored for _, _, scored in rows), *[0] * (2 * len(rows))])
    return PackedBatch(
        ids=tuple(example.id for example in problem.examples),
        digests=(),
        input_ids=torch.cat([row.input_ids[:, :length] for row, length, _ in rows], dim=1),
        position_ids=torch.cat([row.position_ids[..., :length] for row, length, _ in rows], dim=-1),
        segments=Segments.build(ranges, [[each] for each in ranges]),
        images={name: torch.cat([row.images[name] for row, _, _ in rows]) for name in rows[0][0].images},
        image_index=tuple(range(len(rows))),
        image_rows=torch.cat([row.image_rows + offset for (row, _, _), offset in zip(rows, offsets, strict=True)]),
        scored_rows=torch.cat([row.scored_rows[:n] + o for (row, _, n), o in zip(rows, offsets, strict=True)]),
        targets=torch.cat([row.targets[:scored] for row, _, scored in rows]),
        cu_seqlens=lengths.cumsum(0).to(torch.int32),
    )


def three_padded(problem: StepProblem) -> Step:
    """The authors' way: three padded batches, every position's logits in fp32, layers checkpointed."""
    batches = [pad(problem.examples, (branch,), problem.device) for branch in range(3)]

    def run() -> Outputs:
        _use_sdpa(problem)
        problem.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy = torch.stack([padded_logps(problem.model, batch, full_logits=True) for batch in batches])
        outputs = _finish(problem, policy)
        problem.model.gradient_checkpointing_disable()
        return outputs

    return run


def two_branches(problem: StepProblem) -> Step:
    """Plain DPO as TRL lays it out: chosen and rejected in one padded batch, log-probs of the responses alone."""
    batch = pad(problem.examples, (0, 1), problem.device)

    def run() -> Outputs:
        _use_sdpa(problem)
        policy = padded_logps(problem.model, batch, full_logits=False).view(2, -1)
        absent = torch.full_like(policy[:1], torch.nan)
        return _finish(problem, torch.cat([policy, absent]), conditional=False, anchors=())

    return run


def _use_sdpa(problem: StepProblem) -> None:
    # The model is shared with the packed layout, which sets an attention of its own.
    problem.model.get_base_model().set_attn_implementation({"text_config": "sdpa"})


def with_reference(problem: StepProblem) -> Step:
    """Ours as it trains in the first epoch: the reference computed too, the image features shared with the policy."""
    row = pack(problem.examples, problem.model).to(problem.device)
    policy = PackedPolicy(problem.model)

    def run() -> Outputs:
        output = policy(row)
        return _backward(problem, output.loss, output.policy)

    return run


STEP = (
    Implementation(name="ours", role="ours", load=lambda: packed, note="reference cached: from the second epoch on"),
    Implementation(
        name="ours, reference each step", role="ours", load=lambda: with_reference, comparable=False,
        note="the first epoch; its gradient is of another loss",
    ),
    Implementation(
        name="three unpadded passes", role="torch", load=lambda: three_unpadded, note="our kernels, nothing shared"
    ),
    Implementation(
        name="three padded passes", role="torch", load=lambda: three_padded,
        note="the authors' way: all logits in fp32, layers checkpointed",
    ),
    Implementation(
        name="two-branch DPO", role="torch", load=lambda: two_branches, comparable=False,
        note="padded, no third branch, no reference: less is computed",
    ),
)  # fmt: skip
