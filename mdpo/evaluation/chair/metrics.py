"""CHAIR: which COCO objects a caption names, and which of them are not in the image.

Two official programs compute it, and published tables mix them; every figure here carries the name of its variant.

- ``rohrbach``: Rohrbach et al. 2018, github.com/LisaAnne/Hallucination, ``utils/chair.py`` and ``data/synonyms.txt``.
- ``rlhfv``: Object HalBench, github.com/RLHF-V/RLHF-V, ``eval/eval_gpt_obj_halbench.py`` and ``synonyms_refine.txt``.

Facts of both: tokens are lower-case and singular. Two neighbours that form a *double word* become one word (a window of
two: "stove top oven" can never match). Where both "toilet" and "seat" are left, every "seat" is dropped. Words in the
synonym file are objects; a line's first word is the class of all of them, and where two lines share a word the later
line wins. Ground truth: the classes of an image's instances, and those that its reference captions name.

Where they differ: Rohrbach's file is split at ", " after stripping the line only, so that " motor bike" and
" cheesecake" keep their blank and never match; RLHF-V strips every synonym, and its double words are all the synonyms
with a blank in them. By string, both count every mention; with a judge, RLHF-V counts each distinct name once a
response.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdpo.errors import InputError

from ..files import read_text

Lemmas = Callable[[str], list[str]]

VARIANTS = ("rohrbach", "rlhfv")
_ROHRBACH_DOUBLE_WORDS = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light",
    "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove",
    "tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier",
    "potted plant", "bow tie", "laptop computer", "stove top oven",
)  # fmt: skip
_BOTH_DOUBLE_WORDS = ("home plate", "train track")
_ANIMALS = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The words that stand for COCO objects. variant: "rohrbach" or "rlhfv". source: the file's name.

    classes: word → COCO class. double_words: two words → the word that they are read as.
    """

    variant: str
    source: str
    classes: Mapping[str, str]
    double_words: Mapping[str, str]

    @classmethod
    def load(cls, path: str | Path, variant: str) -> "Lexicon":
        """Reads the official synonym file of that variant: a line a class, synonyms apart by ", ".

        Raises InputError for an unknown variant, or a file that is missing or not such a list.
        """
        if variant not in VARIANTS:
            raise InputError(f"unknown CHAIR variant {variant!r}; there are {' and '.join(VARIANTS)}")
        classes: dict[str, str] = {}
        for line in read_text(path).split("\n"):
            if not line.strip():
                continue
            synonyms = line.strip().split(", ")
            if variant == "rlhfv":
                synonyms = [synonym.strip() for synonym in synonyms]
            classes |= dict.fromkeys(synonyms, synonyms[0])
        if not classes:
            raise InputError(f"{path} is empty; expected lines of synonyms separated by ', ', such as 'dog, puppy'")
        return cls(variant, Path(path).name, classes, _double_words(classes, variant))

    def merge(self, tokens: Sequence[str]) -> list[str]:
        """Tokens with double words made one, read from left to right."""
        merged, index = [], 0
        while index < len(tokens):
            pair = " ".join(tokens[index : index + 2])
            merged.append(self.double_words.get(pair, tokens[index]))
            index += 2 if pair in self.double_words else 1
        return merged

    def objects(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """(word, class) of the words that are objects, in order, with repetitions; words: merged already."""
        seat_of_a_toilet = "toilet" in words and "seat" in words
        return [
            (word, self.classes[word])
            for word in words
            if word in self.classes and not (seat_of_a_toilet and word == "seat")
        ]


def _double_words(classes: Mapping[str, str], variant: str) -> dict[str, str]:
    listed = [*_ROHRBACH_DOUBLE_WORDS] if variant == "rohrbach" else [word for word in classes if " " in word]
    double = {word: word for word in (*listed, *_BOTH_DOUBLE_WORDS)}
    for animal in _ANIMALS:
        # Else "baby" and "adult" would count as a person.
        double |= {f"baby {animal}": animal, f"adult {animal}": animal}
    double |= {"passenger jet": "jet", "passenger train": "train"}
    # "glas" is what the singular of "glass" looks like to pattern's rules.
    return double | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


@dataclass(frozen=True, slots=True)
class ChairResponse:
    """One caption. mentions: COCO words in order; hallucinated: those of them whose class is not in the image.

    found: classes of the image that it names; present: classes of the image.
    """

    image_id: Any
    mentions: list[str]
    hallucinated: list[str]
    found: int
    present: int


@dataclass(frozen=True, slots=True)
class ChairScore:
    """Fractions, not rounded (the official programs print percent); NaN where nothing is to be divided by.

    chair_s: hallucinated captions / captions. chair_s_refine: … / captions with a COCO object.
    chair_i: hallucinated mentions / mentions. recall: classes found / classes present, over captions.
    variant: what every figure is to be labelled with.
    """

    chair_s: float
    chair_s_refine: float
    chair_i: float
    recall: float
    variant: str
    responses: list[ChairResponse]


def ground_truth(
    instances: Sequence[Mapping[str, Any]],
    captions: Sequence[Mapping[str, Any]],
    image_ids: Iterable[Any],
    *,
    lexicon: Lexicon,
    lemmas: Lemmas,
) -> dict[Any, set[str]]:
    """The COCO classes in each image; an empty set for an image of which the files say nothing.

    instances, captions: parsed COCO files (``annotations``, and for instances ``categories``), of any number of splits.
    lemmas: text → its tokens, lemmatised; they are lower-cased here.

    Raises InputError for a category that the lexicon does not know.
    """
    truth: dict[Any, set[str]] = {image_id: set() for image_id in image_ids}
    names = {category["id"]: str(category["name"]) for file in instances for category in file["categories"]}
    for file in instances:
        for annotation in file["annotations"]:
            if annotation["image_id"] in truth:
                name = names.get(annotation["category_id"], "")
                if name not in lexicon.classes:
                    raise InputError(
                        f"COCO category {name!r} is not in {lexicon.source}; is it the right synonym file?"
                    )
                truth[annotation["image_id"]].add(lexicon.classes[name])
    for file in captions:
        for annotation in file["annotations"]:
            if annotation["image_id"] in truth:
                words = lexicon.merge(_tokens(annotation["caption"], lemmas))
                truth[annotation["image_id"]].update(name for _, name in lexicon.objects(words))
    return truth


def score(
    rows: Sequence[Mapping[str, Any]],
    ground_truth: Mapping[Any, Collection[str]],
    *,
    lexicon: Lexicon,
    lemmas: Lemmas,
) -> ChairScore:
    """CHAIR by string matching of rows ``[{"image_id": …, "caption": str}]``; several captions of an image all count.

    lemmas: text → its tokens, lemmatised; they are lower-cased here.

    Raises InputError for no rows, a row without the two keys, or an image without ground truth.
    """
    captions = [lexicon.merge(_tokens(_value(row, "caption", index), lemmas)) for index, row in enumerate(rows)]
    return _score(rows, captions, ground_truth, lexicon, "by string, every mention")


def score_objects(
    rows: Sequence[Mapping[str, Any]], ground_truth: Mapping[Any, Collection[str]], *, lexicon: Lexicon
) -> ChairScore:
    """CHAIR from objects that a judge found, rows ``[{"image_id": …, "objects": [str]}]``: each name once a response.

    The names are lemmatised already. Two names of one class count twice, as in RLHF-V's program.

    Raises InputError as ``score`` does.
    """
    objects = [list(dict.fromkeys(_value(row, "objects", index))) for index, row in enumerate(rows)]
    return _score(rows, objects, ground_truth, lexicon, "by judge, each object once a response")


def _score(
    rows: Sequence[Mapping[str, Any]],
    words: Sequence[Sequence[str]],
    truth: Mapping[Any, Collection[str]],
    lexicon: Lexicon,
    how: str,
) -> ChairScore:
    if not rows:
        raise InputError("no captions to score")
    responses = []
    for index, (row, caption) in enumerate(zip(rows, words, strict=True)):
        image_id = _value(row, "image_id", index)
        if image_id not in truth:
            raise InputError(
                f"row {index}: image {image_id!r} has no ground truth; is the response file another benchmark's?"
            )
        present = truth[image_id]
        objects = lexicon.objects(caption)
        responses.append(
            ChairResponse(
                image_id,
                [word for word, _ in objects],
                [word for word, name in objects if name not in present],
                len({name for _, name in objects if name in present}),
                len(present),
            )
        )
    hallucinated = sum(bool(response.hallucinated) for response in responses)
    return ChairScore(
        hallucinated / len(responses),
        _ratio(hallucinated, sum(bool(response.mentions) for response in responses)),
        _ratio(sum(len(r.hallucinated) for r in responses), sum(len(r.mentions) for r in responses)),
        _ratio(sum(response.found for response in responses), sum(response.present for response in responses)),
        f"{lexicon.variant}, {how}",
        responses,
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _tokens(caption: str, lemmas: Lemmas) -> list[str]:
    return [token.lower() for token in lemmas(caption)]


def _value(row: Mapping[str, Any], key: str, index: int) -> Any:
    if row.get(key) is None:
        raise InputError(f"row {index} has no {key!r}, only {', '.join(map(str, row)) or 'nothing'}")
    return row[key]
