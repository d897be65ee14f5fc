"""Reports and studies meet; everything that does not is listed with its reason and counted once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from ingest_case import FINDINGS, HEIGHT, WIDTH, Hospital, Ingested, counted, moved, speckle
from made_file import made, write
from PIL import Image


def fill(hospital: Hospital) -> Hospital:
    """One exam of every kind."""
    report, picture = hospital.report, hospital.picture
    # An ordinary exam: file names, series and numbers run against each other; the second is nearly the first.
    report(
        "A1", patient_id="P1", patient_name="欧阳建华", exam_date="2024-03-05", site="双侧乳腺、甲状腺", version="2",
        history="患者欧阳建华，2023-12-31外院检查。", findings="右乳见低回声结节，2024年3月1日初见。欧阳建华。",
        diagnosis="复查，电话13812345678。",
    )  # fmt: skip
    picture("A1", "P1", speckle(1001), SeriesNumber=2, InstanceNumber=1)
    picture("A1", "P1", speckle(1002, noise=1), SeriesNumber=1, InstanceNumber=10)
    picture("A1", "P1", speckle(1002), SeriesNumber=1, InstanceNumber=9)
    report("A2", patient_id="P2")  # no pictures
    picture("A3", "P3")  # no report
    report("A4", site="甲状腺")  # two studies; the patient is known from the files only
    picture("A4", "P1", study="2.25.40", InstanceNumber=2)
    picture("A4", "P1", study="2.25.41", InstanceNumber=1, StudyDate="")
    report("A5", patient_id="P5")  # of two patients
    picture("A5", "P6")
    report("A6")  # of nobody
    picture("A6", "")
    report("A7", patient_id="P7")  # another modality only
    picture("A7", "P7", Modality="CT")
    report("A8", patient_id="P8", exam_date="2024-02-29")  # and beside
    picture("A8", "P8")
    picture("A8", "P8", Modality="SR")
    report("A9", patient_id="P9")  # one file of two is cut off; the banner leaves nothing of a third
    picture("A9", "P9")
    cut = picture("A9", "P9")
    cut.write_bytes(cut.read_bytes()[:-50])
    picture("A9", "P9", np.zeros((HEIGHT, WIDTH), np.uint8), SequenceOfUltrasoundRegions=None)
    report("A10", patient_id="P10")  # nothing but a file that is cut off
    cut = picture("A10", "P10")
    cut.write_bytes(cut.read_bytes()[:-50])
    report("A11", patient_id="P11", findings="旧版本。", version="1")
    report("A11", patient_id="P11", findings="新版本，肝脏大小正常。", version="2")
    copied = picture("A11", "P11")
    (copied.parent / "IM0000copy").write_bytes(copied.read_bytes())
    report("A12", patient_id="P12", findings="。")  # cannot be used, so that its pictures have no report
    picture("A12", "P12")
    report("", patient_id="P13")
    report("A14", patient_id="P14", exam_date="neulich")
    (copied.parent / "notes.txt").write_text("no DICOM")
    return hospital


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, secret: Path) -> tuple[Hospital, Ingested]:
    folder = tmp_path_factory.mktemp("joining")
    hospital = fill(Hospital(folder / "hospital", secret))
    return hospital, hospital.ingest(folder / "out")


def test_each_report_is_an_exam_or_listed(done: tuple[Hospital, Ingested]) -> None:
    hospital, found = done
    exam = hospital.exam
    assert list(found.exams) == sorted(exam(number) for number in ("A1", "A4", "A8", "A9", "A11"))
    assert found.reasons("refused_reports") == sorted(
        [(exam("A11"), "superseded"), (exam("A12"), "no_findings"), ("", "no_accession_number"),
         (exam("A14"), "bad_exam_date")]
    )  # fmt: skip
    unmatched = found.lines("unmatched")
    assert sorted(one["exam"] for one in unmatched if "exam" in one) == sorted([exam("A2"), exam("A7")])
    studies = [hospital.key.pseudonym("study", f"2.25.77.{int.from_bytes(name, 'big')}") for name in (b"A3", b"A12")]
    assert sorted(one["study"] for one in unmatched if "study" in one) == sorted(studies)
    assert found.lines("incomplete") == []
    reports = found.card["reports"]
    refused = {"bad_exam_date": 1, "no_accession_number": 1, "no_findings": 1, "superseded": 1}
    assert reports == {"rows": 14, "usable": 10, "refused": refused}
    assert found.card["unmatched"] == {"exam": 2, "study": 2}
    of = found.card
    assert reports["usable"] == of["unmatched"]["exam"] + of["exams"] + of["exams_without_frames"]


def test_each_file_is_counted_once(done: tuple[Hospital, Ingested]) -> None:
    hospital, found = done
    of = found.card
    assert of["folder"] == {"copy": 1, "not_dicom": 1, "of_exams": 13, "other_modality": 2, "without_report": 2}
    assert sum(of["folder"].values()) == len(list((hospital.folder / "images").iterdir()))
    assert of["files"] == of["folder"]["of_exams"]
    assert of["files_kept_back"] == 2 + 1 + 2  # of A9, of A10, of A5 and A6
    assert of["files"] - of["files_kept_back"] == of["frames"] == sum(len(one["image"]) for one in found.exams.values())


def test_what_is_kept_back_has_its_reason(done: tuple[Hospital, Ingested]) -> None:
    hospital, found = done
    exam, kept = hospital.exam, found.lines("quarantine")
    assert found.reasons("quarantine") == sorted(
        [(exam("A5"), "several_patients"), (exam("A6"), "no_patient_id"), (exam("A9"), "broken_pixels"),
         (exam("A9"), "no_scan_region"), (exam("A10"), "broken_pixels")]
    )  # fmt: skip
    assert counted(kept, "reason") == found.card["kept_back"]
    assert (found.card["exams"], found.card["exams_without_frames"], found.card["patients"]) == (5, 3, 4)
    of_files = {one["instance"] for one in kept if one["exam"] == exam("A9")}
    assert of_files == {hospital.key.pseudonym("instance", f"2.25.78.{number}") for number in (13, 14)}
    for number in ("A5", "A6", "A10"):
        assert not (found.out / "images" / exam(number)[:2] / exam(number)).exists()


def test_values_of_a_record(done: tuple[Hospital, Ingested]) -> None:
    hospital, found = done
    patient, exam = hospital.key.patient("P1"), hospital.exam("A1")
    record = found.exams[exam]
    assert record == {
        "exam_id": exam,
        "patient": patient.pseudonym,
        "exam_date": moved("2024-03-05", patient.shift_days),
        "site": "乳腺、甲状腺",
        "modality": "ultrasound",
        "image": [f"images/{exam[:2]}/{exam}/{number:04d}.png" for number in range(3)],
        "near_duplicates": [None, 0, None],
        "findings": f"右乳见低回声结节，{chinese(moved('2024-03-01', patient.shift_days))}初见。[姓名]。",
        "diagnosis": "复查，电话[电话]。",
        "history": f"患者[姓名]，{moved('2023-12-31', patient.shift_days)}外院检查。",
    }
    for name, seed, noise in zip(record["image"], (1002, 1002, 1001), (0, 1, 0), strict=True):
        with Image.open(found.out / name) as picture:
            assert (np.asarray(picture) == speckle(seed, noise)[20:]).all()


def test_patient_and_date_come_from_the_files_where_the_report_has_none(done: tuple[Hospital, Ingested]) -> None:
    hospital, found = done
    patient, record = hospital.key.patient("P1"), found.exams[hospital.exam("A4")]
    assert (record["patient"], record["exam_date"]) == (patient.pseudonym, moved("2024-03-05", patient.shift_days))
    assert (record["findings"], record["history"], len(record["image"])) == (FINDINGS, "", 2)
    with Image.open(found.out / record["image"][0]) as picture:  # the second study's number is the lower one
        assert (np.asarray(picture) == speckle(6)[20:]).all()
    leap = hospital.key.patient("P8").shift_days
    assert found.exams[hospital.exam("A8")]["exam_date"] == moved("2024-02-29", leap)
    assert found.exams[hospital.exam("A11")]["findings"] == "新版本，肝脏大小正常。"


def test_parquet_and_audit_say_the_same(done: tuple[Hospital, Ingested]) -> None:
    hospital, found = done
    assert parquet.read_table(found.out / "exams.parquet").to_pylist() == list(found.exams.values())
    audit = {(one["exam"], one["step"]): one["removed"] for one in found.lines("audit")}
    assert audit[hospital.exam("A1"), "text"] == {"date": 2, "name": 2, "phone": 1}
    assert {exam for exam, step in audit if step == "pixels"} == set(found.exams)


def test_dates_choose_studies_of_a_folder(tmp_path: Path, hospital: Hospital) -> None:
    for number, day in enumerate(("20231231", "20240101", "20240131", "20240201", "")):
        hospital.report(f"D{number}", patient_id=f"P{number}")
        hospital.picture(f"D{number}", f"P{number}", StudyDate=day)
    found = hospital.ingest(tmp_path / "out", "--dates", "2024-01-01", "2024-01-31")
    assert set(found.exams) == {hospital.exam("D1"), hospital.exam("D2")}
    assert found.card["folder"] == {"of_exams": 2, "other_date": 3}
    assert found.card["unmatched"] == {"exam": 3, "study": 0}


def test_numbers_that_share_a_pseudonym_are_not_mixed(tmp_path: Path, hospital: Hospital) -> None:
    """Full-width forms and spaces make no difference to a pseudonym, so only the plain form may name an exam."""
    for number, text in (("US1", "肝脏正常。"), ("ＵＳ１", "脾脏正常。"), ("US1\u00a0", "胰腺正常。")):
        hospital.report(number, patient_id="P1", findings=text)
    hospital.picture("US1", "P1")
    found = hospital.ingest(tmp_path / "out")
    assert [one["findings"] for one in found.exams.values()] == ["肝脏正常。"]
    assert [one["reason"] for one in found.lines("refused_reports")] == ["bad_accession_number"] * 2
    assert found.lines("unmatched") == []


def test_a_cine_gives_frames_and_its_still_parts_are_marked(tmp_path: Path, hospital: Hospital) -> None:
    cine = np.stack([speckle(seed) for seed in (1, 1, 2, 2, 2, 2, 3, 3)])
    hospital.report("C1", patient_id="P1")
    hospital.picture("C1", "P1", cine, NumberOfFrames=8)
    found = hospital.ingest(tmp_path / "out", frames_per_cine="4")
    assert found.exams[hospital.exam("C1")]["near_duplicates"] == [None, None, 1, None]
    again = hospital.ingest(tmp_path / "changes", frames_per_cine="4", cine_rule="change", picture_format="jpg")
    (record,) = again.exams.values()
    assert record["near_duplicates"] == [None] * 3 and all(name.endswith(".jpg") for name in record["image"])


def test_files_of_an_unnamed_kind_are_not_lost(tmp_path: Path, hospital: Hospital) -> None:
    """A file without instance number, one with text in its place, and one with an id that is nothing but padding."""
    hospital.report("N1", patient_id="P1")
    for _ in range(2):
        hospital.picture("N1", "P1", InstanceNumber=None, SeriesNumber=None)
    folder = hospital.folder / "images"
    odd = made(speckle(9), AccessionNumber="N1", StudyInstanceUID="2.25.9", SOPInstanceUID="2.25.91", PatientID="P1")
    write(folder / "odd", odd)
    data = (folder / "odd").read_bytes()
    (folder / "odd").write_bytes(data.replace(b"\x02\x00P1", b"\x02\x00\0\0"))
    found = hospital.ingest(tmp_path / "out")
    assert json.dumps(found.card["folder"]) == '{"of_exams": 3}'
    assert found.card["files"] == 3 == found.card["frames"] + found.card["files_kept_back"]


def chinese(day: str) -> str:
    year, month, number = (int(part) for part in day.split("-"))
    return f"{year}年{month}月{number}日"
