"""All rows' token ids: by several processes where there are many rows, and kept beside the data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from tqdm.auto import tqdm

from mdpo.errors import InputError

from .blob import Blob
from .cache import code_digest, digest
from .encode import Encoder
from .images import CHUNK
from .problem import RowError
from .row_files import append_file
from .row_store import Rows
from .text_options import TextOptions
from .token_store import WEIGHTED, Tokens, TokenWriter
from .workers import processes, read_json, share, write_json

MANY = 20_000  # rows, below which another process is not worth starting


def tokenise(rows: Rows, encoder: Encoder, options: TextOptions) -> Tokens:
    """Every row's prompt and answers, the prompt's images not expanded and the answers whole.

    Raises the RowError of the first row that the template refuses, and InputError for a tokenizer with an id past
    int32.
    """
    largest = max(encoder.tokenizer.get_vocab().values(), default=0)
    if largest > np.iinfo(np.int32).max:
        raise InputError(
            f"the tokenizer has a token with id {largest}, for which no model has an embedding; use the tokenizer "
            "that was saved with the model"
        )
    if len(rows) < MANY:
        writer = TokenWriter(largest)
        _write(rows, encoder, range(len(rows)), writer)
        return writer.finish()
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    key = digest(
        code_digest(), transformers.__version__, tokenizers.__version__, rows.digest(), options.values(), encoder.key()
    )

    def make(folder: Path) -> None:
        _make(folder, rows, encoder, largest)

    return rows.cache.entry("tokens", key, make, lambda folder: _load(folder, len(rows)), keep=backend is not None)


def _write(rows: Rows, encoder: Encoder, part: range, writer: TokenWriter) -> None:
    for start in tqdm(range(part.start, part.stop, CHUNK), "tokenising", leave=False, disable=None):
        for encoded in encoder.rows(rows.chunk(start, min(start + CHUNK, part.stop))):
            if isinstance(encoded, RowError):
                raise encoded
            writer.add(encoded)


def _make(folder: Path, rows: Rows, encoder: Encoder, largest: int) -> None:
    count = processes()
    cuts = [len(rows) * number // count for number in range(count + 1)]
    parts = [folder / f"part-{number}" for number in range(count)]

    def work(number: int) -> None:
        parts[number].mkdir()
        writer = TokenWriter(largest, parts[number])
        try:
            _write(rows, encoder, range(cuts[number], cuts[number + 1]), writer)
        except RowError as error:
            if not number:  # nothing that the others find comes before it
                raise
            write_json(parts[number] / "error.json", [error.where, error.field, error.problem, error.remedy])
            return
        _save(writer.finish(), parts[number])

    share(work, count)
    _merge(parts, folder)


def _save(tokens: Tokens, folder: Path) -> None:
    np.save(folder / "ends.npy", tokens.ends)
    np.save(folder / "weight_ends.npy", tokens.weight_ends)
    write_json(folder / "tokens.json", {"dtype": tokens.dtype.str})


def _load(folder: Path, rows: int) -> Tokens:
    ends, weight_ends = _ends(folder)
    dtype = np.dtype(read_json(folder / "tokens.json")["dtype"])
    tokens = Tokens(Blob(folder / "tokens"), ends, dtype, Blob(folder / "weights"), weight_ends)
    falling = any((np.diff(found, prepend=0) < 0).any() for found in (ends, weight_ends))
    if len(tokens) != rows or len(weight_ends) != rows * len(WEIGHTED) or falling:
        raise ValueError("another number of rows")
    return tokens


def _merge(parts: Sequence[Path], folder: Path) -> None:
    whole: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    dtype: Any = None
    for part in parts:
        if (part / "error.json").exists():
            raise RowError.at(*json.loads((part / "error.json").read_bytes()))
        dtype = np.dtype(read_json(part / "tokens.json")["dtype"])
        for ends, own in zip(whole, _ends(part), strict=True):
            ends.append(own + (ends[-1][-1] if ends and len(ends[-1]) else 0))
        for name in ("tokens", "weights"):
            append_file(part / name, folder / name)
        for path in part.iterdir():
            path.unlink()
        part.rmdir()
    ends, weight_ends = map(np.concatenate, whole)
    _save(Tokens(Blob(b""), ends, dtype, Blob(b""), weight_ends), folder)


def _ends(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    ends, weight_ends = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("ends", "weight_ends"))
    return ends, weight_ends
