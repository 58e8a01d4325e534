"""What the terminal shows of a run: for each log a line that fits it.

All that is logged goes to the trackers and into trainer_state.json; the line holds what tells how a run goes.
"""

import re
import time
from collections.abc import Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback

_TERM = re.compile(r"terms/([^/]+)/margins")
# Terms of the presets by short names; those of an objective of the user's have their own.
_SHORT = {
    "response_preference": "margin",
    "image_preference": "image",
    "pair_preference": "pair",
    "context_gain": "context",
    "pair_preference_negative": "negative pair",
    "response_preference_negative": "negative",
    "attend_chosen": "attend",
    "reject_chosen": "reject",
    "attend_contrast": "attend contrast",
    "reject_contrast": "reject contrast",
}


def line_of(logs: Mapping[str, Any], step: int, steps: int, tokens_a_second: float | None = None) -> str:
    """The line of one log: step, loss, each preference's margin and accuracy, the chosen answer's reward, learning
    rate.

    logs: as a callback gets them, of training or of an evaluation, or the summary at the end. tokens_a_second: of
    training.
    """
    if "train_runtime" in logs:
        speed = f"{logs.get('train_samples_per_second', 0):.2f} pairs a second"
        return f"{step} steps in {_duration(logs['train_runtime'])}, {speed}, mean loss {logs.get('train_loss', 0):.4f}"
    start = next((key.removesuffix("loss") for key in logs if key.startswith("eval_") and key.endswith("loss")), "")
    own = {key.removeprefix(start): value for key, value in logs.items() if key.startswith(start)}
    # An evaluation that stands alone is of no step.
    parts = [*([f"step {step}/{steps}"] if steps else []), *([start.strip("_")] if start else [])]
    if _is_number(own.get("loss")):
        parts.append(f"loss {own['loss']:.4f}")
    parts += _preferences(own)
    if _is_number(own.get("rewards/chosen")):
        parts.append(f"chosen {own['rewards/chosen']:+.3f}")
    if _is_number(own.get("learning_rate")):
        parts.append(f"lr {own['learning_rate']:.1e}")
    if tokens_a_second is not None and not start:
        parts.append(f"{tokens_a_second:,.0f} tok/s")
    return "  ".join(parts)


def _preferences(logs: Mapping[str, Any]) -> list[str]:
    """Of each term the margin and the share of pairs where it is above 0; of more than two terms the share alone, for
    the line to fit."""
    margins = {term[1]: logs[key] for key in logs if (term := _TERM.fullmatch(key)) and _is_number(logs[key])}
    found = []
    for name, margin in margins.items():
        accuracy = logs.get(f"terms/{name}/accuracies")
        share = f"{accuracy:.0%}" if _is_number(accuracy) else "-"
        found.append(f"{_SHORT.get(name, name)} {share if len(margins) > 2 else f'{margin:+.3f} ({share})'}")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


class _Speed:
    """Tokens a second between two logs. trainer: counts ``tokens_trained``, of its own process."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._before: tuple[float, int] | None = None

    def begin(self) -> None:
        self._before = time.perf_counter(), self._trainer.tokens_trained

    def since(self) -> float | None:
        now, tokens = time.perf_counter(), self._trainer.tokens_trained
        before, self._before = self._before, (now, tokens)
        if before is None or tokens == before[1]:
            return None
        # The planner deals each process as many as the others, within some per cent.
        return (tokens - before[1]) * self._trainer.args.world_size / (now - before[0])


class Progress(ProgressCallback):
    """transformers' bars, with a line for each log above them."""

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self._speed = _Speed(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._speed.begin()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(line_of(logs, state.global_step, state.max_steps, self._speed.since()))


class Lines(PrinterCallback):
    """A line for each log, where there are no bars."""

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self._speed = _Speed(trainer)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._speed.begin()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_local_process_zero and logs is not None:
            print(line_of(logs, state.global_step, state.max_steps, self._speed.since()))


def use_lines(trainer: Any) -> None:
    """Has a trainer show lines where transformers prints all that is logged. A subclass of its callbacks is the user's
    own.
    """
    for theirs in tuple(trainer.callback_handler.callbacks):
        ours = {ProgressCallback: Progress, PrinterCallback: Lines}.get(type(theirs))
        if ours is not None:
            trainer.remove_callback(theirs)  # by its class, a subclass in front of it would go
            trainer.add_callback(ours(trainer))
