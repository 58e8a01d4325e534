"""Objects as a judge names them: replies of every shape, and RLHF-V's reading of the names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdpo import InputError
from mdpo.evaluation.chair import Lexicon, objects
from mdpo.evaluation.judge import Reply

TEMPLATE = "Q: {question}\nA: {answer}"
LEXICON = Lexicon("rlhfv", "s", {"dog": "dog", "traffic light": "traffic light"}, {"traffic light": "traffic light"})
TAGS = {"dogs": ("dog", "NNS"), "lights": ("light", "NNS"), "traffic": ("traffic", "NN"), "grass": ("grass", "NN")}


def tagger(text):
    return [TAGS.get(word, (word, "JJ")) for word in text.split()]


class Judge:
    """Replies from a list, the requests kept."""

    def __init__(self, *replies):
        self.replies, self.requests = list(replies), []

    def ask(self, requests):
        self.requests += requests
        return [Reply(self.replies.pop(0), "judge", {}) for _ in requests]


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ('["dog", "cat"]', ["dog", "cat"]),
        ("[]", []),
        ("()", []),
        ('Here they are:\n["dog"]', ["dog"]),
        ('```json\n["dog",\n "cat"]\n```', ["dog", "cat"]),
        ('Sure.\n```\n["dog"]\n```\nDone.', ["dog"]),
        ('{"objects": ["dog"]}', None),
        ('["dog", 3]', None),
        ('["dog"', None),
        ("a dog", None),
        ("", None),
    ],
)
def test_replies(reply, names):
    assert objects.parse(reply) == names


@settings(deadline=None)
@given(st.text())
def test_any_reply_is_a_list_of_names_or_malformed(reply):
    names = objects.parse(reply)
    assert names is None or all(isinstance(name, str) for name in names)


def test_names_are_read_as_officially():
    assert objects.refine(["red dogs", "dogs"], LEXICON, tagger) == ["dog"]
    assert objects.refine(["traffic light on grass"], LEXICON, tagger) == ["traffic light"], (
        "double words end the search"
    )
    assert objects.refine(["traffic lights"], LEXICON, tagger) == ["traffic light"]
    assert objects.refine(["grass dogs big grass"], LEXICON, tagger) == ["grass dog", "grass"]
    assert objects.refine(["big"], LEXICON, tagger) == []


def rows(*captions):
    return [{"question": "What?", "caption": caption} for caption in captions]


def test_short_answers_are_not_sent_and_malformed_replies_are_asked_for_again():
    judge = Judge('["dogs"]', "what?", '["grass"]')
    found, replies = objects.extract(
        rows("a dog runs fast", "yes it is", "there is much grass"), judge, TEMPLATE, LEXICON, tagger
    )
    assert found == [["dog"], [], ["grass"]]
    assert len(replies) == 3
    assert [request.attempt for request in judge.requests] == [0, 0, 1]
    assert judge.requests[0].messages == [{"role": "system", "content": "Q: What?\nA: a dog runs fast"}]
    assert (judge.requests[0].temperature, judge.requests[0].max_tokens) == (0.2, 512)


def test_what_stays_malformed_is_said():
    found, _ = objects.extract(rows("a dog runs fast"), Judge("?", "?", "?"), TEMPLATE, LEXICON, tagger)
    assert found == [None]


def test_the_prompt_comes_from_the_official_script(tmp_path):
    script = tmp_path / "eval_gpt_obj_halbench.py"
    script.write_text(f"import spacy\nprompt_template = {TEMPLATE!r}\n")
    assert objects.read_template(script) == TEMPLATE
    script.write_text("prompt_template = 'Q: {question}'\n")
    with pytest.raises(InputError, match=r"no \{answer\}"):
        objects.read_template(script)
