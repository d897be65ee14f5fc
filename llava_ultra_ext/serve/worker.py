"""What stands in LLaVA's model_worker when its model is one of ours; bound by the seams, unedited otherwise.

An exam in a request: k images and k adjacent ``<image>`` in the prompt. Every message of the answer holds ``times``.
Once the frames are chosen it also holds ``chosen_frames`` and ``frame_scores``, one list for each exam of the prompt,
``alpha``, and for a request with ``"heat": true`` what each token of a chosen frame adds to its score. While others are
ahead, a message holds ``waiting``, their number. The last one holds ``finish_reason`` and ``tokens``. An error has a
``code`` of `errors.CODES`; LLaVA's is always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from PIL import Image

from llava_ultra_ext.serve.errors import ServeError, error_message
from llava_ultra_ext.serve.exam_app import current_client
from llava_ultra_ext.serve.exam_stream import KEEP_ALIVE_SECONDS, ExamAnswer, Progress, current_answer, explained
from llava_ultra_ext.serve.limits import check_request
from llava_ultra_ext.serve.service import ExamService, is_ours, service_of


def exam_stream_gate(original: Callable[..., Any], host: ModuleType) -> Callable[..., Iterator[bytes]]:
    """Wraps ``ModelWorker.generate_stream_gate(self, params)``."""

    def generate_stream_gate(self: Any, params: dict[str, Any]) -> Iterator[bytes]:
        if not is_ours(self):
            yield from original(self, params)
            return
        try:
            yield from _messages(self, params, service_of(self, host))
        except Exception as error:
            yield error_message(explained(error))

    return generate_stream_gate


def _messages(worker: Any, params: dict[str, Any], service: ExamService) -> Iterator[bytes]:
    pictures = check_request(params, service.limits)
    _check_model(params.get("model"), worker.model_name)
    # Base64 is not kept while others are answered. LLaVA's function fails without a stop word, and on an empty one.
    stop = params.get("stop") or worker.tokenizer.eos_token
    params = {**{name: value for name, value in params.items() if value is not None}, "images": None, "stop": stop}
    side = worker.model.get_vision_tower().num_patches_per_side
    progress = Progress(params["prompt"], grid=(side, side))
    yield progress.message()
    client, place = current_client(), service.queue.enter()
    try:
        client.when_gone(place.leave)
        while ahead := place.ahead():
            yield progress.message(waiting=ahead)
            place.ahead(KEEP_ALIVE_SECONDS)
        if client.gone:
            return
        progress.took("waiting")
        answer = ExamAnswer(worker, params, pictures, progress, ended=place.leave)
        client.when_gone(answer.cancel)
        answer.start()
    except BaseException:  # GeneratorExit too
        place.leave()
        raise
    try:
        for _ in answer.news():
            yield progress.message()
    finally:
        answer.cancel()


def _check_model(asked: str | None, served: str) -> None:
    if asked and asked != served:
        raise ServeError("wrong_model", f"This worker serves {served}, not {asked[:100]}. Ask for {served}.")


def exam_streamer(original: Any, host: ModuleType) -> Callable[..., Any]:
    """Stands for ``TextIteratorStreamer``: ours in a thread that answers about an exam."""

    def make(*args: Any, **kwargs: Any) -> Any:
        answer = current_answer()
        return original(*args, **kwargs) if answer is None else answer.make_streamer(*args, **kwargs)

    return make


def exam_thread(original: Any, host: ModuleType) -> Callable[..., Any]:
    """Stands for ``Thread``, in which LLaVA starts ``generate``: likewise."""

    def make(*args: Any, **kwargs: Any) -> Any:
        answer = current_answer()
        return original(*args, **kwargs) if answer is None else answer.make_thread(*args, **kwargs)

    return make


def checked_picture(original: Callable[[str], Any], host: ModuleType) -> Callable[..., Any]:
    """Wraps ``load_image_from_base64(image)``: a picture that was checked is not decoded a second time."""

    def load_image_from_base64(image: Any) -> Any:
        return image if isinstance(image, Image.Image) else original(image)

    return load_image_from_base64


def exam_queue_length(original: Callable[[Any], int], host: ModuleType) -> Callable[[Any], int]:
    """Wraps ``ModelWorker.get_queue_length(self)``, by which LLaVA's controller chooses among workers."""

    def get_queue_length(self: Any) -> int:
        return len(service_of(self, host).queue) if is_ours(self) else original(self)

    return get_queue_length


def exam_heart_beat(original: Callable[[Any], None], host: ModuleType) -> Callable[[Any], None]:
    """Wraps ``ModelWorker.send_heart_beat(self)``: never sent by the thread that asks for it."""

    def send_heart_beat(self: Any) -> None:
        service = service_of(self, host) if is_ours(self) else None
        if service is None or service.is_messenger():
            original(self)
        else:
            service.beat_soon()

    return send_heart_beat
