"""A command as a child process, with what it took: seconds in all and of each step, main memory, GPU memory."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from processes import child, failure

BAR = re.compile(rb"(?:^|[\r\n])\s*\d+%\|[^|\r\n]*\| *(\d+)/(\d+) ?\[")
"""A progress bar without a title, as transformers' trainer and `llava-ultra answer` draw it."""

LOSS = re.compile(rb"\{'loss': ")
"""The trainer's line after each step (--logging_steps 1)."""


@dataclass
class Took:
    """What a command took.

    Args:
        seconds: by the clock, from start to end.
        cpu_seconds: of the processors.
        peak_mb: the largest resident memory of a process of it; pages of weight files count, and Linux starts counting
            from what the parent has.
        gpu_mb: the most that was in use on the GPU, over what was before; None without one.
        start_s: from the start to the first step, which is imports and loading.
        steps_s: of each step.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    gpu_mb: float | None = None
    start_s: float | None = None
    steps_s: list[float] = field(default_factory=list)


def run_watched(
    title: str, command: Sequence[object], log: Path, env: Mapping[str, str], steps: int, gpu: bool
) -> Took:
    """Runs a command to its end; its output goes to `log`, which is read as it grows to time `steps` steps.

    Raises:
        StepFailed: its exit status is not 0.
    """
    clock = StepClock(steps)
    start = time.monotonic()
    with gpu_peak(gpu) as peak, child([str(part) for part in command], log, env) as process:
        pid = 0
        while not pid:
            time.sleep(0.02)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            clock.see(log.read_bytes() if log.stat().st_size != clock.size else None, time.monotonic() - start)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
    if status:
        raise failure(title, f"exit status {process.returncode}", log)
    took = Took(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, peak[0] if gpu else None)
    took.start_s, took.steps_s = clock.result()
    return took


class StepClock:
    """When a growing log showed that the steps began, and that each was done.

    Args:
        steps: how many there will be; bars of another length are not theirs. 0: none are timed.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.size = steps, -1
        self.began: float | None = None
        self.done: list[float] = []

    def see(self, content: bytes | None, now: float) -> None:
        """The whole log, or None where it has not grown, at a time in seconds."""
        if content is None or not self.steps:
            return
        self.size = len(content)
        bars = [int(count) for count, of in BAR.findall(content) if int(of) == self.steps]
        if bars and self.began is None:
            self.began = now
        losses = len(LOSS.findall(content))
        finished = min(self.steps, losses if losses else max(bars, default=0))
        while len(self.done) < finished:
            self.done.append(now)

    def result(self) -> tuple[float | None, list[float]]:
        """Seconds to the first step, seconds of each."""
        if self.began is None:
            return None, []
        ends = [self.began, *self.done]
        return self.began, [after - before for before, after in pairwise(ends)]


@contextlib.contextmanager
def gpu_peak(there: bool) -> Iterator[list[float]]:
    """The largest memory in use on the GPU (MB, over what was at the start), in the list's only place."""
    peak, stop = [0.0], threading.Event()
    if not there:
        yield peak
        return
    before = gpu_memory()

    def look() -> None:
        while not stop.wait(0.5):
            peak[0] = max(peak[0], gpu_memory() - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def gpu_memory(which: str = "used") -> float:
    """MB that are used or free on the GPU of `gpu_name`, by nvidia-smi: a CUDA context of our own would take some."""
    query = ["nvidia-smi", "-i", gpu_name(), f"--query-gpu=memory.{which}", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout)


def gpu_name() -> str:
    """The one GPU of a rehearsal: the first that is visible."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
