"""The paper's tables in the miniature world: ``python -m bench.study [ITEM ...] [--quick] [--out FOLDER]``

Runs what is not there yet, one run a core, and writes ``results.json``, ``STUDY.md`` and its pictures to FOLDER. A
study that is stopped goes on with the same command. ``--quick``: fewer seeds, pairs and scenes, minutes in all; it
shows that everything works and roughly what comes out. Without ITEM: everything.
"""

import multiprocessing
import os
import platform
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from bench.study.items import CANDIDATES, CONFIRM_SEEDS, ITEMS, SEARCH_SEEDS, TUNED, as_dpo
from bench.study.report import write_report
from bench.study.results import NAME, Results, best_candidate
from bench.study.runs import Run, execute, question_model, read_result
from bench.study.size import Size

SEARCH = "improve"


class Pool:
    """Runs in parallel processes, each kept on disk as it ends; one that fails does not stop the others."""

    def __init__(self, workers: int, out: Path) -> None:
        self.workers, self.out = workers, out
        self.failed: list[Path] = []

    def complete(self, runs: Iterable[Run], title: str) -> None:
        """Execute those runs that are not there yet."""
        missing = [run for run in dict.fromkeys(runs) if read_result(run, self.out) is None]
        tasks = [(execute, (run, self.out), run.path(self.out).with_suffix(".log")) for run in missing]
        self.call(tasks, title)

    def call(self, tasks: Sequence[tuple[Callable, tuple, Path]], title: str) -> None:
        """Call functions with their arguments in the workers; the path is the log to look into after a failure."""
        if not tasks:
            return
        context = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
        with ProcessPoolExecutor(min(self.workers, len(tasks)), mp_context=context) as executor:
            logs: dict[Future, Path] = {
                executor.submit(function, *arguments): log for function, arguments, log in tasks
            }
            for future in tqdm(as_completed(logs), desc=title, total=len(logs)):
                if error := future.exception():
                    tqdm.write(f"failed: {error}; see {logs[future]}", file=sys.stderr)
                    self.failed.append(logs[future])


def study(names: Sequence[str], size: Size, out: Path, workers: int) -> bool:
    """Run the named items and write the report; False if a run failed."""
    out.mkdir(parents=True, exist_ok=True)
    pool = Pool(workers, out)
    items = [size.item(ITEMS[name]) for name in names if name in ITEMS]
    runs = [size.run(row.setting, seed) for item in items for row in item.rows for seed in item.seeds]
    if SEARCH in names:
        runs += [
            size.run(size.setting(setting), seed) for setting in CANDIDATES.values() for seed in size.of(SEARCH_SEEDS)
        ]
    _complete(pool, runs, size)
    if SEARCH in names and not pool.failed:
        best = size.setting(CANDIDATES[best_candidate(_collect(runs, out, size))])
        more = [size.run(setting, seed) for seed in size.of(CONFIRM_SEEDS) for setting in (TUNED, best, as_dpo(best))]
        _complete(pool, more, size)
        runs += more
    (out / NAME).write_text(_collect(runs, out, size).to_json(), encoding="utf-8")
    print(write_report(out))
    return not pool.failed


def _complete(pool: Pool, runs: Sequence[Run], size: Size) -> None:
    if any(run.setting.world == "questions" for run in runs):
        log = pool.out / "questions.log"
        pool.call([(question_model, (pool.out, size.tuning_steps), log)], "the questions' model")
    pool.complete((run.baseline() for run in runs), "tuned model")
    pool.complete((run for run in runs if run.setting.trains), "training")


def _collect(runs: Sequence[Run], out: Path, size: Size) -> Results:
    every = dict.fromkeys([*(run.baseline() for run in runs), *runs])
    found = [result for run in every if (result := read_result(run, out)) is not None]
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__)
    return Results(size=size, versions=versions, cores=os.cpu_count() or 1, runs=found)


def main() -> int:
    """The command line; 1 if a run failed."""
    parser = ArgumentParser(prog="bench.study", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("items", nargs="*", metavar="ITEM", help=", ".join([*ITEMS, SEARCH]))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="default build/study, or build/study-quick")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at once; default one a core")
    arguments = parser.parse_args()
    known = [*ITEMS, SEARCH]
    unknown = [name for name in arguments.items if name not in known]
    if unknown:
        parser.error(f"unknown item {unknown[0]}; choose from {', '.join(known)}")
    out = arguments.out or Path("build/study-quick" if arguments.quick else "build/study")
    size = Size.quick() if arguments.quick else Size()
    return 0 if study(arguments.items or known, size, out, arguments.workers) else 1


if __name__ == "__main__":
    sys.exit(main())
