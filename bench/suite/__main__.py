"""Measure: `python -m bench.suite [PART|all] --out DIR`, the parts being those of bench.suite.parts.

A record of each measurement goes to DIR at once, so a run that is stopped is continued by the same command: what
has been measured under the same conditions (device, versions, commit) is skipped. A part stops when its time is up
and says what is left. A peer that is not installed, or does not run on this device, is skipped by name.

On a GPU: real shapes in bfloat16, at most eight minutes a part. On a CPU: small shapes in float32, some ten minutes for
all parts on two quiet cores, so that the ratios can be checked anywhere.

`--list` says what would be measured, and measures nothing.
"""

import argparse
import sys
from pathlib import Path

import torch

from bench.commit import require_commit
from bench.suite.measure import listed, run_part
from bench.suite.parts import PARTS
from bench.suite.shelf import require_shelf
from bench.suite.timing import time_box

MINUTES = 8.0
SECONDS_PER_MEASUREMENT = {"cuda": 0.4, "cpu": 0.5}


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 if one of our own implementations failed."""
    parser = argparse.ArgumentParser(
        prog="bench.suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", default="all", choices=[*PARTS, "all"])
    parser.add_argument("--out", type=Path, help="folder of the records; found ones are not measured again")
    parser.add_argument("--list", action="store_true", help="print the groups with their implementations, and end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument(
        "--minutes", type=time_box, help="time box of each part (default 8 on a GPU, ten for all of them on a CPU)"
    )
    parser.add_argument(
        "--seconds", type=time_box, help="time box of a measurement (default 0.4 on a GPU, 0.5 on a CPU)"
    )
    parser.add_argument("--only", default="", help="only groups whose operation or case contains this text")
    parser.add_argument("--tiny", action="store_true", help="on a CPU: sizes that show no more than that it runs")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # the suite's own child
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    names = list(PARTS) if args.part == "all" else [args.part]
    groups = [line for name in names for line in listed(name, device, args.only, args.tiny and not gpu)]
    if not groups:
        parser.error(f"--only: no group of {args.part} contains {args.only!r}; --list shows them")
    if args.list:
        print("\n".join(groups))
        return 0
    if args.out is None:
        parser.error("the folder of the records is missing; give --out DIR, or --list to see what there is")
    if gpu and not torch.cuda.is_available():
        parser.error("--device: PyTorch sees no CUDA device; give --device cpu, or --list to see what there is")
    require_commit(parser)
    require_shelf(parser, args.out, names)
    failed = []
    for name in names:
        minutes = (MINUTES if gpu else PARTS[name].cpu_minutes) if args.minutes is None else args.minutes
        seconds = SECONDS_PER_MEASUREMENT[device.type] if args.seconds is None else args.seconds
        records = run_part(name, device, args.out, minutes, seconds, args.only, args.alone, args.tiny and not gpu)
        failed += [record for record in records if record.role == "ours" and record.status == "failed"]
    for record in failed:
        print(f"FAILED {record.op} {record.case} {record.implementation}: {record.reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
