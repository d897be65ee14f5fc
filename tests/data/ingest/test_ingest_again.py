"""The same command again: nothing changes, changed reports replace their records, and what may not be mixed is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from child import Starter
from ingest_case import Hospital, Ingested, contents, secret_file, speckle, ward

from llava_ultra_ext.data.ingest import command
from llava_ultra_ext.data.ingest.ledger import Ledger
from llava_ultra_ext.data.ingest.one_exam import Outcome, Settings, Task


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Exams in the order in which they are done."""
    exams: list[str] = []
    ingest_exam = command.ingest_exam

    def noted(task: Task, settings: Settings) -> Outcome:
        exams.append(task.exam)
        return ingest_exam(task, settings)

    monkeypatch.setattr(command, "ingest_exam", noted)
    return exams


def test_again_and_with_changed_reports(hospital: Hospital, tmp_path: Path, done: list[str]) -> None:
    out = tmp_path / "out"
    exam = [hospital.exam(f"ACC{number:04d}") for number in range(4)]
    ward(hospital, 4)
    first = hospital.ingest(out)
    before, times = contents(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert sorted(done) == sorted(exam)
    done.clear()
    hospital.ingest(out)
    assert done == [] and contents(out) == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.name != "card.png")

    assert first.exams[exam[0]]["findings"] != "胰腺正常。"
    hospital.rows[0] |= {"findings": "胰腺正常。", "version": "2"}  # changed
    hospital.rows[1] |= {"patient_id": "PAT0099"}  # now another patient's than the pictures
    hospital.report("ACC0002", findings="。", version="2")  # withdrawn
    changed = hospital.ingest(out)
    assert sorted(done) == sorted(exam[:2])
    assert sorted(changed.exams) == sorted([exam[0], exam[3]])
    assert changed.exams[exam[0]]["findings"] == "胰腺正常。" and changed.exams[exam[3]] == first.exams[exam[3]]
    assert changed.reasons("quarantine") == [(exam[1], "several_patients")]
    assert {path.parent.name for path in (out / "images").rglob("*.png")} == {exam[0], exam[3]}
    hospital.ingest(tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_other_settings_or_another_secret_or_another_run_are_refused(hospital: Hospital, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ward(hospital, 1)
    hospital.ingest(out)
    before = contents(out)
    sites = tmp_path / "sites.yaml"
    sites.write_text("prostate:\n  name: 前列腺\n  words: [摄护腺]\n", encoding="utf-8")
    other = secret_file(tmp_path / "other", "f" * 64)
    for instead, message in (
        ({"frames_per_cine": "3"}, "frames_per_cine 8 there, 3 here"),
        ({"picture_format": "jpg"}, 'picture_format "png" there, "jpg" here'),
        ({"sites": str(sites)}, "sites null there"),
        ({"secret": str(other)}, "settings: secret "),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            command.main(hospital.arguments(out, **instead))
        assert "Give those, or another folder." in str(caught.value) and str(out) in str(caught.value)
        assert "f" * 20 not in str(caught.value) and str(sites) not in str(caught.value)
    card = {**Ingested(out).card["settings"], "secret": hospital.key.pseudonym("secret", "")}
    at_work = Ledger(out / command.LEDGER, card)
    with pytest.raises(ValueError, match="another ingest is writing there"):
        command.main(hospital.arguments(out))
    at_work.close()
    assert contents(out) == before
    (out / command.LEDGER).write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match="is no ledger of an ingest"):
        command.main(hospital.arguments(out))


def test_a_full_disk_keeps_what_is_finished(hospital: Hospital, starter: Starter, tmp_path: Path) -> None:
    ward(hospital, 2)
    hospital.report("ACC9999", patient_id="PAT9")
    noise = np.random.default_rng(0).integers(30, 220, (400, 400)).astype(np.uint8)
    hospital.picture("ACC9999", "PAT9", noise, SequenceOfUltrasoundRegions=None)
    hospital.save()
    out, log = tmp_path / "out", tmp_path / "log"
    child = starter.start(hospital.arguments(out), log, file_bytes=100_000)
    assert child.wait() == 1
    assert "File too large" in child.printed and ".png" in child.printed and "Traceback" not in child.printed
    assert not (out / "exams.json").exists()
    assert sorted(path.name for path in (out / "images").rglob("*") if path.is_file()) == sorted(
        ["0000.png", "0001.png"] * 2
    )
    found = hospital.ingest(out)
    assert len(found.exams) == 3
    hospital.ingest(tmp_path / "fresh")
    first, second = contents(out), contents(tmp_path / "fresh")
    assert first == second
    child = starter.start(hospital.arguments(tmp_path / "tiny"), log, file_bytes=6_000)  # not even the ledger
    assert child.wait() == 1
    assert "ledger.sqlite: cannot be" in child.printed and "Traceback" not in child.printed


def test_a_folder_that_cannot_be_made_is_named(hospital: Hospital, tmp_path: Path) -> None:
    ward(hospital, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/out"):
        command.main(hospital.arguments(tmp_path / "file" / "out"))


def test_pictures_that_a_killed_run_left_are_not_kept(hospital: Hospital, tmp_path: Path) -> None:
    ward(hospital, 1)
    exam, out = hospital.exam("ACC0000"), tmp_path / "out"
    folder = out / "images" / exam[:2] / exam
    folder.mkdir(parents=True)
    for name in ("0007.png", ".0001.png.4711"):
        (folder / name).write_bytes(b"torn")
    (out / ".ingest.json.4711").write_bytes(b"torn")
    hospital.ingest(out)
    assert sorted(path.name for path in folder.iterdir()) == ["0000.png", "0001.png"]
    assert not (out / ".ingest.json.4711").exists()


def test_a_list_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    from llava_ultra_ext.data.list_file import ListFile

    written = ListFile(tmp_path / "rows.jsonl")
    written._file.close()
    written._file = open("/dev/full", "w")  # noqa: SIM115
    written.add({"row": 1})
    written.drop()
    assert list(tmp_path.iterdir()) == []


def test_patients_with_one_picture_and_another_noise_are_two(hospital: Hospital, tmp_path: Path) -> None:
    """Near-duplicates are looked for within an exam, never across patients."""
    for number in range(2):
        hospital.report(f"N{number}", patient_id=f"P{number}")
        hospital.picture(f"N{number}", f"P{number}", speckle(1))
    found = hospital.ingest(tmp_path / "out")
    assert [one["near_duplicates"] for one in found.exams.values()] == [[None], [None]]
    assert found.card["patients"] == 2
