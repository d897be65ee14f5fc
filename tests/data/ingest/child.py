"""Ingests in processes of their own that may be killed: forked from one that has imported everything already."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDERS = (str(Path(__file__).parent), str(Path(__file__).parents[1] / "dicom"))


class Starter:
    """A Python that forks a child for each ingest; one child at a time."""

    def __enter__(self) -> Starter:
        folders = os.pathsep.join([*FOLDERS, *sys.path])
        self._python = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": folders},
        )
        assert self._line() == "ready"
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._python.stdin is not None
        self._python.stdin.close()
        try:
            self._python.wait(60)
        except subprocess.TimeoutExpired:  # a busy machine
            self._python.kill()

    def start(self, arguments: Sequence[str], log: Path, *, kill_at: int = 0, file_bytes: int = 0) -> Child:
        """Start an ingest.

        Args:
            arguments: of the command.
            log: gets what it prints.
            kill_at: it kills itself as it opens, renames or removes a file of the output for the so-manieth time.
            file_bytes: no file may grow larger, as on a full disk.
        """
        given = {"arguments": list(arguments), "log": str(log), "kill_at": kill_at, "file_bytes": file_bytes}
        assert self._python.stdin is not None
        self._python.stdin.write(json.dumps(given) + "\n")
        self._python.stdin.flush()
        return Child(int(self._line()), log, self)

    def _line(self) -> str:
        assert self._python.stdout is not None
        return self._python.stdout.readline().strip()


@dataclass
class Child:
    """An ingest that runs."""

    pid: int
    log: Path
    _starter: Starter

    def wait(self) -> int:
        """Its exit status; negative: the signal that ended it."""
        return int(self._starter._line())

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    @property
    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def _serve() -> None:
    import imagehash  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sqlalchemy  # noqa: F401

    import llava_ultra_ext.cli
    import llava_ultra_ext.data.ingest.command  # noqa: F401
    from llava_ultra_ext.data.deidentify.names import name_finder

    name_finder()
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _child(json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _child(given: dict[str, Any]) -> None:
    from llava_ultra_ext.cli import main

    os.setsid()
    log = os.open(given["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if given["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (given["file_bytes"],) * 2)
    if given["kill_at"]:
        _arm(given["kill_at"], given["arguments"][given["arguments"].index("--out") + 1])
    status = 70
    try:
        status = main(["ingest", *given["arguments"]])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _arm(kill_at: int, out: str) -> None:
    left = kill_at

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(out):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    _serve()
