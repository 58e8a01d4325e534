"""Ways of scoring answers that ask nobody: agreement, objects, functions; the length of what they like; the command."""

import json
import math

import pytest

from mdpo.answers import Scored, rank, read_scored
from mdpo.answers.ranking import Agreement, Function, Objects, length_bias, without_length
from mdpo.cli import main
from mdpo.errors import InputError
from tests.answers.pool import answer, lines, picture, record


def scores(found):
    return [each.score for each in found]


# Agreement


def test_agreement_is_the_mean_f1_with_the_others_of_the_question():
    pool = [
        answer("q", "A red car."),
        answer("r", "alone"),
        answer("q", "a red bus", 1),
        answer("q", "", 2),
        answer("q", "Tree", 3),
    ]
    found = rank(pool, Agreement())
    assert scores(found) == [pytest.approx(1 / 3), None, pytest.approx(1 / 3), None, 0.0]
    assert [each.answer for each in found] == pool and found[0].details == {"others": 2}


def test_agreement_counts_words_as_often_as_they_come():
    found = rank([answer("q", "one one one"), answer("q", "one", 1)], Agreement())
    assert scores(found) == [0.5, 0.5]


# Objects


def objects(text, annotated, synonyms=()):
    (found,) = Objects({"q": annotated, "other": ["cat", "traffic light", "bus", "glass"]}, synonyms)(
        [answer("q", text)]
    )
    return found


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Two dogs and a cat.", ["dog", "cat"]),
        ("A DOG, a dog, a Dog", ["dog"]),
        ("Traffic lights", ["traffic light"]),
        ("a traffic-light", ["traffic light"]),
        ("a light", ["light"]),
        ("Buses, glasses", ["bus", "glass"]),
        ("dogma, a catalogue, the business", []),
        ("the dog's bus", ["dog", "bus"]),
        ("three puppies", ["dog"]),
    ],
)
def test_objects_are_whole_words_the_longest_first(text, named):
    assert objects(text, ["dog", "light"], [["dog", "puppy"]]).details["named"] == named


def test_an_annotated_plural_is_its_singular():
    assert objects("a dog", ["dogs", "dog", "Dogs"]).details["present"] == ["dog"]
    assert objects("a glass", ["glasses"]).details["missed"] == []


@pytest.mark.parametrize(
    ("text", "annotated", "score"),
    [
        ("a dog and a cat", ["dog", "cat"], 1.0),
        ("a dog", ["dog", "cat"], 2 / 3),
        ("a dog, a bus", ["dog", "cat"], 1 / 2),
        ("nothing of note", ["dog"], 0.0),
        ("a bus", ["dog"], 0.0),
        ("nothing of note", [], 1.0),
        ("a bus", [], 0.0),
    ],
)
def test_neither_silence_nor_naming_everything_is_best(text, annotated, score):
    assert objects(text, annotated).score == pytest.approx(score)


def test_chairs_own_figures_follow_from_the_details():
    details = objects("a dog, a bus and a puppy", ["dog", "cat"], [["dog", "puppy"]]).details
    assert details == {
        "named": ["dog", "bus"],
        "found": ["dog"],
        "false": ["bus"],
        "present": ["dog", "cat"],
        "missed": ["cat"],
    }


def test_questions_without_annotation_are_named():
    with pytest.raises(InputError, match="1 questions have no annotated objects: id r;"):
        Objects({"q": ["dog"]})([answer("q", "a dog"), answer("r", "a cat")])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("o.json", {"q": ["dog"], "7": []}),
        ("o.json", [{"id": "q", "objects": ["dog"], "x": 1}, {"id": 7, "objects": []}]),
        ("o.jsonl", '{"id": "q", "objects": ["dog"]}\n{"id": 7, "objects": []}\n{"id": "p", "prompt": "?"}\n'),
    ],
)
def test_the_forms_of_a_file_of_objects(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    (tmp_path / "s.txt").write_text("dog, puppy\n\ncat,kitten\n")
    found = Objects.read(path, tmp_path / "s.txt")([answer("q", "a puppy"), answer("7", "a kitten")])
    assert scores(found) == [1.0, 0.0] and found[1].details["false"] == ["cat"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"id": "q", "objects": "dog"}', "record 1: objects is 'dog'; expected a list of words"),
        ('{"id": "q", "objects": ["dog", 3]}', "record 1: objects"),
        ('{"objects": ["dog"]}', "record 1: id is missing"),
        ('{"id": "q", "objects": ["?"]}', "record 1: object '?' has no letter"),
        ('{"id": "q"}', "has no record with objects"),
        ('{"id": "q", "objects": ["a"]}\n{"id": "q", "objects": ["b"]}', "record 2: id 'q' appears twice"),
    ],
)
def test_files_of_objects_that_are_none_are_named(tmp_path, content, words):
    (tmp_path / "o.jsonl").write_text(content)
    with pytest.raises(InputError, match="o.jsonl") as found:
        Objects.read(tmp_path / "o.jsonl")
    assert words in str(found.value)


def test_an_annotation_that_comes_twice_is_named(tmp_path):
    (tmp_path / "o.json").write_text('{"q": ["dog"], "p": ["cat"], "q": ["bus"]}')
    with pytest.raises(InputError, match="o.json: .*the key 'q' appears twice"):
        Objects.read(tmp_path / "o.json")
    (tmp_path / "o.json").write_text('[{"id": "q", "objects": ["dog"], "objects": ["bus"]}]')
    with pytest.raises(InputError, match="'objects' appears twice"):
        Objects.read(tmp_path / "o.json")


def test_a_synonym_of_two_objects_is_named(tmp_path):
    (tmp_path / "o.json").write_text('{"q": ["dog"]}')
    (tmp_path / "s.txt").write_text("dog, puppy, hound, Puppy\ncat, kitten\nseal, PUPPY\n")
    with pytest.raises(InputError, match="s.txt: 'puppy' stands for 'dog' and for 'seal'; keep it with one of them"):
        Objects.read(tmp_path / "o.json", tmp_path / "s.txt")
    (tmp_path / "s.txt").write_text("dog, puppy, hound, Puppy\ncat, kitten\ndog, whelp\n")
    (found,) = Objects.read(tmp_path / "o.json", tmp_path / "s.txt")([answer("q", "a whelp")])
    assert found.details["named"] == ["dog"], "the same object on two lines is one"


# Functions


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    number = iter(range(10**6))

    def make(body):
        name = f"rewards_{abs(hash(str(tmp_path)))}_{next(number)}"
        (tmp_path / f"{name}.py").write_text(body)
        return f"{name}:score"

    return make


def test_a_function_sees_question_answer_pictures_and_id(module, tmp_path):
    picture(tmp_path / "a.png", size=(9, 4))
    name = module(
        "import numpy\n"
        "def score(*, id, images, answer, question):\n"
        "    assert question == 'What is it?' and images[0].size == (9, 4) and images[0].mode == 'RGB'\n"
        "    return {'one': numpy.float32(1.5), 'yes': True, 'none': None}[answer]\n"
    )
    path = lines(tmp_path / "answers.jsonl", *(record(text, text) for text in ("one", "yes", "none")))
    assert main(["rank", str(path), "--by", "function", "--function", name, "--output", str(tmp_path / "s.jsonl")]) == 0
    found = read_scored(tmp_path / "s.jsonl")
    assert scores(found) == [1.5, 1.0, None] and {each.by for each in found} == {"function"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def score(**_): raise KeyError('colour')", "score on answer 0 of 'w' to 'q' failed: KeyError: 'colour'"),
        ("def score(**_): return float('nan')", "to 'q' returned nan; return a finite number"),
        ("def score(**_): return '3'", "returned '3'"),
        ("def score(**_): return 1j", "returned 1j"),
        ("def score(question): return 1", "failed: TypeError"),
        ("score = 3", "is a int"),
        ("def other(): pass", "no attribute 'score'"),
        ("import sys\ndef score(**_): sys.exit(3)", "failed: SystemExit: 3"),
        ("import sys\nsys.exit(4)", "imported: SystemExit: 4"),
        ("import nowhere_at_all", "cannot be imported: ModuleNotFoundError"),
        ("def score(", "cannot be imported: SyntaxError"),
    ],
)
def test_what_a_function_does_wrong_is_one_line(module, body, words):
    with pytest.raises(InputError) as found:
        Function.named(module(body))([answer("q", "a car")])
    assert words in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["score", "rewards:", ":score", "not here:score"])
def test_names_of_functions_that_are_none(name):
    with pytest.raises(InputError, match="--function"):
        Function.named(name)


# Length


def rated(*each):
    return [Scored(answer(id, "w " * words, at), score, "me") for at, (id, words, score) in enumerate(each)]


def test_length_is_compared_within_questions():
    """Long answers to one question and short ones to another: between questions length says nothing here."""
    scored = rated(("q", 100, 1.0), ("q", 110, 0.0), ("r", 1, 9.0), ("r", 3, 8.8), ("s", 7, None))
    bias = length_bias(scored)
    off = [(-5, 0.5), (5, -0.5), (-1, 0.1), (1, -0.1)]
    product = sum(length * score for length, score in off)
    spread = math.sqrt(sum(length**2 for length, _ in off) * sum(score**2 for _, score in off))
    assert bias.correlation == pytest.approx(product / spread) and bias.slope == pytest.approx(product / 52)
    assert (bias.best, bias.worst, bias.unit) == (50.5, 56.5, "words")


def test_tokens_count_where_all_answers_have_them():
    def two(tokens):
        return [
            Scored(answer("q", "a b c", 0, tokens=4), 1.0, "me"),
            Scored(answer("q", "a", 1, tokens=tokens), 0.0, "me"),
        ]

    assert (length_bias(two(9)).best, length_bias(two(9)).worst, length_bias(two(9)).unit) == (4, 9, "tokens")
    assert (length_bias(two(None)).best, length_bias(two(None)).unit) == (3, "words")


def test_control_takes_off_what_length_predicts_and_keeps_the_rest():
    scored = rated(("q", 2, 1.0), ("q", 4, 2.5), ("q", 6, 2.5), ("r", 10, 5.0), ("r", 30, 15.0), ("r", 50, None))
    controlled = without_length(scored)
    assert length_bias(scored).correlation > 0.9
    assert length_bias(controlled).correlation == pytest.approx(0, abs=1e-9)
    for before, after in zip(scored[:5], controlled, strict=False):
        assert after.details["raw_score"] == before.score
        assert after.details["length"] == len(before.answer.response.split())
    assert controlled[5] == scored[5]
    assert sum(each.score for each in controlled[:3]) == pytest.approx(6), "a question's mean stays"


@pytest.mark.parametrize(
    "scored",
    [
        [],
        rated(("q", 3, 1.0)),
        rated(("q", 3, 0.1), ("q", 5, 0.1), ("q", 9, 0.1)),
        rated(("q", 3, 1.0), ("q", 3, 2.0)),
        rated(("q", 3, None), ("q", 4, None)),
    ],
)
def test_where_nothing_varies_there_is_no_correlation(scored):
    assert length_bias(scored).correlation is None and "does not bear on the scores" in str(length_bias(scored))
    assert scores(without_length(scored)) == pytest.approx(scores(scored))


# The command


def run(path, output, *more):
    return main(["rank", str(path), "--output", str(output), *map(str, more)])


def test_from_files_of_two_models_to_scores_that_can_be_moved(tmp_path, capsys):
    picture(tmp_path / "in" / "a.png")
    one = lines(tmp_path / "in" / "one.jsonl", record("q", "a red car"), record("r", "a b c d"), record("r", ""))
    two = lines(tmp_path / "in" / "two.jsonl", record("q", "a red bus"), record("r", "a b"))
    output = tmp_path / "out" / "scored.jsonl"
    assert main(["rank", str(one), str(two), "--by", "agreement", "--length-control", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "5 answers to 2 questions: 4 scored, 1 without a score, 1 of these empty" in said
    assert "writer" in said and "under length control" in said and "wrote" in said
    (tmp_path / "in").rename(tmp_path / "gone")
    found = read_scored(output)
    assert [each.score for each in found] == [pytest.approx(2 / 3)] * 2 + [None] + [pytest.approx(2 / 3)] * 2
    assert all(each.answer.row.images[0].is_file() for each in found)
    about = json.loads((tmp_path / "out" / "scored.jsonl.settings.json").read_text())
    assert about["by"] == "agreement" and about["counts"]["null"] == 1 and about["length_control"] is True
    assert about["environment"]["torch"] and about["answers"][0].startswith("one.jsonl@")
    assert run(one, output, "--by", "agreement") == 2, "what is there is not replaced"


def test_nothing_is_written_where_nothing_is_scored(tmp_path, capsys):
    picture(tmp_path / "a.png")
    path = lines(tmp_path / "answers.jsonl", record("q", "a car"), record("r", "a bus"))
    assert run(path, tmp_path / "out" / "s.jsonl", "--by", "agreement") == 2
    assert "it takes two answers to a question" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--by", "chair"], "--by chair needs --objects"),
        (["--by", "function"], "--by function needs --function"),
        (["--by", "judge"], "--by judge needs --judge"),
        (["--by", "agreement", "--objects", "o.json"], "--objects belongs to --by chair, not to --by agreement"),
        (["--by", "agreement", "--dry-run"], "--dry-run belongs to --by judge"),
        (["--by", "judge", "--judge", "m", "--price", "-1", "2"], "--price -1.0 2.0: prices are numbers from 0 on"),
        (["--by", "judge", "--judge", "m", "--price", "nan", "2"], "--price nan 2.0"),
    ],
)
def test_options_that_do_not_go_together_are_named(tmp_path, capsys, more, words):
    path = lines(tmp_path / "answers.jsonl", record("q", "a car"))
    assert run(path, tmp_path / "s.jsonl", *more) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_scores_are_jsonl(tmp_path, capsys):
    path = lines(tmp_path / "answers.jsonl", record("q", "a car"))
    assert run(path, tmp_path / "s.json", "--by", "agreement") == 2
    assert "a name that ends in .jsonl" in capsys.readouterr().err
