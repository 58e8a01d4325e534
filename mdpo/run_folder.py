"""One run per folder: whether a folder holds a run already, and what of it that run has written."""

import json
import shutil
from pathlib import Path

from mdpo.errors import InputError
from mdpo.output_checks import is_same

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
# What else training writes into its folder, beside checkpoints.
_BESIDE = (
    "config.json", "adapter_config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "image_processor_config.json", "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "chat_template.json", "mdpo_base.json",
)  # fmt: skip
_STAGING = ".saving"  # where checkpoints are written, and wait while they are replaced
# and of nothing else
_OF_TRAINING = (
    "training_args.bin",
    "trainer_state.json",
    "mdpo_run.json",
    "sample_answers.html",
    "sample_answers.jsonl",
)


def check_free(
    folder: str | Path, resume: str | bool | None, *, overwrite: bool, inputs: dict[str, str | None]
) -> None:
    """Whether a run may begin in ``folder``.

    Args:
        resume: the checkpoint to go on from; True for the newest one there.
        overwrite: whether a run that is there may be removed.
        inputs: what the run reads, by setting.

    Raises InputError, with the ways on, where the folder holds a run that this one does not go on with, or is itself
    one of the inputs.
    """
    folder = Path(folder).expanduser()
    for name, path in inputs.items():
        if path and is_same(folder, path):
            raise InputError(f"output_dir: {folder} is what {name} reads; give another --output_dir")
    if resume is True or resume and is_inside(resume, folder):
        return
    found = held_run(folder)
    if found is None:
        return
    if not _is_trained(folder):
        raise InputError(
            f"output_dir: {folder} contains a model that no training here has written ({found}); give another "
            "--output_dir"
        )
    if not overwrite:
        goes_on = "" if found in _WEIGHTS else "go on with it by --resume_from_checkpoint true, "
        raise InputError(
            f"output_dir: {folder} contains a run already ({found}); {goes_on}give another --output_dir, or remove "
            "it with --overwrite_output_dir true"
        )
    for name, path in inputs.items():
        if path and any(is_inside(path, part) for part in run_files(folder)):
            raise InputError(
                f"overwrite_output_dir: {folder} contains {path}, which {name} reads; give another --output_dir"
            )


def is_inside(path: str | Path, folder: Path) -> bool:
    """Whether a path is a folder or lies below it."""
    return Path(path).expanduser().resolve().is_relative_to(folder.resolve())


def held_run(folder: Path) -> str | None:
    """What there is of a run in a folder: a checkpoint, or the weights at its end.

    None where a run left less, or none.
    """
    # One that was being replaced when its process was killed has its place back at the run's next start.
    there = _checkpoints(folder) + _checkpoints(folder / _STAGING / "replaced")
    checkpoints = [path.name for path in there if _is_json(path / "trainer_state.json")]
    if checkpoints:
        return max(checkpoints, key=lambda name: int(name.rpartition("-")[2]))
    for weights in _WEIGHTS:
        config = "adapter_config.json" if weights.startswith("adapter") else "config.json"
        if (folder / weights).is_file() and (folder / config).is_file():
            return weights
    return None


def way_anew(folder: str | Path) -> str:
    """How to begin a run for this folder, said where there is nothing to resume from."""
    if held_run(Path(folder).expanduser()) is None:
        return "leave it out to start the run anew"
    return "leave it out, and start anew in another --output_dir, or here with --overwrite_output_dir true"


def _is_trained(folder: Path) -> bool:
    return (
        bool(_checkpoints(folder))
        or (folder / _STAGING).is_dir()
        or any((folder / name).is_file() for name in _OF_TRAINING)
    )


def run_files(folder: Path) -> list[Path]:
    """What training wrote into ``folder``: nothing of anybody else's, and not the reference cache, which is no
    run's.
    """
    named = [folder / name for name in (*_WEIGHTS, *_BESIDE, *_OF_TRAINING)]
    files = [path for path in (*named, *folder.glob("model-*-of-*.safetensors")) if path.is_file()]
    staging = [folder / _STAGING] if (folder / _STAGING).is_dir() else []
    return [*_checkpoints(folder), *_numbered(folder, "weights"), *files, *staging]


def published_files(folder: Path) -> list[Path]:
    """What of a run is for others: weights, configs, processor and card; no checkpoint, and nothing that tells of this
    machine.
    """
    kept = (*folder.glob("model-*-of-*.safetensors"), *folder.glob("additional_chat_templates/*.jinja"))
    return [path for path in (*(folder / name for name in (*_WEIGHTS, *_BESIDE, "README.md")), *kept) if path.is_file()]


def remove_run(folder: str | Path) -> None:
    """Removes ``run_files``."""
    for path in run_files(Path(folder).expanduser()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    return _numbered(folder, "checkpoint")


def _numbered(folder: Path, kind: str) -> list[Path]:
    return [
        path for path in folder.glob(f"{kind}-*") if path.name.removeprefix(f"{kind}-").isdecimal() and path.is_dir()
    ]


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True
