"""The trainer's output_dir: one run's at a time, and an older run's until the first step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mdpo.config import MDPOConfig
from mdpo.errors import InputError, TrainingError
from mdpo.outputs import clear_parts
from mdpo.run_folder import check_free, is_inside, remove_run
from mdpo.run_lock import RunLock, hold

from .ranks import together


class RunFolder(TrainerCallback):
    """Holds ``output_dir`` while its trainer trains or saves, and removes an older run from it where that is asked for.

    model: the folder that the model was read from, where it is known.
    """

    def __init__(self, args: MDPOConfig, model: str | None) -> None:
        self.folder = Path(str(args.output_dir)).expanduser()
        self._args, self._model = args, model
        self._lock: RunLock | None = None
        self._begun = self._goes_on = False
        self._at_first_step: list[Callable[[], None]] = []

    def take_over(self, lock: RunLock | None) -> None:
        """From now on the folder is held for this trainer: as ``hold`` returned it."""
        self._lock = lock
        if lock is not None:
            lock.owner = self

    def at_first_step(self, action: Callable[[], None]) -> None:
        """Has something done on the main process once every check has passed, when an older run has been removed."""
        self._at_first_step.append(action)

    @contextmanager
    def held(self, resume: str | bool | None) -> Iterator[None]:
        """For the length of a training. Raises InputError where the folder holds another run, or one that runs."""
        with self._locked():
            if not self._begun:  # a trainer may train several times
                begin(self._args, resume, {"the model": self._model})
                self._goes_on = resume is True or bool(resume) and is_inside(str(resume), self.folder)
            yield

    @contextmanager
    def held_to_save(self, folder: str | Path) -> Iterator[None]:
        """For the length of a save. Raises TrainingError where the folder is another run's by now."""
        ours = is_inside(folder, self.folder)
        try:
            with self._locked() if ours else nullcontext():
                self.check()
                yield
        except InputError as error:
            raise TrainingError(f"nothing can be saved there: {error}") from error

    def check(self) -> None:
        """Raises TrainingError where another run has taken the folder over."""
        if self._lock is not None:
            self._lock.check()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with hold_folder(self._args, self) or nullcontext() as lock:
            before, self._lock = self._lock, lock
            try:
                yield
            finally:
                self._lock = before

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._replaces:
            self._begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin()  # an older run stays until the first step's loss and gradients have shown to be finite

    @property
    def _replaces(self) -> bool:
        """Whether an older run in the folder goes."""
        return self._args.overwrite_output_dir and not self._goes_on

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        together(self._args, self._prepare)

    def _prepare(self) -> None:
        if not self._args.should_save:
            return
        if self._replaces:
            remove_run(self.folder)
        clear_parts(self.folder)
        for action in self._at_first_step:
            action()


def hold_folder(args: MDPOConfig, owner: object) -> RunLock | None:
    """``hold`` on the main process; None on the others."""
    return hold(str(args.output_dir), owner) if args.process_index == 0 else None


def begin(args: MDPOConfig, resume: str | bool | None, inputs: dict[str, str | None]) -> None:
    """As ``check_free``, for the run of ``args``. inputs: what it reads, by setting."""
    check_free(str(args.output_dir), resume, overwrite=args.overwrite_output_dir, inputs=inputs)
