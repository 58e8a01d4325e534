"""A session's archives into the records: `python -m bench.bring_home OUT/*.tgz`.

Each archive's records go to bench/results/DEVICE, the logs of its stages beside them, and the tables of
bench/RESULTS.md and README.md are made anew. Everything is read, checked and rendered before anything is written, and
then all of it is written or nothing: whatever is wrong is said in one line, and nothing has changed. Records of another
device lie in another folder; of the same measurement the later archive stays. A rehearsal's records are no
measurements: they go to a folder given with --into, with a RESULTS.md of its own.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.commit import ROOT
from bench.session.archive import BadArchive, tidy_log, unpack
from bench.session.stages import STAGES
from bench.session.strangers import NotARecord, check_record
from bench.suite.cards import card_of
from bench.suite.record import Record
from bench.suite.shelf import Contents, Shelf, file_of, read_file, read_records, text_of
from mdpo.errors import InputError, OutputError
from mdpo.output_checks import check_output_folder
from mdpo.outputs import whole_files
from mdpo.shown import shown

RESULTS = ROOT / "bench" / "results"
MOST_RECORDS, MOST_FILE_BYTES = 2000, 4 * 2**20  # of an archive; a session has some hundred of 1 KB


@dataclass(frozen=True, slots=True)
class Brought:
    """An archive, unpacked. stage: what became of it, with the device and the commit. home: the device's folder."""

    stage: Record
    folder: Path
    records: tuple[Record, ...]
    home: str

    @property
    def is_rehearsal(self) -> bool:
        return self.stage.shape.get("on") != "GPU"


def read(archive: Path, folder: Path) -> Brought:
    """Unpacks into `folder`, and reads every record. Raises BadArchive, naming the archive."""
    unpack(archive, folder)
    if (folder / "log.txt").is_dir():
        raise BadArchive(f"{archive}: log.txt in it is a folder; only what bench/gpu_session.sh packs is read")
    records = folder / "records"
    found: list[Record] = []
    for path in Shelf(records).files():
        found += _records(archive, records, path)
        if len(found) > MOST_RECORDS:
            raise BadArchive(
                f"{archive}: holds more than {MOST_RECORDS} records; only what bench/gpu_session.sh packs is read"
            )
    stages = [record for record in found if record.op == "stages" and record.part == "session"]
    if len(stages) != 1 or stages[0].implementation not in STAGES:
        raise BadArchive(f"{archive}: does not say which stage it is of; only what bench/gpu_session.sh packs is read")
    stage = stages[0]
    if "device_type" not in stage.environment:
        raise BadArchive(
            f"{archive}: the session found no device; log.txt in it says why, and there is nothing to keep"
        )
    same = ("device", "device_type", "commit")
    if any(record.environment.get(key) != stage.environment[key] for record in found for key in same):
        raise BadArchive(f"{archive}: holds records of two devices or two commits; pack and bring home one at a time")
    if (stage.shape.get("on") == "GPU") != (stage.environment["device_type"] == "cuda"):
        raise BadArchive(
            f"{archive}: is of a GPU and of a rehearsal at once; only what bench/gpu_session.sh packs is read"
        )
    return Brought(stage, folder, tuple(found), file_of(stage).parent.name)


def _records(archive: Path, folder: Path, path: Path) -> list[Record]:
    """Those of a file that a session wrote, and that lies where it says."""
    fault = "not JSON of this version's records"
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise NotARecord("it is too long")
        found = read_records(path)
        for record in found:
            check_record(record)
            if path.relative_to(folder) != _place(record):
                raise NotARecord("it lies where another record would")
        return found
    except NotARecord as error:
        fault = str(error)
    except (ValueError, TypeError, OSError, RecursionError):
        pass
    name = ascii(path.relative_to(folder.parent).as_posix())
    raise BadArchive(
        f"{archive}: {name} is no record of a session ({fault}); only what bench/gpu_session.sh packs is read"
    )


def _place(record: Record) -> Path:
    try:
        return file_of(record)
    except ValueError as error:
        raise NotARecord(str(error)) from error


def read_all(archives: Sequence[Path], folder: Path, rehearsals: bool) -> list[Brought]:
    """Every archive, unpacked below `folder`. Raises BadArchive for the first that cannot be brought home.

    rehearsals: whether one may be of a rehearsal.
    """
    brought = []
    for number, archive in enumerate(archives):
        if os.path.realpath(archive) in map(os.path.realpath, archives[:number]):
            raise BadArchive(f"{archive}: is given twice; give it once")
        each = read(archive, folder / str(number))
        if each.is_rehearsal and not rehearsals:
            raise BadArchive(f"{archive}: is of a rehearsal, which measures nothing; give it a folder with --into")
        brought.append(each)
    return brought


def places(brought: Sequence[Brought], results: Path, folder: Path) -> dict[Path, Path]:
    """Where each file goes below `results`, and where it lies now: records together with those that are there,
    written below `folder`, and logs; of the same two the later one."""
    found, added = {}, defaultdict(list)
    for each in brought:
        for record in each.records:
            added[file_of(record)].append(record)
        log = each.folder / "log.txt"
        if log.exists():
            tidy_log(log, {})  # of a session that was ended from outside it may still be long
            found[results / each.home / "session" / f"{each.stage.implementation}.log"] = log
    for place, records in added.items():
        target, written = results / place, folder / place
        written.parent.mkdir(parents=True, exist_ok=True)
        before = read_file(target) if target.exists() else Contents([], [])
        written.write_text(text_of(records, before), encoding="utf-8")
        found[target] = written
    return found


def check_homes(brought: Sequence[Brought], results: Path) -> None:
    """Raises InputError where records would come among something that is no measurement of their device."""
    check_output_folder(results, "--into")
    devices = {each.home: each.stage.environment for each in brought}
    for each in brought:
        home, device = results / each.home, each.stage.environment
        try:
            theirs = [record.environment for record in Shelf(home).records()] if home.is_dir() else []
        except (ValueError, TypeError, OSError) as error:
            raise InputError(
                f"{home}: holds something else than records of a device; give another folder with --into"
            ) from error
        for other in [*theirs, devices[each.home]]:
            if device["device_type"] == "cuda" and card_of(str(other.get("device"))) != card_of(device["device"]):
                raise InputError(f"{home}: is the folder of another device as well; give another folder with --into")
        if home.is_dir() and not theirs and any(home.iterdir()):
            raise InputError(f"{home}: holds something else than records of a device; give another folder with --into")


def check_free(targets: Collection[Path]) -> None:
    """Raises InputError where a file would take the place of a folder, also of one that is about to be made."""
    folders = {folder for target in targets for folder in target.parents}
    for target in targets:
        if target.is_dir() or target in folders:
            raise InputError(f"{target}: is a folder, where a file goes; give another folder with --into")


def rendered(found: dict[Path, Path], results: Path, folder: Path) -> dict[Path, Path]:
    """The report of what is below `results` and of what comes there, written below `folder`, as `places`.

    Raises InputError where no report can be made.
    """
    from bench.render import report as reports  # PyTorch comes with it: not before it is needed
    from bench.render.readme import updated

    is_committed = results == reports.COMMITTED
    out = results.parent if is_committed else results
    try:
        paths = {*reports.record_paths(results), *(target for target in found if target.suffix == ".json")}
        records = [record for path in sorted(paths) for record in read_records(found.get(path, path))]
        report = {out / path.relative_to(folder): path for path in reports.write_report(records, folder)}
        if is_committed:
            readme = folder / "README.md"
            readme.write_text(updated((ROOT / "README.md").read_text(encoding="utf-8"), records), encoding="utf-8")
            report[ROOT / "README.md"] = readme
    except Exception as error:  # whatever strange records make of a table or a picture
        raise InputError(
            f"{results}: no report can be made of it ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    return report


def main(arguments: list[str] | None = None) -> int:
    """0, or 2 where an archive cannot be read or brought home: then nothing has been written."""
    parser = argparse.ArgumentParser(
        prog="bench.bring_home", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE", help="STAGE.tgz of bench/gpu_session.sh")
    parser.add_argument(
        "--into", type=Path, help="another folder than bench/results; bench/RESULTS.md and README.md stay"
    )
    args = parser.parse_args(arguments)
    results = Path(os.path.realpath(args.into or RESULTS))
    try:
        with tempfile.TemporaryDirectory() as folder:
            brought = read_all(args.archives, Path(folder), rehearsals=args.into is not None)
            check_homes(brought, results)
            found = places(brought, results, Path(folder, "records"))
            report = rendered(found, results, Path(folder, "report"))
            found |= report
            check_free(found)
            with whole_files(*found) as parts:
                for source, part in zip(found.values(), parts, strict=True):
                    shutil.copyfile(source, part)
    except (BadArchive, InputError, OutputError, OSError) as error:
        print(f"bench.bring_home: {shown(error)}", file=sys.stderr)
        return 2
    for each in brought:
        reason = f", {shown(each.stage.reason)}" if each.stage.reason else ""
        print(
            f"{each.stage.implementation}: {each.stage.status}{reason}, {len(each.records)} records to "
            f"{results / each.home}"
        )
    for path in report:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
