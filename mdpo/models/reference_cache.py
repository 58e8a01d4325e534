"""Reference log-probs on disk: a frozen model says the same of the same example in every epoch and every run.

A record's name is a digest of what the number depends on: the base weights, the dtype they run in, and everything
the model sees of the example (token ids and processed images, so row, image bytes, negative, template, length limit
and image processor are all in it). A cache can therefore be incomplete, never wrong: what has changed is not found.

One folder holds a file per model and rank, a JSON line per example, appended as they are computed. A line torn by a
crash is dropped; the records before it stand.
"""

import hashlib
import json
import logging
from pathlib import Path

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
            digest.update(memoryview(piece.contiguous().view(torch.uint8).cpu().numpy()))
    return digest.hexdigest()


def _base_weights(base: nn.Module):
    """(name, tensor) of the frozen model's weights, named as without adapters."""
    for name, parameter in base.named_parameters():
        parts = name.split(".")
        if "modules_to_save" in parts or any(part.startswith("lora_") for part in parts):
            continue
        yield ".".join(part for part in parts if part not in ("base_layer", "original_module")), parameter


class ReferenceCache:
    """The reference log-probs of one model, kept in ``folder``. See the module's docstring."""

    def __init__(self, folder: str | Path, model_fingerprint: str, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._records: dict[str, tuple[float, float, float]] = {}
        for path in sorted(self.folder.glob(f"{model_fingerprint}.*.jsonl")):
            self._read(path)
        others = {path.name.split(".")[0] for path in self.folder.glob("*.jsonl")} - {model_fingerprint}
        if others and not self._records:
            _log.warning("%s holds the reference of another model or dtype: computing this one's", self.folder)
        self._path = self.folder / f"{model_fingerprint}.{rank}.jsonl"

    def __len__(self) -> int:
        return len(self._records)

    def find(self, packed: PackedBatch) -> Tensor | None:
        """(3, B) float32 on the CPU, or None where an example of the micro-batch is not there yet."""
        records = [self._records.get(digest) for digest in packed.digests]
        return None if None in records else torch.tensor(records, dtype=torch.float32).T.contiguous()

    def add(self, packed: PackedBatch, reference: Tensor) -> None:
        """Keeps (3, B) log-probs, in memory and appended to the file."""
        if all(digest in self._records for digest in packed.digests):
            return
        with self._path.open("a", encoding="utf-8") as file:
            for digest, id, values in zip(packed.digests, packed.ids, reference.T.tolist(), strict=True):
                if digest not in self._records:
                    self._records[digest] = tuple(values)
                    file.write(json.dumps({"digest": digest, "id": id, "logps": values}) + "\n")

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        dropped = int(len(whole) < len(content))
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                chosen, rejected, image_rejected = map(float, record["logps"])
                self._records[record["digest"]] = (chosen, rejected, image_rejected)
            except (ValueError, KeyError, TypeError):
                dropped += 1
        if len(whole) < len(content):
            # Appending behind half a line would spoil the next record too.
            with path.open("r+b") as file:
                file.truncate(len(whole))
        if dropped:
            _log.warning("%s: %d damaged records are computed again", path, dropped)
