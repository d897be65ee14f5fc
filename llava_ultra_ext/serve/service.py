"""What a worker of ours has beside LLaVA's: limits, a queue with a bound, and heart beats that hold up nobody.

LLaVA's worker has no flags of ours; variables set these:

* ``ULTRA_SERVE_RUNNING``: requests answered at once. Our choice: 1 on a CPU, where two would share the same cores; else
  LLaVA's ``--limit-model-concurrency``.
* ``ULTRA_SERVE_WAITING``: requests that may wait, `waiting.WAITING`.
* those of `limits.Limits`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from llava_ultra_ext import llava_seams
from llava_ultra_ext.model.ultra_arch import UltraMetaForCausalLM
from llava_ultra_ext.serve.exam_stream import stop_when_gone
from llava_ultra_ext.serve.limits import Limits, whole_number
from llava_ultra_ext.serve.waiting import WAITING, RequestQueue

logger = logging.getLogger(__name__)

LLAVA_CONCURRENCY = 5
"""Default of LLaVA's ``--limit-model-concurrency``."""

AGAIN_S = 5.0
"""LLaVA's own pause after a heart beat that did not arrive."""

_opening = threading.Lock()


class ExamService:
    """One worker's limits, queue and heart beats.

    Args:
        worker: LLaVA's ``ModelWorker``, whose model is one of ours.
        concurrency: LLaVA's ``--limit-model-concurrency``.
        environment: where settings are looked up.

    Raises:
        ValueError: a setting is no number, or too large.
    """

    def __init__(self, worker: Any, concurrency: int, environment: Mapping[str, str] = os.environ) -> None:
        model = worker.model
        self.limits = Limits.from_environment(environment)
        running = whole_number(environment, "RUNNING") or (1 if model.device.type == "cpu" else concurrency)
        waiting = whole_number(environment, "WAITING", least=0)
        self._beat = threading.Event()
        self.queue = RequestQueue(running, WAITING if waiting is None else waiting, changed=self.beat_soon)
        self.door = OpenDoor(self.queue)
        logger.info("Exams: %d at once, %d may wait; %s", running, self.queue.waiting, self.limits)
        self._worker = worker
        self._messenger = threading.Thread(target=self._send_heart_beats, daemon=True, name="exam heart beats")
        self._messenger.start()
        for layer in (*_layers(model.get_model().layers), *_layers(*model.get_vision_tower().encoders)):
            layer.register_forward_pre_hook(stop_when_gone)

    def beat_soon(self) -> None:
        """Tell the controller how many are here, from a thread of its own.

        LLaVA tells it in the event loop, where a controller that is slow or gone holds up every answer.
        """
        self._beat.set()

    def is_messenger(self) -> bool:
        """Whether this thread is the one that sends heart beats."""
        return threading.current_thread() is self._messenger

    def _send_heart_beats(self) -> None:
        while True:
            self._beat.wait()
            self._beat.clear()
            if not hasattr(self._worker, "heart_beat_thread"):  # --no-register: there is nobody to tell
                continue
            try:
                self._worker.send_heart_beat()
            except Exception as error:  # a controller that goes while the worker registers again
                logger.warning("the controller was not told (%s); once more in %.0f s", type(error).__name__, AGAIN_S)
                time.sleep(AGAIN_S)
                self._beat.set()


class OpenDoor:
    """Stands for LLaVA's semaphore: everybody may come in, the queue inside says who is next.

    Args:
        queue: for the line that LLaVA logs.
    """

    def __init__(self, queue: RequestQueue) -> None:
        self._queue = queue

    async def acquire(self) -> bool:
        """At once."""
        return True

    def release(self) -> None:
        """A place is left where it is known that nothing is computed any more."""

    @property
    def _value(self) -> int:
        return max(0, self._queue.running - len(self._queue))

    def locked(self) -> bool:
        """Whether the next one would wait."""
        return self._value == 0


def is_ours(worker: Any) -> bool:
    """Whether a ``ModelWorker`` has loaded a model of ours; False while it loads."""
    return isinstance(getattr(worker, "model", None), UltraMetaForCausalLM)


def service_of(worker: Any, host: ModuleType) -> ExamService:
    """The service of a worker with a model of ours; opened the first time.

    Args:
        host: LLaVA's ``model_worker``.

    Raises:
        ValueError: a setting is no number, or too large.
    """
    with _opening:
        if "exam_service" not in vars(worker):
            flags = getattr(host, "args", None)
            worker.exam_service = ExamService(worker, getattr(flags, "limit_model_concurrency", LLAVA_CONCURRENCY))
            llava_seams.rebind(host, "model_semaphore", worker.exam_service.door)
        service: ExamService = worker.exam_service
        return service


def _layers(*parents: nn.Module) -> list[nn.Module]:
    """The members of every list of modules, in which models keep their layers."""
    modules = [module for parent in parents for module in parent.modules()]
    return [layer for module in modules if isinstance(module, nn.ModuleList) for layer in module]
