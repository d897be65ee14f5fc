"""No planted identifier stands in anything that an ingest writes, names, logs or prints."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from ingest_case import BANNER, HEIGHT, WIDTH, Hospital, Ingested, speckle
from PIL import Image, ImageDraw

from llava_ultra_ext.data.deidentify.text import CleanText
from llava_ultra_ext.data.ingest import one_exam
from llava_ultra_ext.data.ingest.command import main

NAME, DOCTOR, LATIN = "欧阳静雯", "司马承志", "Ouyang^Jingwen"
PATIENT, ACCESSION, ADMISSION = "ZY-77K4Q", "US/24-0D7x", "H55120"
PHONE, CITIZEN, ADDRESS, BED, MAIL = (
    "13912345678", "330106198503174219", "杭州市西湖区文三路18号", "17床", "jw.ouyang@example.cn"
)  # fmt: skip
PLANTED = (
    *(NAME, DOCTOR, "Ouyang", "Jingwen", PATIENT, ACCESSION, ADMISSION, PHONE, CITIZEN, ADDRESS, "文三路", BED, MAIL),
    *("19850317", "20240305", "2024-03-05", "2024年3月5日", "第七人民医院", "2.25.7701", "2.25.7702"),
)
TEXTS = {
    "history": f"{NAME}，{PHONE}，住{ADDRESS}，{BED}，身份证{CITIZEN}，邮箱{MAIL}。{PATIENT}复诊。",
    "findings": f"2024年3月5日检查，{ACCESSION.upper()}。患者{NAME}，肝脏大小正常。{ADMISSION}。",
    "diagnosis": f"未见异常。{DOCTOR}医师，第七人民医院，2024-03-05，{PATIENT.lower()}。",
}


def fill(hospital: Hospital) -> None:
    """A still with a banner, a cine, a file that is broken with every value of its header in question, and rows."""
    header = {
        "PatientName": f"{LATIN}={NAME}",
        "ReferringPhysicianName": DOCTOR,
        "PatientBirthDate": "19850317",
        "AdmissionID": ADMISSION,
        "PatientAddress": ADDRESS,
        "PatientTelephoneNumbers": PHONE,
        "OtherPatientIDs": [CITIZEN, MAIL],
        "CurrentPatientLocation": BED,
        "InstitutionName": "第七人民医院",
        "StudyDescription": f"{NAME} {PHONE}",
        "SpecificCharacterSet": "ISO_IR 192",
    }
    hospital.report(ACCESSION, patient_id=PATIENT, patient_name=NAME, exam_date="2024-03-05", site=NAME, **TEXTS)
    hospital.picture(ACCESSION, PATIENT, banner(1), "2.25.7701", **header)
    hospital.picture(ACCESSION, PATIENT, np.stack([banner(2), banner(3)]), "2.25.7701", NumberOfFrames=2, **header)
    cut = hospital.picture(ACCESSION, PATIENT, banner(4), "2.25.7701", **header)
    cut.write_bytes(cut.read_bytes()[:-9])
    odd = hospital.picture(ACCESSION, PATIENT, banner(5), "2.25.7701", SeriesDate="20240305", **header)
    odd.write_bytes(odd.read_bytes().replace(b"\x08\x0020240305", b"\x08\x00139123x!"))
    hospital.picture("", PATIENT, banner(6), "2.25.7702", **header)  # without a report
    hospital.report(f"{ACCESSION}8", patient_id=PATIENT, patient_name=NAME, **TEXTS)  # without pictures
    hospital.report(f"{ACCESSION}9", patient_name=NAME, exam_date=PHONE)  # refused
    hospital.report(f"{ACCESSION}7", patient_id=CITIZEN, patient_name=NAME, **TEXTS)  # kept back
    hospital.picture(f"{ACCESSION}7", PATIENT, banner(7), "2.25.7703", **header)


def banner(seed: int) -> np.ndarray:
    """A name and a number drawn above the scan."""
    picture = Image.fromarray(speckle(seed))
    ImageDraw.Draw(picture).text((2, 4), "OUYANG 139123", fill=255)
    pixels = np.asarray(picture).copy()
    assert (pixels[:BANNER] > 200).sum() > 40 and (pixels[BANNER:] == speckle(seed)[BANNER:]).all()
    return pixels


def everything(out: Path) -> str:
    """All names and all bytes, as UTF-8 and as what Parquet and JSON hold of texts."""
    found = [str(path.relative_to(out)) for path in sorted(out.rglob("*"))]
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        data = path.read_bytes()
        found += [
            data.decode("utf-8", "replace"),
            data.decode("gb18030", "replace"),
            data.decode("utf-16-le", "replace"),
        ]
        if path.suffix in (".json", ".jsonl"):
            found.append(data.decode("ascii", "replace").encode().decode("unicode_escape", "replace"))
    found.append(str(parquet.read_table(out / "exams.parquet").to_pylist()))
    return "\n".join(found)


def leaks(text: str) -> list[str]:
    folded = text.casefold()
    return [one for one in PLANTED if one.casefold() in folded]


def test_nothing_that_identifies_is_written_or_said(
    hospital: Hospital, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(hospital)
    caplog.set_level(logging.DEBUG)
    found = hospital.ingest(tmp_path / "out")
    assert found.card["exams"] == 1 and len(found.exams[hospital.exam(ACCESSION)]["image"]) == 4
    assert [one["reason"] for one in found.lines("quarantine")].count("broken_pixels") == 1
    assert leaks(everything(found.out)) == []
    printed = capfd.readouterr()
    said = (
        printed.out + printed.err + "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)
    )
    assert "exams: 1 of 1 patients" in said and leaks(said) == []
    record = found.exams[hospital.exam(ACCESSION)]
    assert (
        record["site"] == "" and "肝脏大小正常" in record["findings"] and record["diagnosis"].startswith("未见异常。")
    )


def test_banners_are_not_in_the_pictures(hospital: Hospital, tmp_path: Path) -> None:
    fill(hospital)
    found = hospital.ingest(tmp_path / "out", picture_format="png")
    seeds = iter((1, 2, 3, 5))
    for name in found.exams[hospital.exam(ACCESSION)]["image"]:
        with Image.open(found.out / name) as picture:
            assert picture.info == {} and picture.size == (WIDTH, HEIGHT - BANNER)
            assert (np.asarray(picture) == speckle(next(seeds))[BANNER:]).all()


def test_the_planted_are_there_without_the_cleaning(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests above would show nothing."""
    monkeypatch.setattr(one_exam, "clean_text", lambda text, *_: CleanText(text, {}))
    fill(hospital)
    found = leaks(everything(hospital.ingest(tmp_path / "out").out))
    assert set(PLANTED) - set(found) == {"Jingwen", "20240305", "2.25.7701", "2.25.7702"}  # they stand in no text


def test_a_refused_file_of_the_database_quotes_none_of_it(
    hospital: Hospital, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    fill(hospital)
    hospital.save()
    reports = hospital.folder / "reports.csv"
    reports.write_text(reports.read_text(encoding="utf-8") + f'"{NAME},{PHONE}', encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        main(hospital.arguments(tmp_path / "out"))
    printed = capfd.readouterr()
    assert "a quote is not closed" in str(caught.value)
    assert leaks(str(caught.value) + printed.out + printed.err + caplog.text) == []
    assert not os.path.exists(tmp_path / "out")


def test_own_numbers_go_from_texts_whatever_their_form(hospital: Hospital, tmp_path: Path) -> None:
    text = "77K4Q号片，大小约12345mm，ＺＹ－７７Ｋ４Ｑ与xZY-77K4Q。zy-77k4q，HCG 54321.7，54321。"
    hospital.report("54321", patient_id=PATIENT, findings=text)
    hospital.picture("54321", PATIENT, OtherPatientIDs="12")
    found: Ingested = hospital.ingest(tmp_path / "out")
    (record,) = found.exams.values()
    assert record["findings"] == "77K4Q号片，大小约12345mm，[编号]与xZY-77K4Q。[编号]，HCG 54321.7，[编号]。"
