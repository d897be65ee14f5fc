"""LLaVA's worker stream as it comes over the wire, and how a worker that died or hangs is told from one that works.

A worker of ours sends its first message at once and another one at least every 2 s, so `SILENCE_SECONDS` without a byte
mean that it is lost. A stock worker says nothing while a request waits for its turn and until the first token is there,
which may take longer: silent, it is asked for its status, and is lost when it does not answer that. Until the first
message says which of the two it is, a worker is treated as a stock one; either way a loss is known in less than 5 s
(a little later for requests of many megabytes, which a worker needs time to read).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

try:
    import httpx
except ImportError:
    raise ImportError("asking LLaVA's workers needs httpx: pip install 'llava_ultra_ext[serve]'") from None

CONNECT_SECONDS = 2.0

SILENCE_SECONDS = 4.0
"""Longest silence of a worker of ours: two of its keep-alives are missing."""

PROBE_AFTER_SECONDS, PROBE_SECONDS = 2.5, 1.5
"""A stock worker is asked for its status after so much silence, and has so long to answer."""

STOCK_SILENCE_SECONDS = 300.0
"""Our choice: longest silence of a stock worker that answers its status. It queues without a word."""

READING_BYTES_A_SECOND = 20 * 2**20
"""Our choice: how fast the slowest worker takes a request in, which it parses before it says anything."""

MESSAGE_BYTES = 16 * 2**20
"""No message is longer; what is, is no stream of LLaVA's."""

OUR_KEYS = frozenset(("waiting", "times", "chosen_frames", "frame_scores", "alpha", "heat", "code"))
"""Keys by which a worker of ours is known."""


class WorkerLost(Exception):
    """The worker cannot be reached, died or hangs.

    Args:
        gone: nobody listens there or the connection broke: a refresh of the controller finds that at once.
        reached: it had taken the request.
    """

    def __init__(self, gone: bool, reached: bool) -> None:
        super().__init__("gone" if gone else "silent")
        self.gone = gone
        self.reached = reached


async def worker_messages(
    http: httpx.AsyncClient, address: str, payload: bytes, silence_s: float = SILENCE_SECONDS
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """The messages of one answer; None where the worker was silent and is known to live.

    Closing the iterator closes the connection, at which a worker stops.

    Args:
        http: without a limit on connections.
        address: of the worker, without a path.
        payload: the request in JSON.
        silence_s: longest silence of a worker of ours, seconds.

    Raises:
        WorkerLost: also when what it sends is no stream of LLaVA's.
    """
    chunks: asyncio.Queue[bytes | WorkerLost | None] = asyncio.Queue(maxsize=16)
    reading = asyncio.create_task(_read(http, f"{address}/worker_generate_stream", payload, chunks))
    ours, said, rest = False, False, b""
    probe_after_s = min(PROBE_AFTER_SECONDS, silence_s)
    unread_s = len(payload) / READING_BYTES_A_SECOND
    silent_s = 0.0
    try:
        while True:
            wait_s = silence_s if ours else probe_after_s + (0.0 if said else unread_s)
            try:
                chunk = await asyncio.wait_for(chunks.get(), wait_s)
            except asyncio.TimeoutError:
                silent_s += wait_s
                if ours or silent_s > STOCK_SILENCE_SECONDS or not await _lives(http, address):
                    raise WorkerLost(gone=False, reached=True) from None
                yield None
                continue
            if isinstance(chunk, WorkerLost):
                raise chunk
            if chunk is None:
                if rest.strip() or not said:
                    raise WorkerLost(gone=False, reached=True)
                return
            silent_s = 0.0
            *whole, rest = (rest + chunk).split(b"\0")
            if len(rest) > MESSAGE_BYTES:
                raise WorkerLost(gone=False, reached=True)
            for line in filter(None, whole):
                message = _message(line)
                said, ours = True, ours or not OUR_KEYS.isdisjoint(message)
                yield message
    finally:
        reading.cancel()
        # Not gather, which would hand a second cancellation on and cut off the closing of the connection.
        await asyncio.wait({reading})


async def _read(
    http: httpx.AsyncClient, address: str, payload: bytes, chunks: asyncio.Queue[bytes | WorkerLost | None]
) -> None:
    """One task opens, reads and closes the connection; a loss travels in the queue behind what came before it."""
    reached = False
    try:
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        headers = {"Content-Type": "application/json"}
        async with http.stream("POST", address, content=payload, headers=headers, timeout=timeout) as response:
            reached = True
            if response.status_code != httpx.codes.OK:
                await chunks.put(WorkerLost(gone=False, reached=True))
                return
            async for chunk in response.aiter_raw():
                await chunks.put(chunk)
        await chunks.put(None)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reached = reached or not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        await chunks.put(WorkerLost(gone=not isinstance(error, httpx.TimeoutException), reached=reached))


async def _lives(http: httpx.AsyncClient, address: str) -> bool:
    try:
        answer = await http.post(f"{address}/worker_get_status", timeout=PROBE_SECONDS)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK


def _message(line: bytes) -> dict[str, Any]:
    """One message, with the two keys that LLaVA's own have."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not (isinstance(message, dict) and isinstance(message.get("text"), str) and "error_code" in message):
        raise WorkerLost(gone=False, reached=True)
    return message
