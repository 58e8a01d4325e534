"""Texts → token ids: one BOS, no EOS, and special tokens that a text merely quotes are spelled out in letters."""

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import ProcessorMixin

from .words import Words, splits_words

# Noncharacters: Unicode reserves them for a program's own use inside a text.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


class SpecialTokens:
    """A tokenizer's special tokens, and tokenisation that tells quoted ones from real ones.

    ``quote`` marks the special tokens in a row's text. The template then writes its own around it, and ``ids``
    tokenises the result: marked tokens become letters, the template's own become tokens.

    control: the tokens that mark turns. They count as special even if the tokenizer does not call them so.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        source: Any = processor
        self.tokenizer: Any = source.tokenizer
        self.image_token: str = source.image_token
        self._added = {token.content: token for token in self.tokenizer.added_tokens_decoder.values()}
        named = {str(getattr(self.tokenizer, f"{name}_token", None) or "") for name in _NAMED}
        self.control = frozenset(named - {"", self.image_token})
        special = {name for name, token in self._added.items() if token.special}
        self.special = frozenset(special | set(self.tokenizer.all_special_tokens) | {self.image_token}) - {""}
        self._prefix, self._prefix_text = self._leading()

    def add_control(self, texts: Iterable[str]) -> None:
        """Learns which tokens the template itself writes. texts: what it wrote around texts without any."""
        written = {token for text in texts for token in self.find(text)}
        self.control |= written - {self.image_token}
        self.special |= self.control
        for name in ("_any", "_in_answers", "_in_prompts", "_pieces", "_first_characters"):
            self.__dict__.pop(name, None)

    def find(self, text: str) -> list[str]:
        """The added tokens in a text, in order."""
        return self._any.findall(text)

    @functools.cached_property
    def _any(self) -> re.Pattern:
        return _any_of(self.special | self._added.keys())

    @functools.cached_property
    def _first_characters(self) -> list[str]:
        return sorted({token[0] for token in self.special | self.control | {_OPEN, _CLOSE}})

    @functools.cached_property
    def _in_answers(self) -> re.Pattern:
        return _any_of(self.special | {_OPEN, _CLOSE})

    @functools.cached_property
    def _in_prompts(self) -> re.Pattern:
        return _any_of(self.control | {_OPEN, _CLOSE})

    def quote(self, text: str, *, answer: bool) -> str:
        """Returns ``text`` with its quoted tokens marked: all special tokens if an assistant says it (``answer``), and
        only ``control`` otherwise, because questions may use the others, as in grounding."""
        pattern = self._in_answers if answer else self._in_prompts
        if not any(map(text.__contains__, self._first_characters)):
            return text
        return pattern.sub(lambda match: f"{_OPEN}{match[0]}{_CLOSE}", text)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises whole sequences.

        Each starts with the BOS that the tokenizer would add, unless the text brings it.
        """
        marked = [at for at, text in enumerate(texts) if _OPEN in text or _CLOSE in text]
        slow = {at: self._spelled(texts[at]) for at in marked}
        plain = [text for at, text in enumerate(texts) if at not in slow]
        fast = iter(self._many(plain) if plain else [])
        result = [slow[at] if at in slow else next(fast) for at in range(len(texts))]
        if self._prefix:
            for at, text in enumerate(texts):
                if not text.lstrip().startswith(self._prefix_text):
                    result[at] = [*self._prefix, *result[at]]
        return result

    def _many(self, texts: list[str]) -> list[list[int]]:
        return self._plain(texts) if self._words is None else self._words.ids(texts)

    @functools.cached_property
    def _words(self) -> Words | None:
        """For tokenizers that split text into words: many texts by the words that came before."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return Words(self._plain) if backend is not None and splits_words(backend) else None

    def behind(self, text: str) -> list[int]:
        """Tokenises a text that continues another one, whose tokens do not change."""
        if _OPEN in text or _CLOSE in text:
            return self._spelled(text)
        return self._letters(text, anew=False, literal=False)

    def located(self, text: str, *, literal: bool = False) -> list[tuple[int, int, int]]:
        """The tokens of a text without marks, by a fast tokenizer: each id, and where its characters begin and end.

        literal: special tokens are letters.
        """
        found = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=literal,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [(id, *place) for id, place in zip(found["input_ids"], found["offset_mapping"], strict=True)]

    def _leading(self) -> tuple[list[int], str]:
        """What the tokenizer by itself puts in front of a text: usually BOS or nothing, as ids and as text."""
        whole, (plain,) = self.tokenizer("a")["input_ids"], self._plain(["a"])
        at = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
        ids = list(whole[:at])
        return ids, "".join(self.tokenizer.convert_ids_to_tokens(ids))

    def _plain(self, texts: list[str], *, literal: bool = False) -> list[list[int]]:
        return self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=literal,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]

    @functools.cached_property
    def _pieces(self) -> re.Pattern:
        quoted = f"{_OPEN}({_any_of(self.special | {_OPEN, _CLOSE}).pattern}){_CLOSE}"
        return re.compile(f"{quoted}|({_any_of(self.special).pattern})|[{_OPEN}{_CLOSE}]")

    def _spelled(self, text: str) -> list[int]:
        """Tokenises a text with marks: cut at its real special tokens, with the quoted ones between them as letters.

        A mark without its partner, left where a template took a text apart, is dropped.
        """
        ids: list[int] = []
        stretch, quoted, before = [], [], ""
        end = 0
        for match in self._pieces.finditer(text):
            stretch.append(text[end : match.start()])
            end = match.end()
            if match[1] is not None:
                quoted.append((sum(map(len, stretch)), match[1]))
                stretch.append(match[1])
            elif match[2] is not None:
                ids += self._stretch("".join(stretch), quoted, before, match[2])
                ids.append(self.tokenizer.convert_tokens_to_ids(match[2]))
                stretch, quoted, before = [], [], match[2]
        stretch.append(text[end:])
        return ids + self._stretch("".join(stretch), quoted, before, "")

    def _stretch(self, text: str, quoted: list[tuple[int, str]], before: str, after: str) -> list[int]:
        """quoted: (offset, token). before, after: the special tokens around it, "" at the text's ends."""
        if before in self._added and self._added[before].rstrip:
            kept = text.lstrip()
            quoted = [(at - len(text) + len(kept), token) for at, token in quoted]
            text = kept
        if after in self._added and self._added[after].lstrip:
            text = text.rstrip()
        if not text:
            return []
        anew = not before or self._starts_anew
        ids = self._letters(text, anew=anew)
        spelled = {self.tokenizer.convert_tokens_to_ids(token) for _, token in quoted}
        if not spelled & set(ids):
            return ids
        # An added token that the tokenizer does not call special stays one token in letters too: it is taken apart.
        cuts = [0, *(at + 1 for at, token in quoted if len(token) > 1), len(text)]
        first, *rest = [text[start:stop] for start, stop in itertools.pairwise(cuts)]
        return self._letters(first, anew=anew) + [id for piece in rest for id in self._letters(piece, anew=False)]

    def _letters(self, text: str, *, anew: bool, literal: bool = True) -> list[int]:
        """anew: as at the start of a sequence, where some tokenizers add a space."""
        if not anew:
            line, both = self._plain(["\n", "\n" + text], literal=literal)
            if both[: len(line)] == line:
                return both[len(line) :]
        return self._plain([text], literal=literal)[0]

    @functools.cached_property
    def _starts_anew(self) -> bool:
        """Whether the tokenizer treats the text behind a special token like the start of a sequence."""
        token = self.tokenizer.eos_token
        alone, behind = self._plain(["a", token + "a"])
        return behind[1:] == alone


def unquoted(text: str) -> str:
    """A text without ``quote``'s marks."""
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def _any_of(tokens: Iterable[str]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")
