"""What the trainer is given as rows, as data sets."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from transformers import ProcessorMixin

from mdpo.config import MDPOConfig
from mdpo.data import DataOptions, PreferenceDataset, PreferenceRow, parse_rows

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
    rows: Rows | PreferenceDataset | None, processor: ProcessorMixin, args: MDPOConfig, name: str = "eval_dataset"
) -> PreferenceDataset | None:
    """name: of the argument. Raises InputError for rows that cannot be read."""
    if rows is None or isinstance(rows, PreferenceDataset):
        return rows
    checked = parse_rows(rows, Path.cwd(), source=name, ignore_columns=args.ignore_columns)
    options = DataOptions.of(args)
    # A few held-out rows may all be without an image where those that train are not.
    if options.image_rejected and name != "train_dataset" and checked.first_with_images() is None:
        _log.warning("%s: no row has an image, so its loss is without the image preference", name)
        options = replace(options, image_rejected=False)
    return PreferenceDataset(checked, processor, options)
