"""A real Orthanc with DICOMweb, filled with real ultrasound; skipped with the reason where it cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hospital_parts import hospital_part


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

    with hospital_part("orthanc") as address:
        disc = tmp_path_factory.mktemp("disc")
        held = make_studies(disc)
        login = (address["ORTHANC_USER"], address["ORTHANC_PASSWORD"])
        for path in sorted(disc.rglob("IM*")):
            answer = requests.post(address["ORTHANC_REST"] + "/instances", path.read_bytes(), auth=login, timeout=60)
            answer.raise_for_status()
        yield Orthanc(address, held)
