"""The worked example of ``mdpo loop``: a model that reads digits, trained on pairs of its own answers, without a
network.

``python -m bench.study.own_answers --out build/own-answers`` draws pictures with one question each, writes the loop's
configuration beside them and runs two rounds of it, as ``mdpo loop`` does: six sampled captions a picture, ranked by
the digits that the picture shows (``mdpo rank --by chair``), the best against the worst, mDPO trained on them as
``configs/digits.yaml`` says but with random rejected pictures, and the captions of unseen pictures counted before the
first round and after each. Several ``--seeds`` draw, sample and train anew each, and end in a table with 95% intervals
over seeds; ``--record FILE`` keeps its numbers.
"""

import json
import math
import platform
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
import yaml

from bench.blocks import ROOT, fill, rewrite
from bench.digits.world import PARTNER_PROBABILITY, PROMPT, Scene, make_scene, render
from bench.study.statistics import Interval, difference, interval
from mdpo import cli
from mdpo.answers import read_scored
from mdpo.commands import check_words
from mdpo.loop.config import read_loop
from mdpo.loop.report import result_of
from mdpo.loop.run import run_loop

RECORD = ROOT / "bench" / "study" / "results" / "own-answers.json"
PAGE = "mdpo/README.md"
CONFIG = ROOT / "configs" / "digits.yaml"
NEGATIVE = "random_image"  # which does best in this world, see the study
LONGEST_CAPTION = 24  # tokens; a true caption has 12 at the most
FIGURES = {"CHAIR_s": "↓", "CHAIR_i": "↓", "cover": "↑", "score by chair": "↑", "win rate": "↑", "tokens": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything."""

    rounds: int = 2
    pictures: int = 1200
    unseen: int = 1000
    samples: int = 6
    temperature: float = 1.0


def write_world(folder: Path, *, seed: int, size: Size) -> Path:
    """Draws the pictures, the questions and what the pictures show, and writes the loop's configuration;
    returns that.
    """
    # Digits as they come in the pictures that the model is for: seldom with the partner that it has learned to expect.
    common = PARTNER_PROBABILITY["test"]
    scenes = [make_scene("preference", seed, index, partner_probability=common) for index in range(size.pictures)]
    unseen = [make_scene("test", seed, index) for index in range(size.unseen)]
    for name, those in (("prompts", scenes), ("unseen", unseen)):
        _write(folder / f"{name}.jsonl", those)
    objects = "".join(
        json.dumps({"id": scene.id, "objects": list(map(str, scene.digits))}) + "\n" for scene in (*scenes, *unseen)
    )
    (folder / "objects.jsonl").write_text(objects, encoding="utf-8")
    training = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    del training["train_data"], training["output_dir"]  # the loop's
    settings = {
        "prompts": str(folder / "prompts.jsonl"),
        "output_dir": str(folder / "loop"),
        "rounds": size.rounds,
        "seed": seed,
        "sample": {
            "n": size.samples,
            "temperature": size.temperature,
            "max_new_tokens": LONGEST_CAPTION,
            "batch_size": 240,
        },
        "rank": {"by": "chair", "objects": str(folder / "objects.jsonl")},
        "train": {**training, "negative": NEGATIVE, "seed": seed},
        "evaluate": {"prompts": str(folder / "unseen.jsonl")},
    }
    config = folder / "loop.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return config


def _write(path: Path, scenes: Sequence[Scene]) -> None:
    (path.parent / "images").mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for scene in scenes:
            image = f"images/{scene.id}.png"
            render(scene).save(path.parent / image)
            file.write(json.dumps({"id": scene.id, "image": image, "prompt": PROMPT}) + "\n")


def run(seed: int, folder: Path, size: Size) -> list[dict[str, float]]:
    """Draws, loops and counts; returns the figures before the first round and after each."""
    config = folder / "loop.yaml"
    if not config.is_file():  # else the same loop goes on
        config = write_world(folder, seed=seed, size=size)
    # In this process: loading PyTorch for each of the small stages would take most of the time.
    code = run_loop(read_loop(config, rounds=size.rounds), check_words, lambda words, journal: cli.main(words))
    if code:
        raise SystemExit(code)
    rounds = [
        read_scored(folder / "loop" / f"round-{number}" / "evaluation" / "scored.jsonl")
        for number in range(size.rounds + 1)
    ]
    before = {(each.answer.row.id, each.answer.number): each.score for each in rounds[0] if each.score is not None}
    results = [result_of(scored, before, "unseen pictures") for scored in rounds]
    return [{metric.name: metric.value for metric in result.metrics if metric.value is not None} for result in results]


def table(runs: Sequence[Sequence[dict[str, float]]]) -> list[str]:
    """The figures over seeds as Markdown, a row a round: means, and what changed, paired by seed."""
    heads = [f"{name} {arrow}".strip() for name, arrow in FIGURES.items()]
    lines = ["| |" + "".join(f" {head} |" for head in heads), "|---|" + "---|" * len(heads)]
    columns = [[[rounds[number][name] for rounds in runs] for name in FIGURES] for number in range(len(runs[0]))]
    for number, values in enumerate(columns):
        title = f"after round {number}" if number else "before"
        lines.append(f"| {title} |" + "".join(f" {_text(interval(own))} |" for own in values))
    for number, values in enumerate(columns[1:], start=1):
        changes = [difference(after, before) for after, before in zip(values, columns[0], strict=True)]
        lines.append(f"| round {number} − before |" + "".join(f" {_text(change, signed=True)} |" for change in changes))
    return lines


def _text(value: Interval, *, signed: bool = False) -> str:
    if math.isnan(value.half):
        return f"{value.mean:{'+' if signed else ''}.2f}"
    text = value.text(2, signed=signed)
    return f"**{text}**" if signed and value.excludes_zero else text


def updated(text: str) -> str:
    """The page's text with the record's table."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    size, runs = record["size"], record["runs"]
    lines = [
        f"Over {len(runs)} seeds, means ± half of the 95% interval: {size['pictures']:,} pictures with "
        f"{size['samples']} answers each a round, {size['unseen']:,} unseen pictures, random rejected images; "
        "bold: beyond the interval, paired by seed. With crops the development seed showed no change.",
        "",
        *table(list(runs.values())),
    ]
    return fill(text, "own-answers", lines)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("build/own-answers"))
    parser.add_argument("--rounds", type=int, default=Size().rounds)
    parser.add_argument("--pictures", type=int, default=Size().pictures)
    parser.add_argument("--unseen", type=int, default=Size().unseen)
    parser.add_argument("--record", type=Path, help="JSON of all figures")
    parser.add_argument(
        "--page", action="store_true", help="only bring the committed record into the page that shows it"
    )
    options = parser.parse_args()
    if options.page:
        rewrite(PAGE, updated)
        return
    size = Size(rounds=options.rounds, pictures=options.pictures, unseen=options.unseen)
    runs = {seed: run(seed, options.out / str(seed), size) for seed in options.seeds}
    print("\n".join(table(list(runs.values()))))
    if options.record is not None:
        versions = dict(
            python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__
        )
        about = dict(size=asdict(size), negative=NEGATIVE, versions=versions)
        options.record.parent.mkdir(parents=True, exist_ok=True)
        options.record.write_text(json.dumps(about | {"runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
