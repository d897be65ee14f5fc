"""One request about exams, answered by LLaVA's unedited ``generate_stream`` in threads of its own.

What that function hides or breaks: the streamer gives up after 15 s without a token, nothing is sent while pictures are
decoded and encoded, an error in ``generate`` is lost, and an answer is computed to its end for a client that has gone.
"""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import TextIteratorStreamer

from llava_ultra_ext.model.exam_inputs import FrameChoice
from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.exam_view import ExamWorker
from llava_ultra_ext.serve.limits import decode

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 1.0
"""Longest silence on the wire: LLaVA's controller drops a worker that sends no byte for 5 s."""

_thread = threading.local()


class Gone(Exception):
    """Nobody listens any more; whatever is being computed is not worth its end."""


def current_answer() -> ExamAnswer | None:
    """What this thread works for."""
    return getattr(_thread, "answer", None)


def stop_when_gone(module: torch.nn.Module, inputs: Any) -> None:
    """A forward pre-hook: a layer is the most that is computed for a client that has gone."""
    answer = current_answer()
    if answer is not None:
        answer.check()


@dataclass
class Progress:
    """What is known of an answer so far.

    Args:
        text: the prompt and the answer so far, as LLaVA sends it.
        grid: rows and columns of a frame's tokens.
        times: seconds: ``waiting`` for a place; ``pictures``, from then until the frames are chosen; ``first_token``
            and ``total``, from the start of the request.
        choices: one for each exam of the prompt.
        alpha: weight of the first encoder (eq. 2), the mean where it is a vector; None where nothing is weighed.
        tokens: that entered the LLM as the ``prompt``, of each exam the frames that are kept, and of the ``answer``.
        finish: once the answer has ended ``stop``, or ``length`` where all tokens that it may have were used up.
    """

    text: str
    grid: tuple[int, int]
    times: dict[str, float] = field(default_factory=dict)
    choices: list[FrameChoice] = field(default_factory=list)
    alpha: float | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    finish: str = ""
    started: float = field(default_factory=time.monotonic)

    def took(self, name: str, since: float | None = None) -> None:
        """Note the seconds since a moment of the monotonic clock, or since the start."""
        self.times[name] = round(time.monotonic() - (self.started if since is None else since), 4)

    def message(self, **more: Any) -> bytes:
        """One message of LLaVA's stream: JSON and a zero byte."""
        values: dict[str, Any] = {"text": self.text, "error_code": 0, "times": dict(self.times), **more}
        if self.finish:
            values.update(finish_reason=self.finish, tokens=self.tokens)
        if self.choices:
            values["chosen_frames"] = [choice.frames for choice in self.choices]
            values["frame_scores"] = [[round(score, 6) for score in choice.scores] for choice in self.choices]
            values["alpha"] = self.alpha
            heat = [
                {"frame": frame, "grid": list(self.grid), "scores": [round(score, 6) for score in scores]}
                for choice in self.choices
                for frame, scores in zip(choice.frames, choice.heat, strict=False)
            ]
            values.update({"heat": heat} if heat else {})
        return json.dumps(values).encode() + b"\0"


class ExamStreamer(TextIteratorStreamer):
    """LLaVA's streamer, which waits as long as the answer takes and ends with its client or its error.

    Args:
        answer: whom it tells of the choice and of the first token.
    """

    def __init__(self, answer: ExamAnswer, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._answer = answer
        self.explain = answer.heat
        self.on_choice = answer.on_choice

    def put(self, value: torch.Tensor) -> None:
        """Called by ``generate`` with the prompt, then with each token."""
        self._answer.check()
        if not self.next_tokens_are_prompt:
            self._answer.on_token(int(value.flatten()[-1]))
        super().put(value)

    def fail(self, error: BaseException) -> None:
        """The reader raises it."""
        self.text_queue.put(error)

    def __next__(self) -> str:
        value = self.text_queue.get()  # without a timeout: `fail` ends it too
        if isinstance(value, BaseException):
            raise value
        if value == self.stop_signal:
            raise StopIteration()
        return str(value)


class ExamAnswer:
    """An answer in the making.

    Args:
        worker: LLaVA's ``ModelWorker``, whose model is one of ours.
        params: the request, checked.
        pictures: its pictures, checked and not decoded.
        progress: is kept up to date.
        ended: called when nothing is computed any more.
    """

    def __init__(
        self,
        worker: Any,
        params: dict[str, Any],
        pictures: list[Image.Image],
        progress: Progress,
        ended: Callable[[], None],
    ) -> None:
        self.heat = bool(params.get("heat"))
        self._worker, self._params, self._pictures = worker, params, pictures
        self._progress, self._left = progress, ended
        self._view = ExamWorker(worker, params["prompt"])
        self._most, self._last_token = 0, -1
        self._began = time.monotonic()
        self._streamer: ExamStreamer | None = None
        self._generation: threading.Thread | None = None
        self._gone, self._news = threading.Event(), threading.Event()
        self._ended = False
        self._failure: ServeError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="exam answer")

    def start(self) -> None:
        """Begin; from here on `ended` will be called."""
        self._thread.start()

    def cancel(self) -> None:
        """Stop soon: nobody listens."""
        self._gone.set()

    def check(self) -> None:
        """Raises `Gone` after `cancel`; called between the steps of the computation."""
        if self._gone.is_set():
            raise Gone

    def news(self) -> Iterator[None]:
        """Comes back when the progress has changed, at least every `KEEP_ALIVE_SECONDS`, until the answer has ended.

        Raises:
            ServeError: it failed.
        """
        ended = False
        while not ended:
            self._news.wait(KEEP_ALIVE_SECONDS)
            self._news.clear()
            ended = self._ended
            if self._failure is not None:
                raise self._failure
            yield

    # What LLaVA's function asks for while it sets the request up

    def make_streamer(self, *args: Any, **kwargs: Any) -> ExamStreamer:
        """Stands for ``TextIteratorStreamer``."""
        self._streamer = ExamStreamer(self, *args, **kwargs)
        return self._streamer

    def make_thread(self, target: Callable[..., Any], kwargs: dict[str, Any]) -> threading.Thread:
        """Stands for ``Thread``: it tells the reader of an error, and is waited for."""
        self._progress.tokens.update(prompt=kwargs["inputs"].shape[-1] + self._view.model.entering, answer=0)
        self._most = kwargs["max_new_tokens"]
        self._generation = threading.Thread(target=self._generate, args=(target, kwargs), daemon=True, name="generate")
        return self._generation

    def _generate(self, generate: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        _thread.answer = self
        try:
            self.check()
            generate(**kwargs)
        except BaseException as error:
            kwargs["streamer"].fail(error)

    # What the model says, from its own thread

    def on_choice(self, choices: list[FrameChoice]) -> None:
        """Before the first token."""
        self._pictures.clear()
        self._progress.took("pictures", self._began)
        self._progress.alpha = mixing_weight(self._worker.model)
        self._progress.choices = choices
        self._news.set()

    def on_token(self, token: int) -> None:
        """At every token."""
        self._progress.tokens["answer"] += 1
        self._last_token = token
        if "first_token" not in self._progress.times:
            self._progress.took("first_token")

    def _run(self) -> None:
        _thread.answer = self
        try:
            self._read_stream()
        except Gone:
            pass
        except BaseException as error:
            self._end_generation()
            self._failure = explained(error)
            if self._failure.code == "out_of_memory":
                let_go(error)
        finally:
            self._end_generation()
            self._progress.took("total")
            self._ended = True
            self._left()
            self._news.set()

    def _read_stream(self) -> None:
        for place, picture in enumerate(self._pictures, start=1):
            self.check()
            decode(picture, f"Picture {place}")
        request = {**self._params, "images": self._pictures}
        for chunk in type(self._worker).generate_stream(self._view, request):
            if self._generation is None:  # The one text that LLaVA sends without asking the model.
                raise self._view.too_long(self._params["prompt"])
            self.check()
            self._progress.text = json.loads(chunk[:-1])["text"]
            self._news.set()
        ended = self._progress.tokens["answer"] < self._most or self._last_token == self._worker.tokenizer.eos_token_id
        self._progress.finish = "stop" if ended else "length"

    def _end_generation(self) -> None:
        """Until nothing is computed; LLaVA's git head leaves the model running behind the stop word."""
        self._gone.set()
        if self._generation is not None and self._generation.ident is not None:
            self._generation.join()


def mixing_weight(model: Any) -> float | None:
    """Alpha of equation 2 as the last forward used it; None for one encoder or ``concat``, which have none."""
    projector = model.get_model().mm_projector
    return None if projector.fusion.logits is None else round(float(projector.alpha()[0].mean()), 6)


def explained(error: BaseException) -> ServeError:
    """What to tell the user; the log gets the traceback, without the message, which may quote the request."""
    if isinstance(error, ServeError):
        return error
    if is_out_of_memory(error):
        logger.warning("a request did not fit into memory")
        return ServeError(
            "out_of_memory",
            "This request did not fit into the worker's memory. Send fewer frames, or ask again when it is less busy.",
        )
    name, trace = type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
    logger.error("a request failed: %s\n%s", name, trace)
    return ServeError("internal_error", f"The worker failed ({name}). Ask again; if it stays so, its log says where.")


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's, Python's, or what torch's allocator on the CPU says, which is a plain RuntimeError."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    signs = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def let_go(error: BaseException) -> None:
    """Drop what an error's frames hold, which may be all that filled the memory."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
