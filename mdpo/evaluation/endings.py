"""Where a model's answers end, and what of its tokens is the answer."""

from bisect import bisect_left
from typing import Any, NamedTuple

from transformers import GenerationConfig

from mdpo.data.encode import Encoder
from mdpo.errors import InputError


class Written(NamedTuple):
    """An answer of a model.

    tokens: how many it has, without what ends the turn. whole: whether it ended by itself, not at the limit of tokens.
    """

    text: str
    tokens: int
    whole: bool


class Endings:
    """An answer ends with what ends a turn in training, or with what the model's generation config stops at.

    stops: ids of the tokens that end it. end: the text that ends a turn, usually none. by_text: whether that text is
    all that ends it, because no special token follows.

    Raises InputError if the generation config's ``eos_token_id`` is not what it should be.
    """

    def __init__(self, encoder: Encoder, generation_config: GenerationConfig) -> None:
        self.tokenizer: Any = encoder.tokenizer
        self.end, token = encoder.end_of_turn()
        stops: Any = getattr(generation_config, "eos_token_id", None)
        self.stops: list[int] = [stops] if isinstance(stops, int) else list(stops or [])
        if not all(isinstance(stop, int) and stop >= 0 for stop in self.stops):
            raise InputError(f"generation_config.json: eos_token_id is {str(stops)[:80]!r}; expected ids of tokens")
        self.by_text = token is None  # such as "###"
        if token is not None and token not in self.stops:
            self.stops.append(token)
        pad = self.tokenizer.pad_token_id
        self.pad: int = self.tokenizer.eos_token_id if pad is None else pad

    def arguments(self) -> dict[str, Any]:
        """These endings as arguments of transformers' ``generate``."""
        text = {"stop_strings": [self.end], "tokenizer": self.tokenizer} if self.by_text else {}
        return text | {"eos_token_id": self.stops or None, "pad_token_id": self.pad}

    def written(self, ids: list[int]) -> Written:
        """ids: what the model wrote behind the prompt, with what ends the answer and any padding behind that."""
        stop = next((at for at, id in enumerate(ids) if id in self.stops), None)
        own, whole = ids[:stop], stop is not None
        text = self._decoded(own)
        if self.by_text and self.end in text:
            place = text.index(self.end)
            whole, text = True, text[:place]
            own = own[: bisect_left(range(len(own)), place, key=lambda count: len(self._decoded(own[:count])))]
        return Written(text.strip().removesuffix(self.end).strip(), len(own), whole)

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)
