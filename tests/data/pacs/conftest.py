"""A real Orthanc with DICOMweb, filled with real ultrasound; skipped with the reason where it cannot be had."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "hospital_parts.sh"


class Orthanc(NamedTuple):
    """Where it is, and what it holds: accession number -> SOP Instance UIDs of its ultrasound."""

    address: dict[str, str]
    held: dict[str, list[str]]


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    pytest.importorskip("pynetdicom", reason="llava_ultra_ext[hospital] is not installed")
    pytest.importorskip("data_store", reason="the files come with pydicom-data")
    import requests
    from real_studies import make_studies

    folder = Path(tempfile.mkdtemp()) / "parts"
    started = subprocess.run(["bash", SCRIPT, "start", folder, "orthanc"], capture_output=True, text=True)
    if started.returncode:
        pytest.skip(started.stderr.strip().splitlines()[-1] if started.stderr else "Orthanc did not start")
    try:
        address = dict(line.split("=", 1) for line in started.stdout.splitlines())
        disc = tmp_path_factory.mktemp("disc")
        held = make_studies(disc)
        login = (address["ORTHANC_USER"], address["ORTHANC_PASSWORD"])
        for path in sorted(disc.rglob("IM*")):
            answer = requests.post(address["ORTHANC_REST"] + "/instances", path.read_bytes(), auth=login, timeout=60)
            answer.raise_for_status()
        yield Orthanc(address, held)
    finally:
        stopped = subprocess.run(["bash", SCRIPT, "stop", folder], capture_output=True, text=True)
        if stopped.returncode:
            print(stopped.stderr, file=sys.stderr)
        folder.parent.rmdir()
