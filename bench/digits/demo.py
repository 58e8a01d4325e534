"""The demo: plain DPO and mDPO from the same tuned model in the miniature world, and what became of them.

``python -m bench.digits.demo --seed 0 --out build/demo`` is what ``make demo`` runs. Training is the command
``mdpo train configs/digits.yaml`` itself; plain DPO is the same without the image preference and the anchor.
"""

import json
import os
import platform
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import TypeVar

import torch
import transformers
from PIL import Image

from bench.digits.charts import Exhibit
from bench.digits.metrics import score
from bench.digits.report import write_report
from bench.digits.results import DIGITS, Result, World, text_table
from bench.digits.tune import MODEL
from bench.digits.world import read_jsonl, write_preferences, write_test
from mdpo import cli
from mdpo.config import load_config
from mdpo.data import DataOptions, PreferenceDataset, PromptRow, read_rows
from mdpo.evaluation import generate
from mdpo.models import load, load_processor, sequence_logps
from mdpo.packing import pack, plan

CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"
OVERRIDES = {"DPO": ["--conditional", "false", "--anchors", "[]"], "mDPO": []}
"""What each model's training changes in the config."""

EXHIBITS = 12
TOKEN_BUDGET = 16384
LONGEST_CAPTION = 24  # tokens; a true caption has 12 at the most


AnySize = TypeVar("AnySize", bound="Size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything: what ``make demo`` takes by default, less in a test."""

    pairs: int = 1500
    scenes: int = 1000
    overrides: tuple[str, ...] = ()

    def note(self, seed: int, seconds: float) -> str:
        """What was run, and on what."""
        return (
            f"Seed {seed}, {self.pairs} pairs, {self.scenes} test scenes, {seconds / 60:.1f} minutes on "
            f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}, transformers "
            f"{transformers.__version__}."
        )


def run(seed: int, folder: Path, size: Size) -> list[Result]:
    """Write the data, train both models, evaluate all three and write the report. Returns the tuned model first."""
    started = perf_counter()
    print(f"seed {seed}: drawing {size.pairs} preference pairs and {size.scenes} test scenes")
    preferences = write_preferences(folder / "data", seed=seed, count=size.pairs)
    test = write_test(folder / "data", seed=seed, count=size.scenes)

    tuned_logps = chosen_logps(MODEL, test)
    results = [evaluate("tuned", MODEL, test, tuned_logps)]
    for name, overrides in OVERRIDES.items():
        model = folder / name.lower()
        train(model, ["--train_data", str(preferences), "--seed", str(seed), *overrides, *size.overrides])
        results.append(evaluate(name, model, test, tuned_logps))

    note = size.note(seed, perf_counter() - started)
    report(folder, results, exhibits(test), config=CONFIG, note=note, world=DIGITS)
    return results


def report(
    folder: Path, results: Sequence[Result], exhibits: Sequence[Exhibit], *, config: Path, note: str, world: World
) -> None:
    """Write the page and print the table. config: what the models were trained by."""
    _, settings = load_config(config, {"output_dir": str(folder)})
    page = write_report(folder, results, exhibits, beta=settings.beta, note=note, world=world)
    print(f"\n{text_table(results, world.columns)}\n\n{note}\nreport: {page} and {page.with_suffix('.png').name}")


def train(output: Path, arguments: Sequence[str], config: Path = CONFIG) -> None:
    """``mdpo train``, with its progress bar; the log lines go to a file beside the model."""
    overwrite = ["--output_dir", str(output), "--overwrite_output_dir", "true"]
    command(["train", str(config), *overwrite, *arguments], output / "train.log")
    if not (output / "config.json").is_file():  # an interrupt ends training in good order, with nothing to evaluate
        raise SystemExit(f"training was stopped before its end; its last lines are in {output / 'train.log'}")


def command(words: Sequence[str], log: Path) -> None:
    """``mdpo`` with these words; what it prints goes to the log. Raises SystemExit with its code where it fails."""
    print("mdpo", *words)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file):
        code = cli.main(words)
    if code:
        raise SystemExit(code)


def evaluate(name: str, model_path: Path, test: Path, tuned_logps: torch.Tensor) -> Result:
    """Caption the test scenes greedily and count; the training's log is read where there was one."""
    captions = answers(model_path, test)
    history = training_log(model_path)
    return Result(
        name=name,
        scores=score(captions, [scene["metadata"]["digits"] for scene in read_jsonl(test)]),
        captions=captions,
        log_ratio=(chosen_logps(model_path, test) - tuned_logps).mean().item() if history else None,
        history=history,
    )


def training_log(model_path: Path) -> list[dict[str, float]]:
    """What the trainer logged; nothing of a model that was not trained here."""
    state = model_path / "trainer_state.json"
    return json.loads(state.read_text(encoding="utf-8"))["log_history"] if state.is_file() else []


def answers(model_path: Path, test: Path, longest: int = LONGEST_CAPTION) -> list[str]:
    """What the model says of each test scene, greedily. longest: tokens at which a caption is cut."""
    rows = read_rows(test, kind=PromptRow)
    model, processor = load(model_path), load_processor(model_path)
    return list(generate(model, processor, rows, max_new_tokens=longest, batch_size=250))


def chosen_logps(model_path: Path, test: Path) -> torch.Tensor:
    """Log-probability of each test scene's chosen caption, (scenes,)."""
    return branch_logps(model_path, test, DataOptions(branches=("chosen", "rejected")))[0]


@torch.no_grad()
def branch_logps(model_path: Path, pairs: Path, options: DataOptions) -> torch.Tensor:
    """Log-probability of each pair's branches, (branches, pairs)."""
    model = load(model_path).eval()
    dataset = PreferenceDataset(read_rows(pairs), load_processor(model_path), options)
    parts = []
    (step,) = plan(dataset.lengths, TOKEN_BUDGET, examples_per_step=len(dataset))
    for indices in step:
        parts.append(sequence_logps(model, pack([dataset[index] for index in indices], model)))
    logps = torch.cat(parts, 1)
    order = torch.tensor([index for indices in step for index in indices])
    return logps[:, order.argsort()]


def exhibits(test: Path) -> list[Exhibit]:
    """The first test scenes, as they come."""
    return [
        Exhibit(index=index, image=Image.open(test.parent / row["img_path"]), shown=tuple(row["metadata"]["digits"]))
        for index, row in enumerate(read_jsonl(test)[:EXHIBITS])
    ]


def numbers(runs: dict[int, list[Result]], size: Size) -> dict[str, object]:
    """Every number of the table, by seed and model, and the means over seeds."""
    rows = {seed: {result.name: _row(result) for result in results} for seed, results in runs.items()}
    means: dict[str, dict[str, float]] = {}
    for name, row in next(iter(rows.values())).items():
        means[name] = {column: mean(models[name][column] for models in rows.values()) for column in row}
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__)
    return dict(pairs=size.pairs, scenes=size.scenes, versions=versions, seeds=rows, mean=means)


def _row(result: Result) -> dict[str, float]:
    row = asdict(result.scores)
    return row if result.log_ratio is None else row | {"log_ratio": result.log_ratio}


def main(run: Callable[[int, Path, AnySize], list[Result]], kind: type[AnySize], description: str | None) -> None:
    """The command line of a demo. run: of one seed. kind: of its size, the default in the options."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--seed", "--seeds", dest="seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--pairs", type=int, default=kind().pairs)
    parser.add_argument("--scenes", type=int, default=kind().scenes)
    arguments = parser.parse_args()
    size = kind(pairs=arguments.pairs, scenes=arguments.scenes)
    transformers.utils.logging.disable_progress_bar()  # of loading weights; the trainer's stays
    runs = {}
    for seed in arguments.seeds:
        folder = arguments.out if len(arguments.seeds) == 1 else arguments.out / f"seed-{seed}"
        runs[seed] = run(seed, folder, size)
    text = json.dumps(numbers(runs, size), indent=2)
    (arguments.out / "numbers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(run, Size, __doc__)
