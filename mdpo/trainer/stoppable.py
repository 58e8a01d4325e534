"""A Trainer that can be stopped between two steps, by a signal or by rows that cannot be read, and goes on
from there.
"""

# transformers types a Trainer's attributes as all they could be, and a batch as a dict.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportReturnType=false, reportOptionalIterable=false

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_callback import DefaultFlowCallback, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from .goes_on import GoesOn
from .ranks import from_all_ranks, meet, misses_a_rank, raised_by_all, without_a_rank
from .signals import Stopped, active, signals
from .steps import MicroBatch, Step
from .workers import Unread, how_one_died, kill_workers, workers_of

_log = logging.getLogger(__name__)
_STOP, _PROBLEM = 1, 2  # why a rank takes no step


class _NoMoreSteps(Exception):
    """Raised where the next step would begin, with everything up to it kept."""


class EvaluationLeft(Exception):
    """A signal came during an evaluation; the resumed run makes up for it."""


class StopOnSignal(TrainerCallback):
    """The first SIGINT, SIGTERM or SIGHUP: finish the step, write a checkpoint, end the training loop.

    Attributes:
        received: The signal's number, the same in all processes of a run; None as long as there is none.
        stopped: Whether the training has ended early for it: False where nothing was left to train.
    """

    def __init__(self, trainer: "Stoppable") -> None:
        self.trainer = trainer
        self.received: int | None = None
        self.stopped = False
        self.agreed = 0

    @property
    def pending(self) -> int:
        """The signal that came to this process, 0 for none."""
        current = active()
        return 0 if current is None else current.received or 0

    @property
    def told(self) -> int:
        """The signal that all processes of the run know of, 0 for none."""
        return self.pending if self.trainer.args.world_size == 1 else self.agreed

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        current = active()
        if current is None:
            _log.warning("training runs outside the main thread: a signal will not write a checkpoint")
        else:
            current.hold()
        self.trainer._begins()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self._ends(control):
            control.should_save = True

    def on_save(self, args, state, control, **kwargs) -> None:
        self.trainer._saved_step = state.global_step
        if not self.stopped:
            self._ends(control)

    def _ends(self, control: TrainerControl) -> bool:
        self.received = self.told or None
        # Where training ends by itself there is only its end left to do, as if no signal had come.
        if self.received is not None and not control.should_training_stop:
            self.stopped = control.should_training_stop = True
        return self.stopped

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        if self.stopped:  # the checkpoint is there, and the evaluation is the resumed run's
            control.should_evaluate = control.should_save = False
            control.should_log = control.should_log and self.trainer._at_epoch_end()


class Stoppable(GoesOn):
    """``transformers.Trainer`` whose steps and evaluations can be left, with a checkpoint of the last finished step.

    ``evaluation_loop`` is the subclass's: it takes its steps from ``_evaluated_steps`` and calls ``_leave_if_told``
    before every micro-batch.
    """

    stop_on_signal: StopOnSignal

    def _may_stop(self) -> None:
        """For the end of ``__init__``: callbacks are asked in their order."""
        self.stop_on_signal = StopOnSignal(self)
        self.add_callback(self.stop_on_signal)
        self._first_step = 0  # that this training began after
        self._saved_step: int | None = None  # whose checkpoint is there
        self._to_make_up = False  # whether that step still has to be evaluated
        self._workers: Sequence[BaseProcess] = ()

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput:
        """As ``Trainer.train``, with handlers of SIGINT, SIGTERM and SIGHUP: see ``stop_on_signal``.

        Raises TrainingError, after a checkpoint where a step was made, if rows cannot be read; and if another process
        of the run is gone.
        """
        self.stop_on_signal.received, self.stop_on_signal.stopped, self.stop_on_signal.agreed = None, False, 0
        self._saved_step = None
        if resume_from_checkpoint is not None:
            folder = Path(resume_from_checkpoint).resolve()
            if folder.parent == Path(self.args.output_dir).resolve():
                self._saved_step = int(folder.name.rpartition("-")[2])
        with signals():
            meet(self.args)
            try:
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            except RuntimeError as error:
                if misses_a_rank(self.args, error):
                    raise without_a_rank(self.args) from error
                raise
            finally:
                kill_workers(self._workers)
                self._workers = ()

    def _begins(self) -> None:
        self._first_step = self.state.global_step
        self._to_make_up = self._first_step > 0 and self._evaluation_is_due()

    # The ranks of a run

    def _over_ranks(self, value: int, reduction: str) -> int:
        """The largest ("max") or smallest ("min") of the ranks' values."""
        sign = 1 if reduction == "max" else -1
        return sign * self._largest(sign * value)[0]

    def _largest(self, *values: int) -> list[int]:
        """The largest of the ranks' values, one by one. With them goes what any rank knows of a signal."""
        if self.args.world_size == 1:
            return list(values)
        tensor = torch.tensor([*values, self.stop_on_signal.pending], device=self.args.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        *largest, self.stop_on_signal.agreed = tensor.tolist()
        return largest

    def _from_all_ranks(self, entries: list) -> list:
        return from_all_ranks(self.args, entries)

    @property
    def has_trained(self) -> bool:
        """Whether the last training has made a step."""
        return self.state.global_step > self._first_step

    # The data of a step

    def get_batch_samples(
        self, epoch_iterator: Iterator[Step], num_batches: int, device: torch.device
    ) -> tuple[list[Step], None]:
        # The base class counts labels here to scale the loss; a step already knows its number of examples.
        if self.state.global_step >= self.state.max_steps:
            raise _NoMoreSteps  # a run that had made its last step, in the middle of an epoch
        self._workers = workers_of(epoch_iterator)
        steps, problem = self._read(epoch_iterator, num_batches)
        number, problem = self._agree_on(steps, problem)
        if number or problem:
            self._stop(number)
            self._raise(problem)
            raise _NoMoreSteps
        return steps, None

    def _read(self, iterator: Iterator[Step], number: int) -> tuple[list[Step], str | None]:
        """The next batches, and what is wrong with them; "" where a signal has ended the wait."""
        current = active()
        try:
            with nullcontext() if current is None else current.waiting():
                steps = list(itertools.islice(iterator, number))
        except Stopped:
            return [], ""
        except RuntimeError:
            problem = how_one_died(workers_of(iterator))
            if problem is None:
                raise
            return [], "" if self.stop_on_signal.pending else problem
        unread = [step.problem for step in steps if isinstance(step, Unread)]
        return ([], unread[0]) if unread else (steps, None)

    def _agree_on(self, steps: list[Step], problem: str | None) -> tuple[int, str | None]:
        """The signal and the problem that any rank has. Steps are padded to the ranks' most micro-batches, in place."""
        most = max((len(step.micro_batches) for step in steps), default=0)
        code = _PROBLEM if problem else 0 if problem is None else _STOP
        most, code = self._largest(most, code)
        number = self.stop_on_signal.told
        if code == _PROBLEM and not number:
            return 0, self._from_all_ranks([problem] if problem else [])[0]
        steps[:] = [step.padded(most) for step in steps]
        return number, None

    def _stop(self, number: int) -> None:
        """Ends the training here, with a checkpoint of the last step where this training has made one."""
        self.stop_on_signal.received = number or None
        self.stop_on_signal.stopped = bool(number)
        self.control.should_training_stop = True
        kill_workers(self._workers)
        if self.has_trained and self.state.global_step != self._saved_step:
            self._save_checkpoint(self.model_wrapped, trial=None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _raise(self, problem: str | None) -> None:
        if problem is None:
            return
        step = self.state.global_step
        kept = "nothing was trained yet"
        if step == self._saved_step:
            folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
            kept = f"the state after step {step} is kept in {folder}: go on with --resume_from_checkpoint true"
        raise raised_by_all(self.args, f"{problem}; {kept}")

    # Evaluation

    def _evaluated_steps(self, dataloader: DataLoader) -> Iterator[tuple[Step, list[MicroBatch]]]:
        """The steps of an evaluation with what was planned for them, as all ranks have them."""
        iterator = iter(dataloader)
        for planned in dataloader.batch_sampler:
            steps, problem = self._read(iterator, 1)
            number, problem = self._agree_on(steps, problem)
            if number or problem:
                kill_workers(workers_of(iterator))
            if problem and self.is_in_train:
                self._stop(0)
            self._raise(problem)
            if number:
                raise EvaluationLeft
            yield steps[0], planned

    def _leave_if_told(self) -> None:
        if self.is_in_train:
            self._largest()
            if self.stop_on_signal.told:
                raise EvaluationLeft

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        try:
            return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except EvaluationLeft:
            if not skip_scheduler:
                raise
            self._stop_evaluating()  # eval_on_start, which no step waits for
            return {}

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationLeft:
            self._stop_evaluating()

    def _stop_evaluating(self) -> None:
        """What the evaluation has logged, of the first of several data sets, is forgotten: all are made up for."""
        self.state.log_history = [entry for entry in self.state.log_history if not self._of_evaluation(entry)]
        self._stop(self.stop_on_signal.told)

    def _of_evaluation(self, entry: dict) -> bool:
        return entry.get("step") == self.state.global_step and any(name.startswith("eval_") for name in entry)

    def _at_epoch_end(self) -> bool:
        return self.state.global_step % len(self.sampler) == 0 or self.state.global_step >= self.state.max_steps

    def _evaluation_is_due(self) -> bool:
        """Whether the step that the state is at should have been evaluated and was not."""
        flow, control = DefaultFlowCallback(), TrainerControl()
        flow.on_step_end(self.args, self.state, control)
        if self._at_epoch_end():
            flow.on_epoch_end(self.args, self.state, control)
        return control.should_evaluate and not any(map(self._of_evaluation, self.state.log_history))

    def _make_up_for_evaluation(self) -> None:
        if not self._to_make_up:
            return
        self._to_make_up = False
        try:
            metrics = self._evaluate(None, None)
        except EvaluationLeft:
            self._stop_evaluating()
            return
        folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self._determine_best_metric(metrics, None) and folder.is_dir():
            self.state.best_model_checkpoint = str(folder)

    # The loop

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._make_up_for_evaluation()
        if self.control.should_training_stop:
            return
        try:
            super()._run_epoch(*args, **kwargs)
        except _NoMoreSteps:
            self.control.should_training_stop = True

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self._make_up_for_evaluation()
        best = self.state.best_model_checkpoint
        if self.stop_on_signal.stopped:  # it is not the end, where the best is loaded and other checkpoints are removed
            self.state.best_model_checkpoint = None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.state.best_model_checkpoint = best
