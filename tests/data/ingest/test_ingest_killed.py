"""An ingest that is killed goes on, as often as that may be, and what it leaves is that of an unbroken one."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from child import Starter
from ingest_case import Hospital, Ingested, contents, ward

EXAMS, PICTURES = 30, 2


def progress(out: Path) -> int:
    """Grows with every picture, every finished exam, and the files at the end."""
    ledger = out / "work" / "ledger.sqlite-wal"
    pages = ledger.stat().st_size // 4096 if ledger.exists() else 0
    return pages + sum(len(names) for _, _, names in os.walk(out))


def finished(out: Path) -> int:
    with contextlib.closing(sqlite3.connect(out / "work" / "ledger.sqlite", timeout=5)) as ledger:
        return ledger.execute("SELECT count(*) FROM exams").fetchone()[0]


def no_temporary_files(out: Path) -> None:
    assert [path.name for path in out.rglob("*") if path.name.startswith(".") or path.name.endswith(".part")] == []


def waited(done: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)


def test_killed_at_ten_moments_and_started_again(hospital: Hospital, starter: Starter, tmp_path: Path) -> None:
    ward(hospital, EXAMS, PICTURES)
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    assert starter.start(hospital.arguments(whole), log).wait() == 0
    unbroken = contents(whole)
    assert len([name for name in unbroken if name.endswith(".png")]) == EXAMS * PICTURES + 1  # and the card's
    chance, arguments, kept = random.Random(20240305), hospital.arguments(broken), []
    moments = [chance.randint(1, 25) for _ in range(10)]
    for number, moment in enumerate(moments):
        if number % 2:  # as it opens, renames or removes a file
            assert starter.start(arguments, log, kill_at=moment).wait() == -9
        else:  # wherever it is
            before = progress(broken)
            child = starter.start(arguments, log)
            waited(lambda before=before, moment=moment: progress(broken) > before + moment)
            assert child.kill() == -9
        kept.append(finished(broken) if (broken / "work" / "ledger.sqlite").exists() else 0)
    assert kept == sorted(kept) and kept[-1] > kept[0]  # no run began anew
    assert starter.start(arguments, log).wait() == 0
    assert contents(broken) == unbroken
    assert len(Ingested(broken).exams) == EXAMS == finished(broken)
    no_temporary_files(broken)


def test_killed_while_the_lists_are_written(hospital: Hospital, starter: Starter, tmp_path: Path) -> None:
    ward(hospital, 3)
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    assert starter.start(hospital.arguments(whole), log).wait() == 0
    assert starter.start(hospital.arguments(broken), log).wait() == 0
    for moment in range(2, 90, 5):  # nothing is left to do but to write the lists, each time anew
        status = starter.start(hospital.arguments(broken), log, kill_at=moment).wait()
        if status == 0:
            break
        assert status == -9
    assert moment > 15
    assert contents(broken) == contents(whole)
    no_temporary_files(broken)


def test_workers_end_with_a_run_that_was_killed(hospital: Hospital, starter: Starter, tmp_path: Path) -> None:
    ward(hospital, 12)
    out, log = tmp_path / "out", tmp_path / "log"
    child = starter.start(hospital.arguments(out, workers="2"), log)
    waited(lambda: (out / "images").exists(), 200)
    workers = psutil.Process(child.pid).children(recursive=True)
    assert len(workers) >= 2 and child.kill() == -9
    _, alive = psutil.wait_procs(workers, timeout=60)
    for one in alive:
        one.kill()
    assert not alive


def test_a_worker_that_is_killed_ends_the_run_and_the_next_finishes(
    hospital: Hospital, starter: Starter, tmp_path: Path
) -> None:
    """Two workers, one of them killed; and two workers make the same bytes as one."""
    ward(hospital, 12)
    whole, out, log = tmp_path / "whole", tmp_path / "out", tmp_path / "log"
    assert starter.start(hospital.arguments(whole), log).wait() == 0
    child = starter.start(hospital.arguments(out, workers="2"), log)
    waited(lambda: (out / "images").exists(), 200)
    workers = [one for one in psutil.Process(child.pid).children() if "spawn_main" in " ".join(one.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    assert child.wait() == 1
    assert "a worker was killed" in child.printed and "Finished exams are kept" in child.printed
    assert "Traceback" not in child.printed
    assert starter.start(hospital.arguments(out, workers="2"), log).wait() == 0
    assert contents(out) == contents(whole)
    no_temporary_files(out)
