"""One question to the models of an exam's lanes: each answer grows in a task of its own that can be stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llava_ultra_ext.serve.client import Piece, Question
from llava_ultra_ext.serve.errors import ServeError

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 0.12
"""Between two updates of the page. Our choice: reads as a stream, and leaves a slow browser time to draw."""

RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped", "failed"


class Client(Protocol):
    """What is needed of `client.ControllerClient`."""

    async def models(self) -> list[str]:
        """Names of the models that are served."""
        ...

    def ask(self, question: Question) -> AsyncIterator[Piece]:
        """The answer, piece by piece; closing the iterator cancels at the worker."""
        ...


@dataclass(frozen=True)
class Choices:
    """How answers are drawn.

    Args:
        temperature: 0 gives the most likely answer.
        max_new_tokens: of an answer.
    """

    temperature: float = 0.2
    max_new_tokens: int = 512


@dataclass
class Turn:
    """A question and what became of it.

    Args:
        text: of the question.
        model: that was asked.
        state: ``running``, ``done``, ``stopped`` or ``failed``.
        piece: the last one of the answer.
        error: why it failed.
        first_seconds: from the question to the first text of the answer, as the user waits.
        total_seconds: to its end.
    """

    text: str
    model: str
    state: str = RUNNING
    piece: Piece | None = None
    error: ServeError | None = None
    first_seconds: float | None = None
    total_seconds: float | None = None

    @property
    def answer(self) -> str:
        """The text so far."""
        return self.piece.text if self.piece is not None else ""


@dataclass
class Conversation:
    """What one lane has asked about an exam; only one question runs at a time.

    Args:
        turns: all questions, also those that failed.
    """

    turns: list[Turn] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether an answer is on its way."""
        return self._task is not None and not self._task.done()

    def start(
        self, client: Client, turn: Turn, frames: Sequence[bytes], choices: Choices, changed: asyncio.Event
    ) -> asyncio.Task[None]:
        """Ask; earlier answers are the context, those that failed or are empty are not.

        Args:
            turn: the new question.
            frames: of the exam.
            choices: how to answer.
            changed: set whenever `turn` has changed.
        """
        before = tuple((one.text, one.answer) for one in self.turns if one.state in (DONE, STOPPED) and one.answer)
        question = Question(
            model=turn.model,
            images=tuple(frames),
            turns=(*before, (turn.text, None)),
            temperature=choices.temperature,
            max_new_tokens=choices.max_new_tokens,
            heat=True,
        )
        self.turns.append(turn)
        self._task = asyncio.create_task(_answer(client, question, turn, changed))
        self._task.add_done_callback(lambda _: _ended(turn, changed))
        return self._task

    def stop(self) -> None:
        """Cancel the answer on its way, here and at the worker; what has come stays."""
        if self._task is not None:
            self._task.cancel()

    def clear(self) -> None:
        """Forget everything."""
        self.stop()
        self.turns = []


def _ended(turn: Turn, changed: asyncio.Event) -> None:
    """A task that is cancelled before its first step runs none of its own code."""
    if turn.state == RUNNING:
        turn.state = STOPPED
    changed.set()


async def _answer(client: Client, question: Question, turn: Turn, changed: asyncio.Event) -> None:
    began = time.monotonic()
    try:
        async with contextlib.aclosing(client.ask(question)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                turn.piece = piece
                if piece.text and turn.first_seconds is None:
                    turn.first_seconds = time.monotonic() - began
                changed.set()
        turn.state = DONE
    except asyncio.CancelledError:
        turn.state = STOPPED
        raise
    except ServeError as error:
        turn.state, turn.error = FAILED, error
    except Exception as error:  # the page must say so rather than wait for ever
        logger.warning("a question failed (%s)", type(error).__name__)
        turn.state, turn.error = FAILED, ServeError("internal_error", f"The page failed ({type(error).__name__}).")
    finally:
        turn.total_seconds = time.monotonic() - began
        changed.set()


async def ask_lanes(
    client: Client,
    lanes: Sequence[Conversation],
    models: Sequence[str],
    text: str,
    frames: Sequence[bytes],
    choices: Choices,
) -> AsyncIterator[None]:
    """Ask a model in each lane the same; yields whenever there is something new to show, and at the end.

    Closing the iterator stops every answer.
    """
    changed = asyncio.Event()
    tasks = [
        lane.start(client, Turn(text, model), frames, choices, changed)
        for lane, model in zip(lanes, models, strict=True)
    ]
    try:
        yield None
        while not all(task.done() for task in tasks):
            await changed.wait()
            changed.clear()
            yield None
            await asyncio.sleep(UPDATE_SECONDS)
        yield None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
