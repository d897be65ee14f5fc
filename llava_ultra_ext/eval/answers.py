"""Answers files: JSON lines that grow an answer at a time, so that a run that was killed goes on where it stopped.

LLaVA's lines (``question_id``, ``prompt``, ``text``, ``answer_id``, ``model_id``, ``metadata``) and nothing else, so
LLaVA's own scoring scripts read them. No torch, no LLaVA.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from llava_ultra_ext.eval.questions import Question

logger = logging.getLogger(__name__)


class AnswerFile:
    """Appends answers to a file; use it as a context manager. What is answered already is kept.

    Args:
        path: ``--answers-file``; its folder is made.
        model_id: the model's name, written into every line.

    Raises:
        ValueError: the file holds another model's answers, or a line that is no answer.
    """

    def __init__(self, path: str | Path, model_id: str) -> None:
        self.path = Path(path).expanduser()
        self._model_id = model_id
        self._images: dict[Any, list[str]] = {}
        self._prompts, end = self._scan()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and end < os.path.getsize(self.path):
            logger.warning("%s: its last line was cut off; that question is answered again.", self.path)
            os.truncate(self.path, end)
        self._file = self.path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(
                f"--answers-file {self.path}: another process is writing to it. Wait for it, or write to another file."
            ) from None

    def _scan(self) -> tuple[dict[Any, str], int]:
        """Question id -> question text of what is answered, and the number of bytes up to the last whole line."""
        prompts: dict[Any, str] = {}
        end = 0
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                row = json.loads(line)
                known = row["question_id"], row["prompt"], row["model_id"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"--answers-file {self.path}: line {number} is no answer. Remove it, or write to another file."
                ) from None
            if known[2] != self._model_id:
                raise ValueError(
                    f"--answers-file {self.path}: holds answers of model {known[2]}, this one is {self._model_id}. "
                    "Write to another file."
                )
            prompts[known[0]] = known[1]
            if "image" in (row.get("metadata") or {}):
                self._images[known[0]] = row["metadata"]["image"]
        return prompts, end

    def unanswered(self, questions: Sequence[Question]) -> list[Question]:
        """The questions that have no answer yet, in their order.

        Raises:
            ValueError: an answered question has another text now.
        """
        changed = [
            question.id
            for question in questions
            if self._prompts.get(question.id, question.text) != question.text
            or self._images.get(question.id, list(question.images)) != list(question.images)
        ]
        if changed:
            raise ValueError(
                f"--answers-file {self.path}: question {changed[0]} had another text or image when it was answered. "
                "Write the answers of another question file to another file."
            )
        return [question for question in questions if question.id not in self._prompts]

    def write(self, question: Question, text: str, metadata: Mapping[str, Any]) -> None:
        """Append one answer; it survives the end of this process."""
        row = {
            "question_id": question.id,
            "prompt": question.text,
            "text": text,
            "answer_id": uuid.uuid4().hex,
            "model_id": self._model_id,
            "metadata": {**metadata, **({"image": list(question.images)} if question.images else {})},
        }
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
