"""What Prometheus reads of the API: how many requests ended how, how long they took, how many are waiting."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
FRAMES = (0, 1, 2, 4, 8, 16, 32, 64)
NO_MODEL = "none"
"""Label of a request whose model nobody serves."""


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ultra_requests", "Requests by how they ended: ok or a code.", ("model", "code"), registry=self.registry
        )
        self.first_token = self._histogram("first_token_seconds", "To the first text of an answer.", SECONDS)
        self.total = self._histogram("answer_seconds", "To the end of an answer.", SECONDS)
        self.frames = self._histogram("frames", "Frames of an exam.", FRAMES)
        self.waiting = Gauge("ultra_waiting", "Requests without a first token.", registry=self.registry)
        self.running = Gauge("ultra_running", "Requests that are being answered.", registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"ultra_{name}", what, ("model",), registry=self.registry, buckets=buckets)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class Watch:
    """One request from its arrival to `end`, which counts once, whatever is called after it.

    Args:
        metrics: where it counts.
        serves: whether a name is one of a model that a worker has: what clients write never becomes a label.
    """

    def __init__(self, metrics: Metrics, serves: Callable[[str], bool]) -> None:
        self._metrics, self._serves = metrics, serves
        self._start = time.monotonic()
        self._asked: tuple[str, int] | None = None
        self._state: Gauge | None = metrics.waiting
        metrics.waiting.inc()

    def asks(self, model: str, frames: int) -> None:
        """The request was understood."""
        self._asked = model, frames

    def first_token(self) -> None:
        """A text was received; later calls count for nothing."""
        if self._state is self._metrics.waiting:
            self._metrics.first_token.labels(self._model).observe(time.monotonic() - self._start)
            self._change(self._metrics.running)

    def end(self, code: str) -> None:
        """The request is over: ``ok`` or a code of `errors.CODES`."""
        if self._state is None:
            return
        self._change(None)
        self._metrics.requests.labels(self._model, code).inc()
        if self._asked is not None:
            self._metrics.frames.labels(self._model).observe(self._asked[1])
        if code == "ok":
            self._metrics.total.labels(self._model).observe(time.monotonic() - self._start)

    @property
    def _model(self) -> str:
        return self._asked[0] if self._asked is not None and self._serves(self._asked[0]) else NO_MODEL

    def _change(self, state: Gauge | None) -> None:
        if self._state is not None:
            self._state.dec()
        self._state = state
        if state is not None:
            state.inc()
