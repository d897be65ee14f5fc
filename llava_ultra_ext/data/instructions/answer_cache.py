"""Answers of a chat model on disk, by request: what was paid for once is never asked again, even after a kill -9.

Our choice: SQLite, which commits each answer whole. A request is kept as its hash only; the answers are text about
exams and belong where the exams are.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLE = "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, text TEXT, finish TEXT, tokens INTEGER)"


@dataclass(frozen=True)
class ChatAnswer:
    """What a chat model said.

    Args:
        text: its message.
        finish: why it ended: ``stop``, ``length``, …
        tokens: of prompt and answer, as the server counts them.
    """

    text: str
    finish: str
    tokens: int


class AnswerCache:
    """A file of answers; threads and processes may share it.

    Args:
        path: made where it is absent.

    Raises:
        ValueError: it is another file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self._database.execute(_TABLE)
        except sqlite3.Error as error:
            raise ValueError(f"--cache {path}: cannot be opened as a cache ({error}). Give another file.") from None

    def get(self, request: Mapping[str, Any]) -> ChatAnswer | None:
        """The answer to a request; None: it was never answered."""
        with self._lock:
            query = "SELECT text, finish, tokens FROM answers WHERE request = ?"
            row = self._database.execute(query, (request_key(request),)).fetchone()
        return None if row is None else ChatAnswer(*row)

    def put(self, request: Mapping[str, Any], answer: ChatAnswer) -> None:
        """Keep an answer."""
        row = (request_key(request), answer.text.encode("utf-8", "replace").decode(), answer.finish, answer.tokens)
        with self._lock, self._database:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", row)

    def tokens(self) -> int:
        """Tokens of all answers."""
        with self._lock:
            return int(self._database.execute("SELECT coalesce(sum(tokens), 0) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def request_key(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request's body, whatever the order of its keys; the server's address is no part of it."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
