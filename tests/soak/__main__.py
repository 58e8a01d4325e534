"""``python -m tests.soak --trials 100 --minutes 30 --only kills,signals,disks --seed 0``

Trials go over modes, kinds and numbers of processes in turn, in an order drawn from the seed. A trial that fails keeps
its folder and says its seed; ``--again "SEED" MODE KIND PROCESSES`` runs it once more.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .disks import Limit, small_disk
from .kinds import KINDS, Runs
from .trials import MODES, Trial, run_trial


def main() -> int:
    options = _options()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="mdpo-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    mount = small_disk(folder)
    disks = [Limit(folder), *([mount] if mount is not None else [])]
    print(
        f"soak in {folder}, seed {options.seed}; full disks by {' and '.join(disk.name for disk in disks)}", flush=True
    )
    trials: list[Trial] = []
    end = time.monotonic() + options.minutes * 60
    try:
        runs = Runs(folder)
        for mode, kind, processes, seed in _plan(options, limited=mount is None):
            if time.monotonic() > end:
                print(f"{options.minutes:g} minutes are over")
                break
            trial = run_trial(runs, disks, mode, kind, processes, seed)
            trials.append(trial)
            if trial.problems or options.verbose:
                _say(trial)
    finally:
        if mount is not None:
            mount.close()
    for line in table(trials):
        print(line)
    if options.out is not None:
        record = {"seed": options.seed, "trials": [trial.record() for trial in trials], "table": table(trials)}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if any(trial.problems for trial in trials) or not trials else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--trials", type=int, default=100, help="of each mode")
    parser.add_argument("--minutes", type=float, default=30.0, help="after which no trial begins")
    parser.add_argument("--only", default=",".join(MODES), help="modes, of kills, signals and disks")
    parser.add_argument("--kinds", help="only kinds whose names contain one of these words, such as full,best")
    parser.add_argument("--processes", default="1,2", help="1, 2 or both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", nargs=4, metavar=("SEED", "MODE", "KIND", "PROCESSES"), help="one trial that failed")
    parser.add_argument("--folder", help="to work in, new or empty; a temporary one without it")
    parser.add_argument("--out", type=Path, help="JSON of all trials")
    parser.add_argument("--verbose", action="store_true", help="a line for every trial")
    return parser.parse_args()


def _plan(options: argparse.Namespace, *, limited: bool) -> list[tuple[str, str, int, str]]:
    """limited: full disks are limits on the size of files, which strike the shared memory of data workers too."""
    if options.again is not None:
        seed, mode, kind, processes = options.again
        return [(mode, kind, int(processes), seed)]
    words = options.kinds.split(",") if options.kinds else [""]
    kinds = [kind for kind in KINDS if any(word in kind for word in words)]
    rng = random.Random(options.seed)
    per_mode = []
    for mode in options.only.split(","):
        cases = []
        while len(cases) < options.trials:
            left = [kind for kind in kinds if not (limited and mode == "disks" and "workers" in kind)]
            turn = [(kind, int(processes)) for kind in left for processes in options.processes.split(",")]
            rng.shuffle(turn)
            cases += turn
        per_mode.append([(mode, *case) for case in cases[: options.trials]])
    return [
        (mode, kind, processes, f"{options.seed}/{number}/{mode}")
        for number, turn in enumerate(zip(*per_mode, strict=True))
        for mode, kind, processes in turn
    ]


def _say(trial: Trial) -> None:
    state = "FAILED" if trial.problems else "held"
    print(
        f"{state}: {trial.mode}, {trial.kind!r}, {trial.processes} processes, {trial.seconds:.1f} s, seed "
        f"{trial.seed!r}"
    )
    for line in trial.disturbances:
        print(f"    {line}")
    for line in trial.problems:
        print(f"  ! {line}")
    if trial.folder:
        print(f"    {trial.folder}")
    sys.stdout.flush()


def table(trials: list[Trial]) -> list[str]:
    """Counts: kind by mode and number of processes, n of n."""
    held, all_of = Counter[tuple[str, str, int]](), Counter[tuple[str, str, int]]()
    for trial in trials:
        for kind in (trial.kind, "all"):
            all_of[kind, trial.mode, trial.processes] += 1
            held[kind, trial.mode, trial.processes] += not trial.problems
    columns = sorted({(mode, processes) for _, mode, processes in all_of})
    lines = ["".join([f"{'':<28}", *(f"{mode + f' x{processes}':>14}" for mode, processes in columns)])]
    for kind in dict.fromkeys([*(kind for kind in KINDS if any(key[0] == kind for key in all_of)), "all"]):
        keys = [(kind, mode, processes) for mode, processes in columns]
        counts = [f"{held[key]} of {all_of[key]}" if all_of[key] else "-" for key in keys]
        lines.append("".join([f"{kind:<28}", *(f"{count:>14}" for count in counts)]))
    return lines


if __name__ == "__main__":
    sys.exit(main())
