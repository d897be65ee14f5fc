"""The commands of the ablation as child processes: what each cost, and what is kept when a run is cut off."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.whole_file import write_whole
from processes import child, failure


@dataclass(frozen=True)
class Usage:
    """What a command took: wall seconds, processor seconds, largest resident memory in MB."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def run(title: str, command: Sequence[object], log: Path, env: Mapping[str, str] | None = None) -> Usage:
    """Runs a command to its end; its output goes to `log`.

    Raises:
        StepFailed: its exit status is not 0.
    """
    start = time.monotonic()
    with child([str(part) for part in command], log, env) as process:
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise failure(title, f"exit status {os.waitstatus_to_exitcode(status)}", log)
    return Usage(time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def write_json(path: Path, content: Any) -> None:
    """Writes a file as a whole: a reader sees the old one or the new one."""
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Records what a folder was made with; a second start must say the same.

    Raises:
        ValueError: the folder was made with other settings.
    """
    wanted = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, wanted)
        return
    found = read_json(path)
    changed = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if changed:
        what = "; ".join(f"{key} {found.get(key)} there, {wanted.get(key)} now" for key in changed[:3])
        raise ValueError(
            f"{path.parent}: was computed with other settings ({what}). Results of different settings are not mixed: "
            "remove that folder to compute it again, or give another --out."
        )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While one run works in a folder, a second one is refused: both would train the same row into the same files.

    Raises:
        ValueError: another run works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder}: another run works there. Wait for it, or give another --out.") from None
        yield
