"""The language models that the official programs use, each loaded whole or not at all.

A missing one is an InputError that says what to install: another model in its place would give other numbers.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

from mdpo.errors import InputError

from .chair.objects import Tagger

_EXTRA = 'pip install -e ".[eval]" in the clone of mDPO'
_NLTK_DATA = "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"


def load_nouns() -> Callable[[str], list[str]]:
    """AMBER's nouns: NLTK's tokens that are tagged NN…, each lemmatised by WordNet, in order, case kept."""
    nltk, lemmatizer = _nltk()

    def nouns(text: str) -> list[str]:
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        return [lemmatizer.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]

    return _probed(nouns)


def load_similarity() -> Callable[[str, str], float]:
    """AMBER's word similarity, by spaCy's ``en_core_web_lg``: 1 for equal words, 0 where one has no vector, else
    cosine.
    """
    parse = functools.cache(_spacy("en_core_web_lg"))

    @functools.cache
    def similarity(first: str, second: str) -> float:
        with warnings.catch_warnings():
            # Of a word without a vector spaCy warns every time.
            warnings.simplefilter("ignore", UserWarning)
            return float(parse(first).similarity(parse(second)))

    return similarity


def load_lemmas(variant: str) -> Callable[[str], list[str]]:
    """CHAIR's tokens: NLTK's words of the lower-cased text, made singular as the variant's program does it.

    variant: "rlhfv" (WordNet's lemmatiser) or "rohrbach" (pattern's ``singularize``).
    """
    nltk, lemmatizer = _nltk()
    singular = lemmatizer.lemmatize if variant == "rlhfv" else _singularize()
    return _probed(lambda text: [singular(word) for word in nltk.word_tokenize(text.lower())])


def load_tagger() -> Tagger:
    """RLHF-V's (lemma, tag) of each token: spaCy's ``en_core_web_trf``."""
    parse = _spacy("en_core_web_trf")
    return lambda text: [(token.lemma_, token.tag_) for token in parse(text)]


def _nltk() -> tuple[Any, Any]:
    nltk = _optional("nltk", f"the words of a text need NLTK: {_EXTRA}, then {_NLTK_DATA}")
    return nltk, nltk.stem.WordNetLemmatizer()


def _probed(function: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    try:
        function("A dog runs.")  # NLTK looks for its data when it is first used
    except LookupError as error:
        raise InputError(f"NLTK's data is not installed: {_NLTK_DATA}") from error
    return function


def _spacy(model: str) -> Any:
    spacy = _optional("spacy", f"the words of a text need spaCy: {_EXTRA}, then python -m spacy download {model}")
    try:
        return spacy.load(model)
    except OSError as error:
        raise InputError(f"spaCy's model is not installed: python -m spacy download {model}") from error


def _singularize() -> Callable[[str], str]:
    return _optional(
        "pattern.en", "Rohrbach's CHAIR makes words singular with pattern: pip install pattern"
    ).singularize


def _optional(module: str, remedy: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(remedy) from error
