"""A session's archives into the records: `python -m bench.bring_home OUT/*.tgz`.

Each archive's records go to bench/results/DEVICE, the logs of its stages beside them, and the tables of bench/RESULTS.md
and README.md are made anew. All archives are read before anything is written: one that is torn or not a session's is named
in one line, and nothing has changed. Records of another device lie in another folder; of the same measurement the later
archive stays. A rehearsal's records are no measurements: they go to a folder given with --into, with a RESULTS.md of its
own.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from bench.cards import folder_of
from bench.commit import ROOT
from bench.record import Record, Role, read_record
from bench.session.archive import BadArchive, unpack
from bench.session.stages import STAGES
from mdpo.outputs import whole_file

RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True, slots=True)
class Brought:
    """An archive, unpacked. stage: what became of it, with the device and the commit."""

    stage: Record
    folder: Path
    records: tuple[Path, ...]

    @property
    def home(self) -> str:
        """The device's folder."""
        return folder_of(str(self.stage.environment["device"]), str(self.stage.environment.get("device_type")))


def read(archive: Path, folder: Path) -> Brought:
    """Unpacks into `folder`, and reads every record. Raises BadArchive, naming the archive."""
    unpack(archive, folder)
    paths = tuple(sorted((folder / "records").rglob("*.json")))
    found = []
    for path in paths:
        try:
            record = read_record(path)
            check_shape(record)
            if path.relative_to(folder / "records") != record.path(Path()):
                raise ValueError("lies where another record would")
            found.append(record)
        except (ValueError, TypeError, OSError, RecursionError) as error:
            name = ascii(path.relative_to(folder).as_posix())
            raise BadArchive(f"{archive}: {name} is no record of this version ({type(error).__name__}); copy it again") from error
    stages = [record for record in found if record.op == "stages" and record.part == "session"]
    if len(stages) != 1 or stages[0].implementation not in STAGES:
        raise BadArchive(f"{archive}: does not say which stage it is of; only what bench/gpu_session.sh packs is read")
    stage = stages[0]
    if "device_type" not in stage.environment:
        raise BadArchive(f"{archive}: the session found no device; log.txt in it says why, and there is nothing to keep")
    if any(record.environment[key] != stage.environment[key] for record in found for key in ("device", "commit")):
        raise BadArchive(f"{archive}: holds records of two devices or two commits; pack and bring home one at a time")
    return Brought(stage, folder, paths)


def check_shape(record: Record) -> None:
    """What a report reads of a record is of its type: ValueError where it is not, since anybody can write JSON."""
    texts = [record.part, record.op, record.dtype, record.implementation, record.status, record.reason, record.note]
    texts += [record.role, record.floor, record.memory_method]
    mappings = (record.shape, record.environment, record.rates, record.errors, record.extra)
    times = (record.median_ms, record.p20_ms, record.p80_ms, record.min_ms, record.peak_bytes, record.floor_ms)
    if not all(isinstance(mapping, dict) for mapping in mappings):
        raise ValueError("not a mapping")
    texts += [*(name for mapping in mappings for name in mapping), record.environment.get("device"), record.environment.get("commit")]
    texts += [value for value in record.shape.values() if not isinstance(value, int)]
    if not all(isinstance(text, str) and text.isprintable() for text in texts):
        raise ValueError("not a line of text")
    numbers = [value for mapping in mappings[2:] for value in mapping.values()] + [t for t in times if t is not None]
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise ValueError("not a number")
    if record.role not in get_args(Role) or (record.part == "session" and "seconds" not in record.rates):
        raise ValueError("not what a session writes")


def is_rehearsal(brought: Brought) -> bool:
    return brought.stage.shape.get("on") != "GPU"


def bring(brought: Sequence[Brought], results: Path) -> list[str]:
    """Copies records and logs below `results`; a line an archive."""
    lines = []
    for each in brought:
        home = results / each.home
        for path in each.records:
            with whole_file(home / path.relative_to(each.folder / "records")) as part:
                shutil.copyfile(path, part)
        log = each.folder / "log.txt"
        if log.exists():
            with whole_file(home / "session" / f"{each.stage.implementation}.log") as part:
                shutil.copyfile(log, part)
        reason = f", {each.stage.reason}" if each.stage.reason else ""
        lines.append(f"{each.stage.implementation}: {each.stage.status}{reason}, {len(each.records)} records to {home}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """0, or 2 where an archive cannot be read: then nothing has been written."""
    parser = argparse.ArgumentParser(
        prog="bench.bring_home", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE", help="STAGE.tgz of bench/gpu_session.sh")
    parser.add_argument("--into", type=Path, help="another folder than bench/results; bench/RESULTS.md and README.md stay")
    args = parser.parse_args(arguments)
    results = (args.into or RESULTS).resolve()
    with tempfile.TemporaryDirectory() as folder:
        try:
            brought = [read(archive, Path(folder, str(number))) for number, archive in enumerate(args.archives)]
            for archive, each in zip(args.archives, brought, strict=True):
                if is_rehearsal(each) and args.into is None:
                    raise BadArchive(f"{archive}: is of a rehearsal, which measures nothing; give it a folder with --into")
        except BadArchive as error:
            print(f"bench.bring_home: {error}", file=sys.stderr)
            return 2
        for line in bring(brought, results):
            print(line)
    from bench import render  # PyTorch comes with it: not before it is needed

    return render.main([str(results)])


if __name__ == "__main__":
    sys.exit(main())
