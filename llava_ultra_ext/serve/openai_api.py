"""An OpenAI-compatible address in front of LLaVA's controller: ``python -m llava_ultra_ext.serve.openai_api``.

``/v1/chat/completions`` (pictures, streams), ``/v1/models``, ``/health`` and ``/metrics``. A request goes through
`openai_messages` (what it says), `remote_pictures` (what it shows) and `client` (who answers). Its text is never
logged, and no message names a host or a path. It listens on this machine only, unless there are API keys.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from llava_ultra_ext.serve.answer import Piece
from llava_ultra_ext.serve.client import ControllerClient, Question
from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.keys import ApiKeys, check_host, hosts_of
from llava_ultra_ext.serve.limits import Limits
from llava_ultra_ext.serve.metrics import NO_MODEL, Metrics, Watch
from llava_ultra_ext.serve.openai_errors import failed, failure, internal, no_route, refuse
from llava_ultra_ext.serve.openai_messages import (
    DONE,
    ChatRequest,
    Completion,
    event,
    read_conversation,
)
from llava_ultra_ext.serve.prompts import TEMPLATES, TemplateChoice
from llava_ultra_ext.serve.remote_pictures import AllowedAddresses, read_pictures
from llava_ultra_ext.serve.request_body import Bodies, Body

HEALTH_SECONDS = 3.0
"""Our choice: how long an answer of ``/health`` stands; LLaVA's controller asks every worker for it, one by one."""


SHUTDOWN_SECONDS = 5
"""How long answers may go on after a signal."""

STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies hand a stream on as it comes."""

WAITING = b": waiting\n\n"

Answered = AsyncGenerator[tuple[ChatRequest, Piece], None]
"""A request as it was understood, with each piece of its answer."""


class Api:
    """The routes of one server; `create_app` says what it takes."""

    def __init__(self, client: ControllerClient, limits: Limits, keys: ApiKeys, allowed: AllowedAddresses) -> None:
        self._client, self._limits, self._keys, self._allowed = client, limits, keys, allowed
        self._metrics = Metrics()
        self._bodies = Bodies(limits)
        self._health: tuple[float, int, dict[str, Any]] | None = None
        self._asking_health = asyncio.Lock()

    async def require_key(self, request: Request) -> None:
        """Refuses a request without one of the keys, where there are keys."""
        if not self._keys.accept(request.headers.get("authorization")):
            self._metrics.requests.labels(NO_MODEL, "unauthorized").inc()
            raise ServeError("unauthorized", "An API key is needed: send it as `Authorization: Bearer KEY`.")

    async def health(self) -> Response:
        """200 and how many workers answer, or 503 when none does."""
        async with self._asking_health:
            now = asyncio.get_running_loop().time()
            if self._health is None or now - self._health[0] > HEALTH_SECONDS:
                try:
                    workers, models = await self._client.workers(), await self._client.models()
                except ServeError:
                    workers, models = 0, []
                status = "ok" if workers and models else "no_worker"
                values = {"status": status, "models": models, "workers": workers}
                self._health = asyncio.get_running_loop().time(), 200 if status == "ok" else 503, values
        return JSONResponse(self._health[2], self._health[1])

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> Response:
        """OpenAI's list of models."""
        return JSONResponse({"object": "list", "data": list(map(_model, await self._client.models()))})

    async def model(self, name: str) -> Response:
        """One of them."""
        served = await self._client.models()
        if name not in served:
            raise ServeError("wrong_model", f"This model is not served here. Served: {', '.join(served) or 'none'}.")
        return JSONResponse(_model(name))

    async def chat(self, request: Request) -> Response:
        """Answers a conversation, at once or as a stream; until the first piece an error has a status of its own."""
        answer = self._answer(request)
        asked, first = await anext(answer)
        completion = Completion(asked.model)
        if asked.stream:
            events = _events(completion, asked, first, answer)
            return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)
        async with contextlib.aclosing(answer):
            last = first
            async for _, piece in answer:
                if await request.is_disconnected():
                    raise ServeError("cancelled", "The connection was closed before the answer was there.")
                last = piece
        return JSONResponse(completion.whole(last))

    async def _answer(self, request: Request) -> Answered:
        """What a request asks, with each piece of its answer; all that a request holds is let go when this ends.

        Raises:
            ServeError: nothing else.
        """
        watch, body = Watch(self._metrics, self._client.serves), Body(self._bodies)
        try:
            await body.read(request)
            asked = await asyncio.to_thread(ChatRequest.parse, body.take())
            question = await self._question(asked)
            watch.asks(question.model, len(question.images))
            async with contextlib.aclosing(self._client.ask(question)) as pieces:
                async for piece in pieces:
                    if piece.text:
                        watch.first_token()
                    yield asked, piece
            watch.end("ok")
        except ServeError as error:
            watch.end(error.code)
            raise
        except ClientDisconnect:
            raise ServeError("cancelled", "The connection was closed before the request was there.") from None
        except Exception as error:
            watch.end("internal_error")
            raise internal(error) from None
        finally:
            body.release()
            watch.end("cancelled")

    async def _question(self, asked: ChatRequest) -> Question:
        """The request as the client asks it; the cheap checks come first."""
        conversation = read_conversation(asked.messages)
        most = self._limits.prompt_characters
        characters = sum(len(text or "") for turn in conversation.turns for text in turn)
        if characters > most:
            message = f"The messages have {characters:,} characters, {most:,} are allowed. Shorten the conversation."
            raise ServeError("context_too_long", message)
        images = await read_pictures(conversation.addresses, self._allowed, self._limits)
        return Question(
            asked.model,
            images,
            tuple(conversation.turns),
            temperature=_given(asked.temperature, Question.temperature),
            top_p=_given(asked.top_p, Question.top_p),
            max_new_tokens=asked.max_completion_tokens or asked.max_tokens or Question.max_new_tokens,
            heat=bool(asked.heat),
            stop=tuple(asked.stop or ()),
            images_turn=conversation.images_turn,
        )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


async def _pieces(first: Piece, rest: Answered) -> AsyncIterator[Piece]:
    yield first
    async for _, piece in rest:
        yield piece


async def _events(
    completion: Completion,
    asked: ChatRequest,
    first: Piece,
    answer: Answered,
) -> AsyncIterator[bytes]:
    """OpenAI's stream; while nothing new is said, comments, which clients skip."""
    try:
        async with contextlib.aclosing(answer):
            yield completion.chunk({"role": "assistant", "content": ""})
            said = ""
            async for piece in _pieces(first, answer):
                more, said = piece.text[len(said) :], piece.text
                yield completion.chunk({"content": more}) if more else WAITING
        yield completion.chunk({}, piece)
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield completion.usage_chunk(piece)
        yield DONE
    except ServeError as error:
        yield event(failure(error))


def create_app(
    client: ControllerClient,
    limits: Limits | None = None,
    keys: ApiKeys | None = None,
    allowed: AllowedAddresses | None = None,
) -> FastAPI:
    """The application.

    Args:
        client: of LLaVA's controller; it is closed with the application.
        limits: of a request.
        keys: who may ask; none: everybody.
        allowed: remote addresses of pictures; none are fetched without.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    api = Api(client, limits or Limits(), keys or ApiKeys(), allowed or AllowedAddresses())
    # Without FastAPI's own pages, which load scripts from elsewhere.
    app = FastAPI(title="LLaVA-Ultra", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", api.health, methods=["GET"])
    for path, route, method in (
        ("/metrics", api.metrics, "GET"),
        ("/v1/models", api.models, "GET"),
        ("/v1/models/{name:path}", api.model, "GET"),
        ("/v1/chat/completions", api.chat, "POST"),
    ):
        app.add_api_route(path, route, methods=[method], dependencies=[Depends(api.require_key)])
    app.add_exception_handler(ServeError, refuse)
    app.add_exception_handler(HTTPException, no_route)
    app.add_exception_handler(Exception, failed)
    return app


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "llava"}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; 2 when the arguments cannot be used, with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m llava_ultra_ext.serve.openai_api", description=_summary())
    parser.add_argument("--controller-address", default="http://127.0.0.1:21001", help="LLaVA's controller")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; another one needs an API key")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-keys-file", type=Path, help="one key a line; ULTRA_API_KEY holds a further one")
    parser.add_argument(
        "--allow-url", action="append", default=[], metavar="PREFIX", help="pictures below this address are fetched"
    )
    parser.add_argument(
        "--conv-mode",
        action="append",
        default=[],
        metavar="TEMPLATE[=MODEL]",
        help=f"template of all models, or of one: {', '.join(TEMPLATES)}",
    )
    given = parser.parse_args(argv)
    try:
        keys = ApiKeys.read(given.api_keys_file)
        check_host(given.host, keys)
        allowed, templates = AllowedAddresses(given.allow_url), TemplateChoice.parse(given.conv_mode)
        limits = Limits.from_environment()
    except ValueError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every address
    app = create_app(ControllerClient(given.controller_address, templates), limits, keys, allowed)
    if not keys and ":" not in given.host:  # Starlette cuts IPv6 addresses at their first colon
        # A page of another site could have a name that leads here (DNS rebinding).
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts_of(given.host))
    uvicorn.run(
        app,
        host=given.host,
        port=given.port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return 0


def _summary() -> str:
    return (__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
