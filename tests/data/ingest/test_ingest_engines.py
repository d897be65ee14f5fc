"""A Ray cluster gives the bytes of one process. Of several processes: `test_ingest_killed`."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingest_case import Hospital, contents, ward

from llava_ultra_ext.data.ingest import engines


def test_a_ray_cluster_of_this_machine_gives_the_same(hospital: Hospital, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="llava_ultra_ext[ray] is not installed")
    ward(hospital, 4)
    hospital.report("ACC9", patient_id="PAT9")  # its picture is cut off: an outcome without a record
    cut = hospital.picture("ACC9", "PAT9")
    cut.write_bytes(cut.read_bytes()[:-9])
    hospital.ingest(tmp_path / "one")
    try:
        hospital.ingest(tmp_path / "ray", engine="ray", workers="2")
    except RuntimeError as error:
        if "does not start on this machine" not in str(error):
            raise
        pytest.skip("Ray's processes do not come up in its own 30 seconds: the machine is too busy")
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="llava_ultra_ext[ray] is not installed")

    def init(**options: object) -> None:
        raise Exception("timed out")  # as Ray does, of no kind of its own

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match=r"the cluster at pacs:6379 does not answer \(timed out\)"):
        list(engines.run(abs, [1], "ray", 1, "pacs:6379"))


def test_tasks_are_taken_as_workers_become_free() -> None:
    taken: list[int] = []

    def tasks() -> list[int]:
        for number in range(50):
            taken.append(number)
            yield number

    results = engines.run(abs, tasks(), "processes", 2)
    assert next(results) in range(2 * engines.WAITING)
    assert len(taken) <= 2 * engines.WAITING
    assert len(list(results)) == 49


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(ValueError, match="--engine dask: allowed are processes, ray"):
        engines.run(abs, [], "dask", 1)
