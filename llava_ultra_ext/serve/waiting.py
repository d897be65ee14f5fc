"""Who is answered and who waits: a queue with a bound, first come, first served.

LLaVA lets any number of requests wait for its semaphore, without a word to them. Here the one too many hears at once
that the worker is busy, and those who wait hear how many are ahead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from llava_ultra_ext.serve.errors import ServeError

WAITING = 16
"""How many requests may wait where nobody says. Our choice: users of one ward; more of them need more workers."""

THREADS = 32
"""The most requests that may run or wait. Each holds one of the 40 threads in which Starlette steps through a stream;
the others are left for requests that are refused."""


class RequestQueue:
    """Places for requests; every method may be called from any thread.

    Args:
        running: how many are answered at once.
        waiting: how many may wait for that, 0 or more.
        changed: called, outside the lock, whenever somebody came or left.

    Raises:
        ValueError: the two are more than `THREADS` together.
    """

    def __init__(self, running: int, waiting: int = WAITING, changed: Callable[[], None] = lambda: None) -> None:
        if running < 1 or waiting < 0 or running + waiting > THREADS:
            raise ValueError(
                f"{running} running and {waiting} waiting requests: give 1 or more running and at most {THREADS} "
                "together. For more, start another worker."
            )
        self.running, self.waiting = running, waiting
        self._changed = changed
        self._places: list[Place] = []
        """In the order of arrival; the first `running` of them are answered."""
        self._moved = threading.Condition()

    def __len__(self) -> int:
        """Requests that are answered or wait."""
        return len(self._places)

    def enter(self) -> Place:
        """A place, at the end.

        Raises:
            ServeError: ``busy``: as many wait as may.
        """
        place = Place(self)
        with self._moved:
            ahead = len(self._places)
            if ahead >= self.running + self.waiting:
                raise ServeError(
                    "busy",
                    f"busy, {ahead - self.running} waiting, which is the most. Ask again in a minute, or have another "
                    "worker started.",
                )
            self._places.append(place)
        self._changed()
        return place


class Place:
    """One request's place in a `RequestQueue`."""

    def __init__(self, queue: RequestQueue) -> None:
        self._queue = queue

    def ahead(self, seconds: float = 0) -> int:
        """How many requests are answered or wait before this one; 0 when it is its turn, however many run beside it.

        Args:
            seconds: how long to wait for the turn first.
        """
        queue = self._queue
        with queue._moved:
            queue._moved.wait_for(lambda: self._ahead() < queue.running, timeout=seconds)
            ahead = self._ahead()
            return ahead if ahead >= queue.running else 0

    def _ahead(self) -> int:
        # A place that was left has nobody ahead: who waits on it in another thread is let go.
        places = self._queue._places
        return places.index(self) if self in places else 0

    def leave(self) -> None:
        """Give the place up, waiting or answered; a second time does nothing."""
        with self._queue._moved:
            if self not in self._queue._places:
                return
            self._queue._places.remove(self)
            self._queue._moved.notify_all()
        self._queue._changed()
