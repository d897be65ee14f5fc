"""An answer as a worker's messages tell it: its text without prompt and stop texts, and what is known of the exam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llava_ultra_ext.serve.errors import CODES, ServeError

STOCK_TOO_LONG = "Exceeds max token length."
"""How a stock worker's answer begins that refuses a prompt."""

FAILED = "The worker failed at this request. Try again; its log says why."


@dataclass(frozen=True)
class Piece:
    """What is known of an answer so far. A stock worker gives a text only.

    Args:
        text: the answer from its beginning, without prompt and stop texts; each one begins with the one before.
        chosen: frames that entered the LLM, counted from 0; empty until known.
        scores: of every frame, comparable within the exam only.
        alpha: share of the first encoder (eq. 2), its mean where it is a vector; None until known.
        heat: for each chosen frame ``{"frame": 2, "grid": [rows, columns], "scores": […]}``.
        times: seconds, by part: ``waiting``, ``pictures``, ``first_token``, ``total``.
        waiting: requests ahead in the worker's queue; None when it is our turn.
        finish: in the last piece ``stop`` or ``length`` (`Question.max_new_tokens` were used up).
        tokens: ``prompt`` and ``answer``, where the worker counts them.
    """

    text: str = ""
    chosen: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    alpha: float | None = None
    heat: tuple[dict[str, Any], ...] = ()
    times: Mapping[str, float] = field(default_factory=dict)
    waiting: int | None = None
    finish: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)


class Answer:
    """One worker's answer: what its messages have said so far.

    Args:
        prompt: what its texts begin with.
        template_stop: ends an answer of the template.
        stops: of the question; the answer is `finished` at one of them.

    `shown` is the text that the caller has, `finished` says that it is all of it.
    """

    def __init__(self, prompt: str, template_stop: str, stops: tuple[str, ...]) -> None:
        self._prompt, self._template_stop, self._stops = prompt, template_stop, stops
        self._text = ""
        self._known: dict[str, Any] = {}
        self.shown = ""
        self.finished = False

    def add(self, message: dict[str, Any] | None) -> Piece:
        """The piece after a message; a None repeats the last one.

        Raises:
            ServeError: the message is one of an error.
        """
        if message is None:
            return self._piece()
        if message["error_code"]:
            code = str(message.get("code"))
            raise ServeError(code, message["text"]) if code in CODES else ServeError("internal_error", FAILED)
        self._known.pop("waiting", None)
        self._known.update({key: value for key, value in message.items() if value is not None})
        self._text = message["text"].removeprefix(self._prompt)
        if self._text.startswith(STOCK_TOO_LONG):
            raise ServeError(
                "context_too_long", "The question is longer than the model reads. Shorten the conversation."
            )
        # The worker ends at the template's stop text by itself, and says in what follows how long it took.
        text, _ = _before_stops(self._text, (self._template_stop,))
        shown, self.finished = _before_stops(text, self._stops)
        self.shown = shown.strip()
        return self._piece("stop" if self.finished else None)

    def last(self) -> Piece:
        """The piece behind the last message: nothing is held back any more."""
        self.shown = self._text.partition(self._template_stop)[0].strip()
        return self._piece(str(self._known.get("finish_reason", "stop")))

    def _piece(self, finish: str | None = None) -> Piece:
        known = self._known
        try:
            # One exam a question: the lists for each exam of a prompt hold one.
            return Piece(
                text=self.shown,
                chosen=tuple(next(iter(known.get("chosen_frames", ())), ())),
                scores=tuple(next(iter(known.get("frame_scores", ())), ())),
                alpha=known.get("alpha"),
                heat=tuple(known.get("heat", ())),
                times=dict(known.get("times", {})),
                waiting=known.get("waiting"),
                finish=finish,
                tokens=dict(known.get("tokens", {})),
            )
        except (TypeError, ValueError):
            raise ServeError("internal_error", FAILED) from None


def _before_stops(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The part that may be shown, and whether a stop text was found; what may become one is held back."""
    found = [place for place in map(text.find, stops) if place >= 0]
    if found:
        return text[: min(found)], True
    held = max(
        (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])),
        default=0,
    )
    return text[: len(text) - held], False
