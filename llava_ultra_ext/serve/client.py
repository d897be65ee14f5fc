"""Asks a question about an exam: through LLaVA's controller, straight at a worker, over to another when one dies.

The API and the page use it; it imports neither torch nor LLaVA. The controller only says where a worker is: its own
stream gives up after 5 s without a byte. Environment variables for proxies are ignored, since a proxy reaches neither
this machine's ports nor those of a hospital's network.

A worker of ours is lost after 4 s without a byte. A stock worker may be silent for longer and still works here:
`worker_stream` says how the two are told apart.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from llava_ultra_ext.serve.answer import Answer, Piece
from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.keys import is_loopback
from llava_ultra_ext.serve.prompts import TEMPLATES, TemplateChoice, write_prompt
from llava_ultra_ext.serve.worker_stream import (
    CONNECT_SECONDS,
    SILENCE_SECONDS,
    WorkerLost,
    httpx,
    worker_messages,
)

__all__ = ["ControllerClient", "Piece", "Question"]

logger = logging.getLogger(__name__)

CONTROLLER_SECONDS = 5.0
"""LLaVA's controller answers nobody while it asks a worker that hangs for its status, which takes up to 5 s."""

REFRESH_SECONDS = 2.0
"""How long a request waits for the controller to drop dead workers; the refresh itself goes on."""

ADDRESS_TRIES = 64
"""The controller counts a request at every address it gives, so that another worker's comes up in the end."""

DEATHS = 2
"""Our choice: a request at which two workers died is not given to a third; the request may be the reason."""


@dataclass(frozen=True)
class Question:
    """A conversation about one exam; its last turn is asked.

    Args:
        model: name of a model, as the controller lists it.
        images: picture files (PNG, JPEG, …), frames of one exam in their order; empty: a question without pictures.
        turns: user text and answer; the last answer is None.
        temperature: 0 always gives the most likely token.
        top_p: share of the probability that is drawn from.
        max_new_tokens: of the answer; LLaVA's workers stop at 1024.
        heat: also say which parts of the chosen frames spoke for them.
        stop: texts at which the answer ends, beside what ends an answer of the template; they are not shown.
        images_turn: the turn that the exam belongs to, counted from 0.
    """

    model: str
    images: tuple[bytes, ...]
    turns: tuple[tuple[str, str | None], ...]
    temperature: float = 0.2
    top_p: float = 0.7
    max_new_tokens: int = 512
    heat: bool = False
    stop: tuple[str, ...] = ()
    images_turn: int = 0


class ControllerClient:
    """Asks the workers of one of LLaVA's controllers, from one event loop.

    Args:
        controller: address of LLaVA's controller, as ``http://127.0.0.1:21001``.
        templates: the template of each model.
        silence_s: longest silence of a worker of ours, seconds.
    """

    def __init__(
        self, controller: str, templates: TemplateChoice | None = None, silence_s: float = SILENCE_SECONDS
    ) -> None:
        self._controller = controller.rstrip("/")
        self._templates = templates or TemplateChoice()
        self._silence_s = silence_s
        # Nobody else reaches such a controller, so a worker elsewhere was entered by somebody who must not have exams.
        self._local = is_loopback(urlsplit(self._controller).hostname or "")
        self._seen: set[str] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._http = httpx.AsyncClient(
            trust_env=False,
            timeout=httpx.Timeout(CONTROLLER_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def __aenter__(self) -> ControllerClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait({self._refreshing})
        await self._http.aclose()

    async def models(self) -> list[str]:
        """Names of the models that workers serve, sorted; empty when there is no worker.

        Raises:
            ServeError: ``no_worker``: the controller does not answer.
        """
        found = sorted(map(str, (await self._call("list_models"))["models"]))
        self._seen.update(found)
        return found

    def serves(self, model: str) -> bool:
        """Whether a worker had this model since this client was made."""
        return model in self._seen

    async def workers(self) -> int:
        """How many workers answer the controller.

        Raises:
            ServeError: ``no_worker``: the controller does not answer.
        """
        # Every worker of LLaVA's gives 1 as its speed, and the controller adds up those that answer.
        return int((await self._call("worker_get_status", timeout_s=3 * CONTROLLER_SECONDS))["speed"])

    async def ask(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The answer as it grows: a piece for every message, at least one in 5 s; the last one has `Piece.finish`.

        Closing the iterator cancels the request at the worker.

        Raises:
            ServeError: ``wrong_model``, ``no_worker``, ``worker_lost``, ``bad_request`` of `write_prompt`, or the code
                of the worker.
        """
        template = self._templates.of(question.model)
        prompt = write_prompt(template, question.turns, len(question.images), question.images_turn)
        stop = TEMPLATES[template].stop
        payload = await asyncio.to_thread(_payload, question, prompt, stop)
        lost: list[str] = []
        deaths = 0
        while True:
            address = await self._address(question.model, lost)
            answer = Answer(prompt, stop, question.stop)
            try:
                async with contextlib.aclosing(
                    worker_messages(self._http, address, payload, self._silence_s)
                ) as messages:
                    async for message in messages:
                        yield answer.add(message)
                        if answer.finished:
                            return
                yield answer.last()
                return
            except WorkerLost as loss:
                deaths += loss.reached
                lost.append(address)
                if loss.gone:
                    self._refresh()
                if answer.shown or deaths >= DEATHS:
                    raise ServeError(
                        "worker_lost", "The worker that was answering is gone. Ask again: another one will answer."
                    ) from None
                logger.warning("a worker was lost before it answered; trying another one")

    async def _address(self, model: str, lost: list[str]) -> str:
        """Address of a worker that is not in `lost`."""
        if lost and self._refreshing is not None:
            await asyncio.wait({self._refreshing}, timeout=REFRESH_SECONDS)
        for _ in range(ADDRESS_TRIES):
            address = str((await self._call("get_worker_address", {"model": model}))["address"]).rstrip("/")
            if not address:
                break
            if address not in lost and (not self._local or is_loopback(urlsplit(address).hostname or "")):
                self._seen.add(model)
                return address
        served = await self.models()
        if model in served or model in self._seen:
            raise ServeError(
                "no_worker",
                "No worker of this model answers at the moment. Try again in a minute; a new one joins then.",
            )
        if not served:
            raise ServeError("no_worker", "No model is served at the moment. Start a worker, or try again in a minute.")
        raise ServeError("wrong_model", f"This model is not served here. Give one of: {', '.join(served)}.")

    def _refresh(self) -> None:
        """Let the controller drop workers that are gone; one refresh at a time, nobody has to wait for it."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refreshed())

    async def _refreshed(self) -> None:
        with contextlib.suppress(ServeError):
            await self._call("refresh_all_workers", timeout_s=6 * CONTROLLER_SECONDS)

    async def _call(
        self, name: str, body: dict[str, Any] | None = None, timeout_s: float = CONTROLLER_SECONDS
    ) -> dict[str, Any]:
        """What the controller answers."""
        try:
            timeout = httpx.Timeout(timeout_s, connect=CONNECT_SECONDS)
            answer = await self._http.post(f"{self._controller}/{name}", json=body or {}, timeout=timeout)
            answer.raise_for_status()
            return dict(answer.json() or {})
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            raise ServeError(
                "no_worker",
                "The controller does not answer. Try again in a minute; workers join it again by themselves.",
            ) from None


def _payload(question: Question, prompt: str, stop: str) -> bytes:
    """LLaVA's request to a worker; `heat` is ours, and a stock worker does not look at it."""
    return json.dumps(
        {
            "model": question.model,
            "prompt": prompt,
            "images": [base64.b64encode(image).decode() for image in question.images],
            "temperature": question.temperature,
            "top_p": question.top_p,
            "max_new_tokens": question.max_new_tokens,
            "stop": stop,
            **({"heat": True} if question.heat else {}),
        }
    ).encode()
