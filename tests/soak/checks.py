"""What has to hold after a disturbance, and at the end. Written apart from what it checks: nothing of mdpo is asked."""

import json
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .kinds import Undisturbed, shape_of

WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
CHECKPOINT = re.compile(r"checkpoint-\d+")
_PARTS = ("trainer_state.json", "mdpo_settings.json", "optimizer.pt", "scheduler.pt")
_WAY_ON = "--resume_from_checkpoint"


def tracebacks(texts: list[str]) -> list[str]:
    return [
        f"process {rank}: a traceback that ends in {last_line(text)!r}"
        for rank, text in enumerate(texts)
        if "Traceback (most recent call last)" in text
    ]


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def ways_on(texts: list[str]) -> list[str]:
    """The lines that name the way on."""
    return [line for text in texts for line in text.splitlines() if _WAY_ON in line]


def errors(texts: list[str]) -> list[str]:
    return [line for text in texts for line in text.splitlines() if line.startswith("error: ")]


def checkpoints(out: Path) -> list[Path]:
    """Those under their name, oldest first."""
    found = [path for path in out.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def torn(out: Path) -> list[str]:
    """What is wrong with the checkpoints that stand under their names, and with final weights that stand under
    theirs.
    """
    problems = []
    for folder in checkpoints(out):
        names = {path.name for path in folder.iterdir()}
        missing = [name for name in _PARTS if name not in names]
        if not names & set(WEIGHTS):
            missing.append("weights")
        if not any(name.startswith("rng_state") for name in names):
            missing.append("rng_state")
        if missing:
            problems.append(f"{folder.name} lacks {', '.join(missing)}")
        problems += [f"{folder.name}/{name}" for name in _unreadable(folder)]
    return problems + [f"final {name}" for name in _unreadable(out)]


def _unreadable(folder: Path) -> list[str]:
    files = sorted(path for path in folder.glob("*") if path.is_file())
    return [f"{path.name} is torn: {why}" for path in files if (why := _why(path))]


def _why(path: Path) -> str | None:
    """Why a file cannot be read to its end, if so."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(path) as file:
                bad = file.testzip()
                return f"{bad} in it" if bad else None
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        return str(error).splitlines()[0]
    return None


def final(out: Path, whole: Undisturbed, limit: int | None) -> list[str]:
    """The end of a run that was disturbed and resumed, beside one that was not.

    limit: of checkpoints, if one was set.
    """
    problems = []
    ours, theirs = _weights(out), _weights(whole.folder)
    assert theirs is not None
    if ours is None:
        problems.append("there are no final weights")
    elif ours.keys() != theirs.keys():
        problems.append("the final weights have other names")
    else:
        far = max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)
        if not all(torch.equal(ours[name], theirs[name]) for name in ours):
            problems.append(f"the final weights differ by {far:.1e}")
    more = sorted(shape_of(out) - whole.files - _of_a_stop(out))
    if more:
        problems.append(f"left over: {', '.join(more[:6])}")
    if limit is not None and len(checkpoints(out)) > limit + 1:  # the best one may stand beside the newest
        problems.append(f"{len(checkpoints(out))} checkpoints where {limit} were to be kept")
    return problems


def _of_a_stop(out: Path) -> set[str]:
    """The files of checkpoints, which a stop may write where the undisturbed run writes none; and weights that a line
    has named because a full disk had no room for more: they are the user's."""
    return {name for name in shape_of(out) if re.match(r"(checkpoint-N|weights-\d+)(/(?!\.)|$)", name)}


def _weights(out: Path) -> dict[str, torch.Tensor] | None:
    for name in WEIGHTS:
        if (out / name).is_file():
            return load_file(out / name)
    return None
