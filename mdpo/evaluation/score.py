"""The branches' log-probs and rewards of every row."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from mdpo.data import PreferenceDataset
from mdpo.models import PackedPolicy, ReferenceCache
from mdpo.packing import family_of, pack, plan

BRANCHES = ("chosen", "rejected", "image_rejected")


@torch.no_grad()
def score(
    model: nn.Module,
    dataset: PreferenceDataset,
    *,
    token_budget: int = 16384,
    beta: float = 0.1,
    cache: ReferenceCache | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields a record per row, in the planner's order: ``id``, and by branch ``policy_logps``, ``reference_logps``
    and ``rewards``; None for a branch that the row does not have.

    model: bare, where policy and reference are the same, or PEFT, where the reference is the base model.
    cache: where the reference is looked up first, and kept.
    """
    policy = PackedPolicy(model, beta=beta).eval()
    family = family_of(model)
    micro_batches = itertools.chain.from_iterable(plan(dataset.lengths, token_budget, examples_per_step=256))
    device = next(model.parameters()).device
    for micro_batch in tqdm(list(micro_batches), "scoring", leave=False, disable=None):
        packed = pack([dataset[index] for index in micro_batch], family).to(device)
        reference = None if cache is None else cache.find(packed)
        output = policy(packed, None if reference is None else reference.to(device))
        if cache is not None:
            cache.keep(cache.new_records(packed, output.reference))
        columns = zip(output.policy.T.tolist(), output.reference.T.tolist(), output.loss.rewards.T.tolist(), strict=True)
        for id, values in zip(packed.ids, columns, strict=True):
            names = ("policy_logps", "reference_logps", "rewards")
            yield {"id": id} | {name: _by_branch(value) for name, value in zip(names, values, strict=True)}


def _by_branch(values: list[float]) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in zip(BRANCHES, values, strict=True)}
