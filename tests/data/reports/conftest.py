"""A PostgreSQL server of the tests' own, where Debian's programs are."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def _as_user() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Its URL; a cluster in a temporary folder, in GB18030's neighbourhood: UTF-8 with a Chinese-minded collation."""
    pytest.importorskip("psycopg", reason="the extra [hospital] is not installed")
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    make = [programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    start = [programs / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "-t", "300", "start"]
    stop = [programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
    try:
        for command in (make, start):
            done = subprocess.run(
                [*_as_user(), *map(str, command)], capture_output=True, text=True, cwd="/", timeout=400
            )
            if done.returncode:
                pytest.skip(f"PostgreSQL does not start here: {done.stderr.strip().splitlines()[-1:]}")
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*_as_user(), *map(str, stop)], capture_output=True, cwd="/", check=False)
        shutil.rmtree(folder, ignore_errors=True)
