"""A secret, and a started Python in which an ingest can be killed, for the tests of `llava-ultra ingest`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "dicom")]

for _name in ("pydicom", "pyarrow", "sqlalchemy", "imagehash", "jieba", "matplotlib"):
    pytest.importorskip(_name, reason="llava_ultra_ext[hospital] is not installed")

from child import Starter  # noqa: E402
from ingest_case import Hospital, secret_file  # noqa: E402


@pytest.fixture(scope="session")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return secret_file(tmp_path_factory.mktemp("secret") / "hospital.secret")


@pytest.fixture
def hospital(tmp_path: Path, secret: Path) -> Hospital:
    """An empty one."""
    return Hospital(tmp_path / "hospital", secret)


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """Starts ingests as processes of their own, without Python's start."""
    with Starter() as made:
        yield made
