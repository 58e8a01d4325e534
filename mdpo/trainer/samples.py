"""Answers of the model that is being trained, to the same few prompts at every evaluation: on a page, in a file of
lines and in the run's tracker."""

# transformers types a Trainer's attributes as all they could be.
# pyright: reportArgumentType=false, reportOptionalIterable=false

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from mdpo.data import PreferenceDataset, PreferenceRow, TextOptions
from mdpo.evaluation import generate
from mdpo.models.folder import short
from mdpo.models.reference import in_mode
from mdpo.outputs import write_text

from .samples_page import Sample, page, picture

if TYPE_CHECKING:
    from .trainer import MDPOTrainer

PAGE_NAME, LINES_NAME = "sample_answers.html", "sample_answers.jsonl"
_MAX_NEW_TOKENS = 256
_BATCH_SIZE = 4  # answers at a time: the optimizer's state is on the device too
_log = logging.getLogger(__name__)


class SampleAnswers(TrainerCallback):
    """Greedy answers to the first ``sample_prompts`` rows of the evaluation's first data set, or of the training data
    where nothing is evaluated: then at the end of each epoch.

    Nothing that fails here ends the run: it is one line in the log.
    """

    def __init__(self, trainer: "MDPOTrainer") -> None:
        self.trainer = trainer
        self._samples: list[Sample] = []
        self._step: int | None = None  # that was sampled last

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step, self._samples = None, []
        if state.global_step and args.should_save:  # resumed: what was sampled up to here stands
            with self._never_failing("read"):
                self._samples = [
                    sample for sample in _read(self._folder / LINES_NAME) if sample.step <= state.global_step
                ]

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.is_in_train:
            self._sample(state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_strategy == IntervalStrategy.NO:
            self._sample(state.global_step)

    @property
    def _folder(self) -> Path:
        return Path(str(self.trainer.args.output_dir))

    def _sample(self, step: int) -> None:
        if step == self._step or not self.trainer.is_world_process_zero():
            return  # with several data sets an evaluation ends several times
        self._step = step
        with self._never_failing("made"):
            if self.trainer.is_fsdp_enabled:
                raise RuntimeError(
                    "FSDP shards the weights, and one process writes the answers; mdpo generate does, afterwards"
                )
            rows = self._rows()
            new = [
                Sample(step, row.id, _question(row), row.chosen, answer)
                for row, answer in zip(rows, self._answers(rows), strict=True)
            ]
            self._samples = [sample for sample in self._samples if sample.step < step] + new
            lines = (json.dumps(sample._asdict(), ensure_ascii=False) for sample in self._samples)
            write_text(self._folder / LINES_NAME, "".join(f"{line}\n" for line in lines))
            write_text(self._folder / PAGE_NAME, page(self._samples, {row.id: picture(row) for row in rows}))
            _track(self.trainer, step, new, rows)

    def _rows(self) -> list[PreferenceRow]:
        dataset: Any = self.trainer.eval_dataset
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()), None)
        if not isinstance(dataset, PreferenceDataset):
            dataset = self.trainer.train_dataset
        return list(dataset.rows[: self.trainer.args.sample_prompts])

    def _answers(self, rows: Sequence[PreferenceRow]) -> list[str]:
        trainer = self.trainer
        # Compiled layers would be compiled once more for every length of an answer.
        with in_mode(trainer.model, training=False), trainer.step_autocast(), torch.compiler.set_stance("force_eager"):
            return list(
                generate(
                    trainer.model,
                    trainer.processing_class,
                    rows,
                    max_new_tokens=_MAX_NEW_TOKENS,
                    batch_size=_BATCH_SIZE,
                    text=TextOptions.of(trainer.args),
                )
            )

    @contextmanager
    def _never_failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the training is worth more
            _log.warning("sample_prompts: the answers could not be %s (%s); training goes on", what, short(error))
            if isinstance(error, torch.OutOfMemoryError):
                clear_device_cache(garbage_collection=True)


def _read(path: Path) -> list[Sample]:
    if not path.is_file():
        return []
    return [Sample(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _question(row: PreferenceRow) -> str:
    """The prompt's words, each turn on a line of its own, without the pictures' places."""
    if row.plain is not None:
        return row.plain
    turns = [
        (message["role"], "".join(part.get("text", "") for part in message["content"]).strip())
        for message in row.prompt
    ]
    return turns[0][1] if len(turns) == 1 else "\n".join(f"{role}: {text}" for role, text in turns)


def _track(trainer: "MDPOTrainer", step: int, samples: Sequence[Sample], rows: Sequence[PreferenceRow]) -> None:
    """The table to each tracker that has one, as it was set up for this run."""
    columns = ["step", "picture", "prompt", "answer", "chosen"]
    for name in trainer.args.report_to:
        if name == "tensorboard":
            writer = next(
                (c.tb_writer for c in trainer.callback_handler.callbacks if getattr(c, "tb_writer", None)), None
            )
            if writer is not None:
                text = "\n\n".join(f"**{s.prompt}**\n\n{s.answer}" for s in samples)
                writer.add_text("sample_answers", text, step)
        elif name in ("wandb", "trackio"):
            tracker: Any = sys.modules[name]  # its callback has imported it
            images = [picture(row) for row in rows]
            values = [
                [step, None if image is None else tracker.Image(image), s.prompt, s.answer, s.chosen]
                for image, s in zip(images, samples, strict=True)
            ]
            table = (
                tracker.Table(columns=columns, data=values)
                if name == "wandb"
                else tracker.Table(dataframe=sys.modules["pandas"].DataFrame(values, columns=columns))
            )
            tracker.log({"sample_answers": table, "train/global_step": step})
