"""A PostgreSQL server of the tests' own; skipped with the reason where it cannot be had."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "hospital_parts.sh"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Its URL; an empty database in UTF-8."""
    pytest.importorskip("psycopg", reason="the extra [hospital] is not installed")
    folder = Path(tempfile.mkdtemp()) / "parts"
    started = subprocess.run(["bash", SCRIPT, "start", folder, "postgres"], capture_output=True, text=True)
    if started.returncode:
        pytest.skip(started.stderr.strip().splitlines()[-1] if started.stderr else "PostgreSQL did not start")
    try:
        address = dict(line.split("=", 1) for line in started.stdout.splitlines())
        yield address["POSTGRES_URL"]
    finally:
        subprocess.run(["bash", SCRIPT, "stop", folder], capture_output=True, check=False)
        folder.parent.rmdir()
