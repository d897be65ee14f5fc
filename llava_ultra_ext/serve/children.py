"""Programs that run together: started, watched, started again when one ends, and stopped as one.

Each writes to a log of its own and leads a process group of its own, so that Ctrl-C reaches the launcher alone, which
then stops all of them. See :mod:`llava_ultra_ext.serve.child` for how they end with a launcher that was killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""Between two looks at the programs."""
TELL_SECONDS = 30.0
"""Between two words about a start that takes long; a large model may take minutes, so there is no limit."""
STOP_SECONDS = 3.0
"""What a program has to end by itself; a stream that is being written would keep it for as long as the answer takes."""
LONGEST_PAUSE_SECONDS = 60.0
"""Between two starts of a program that ends over and over; the first pause is 1 s, each is twice the one before."""
STEADY_SECONDS = 60.0
"""A program that was ready for so long starts over with the first pause."""
_TAIL = 1 << 16
_ERROR = re.compile(r"\b\w*(Error|Exception|UnknownLlava): |\berror: |\[Errno ")
_LOG_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d [\d:,.]+ \| \w+ \| [\w.]+ \| ")


class StartFailed(RuntimeError):
    """A program ended before it was ready: which, and why in its own words."""


@dataclass(frozen=True)
class Program:
    """What to run.

    Args:
        name: for messages and for the log's name.
        module: as ``python -m`` takes it.
        arguments: of the module.
        ready: whether it answers; asked while its process lives.
        env: variables beside the launcher's own.
        returned: called when it answers again after it had ended.
    """

    name: str
    module: str
    arguments: Sequence[str]
    ready: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    returned: Callable[[], None] = lambda: None


class _Running:
    """A program with its process.

    Args:
        program: what to run.
        logs: existing folder; its own log and, in ``llava``, the files that LLaVA writes.
    """

    def __init__(self, program: Program, logs: Path) -> None:
        self.program, self.log, self._folder = program, logs / f"{program.name}.log", logs / "llava"
        self.is_ready, self._since, self._failures = False, 0.0, 0
        self._due: float | None = None
        self.start()

    def start(self) -> None:
        """Starts the process; its log goes on where it stopped."""
        command = [sys.executable, "-m", "llava_ultra_ext.serve.child", str(self._folder), self.program.module]
        with self.log.open("ab") as sink:
            self._log_start = sink.tell()
            self.process = subprocess.Popen(
                [*command, *self.program.arguments],
                env={**os.environ, **self.program.env},
                stdin=subprocess.PIPE,  # open for as long as this process lives
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._due, self._since = None, time.monotonic()

    def end(self) -> str | None:
        """How it ended and the last error of its log; None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        how = f"ended with exit status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
        reason = last_error(self.log, self._log_start)
        return f"{how}: {reason}" if reason and status >= 0 else how

    def look_after(self) -> None:
        """One look at a program that has been ready once: started again, after a pause, when it has ended."""
        if self._due is not None:
            if time.monotonic() >= self._due:
                self.start()
            return
        end = self.end()
        if end is not None:
            if self.is_ready and time.monotonic() - self._since > STEADY_SECONDS:
                self._failures = 0
            pause = min(LONGEST_PAUSE_SECONDS, 2.0**self._failures)
            self._failures, self.is_ready, self._due = self._failures + 1, False, time.monotonic() + pause
            logger.warning("%s %s; it starts again in %.0f s", self.program.name, end, pause)
        elif not self.is_ready and self.program.ready():
            self.is_ready, self._since = True, time.monotonic()
            logger.info("%s is back", self.program.name)
            self.program.returned()

    def signal(self, number: int) -> None:
        """To the whole process group; nothing when that is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Children:
    """Programs that run together; as a context manager, all of them are stopped at the end.

    Args:
        logs: existing folder.
    """

    def __init__(self, logs: Path) -> None:
        self._logs, self._running = logs, list[_Running]()
        (logs / "llava").mkdir(exist_ok=True)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, programs: Sequence[Program]) -> None:
        """Starts them at once and waits until each is ready.

        Raises:
            StartFailed: one ended.
        """
        new: list[_Running] = []
        for program in programs:
            new.append(_Running(program, self._logs))
            self._running.append(new[-1])  # at once: Ctrl-C may come between two
        began = told = time.monotonic()
        while waiting := [entry for entry in new if not entry.is_ready]:
            for entry in waiting:
                entry.is_ready = entry.program.ready()
            for entry in self._running:
                if (end := entry.end()) is not None:
                    raise StartFailed(f"{entry.program.name} {end}")
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                names = ", ".join(entry.program.name for entry in waiting)
                logger.info("still waiting for %s after %.0f s", names, told - began)
            time.sleep(LOOK_SECONDS)

    def watch(self) -> None:
        """Looks after all of them until an exception, such as Ctrl-C, ends it."""
        while True:
            self.look()
            time.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """One look: what has ended starts again after its pause, and is told of when it answers."""
        for entry in self._running:
            entry.look_after()

    def stop(self) -> None:
        """Ends all of them and waits until they are gone."""
        for entry in self._running:
            entry.signal(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        for entry in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                entry.process.wait(max(0.0, end - time.monotonic()))
        for entry in self._running:
            entry.signal(signal.SIGKILL)
            entry.process.wait()
        self._running.clear()


def last_error(log: Path, start: int = 0) -> str:
    """The last line behind byte `start` that names an error, else the last line, without LLaVA's prefix; or nothing."""
    with log.open("rb") as source:
        source.seek(max(start, log.stat().st_size - _TAIL))
        text = source.read().decode(errors="replace")
    lines = [_LOG_PREFIX.sub("", " ".join(line.split())) for line in text.splitlines() if line.strip()]
    return ([line for line in lines if _ERROR.search(line)] or lines or [""])[-1][:300]
