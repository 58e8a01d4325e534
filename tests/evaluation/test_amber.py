"""AMBER's generative metrics: each quirk of the official program on a case small enough to count by hand.

The expected fractions are written as the official program reaches them: counts, over 0.001 plus a count.
"""

import pytest

from mdpo import InputError
from mdpo.evaluation import amber

RELATION = {
    "sky": [],
    "grass": ["ground"],
    "ground": ["floor"],
    "forest": ["tree", "bush"],
    "tree": ["forest"],
    "dog": ["puppy"],
    "cat": [],
    "person": ["man"],
}
ALIKE = {("puppy", "dog"), ("hound", "dog"), ("bush", "cat"), ("floor", "sky"), ("floor", "grass"), ("cat", "sky")}


def similarity(noun, word):
    return 1.0 if noun == word else 0.81 if (noun, word) in ALIKE else 0.8


def annotation(truth, hallu=(), *, id=1, kind="generative"):
    return {"id": id, "type": kind, "truth": list(truth), "hallu": list(hallu)}


def score(text, truth, hallu=(), *, compat=True, safe=(), **options):
    responses = [{"id": 1, "response": text}]
    return amber.score(
        responses,
        [annotation(truth, hallu)],
        RELATION,
        safe,
        nouns=str.split,
        similarity=similarity,
        compat=compat,
        **options,
    )


def values(result):
    return result.chair, result.cover, result.hal, result.cog


def test_an_ordinary_response():
    result = score("sky dog moon sky", ["sky", "grass"], ["dog", "cat"])
    assert values(result) == (1 / 3.001 * 100, 1 / 2.001 * 100, 100 - 0 / 1.001 * 100, 1 / 2.001 * 100)
    assert result.responses[0].mentions == ["sky", "dog", "sky"], "a moon is in no list, so it is no mention"
    assert [round(value, 1) for value in values(result)] == [33.3, 50.0, 100.0, 50.0]


def test_an_association_is_looked_up_before_the_words_themselves():
    result = score("forest", ["forest", "tree"])  # "forest" is an association of "tree", the second word
    assert result.responses[0].covered == 1
    both = score("forest tree", ["forest", "tree"])
    assert both.responses[0].covered == 2, "each credits the other"
    assert score("forest", ["tree", "forest"]).cover == 1 / 2.001 * 100
    assert score("forest forest", ["forest"]).cover == 1 / 1.001 * 100


def test_the_first_similar_word_wins_and_similar_means_above_the_threshold():
    result = score("floor", ["cat"], ["sky", "grass"])
    assert (result.responses[0].expected, result.responses[0].hallucinated) == (1, ["floor"])
    assert score("ground", ["cat"], []).chair == 1 / 1.001 * 100, "a similarity of exactly 0.8 is not above it"
    assert score("ground", ["cat"], [], threshold=0.79).chair == 0


def test_a_mention_on_the_hallucination_list_does_not_stop_the_search():
    result = score("puppy", ["dog"], [])  # an association of a truth word
    assert values(result)[:2] == (0, 1 / 1.001 * 100)
    rescued = score("bush", ["cat"], ["forest"])  # associated with "forest", similar to "cat"
    assert rescued.responses[0].expected == 1
    assert rescued.responses[0].covered == 1
    assert rescued.chair == 0
    corrected = score("bush", ["cat"], ["forest"], compat=False)
    assert (corrected.chair, corrected.cover, corrected.cog) == (100, 0, 100)


def test_an_exact_and_a_similar_word_of_the_hallucination_list_are_both_credited():
    assert score("cat", ["person"], ["sky", "cat"]).responses[0].expected == 2


def test_safe_words_stay_in_the_denominator():
    assert score("dog cat", [], [], safe=["cat"]).chair == 1 / 2.001 * 100
    assert score("dog cat", [], [], safe=["cat"], compat=False).chair == 100


def test_denominators_start_at_a_thousandth():
    empty = score("", [], [])
    assert values(empty) == (0, 0, 100 - 1 / 1.001 * 100, 0)
    assert round(empty.hal, 1) == 0.1, "the official program prints 0.1 for a single clean response"
    corrected = score("", [], [], compat=False)
    assert corrected.hal == 0
    assert corrected.chair != corrected.chair, "0 of 0 is undefined"


def test_the_lookup_is_positional_and_other_questions_are_passed_over():
    annotations = [annotation(["sky"], id=2), annotation(["dog"], id=1), annotation(["cat"], id=3, kind="relation")]
    responses = [{"id": 1, "response": "sky"}, {"id": 3, "response": "Yes"}]
    options = {"nouns": str.split, "similarity": similarity}
    official = amber.score(responses, annotations, RELATION, [], **options)
    assert (official.chair, official.passed_over) == (0, 1)
    assert amber.score(responses, annotations, RELATION, [], compat=False, **options).chair == 100


def test_repeated_truth_words_count_once_when_corrected():
    assert score("dog", ["dog", "dog"]).cover == 1 / 2.001 * 100
    assert score("dog", ["dog", "dog"], compat=False).cover == 100


def test_the_closest_word_decides_when_corrected():
    likeness = {("hound", "dog"): 0.9, ("hound", "cat"): 0.95}
    result = amber.score(
        [{"id": 1, "response": "hound"}],
        [annotation(["dog"], ["cat"])],
        {**RELATION, "hound": []},
        [],
        nouns=str.split,
        similarity=lambda noun, word: likeness.get((noun, word), 0),
        compat=False,
    )
    assert (result.chair, result.cover, result.cog) == (100, 0, 100)


def test_problems_are_counted():
    annotations = [annotation([]), annotation([], id=2), annotation([], id=3), annotation([], id=4, kind="relation")]
    responses = [{"id": id, "response": ""} for id in (1, 1, 9, 0)]
    assert amber.problems(responses, annotations) == {"missing": [2, 3], "duplicate": [1], "unknown": [0, 9]}


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([{"id": 2, "response": "x"}], "id 2 has no annotation"),
        ([{"id": 0, "response": "x"}], "id 0 has no annotation"),
        ([{"question": "x", "model_answer": "y"}], "another benchmark"),
        ([{"id": "1", "response": "x"}], "another benchmark"),
    ],
)
def test_bad_responses_are_named(responses, message):
    with pytest.raises(InputError, match=message):
        amber.score(responses, [annotation([])], RELATION, [], nouns=str.split, similarity=similarity)


def test_a_word_that_the_relations_lack_and_an_id_twice():
    with pytest.raises(InputError, match="'unicorn' is not in relation.json"):
        score("sky", ["unicorn"])
    twice = [{"id": 1, "response": "sky"}] * 2
    options = {"nouns": str.split, "similarity": similarity}
    assert amber.score(twice, [annotation(["dog"])], RELATION, [], **options).chair == 2 / 2.001 * 100
    with pytest.raises(InputError, match="more than once: 1"):
        amber.score(twice, [annotation(["dog"])], RELATION, [], compat=False, **options)
