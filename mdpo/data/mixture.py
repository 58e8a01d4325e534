"""Several data sets in given shares: the largest mixture in which no row comes twice, drawn before training."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdpo.stops import is_main_process

from .read import parse_rows, read_rows
from .row_store import Rows
from .sources import Where

logger = logging.getLogger(__name__)


def rows_of_run(data: Where | Mapping[str, float], run: Any, args: Any) -> Rows:
    """The rows of a run's train_data or eval_data.

    Args:
        data: as the setting has it.
        run: a ``RunConfig``.
        args: its ``MDPOConfig``.

    Raises:
        InputError: as ``read_rows``.
    """
    read = partial(
        read_rows, image_dir=run.image_dir, allow_outside=run.allow_outside, ignore_columns=args.ignore_columns
    )
    return mix(data, read, args.seed) if isinstance(data, Mapping) else read(data)


def mix(shares: Mapping[str, float], read: Callable[[str], Rows], seed: int) -> Rows:
    """Rows of several data sets, one data set after the other; an id becomes ``data set:id``.

    As many rows as the shares allow without one that comes twice: the data set that is smallest for its share gives all
    of its rows, the others a part that is drawn at random. How many rows each gives is logged.

    Args:
        shares: Numbers above 0 by data set; only their ratios count.
        read: Returns the rows of one, each with its own place for images.
        seed: Of the draws, which depend on nothing else but the numbers of rows and the order of ``shares``.

    Raises:
        InputError: as ``read``.
    """
    parts = {name: read(name) for name in shares}
    total = min(len(rows) / shares[name] for name, rows in parts.items())
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, rows in parts.items():
        count = min(max(round(total * shares[name]), 1), len(rows))
        order = torch.randperm(len(rows), generator=generator).numpy()[:count]
        drawn[name] = rows.select(np.sort(order))
    if is_main_process():
        said = ", ".join(f"{len(part):,} of {len(parts[name]):,} from {name}" for name, part in drawn.items())
        logger.info("train_data: %s rows: %s", f"{sum(map(len, drawn.values())):,}", said)
    rows = chain.from_iterable((replace(row, id=f"{name}:{row.id}") for row in part) for name, part in drawn.items())
    return parse_rows(rows, Path.cwd(), source="train_data")
