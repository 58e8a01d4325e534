"""How sure a model is of yes, for questions that are answered with yes or no."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LogitsProcessor, ProcessorMixin

from mdpo.data import PreferenceRow, PromptRow, TextOptions
from mdpo.data.encode import Encoder
from mdpo.errors import InputError
from mdpo.evaluation.generate import Writer

YES, NO = ("Yes", "yes"), ("No", "no")


def confirm(
    model: nn.Module,
    processor: ProcessorMixin,
    rows: Sequence[PromptRow],
    *,
    batch_size: int = 8,
    text: TextOptions | None = None,
) -> Iterator[float]:
    """Yields P(yes) / (P(yes) + P(no)) for each row, in order. model: bare or PEFT, on its device.

    P is the model's distribution over the first token of its answer, summed over the first tokens of "Yes" and "yes",
    and of "No" and "no", as the chat template has an answer begin. Prompts are what ``generate`` makes of the rows.
    text: how rows become text.

    Raises RowError as ``Encoder``, and InputError where the model or its processor fails on the rows, or its tokenizer
    begins yes and no alike.
    """
    writer = Writer(model, processor, text)
    if not rows:
        return
    lead, yes, no = _first_tokens(Encoder(processor, text), rows[0])
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for batch in tqdm(batches, "asking back", leave=False, disable=None):
        listener = _Listener(lead, yes, no)
        writer(batch, max_new_tokens=len(lead) + 1, choice=listener)
        share = listener.share()
        if not share.isfinite().all():
            raise InputError(f"{batch[0].where}: the model's probability of yes is not finite; give another --dtype")
        yield from share.tolist()


class _Listener(LogitsProcessor):
    """Has the answers begin with what yes and no have in common, and then keeps how sure the model is of either."""

    def __init__(self, lead: Sequence[int], yes: Sequence[int], no: Sequence[int]) -> None:
        self._lead, self._yes, self._no = list(lead), list(yes), list(no)
        self._heard: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        if self._lead:
            forced = torch.full_like(scores, -torch.inf)
            forced[:, self._lead.pop(0)] = 0.0
            return forced
        logits = scores.double()
        # The share of yes in the two, from their logarithms: both may be too small to be added up.
        self._heard = torch.sigmoid(logits[:, self._yes].logsumexp(-1) - logits[:, self._no].logsumexp(-1))
        return scores

    def share(self) -> Tensor:
        """(B,) float64."""
        assert self._heard is not None, "generate asks its processors for every token"
        return self._heard


def _first_tokens(encoder: Encoder, row: PromptRow) -> tuple[list[int], list[int], list[int]]:
    """The tokens with which every one-word answer begins (mostly none), and those that come next for yes and for no."""
    spelled = []
    for word in (*YES, *NO):
        asked = PreferenceRow(row.id, row.where, row.images, row.prompt, chosen=word, rejected=word)
        spelled.append(encoder.row(asked).chosen_ids)
    shared = 0
    while all(len(ids) > shared + 1 for ids in spelled) and len({ids[shared] for ids in spelled}) == 1:
        shared += 1
    yes, no = ({ids[shared] for ids in spelled[at : at + len(YES)]} for at in (0, len(YES)))
    yes, no = yes - no, no - yes  # a token that begins both tells nothing
    if not (yes and no):
        raise InputError(f"{row.where}: the tokenizer begins yes and no with the same token; give another --model")
    return spelled[0][:shared], sorted(yes), sorted(no)
