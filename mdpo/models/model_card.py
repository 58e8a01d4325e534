"""The README.md of a merged model, and of what a run leaves: what it was made of, and how."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mdpo.hub import hub_name
from mdpo.outputs import write_text
from mdpo.shown import markdown, redacted

from .folder import mapping, read_object

_LONGEST = 1000  # characters of a value
RECORD_NAME = "mdpo_run.json"
BASE_NAME = "mdpo_base.json"  # of the record, what whoever gets the adapter needs
CARD_NAME = "README.md"
# Kinds of adapters whose names peft writes otherwise than their papers.
_KINDS = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr", "VERA": "VeRA", "RANDLORA": "RandLoRA"}
_PACKAGES = ("multimodal-dpo", "torch", "transformers", "peft", "bitsandbytes")
_IN_SECTIONS_OF_THEIR_OWN = ("rows", "negative", "objective")
# By which a card of ours is told from one that the user wrote; the second is in peft's template.
_MARK, _TEMPLATE_MARK = (
    "<!-- written by multimodal-dpo, and again by every run in this folder -->",
    "# Model Card for Model ID",
)
_CITATION = """```bibtex
@inproceedings{wang2024mdpo,
  title = {{mDPO}: Conditional Preference Optimization for Multimodal Large Language Models},
  author = {Wang, Fei and Zhou, Wenxuan and Huang, James Y. and Xu, Nan and Zhang, Sheng and Poon, Hoifung
            and Chen, Muhao},
  booktitle = {Proceedings of the 2024 Conference on Empirical Methods in Natural Language Processing},
  year = {2024},
  url = {https://arxiv.org/abs/2406.11839},
}
```
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """What a trainer knows of its run.

    Attributes:
        base: Folder or name on the hub of the model that it started from.
        adapter: The kind of adapter that it trained, from ``adapter_kind``; None where it trained the model itself.
        settings: What its weights depend on, by name.
        source: The paper of its objective.
        history: Its log lines.
        steps: Optimizer steps that it made.
        epochs: Passes over the data; None before the first step.
    """

    base: str
    adapter: str | None
    settings: Mapping[str, Any]
    source: str
    history: list[dict[str, Any]]
    steps: int
    epochs: float | None


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
    settings of the text that it read, and the versions it ran with. The digest of an adapter's base is also in a file
    of its own, which tells nothing of this machine and may be published. Raises OutputError where it cannot be written.
    """
    record = {"run": dict(run), "base_weights": base_weights, "text": dict(text), "versions": versions()}
    write_text(Path(folder, RECORD_NAME), json.dumps(redacted(record), indent=1))
    if base_weights is not None and run.get("use_lora"):
        write_text(Path(folder, BASE_NAME), json.dumps({"base_weights": base_weights}, indent=1))


def adapter_kind(config: Mapping[str, Any]) -> str:
    """What people call the kind of an adapter. config: peft's, as it is saved."""
    peft_type = config.get("peft_type") or "LORA"
    kind = str(getattr(peft_type, "value", peft_type))
    return "DoRA" if kind == "LORA" and config.get("use_dora") else _KINDS.get(kind, kind)


def _adapter(kind: str) -> str:
    """With its article."""
    return f"{'An' if kind[0] in 'AEIO' else 'A'} {kind} adapter"


def write_run_card(folder: str | Path, run: FinishedRun, *, title: str | None = None) -> bool:
    """Writes ``run_card`` into the folder of a run, unless a card lies there that somebody else wrote. Returns whether
    it was written. Raises OutputError where it cannot be written."""
    path = Path(folder, CARD_NAME)
    if path.exists() and not any(
        mark in path.read_text(encoding="utf-8", errors="replace") for mark in (_MARK, _TEMPLATE_MARK)
    ):
        return False
    write_text(path, run_card(Path(folder), run, title=title))
    return True


def run_card(folder: Path, run: FinishedRun, *, title: str | None = None) -> str:
    """The card of what a run leaves. It may be published: a path on this machine is shown by its last part alone.

    Args:
        folder: The run's, with its record where ``mdpo train`` wrote one.
        title: What the model is called; None: as the folder.
    """
    recorded = mapping(_read(folder, RECORD_NAME).get("run"))
    base = recorded.get("model_name_or_path") or run.base
    data = recorded.get("train_data")
    evaluated, logged = _last_metrics(run.history)
    sections = {
        "Base": {
            "model": _public(base),
            "weights while training": "4 bits (NF4)" if recorded.get("load_in_4bit") else None,
        },
        "Data": {
            "rows": _public(data),
            "number (digest)": run.settings.get("rows"),
            "negative": run.settings.get("negative"),
        },
        "Objective": {"objective": run.settings.get("objective"), "after": run.source},
        "Training": {"steps": run.steps, "epochs": run.epochs}
        | {name: value for name, value in run.settings.items() if name not in _IN_SECTIONS_OF_THEIR_OWN},
        "Metrics": logged | evaluated,
        "Versions": versions(),
    }
    kind = "A model" if run.adapter is None else _adapter(run.adapter)
    return (
        f"{_front_matter(base, data, adapter=run.adapter)}\n{_MARK}\n\n# {markdown(title or folder.resolve().name)}\n\n"
        f"{kind} trained on preference pairs, starting from {markdown(_public(base))}.\n{_tables(sections)}"
        f"\n## Citation\n\n{_CITATION}"
    )


def model_card(adapter: Path, base: Path) -> str:
    """Of an adapter that is merged into its base, from the files that training left in ``adapter``, or in the run's
    folder around a checkpoint; what is not there is left out."""
    record = _read(adapter, RECORD_NAME)
    run, trained_with = mapping(record.get("run")), mapping(record.get("versions"))
    settings = _read(adapter, "mdpo_settings.json")
    state = _read(adapter, "trainer_state.json")
    config = _read(adapter, "adapter_config.json")
    kind = adapter_kind(config)
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
        | {
            f"{kind.lower()} {name}": config.get(name) for name in ("r", "lora_alpha", "lora_dropout", "target_modules")
        },
        "Metrics": logged | evaluated,
        "Versions": {f"{name} (training)": version for name, version in trained_with.items()}
        | {f"{name} (merging)": version for name, version in versions().items()},
    }
    text = "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags: [mdpo, dpo]\n---\n\n"
    text += (
        f"# {markdown(adapter.resolve().name)}\n\n{_adapter(kind)} trained on preference pairs, merged into its base "
        "model.\n"
    )
    return text + _tables(sections)


def _tables(sections: Mapping[str, Mapping[str, Any]]) -> str:
    text = ""
    for title, values in sections.items():
        rows = "".join(
            f"| {markdown(name)} | {_cell(value)} |\n" for name, value in values.items() if value is not None
        )
        text += f"\n## {title}\n\n" + (f"| | |\n|---|---|\n{rows}" if rows else "Not recorded.\n")
    return text


def _front_matter(base: str, data: Any, *, adapter: str | None) -> str:
    """What the hub reads. It takes names that it has, and refuses a card with others."""
    names = [_repository(each) for each in (data if isinstance(data, (list, dict)) else [data])]
    values: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": _repository(base),
        "base_model_relation": ("adapter" if adapter else "finetune") if _repository(base) else None,
        "datasets": [name for name in names if name],
        "tags": ["mdpo", "dpo", *(["lora"] if adapter == "LoRA" else [])],
    }
    return f"---\n{yaml.safe_dump({name: value for name, value in values.items() if value}, sort_keys=False)}---\n"


def _repository(path: Any) -> str | None:
    """``owner/name`` of a name on the hub, None for anything on this machine."""
    name = hub_name(str(path).partition(":")[0]) if isinstance(path, str) else None
    return None if name is None else name.repo


def _public(path: Any) -> Any:
    """Names on the hub as they are; of a path its last part."""
    if isinstance(path, dict):
        return ", ".join(f"{_public(each)} ({share:g})" for each, share in path.items())
    if isinstance(path, list):
        return ", ".join(str(_public(each)) for each in path)
    return path if path is None or _repository(path) else Path(str(path)).name


def _read(adapter: Path, name: str) -> dict[str, Any]:
    """The file in the adapter's folder, its run's, or the run's newest checkpoint; nothing where it is in none."""
    checkpoints = sorted(adapter.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in (adapter, *checkpoints, adapter.parent if adapter.name.startswith("checkpoint-") else adapter):
        if (folder / name).is_file():
            return read_object(folder / name)
    return {}


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
