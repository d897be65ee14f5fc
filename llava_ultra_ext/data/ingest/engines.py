"""A function over many tasks at once: in processes of this machine, or on a Ray cluster.

Both hold a few tasks a worker and no more, so that memory does not grow with their number.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

ENGINES = ("processes", "ray")

WAITING = 4
"""Tasks a worker that are on their way: one is done, the others keep it from waiting for the next fetch."""

_DIED = "a worker was killed, as the system does when memory runs out. Finished exams are kept; try fewer --workers."


def run(function: Callable[[T], R], tasks: Iterable[T], engine: str, workers: int, address: str = "") -> Iterator[R]:
    """Results as they come, in no order.

    Args:
        function: picklable; may run in another process, with Ray on another machine.
        tasks: taken one by one, as workers become free.
        engine: one of `ENGINES`.
        workers: how many at once; 1 with processes: in this process.
        address: of the Ray cluster, ``auto`` or ``host:port``; empty: a cluster of this machine.

    Raises:
        ValueError: another engine, or fewer than one worker.
        RuntimeError: a worker died, or Ray is not installed or not there.
        Exception: whatever the function raises.
    """
    check(engine, workers)
    if engine == "ray":
        return _on_ray(function, tasks, workers, address)
    return map(function, tasks) if workers == 1 else _in_processes(function, tasks, workers)


def check(engine: str, workers: int) -> None:
    """Whether `run` takes them.

    Raises:
        ValueError: another engine, or fewer than one worker.
    """
    if engine not in ENGINES:
        raise ValueError(f"--engine {engine}: allowed are {', '.join(ENGINES)}.")
    if workers < 1:
        raise ValueError(f"--workers {workers}: at least 1.")


def _in_processes(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    # Not forked: this process has threads of a PACS client by now, whose locks a fork would copy.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    running: set[Future[R]] = set()
    try:
        for task in tasks:
            running.add(pool.submit(function, task))
            if len(running) >= WAITING * workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise RuntimeError(_DIED) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """Ctrl-C is the parent's, which ends the run; and a worker ends with a parent that was killed.

    It would wait for ever otherwise, and write into the next run's output until its tasks are done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _on_ray(function: Callable[[T], R], tasks: Iterable[T], workers: int, address: str) -> Iterator[R]:
    try:
        import ray
    except ImportError:
        raise RuntimeError("--engine ray needs `pip install llava_ultra_ext[ray]`.") from None
    options: dict[str, Any] = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises a bare one when its processes do not come up in time
        place = f"the cluster at {address} does not answer" if address else "a cluster does not start on this machine"
        raise RuntimeError(f"--engine ray: {place} ({error}). Check it, or use --engine processes.") from None
    # Ray takes functions only, not everything that can be called.
    remote = ray.remote(num_cpus=1, max_retries=2)(lambda task: function(task))
    running: list[Any] = []
    try:
        for task in tasks:
            running.append(remote.remote(task))
            if len(running) >= WAITING * workers:
                done, running = ray.wait(running, num_returns=1)
                yield ray.get(done[0])
        while running:
            done, running = ray.wait(running, num_returns=1)
            yield ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        raise RuntimeError(_DIED) from None
    finally:
        for one in running:
            ray.cancel(one, force=True)
        ray.shutdown()
