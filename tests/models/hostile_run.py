"""A process of its own, with "y" on its stdin and without a network: opens hostile folders with every door there is.

Arguments: a folder of the world that ``test_strangers`` made. Prints, as JSON, each case's outcome, the network events
and the cases whose code ran.
"""

import json
import shutil
import socket
import sys
from pathlib import Path

EVENTS: list[str] = []


def _refuse(*arguments, **options):
    EVENTS.append(str(arguments)[:200])
    raise OSError("no network in this test")


for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _refuse)
socket.getaddrinfo = socket.create_connection = _refuse

from mdpo.data import PromptRow, read_rows  # noqa: E402
from mdpo.errors import InputError  # noqa: E402
from mdpo.evaluation.generate import generate  # noqa: E402
from mdpo.models import load, load_processor  # noqa: E402
from mdpo.models.adapters import load_adapter  # noqa: E402
from tests.models import hostile  # noqa: E402


def main(world: Path) -> None:
    rows = read_rows(world / "train.jsonl", kind=PromptRow)[:1]
    outcomes, ran = {}, []

    def tried(name: str, *actions) -> None:
        for action in actions:
            try:
                action()
                outcomes.setdefault(name, []).append("loaded")
            except InputError as error:
                outcomes.setdefault(name, []).append(f"refused: {error}")
            except Exception as error:
                outcomes.setdefault(name, []).append(f"{type(error).__name__}: {error}")
        if (world / name).exists():
            ran.append(name)

    for name, make in hostile.MODELS.items():
        folder = Path(shutil.copytree(world / "model", world / f"model-{name}"))
        make(folder, world / name)
        tried(
            name,
            lambda folder=folder: load(folder),
            lambda folder=folder: load_processor(folder),
            lambda folder=folder: list(generate(load(folder), load_processor(folder), rows, max_new_tokens=2)),
        )
    for name, make in hostile.ADAPTERS.items():
        folder = Path(shutil.copytree(world / "adapter", world / f"adapter-{name}"))
        make(folder, world / name)
        tried(
            name,
            lambda folder=folder: load_adapter(load(world / "model"), folder),
            lambda folder=folder: load_adapter(load(world / "model"), folder, trainable=True).save_pretrained(
                world / "again"
            ),
        )
    print(json.dumps({"outcomes": outcomes, "events": EVENTS, "ran": ran}))


main(Path(sys.argv[1]))
