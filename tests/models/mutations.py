"""Model, adapter and processor folders with something wrong in them, drawn at random from a seed."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

SETTINGS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "adapter_config.json",
    "model.safetensors.index.json",
)


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES = (
    None, True, False, 0, -1, -(10**12), 10**6, 10**12, 10**400, 0.5, -0.0, float("nan"), float("inf"), "", "x",
    "\x1b[31m", "../..",
    "/etc/passwd", "\ud800", "a\0b", [], [None], [1, "a"], [-1] * 3, {}, {"a": 1}, {"": None}, deep(30), deep(200),
    "evil/repository",
)  # fmt: skip


def mutate(folder: Path, rng: random.Random) -> str:
    """Does one to three things to the folder's files; says which."""
    return "; ".join(_one(folder, rng) for _ in range(rng.choice((1, 1, 2, 3))))


def _one(folder: Path, rng: random.Random) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "README.md")
    named = [path for path in files if path.name in SETTINGS]
    path = rng.choice(named if named and rng.random() < 0.85 else files)
    if path.name in SETTINGS and rng.random() < 0.85:
        try:
            content = json.loads(path.read_text())
            where = _change(content, rng, 1.0 if path.name != "tokenizer.json" else 0.0)
            path.write_text(json.dumps(content))
            return f"{path.name}: {where}"
        except (ValueError, RecursionError):  # torn by the change before
            return "nothing"
    return f"{path.name}: {_damage(path, rng)}"


def _change(content: Any, rng: random.Random, deeper: float) -> str:
    """Replaces, removes or adds an entry somewhere in the JSON."""
    place, trail = content, ""
    while isinstance(place, (dict, list)) and place:
        key = rng.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
        trail += f".{key}"
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.3 + 0.5 * deeper:
            place = inner
            continue
        kind = rng.random()
        if kind < 0.15:
            del place[key]
            return f"{trail} removed"
        if kind < 0.3 and isinstance(inner, int):
            place[key] = rng.choice((inner + 1, inner * 2, -inner, inner * 10**9, str(inner), float(inner)))
        elif kind < 0.4 and isinstance(place, dict):
            place[rng.choice(sorted(place))] = inner
        else:
            place[key] = rng.choice(VALUES)
        return f"{trail} = {str(place.get(key) if isinstance(place, dict) else place[key])[:40]!r}"
    return "nothing"


def _damage(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    kind = rng.choice(("cut", "flip", "empty", "gone", "folder", "pipe", "other bytes"))
    if kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif kind == "flip" and data:
        for _ in range(rng.choice((1, 8))):
            data[rng.randrange(min(len(data), 4000))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "other bytes":
        path.write_bytes(
            rng.choice((b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000))
        )
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
    return kind


def copied(source: Path, target: Path) -> Path:
    """A fresh copy of the folder at ``target``."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))
