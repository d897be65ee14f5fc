"""A PostgreSQL server of the tests' own; skipped with the reason where it cannot be had."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hospital_parts import hospital_part


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Its URL; an empty database in UTF-8."""
    pytest.importorskip("psycopg", reason="the extra [hospital] is not installed")
    with hospital_part("postgres") as address:
        yield address["POSTGRES_URL"]
