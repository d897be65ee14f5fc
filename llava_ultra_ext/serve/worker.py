"""LLaVA's model_worker for exams: which frame was chosen, the real error, and no deadline for the first token.

LLaVA's ``generate_stream`` runs unedited; this wraps the gate round it. What the gate hides or breaks: every exception
becomes "NETWORK ERROR DUE TO HIGH TRAFFIC", the streamer gives up after 15 s and the controller after 5 s without a
byte, and the token budget counts every ``<image>`` although one frame of an exam enters the LLM.

An exam in a request: k images and k adjacent ``<image>`` in the prompt. The answer's JSON lines gain ``chosen_frames``
and ``frame_scores``, one list for each exam of the prompt.
"""

from __future__ import annotations

import copy
import json
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

from transformers import TextIteratorStreamer

from llava_ultra_ext.data.exam import IMAGE_RUN, IMAGE_TOKEN

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 2.0
"""Longest silence on the wire: LLaVA's controller drops a worker that sends no byte for 5 s."""

_asking = threading.local()


class ExamStreamer(TextIteratorStreamer):
    """A streamer that waits as long as the answer takes, and carries the choice and the error of ``generate``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "timeout": None})
        self.choices: list[Any] = []

    def on_choice(self, choices: list[Any]) -> None:
        """Called by the model before the first token."""
        self.choices = choices

    def on_error(self, error: BaseException) -> None:
        """Called by the model in its own thread; the reader raises it."""
        self.text_queue.put(error)

    def __next__(self) -> str:
        try:
            value = self.text_queue.get(timeout=KEEP_ALIVE_SECONDS)
        except queue.Empty:
            return ""
        if isinstance(value, BaseException):
            raise value
        if value == self.stop_signal:
            raise StopIteration()
        return str(value)


def exam_streamer(original: Any, host: ModuleType) -> Callable[..., Any]:
    """Stands for ``TextIteratorStreamer`` in the worker: ours while a request for a model of ours is set up."""

    def make(*args: Any, **kwargs: Any) -> Any:
        request = getattr(_asking, "request", None)
        if request is None:
            return original(*args, **kwargs)
        request["streamer"] = ExamStreamer(*args, **kwargs)
        return request["streamer"]

    return make


def exam_stream_gate(original: Callable[..., Any], host: ModuleType) -> Callable[..., Iterator[bytes]]:
    """Wraps ``ModelWorker.generate_stream_gate(self, params)``; models that are not ours get LLaVA's own gate."""

    def generate_stream_gate(self: Any, params: dict[str, Any]) -> Iterator[bytes]:
        from llava_ultra_ext.model.ultra_arch import UltraMetaForCausalLM

        if not isinstance(self.model, UltraMetaForCausalLM):
            yield from original(self, params)
            return
        yield _line(params.get("prompt", ""), 0)
        try:
            for text, choices in _answer(self, params):
                yield _line(text, 0, choices)
        except Exception as error:
            logger.exception("the request failed")
            yield _line(f"{type(error).__name__}: {error}", 1)

    return generate_stream_gate


def _answer(worker: Any, params: dict[str, Any]) -> Iterator[Any]:
    """Text so far and the choices, each time LLaVA's generator says something."""
    _check(params)
    request: dict[str, Any] = {}
    stream = type(worker).generate_stream(_ExamWorker(worker, params), params)
    while True:
        _asking.request = request
        try:
            chunk = next(stream, None)
        finally:
            _asking.request = None
        if chunk is None:
            return
        streamer = request.get("streamer")
        yield json.loads(chunk[:-1])["text"], streamer.choices if streamer is not None else []


def _check(params: dict[str, Any]) -> None:
    images, tokens = len(params.get("images") or []), params.get("prompt", "").count(IMAGE_TOKEN)
    if images != tokens:
        raise ValueError(
            f"{images} images but {tokens} {IMAGE_TOKEN} in the prompt. Write one {IMAGE_TOKEN} for each image, "
            "adjacent ones for the frames of one exam."
        )


def _line(text: str, error_code: int, choices: list[Any] | None = None) -> bytes:
    """One message of LLaVA's stream: JSON and a zero byte."""
    values: dict[str, Any] = {"text": text, "error_code": error_code}
    if choices:
        values["chosen_frames"] = [choice.frames for choice in choices]
        values["frame_scores"] = [[round(score, 6) for score in choice.scores] for choice in choices]
    return json.dumps(values).encode() + b"\0"


class _ExamWorker:
    """The worker as ``generate_stream`` sees it for one request: the token budget counts the frames that are kept."""

    is_multimodal = True

    def __init__(self, worker: Any, params: dict[str, Any]) -> None:
        self._worker = worker
        # LLaVA's worker sends the prompt to --device, whose default is cuda on every machine.
        self.device = worker.model.device
        self.model = _ExamModel(worker.model, worker.tokenizer, params.get("prompt", ""))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)


class _ExamModel:
    """The model, with ``num_patches`` such that LLaVA's ``tokens + count * num_patches`` is what enters the LLM.

    LLaVA's tokens hold every ``<image>`` and what separates them, most of which leave the prompt with their frames.
    """

    def __init__(self, model: Any, tokenizer: Any, prompt: str) -> None:
        self._model = model
        settings = model.settings
        runs = [run.group() for run in IMAGE_RUN.finditer(prompt)]
        entering = 0
        for run in runs:
            frames = run.count(IMAGE_TOKEN)
            kept = frames if settings.adr_strategy == "all" else min(settings.adr_top_k, frames)
            separators = run.split(IMAGE_TOKEN)[kept:-1]
            entering += kept * (settings.tokens - 1) - (frames - kept)
            entering -= sum(len(tokenizer(between, add_special_tokens=False).input_ids) for between in separators)
        self._tower = SimpleNamespace(num_patches=-(-entering // max(1, prompt.count(IMAGE_TOKEN))))
        self.config = copy.copy(model.config)
        # LLaVA's own padding takes no greyscale picture; our image processor pads whatever the config says.
        self.config.image_aspect_ratio = None
        # LLaVA counts with the former, its splice cuts at the latter, which would silently take the question's end.
        cut = getattr(model.config, "tokenizer_model_max_length", None)
        if cut is not None:
            self.config.max_position_embeddings = min(cut, model.config.max_position_embeddings)

    def get_vision_tower(self) -> Any:
        return self._tower

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
