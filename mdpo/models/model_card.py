"""The README.md of a merged model: what it was made of, and how."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdpo.outputs import write_text
from mdpo.shown import markdown, redacted

from .folder import read_object

_LONGEST = 1000  # characters of a value
RECORD_NAME = "mdpo_run.json"
_PACKAGES = ("multimodal-dpo", "torch", "transformers", "peft", "bitsandbytes")


def versions() -> dict[str, str]:
    """Of what takes part in training and merging, as far as it is installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_run_record(
    folder: str | Path, run: Mapping[str, Any], *, base_weights: str | None, text: Mapping[str, Any]
) -> None:
    """Beside an adapter: the run's settings that the trainer does not know, the digest of the base model's weights, the
    settings of the text that it read, and the versions it ran with. Raises OutputError where it cannot be written."""
    record = {"run": dict(run), "base_weights": base_weights, "text": dict(text), "versions": versions()}
    write_text(Path(folder, RECORD_NAME), json.dumps(redacted(record), indent=1))


def model_card(adapter: Path, base: Path) -> str:
    """From the files that training left in ``adapter``, or in the run's folder around a checkpoint; what is not there
    is left out."""
    record = _read(adapter, RECORD_NAME)
    run, trained_with = _mapping(record.get("run")), _mapping(record.get("versions"))
    settings = _read(adapter, "mdpo_settings.json")
    state = _read(adapter, "trainer_state.json")
    lora = _read(adapter, "adapter_config.json")
    evaluated, logged = _last_metrics(state.get("log_history"))
    sections = {
        "Base": {"model": str(base), "weights while training": "4 bits (NF4)" if run.get("load_in_4bit") else None},
        "Data": {
            "rows": run.get("train_data"),
            "images": run.get("image_dir"),
            "number (digest)": settings.get("rows"),
            "negative": settings.get("negative"),
        },
        "Training": {"steps": state.get("global_step"), "epochs": state.get("epoch")}
        | {name: value for name, value in settings.items() if name not in ("rows", "negative")}
        | {f"lora {name}": lora.get(name) for name in ("r", "lora_alpha", "lora_dropout", "target_modules")},
        "Metrics": logged | evaluated,
        "Versions": {f"{name} (training)": version for name, version in trained_with.items()}
        | {f"{name} (merging)": version for name, version in versions().items()},
    }
    text = "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags: [mdpo, dpo]\n---\n\n"
    text += f"# {markdown(adapter.resolve().name)}\n\nA LoRA adapter trained with mDPO, merged into its base model.\n"
    for title, values in sections.items():
        rows = "".join(f"| {markdown(name)} | {_cell(value)} |\n" for name, value in values.items() if value is not None)
        text += f"\n## {title}\n\n" + (f"| | |\n|---|---|\n{rows}" if rows else "Not recorded.\n")
    return text


def _read(adapter: Path, name: str) -> dict[str, Any]:
    """The file in the adapter's folder, its run's, or the run's newest checkpoint; nothing where it is in none."""
    checkpoints = sorted(adapter.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in (adapter, *checkpoints, adapter.parent if adapter.name.startswith("checkpoint-") else adapter):
        if (folder / name).is_file():
            return read_object(folder / name)
    return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _last_metrics(history: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last evaluation's and the last training log line's."""
    evaluated: dict[str, Any] = {}
    logged: dict[str, Any] = {}
    for entry in history if isinstance(history, list) else ():
        if not isinstance(entry, dict):
            continue
        if "eval_loss" in entry:
            evaluated = {name: value for name, value in entry.items() if name.startswith("eval_")}
        elif "loss" in entry:
            logged = {name: value for name, value in entry.items() if name not in ("epoch", "step")}
    return evaluated, logged


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else _clipped(str(redacted(value)))
    return markdown(text)


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
