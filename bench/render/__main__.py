"""Tables and plots from the records: `python -m bench.render DIR`, writing RESULTS.md and PNG files. No number in them
is typed.

DIR is the --out folder of bench.suite, and is written into. Where DIR is bench/results, the committed records, a folder
a device, `bench/RESULTS.md`, `bench/plots` and the table in README.md are written: that is how a measurement gets
there.

With `--against OTHER`, another such folder or a commit, nothing is written: what was measured on both is printed side
by side, where device and versions are the same.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.blocks import rewrite
from bench.render.against import comparison, records_of
from bench.render.readme import updated
from bench.render.report import COMMITTED, records_below, render


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench.render", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the --out folder of bench.suite, or bench/results")
    parser.add_argument("--out", type=Path, help="where to write instead; README.md is left alone")
    parser.add_argument(
        "--against",
        metavar="OTHER",
        help="print the numbers of two sides, the other a folder or this one at a commit",
    )
    args = parser.parse_args(arguments)
    if args.against is not None:
        return _compare(parser, args.folder, args.against)
    is_committed = args.folder.resolve() == COMMITTED
    out = args.out or (COMMITTED.parent if is_committed else args.folder)
    try:
        written = render(args.folder, out)
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))
    for path in written:
        print(path)
    if is_committed and args.out is None:
        print(rewrite("README.md", lambda text: updated(text, records_below(COMMITTED))))
    return 0


def _compare(parser: argparse.ArgumentParser, folder: Path, other: str) -> int:
    try:
        with tempfile.TemporaryDirectory() as scratch:
            lines = comparison(records_below(folder), records_of(other, folder, Path(scratch)))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
