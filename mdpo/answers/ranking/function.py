"""A Python function of the user's own as the judge of answers."""

import importlib
import math
import numbers
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tqdm.auto import tqdm

from mdpo.data.images import open_image
from mdpo.data.problem import shortened
from mdpo.errors import InputError

from ..records import Answer, Scored
from .way import question_text, score_each


class Function:
    """Scores each answer by a function, in this process, one after the other; every run calls it anew.

    function: takes ``question`` (the text that was asked last), ``answer``, ``images`` (RGB, a list of PIL images) and
        ``id`` (of the question) by these names, and returns a number, the higher the better, or None for no score.
    called: its name, for messages.
    """

    name = "function"

    def __init__(self, function: Callable[..., Any], called: str) -> None:
        self._function, self._called = function, called

    @classmethod
    def named(cls, name: str) -> "Function":
        """From "package.module:function", installed or below the working directory.

        Raises InputError where there is none, or importing it fails.
        """
        module, colon, attribute = name.partition(":")
        if not (module and colon and attribute):
            raise InputError(f"--function is {name}; expected package.module:name, such as rewards:score")
        here = os.getcwd()
        if here not in sys.path:  # as python -m has it, and a script that pip installed has not
            sys.path.insert(0, here)
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:  # a script may leave the program where it is imported
            raise InputError(
                f"--function {name} cannot be imported: {_said(error)}; check its name and {here}"
            ) from error
        if not callable(found):
            raise InputError(f"--function {name} is a {type(found).__name__}; give a function")
        return cls(found, name)

    def __call__(self, answers: Sequence[Answer]) -> list[Scored]:
        """Raises InputError that names the answer and the function where that raises, or returns anything else."""
        bar = tqdm(total=len(answers), desc="scoring", leave=False, disable=None)

        def score(answer: Answer) -> tuple[float | None, dict[str, Any]]:
            value = self._score(answer)
            bar.update()
            return value, {}

        with bar:
            return score_each(answers, self.name, score)

    def settings(self) -> dict[str, Any]:
        return {"function": self._called}

    def _score(self, answer: Answer) -> float | None:
        images = [open_image(image, answer.row.where) for image in answer.row.images]
        at = f"{self._called} on answer {answer.number} of {shortened(answer.writer)} to {shortened(answer.row.id)}"
        try:
            value = self._function(
                question=question_text(answer.row), answer=answer.response, images=images, id=answer.row.id
            )
        except (Exception, SystemExit) as error:
            raise InputError(f"{at} failed: {_said(error)}; fix it, or return None where there is no score") from error
        if value is None:
            return None
        number = _number(value)
        if number is None:
            raise InputError(f"{at} returned {shortened(value, 40)}; return a finite number, or None for no score")
        return number


def _number(value: Any) -> float | None:
    """The value as a float, also of NumPy and PyTorch; None where it is no finite number."""
    if not isinstance(value, numbers.Real) and not hasattr(value, "item"):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # arrays of several, and of complex numbers
        return None
    return number if math.isfinite(number) else None


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
