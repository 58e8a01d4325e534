"""The objects of a response as a judge names them: RLHF-V's way to Object HalBench.

Facts of the official program (github.com/RLHF-V/RLHF-V, ``eval/eval_gpt_obj_halbench.py``): one system message, the
literal ``prompt_template`` with {question} and {answer} replaced; temperature 0.2, 512 tokens. A response of three
words or fewer has no objects and is not sent. The reply is a JSON list, whole or in its last line; RLAIF-V's version of
the program takes it from a fenced block. Each name is parsed as "a <name>": double words in its lemmas, if there are
any, or else its runs of nouns, are the objects; each is kept once a response. Malformed replies are asked for anew.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdpo.errors import InputError
from mdpo.reading import parse_json

from ..files import read_literal
from ..judge import Judge, Reply, Request
from .metrics import Lexicon

Tagger = Callable[[str], list[tuple[str, str]]]

_NOUN_TAGS = ("NN", "NNS", "NNP", "NNPS")
_SHORT = 3  # words
_LONGEST = 2**13  # characters in which a fence is looked for: several times the reply that is asked for
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n\s*```", re.DOTALL)


def read_template(path: str | Path) -> str:
    """The prompt from the user's copy of the official script (the literal ``prompt_template``) or a text file."""
    template = read_literal(path, "prompt_template")
    for place in ("{question}", "{answer}"):
        if place not in template:
            raise InputError(f"{path}: the prompt has no {place}; give RLHF-V's eval_gpt_obj_halbench.py or its prompt")
    return template


def request(question: str, answer: str, template: str, attempt: int = 0) -> Request:
    """The official request for one response."""
    # One after the other, as there: a question that says "{answer}" would be filled too.
    prompt = template.replace("{question}", question).replace("{answer}", answer)
    return Request([{"role": "system", "content": prompt}], temperature=0.2, max_tokens=512, attempt=attempt)


def parse(text: str) -> list[str] | None:
    """The names in a judge's reply; None where it is malformed. "()" is empty, since the prompt itself calls it so."""
    text = text.strip()
    if text == "()":
        return []
    fence = _FENCE.search(text[:_LONGEST])
    for candidate in (text, fence.group(1) if fence else "", text.rpartition("\n")[2]):
        try:
            names = parse_json(candidate)
        except ValueError:
            continue
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    return None


def refine(names: Sequence[str], lexicon: Lexicon, tagger: Tagger) -> list[str]:
    """A judge's names as the official program reads them: lemmas, double words, each once.

    tagger: text → (lemma, tag).
    """
    objects: list[str] = []
    for name in names:
        tagged = tagger(f"a {name}")
        objects += _double_words([lemma for lemma, _ in tagged], lexicon) or _noun_runs(tagged)
    return list(dict.fromkeys(objects))


def _double_words(lemmas: Sequence[str], lexicon: Lexicon) -> list[str]:
    found, index = [], 0
    while index < len(lemmas):
        pair = " ".join(lemmas[index : index + 2])
        if pair in lexicon.double_words:
            found.append(lexicon.double_words[pair])
        index += 2 if pair in lexicon.double_words else 1
    return found


def _noun_runs(tagged: Sequence[tuple[str, str]]) -> list[str]:
    runs: list[list[str]] = [[]]
    for lemma, tag in tagged:
        if tag in _NOUN_TAGS:
            runs[-1].append(lemma)
        elif runs[-1]:
            runs.append([])
    return [" ".join(run) for run in runs if run]


def requests(rows: Sequence[Mapping[str, Any]], template: str, attempt: int = 0) -> dict[int, Request]:
    """The requests for rows ``[{"question", "caption"}]``, by row; short captions need none."""
    return {
        index: request(row["question"], row["caption"], template, attempt)
        for index, row in enumerate(rows)
        if len(row["caption"].split()) > _SHORT
    }


def extract(
    rows: Sequence[Mapping[str, Any]], judge: Judge, template: str, lexicon: Lexicon, tagger: Tagger, attempts: int = 3
) -> tuple[list[list[str] | None], list[Reply]]:
    """Each row's objects, None where ``attempts`` replies were malformed; and every reply.

    rows: ``[{"question": str, "caption": str}]``. Raises InputError where the judge does not answer.
    """
    names: list[list[str] | None] = [[] for _ in rows]
    open_rows = requests(rows, template)
    replies: list[Reply] = []
    for attempt in range(attempts):
        if not open_rows:
            break
        answers = judge.ask(list(open_rows.values()))
        replies += answers
        for index, reply in zip(open_rows, answers, strict=True):
            names[index] = parse(reply.text)
        again = requests(rows, template, attempt + 1)
        open_rows = {index: again[index] for index in open_rows if names[index] is None}
    return [None if row is None else refine(row, lexicon, tagger) for row in names], replies
