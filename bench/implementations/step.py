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
from mdpo.models import PackedPolicy, sequence_logps
from mdpo.packing import PackedBatch, PreferenceTokens, family_of, pack
from mdpo_kernels import MDPOLoss, Segments, linear_token_logps, mdpo_loss
from mdpo_kernels import sequence_logps as sum_logps

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
    batches = [_padded(problem, (branch,)) for branch in range(3)]

    def run() -> Outputs:
        problem.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy = torch.stack([_padded_logps(problem.model, batch, full_logits=True) for batch in batches])
        outputs = _finish(problem, policy)
        problem.model.gradient_checkpointing_disable()
        return outputs

    return run


def two_branches(problem: StepProblem) -> Step:
    """Plain DPO as TRL lays it out: chosen and rejected in one padded batch, log-probs of the responses alone."""
    batch = _padded(problem, (0, 1))

    def run() -> Outputs:
        policy = _padded_logps(problem.model, batch, full_logits=False).view(2, -1)
        absent = torch.full_like(policy[:1], torch.nan)
        return _finish(problem, torch.cat([policy, absent]), conditional=False, anchors=())

    return run


@dataclass(frozen=True, slots=True)
class Padded:
    """input_ids, attention_mask (S, L); labels (S, L), −100 where not scored; pixel_values (S, …)."""

    inputs: dict[str, Tensor]
    labels: Tensor


def _padded(problem: StepProblem, branches: Sequence[int]) -> Padded:
    sequences = [
        (example.prompt_ids, example.rejected_ids if branch == 1 else example.chosen_ids,
         example.rejected_images if branch == 2 else example.images)
        for branch in branches for example in problem.examples
    ]  # fmt: skip
    width = max(len(prompt) + len(response) for prompt, response, _ in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, (prompt, response, _) in enumerate(sequences):
        length = len(prompt) + len(response)
        ids[index, :length] = torch.tensor([*prompt, *response])
        mask[index, :length] = 1
        labels[index, len(prompt) : length] = torch.tensor(response)
    pixels = torch.cat([images["pixel_values"] for _, _, images in sequences])
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    return Padded({name: tensor.to(problem.device) for name, tensor in inputs.items()}, labels.to(problem.device))


def _padded_logps(model: PeftModel, batch: Padded, *, full_logits: bool) -> Tensor:
    base = model.get_base_model()
    base.set_attn_implementation({"text_config": "sdpa"})
    labels = batch.labels[:, 1:]
    if full_logits:
        logits = base(**batch.inputs, use_cache=False).logits[:, :-1].float()
        logps = logits.log_softmax(-1).gather(2, labels.clamp_min(0)[..., None])[..., 0]
        return logps.where(labels >= 0, 0).sum(1)
    hidden = base.model(**batch.inputs, use_cache=False).last_hidden_state[:, :-1]
    scored = labels >= 0
    lengths = torch.cat([labels.new_zeros(1), scored.sum(1)]).cumsum(0).to(torch.int32)
    return sum_logps(linear_token_logps(hidden[scored], base.lm_head.weight, labels[scored]), lengths)


def with_reference(problem: StepProblem) -> Step:
    """Ours as it trains in the first epoch: the reference computed too, the image features shared with the policy."""
    row = pack(problem.examples, problem.model).to(problem.device)
    policy = PackedPolicy(problem.model)

    def run() -> Outputs:
        output = policy(row)
        return _backward(problem, output.loss, output.policy)

    return run


def load_trl() -> Callable[[StepProblem], Step]:
    """TRL's DPOTrainer on the same rows; raises ImportError without TRL."""
    from bench.implementations.trl_step import two_branch_loss

    def step(problem: StepProblem) -> Step:
        batch = _padded(problem, (0, 1))
        scored = (batch.labels >= 0).long()
        compute_loss = two_branch_loss(problem.model, {**batch.inputs, "completion_mask": scored})

        def run() -> Outputs:
            problem.model.get_base_model().set_attn_implementation({"text_config": "sdpa"})
            compute_loss().backward()
            return _gradients(problem)

        return run

    return step


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
    Implementation(
        name="TRL DPOTrainer", role="peer", load=load_trl, comparable=False,
        note="two branches, the reference each step; no third branch",
    ),
)  # fmt: skip
