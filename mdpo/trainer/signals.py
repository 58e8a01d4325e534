"""SIGTERM: the running step is finished and a checkpoint written."""

import logging
import signal
from typing import Any

from transformers import TrainerCallback

_log = logging.getLogger(__name__)


class StopOnSignal(TrainerCallback):
    """SIGTERM (a preempted job): finish the step, write a checkpoint, end the training loop."""

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.received = False
        try:
            self._previous = signal.signal(signal.SIGTERM, self._remember)
        except ValueError:  # not the main thread, where Python allows no handlers
            _log.warning("training runs outside the main thread: SIGTERM will not write a checkpoint")

    def _remember(self, number: int, frame: Any) -> None:
        self.received = True

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.received:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None
