"""How much each token of an answer counts: its spans, which are of characters, laid over its tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from .problem import RowError
from .spans import Span
from .special_tokens import SpecialTokens, unquoted


class Answer(NamedTuple):
    """An answer that was tokenised, and its text, in which special tokens that it quotes are marked.

    given: as the row has it. prompt: the text before it. before: what separates the two. middle: the answer as the
    template writes it, ``given`` or a part of it. end: of its turn. ids: the tokens of all behind the prompt, and maybe
    EOS.
    """

    given: str
    prompt: str
    before: str
    middle: str
    end: str
    ids: Sequence[int]


def token_weights(spans: Sequence[Span], answer: Answer, tokens: SpecialTokens, where: str, field: str) -> list[float]:
    """A weight per token of ``answer.ids``: the largest of the spans that touch it, 1 where none does.

    Raises RowError where the tokenizer does not say which characters a token stands for, or no token is left to count.
    """
    if not getattr(tokens.tokenizer, "is_fast", False):
        problem = "the model's tokenizer does not say which characters a token stands for"
        raise RowError.at(where, field, problem, "use a fast tokenizer, or leave the weights out")
    places = _places(answer, tokens)
    if places is None:
        problem = "the tokens of the answer cannot be found again in its text"
        raise RowError.at(
            where, field, problem, "take the special tokens out of the answer's text, or leave the weights out"
        )
    start = answer.given.find(unquoted(answer.middle))
    weights = []
    for begin, stop in places:
        touching = [weight for first, last, weight in spans if max(first - start, begin) < min(last - start, stop)]
        weights.append(max(touching, default=1.0))
    if not any(weight for weight, (begin, stop) in zip(weights, places, strict=True) if begin < stop):
        raise RowError.at(where, field, "every token has the weight 0", "leave something that counts, or drop the row")
    return weights


def _places(answer: Answer, tokens: SpecialTokens) -> list[tuple[int, int]] | None:
    """Each token's characters in the unmarked ``middle``, without blanks around them; an empty range for a token of
    something else. None where no way to tokenise the text makes these tokens."""
    prompt, before, middle = (unquoted(text) for text in (answer.prompt, answer.before, answer.middle))
    # With the prompt; as a text that continues another one, as ``SpecialTokens.behind``; or by itself.
    contexts = (prompt, "\n", "")
    ways = [(context, middle, True) for context in contexts]
    if middle == answer.middle:
        ways = [(context, middle + answer.end, False) for context in contexts] + ways
    for context, text, literal in ways:
        located = tokens.located(context + before + text, literal=literal)
        kept = [(id, begin, stop) for id, begin, stop in located if stop > len(context)]
        if kept and [id for id, _, _ in kept] == list(answer.ids[: len(kept)]):
            start = len(context) + len(before)
            found = [_inside(begin - start, stop - start, middle) for _, begin, stop in kept]
            return found + [(0, 0)] * (len(answer.ids) - len(found))
    return None


def _inside(begin: int, stop: int, text: str) -> tuple[int, int]:
    begin, stop = max(begin, 0), max(min(stop, len(text)), 0)
    piece = text[begin:stop]
    if not piece.strip():
        return (begin, max(begin, stop))
    return begin + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip())
