"""Programs that run together: one that cannot start is named, one that ends starts again, none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from run_llava import environment

from llava_ultra_ext.serve import children
from llava_ultra_ext.serve.children import Children, Program, StartFailed, last_error

STEADY = "import time, pathlib\npathlib.Path('{name}').write_text('up')\ntime.sleep(600)\n"
"""A program that says that it is there, in the folder where LLaVA's would write their logs."""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Program]:
    """A program with this source."""
    modules = tmp_path / "modules"
    modules.mkdir()
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"] + os.pathsep + str(modules))

    def make(name: str, source: str = STEADY, **more: object) -> Program:
        (modules / f"{name}.py").write_text(source.replace("{name}", name), encoding="utf-8")
        said = tmp_path / "logs" / "llava" / name
        return Program(name, name, [], more.pop("ready", said.is_file), **more)  # type: ignore[arg-type]

    return make


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Children]:
    (tmp_path / "logs").mkdir()
    with Children(tmp_path / "logs") as running:
        yield running


def processes(of: int) -> list[psutil.Process]:
    """Programs below a process; servers of other tests run below this one too."""
    found = psutil.Process(of).children(recursive=True)
    return [process for process in found if "llava_ultra_ext.serve.child" in process.cmdline()]


def test_one_that_cannot_start_is_named_with_its_error_and_the_rest_ends(
    make: Callable[..., Program], running: Children
) -> None:
    broken = make("broken", "import sys\nprint('before', flush=True)\nraise OSError('no weights there')\n")
    with pytest.raises(StartFailed, match=r"^broken ended with exit status 1: OSError: no weights there$"):
        running.start([make("steady"), broken])
    alive = processes(os.getpid())
    assert len(alive) == 1  # the other one, until the caller stops it
    running.stop()
    assert not alive[0].is_running()


def test_one_that_ended_starts_again_after_a_pause_that_grows(
    make: Callable[..., Program], running: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(children.logger, "warning", lambda text, *rest: pauses.append(rest[-1]))
    back: list[float] = []
    running.start([make("steady", returned=lambda: back.append(time.monotonic()))])
    for life in (1, 2):
        (tmp_path / "logs" / "llava" / "steady").unlink()
        [process] = processes(os.getpid())
        process.kill()
        process.wait(10)
        killed = time.monotonic()
        while len(back) < life and time.monotonic() < killed + 20:
            running.look()
            time.sleep(0.02)
        assert back[-1] - killed >= pauses[-1] == 2 ** (life - 1)
    assert len(back) == 2


def test_they_end_with_a_launcher_that_was_killed(tmp_path: Path, make: Callable[..., Program]) -> None:
    make("steady")
    launcher = (
        "import pathlib, sys\nfrom llava_ultra_ext.serve.children import Children, Program\n"
        "logs = pathlib.Path(sys.argv[1])\nlogs.mkdir()\n"
        "running, ready = Children(logs), (logs / 'llava' / 'steady').is_file\n"
        "running.start([Program(name, 'steady', [], ready) for name in 'ab'])\n"
        "print('up', flush=True)\nrunning.watch()\n"
    )
    with subprocess.Popen([sys.executable, "-c", launcher, str(tmp_path / "logs")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        started = processes(process.pid)
        assert len(started) == 2
        process.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(started, timeout=10)
    assert len(gone) == 2 and not alive


def test_the_last_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "ValueError: of an earlier start\n"
        "2024-01-01 10:00:00 | ERROR | stderr | ValueError:  two   blanks\n"
        "2024-01-01 10:00:00 | INFO | stdout | bye\n"
    )
    assert last_error(log) == "ValueError: two blanks"
    assert last_error(log, log.stat().st_size) == ""
    assert last_error(log, log.stat().st_size - 4) == "bye"
