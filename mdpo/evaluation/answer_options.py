"""The options that every command has in which a model answers questions, and what follows from them."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import ProcessorMixin

from mdpo.data import PromptRow, read_rows, size_pictures
from mdpo.data.picture_size import size_options
from mdpo.data.row_store import Rows
from mdpo.data.text_options import text_options
from mdpo.errors import InputError
from mdpo.hub import folder_of
from mdpo.models import load, load_processor, load_with_adapter

from .answering import data_fingerprint, fingerprint
from .questions import read_questions
from .trained_text import say_other_prompt


def check_answer_options(options: argparse.Namespace) -> None:
    """What can be said before anything is read. Raises InputError for a value that cannot be used."""
    if options.batch_size < 1:
        raise InputError(f"--batch-size is {options.batch_size}; expected a number above 0")
    text_options(options)
    size_options(options)


def asked_rows(options: argparse.Namespace) -> Rows:
    """The questions. Raises InputError as ``read_rows``."""
    return read_rows(
        options.data,
        options.image_dir,
        kind=PromptRow,
        allow_outside=options.allow_outside,
        ignore_columns=options.ignore_columns,
    )


def questions_of(options: argparse.Namespace) -> Sequence[PromptRow]:
    """The questions of a file of rows, or of a benchmark's own. Raises InputError as ``asked_rows`` and
    ``read_questions``."""
    if options.benchmark is None:
        return asked_rows(options)
    if options.ignore_columns:
        raise InputError("--ignore-columns: a benchmark's file is read by its own columns; leave it out")
    return read_questions(options.data, options.benchmark, options.image_dir, allow_outside=options.allow_outside)


def source_of(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``Source``. Raises InputError where model, adapter or data are not there."""
    own = {"data": data_fingerprint(options.data), "max_new_tokens": options.max_new_tokens}
    return reader_of(options) | own


def reader_of(options: argparse.Namespace) -> dict[str, Any]:
    """The model, and how it reads questions: the fields of ``Source`` that say so. Raises InputError where model or
    adapter are not there."""
    return {
        "model": fingerprint(folder_of(options.model)),
        "adapter": None if options.adapter is None else fingerprint(folder_of(options.adapter, called="adapter")),
        "dtype": options.dtype,
        "text": text_options(options).digest(),
        "pictures": size_options(options).values() or None,
    }


def open_processor(options: argparse.Namespace) -> ProcessorMixin:
    """The model's processor, with pictures sized as the options say. Raises InputError as ``load_processor``."""
    return size_pictures(load_processor(options.model), size_options(options))


def open_model(options: argparse.Namespace) -> tuple[nn.Module, ProcessorMixin]:
    """The model, with its adapter and on the GPU where there is one, and its processor.

    Raises InputError as ``load_with_adapter``.
    """
    processor = open_processor(options)
    model: Any
    if options.adapter is None:
        model = load(options.model, dtype=options.dtype)
    else:
        model = load_with_adapter(options.model, options.adapter, dtype=options.dtype)
        say_other_prompt(folder_of(options.adapter, called="adapter"), text_options(options), size_options(options))
    try:
        return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{options.model} does not fit into the GPU's memory: give --dtype bfloat16, or free what others hold of it"
        ) from error


@contextmanager
def memory_advice(options: argparse.Namespace) -> Iterator[None]:
    """Raises InputError with what to lower where the GPU's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the GPU's memory is too small for {options.batch_size} answers of up to {options.max_new_tokens} "
            "tokens at a time: lower --batch-size, then --max-new-tokens or --max-pixels; the answers so far are kept"
        ) from error
