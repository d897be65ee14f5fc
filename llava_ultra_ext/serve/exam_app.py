"""LLaVA's worker application for a model of ours: a request has a bound, and a client that goes away is noticed.

LLaVA's route reads a request to its end, however long it is, before anybody can look at it. And Starlette drops the
stream of a client that has gone without closing it, so that it would keep its place until Python collects its garbage.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from types import ModuleType
from typing import Any

from llava_ultra_ext.serve.errors import ServeError, error_message
from llava_ultra_ext.serve.limits import Limits
from llava_ultra_ext.serve.service import is_ours, service_of

STREAM = "/worker_generate_stream"


class Client:
    """Who listens to an answer."""

    def __init__(self) -> None:
        self.gone = False
        self._leave: Callable[[], None] = lambda: None

    def when_gone(self, leave: Callable[[], None]) -> None:
        """What to do then, instead of what was said before; at once where it has gone already."""
        self._leave = leave
        if self.gone:
            leave()

    def leave(self) -> None:
        """It has gone, or has its answer."""
        self.gone = True
        self._leave()


_client: contextvars.ContextVar[Client] = contextvars.ContextVar("client")


def current_client() -> Client:
    """Of the request that this thread or task serves; outside `ExamApp` one that stays."""
    return _client.get(Client())


class BodyTooLarge(Exception):
    """More bytes came than a request may have."""


class ExamApp:
    """Wraps ``app``.

    Args:
        app: LLaVA's.
        host: its module, whose ``worker`` is there when the first request comes.
    """

    def __init__(self, app: Any, host: ModuleType) -> None:
        self._app, self._host = app, host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        worker = getattr(self._host, "worker", None)
        if scope["type"] != "http" or scope["path"] != STREAM or not is_ours(worker):
            await self._app(scope, receive, send)
            return
        client = Client()
        token = _client.set(client)
        try:
            await self._bounded(body_bytes(service_of(worker, self._host).limits), scope, receive, send)
        finally:
            client.leave()
            _client.reset(token)

    async def _bounded(self, most: int, scope: Any, receive: Any, send: Any) -> None:
        read, begun, held = 0, False, list[Any]()

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise BodyTooLarge
            return message

        async def unless_failed(message: Any) -> None:
            nonlocal begun
            if held or message.get("status") == 500:  # what Starlette says before it raises the error itself
                held.append(message)
            else:
                begun = True
                await send(message)

        try:
            await self._app(scope, counted, unless_failed)
        except BodyTooLarge:
            allowed = f"{most / 2**20:,.0f} MiB"
            error = ServeError("request_too_large", f"More than {allowed} were sent. Send fewer or smaller pictures.")
        except (ValueError, RecursionError):  # before it answers, LLaVA's route only reads the JSON
            if begun:
                raise
            error = ServeError("bad_request", "The request is no JSON. Send what LLaVA's worker takes, as one object.")
        else:
            for message in held:
                await send(message)
            return
        from starlette.responses import Response

        await Response(error_message(error))(scope, receive, send)


def body_bytes(limits: Limits) -> int:
    """How long a request's JSON may be: its pictures in base64, its prompt escaped, and a little."""
    return limits.request_bytes * 4 // 3 + limits.prompt_characters * 12 + 2**16
