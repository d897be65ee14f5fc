"""Reads a request's body within limits of bytes and seconds: of one request, and of all that are being answered."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.limits import Limits

TEXT_BYTES = 2**20
"""Of a request, beside its pictures."""

BODY_SECONDS = 300.0
"""Our choice: 256 MiB at 1 MiB/s."""


class Bodies:
    """How many bytes of requests are in memory.

    Args:
        limits: of a request; its pictures take four bytes of base64 for three. Our choice: all requests together may
            hold three of the largest, so that a crowd of them is told ``busy`` instead of ending the server.
    """

    def __init__(self, limits: Limits) -> None:
        self.most = limits.request_bytes // 3 * 4 + TEXT_BYTES
        self.free = 3 * self.most


class Body:
    """The body of one request; `release` it when the request is over.

    Args:
        bodies: those of all requests.
    """

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._held = 0
        self._data = bytearray()

    def take(self) -> bytearray:
        """What was read; its size counts until `release`."""
        data, self._data = self._data, bytearray()
        return data

    def release(self) -> None:
        """The request is over; a second call does nothing."""
        self._bodies.free += self._held
        self._held = 0
        self._data = bytearray()

    async def read(self, request: Request) -> None:
        """Reads it.

        Raises:
            ServeError: ``request_too_large``, ``busy``, or ``bad_request``: it is no JSON, or takes too long.
            ClientDisconnect: nobody waits for an answer any more.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        refused: ServeError | None = None
        if kind != "application/json":  # a browser sends other kinds from foreign pages without asking
            refused = ServeError("bad_request", "Send JSON, with the header `Content-Type: application/json`.")
        try:
            refused = await asyncio.wait_for(self._read(request, refused), BODY_SECONDS)
        except asyncio.TimeoutError:
            refused = ServeError("bad_request", f"The request did not arrive within {BODY_SECONDS:.0f} s.")
        if refused is not None:
            raise refused

    async def _read(self, request: Request, refused: ServeError | None) -> ServeError | None:
        # A refused body is read on without being kept: a client that is cut off while it sends hears no reason.
        seen = 0
        async for chunk in request.stream():
            seen += len(chunk)
            if seen > 2 * self._bodies.most:
                break
            refused = refused or self._refusal(seen, len(chunk))
            if refused is None:
                self._bodies.free -= len(chunk)
                self._held += len(chunk)
                self._data += chunk
            else:
                self.release()
        return refused

    def _refusal(self, seen: int, size: int) -> ServeError | None:
        if seen > self._bodies.most:
            most = self._bodies.most / 2**20
            return ServeError(
                "request_too_large", f"A request may have {most:.0f} MiB. Send fewer or smaller pictures."
            )
        if size > self._bodies.free:
            return ServeError("busy", "Too many large requests at the moment. Try again in a minute.")
        return None
