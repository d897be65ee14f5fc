"""Errors in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}`` with the status of their code."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from llava_ultra_ext.serve.errors import ServeError

logger = logging.getLogger(__name__)


class BadField(ServeError):
    """``bad_request`` that names the field, as ``messages.0.content``."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__("bad_request", f"{field or 'body'}: {message}.")
        self.field = field or None


def failure(error: ServeError) -> dict[str, Any]:
    """OpenAI's form of an error."""
    kinds = {401: "authentication_error", 499: "cancelled"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    param = getattr(error, "field", None)
    return {"error": {"message": str(error), "type": kind, "param": param, "code": error.code}}


async def refuse(request: Request, error: Exception) -> Response:
    """The answer to a `ServeError`."""
    assert isinstance(error, ServeError)
    headers = {"WWW-Authenticate": "Bearer"} if error.code == "unauthorized" else None
    return JSONResponse(failure(error), error.status, headers)


async def no_route(request: Request, error: Exception) -> Response:
    """404 and 405 in OpenAI's form."""
    assert isinstance(error, HTTPException)
    known = "Known are POST /v1/chat/completions, and GET /v1/models, /health and /metrics."
    values = failure(ServeError("bad_request", f"There is nothing at this address, or not for this method. {known}"))
    return JSONResponse(values, error.status_code, error.headers)


async def failed(request: Request, error: Exception) -> Response:
    """The answer to any other error."""
    return await refuse(request, internal(error))


def internal(error: Exception) -> ServeError:
    """An error that is nobody's fault but ours; its text may quote the request, so the log has only its place."""
    places = "".join(traceback.format_tb(error.__traceback__))
    logger.error("a request failed: %s\n%s", type(error).__name__, places)
    return ServeError("internal_error", "The server failed at this request. Try again; its log says where.")
