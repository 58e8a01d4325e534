"""AMBER's generative metrics, as its official program computes them, and a corrected variant beside it.

Facts of the official program (github.com/junyangwang0410/AMBER, ``inference.py``), which ``compat=True`` keeps:

- A response's mentions are its nouns that occur in ``relation.json``, as a key or as an association. Each occurrence
  counts. Nouns are neither lower-cased nor made unique.
- A word list (the image's ``truth``, or its ``hallu``) is searched as: the associations of every word in turn, then the
  words themselves. So a noun that is a word of the list *and* an association of another one credits the other one.
- A safe word is passed over, but stays in CHAIR's denominator.
- A noun of the truth list is true. Any other noun is looked up in the hallucination list, and that does not end the
  search: the first similar word of the hallucination list is credited too, and if a similar word is in the truth list,
  the first one of it makes the noun true after all. Similar is ``similarity > threshold``, the noun being the first
  argument.
- Each of the four denominators starts at 0.001, so that nothing is divided by zero, and no score is ever quite 100.
- ``annotations[id - 1]`` is the annotation of ``id``, whatever id it bears.
- Entries whose annotation is not ``generative`` belong to other metrics and are passed over.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mdpo.errors import InputError

Similarity = Callable[[str, str], float]
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AmberResponse:
    """What was found in one response. mentions, hallucinated: the nouns, in order, with repetitions.

    truths, hallus: words on the image's two lists; covered, expected: how many of them were mentioned.
    """

    id: int
    mentions: list[str]
    hallucinated: list[str]
    covered: int
    truths: int
    expected: int
    hallus: int
    ignored: int = 0

    @property
    def counted(self) -> int:
        """Mentions in CHAIR's denominator: all of them, less what the corrected variant leaves out as safe."""
        return len(self.mentions) - self.ignored


@dataclass(frozen=True, slots=True)
class AmberScore:
    """chair, cover, hal, cog: percent, not rounded; the official program prints ``round(value, 1)``.

    Undefined ratios are NaN; with ``compat`` there are none. variant: what every figure is to be labelled with.
    passed_over: responses to questions that are not generative.
    """

    chair: float
    cover: float
    hal: float
    cog: float
    variant: str
    responses: list[AmberResponse]
    passed_over: int


@dataclass(frozen=True, slots=True)
class _Rules:
    relation: Mapping[str, Sequence[str]]
    vocabulary: frozenset[str]
    safe: frozenset[str]
    similarity: Similarity
    threshold: float


def score(
    responses: Sequence[Record],
    annotations: Sequence[Record],
    relation: Mapping[str, Sequence[str]],
    safe_words: Collection[str],
    *,
    nouns: Callable[[str], list[str]],
    similarity: Similarity,
    threshold: float = 0.8,
    compat: bool = True,
) -> AmberScore:
    """CHAIR, Cover, Hal and Cog of responses ``[{"id": int, "response": str}]``.

    annotations, relation, safe_words: the parsed official files ``annotations.json``, ``relation.json``,
    ``safe_words.txt`` (its lines). nouns: text → its nouns, lemmatised, in order. similarity: (noun, word) → [−1, 1].

    compat: exactly the official program's numbers; see the module's text. Otherwise: annotations are found by their own
    id and responses must not share one; a list's words come before associations; a noun on the hallucination list is
    hallucinated; else the most similar word of both lists decides; safe words leave the denominator; repeated words of
    a list count once; denominators start at 0.

    Raises InputError for a response without id or text, an id that has no annotation, an annotated word that
    ``relation`` lacks, and, unless ``compat``, an id twice.
    """
    rules = _Rules(
        relation,
        frozenset(relation) | {word for words in relation.values() for word in words},
        frozenset(safe_words),
        similarity,
        threshold,
    )
    lookup = _by_position(annotations) if compat else _by_id(annotations)
    if not compat:
        _refuse_duplicates(responses)
    scored, passed_over = [], 0
    for index, response in enumerate(responses):
        id, text = _checked(response, index)
        if id not in lookup:
            raise InputError(f"response {index}: id {id} has no annotation; ids run from 1 to {len(annotations)}")
        annotation = lookup[id]
        if annotation["type"] != "generative":
            passed_over += 1
            continue
        mentions = [noun for noun in nouns(text) if noun in rules.vocabulary]
        judge = _official if compat else _corrected
        scored.append(judge(id, mentions, annotation, rules))
    if compat:
        return AmberScore(*_official_totals(scored), "official algorithm", scored, passed_over)
    return AmberScore(
        *_totals(scored), "corrected algorithm, not comparable with published figures", scored, passed_over
    )


def problems(responses: Sequence[Record], annotations: Sequence[Record]) -> dict[str, list[int]]:
    """Ids that are ``missing`` (generative, and unanswered), ``duplicate`` or ``unknown``, sorted."""
    counts = Counter(_checked(response, index)[0] for index, response in enumerate(responses))
    known = _by_position(annotations)
    return {
        "missing": [id for id, annotation in known.items() if annotation["type"] == "generative" and id not in counts],
        "duplicate": sorted(id for id, count in counts.items() if count > 1),
        "unknown": sorted(id for id in counts if id not in known),
    }


def _checked(response: Record, index: int) -> tuple[int, str]:
    id, text = response.get("id"), response.get("response")
    if not isinstance(id, int) or isinstance(id, bool) or not isinstance(text, str):
        raise InputError(
            f'response {index}: an AMBER response is {{"id": number, "response": text}}, found the keys '
            f"{', '.join(map(str, response)) or 'none'}; is this another benchmark's file?"
        )
    return id, text


def _by_position(annotations: Sequence[Record]) -> dict[int, Record]:
    return dict(enumerate(annotations, start=1))


def _by_id(annotations: Sequence[Record]) -> dict[int, Record]:
    return {annotation["id"]: annotation for annotation in annotations}


def _refuse_duplicates(responses: Sequence[Record]) -> None:
    repeated = [id for id, count in Counter(response.get("id") for response in responses).items() if count > 1]
    if repeated:
        raise InputError(
            f"ids answered more than once: {', '.join(map(str, repeated[:10]))}; keep one response for each"
        )


def _associations(words: Sequence[str], rules: _Rules, id: int) -> list[tuple[str, int]]:
    """(association, position in ``words`` of the word that it belongs to), in the official order."""
    for word in words:
        if word not in rules.relation:
            raise InputError(
                f"id {id}: annotated word {word!r} is not in relation.json; use the file of the same release"
            )
    return [(association, index) for index, word in enumerate(words) for association in rules.relation[word]]


def _official(id: int, mentions: list[str], annotation: Record, rules: _Rules) -> AmberResponse:
    truth, hallu = annotation["truth"], annotation["hallu"]
    true_words = _associations(truth, rules, id) + [(word, index) for index, word in enumerate(truth)]
    false_words = _associations(hallu, rules, id) + [(word, index) for index, word in enumerate(hallu)]

    def similar(noun: str, words: list[tuple[str, int]]) -> int | None:
        return next((index for word, index in words if rules.similarity(noun, word) > rules.threshold), None)

    def same(noun: str, words: list[tuple[str, int]]) -> int | None:
        return next((index for word, index in words if word == noun), None)

    covered, expected, hallucinated = set(), set(), []
    for noun in mentions:
        if noun in rules.safe:
            continue
        found = same(noun, true_words)
        if found is None:
            expected |= {same(noun, false_words), similar(noun, false_words)}
            found = similar(noun, true_words)
        if found is None:
            hallucinated.append(noun)
        else:
            covered.add(found)
    return AmberResponse(id, mentions, hallucinated, len(covered), len(truth), len(expected - {None}), len(hallu))


def _corrected(id: int, mentions: list[str], annotation: Record, rules: _Rules) -> AmberResponse:
    truth, hallu = list(dict.fromkeys(annotation["truth"])), list(dict.fromkeys(annotation["hallu"]))
    true_words = [*((word, index) for index, word in enumerate(truth)), *_associations(truth, rules, id)]
    false_words = [*((word, index) for index, word in enumerate(hallu)), *_associations(hallu, rules, id)]
    # On a tie the truth, which stands first, is preferred.
    candidates = [(word, index, True) for word, index in true_words]
    candidates += [(word, index, False) for word, index in false_words]

    def decide(noun: str) -> tuple[int, bool] | None:
        for word, index, is_true in candidates:
            if word == noun:
                return index, is_true
        likeness = [rules.similarity(noun, word) for word, _, _ in candidates]
        best = max(range(len(likeness)), key=likeness.__getitem__, default=None)
        if best is None or not likeness[best] > rules.threshold:
            return None
        return candidates[best][1:]

    covered, expected, hallucinated, ignored = set(), set(), [], 0
    for noun in mentions:
        if noun in rules.safe:
            ignored += 1
            continue
        decision = decide(noun)
        if decision is not None and decision[1]:
            covered.add(decision[0])
            continue
        hallucinated.append(noun)
        if decision is not None:
            expected.add(decision[0])
    return AmberResponse(id, mentions, hallucinated, len(covered), len(truth), len(expected), len(hallu), ignored)


def _official_totals(scored: Sequence[AmberResponse]) -> tuple[float, float, float, float]:
    # Added one response after the other, as there: 0.001 is no binary fraction, and the order of sums could show.
    mentions = truths = hallus = answers = 0.001
    hallucinated = covered = expected = clean = 0
    for response in scored:
        hallucinated += len(response.hallucinated)
        mentions += response.counted
        covered += response.covered
        truths += response.truths
        expected += response.expected
        hallus += response.hallus
        clean += not response.hallucinated
        answers += 1
    return hallucinated / mentions * 100, covered / truths * 100, 100 - clean / answers * 100, expected / hallus * 100


def _totals(scored: Sequence[AmberResponse]) -> tuple[float, float, float, float]:
    def percent(part: int, whole: int) -> float:
        return part / whole * 100 if whole else math.nan

    return (
        percent(sum(len(r.hallucinated) for r in scored), sum(r.counted for r in scored)),
        percent(sum(r.covered for r in scored), sum(r.truths for r in scored)),
        percent(sum(bool(r.hallucinated) for r in scored), len(scored)),
        percent(sum(r.expected for r in scored), sum(r.hallus for r in scored)),
    )
