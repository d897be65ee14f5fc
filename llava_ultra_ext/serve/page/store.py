"""Exams in memory: bounded in number, bytes and age; the longest unused goes first."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.page.asking import Conversation

LANES = 2
"""Models that can be asked side by side."""


@dataclass(frozen=True)
class Bounds:
    """The most that is held. Our choice: an afternoon of a few readers in the memory of a small server.

    Args:
        exams: number of them.
        total_bytes: of their encoded frames.
        age_seconds: since an exam was last used.
    """

    exams: int = 32
    total_bytes: int = 2**30
    age_seconds: float = 3600.0


@dataclass
class Exam:
    """One exam and what was said about it.

    Args:
        key: names it; unguessable, whoever has it may ask.
        frames: PNG bytes as they are sent, in order.
        sizes: width and height of each, pixels.
        labels: of each, as the strip shows them.
        lanes: a conversation with each of the models that are compared.
        used: when, by the store's clock.
    """

    key: str
    frames: tuple[bytes, ...] = field(repr=False)
    sizes: tuple[tuple[int, int], ...]
    labels: tuple[str, ...]
    lanes: tuple[Conversation, ...]
    used: float

    @property
    def bytes(self) -> int:
        """Of all frames."""
        return sum(map(len, self.frames))

    def stop(self) -> None:
        """Cancel what is being answered."""
        for lane in self.lanes:
            lane.stop()


class ExamStore:
    """Keeps exams until they are dropped or the bounds ask for room.

    Args:
        bounds: the most that is held.
        clock: seconds that only grow.
    """

    def __init__(self, bounds: Bounds | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds = bounds or Bounds()
        self._clock = clock
        self._exams: dict[str, Exam] = {}

    def __len__(self) -> int:
        return len(self._exams)

    def add(self, frames: Sequence[bytes], sizes: Sequence[tuple[int, int]], labels: Sequence[str]) -> Exam:
        """Keep an exam; older ones make room.

        Raises:
            ServeError: ``request_too_large``: it alone is more than the bounds allow.
        """
        exam = Exam(
            secrets.token_urlsafe(24),
            tuple(frames),
            tuple(sizes),
            tuple(labels),
            tuple(Conversation() for _ in range(LANES)),
            self._clock(),
        )
        if exam.bytes > self.bounds.total_bytes:
            most = self.bounds.total_bytes >> 20
            raise ServeError(
                "request_too_large",
                f"这次检查的图像超过 {most} MB。 The exam has more than {most} MB; choose fewer frames.",
            )
        self._make_room(exam.bytes)
        self._exams[exam.key] = exam
        return exam

    def get(self, key: str) -> Exam:
        """An exam, which counts as used now.

        Raises:
            ServeError: ``bad_request``: it was dropped, or never was.
        """
        self._make_room(0)
        exam = self._exams.get(key)
        if exam is None:
            raise ServeError("bad_request", "请先放入检查图像；放置过久的会被清除。 Choose an exam's pictures first.")
        exam.used = self._clock()
        return exam

    def drop(self, key: str) -> None:
        """Forget an exam and stop its answers; one that is not there is no error."""
        exam = self._exams.pop(key, None)
        if exam is not None:
            exam.stop()

    def sweep(self) -> None:
        """Forget exams that are too old; nobody may ask for any of them again."""
        now = self._clock()
        for key in [key for key, exam in self._exams.items() if now - exam.used > self.bounds.age_seconds]:
            self.drop(key)

    async def sweep_every(self, seconds: float) -> None:
        """`sweep` until cancelled: on a quiet page nothing else looks at their age."""
        while True:
            await asyncio.sleep(seconds)
            self.sweep()

    def _make_room(self, coming: int) -> None:
        self.sweep()
        while (
            self._exams
            and coming
            and (
                len(self._exams) >= self.bounds.exams
                or sum(exam.bytes for exam in self._exams.values()) + coming > self.bounds.total_bytes
            )
        ):
            self.drop(min(self._exams.values(), key=lambda exam: exam.used).key)
