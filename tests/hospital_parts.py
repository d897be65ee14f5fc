"""The hospital's parts for tests: what scripts/hospital_parts.sh starts, stopped again at the end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "hospital_parts.sh"


@contextmanager
def hospital_part(name: str) -> Iterator[dict[str, str]]:
    """``postgres`` or ``orthanc``, with what the script prints; skips with the reason where it cannot be had."""
    folder = Path(tempfile.mkdtemp()) / "parts"
    started = subprocess.run(["bash", SCRIPT, "start", folder, name], capture_output=True, text=True)
    if started.returncode:
        pytest.skip(started.stderr.strip().splitlines()[-1] if started.stderr else f"{name} did not start")
    try:
        yield dict(line.split("=", 1) for line in started.stdout.splitlines())
    finally:
        stopped = subprocess.run(["bash", SCRIPT, "stop", folder], capture_output=True, text=True)
        if stopped.returncode:
            print(stopped.stderr, file=sys.stderr)
        folder.parent.rmdir()
