"""Reference log-probs on disk: a frozen model says the same of the same example in every epoch and every run.

A record's name is a digest of what the number depends on: the base weights, the dtype they run in, and everything
the model sees of the example (token ids and processed images, so row, image bytes, negative, template, length limit
and image processor are all in it). A cache can therefore be incomplete, never wrong: what has changed is not found.

One folder holds a file per model, a JSON line per example, appended by one process as they are computed. A line torn by
a crash is dropped; the records before it stand.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mdpo.packing import PackedBatch

from .logps import unwrap

_log = logging.getLogger(__name__)


def fingerprint(model: nn.Module, autocast: torch.dtype | None = None) -> str:
    """A digest of the base weights, the config and the dtype they run in; adapters have no part in it.

    model: bare or PEFT. autocast: the dtype of the autocast that the reference runs under, if any. Reads every weight
    once: about a second per GB.
    """
    base = unwrap(model)
    digest = hashlib.blake2b(digest_size=16)
    # What the forward computes depends on; not where the files came from or which attention is set just now.
    config = base.config.to_dict()
    digest.update(json.dumps([config.get("model_type"), str(autocast)]).encode())
    for name, tensor in sorted(_base_weights(base)):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        for piece in tensor.detach().reshape(-1).split(2**26):  # bounds the copy that leaves the GPU
            digest.update(piece.contiguous().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _base_weights(base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the frozen model's weights, named as without adapters."""
    for name, parameter in base.named_parameters():
        parts = name.split(".")
        if "modules_to_save" in parts or any(part.startswith("lora_") for part in parts):
            continue
        name = ".".join(part for part in parts if part not in ("base_layer", "original_module"))
        yield name, parameter
        quant_state = getattr(parameter, "quant_state", None)
        if quant_state is not None:  # 4-bit codes say nothing without their scales
            for part, value in quant_state.as_dict(packed=True).items():
                yield f"{name}.{part}", value


class Record(NamedTuple):
    """logps: chosen, rejected, image_rejected; NaN for a branch that the example does not have."""

    digest: str
    id: str
    logps: tuple[float, float, float]


class ReferenceCache:
    """The reference log-probs of one model, kept in ``folder``. See the module's docstring.

    writes: whether this process keeps the file; the other ranks of a run only read it.
    """

    def __init__(self, folder: str | Path, model_fingerprint: str, *, writes: bool = True) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.writes = writes
        self._path = self.folder / f"{model_fingerprint}.jsonl"
        self._logps: dict[str, tuple[float, float, float]] = {}
        if self._path.exists():
            self._read()
        elif any(self.folder.glob("*.jsonl")):
            _log.warning("%s holds the reference of another model or dtype: computing this one's", self.folder)

    def __len__(self) -> int:
        return len(self._logps)

    def find(self, packed: PackedBatch) -> Tensor | None:
        """(3, B) float32 on the CPU, or None where an example of the micro-batch is not there yet."""
        logps = [self._logps.get(digest) for digest in packed.digests]
        return None if None in logps else torch.tensor(logps, dtype=torch.float32).T.contiguous()

    def new_records(self, packed: PackedBatch, reference: Tensor) -> list[Record]:
        """Those of (3, B) log-probs that are not kept yet; waits for the device only where there are any."""
        if all(digest in self._logps for digest in packed.digests):
            return []
        columns = zip(packed.digests, packed.ids, map(tuple, reference.T.tolist()), strict=True)
        return [Record(*column) for column in columns if column[0] not in self._logps]

    def keep(self, records: Iterable[Record]) -> None:
        """Takes records into memory, and appends them to the file if this process writes it."""
        fresh = {record.digest: record for record in records if record.digest not in self._logps}
        self._logps |= {digest: record.logps for digest, record in fresh.items()}
        if self.writes and fresh:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record._asdict()) + "\n" for record in fresh.values())

    def _read(self) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        dropped = int(len(whole) < len(content))
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                chosen, rejected, image_rejected = map(float, record["logps"])
                self._logps[record["digest"]] = (chosen, rejected, image_rejected)
            except (ValueError, KeyError, TypeError):
                dropped += 1
        if self.writes and len(whole) < len(content):
            # Appending behind half a line would spoil the next record too.
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        if dropped:
            _log.warning("%s: %d damaged records are computed again", self._path, dropped)
