"""Every way in which serving an exam can fail: a stable code for programs, a sentence for people."""

from __future__ import annotations

import json

CODES: dict[str, int] = {
    "bad_request": 400,
    "frames_mismatch": 400,
    "bad_picture": 400,
    "context_too_long": 400,
    "address_not_allowed": 400,
    "unauthorized": 401,
    "wrong_model": 404,
    "too_many_frames": 413,
    "picture_too_large": 413,
    "request_too_large": 413,
    "cancelled": 499,
    "internal_error": 500,
    "worker_lost": 502,
    "busy": 503,
    "out_of_memory": 503,
    "no_worker": 503,
}
"""Code -> HTTP status. ``picture_too_large`` counts pixels, ``request_too_large`` bytes; 499 is what nginx says."""


class ServeError(Exception):
    """An error that the user is told.

    Args:
        code: one of `CODES`.
        message: what was given, what is allowed, what to do; no patient text, no file names.

    Raises:
        KeyError: the code is not in `CODES`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.status = CODES[code]
        self.code = code


def error_message(error: ServeError) -> bytes:
    """The last message of a worker's stream that failed: JSON and a zero byte, as LLaVA sends them."""
    return json.dumps({"text": str(error), "error_code": 1, "code": error.code}).encode() + b"\0"
