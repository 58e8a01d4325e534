"""Tokenising by words that came before, for tokenizers that split text into words first.

Such a tokenizer cuts a text into words by a pattern and makes tokens of every word by itself, so a word that came
before has the tokens it had then. Between a letter and a single blank before another letter every pattern below cuts,
whatever stands around them: there, and only there, texts are cut here. The tokens are the tokenizer's own.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

# A word as the patterns see it, from its blank on: ASCII alone, where letters are letters in every version of Unicode.
_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")
_INSIDE = re.compile(r"[A-Za-z] [A-Za-z]")
_MOST = 200_000  # words that are remembered
_LONGEST = 64  # characters of a word that is remembered
# GPT-2's pattern is what ByteLevel uses; these are GPT-4's, Llama 3's and Qwen2's. In each a run of letters ends at the
# blank, and a blank before a letter begins a word.
_PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def splits_words(backend: Any) -> bool:
    """Whether a fast tokenizer cuts between a letter and a blank before another letter, always, and keeps the letters.

    backend: a ``tokenizers.Tokenizer``.
    """
    parts = json.loads(backend.to_str())
    normalizer = parts.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":  # which leaves ASCII alone
        return False
    if any(_INSIDE.search(token["content"]) or token["lstrip"] or token["rstrip"] for token in parts["added_tokens"]):
        return False
    steps = parts.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    cuts = False
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel" and not step["add_prefix_space"]:
            cuts |= step["use_regex"]
        elif kind == "Split" and step["behavior"] == "Isolated" and step["pattern"].get("Regex") in _PATTERNS:
            cuts = True
        elif kind != "Digits":
            return False
    return cuts and parts["model"]["type"] == "BPE" and not parts["model"].get("dropout")


class Words:
    """Tokenises texts, each as ``tokenise`` does.

    tokenise: texts to ids, by a tokenizer for which ``splits_words`` is true.
    """

    def __init__(self, tokenise: Callable[[list[str]], list[list[int]]]) -> None:
        self._tokenise = tokenise
        self._known: dict[str, list[int]] = {}

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        cut = [_CUT.split(text) for text in texts]
        known = self._known
        fresh = list({word for words in cut for word in words if word not in known})
        found = dict(zip(fresh, self._tokenise(fresh), strict=True)) if fresh else {}
        if len(known) + len(found) > _MOST:
            known = self._known = {}
            fresh = list({word for words in cut for word in words})
            found = dict(zip(fresh, self._tokenise(fresh), strict=True))
        known |= found
        result = []
        for words in cut:
            ids: list[int] = []
            for word in words:
                ids += known[word]
            result.append(ids)
        for word in found:  # what seldom comes again
            if len(word) > _LONGEST:
                del known[word]
        return result
