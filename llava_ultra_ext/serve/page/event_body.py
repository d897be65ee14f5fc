"""Bodies of Gradio's events, read before Gradio reads them.

Gradio takes a ``{"path": …, "meta": {"_type": "gradio.FileData"}}`` anywhere in an input for a file, and downloads its
address into the temporary folder. The page sends texts and numbers alone, so whatever names a file is refused.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.types import Message, Receive

from llava_ultra_ext.serve.errors import ServeError

MOST_BYTES = 2**20
"""Our choice: a question has at most 4,000 characters."""

READ_SECONDS = 30.0
_DEPTH = 20  # the page's own bodies have two levels
_FILE_KEYS = ("path", "url")


async def replayed(receive: Receive) -> Receive:
    """Reads a body and checks it.

    Returns:
        What gives the application the body once more, then whatever comes after it.

    Raises:
        ServeError: ``request_too_large``, or ``bad_request``: it is no JSON, names a file, or takes too long.
    """
    try:
        body = await asyncio.wait_for(_read(receive), READ_SECONDS)
    except asyncio.TimeoutError:
        raise ServeError("bad_request", "请求超时，请重试。 The request took too long; try again.") from None
    _check(body)
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            most = f"{MOST_BYTES >> 20} MB"
            raise ServeError("request_too_large", f"请求超过 {most}。 The request has more than {most}; shorten it.")
        if not message.get("more_body", False):  # the end, or the client has gone
            return bytes(body)


def _check(body: bytes) -> None:
    try:
        asked = json.loads(body)  # as FastAPI does: two readers that differ could be told two things
    except (ValueError, RecursionError):
        raise ServeError("bad_request", "请求不是 JSON。 The request is no JSON.") from None
    if _names_a_file(asked, _DEPTH):
        raise ServeError("bad_request", "请求只能有文字和数字。 The request may hold texts and numbers, no file.")


def _names_a_file(value: Any, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    if depth == 0:  # too deep to be the page's
        return True
    if isinstance(value, dict):
        return any(key in value for key in _FILE_KEYS) or any(_names_a_file(one, depth - 1) for one in value.values())
    return any(_names_a_file(one, depth - 1) for one in value)
