"""What the trainer is given as rows, as data sets."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn
from transformers import ProcessorMixin

from mdpo.config import MDPOConfig
from mdpo.data import DataOptions, PreferenceDataset, PreferenceRow, parse_rows
from mdpo.data import Rows as Checked
from mdpo.errors import InputError
from mdpo.models.image_embeddings import image_embeddings
from mdpo.objectives import objective_of
from mdpo_kernels import Term

_log = logging.getLogger(__name__)

Rows = Iterable[PreferenceRow] | Iterable[Mapping] | PreferenceDataset
EvalRows = Rows | dict[str, Rows]


def eval_datasets_of(
    rows: EvalRows | None, processor: ProcessorMixin, args: MDPOConfig
) -> PreferenceDataset | dict[str, PreferenceDataset | None] | None:
    """As ``dataset_of``, of each in a dict of several."""
    if not isinstance(rows, dict):
        return dataset_of(rows, processor, args)
    return {str(name): dataset_of(part, processor, args, f"eval_dataset[{name!r}]") for name, part in rows.items()}


def dataset_of(
    rows: Rows | None, processor: ProcessorMixin, args: MDPOConfig, name: str = "eval_dataset"
) -> PreferenceDataset | None:
    """name: of the argument. Raises InputError for rows that cannot be read, and where no term of the objective has a
    row.
    """
    if rows is None:
        return None
    objective = objective_of(args)
    if not isinstance(rows, PreferenceDataset):
        checked = parse_rows(rows, Path.cwd(), source=name, ignore_columns=args.ignore_columns)
        options = DataOptions.of(args, objective)
        if name != "train_dataset":
            options = _held_out(options, checked, name)
        rows = PreferenceDataset(checked, processor, options)
    _check_terms(rows, objective.terms, name)
    return rows


def _check_terms(dataset: PreferenceDataset, terms: Sequence[Term], name: str) -> None:
    """A loss of which every row lacks every term would be 0, and the best there is."""
    read = [set(term.branches) for term in terms]
    if len(dataset) and not any(map(dataset.any_with, read)):
        raise InputError(
            f"{name}: no row has all that any term of the objective reads (as {terms[0].name}: "
            f"{', '.join(sorted(read[0]))}), so there is no loss; give rows that have it, or choose another "
            "objective"
        )


def cache_folder(args: MDPOConfig) -> Path | None:
    """Where what a frozen model computes is kept for the next run; None where it is not."""
    return (
        Path(args.reference_cache_dir or Path(str(args.output_dir), "reference_cache"))
        if args.cache_reference
        else None
    )


def find_neighbours(dataset: PreferenceDataset | None, model: nn.Module, args: MDPOConfig) -> None:
    """Asks the model which pictures look alike, where the data set's negative wants to know.

    model: on its device. Raises InputError for a row without another picture.
    """
    if dataset is None:
        return
    with args.main_process_first(local=False, desc="embedding pictures"):  # the others find its file
        dataset.find_neighbours(partial(image_embeddings, model, folder=cache_folder(args)))


def _held_out(options: DataOptions, rows: Checked, name: str) -> DataOptions:
    """A few held-out rows may all be without what those that train have: the branches that read it are left out."""
    left_out = options.beside_image if rows.first_with_images() is None else ()
    if left_out:
        _log.warning("%s: no row has an image, so its loss is without %s", name, options.terms_beside_image)
    if options.reads_contrast and all(row.contrast is None for row in rows):
        terms = ", ".join(options.contrast)
        _log.warning("%s: no row has a contrast, so its loss is without the terms that read %s", name, terms)
        left_out += options.contrast
    branches = tuple(branch for branch in options.branches if branch not in left_out)
    if not branches:
        raise InputError(f"{name}: no row has what the objective reads ({', '.join(left_out)}); give rows that have it")
    return replace(options, branches=branches)
