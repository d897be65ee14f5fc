"""Draws exams to PNG files, in several processes: what is there and whole is kept.

A frame is written under a temporary name and renamed, so that a name that exists is a whole frame. An exam depends on
its own id and seed only: any number of processes writes the same bytes. Even one exam at a time is drawn in a process
of its own, which starts with one thread for linear algebra: a product's last bits depend on the number of threads.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from llava_ultra_ext.data.sources.phantom.bmode import render_frame
from llava_ultra_ext.data.sources.phantom.case import Case
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings, draw_case
from llava_ultra_ext.data.whole_file import write_whole

FRAMES = "frames"
"""Sub-folder of the output."""

_SAME = 0.05
"""Grey values by which two drawings of a frame may differ in the mean: another processor rounds otherwise."""

_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Task:
    """One exam to draw.

    Args:
        exam_id: also the name of its folder.
        split: train, validate or test.
        seed: of the exam.
        settings: of all exams.
        out: the output folder.
    """

    exam_id: str
    split: str
    seed: int
    settings: PhantomSettings
    out: Path


def plan(counts: dict[str, int], seed: int, settings: PhantomSettings, out: Path) -> list[Task]:
    """The exams of each split, in the order of the files.

    Our choice: an exam's seed is a hash of the run's seed and of the exam's id, which holds its split and its number.
    So more exams of one split change no other exam.

    Args:
        counts: split -> how many exams.
        seed: of the run.
    """
    tasks = []
    for split, count in counts.items():
        for number in range(1, count + 1):
            exam_id = f"PH-{split}-{number:05d}"
            digest = hashlib.sha256(f"{seed}/{exam_id}".encode()).digest()
            tasks.append(Task(exam_id, split, int.from_bytes(digest[:6], "big"), settings, out))
    return tasks


def frame_name(exam_id: str, number: int) -> str:
    """A frame's file, relative to the output folder; the first number is 0, as in ``valid_frames``."""
    return f"{FRAMES}/{exam_id}/{number:02d}.png"


def draw_exam(task: Task) -> Case:
    """Draw the frames of an exam that are not there yet.

    Raises:
        OSError: a file cannot be written; frames before it are whole.
        ValueError: the settings cannot be drawn.
    """
    case = draw_case(task.exam_id, task.seed, task.settings)
    for number in range(len(case.frames)):
        path = task.out / frame_name(task.exam_id, number)
        if number == 0 and path.parent.is_dir():
            for partial in path.parent.glob(".*"):  # left by a run that was killed
                partial.unlink(missing_ok=True)
        if not _is_whole(path, task.settings.size):
            write_whole(path, _png(render_frame(case, number, task.settings.size)))
    return case


def check_kept(tasks: Sequence[Task]) -> None:
    """Whether a frame that is kept is the one that would be drawn: settings cannot tell one version from another.

    Our choice: one frame of each split, which costs nothing to speak of, and any change of the drawing shows in it.

    Raises:
        ValueError: it is another picture.
    """
    for task in {task.split: task for task in reversed(tasks)}.values():
        path = task.out / frame_name(task.exam_id, 0)
        if _is_whole(path, task.settings.size):
            with Image.open(path) as picture:
                there = np.asarray(picture.convert("RGB"), np.float32)
            here = render_frame(draw_case(task.exam_id, task.seed, task.settings), 0, task.settings.size)
            if np.abs(there - here).mean() > _SAME:
                raise ValueError(
                    f"{path}: another version of this command drew it; the pictures of both would be mixed. "
                    "Remove the folder, or give another."
                )


def draw_all(tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Case]]:
    """Draw exams, in any order.

    Args:
        tasks: what to draw.
        workers: processes.

    Yields:
        The task's place in `tasks`, and its case, when all of its frames are there.

    Raises:
        OSError, ValueError: as `draw_exam`. concurrent.futures.BrokenExecutor: a process was killed.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        with _one_thread(), _deaf_to_ctrl_c():  # any of the tasks may start a process
            places = {pool.submit(draw_exam, task): place for place, task in enumerate(tasks)}
        for done in as_completed(places):
            yield places[done], done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that start meanwhile do linear algebra in one thread each."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that start meanwhile ignore Ctrl-C from their first moment; this one goes on, and ends them."""
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker() -> None:
    """A killed parent takes its workers along."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()


def _is_whole(path: Path, size: int) -> bool:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.size == (size, size)
    except (OSError, SyntaxError, ValueError):  # Pillow calls a broken PNG any of these
        return False
