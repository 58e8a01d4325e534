"""Forward and backward of one micro-batch of preference pairs: ours, and the layouts it is compared with.

Each implementation is a function of a ``StepProblem`` that lays out its own inputs and returns what is timed: the
image encoding, the language model, the log-probs, the loss and the backward into the adapter. The optimizer is left
out: it is the same work for all. The reference is computed only where a name says so.
"""

# A PEFT model's attributes are Tensor or Module to a type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalSubscript=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from bench.suite.group import Implementation, Outputs
from bench.suite.implementations.padded import pad, padded_logps
from mdpo.models import PackedPolicy, branch_logps
from mdpo.objectives import PRESETS, Objective
from mdpo.packing import Batch, PreferenceTokens, pack
from mdpo_kernels import PreferenceLoss, preference_loss

Step = Callable[[], Outputs]


@dataclass(frozen=True, slots=True)
class StepProblem:
    model: PeftModel
    examples: Sequence[PreferenceTokens]
    objective: Objective = PRESETS["mdpo"]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def row(self, branches: Sequence[str]) -> Batch:
        """The examples read as these branches, on one row."""
        return pack(self.examples, self.model, branches=branches).to(self.device)


def finish(model: PeftModel, policy: Tensor, objective: Objective) -> Outputs:
    """The loss against a reference of zeros, and its backward: the log-probs, and the adapter's gradient."""
    reference = torch.zeros_like(policy)
    return _backward(model, preference_loss(policy, reference, objective.terms, branches=objective.branches), policy)


def _backward(model: PeftModel, loss: PreferenceLoss, policy: Tensor) -> Outputs:
    loss.loss.backward()
    return policy.detach(), *_gradients(model)


def _gradients(model: PeftModel) -> Outputs:
    """The adapter's gradients, flattened, and taken away."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return (gradient,)


def packed(problem: StepProblem) -> Step:
    """Ours: all branches on one row, each picture's prompt shared."""
    row = problem.row(problem.objective.branches)
    return lambda: finish(problem.model, branch_logps(problem.model, row), problem.objective)


def separate_passes(problem: StepProblem) -> Step:
    """A pass for each branch, each an unpadded row: our kernels, nothing shared."""
    rows = [problem.row([branch]) for branch in problem.objective.branches]
    return lambda: finish(
        problem.model, torch.cat([branch_logps(problem.model, row) for row in rows]), problem.objective
    )


def three_padded(problem: StepProblem) -> Step:
    """The authors' way: three padded batches, every position's logits in fp32, layers checkpointed."""
    batches = [pad(problem.examples, (branch,), problem.device) for branch in range(3)]

    def run() -> Outputs:
        _use_sdpa(problem)
        problem.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy = torch.stack([padded_logps(problem.model, batch, full_logits=True) for batch in batches])
        outputs = finish(problem.model, policy, problem.objective)
        problem.model.gradient_checkpointing_disable()
        return outputs

    return run


def two_branches(problem: StepProblem) -> Step:
    """Plain DPO as TRL lays it out: chosen and rejected in one padded batch, log-probs of the responses alone."""
    batch = pad(problem.examples, (0, 1), problem.device)

    def run() -> Outputs:
        _use_sdpa(problem)
        policy = padded_logps(problem.model, batch, full_logits=False).view(2, -1)
        return finish(problem.model, policy, PRESETS["dpo"])

    return run


def _use_sdpa(problem: StepProblem) -> None:
    # The model is shared with the packed layout, which sets an attention of its own.
    problem.model.get_base_model().set_attn_implementation({"text_config": "sdpa"})


def with_reference(problem: StepProblem) -> Step:
    """Ours as it trains in the first epoch: the reference computed too, the image features shared with the policy."""
    row = problem.row(problem.objective.branches)
    policy = PackedPolicy(problem.model, terms=problem.objective.terms)

    def run() -> Outputs:
        output = policy(row)
        return _backward(problem.model, output.loss, output.policy)

    return run


STEP = (
    Implementation(name="ours", role="ours", load=lambda: packed, note="reference cached: from the second epoch on"),
    Implementation(
        name="ours, reference each step",
        role="ours",
        load=lambda: with_reference,
        comparable=False,
        note="the first epoch; its gradient is of another loss",
    ),
    Implementation(
        name="three unpadded passes", role="torch", load=lambda: separate_passes, note="our kernels, nothing shared"
    ),
    Implementation(
        name="three padded passes",
        role="torch",
        load=lambda: three_padded,
        note="the authors' way: all logits in fp32, layers checkpointed",
    ),
    Implementation(
        name="two-branch DPO",
        role="torch",
        load=lambda: two_branches,
        comparable=False,
        note="padded, no third branch, no reference: less is computed",
    ),
)
# The same for objectives of more branches.
OBJECTIVE = (
    Implementation(
        name="ours", role="ours", load=lambda: packed, note="reference cached; every picture's prompt shared"
    ),
    Implementation(
        name="separate passes",
        role="torch",
        load=lambda: separate_passes,
        note="a pass for each branch: our kernels, nothing shared",
    ),
)
