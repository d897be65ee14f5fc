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
from llava_ultra_ext.eval.run_record import check_run, write_run

logger = logging.getLogger(__name__)

_BEGINNING = b'{"question_id"'
"""How every row starts, LLaVA's too: what was cut off in writing starts so, or is the start of this."""


class AnswerFile:
    """Appends answers to a file; use it as a context manager. What is answered already is kept.

    Args:
        path: ``--answers-file``; its folder is made.
        model_id: the model's name, written into every line.
        run: what answers are made with (`run_record.describe_run`), compared with the record beside the file; None:
            nothing is compared and none is written.

    Raises:
        ValueError: another process writes to the file, it holds a line that is no answer, or the answers of another
            model or run; it is left as it was.
    """

    def __init__(self, path: str | Path, model_id: str, run: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path).expanduser()
        self._model_id = model_id
        self._prompts: dict[Any, str] = {}
        self._images: dict[Any, list[str]] = {}
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"--answers-file {self.path}: is no file. Give the name of a file.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a row that could not be written is not tried again when the file is closed.
        self._file = self.path.open("a+b", buffering=0)
        try:
            self._lock()
            self._continue(run)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"--answers-file {self.path}: another process is writing to it. Wait for it, or write to another file."
            ) from None

    def _continue(self, run: Mapping[str, Any] | None) -> None:
        """Read what is there, then mend the end of the file: nothing is changed before all of it was looked at."""
        content = self.path.read_bytes()
        *lines, last = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            self._keep(line, number)
        torn = bool(last) and _is_torn(last)
        if last and not torn:
            self._keep(last, len(lines) + 1)
        if run is not None:
            if self._prompts:
                check_run(self.path, run)
            write_run(self.path, run)
        if torn:
            logger.warning("%s: its last line was cut off; that question is answered again.", self.path)
            os.truncate(self.path, len(content) - len(last))
        elif last:
            self._append(b"\n")

    def _keep(self, line: bytes, number: int) -> None:
        """Remember a row.

        Raises:
            ValueError: it is none, or another model's.
        """
        try:
            row = json.loads(line)
            key, prompt, model_id = row["question_id"], row["prompt"], row["model_id"]
            metadata = row.get("metadata") or {}
            whole = type(key) in (int, str) and isinstance(row["text"], str) and isinstance(metadata, Mapping)
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise ValueError(
                f"--answers-file {self.path}: line {number} is no answer. Needed, as in LLaVA's answers files: "
                "question_id (a number or a string), prompt, text, model_id, and metadata as an object. "
                "Remove the line, or write to another file."
            )
        if model_id != self._model_id:
            raise ValueError(
                f"--answers-file {self.path}: holds answers of model {model_id}, this one is {self._model_id}. "
                "Write to another file."
            )
        self._prompts[key] = prompt
        if "image" in metadata:
            self._images[key] = metadata["image"]

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
        """Append one answer; it survives the end of this process.

        Raises:
            OSError: it cannot be written; the error names the file.
        """
        row = {
            "question_id": question.id,
            "prompt": question.text,
            "text": text,
            "answer_id": uuid.uuid4().hex,
            "model_id": self._model_id,
            "metadata": {**metadata, **({"image": list(question.images)} if question.images else {})},
        }
        self._append(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def _append(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:  # a full disk is told without a name
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _is_torn(last: bytes) -> bool:
    """Whether a last line without line end was cut off while it was written: it starts as rows do and is no JSON."""
    if not last.startswith(_BEGINNING) and not _BEGINNING.startswith(last):
        return False
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        return True
    return False
