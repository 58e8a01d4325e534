"""The branches' log-probs and rewards of every row."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from mdpo.data import PreferenceDataset
from mdpo.errors import InputError
from mdpo.models import ReferenceCache, branch_logps
from mdpo.models.start_check import check_packed, first_examples, rounding_of
from mdpo.packing import MDPO_BRANCHES, Batch, Separate, family_of, pack, part, plan

Logps = dict[str, tuple[float, ...]]  # of each row's branches, in their order, by the row's id


@torch.no_grad()
def row_logps(
    model: nn.Module,
    dataset: PreferenceDataset,
    *,
    branches: Sequence[str] = MDPO_BRANCHES,
    token_budget: int = 16384,
    cache: ReferenceCache | None = None,
) -> Logps:
    """The log-probs of every row under a model.

    Args:
        model: bare or PEFT, on its device.
        dataset: the rows, encoded for the model.
        branches: what is read of each row.
        token_budget: packed tokens of a micro-batch, at most.
        cache: where log-probs are looked up first, and kept; for a model that is some run's reference.

    Returns:
        A tuple for each row by its id, in the order of ``branches``; NaN for a branch that the row does not have.

    Raises:
        InputError: a log-prob is not finite, or a row is longer than the budget; with the row.
    """
    model.eval()
    scored: Logps = {}
    for batch in _micro_batches(model, dataset, branches, token_budget):
        logps = branch_logps(model, batch).cpu() if cache is None else _cached(model, batch, cache)
        _check_finite(batch, logps)
        scored |= dict(zip(batch.ids, map(tuple, logps.T.tolist()), strict=True))
    return scored


def _check_finite(batch: Batch, logps: Tensor) -> None:
    """NaN says that a row does not have a branch: a broken number would pass for one."""
    broken = batch.present.cpu() & ~logps.isfinite()
    if broken.any():
        branch, example = broken.nonzero()[0].tolist()
        raise InputError(
            f"row {batch.ids[example]!r}, {batch.branches[branch]}: the log-prob is "
            f"{float(logps[branch, example])}; a weight of the model is not a number, or values overflow in its "
            "dtype (float32 has room)"
        )


def _cached(model: nn.Module, batch: Batch, cache: ReferenceCache) -> Tensor:
    found = cache.find(batch)
    if not found.missing:
        return found.logps
    computed = branch_logps(model, part(batch, found.missing).packed).cpu()
    logps = found.logps.where(~found.logps.isnan(), computed)
    cache.keep(cache.new_records(batch, logps))
    return logps


def score(
    model: nn.Module,
    dataset: PreferenceDataset,
    *,
    branches: Sequence[str] = MDPO_BRANCHES,
    reference: Logps | None = None,
    token_budget: int = 16384,
    beta: float = 0.1,
    cache: ReferenceCache | None = None,
) -> Iterator[dict[str, Any]]:
    """A record per row, in the order of the rows.

    Args:
        model: bare, or PEFT.
        branches: as which the rows are read, by name.
        reference: ``row_logps`` of the base model, from before an adapter was put on it: afterwards some kinds of
            adapter leave another model behind when they are switched off. A bare model is its own reference.
        beta: of the rewards, β(π − ρ).
        cache: as in ``row_logps``; of a bare model.

    Yields:
        ``id``, and by branch ``policy_logps``, ``reference_logps`` and ``rewards``; None for a branch that the row does
        not have.

    Raises InputError for a PEFT model without a reference.
    """
    if reference is None and isinstance(model, PeftModel):
        raise InputError(
            "reference is missing: give row_logps of the base model, from before the adapter was put on it"
        )
    policy = row_logps(model, dataset, branches=branches, token_budget=token_budget, cache=cache)
    reference = policy if reference is None else reference
    for row in dataset.rows:
        rewards = [beta * (p - r) for p, r in zip(policy[row.id], reference[row.id], strict=True)]
        values = {"policy_logps": policy[row.id], "reference_logps": reference[row.id], "rewards": rewards}
        yield {"id": row.id} | {name: _by_branch(branches, numbers) for name, numbers in values.items()}


def check_first_rows(model: nn.Module, dataset: PreferenceDataset, branches: Sequence[str] = MDPO_BRANCHES) -> str:
    """The start check of training on the first rows. Returns its line; raises InputError beyond rounding."""
    model.eval()
    examples = first_examples(dataset.lengths.tolist(), dataset.__getitem__)
    return check_packed(model, examples, branches=branches, rounding=rounding_of(model)).line


def _micro_batches(
    model: nn.Module, dataset: PreferenceDataset, branches: Sequence[str], token_budget: int
) -> Iterator[Batch]:
    family = family_of(model)
    device = next(model.parameters()).device
    dataset.check_budget(token_budget, family)
    micro_batches = itertools.chain.from_iterable(
        plan(dataset.lengths_for(family), token_budget, examples_per_step=256, padded=isinstance(family, Separate))
    )
    for micro_batch in tqdm(list(micro_batches), "scoring", leave=False, disable=None):
        yield pack([dataset[index] for index in micro_batch], family, branches=branches).to(device)


def _by_branch(branches: Sequence[str], values: Sequence[float]) -> Mapping[str, float | None]:
    return {name: None if value != value else value for name, value in zip(branches, values, strict=True)}
