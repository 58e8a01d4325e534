"""A language model as judge, behind any OpenAI-compatible endpoint: asked once per request, and never paid twice.

Every reply is appended to the cache, whole, before anything is done with it. A run that is interrupted, or in which
requests failed, is simply started again: what is in the cache is not sent.
"""

import dataclasses
import hashlib
import json
import logging
import os
import random
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mdpo.errors import InputError
from mdpo.models.folder import short
from mdpo.reading import parse_json
from mdpo.shown import redacted

from .files import Journal
from .judge_failures import HOPELESS, TRANSIENT, Failure, seconds
from .judge_requests import Estimate, Picture, Reply, Request, content_parts

LOGGER = logging.getLogger(__name__)

_SHORTEST_KEY = 8  # characters: shorter ones, such as "none" for an endpoint without keys, occur in any text
# What OpenAI's later models refuse, and what they take in its place: None is nothing.
_REPLACED = {"max_tokens": "max_completion_tokens", "temperature": None}
_UNSENT = "not sent, because the endpoint refuses every request"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """model: the name to ask for. base_url: of the endpoint; None is OpenAI's own.

    key_variable: the environment variable that holds the key; with a base_url it may be unset.
    timeout_s: silence from the endpoint after which a request counts as failed. attempts: per request, all in all.
    backoff_s: before the second attempt; doubled each time, up to 60 s, and at least what Retry-After asks for.
    """

    model: str
    cache: Path
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    attempts: int = 6
    timeout_s: float = 120.0
    backoff_s: float = 1.0
    longest_wait_s: float = 60.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.attempts < 1:
            raise InputError("the judge's concurrency and attempts are at least 1")
        if not self.timeout_s > 0 or self.backoff_s < 0:
            raise InputError("the judge's timeout is above 0 seconds, and its backoff is not below")


class Judge:
    """Asks requests through the cache.

    The key comes from the environment and goes nowhere but into the request: not into the cache, messages or the log.
    """

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        self._key = os.environ.get(options.key_variable, "")
        self._client = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._untaken: set[str] = set()  # parameters that the model refuses

    def estimate(self, requests: Sequence[Request]) -> Estimate:
        """What ``ask`` would send. Reads the cache, sends nothing and needs no key."""
        with Journal(self.options.cache, lenient=True) as journal:
            known = _replies(journal)
        keys = {self.key(request): request for request in requests}
        missing = [request for key, request in keys.items() if key not in known]
        return Estimate.of(missing, cached=len(keys) - len(missing))

    def ask(self, requests: Sequence[Request], *, refusals: bool = False) -> list[Reply]:
        """A reply to each request, from the cache or the endpoint. Equal requests are sent once.

        refusals: a request that the endpoint refuses for what is in it, such as its picture, has a reply without text,
            whose ``raw`` says ``refused``. It costs nothing, is not in the cache, and is sent again the next time.

        Raises InputError, after everything that could be answered is in the cache, where requests stayed unanswered.
        """
        with Journal(self.options.cache, lenient=True) as journal:
            known = _replies(journal)
            missing = {self.key(request): request for request in requests}
            missing = {key: request for key, request in missing.items() if key not in known}
            failures = self._send_all(missing, journal) if missing else {}
            known = _replies(journal)
        if refusals:
            refused = {key: failure for key, failure in failures.items() if failure.refused}
            known |= {key: Reply("", "", {"refused": str(failure)}) for key, failure in refused.items()}
            failures = {key: failure for key, failure in failures.items() if key not in refused}
        if failures:
            first = next((text for text in map(str, failures.values()) if text != _UNSENT), _UNSENT)
            raise InputError(
                f"{len(failures)} of {len(missing)} requests to the judge were not answered; the first: {first}. "
                f"The others are kept in {self.options.cache}: run again, and only these are sent"
            )
        return [known[self.key(request)] for request in requests]

    def key(self, request: Request) -> str:
        """Names a request: endpoint, body and attempt, hashed."""
        content = {
            "endpoint": (self.options.base_url or "").rstrip("/"),
            "body": self._body(request, lambda picture: picture.name),
            "attempt": request.attempt,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _body(self, request: Request, url: Callable[[Picture], str]) -> dict[str, Any]:
        """url: what stands for a picture."""
        messages = [dict(message) | {"content": content_parts(message["content"], url)} for message in request.messages]
        optional = {"temperature": request.temperature, "max_tokens": request.max_tokens}
        given = {name: value for name, value in optional.items() if value is not None}
        return {"model": self.options.model, "messages": messages} | given

    def _send_all(self, requests: Mapping[str, Request], journal: Journal) -> dict[str, Failure]:
        """Sends all, writing replies as they come. Returns what went wrong, by the keys that are left unanswered."""
        self._client = self._open()
        self._stop.clear()
        bar = tqdm(total=len(requests), desc="judging", leave=False, disable=None)

        def send(key: str, request: Request) -> Failure | None:
            try:
                self._send(key, request, journal)
            except Failure as failure:
                return failure
            finally:
                bar.update()
            return None

        pool = ThreadPoolExecutor(self.options.concurrency)
        try:
            outcomes = list(pool.map(send, requests, requests.values()))
        except BaseException:
            # Interrupted: what has been sent is paid for, so it is waited for and kept; nothing more is sent.
            self._stop.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            bar.close()
        return {key: outcome for key, outcome in zip(requests, outcomes, strict=True) if outcome is not None}

    def _send(self, key: str, request: Request, journal: Journal) -> None:
        failed = Failure(_UNSENT)
        for attempt in range(self.options.attempts):
            if self._stop.is_set():
                break
            try:
                reply = self._post(request)
            except Failure as failure:
                failed = failure
                if failure.hopeless:
                    self._stop.set()
                if not failure.transient or attempt + 1 == self.options.attempts:
                    break
                wait = self._wait(attempt, failure.retry_after_s)
                LOGGER.info("judge: %s; again in %.1f s", failed, wait)
                self._stop.wait(wait)
                continue
            record = {"text": reply.text, "model": reply.model, "raw": reply.raw}
            with self._lock:
                journal.append({"key": key} | self._redact(record))
            return
        raise failed

    def _post(self, request: Request) -> Reply:
        import openai

        body = self._body(request, lambda picture: picture.uri())
        try:
            content = self._sent(body)
        except openai.APIStatusError as error:
            raise self._status_failure(error) from error
        except (openai.APIConnectionError, openai.APIResponseValidationError) as error:
            reason = (
                "no reply in time" if isinstance(error, openai.APITimeoutError) else f"no connection: {error.__cause__}"
            )
            raise Failure(self._redact(reason), transient=True) from error
        try:
            raw = parse_json(content)
        except ValueError as error:
            text = content.decode("utf-8", "replace")
            if text.lstrip()[:1] != "{" or '"choices"' not in text:  # some gateway's page
                raise Failure(f"the reply is not JSON: {short(error)}", transient=True) from error
            return Reply("", "", {"unparsed": text})  # paid for all the same
        choices = raw.get("choices") if isinstance(raw, dict) else None
        if not isinstance(choices, list) or not choices:
            # Some gateways report an overload with status 200.
            raise Failure(self._redact(f"a reply without choices: {json.dumps(raw):.200}"), transient=True)
        message = choices[0].get("message") if isinstance(choices[0], dict) else None
        text = message.get("content") if isinstance(message, dict) else None
        return Reply(_unicode(text), _unicode(raw.get("model")), raw)

    def _sent(self, body: Mapping[str, Any]) -> bytes:
        """What the endpoint replies; without what its model refuses of the parameters that OpenAI's later
        models lack.
        """
        import openai

        assert self._client is not None
        while True:
            untaken = frozenset(self._untaken)
            try:
                return self._client.chat.completions.with_raw_response.create(**_taken(body, untaken)).content
            except openai.APIStatusError as error:
                name = str(error.param)
                if not str(error.code).startswith("unsupported") or name in untaken or name not in _REPLACED:
                    raise
                with self._lock:
                    if name not in self._untaken:
                        instead = _REPLACED[name] or "its own"
                        LOGGER.warning("judge: %s refuses %s; asked with %s", self.options.model, name, instead)
                    self._untaken.add(name)

    def _status_failure(self, error: Any) -> Failure:
        status = error.status_code
        quota = getattr(error, "code", None) == "insufficient_quota"  # a 429 that no waiting mends
        return Failure(
            self._redact(f"HTTP {status}: {error.message!s:.300}"),
            transient=not quota and (status in TRANSIENT or status >= 500),
            hopeless=quota or status in HOPELESS,
            refused=status < 500 and status not in TRANSIENT and status not in HOPELESS,
            retry_after_s=seconds(error.response.headers.get("retry-after")),
        )

    def _wait(self, attempt: int, retry_after_s: float) -> float:
        backoff = self.options.backoff_s * 2**attempt * random.uniform(0.5, 1.0)
        return min(max(backoff, retry_after_s), self.options.longest_wait_s)

    def _open(self) -> Any:
        try:
            import openai
        except ImportError as error:
            raise InputError(
                'a judge needs the openai client: pip install -e ".[eval]" in the clone of mDPO'
            ) from error
        if not self._key and self.options.base_url is None:
            raise InputError(f"set {self.options.key_variable} to the judge's key, or give an endpoint with --base-url")
        # The client wants some key even where the endpoint wants none. Retries are ours: its own are not cached.
        return openai.OpenAI(
            api_key=self._key or "none",
            base_url=self.options.base_url or "https://api.openai.com/v1",
            timeout=self.options.timeout_s,
            max_retries=0,
        )

    def _redact(self, value: Any) -> Any:
        """The value with the key, and the login of an address, taken out of every text in it."""
        if isinstance(value, str):
            return redacted(value.replace(self._key, "[key]") if len(self._key) >= _SHORTEST_KEY else value)
        if isinstance(value, Mapping):
            return {self._redact(name): self._redact(entry) for name, entry in value.items()}
        return [self._redact(entry) for entry in value] if isinstance(value, list) else value


def _taken(body: Mapping[str, Any], untaken: Collection[str]) -> dict[str, Any]:
    """The body without the parameters that are not taken, or with what takes their place."""
    named = {_REPLACED[name] if name in untaken else name: value for name, value in body.items()}
    return {name: value for name, value in named.items() if name is not None}


def _replies(journal: Journal) -> dict[str, Reply]:
    replies = {}
    for record in journal.records:
        missing = {"key", "text", "model", "raw"} - record.keys()
        if missing or not isinstance(record["key"], str):
            raise InputError(
                f"{journal.path} is not a judge's cache: a line has no {min(missing, default='key')!r}; give "
                "another file"
            )
        raw = record["raw"] if isinstance(record["raw"], Mapping) else {}
        replies[record["key"]] = Reply(_unicode(record["text"]), _unicode(record["model"]), raw)
    return replies


def _unicode(text: Any) -> str:
    """A text of a reply that can be written: half a surrogate pair becomes "?", anything but text becomes ""."""
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else ""


def describe(options: JudgeOptions, replies: Sequence[Reply]) -> dict[str, Any]:
    """What a result says of its judge: the name asked for, the names returned and how often, and the tokens paid."""
    names: dict[str, int] = {}
    tokens = {"prompt_tokens": 0, "completion_tokens": 0}
    for reply in replies:
        names[reply.model] = names.get(reply.model, 0) + 1
        usage = reply.raw.get("usage")
        for name in tokens:
            value = usage.get(name) if isinstance(usage, Mapping) else None
            tokens[name] += value if isinstance(value, int) and 0 <= value < 2**53 else 0
    asked = dataclasses.asdict(options)
    return {"asked_for": asked["model"], "base_url": redacted(asked["base_url"]), "returned": names, **tokens}
