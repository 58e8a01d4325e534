"""Requests with pictures: made when they are sent, named in the key, counted in the plan, and not kept."""

import pytest

from mdpo import InputError
from mdpo.evaluation.judge import Judge, JudgeOptions, Picture, Request
from tests.evaluation import endpoint as faults
from tests.evaluation.endpoint import Endpoint


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Endpoint(lambda body: "reply")
    yield server
    server.close()


@pytest.fixture
def judge(endpoint, tmp_path):
    return Judge(JudgeOptions(model="m", cache=tmp_path / "cache.jsonl", base_url=endpoint.url, backoff_s=0.01))


def seen(name, made, content="data:image/png;base64,AAAA"):
    """A request with one picture. made: what is told each time that the picture is made."""
    picture = Picture(name, 100, lambda: made.append(name) or content)
    return Request([{"role": "user", "content": ["What is ", picture, "?"]}], max_tokens=50)


def test_a_picture_is_made_when_it_is_sent_and_named_by_its_content(endpoint, judge, tmp_path):
    made = []
    estimate = judge.estimate([seen("one", made), seen("two", made), seen("one", made)])
    assert not made and (estimate.requests, estimate.prompt_tokens, estimate.picture_tokens, estimate.reply_tokens) == (
        2,
        205,
        200,
        100,
    )
    assert "about 205 prompt tokens, 200 of them for images" in str(estimate)
    judge.ask([seen("one", made)])
    assert endpoint.bodies[0]["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is "},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "?"},
            ],
        }
    ]
    judge.ask([seen("one", made, "data:image/png;base64,written-by-another-version")])
    assert made == ["one"] and endpoint.answered == 1
    judge.ask([seen("two", made)])
    assert made == ["one", "two"] and endpoint.answered == 2
    assert "base64" not in (tmp_path / "cache.jsonl").read_text()


def test_requests_without_pictures_keep_the_keys_that_caches_already_have(tmp_path):
    options = JudgeOptions(model="judge", cache=tmp_path / "c", base_url="http://127.0.0.1:1/v1/")
    request = Request([{"role": "user", "content": "a"}], temperature=0.2, max_tokens=9, attempt=1)
    assert Judge(options).key(request) == "fefaf2175a922adcb2f1298acb358500db0f70d3bead943c82a67481fa771b10"


def test_a_picture_that_cannot_be_made_ends_the_run_and_keeps_the_replies(endpoint, judge):
    def gone():
        raise InputError("row 2: images: image b.png does not exist")

    broken = Request([{"role": "user", "content": [Picture("b", 1, gone)]}])
    with pytest.raises(InputError, match="b.png does not exist"):
        judge.ask([seen("one", []), broken])
    judge.ask([seen("one", [])])
    assert endpoint.answered == 1


def test_what_an_endpoint_refuses_is_an_error_or_a_reply_without_text(endpoint, judge):
    endpoint.faults = [faults.status(400), faults.status(422)]
    with pytest.raises(InputError, match="HTTP 400"):
        judge.ask([seen("one", [])])
    (reply,) = judge.ask([seen("one", [])], refusals=True)
    assert reply.text == "" and "HTTP 422" in reply.raw["refused"]
    assert judge.ask([seen("one", [])], refusals=True)[0].text == "reply", "a refusal is not kept"


@pytest.mark.parametrize("status", [401, 404, 500])
def test_what_is_wrong_with_every_request_is_no_refusal(endpoint, judge, status):
    endpoint.faults = [faults.status(status)] * 10
    with pytest.raises(InputError, match=f"HTTP {status}"):
        judge.ask([seen("one", [])], refusals=True)
