"""Reference log-probs on disk: a frozen model says the same of the same example in every epoch and every run.

A file's name is a digest of the reference: its weights, the whole config, the adapter that is part of it, the dtype it
runs in, and how (which attention, compiled or not, Liger's layers). A record's name is a digest of all that the
log-prob of one branch depends on (token ids, their weights and processed images, so row, image bytes, negative,
template, length limit and image processor are all in it). A cache can therefore be incomplete, never wrong: what has
changed is not found. And what one objective computed, every other one that has the branch finds.

One folder holds a file per model, a JSON line per branch, appended by one process as they are computed. A line torn by
a crash is dropped; the records before it stand. A full disk costs time alone: the run goes on without keeping more.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from mdpo.outputs import unwritten
from mdpo.packing import Batch

from .attention import attention_backend
from .logps import unwrap
from .reference import Reference, is_adapter_parameter
from .tensors_digest import tensors_digest

_log = logging.getLogger(__name__)


_RECORDS = "a number per branch"  # an earlier version kept one per example, under digests that say nothing here
# What a config says of files and of generating, and settings that trainers change without changing the numbers.
_NOT_THE_FORWARD = (
    "_name_or_path", "architectures", "transformers_version", "use_cache", "dtype", "torch_dtype",
    "_attn_implementation",
    "attn_implementation", "pad_token_id", "bos_token_id", "eos_token_id", "gradient_checkpointing",
    "quantization_config",
)  # fmt: skip


def fingerprint(
    model: nn.Module,
    autocast: torch.dtype | None = None,
    *,
    reference: Reference | None = None,
    compiled: bool = False,
    liger: bool = False,
    weights: str | None = None,
) -> str:
    """A digest of all that a reference's log-probs depend on beside the example.

    Args:
        model: the reference's model, bare or PEFT.
        autocast: the dtype of the autocast that the reference runs under, if any.
        reference: how the reference is made of ``model``; without it, the model with its adapter off.
        compiled, liger: whether its layers are compiled, or Liger's; like the attention's backend, that moves the
            numbers by rounding.
        weights: ``reference_weights`` of the same, where it is known already.
    """
    base = unwrap(model)
    with_adapter = reference is not None and reference.adapter
    digest = hashlib.blake2b(digest_size=16)
    configs = model.peft_config if isinstance(model, PeftModel) and with_adapter else {}
    adapters: Any = {name: config.to_dict() for name, config in configs.items()}
    if isinstance(model, PeftModel) and with_adapter:
        adapters = [adapters, model.active_adapters, _scales(model)]
    layers = {"attention": attention_backend(base, autocast), "compiled": compiled, "liger": liger}
    arithmetic = [str(autocast), next(base.parameters()).device.type, torch.get_float32_matmul_precision()]
    facts = [_RECORDS, _forward_config(base.config.to_dict()), _modules(base), adapters, layers, arithmetic]
    digest.update(json.dumps(facts, sort_keys=True, default=_as_text).encode())
    digest.update((reference_weights(model, reference) if weights is None else weights).encode())
    return digest.hexdigest()


def reference_weights(model: nn.Module, reference: Reference | None = None) -> str:
    """A digest of the reference's weights and buffers alone. Reads every one of them, on all cores."""
    base = unwrap(model)
    with_adapter = reference is not None and reference.adapter
    values = {} if reference is None else reference.values
    named: list[tuple[str, Tensor]] = []
    for name, parameter in model.named_parameters() if with_adapter else _base_parameters(model):
        named.append((_without_wrappers(name), values.get(name, parameter)))
        quant_state = getattr(parameter, "quant_state", None)
        if quant_state is not None:  # 4-bit codes say nothing without their scales
            parts = quant_state.as_dict(packed=True)
            named += [(f"{_without_wrappers(name)}.{part}", value) for part, value in parts.items()]
    named += [(_without_wrappers(name), buffer) for name, buffer in sorted(base.named_buffers())]
    return tensors_digest(named)


def _scales(model: nn.Module) -> list[tuple[str, str, str]]:
    """Each adapted layer's kind, and how much it adds of its adapters, which can be set by hand."""
    return [
        (name, type(module).__name__, str(module.scaling))
        for name, module in model.named_modules()
        if hasattr(module, "scaling")
    ]


def _modules(base: nn.Module) -> list[tuple[str, str, str, list]]:
    """Name, kind, arguments and numbers of every module of the base: Liger's layers, an activation, an epsilon or an
    attention's scale set by hand."""
    return sorted(
        (_without_wrappers(name), type(module).__qualname__, module.extra_repr(), _numbers(module))
        for name, module in base.named_modules()
        if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper, nn.Dropout))
        and not is_adapter_parameter(base, name)
    )


def _numbers(module: nn.Module) -> list[tuple[str, float]]:
    """A module's own numbers. Dropout is none of the reference's, which runs in evaluation mode."""
    return sorted(
        (name, value) for name, value in vars(module).items() if isinstance(value, float) and "drop" not in name
    )


def _forward_config(config: Any) -> Any:
    """The config without what the forward does not depend on, at every depth."""
    if isinstance(config, Mapping):
        return {str(name): _forward_config(value) for name, value in config.items() if name not in _NOT_THE_FORWARD}
    return [_forward_config(value) for value in config] if isinstance(config, (list, tuple)) else config


def _as_text(value: Any) -> str:
    return str(sorted(map(str, value)) if isinstance(value, (set, frozenset)) else value)


def _base_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """(name, parameter) of the model with its adapter off, in the order of their names without adapters."""
    kept = [(name, p) for name, p in model.named_parameters() if not is_adapter_parameter(model, name)]
    return sorted(kept, key=lambda pair: _without_wrappers(pair[0]))


def _without_wrappers(name: str) -> str:
    """A parameter's name as in the model without adapters."""
    parts = name.removeprefix("base_model.model.").split(".")
    return ".".join(part for part in parts if part not in ("base_layer", "original_module", "token_adapter"))


class Record(NamedTuple):
    """digest: of what the branch shows the model. id: the example's. logp: summed over the response."""

    digest: str
    id: str
    branch: str
    logp: float


class Found(NamedTuple):
    """logps: (K, B) float32 on the CPU, NaN where there is none. missing: the batch's sequences that were not found."""

    logps: Tensor
    missing: tuple[int, ...]


class ReferenceCache:
    """The reference log-probs of one model, kept in ``folder``. See the module's docstring.

    writes: whether this process keeps the file; the other ranks of a run only read it.

    ``found`` and ``computed`` count the branches that were looked up and that had to be computed, epoch by epoch.
    """

    def __init__(self, folder: str | Path, model_fingerprint: str, *, writes: bool = True) -> None:
        self.folder = Path(folder)
        self.writes = writes
        if writes:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self._write_no_more(error)
        self.found = self.computed = 0  # branches, since the cache was opened
        self._path = self.folder / f"{model_fingerprint}.jsonl"
        self._logps: dict[str, float] = {}
        if self._path.exists():
            self._read()
        elif any(self.folder.glob("*.jsonl")):
            _log.warning("%s contains the reference of another model or dtype: computing this one's", self.folder)

    def __len__(self) -> int:
        return len(self._logps)

    @property
    def line(self) -> str:
        """What was found and what was computed, in one line."""
        return f"reference cache {self.folder}: {self.found} branches found, {self.computed} computed"

    def find(self, batch: Batch) -> Found:
        """What is kept of the micro-batch."""
        logps = [self._logps.get(digest, math.nan) for digest in batch.digests]
        missing = tuple(at for at, digest in enumerate(batch.digests) if digest and digest not in self._logps)
        self.found += sum(map(bool, batch.digests)) - len(missing)
        return Found(torch.tensor(logps, dtype=torch.float32).view(len(batch.branches), -1), missing)

    def new_records(self, batch: Batch, reference: Tensor) -> list[Record]:
        """Those of (K, B) log-probs that are not kept yet; waits for the device only where there are any.

        One that is not finite is no number to find again.
        """
        fresh = [at for at, digest in enumerate(batch.digests) if digest and digest not in self._logps]
        if not fresh:
            return []
        self.computed += len(fresh)
        values, examples = reference.flatten().tolist(), len(batch.ids)
        return [
            Record(batch.digests[at], batch.ids[at % examples], batch.branches[at // examples], values[at])
            for at in fresh
            if math.isfinite(values[at])
        ]

    def keep(self, records: Iterable[Record]) -> None:
        """Takes records into memory, and appends them to the file if this process writes it."""
        fresh = {record.digest: record for record in records if record.digest not in self._logps}
        self._logps |= {digest: record.logp for digest, record in fresh.items()}
        if self.writes and fresh:
            self._append("".join(json.dumps(record._asdict()) + "\n" for record in fresh.values()).encode())

    def _append(self, lines: bytes) -> None:
        try:
            with self._path.open("ab", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                try:
                    while lines:  # a disk that is nearly full takes a part first
                        lines = lines[file.write(lines) :]
                except OSError:
                    with suppress(OSError):  # what stays of a line that is torn is never read
                        file.truncate(end)
                    raise
        except OSError as error:
            self._write_no_more(error)

    def _write_no_more(self, error: OSError) -> None:
        self.writes = False
        _log.warning(
            "reference cache %s cannot be written: %s; the run goes on and keeps no more of it",
            self.folder,
            unwritten(error),
        )

    def _read(self) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        dropped = int(len(whole) < len(content))
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                logp = float(record["logp"])
                if not math.isfinite(logp):
                    raise ValueError("a log-prob that training would stop at")
                self._logps[record["digest"]] = logp
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                dropped += 1
        if self.writes and len(whole) < len(content):
            # Appending behind half a line would spoil the next record too.
            try:
                with self._path.open("r+b") as file:
                    file.truncate(len(whole))
            except OSError as error:
                self._write_no_more(error)
        if dropped:
            _log.warning("%s: %d damaged records are computed again", self._path, dropped)
