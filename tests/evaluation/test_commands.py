"""`mdpo evaluate` from files to a result file, with recorded stand-ins for the language models and a judge on
loopback.
"""

import json
import sys

import pytest

from mdpo import InputError
from mdpo.cli import main
from mdpo.commands import program
from mdpo.evaluation import language
from mdpo.evaluation.results import read_result
from tests.evaluation.endpoint import Endpoint

ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["dog", "grass"], "hallu": ["cat"]},
    {"id": 2, "type": "generative", "truth": ["cat"], "hallu": ["dog"]},
    {"id": 3, "type": "discriminative-relation", "truth": "yes"},
]


def run(*arguments):
    options = program().parse_args([str(argument) for argument in arguments])
    options.run(options)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def words(monkeypatch):
    """Stand-ins for NLTK and spaCy: words are their own nouns and lemmas."""
    monkeypatch.setattr(language, "load_nouns", lambda: str.split)
    monkeypatch.setattr(language, "load_similarity", lambda: lambda noun, word: float(noun == word))
    monkeypatch.setattr(language, "load_lemmas", lambda variant: lambda text: text.lower().split())
    monkeypatch.setattr(language, "load_tagger", lambda: lambda text: [(word, "NN") for word in text.split()[1:]])


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Endpoint(lambda body: "Rating: 5")
    yield server
    server.close()


@pytest.fixture
def amber(tmp_path):
    write(tmp_path / "annotations.json", ANNOTATIONS)
    write(tmp_path / "relation.json", {"dog": [], "grass": [], "cat": []})
    write(tmp_path / "safe_words.txt", "light\nshoe")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("annotations.json", {"a": 1}),
        ("annotations.json", ["text"]),
        ("annotations.json", [{"id": 1, "type": "generative", "truth": "dog", "hallu": []}]),
        ("relation.json", ["dog"]),
        ("relation.json", {"dog": "cat"}),
    ],
)
def test_files_that_are_not_ambers_are_named(amber, words, capsys, name, content):
    responses = write(amber / "r.json", [{"id": 1, "response": "dog cat"}])
    write(amber / name, content)
    assert main([*map(str, ("evaluate", "amber", responses, "--data", amber))]) == 2
    assert f"{name} is not AMBER's file" in capsys.readouterr().err


def test_amber(amber, words, capsys):
    responses = write(amber / "r.json", [{"id": 1, "response": "dog cat"}])
    write(amber / "r.json.settings.json", {"settings": {"num_beams": 1}})
    run("evaluate", "amber", responses, "--data", amber, "--output", amber / "out.json")
    result = read_result(amber / "out.json")
    assert [round(metric.value, 1) for metric in result.metrics] == [50.0, 50.0, 100.0, 99.9]
    assert result.counts == {"responses": 1, "missing": 1, "not generative": 0}
    assert result.settings == {"settings": {"num_beams": 1}}
    assert result.responses[0].marked == ["cat"]
    out = capsys.readouterr().out
    assert "AMBER (official algorithm)" in out
    assert "no response to 1 (2) generative questions: not comparable" in out
    run("evaluate", "amber", responses, "--data", amber, "--corrected")
    assert "corrected algorithm" in capsys.readouterr().out


def test_ambers_folder_is_no_data_to_train_on(amber, words, tmp_path_factory):
    responses, output = (
        write(amber / "r.json", [{"id": 1, "response": "dog cat"}]),
        tmp_path_factory.mktemp("out") / "a.json",
    )
    assert main(["evaluate", "amber", str(responses), "--data", str(amber), "--output", str(output)]) == 0
    assert read_result(output).counts["responses"] == 1


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([{"id": 1, "response": ""}] * 2, r"r.json: duplicate ids: 1 \(1\)"),
        ([{"id": 7, "response": ""}, {"id": 8, "response": ""}], r"unknown ids: 2 \(7, 8\)"),
        ([{"question": "?", "model_answer": "x"}], "r.json: response 0: .*another benchmark"),
        ([], "contains no responses"),
    ],
)
def test_ambers_bad_responses_are_named_and_counted(amber, words, responses, message):
    with pytest.raises(InputError, match=message):
        run("evaluate", "amber", write(amber / "r.json", responses), "--data", amber)


COCO = {
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [{"image_id": 4, "category_id": 1}],
}


@pytest.fixture
def chair(tmp_path):
    instances = write(tmp_path / "instances.json", COCO)
    captions = write(tmp_path / "captions.json", {"annotations": [{"image_id": 5, "caption": "a kitten"}]})
    synonyms = write(tmp_path / "synonyms.txt", "dog, puppy\ncat, kitten\n")
    rows = [
        {"image_id": 4, "prompt": "What?", "text": "a dog and a dog and a cat"},
        {"image_id": 5, "prompt": "What?", "text": "a cat"},
    ]
    write(tmp_path / "r.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return ["--instances", instances, "--captions", captions, "--synonyms", synonyms]


def test_object_halbench_by_string(tmp_path, words, chair, capsys):
    run("evaluate", "object-halbench", tmp_path / "r.jsonl", *chair, "--output", tmp_path / "out.json")
    result = read_result(tmp_path / "out.json")
    assert [metric.value for metric in result.metrics] == pytest.approx([50, 50, 25, 100])
    assert [metric.name for metric in result.metrics] == ["CHAIRs", "CHAIRs_refine", "CHAIRi", "Object recall"]
    assert result.variant == "rlhfv, by string, every mention"
    assert "2 responses; RLHF-V's setting, which published figures use, has 300" in result.warnings[0]
    run("evaluate", "object-halbench", tmp_path / "r.jsonl", *chair, "--variant", "rohrbach")
    assert "(rohrbach, by string, every mention)" in capsys.readouterr().out


def test_object_halbench_by_judge(tmp_path, words, chair, judge, capsys):
    judge.reply = lambda body: '["dog", "dog", "cat"]'
    script = write(tmp_path / "script.py", "prompt_template = '{question} {answer}'")
    arguments = [
        "evaluate", "object-halbench", tmp_path / "r.jsonl", *chair, "--judge", "judge-2024-01-01", "--script", script,
        "--base-url", judge.url, "--cache", tmp_path / "cache.jsonl", "--output", tmp_path / "out.json",
    ]  # fmt: skip
    run(*arguments, "--dry-run")
    assert "1 requests to send" in capsys.readouterr().out
    assert not judge.bodies
    run(*arguments)
    result = read_result(tmp_path / "out.json")
    assert [metric.value for metric in result.metrics] == pytest.approx([50, 100, 50, 50])
    assert result.variant == "rlhfv, by judge, each object once a response"
    assert result.judge["returned"] == {"judge-2024-01-01": 1}
    judge.reply = lambda body: "I see a dog."
    (tmp_path / "cache.jsonl").unlink()
    run(*arguments)
    result = read_result(tmp_path / "out.json")
    assert result.counts == {"responses": 1, "unparsed": 1}
    assert any("left out: rows 1 (0)" in warning for warning in result.warnings)
    assert result.responses[0].id == "1:5", "positions are those of the file"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1, "response": "x"}', "row 0 has no text, answer or caption, only id, response"),
        ('{"prompt": "", "text": "x"}', "image_id is None; expected the number of a COCO image.*--questions"),
        ('{"image_id": Infinity, "text": "x"}', "image_id is inf; expected the number of a COCO image"),
        ('{"image_id": 1e999, "text": "x"}', "image_id is inf; expected the number of a COCO image"),
        ('{"image_id": 77, "text": "x"}', r"no COCO file describes: 1 \(77\)"),
        ('{"image_id": 4, "text": "x"}\n{"image_id": 4, "text": "y"}', "row 1 answers image 4 again, as row 0"),
    ],
)
def test_object_halbenchs_bad_responses_are_named(tmp_path, words, chair, line, message):
    with pytest.raises(InputError, match=message):
        run("evaluate", "object-halbench", write(tmp_path / "r.jsonl", line), *chair)


@pytest.mark.parametrize("annotations", [{"a": 1}, ["x"], [{"image_id": []}], [{"image_id": 4}]])
def test_a_coco_file_of_other_entries_is_named(tmp_path, words, chair, annotations):
    write(tmp_path / "captions.json", {"annotations": annotations})
    with pytest.raises(InputError, match="captions.json is not a COCO file of this kind: annotations 0 has no usable"):
        run("evaluate", "object-halbench", tmp_path / "r.jsonl", *chair)


def test_image_ids_by_position(tmp_path, words, chair):
    responses = write(tmp_path / "r.jsonl", '{"question": "?", "text": "a dog"}')
    questions = write(tmp_path / "q.jsonl", '{"image_id": 4, "question": "?"}')
    run("evaluate", "object-halbench", responses, *chair, "--questions", questions, "--output", tmp_path / "o.json")
    assert read_result(tmp_path / "o.json").responses[0].id == "0:4"
    write(questions, '{"image_id": 4}\n{"image_id": 5}')
    with pytest.raises(InputError, match="has 1 rows and .* 2"):
        run("evaluate", "object-halbench", responses, *chair, "--questions", questions)


RECORD = {"image_content": ["Cat"], "question": "How many?", "gt_answer": "One."}


def mmhal(tmp_path, judge, responses, *more):
    return [
        "evaluate", "mmhal", responses, "--judge", "gpt-4", "--script",
        write(tmp_path / "s.py", "template = '{}{}{}{}'"),
        "--base-url", judge.url, "--cache", tmp_path / "cache.jsonl", "--output", tmp_path / "out.json", *more,
    ]  # fmt: skip


def test_mmhal(tmp_path, judge, capsys):
    judge.reply = lambda body: "no idea" if "answer 3" in body["messages"][0]["content"] else "Rating: 5"
    records = [RECORD | {"model_answer": f"answer {index}"} for index in range(9)]
    records[4]["model_answer"] = ""
    arguments = mmhal(tmp_path, judge, write(tmp_path / "r.json", records))
    run(*arguments, "--dry-run")
    assert "9 requests to send" in capsys.readouterr().out
    run(*arguments)
    result = read_result(tmp_path / "out.json")
    assert [metric.value for metric in result.metrics] == pytest.approx([40 / 9, 100 / 9, 16 / 9 / 3 * 100])
    assert result.counts == {"responses": 9, "unparsed": 1}
    assert [response.group for response in result.responses[:3]] == ["attribute", "adversarial", "comparison"]
    notes = " ".join(result.warnings)
    assert "insists on 96" in notes
    assert "counted as 0 as officially: 1 (3)" in notes
    assert "empty answers, judged as they are: 1 (4)" in notes
    assert "asked for gpt-4, the endpoint answered as judge-2024-01-01" in notes
    assert result.responses[3].note == "no idea"


def test_mmhal_from_bare_rows(tmp_path, judge):
    template = write(tmp_path / "t.json", [RECORD | {"model_answer": ""}] * 2)
    responses = write(tmp_path / "r.jsonl", '{"id": "1", "response": "b"}\n{"id": "0", "response": "a"}')
    run(*mmhal(tmp_path, judge, responses, "--template", template))
    assert [response.text for response in read_result(tmp_path / "out.json").responses] == ["a", "b"]
    for lines, message in {
        '{"id": "0", "response": "a"}': r"missing from the answers: 1 \(1\)",
        '{"id": "0", "response": "a"}\n{"id": "0", "response": "b"}': "id 0 appears twice",
        '{"id": "0", "x": "a"}': "row 0 has no response",
    }.items():
        with pytest.raises(InputError, match=message):
            run(*mmhal(tmp_path, judge, write(responses, lines), "--template", template))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"id": 1, "response": "x"}], "record 0 has no image_content, .*another benchmark's file"),
        ([RECORD | {"model_answer": " "}], "every model_answer is empty"),
        ([RECORD | {"model_answer": "x", "question_type": "counting"}], r"out of the official order.*1 \(0\)"),
    ],
)
def test_mmhals_bad_responses_are_named_before_anything_is_paid(tmp_path, judge, records, message):
    with pytest.raises(InputError, match=message):
        run(*mmhal(tmp_path, judge, write(tmp_path / "r.json", records)))
    assert not judge.bodies


def test_missing_models_say_what_to_install(amber, chair, monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(
        InputError, match=r'pip install -e "\.\[eval\]" in the clone of mDPO, then python -m nltk\.downloader'
    ):
        run("evaluate", "amber", write(amber / "r.json", [{"id": 1, "response": ""}]), "--data", amber)
    with pytest.raises(InputError, match="python -m spacy download en_core_web_lg"):
        language.load_similarity()
    with pytest.raises(InputError, match="python -m spacy download en_core_web_trf"):
        language.load_tagger()


def test_human_sheet_and_tally(tmp_path, capsys):
    rows = write(tmp_path / "q.json", [{"id": "a", "prompt": "Hello?"}, {"id": "b", "prompt": "Who?"}])
    for name in ("one", "two"):
        write(tmp_path / f"{name}.jsonl", "".join(json.dumps({"id": id, "response": name}) + "\n" for id in "ab"))
    run(
        "evaluate",
        "human",
        "sheet",
        rows,
        tmp_path / "one.jsonl",
        tmp_path / "two.jsonl",
        "--output",
        tmp_path / "s.html",
    )
    key = json.loads((tmp_path / "s.key.json").read_text())
    answers = {"schema": "mdpo-human-answers-1", "sheet": key["sheet"], "answers": {"a": "tie", "b": "tie"}}
    run("evaluate", "human", "tally", tmp_path / "s.key.json", write(tmp_path / "a.json", answers))
    out = capsys.readouterr().out
    assert "two against one, blind" in out
    assert "95% interval 34.2 to 100.0" in out
