"""``mdpo score``: the rows of a preference file in, their log-probs and rewards out."""

import argparse
import json
import logging
from functools import partial

import torch

from mdpo.data import DataOptions, PreferenceDataset, read_rows, size_pictures
from mdpo.data.negatives import parse_negative
from mdpo.data.picture_size import size_options
from mdpo.data.text_options import text_options
from mdpo.errors import InputError
from mdpo.hub import folder_of
from mdpo.models import ReferenceCache, check_trainable, fingerprint, load, load_processor
from mdpo.models.adapters import load_adapter
from mdpo.models.image_embeddings import image_embeddings
from mdpo.objectives import PRESETS
from mdpo.output_checks import Output
from mdpo.outputs import write_text
from mdpo.settings import BETA, check_range
from mdpo.shown import say

from .row_checks import check_rows
from .score import check_first_rows, row_logps, score
from .trained_text import say_other_prompt

_log = logging.getLogger(__name__)


def scored_files(options: argparse.Namespace) -> list[Output]:
    return [Output("--output", options.output)]


def run_score(options: argparse.Namespace) -> None:
    check_range("--beta", options.beta, BETA)
    check_range("--token-budget", options.token_budget, "(0, inf)")
    parse_negative(options.negative)
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}; expected a number from 0 on")
    size = size_options(options)
    check_trainable(options.model)  # before gigabytes of data are fetched
    adapter = None if options.adapter is None else folder_of(options.adapter, called="adapter")
    rows = read_rows(
        options.data, options.image_dir, allow_outside=options.allow_outside, ignore_columns=options.ignore_columns
    )
    images = rows.first_with_images() is not None
    if not images:
        _log.warning("no row of %s has an image: branches with another image are null in every record", options.data)
    branches = PRESETS[options.objective].branches
    data = DataOptions(
        branches=branches if images else ("chosen", "rejected"),
        negative=options.negative,
        seed=options.seed,
        text=text_options(options),
        changed_weight=options.changed_weight,
    )
    processor = size_pictures(load_processor(options.model), size)
    base = load(options.model, dtype=options.dtype)
    torch.nn.Module.to(base, "cuda" if torch.cuda.is_available() else "cpu")
    dataset = PreferenceDataset(rows, processor, data)
    dataset.find_neighbours(partial(image_embeddings, base, folder=options.reference))
    check_rows(base, processor, dataset)
    cache = ReferenceCache(options.reference, fingerprint(base)) if options.reference is not None else None
    if not options.no_check_start:
        _log.info(check_first_rows(base, dataset, branches))
    # Before the adapter goes on: some kinds leave another model behind when they are switched off.
    reference = row_logps(base, dataset, branches=branches, token_budget=options.token_budget, cache=cache)
    model: torch.nn.Module = base
    if adapter is not None:
        model = load_adapter(base, adapter, base=options.model)
        say_other_prompt(adapter, data.text, size)
        if not options.no_check_start:
            _log.info(check_first_rows(model, dataset, branches))
    records = score(
        model, dataset, branches=branches, reference=reference, token_budget=options.token_budget, beta=options.beta
    )
    write_text(options.output, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    say(f"wrote {options.output}")
    if cache is not None:
        print(cache.line)
