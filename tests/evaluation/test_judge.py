"""The judge against a real HTTP server: what fails is tried again, what is paid for is kept, the key goes nowhere."""

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mdpo import InputError
from mdpo.evaluation.judge import Judge, JudgeOptions, Request, describe
from tests.evaluation import endpoint as faults
from tests.evaluation.endpoint import Endpoint

KEY = "sk-secret-0123456789"


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Endpoint(lambda body: "reply to " + body["messages"][-1]["content"])
    yield server
    server.close()


@pytest.fixture
def judge(endpoint, tmp_path):
    def make(**options):
        defaults = {"model": "judge", "cache": tmp_path / "cache.jsonl", "base_url": endpoint.url, "backoff_s": 0.01}
        return Judge(JudgeOptions(**{**defaults, **options}))

    return make


def asking(*questions, **options):
    return [Request([{"role": "user", "content": question}], **options) for question in questions]


def test_replies_come_in_order_and_are_paid_for_once(endpoint, judge, tmp_path):
    questions = [f"q{index}" for index in range(12)]
    replies = judge(concurrency=4).ask(asking(*questions, temperature=0.2, max_tokens=9))
    assert [reply.text for reply in replies] == [f"reply to {question}" for question in questions]
    assert endpoint.answered == 12
    assert endpoint.bodies[0].keys() == {"model", "messages", "temperature", "max_tokens"}
    assert judge().ask(asking(*questions, temperature=0.2, max_tokens=9)) == replies
    assert endpoint.answered == 12, "a second run sends nothing"
    line = json.loads((tmp_path / "cache.jsonl").read_text().splitlines()[0])
    assert line["model"] == "judge-2024-01-01"
    assert line["raw"]["usage"]["total_tokens"] == 10
    assert describe(judge().options, replies) == {
        "asked_for": "judge",
        "base_url": endpoint.url,
        "returned": {"judge-2024-01-01": 12},
        "prompt_tokens": 84,
        "completion_tokens": 36,
    }


def test_what_makes_another_request(endpoint, judge):
    judge().ask(asking("a", "a"))
    assert endpoint.answered == 1, "equal requests are sent once"
    judge().ask(asking("a", temperature=0.5))
    judge().ask(asking("a", max_tokens=5))
    judge().ask(asking("a", attempt=1))
    judge(model="other").ask(asking("a"))
    assert endpoint.answered == 5
    assert "max_tokens" not in endpoint.bodies[0]


@pytest.mark.parametrize(
    "fault",
    [
        faults.status(500),
        faults.status(503),
        faults.status(429),
        faults.status(408),
        faults.hang_up,
        faults.body(b"<html>busy</html>"),
        faults.body({"error": "overloaded"}),
        faults.body({"choices": []}),
        faults.body([1]),
    ],
)
def test_passing_faults_are_tried_again(endpoint, judge, fault):
    endpoint.faults = [fault, fault]
    (reply,) = judge().ask(asking("a"))
    assert reply.text == "reply to a"
    assert len(endpoint.bodies) == 3, "the client's own retries are off: every attempt is ours"


def test_a_stall_is_cut_off(endpoint, judge):
    endpoint.faults = [faults.stall(30)]
    started = time.monotonic()
    assert judge(timeout_s=0.3).ask(asking("a"))[0].text == "reply to a"
    assert time.monotonic() - started < 15


def test_a_rate_limits_own_wait_is_kept_up_to_a_bound(endpoint, judge):
    endpoint.faults = [faults.status(429, Retry_After="0.4")]
    started = time.monotonic()
    judge().ask(asking("a"))
    assert time.monotonic() - started >= 0.4
    endpoint.faults = [
        faults.status(429, Retry_After="3600"),
        faults.status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    ]
    started = time.monotonic()
    judge(longest_wait_s=0.05).ask(asking("b"))
    assert time.monotonic() - started < 60


def test_what_fails_for_good_costs_nothing_of_the_rest(endpoint, judge, tmp_path):
    endpoint.faults = [faults.status(400)]
    with pytest.raises(InputError, match="1 of 5 requests.*HTTP 400.*run again"):
        judge(concurrency=1).ask(asking(*"abcde"))
    assert endpoint.answered == 4, "a bad request is not tried again, and the others are answered"
    assert len(judge().ask(asking(*"abcde"))) == 5
    assert endpoint.answered == 5, "the second run sends the one that was missing"


def test_attempts_end(endpoint, judge):
    endpoint.faults = [faults.status(500)] * 10
    with pytest.raises(InputError, match="HTTP 500"):
        judge(attempts=3).ask(asking("a"))
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize(
    "fault",
    [faults.status(401), faults.status(404), faults.status(429, error={"message": "no", "code": "insufficient_quota"})],
)
def test_what_no_request_can_pass_stops_the_run(endpoint, judge, fault):
    endpoint.faults = [fault] * 100
    with pytest.raises(InputError, match="50 of 50 requests"):
        judge(concurrency=2).ask(asking(*map(str, range(50))))
    assert len(endpoint.bodies) <= 4


def test_the_key_is_neither_written_nor_logged_nor_said(endpoint, judge, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    endpoint.faults = [faults.echo_key(500), None, faults.echo_key(401)]
    endpoint.reply = lambda body: f"your key is {KEY}"
    judge(concurrency=1).ask(asking("a"))
    with pytest.raises(InputError) as raised:
        judge().ask(asking("b"))
    assert f"Bearer {KEY}" in endpoint.headers[0].values(), "the key is sent"
    assert KEY not in str(raised.value)
    assert "[key]" in str(raised.value)
    assert KEY not in caplog.text
    assert KEY not in (tmp_path / "cache.jsonl").read_text()
    assert KEY not in repr(judge().options)


def test_concurrency_is_bounded_and_used(endpoint, judge):
    endpoint.reply = lambda body: time.sleep(0.1) or "x"
    judge(concurrency=3).ask(asking(*map(str, range(12))))
    assert 2 <= endpoint.most_busy <= 3


def test_an_interrupted_run_keeps_what_was_on_its_way(endpoint, judge, monkeypatch):
    entered, release = threading.Event(), threading.Event()

    def slow(body):
        entered.set()
        release.wait(5)
        return "late"

    endpoint.reply = slow
    interrupted = judge(concurrency=1)

    def interrupt(*arguments, **options):
        entered.wait(5)
        threading.Timer(0.1, release.set).start()
        raise KeyboardInterrupt

    class Pool(ThreadPoolExecutor):
        def map(self, *arguments):
            super().map(*arguments)
            return iter(interrupt, None)

    monkeypatch.setattr("mdpo.evaluation.judge.ThreadPoolExecutor", Pool)
    with pytest.raises(KeyboardInterrupt):
        interrupted.ask(asking(*"abcdef"))
    monkeypatch.undo()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert endpoint.answered == 1, "what had not been sent was not sent"
    assert judge().estimate(asking(*"abcdef")).cached == 1, "and the reply that came after the interrupt is kept"


def test_a_dry_run_sends_nothing_and_needs_no_key(endpoint, judge, monkeypatch):
    judge().ask(asking("cached"))
    monkeypatch.delenv("OPENAI_API_KEY")
    estimate = judge(base_url=endpoint.url).estimate(asking("cached", "x" * 4000, "x" * 4000))
    assert (estimate.cached, estimate.requests, estimate.prompt_tokens) == (1, 1, 1000)
    assert "1 requests to send, about 1000 prompt tokens; 1 are in the cache" in str(estimate)
    assert len(endpoint.bodies) == 1


def test_a_reply_without_text_is_a_reply(endpoint, judge):
    endpoint.reply = lambda body: None
    assert judge().ask(asking("a"))[0].text == ""
    judge().ask(asking("a"))
    assert endpoint.answered == 1


def test_bad_settings_are_named(judge, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="set OPENAI_API_KEY to the judge's key"):
        judge(base_url=None).ask(asking("a"))
    with pytest.raises(InputError, match="concurrency and attempts"):
        judge(concurrency=0)
    (tmp_path / "cache.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(InputError, match="not a judge's cache"):
        judge().estimate(asking("a"))


ODD_REPLIES = {
    "half a surrogate pair": b'{"choices": [{"message": {"content": "a \\ud83d b"}}], "model": "m\\udc00"}',
    "nothing in it": b'{"choices": [null], "model": null}',
    "numbers for text": b'{"choices": [{"message": {"content": 7}}], "model": 7, "usage": {"prompt_tokens": 1e999}}',
    "NaN": b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": NaN}, "x": Infinity}',
    "torn": b'{"choices": [{"message": {"content": "the answ',
    "not UTF-8": b'{"choices": [{"message": {"content": "caf\xe9"}}]}',
    "deep": b'{"choices": [{"message": {"content": "a"}}], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "many digits": b'{"choices": [{"message": {"content": "a"}}], "x": ' + b"9" * 10_000 + b"}",
    "10 MB": json.dumps({"choices": [{"message": {"content": "x" * 10_000_000}}]}).encode(),
}


@pytest.mark.parametrize("name", ODD_REPLIES)
def test_a_reply_is_kept_whatever_it_holds_and_not_paid_for_again(name, endpoint, judge, tmp_path):
    endpoint.faults = [faults.body(ODD_REPLIES[name])]
    first = judge().ask(asking("a"))
    again = judge().ask(asking("a"))
    assert len(endpoint.bodies) == 1 and [reply.text for reply in first] == [reply.text for reply in again]
    json.dumps([again[0].text, again[0].model]).encode()
    (tmp_path / "written.txt").write_text(again[0].text + again[0].model, encoding="utf-8")
    assert json.dumps(describe(judge().options, again), allow_nan=False)


@pytest.mark.parametrize("key", ["null", "a", '"', "1", "true"])
def test_a_key_that_occurs_in_any_json_harms_no_reply(key, endpoint, judge, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert judge().ask(asking("a"))[0].text == "reply to a"
    assert judge().ask(asking("a"))[0].text == "reply to a" and len(endpoint.bodies) == 1


def test_credentials_in_the_endpoints_address_are_nowhere(endpoint, judge, tmp_path):
    address = endpoint.url.replace("http://", "http://someone:pass-0123@")
    options = {"base_url": address, "attempts": 1}
    endpoint.reply = lambda body: f"seen at {address}?api_key=k-0123456"
    replies = judge(**options).ask(asking("a"))
    said = json.dumps(describe(judge(**options).options, replies)) + (tmp_path / "cache.jsonl").read_text()
    endpoint.faults = [faults.status(401, error={"message": f"no {address}"})]
    with pytest.raises(InputError) as refused:
        judge(**options).ask(asking("b"))
    assert "pass-0123" not in said + str(refused.value) and "k-0123456" not in said and "someone" not in said


def test_a_torn_line_in_the_cache_is_asked_again_and_the_others_are_not(endpoint, judge, tmp_path):
    judge(concurrency=1).ask(asking(*"abc"))
    cache = tmp_path / "cache.jsonl"
    lines = cache.read_bytes().split(b"\n")
    lines[1] = lines[1][:40]
    cache.write_bytes(b"\n".join(lines))
    assert [reply.text for reply in judge().ask(asking(*"abc"))] == [f"reply to {q}" for q in "abc"]
    assert endpoint.answered == 4


def unsupported(name, code="unsupported_parameter"):
    return faults.status(
        400, error={"message": f"{name} is not supported with this model", "param": name, "code": code}
    )


def test_parameters_that_a_model_does_not_take_are_left_out_and_said(endpoint, judge, tmp_path, caplog):
    """As OpenAI's thinking models refuse them, one after the other."""
    endpoint.faults = [unsupported("max_tokens"), unsupported("temperature", "unsupported_value")]
    one = judge(concurrency=1)
    one.ask(asking("a", "b", max_tokens=9))
    assert [sorted(body.keys() - {"model", "messages"}) for body in endpoint.bodies] == [
        ["max_tokens", "temperature"],
        ["max_completion_tokens", "temperature"],
        ["max_completion_tokens"],
        ["max_completion_tokens"],
    ]
    assert endpoint.bodies[-1]["max_completion_tokens"] == 9
    assert caplog.text.count("judge refuses max_tokens; asked with max_completion_tokens") == 1
    assert caplog.text.count("judge refuses temperature; asked with its own") == 1
    judge().ask(asking("a", "b", max_tokens=9))
    assert endpoint.answered == 2, "what the cache has is found again"


@pytest.mark.parametrize("fault", [unsupported("messages"), unsupported("max_tokens", "invalid_value")])
def test_other_refusals_end_as_before(endpoint, judge, fault):
    endpoint.faults = [fault] * 5
    with pytest.raises(InputError, match="HTTP 400"):
        judge().ask(asking("a", max_tokens=9))
    assert len(endpoint.bodies) == 1


def test_a_model_that_refuses_what_takes_a_parameters_place_ends_too(endpoint, judge):
    endpoint.faults = [unsupported("max_tokens")] * 5
    with pytest.raises(InputError, match="HTTP 400"):
        judge().ask(asking("a", max_tokens=9))
    assert len(endpoint.bodies) == 2
