"""Several answers of a model to one question, drawn at random, each by random numbers of its own.

The numbers follow from (seed, row id, the answer's number). So an answer is the same in whatever batch it is drawn, in
whatever order, and wherever a run was interrupted, up to the rounding that padding brings.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, ProcessorMixin
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from mdpo.data import PromptRow, TextOptions
from mdpo.errors import InputError
from mdpo.evaluation.endings import Written
from mdpo.evaluation.generate import Writer

from .records import Answer

Item = tuple[PromptRow, int]
"""A question, and the number of the answer that is wanted among those to it, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the tokens of answers are drawn: from softmax(logits / temperature), cut to its most probable part.

    temperature: 0 takes the likeliest token each time. top_p: the share of the probability that is kept, 1 for all of
    it.
    seed: any whole number. max_new_tokens: where an answer is cut.

    Raises InputError for a value out of range.
    """

    temperature: float
    top_p: float
    seed: int
    max_new_tokens: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(
                f"temperature is {self.temperature}; expected a number from 0 on, where 0 draws nothing at random"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; expected a share above 0 and up to 1")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; expected a number above 0")

    def check_count(self, n: int) -> None:
        """Raises InputError where a question cannot have n answers."""
        if n < 1:
            raise InputError(f"n is {n}; expected a number above 0")
        if n > 1 and not self.temperature:
            raise InputError(f"n is {n}, but at temperature 0 all answers are the same: give n 1, or a temperature")


def sample(
    model: nn.Module,
    processor: ProcessorMixin,
    rows: Sequence[PromptRow],
    *,
    n: int = 6,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 42,
    max_new_tokens: int = 1024,
    batch_size: int = 16,
    text: TextOptions | None = None,
    writer: str = "model",
) -> Iterator[Answer]:
    """n answers of the model to each row, in order, those to one row next to each other.

    The model reads the very prompt ids that training has, and an answer ends with what ends a turn there. What the
    model's generation config says of sampling and penalties is overruled, as in ``mdpo.evaluation.generate``.

    Args:
        model: bare or PEFT, on its device, in any floating dtype; probabilities are computed in float32.
        rows: questions with ids that differ; rows without images may be among them.
        n: answers per row; 1 where ``temperature`` is 0.
        temperature: what the logits are divided by; 0 takes the likeliest token each time.
        top_p: the share of the probability, from its most probable token on, that is drawn from.
        seed: an answer follows from (seed, row id, its number), whatever the batch.
        max_new_tokens: where an answer is cut; its ``whole`` is False then.
        batch_size: answers that are drawn at a time.
        text: how rows become text, as in training.
        writer: name of the model in the answers; two models in one pool need two names.

    Raises InputError for a value out of range, and while answers are drawn, where the model or its processor fails on a
    row.
    """
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens)
    sampling.check_count(n)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected a number above 0")
    items = [(row, number) for row in rows for number in range(n)]
    drawn = draw(Writer(model, processor, text), items, sampling, batch_size)
    return (answer_of(item, written, writer) for item, written in zip(items, drawn, strict=True))


def answer_of(item: Item, written: Written, writer: str) -> Answer:
    """The answer as it goes into a pool."""
    row, number = item
    return Answer(row, written.text, number, writer, written.tokens, written.whole)


def draw(writer: Writer, items: Sequence[Item], sampling: Sampling, batch_size: int) -> Iterator[Written]:
    """Yields the answer to each item, in order. batch_size: how many are drawn at a time. Raises as ``sample``."""
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        choice = None if not sampling.temperature else Draws(batch, sampling)
        answers = writer([row for row, _ in batch], max_new_tokens=sampling.max_new_tokens, choice=choice)
        if choice is not None:
            choice.check()
        yield from answers


def answer_seed(seed: int, item: Item) -> int:
    """A number of 128 bits that names the answer: the same in every process and version."""
    row, number = item
    key = f"{seed}\0{number}\0{row.id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "little")


def uniforms(seed: int, item: Item, count: int) -> np.ndarray:
    """The answer's random numbers, one per token, (count,) float64 in [0, 1)."""
    return np.random.Generator(np.random.PCG64(answer_seed(seed, item))).random(count)


class Draws(LogitsProcessor):
    """Leaves of the scores of each answer of a batch the token that its next random number falls on.

    That is the first one whose probability, summed up with those of the tokens before it, exceeds the number: each
    token is drawn as often as it is probable. For one call of ``generate``.
    """

    def __init__(self, items: Sequence[Item], sampling: Sampling) -> None:
        self._items = items
        numbers = np.stack([uniforms(sampling.seed, item, sampling.max_new_tokens) for item in items])
        self._numbers = torch.from_numpy(numbers)  # (B, T)
        self._warpers: Any = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._sound = torch.ones(len(items), 1, dtype=torch.bool)
        self._prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: (B, S) prompt and answer so far. scores: (B, V) logits, of any floating dtype.

        Returns (B, V), 0 for the token that is drawn and −∞ for all others.
        """
        if self._prompt is None:
            self._prompt = input_ids.shape[1]
            self._numbers, self._sound = self._numbers.to(scores.device), self._sound.to(scores.device)
        step = input_ids.shape[1] - self._prompt
        # In float64, of which the sum loses nothing: in float32 improbable tokens would be lost beside the others' sum.
        sums = self._warpers(input_ids, scores.float()).softmax(-1).cumsum(-1, dtype=torch.float64)
        total = sums[:, -1:]
        self._sound &= total.isfinite()  # looked at in the end: the host does not wait for the device here
        drawn = torch.searchsorted(sums, self._numbers[:, step : step + 1] * total, right=True)
        drawn.clamp_(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)

    def check(self) -> None:
        """Raises InputError where scores were not numbers, so that answers were not drawn from them."""
        broken = (~self._sound).nonzero()[:, 0].tolist()
        if broken:
            raise InputError(
                f"{self._items[broken[0]][0].where}: the model's scores are not numbers: a weight is none, or "
                "values overflow in its dtype (--dtype bfloat16 and float32 have room)"
            )
