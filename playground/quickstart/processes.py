"""Child processes of the quick start: their output goes to files, and none outlives the run."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
TAIL = 1 << 16  # bytes of a log that are searched for the error


_running: set[int] = set()
"""Process groups of `child`."""


class StepFailed(RuntimeError):
    """One line: what failed, why, and where the log is."""


def stop_on_signals(name: str) -> None:
    """Turns SIGINT, SIGTERM and SIGHUP into an ordinary exit of `name`, so that `child` stops what it started.

    Threads that wait for a child hear of no signal: their children are stopped here.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        for group in list(_running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        print(f"\n{name}: FAILED: stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


@contextlib.contextmanager
def child(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, folder: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts `command` in `folder` and in a process group of its own; the whole group is stopped at the end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _running.add(process.pid)
    try:
        yield process
    finally:
        _running.discard(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def step(title: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Runs `command` to its end and returns its seconds by the clock and of the processors.

    Raises:
        StepFailed: Its exit status is not 0.
    """
    print(f"{title:34}", end="", flush=True)
    start, used = time.monotonic(), _cpu_seconds()
    with child(command, log, env) as process:
        status = process.wait()
    if status:
        print()
        raise failure(title, f"exit status {status}", log)
    seconds, busy = time.monotonic() - start, _cpu_seconds() - used
    print(f"{seconds:4.0f} s  (processor {busy:.0f} s)", flush=True)
    return seconds, busy


def failure(title: str, what: str, log: Path) -> StepFailed:
    """What to raise when `title` failed: with the last line of its log that names an error."""
    lines = log.read_bytes()[-TAIL:].decode(errors="replace").splitlines() if log.is_file() else []
    lines = [" ".join(line.split()) for line in lines if line.strip()]
    errors = [line for line in lines if "Error:" in line or "rror: " in line]
    reason = (errors or lines or ["no output"])[-1]
    return StepFailed(f"{title}: {what}; {reason[:300]}; log: {log}")


def python(*arguments: object) -> list[str]:
    """A command line for this interpreter."""
    return [sys.executable, *map(str, arguments)]


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
