"""The commands of a loop, one after the other, as they could be typed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mdpo.answers.pairs_command import pair_files
from mdpo.config import MDPOConfig, RunConfig, build_config, load_config
from mdpo.output_checks import Output

from .config import LoopConfig, words_of

_FILES_OF_RANK = ("objects", "synonyms", "rubric")


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of a round.

    Attributes:
        round: 0 is before the first, where the model that the loop starts from is measured.
        name: What it does: "sample", "rank", "pairs", "train", or "answer" and "measure" where models are measured.
        words: The command and its arguments, as typed after ``mdpo``.
        makes: The files that it leaves, or, of training, the folder.
        reads: The files that people gave for it, which have to stay as they are while the loop goes on.
    """

    round: int
    name: str
    words: tuple[str, ...]
    makes: tuple[Path, ...]
    reads: tuple[Path, ...] = ()


class _Model(NamedTuple):
    """A model and the adapter on it, as commands take them."""

    model: str
    adapter: str | None

    @property
    def words(self) -> list[str]:
        return [] if self.adapter is None else [f"--adapter={self.adapter}"]


def training_config(config: LoopConfig) -> Path:
    """Where the settings of training stand: the file that was given, or the one that the loop writes."""
    return Path(config.train) if isinstance(config.train, str) else Path(config.output_dir) / "train.yaml"


def training_settings(config: LoopConfig) -> tuple[RunConfig, MDPOConfig]:
    """The settings of training as ``mdpo train`` will read them. Raises InputError as it does."""
    given = {"train_data": "pairs.jsonl", "output_dir": config.output_dir}
    if isinstance(config.train, str):
        return load_config(config.train, given)
    return build_config({**config.train, **given}, source="train")


def stages(config: LoopConfig, run: RunConfig, args: MDPOConfig) -> Iterator[Stage]:
    """Every stage of the loop, in order. run, args: of ``training_settings``."""
    model = _Model(run.model_name_or_path, run.adapter_name_or_path)
    text = words_of(_same_text(run, args))
    first = model
    yield from _measured(config, 0, model, first, text)
    for number in range(1, config.rounds + 1):
        folder = folder_of_round(config, number)
        answers, scored, pairs, trained = (
            folder / name for name in ("answers.jsonl", "scored.jsonl", "pairs.jsonl", "model")
        )
        seed = f"--seed={config.seed + number}"
        words = ["sample", model.model, config.prompts, f"--output={answers}", seed, *model.words, *text]
        yield Stage(number, "sample", (*words, *words_of(config.sample)), (answers,), (Path(config.prompts),))
        yield _ranked(number, "rank", answers, scored, config.rank, model, text)
        words = ("pairs", str(scored), f"--output={pairs}", *words_of(config.pairs))
        yield Stage(number, "pairs", words, _files(pair_files(pairs)))
        words = [
            "train",
            str(training_config(config)),
            f"--train_data={pairs}",
            f"--image_dir={folder}",
            f"--output_dir={trained}",
        ]
        yield Stage(number, "train", (*words, *_starts_from(model, run)), (trained,))
        model = _Model(model.model, str(trained)) if run.use_lora else _Model(str(trained), None)
        yield from _measured(config, number, model, first, text)


def _files(outputs: Iterable[Output]) -> tuple[Path, ...]:
    return tuple(output.path for output in outputs)


def folder_of_round(config: LoopConfig, number: int) -> Path:
    return Path(config.output_dir) / f"round-{number}"


def _measured(config: LoopConfig, number: int, model: _Model, labeler: _Model, text: list[str]) -> Iterator[Stage]:
    """A greedy answer of the model to every held-out question, and its score.

    labeler: whom ``rank --by self`` asks. It is the same in every round: models that each doubt by a measure of their
    own would not compare.
    """
    if config.evaluate is None:
        return
    folder = folder_of_round(config, number) / "evaluation"
    answers, scored = folder / "answers.jsonl", folder / "scored.jsonl"
    words = ["sample", model.model, config.evaluate.prompts, f"--output={answers}", "--n=1", "--temperature=0"]
    options = {**config.sample, **config.evaluate.sample}
    mine = {name: value for name, value in options.items() if name not in ("n", "temperature", "top_p")}
    words += [*model.words, *text, *words_of(mine)]
    yield Stage(number, "answer", tuple(words), (answers,), (Path(config.evaluate.prompts),))
    yield _ranked(number, "measure", answers, scored, config.evaluate.rank or config.rank, labeler, text)


def _ranked(
    number: int, name: str, answers: Path, scored: Path, options: Mapping[str, Any], labeler: _Model, text: list[str]
) -> Stage:
    words = ["rank", str(answers), f"--output={scored}", *words_of(options)]
    if options.get("by") == "self":
        words += text if "model" in options else [f"--model={labeler.model}", *labeler.words, *text]
    given = [options.get(option) for option in _FILES_OF_RANK]
    return Stage(number, name, tuple(words), (scored,), tuple(Path(path) for path in given if isinstance(path, str)))


def _starts_from(model: _Model, run: RunConfig) -> list[str]:
    """Overrides of training by which it begins with a model, which is its reference too."""
    if model.adapter is not None:
        return [f"--adapter_name_or_path={model.adapter}"]
    return [] if model.model == run.model_name_or_path else [f"--model_name_or_path={model.model}"]


def _same_text(run: RunConfig, args: MDPOConfig) -> dict[str, object]:
    """Options by which sampling and ranking read what training reads: the same text, and pictures of the same size."""
    kwargs = args.chat_template_kwargs
    rendered = args.prompt_is_rendered
    return {
        "system_prompt": args.system_prompt,
        "chat_template": args.chat_template,
        "chat_template_kwargs": None if kwargs is None else json.dumps(kwargs),
        "prompt_is_rendered": None if rendered is None else str(rendered).lower(),
        "max_pixels": run.max_pixels,
        "min_pixels": run.min_pixels,
        "image_processor_kwargs": None
        if run.image_processor_kwargs is None
        else json.dumps(run.image_processor_kwargs),
    }
