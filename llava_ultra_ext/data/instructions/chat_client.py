"""Asks a chat model behind an OpenAI-compatible address: retries, pace, token budget, answers kept on disk.

Our choice: whole answers, no streams, since every compatible server counts the tokens of those; a connection that is
cut in the middle of one is asked again. httpx and tenacity, not the ``openai`` package: it brings an httpx of its own
and three more packages for one POST.
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_ultra_ext.data.instructions.answer_cache import AnswerCache, ChatAnswer

try:
    import httpx
    import tenacity
except ImportError:
    raise ImportError("a chat model needs httpx and tenacity: pip install 'llava_ultra_ext[hospital]'") from None

AGAIN = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
"""HTTP status at which the same request may succeed later."""

ONLY_THIS = frozenset((400, 413, 422))
"""HTTP status at which this request is at fault: too long, or filtered."""

LONGEST_WAIT_S = 600.0

Message = dict[str, str]


class RequestRefused(Exception):
    """This request has no answer; others may have. Its text is a short reason."""


class _Again(Exception):
    def __init__(self, what: str, after_s: float | None = None) -> None:
        super().__init__(what)
        self.after_s = after_s


@dataclass(frozen=True)
class ChatSettings:
    """How a model is asked.

    Args:
        base_url: address of the interface, ``http://127.0.0.1:8000/v1``.
        model: its name there.
        api_key: sent as bearer token; empty: none is sent.
        temperature: 0 repeats itself best.
        max_tokens: of an answer.
        response_format: ``json_object``, ``json_schema`` or ``text``, by what the server can do.
        timeout_s: without a byte from the server.
        attempts: of a request, with growing waits.
        first_wait_s: before the second attempt; it doubles.
        requests_per_minute: over all threads; 0: no limit.
        token_budget: of prompts and answers in the cache, this run's and earlier ones'; 0: no limit.
    """

    base_url: str
    model: str
    api_key: str = ""
    temperature: float = 0.0
    max_tokens: int = 1500
    response_format: str = "json_object"
    timeout_s: float = 120.0
    attempts: int = 6
    first_wait_s: float = 1.0
    requests_per_minute: float = 0.0
    token_budget: int = 0

    def __repr__(self) -> str:
        return f"ChatSettings({self.model})"  # never the key


class ChatClient:
    """A model and what it has answered so far; threads share it.

    Args:
        settings: how it is asked.
        cache: what it has answered.
        schema: JSON schema of an answer, sent under ``json_schema``.
    """

    def __init__(self, settings: ChatSettings, cache: AnswerCache, schema: dict[str, Any]) -> None:
        self.settings, self.cache, self.schema = settings, cache, schema
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        self._http = httpx.Client(headers=headers, timeout=settings.timeout_s, trust_env=False)
        self._pace = _Pace(settings.requests_per_minute)
        self._lock, self._spent = threading.Lock(), cache.tokens()
        self._backoff = tenacity.wait_exponential_jitter(settings.first_wait_s, 60.0, jitter=settings.first_wait_s)

    def ask(self, messages: Sequence[Message]) -> ChatAnswer:
        """The answer to a conversation, from the cache where it is there.

        Raises:
            RequestRefused: the server refuses this request (``refused_by_server``), fails at every attempt
                (``server_failed``), or the budget does not allow it (``budget``).
            RuntimeError: the server refuses every request: a wrong key, address or model.
        """
        request = self._request(messages)
        known = self.cache.get(request)
        if known is not None:
            return known
        reserved = self._reserve(request)
        answer: ChatAnswer | None = None
        try:
            answer = self._attempts(request)
            self.cache.put(request, answer)
            return answer
        finally:
            with self._lock:
                self._spent += (answer.tokens if answer is not None else 0) - reserved

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _request(self, messages: Sequence[Message]) -> dict[str, Any]:
        ours = self.settings
        request: dict[str, Any] = {"model": ours.model, "messages": list(messages), "temperature": ours.temperature}
        request["max_tokens"] = ours.max_tokens
        if ours.response_format == "json_schema":
            schema = {"name": "instructions", "strict": True, "schema": self.schema}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif ours.response_format == "json_object":
            request["response_format"] = {"type": "json_object"}
        return request

    def _reserve(self, request: dict[str, Any]) -> int:
        """Tokens that a request may cost at most: no tokenizer makes more tokens than a text has bytes."""
        most = len(json.dumps(request["messages"], ensure_ascii=False).encode("utf-8", "replace"))
        most += self.settings.max_tokens
        with self._lock:
            if 0 < self.settings.token_budget < self._spent + most:
                raise RequestRefused("budget")
            self._spent += most
        return most

    def _attempts(self, request: dict[str, Any]) -> ChatAnswer:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.settings.attempts),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(_Again),
            reraise=True,
        )
        try:
            return retrying(self._post, request)
        except _Again:
            raise RequestRefused("server_failed") from None

    def _wait(self, state: tenacity.RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome is not None else None
        asked = fault.after_s if isinstance(fault, _Again) else None
        if asked is None:
            return float(self._backoff(state))
        self._pace.pause(asked)  # the others would be refused too
        return asked

    def _post(self, request: dict[str, Any]) -> ChatAnswer:
        self._pace.wait()
        try:
            reply = self._http.post(f"{self.settings.base_url.rstrip('/')}/chat/completions", json=request)
        except httpx.TransportError as error:
            raise _Again(type(error).__name__) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RuntimeError(f"--base-url: cannot be asked ({type(error).__name__}). Check the address.") from None
        if reply.status_code in AGAIN:
            raise _Again(f"HTTP {reply.status_code}", _retry_after(reply.headers.get("Retry-After")))
        if reply.status_code in ONLY_THIS:
            raise RequestRefused("refused_by_server")
        if not reply.is_success:
            raise RuntimeError(
                f"the chat model's server answers HTTP {reply.status_code}. Check --base-url (it often ends with /v1), "
                "--model and the key. Answers so far are kept; the same command goes on from there."
            )
        return _read(reply)


def is_local(base_url: str) -> bool:
    """Whether an address is this machine's own, so that no report leaves it."""
    try:
        host = httpx.URL(base_url).host
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except (ValueError, httpx.InvalidURL):
        return False


def _read(reply: httpx.Response) -> ChatAnswer:
    """A chat completion; a cut or foreign body is asked again."""
    try:
        body = reply.json()
        choice = body["choices"][0]
        text, finish = choice["message"]["content"] or "", choice.get("finish_reason") or "stop"
        tokens = (body.get("usage") or {}).get("total_tokens")
        if not isinstance(text, str) or not isinstance(finish, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Again("no chat completion") from None
    if not isinstance(tokens, int) or tokens < 0:  # a server that does not count: the most that it can be
        tokens = len(reply.request.content) + len(text.encode("utf-8", "replace"))
    return ChatAnswer(text, finish, tokens)


def _retry_after(given: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date; None: none is said."""
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(given).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT_S) if seconds == seconds else None


class _Pace:
    """Evenly spaced starts of requests, over all threads."""

    def __init__(self, per_minute: float) -> None:
        self._space = 60.0 / per_minute if per_minute > 0 else 0.0
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self) -> None:
        """Until the next start."""
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._space
        time.sleep(max(0.0, start - time.monotonic()))

    def pause(self, seconds: float) -> None:
        """No start before so many seconds have passed."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)
