"""Every file that `pydicom` and `pydicom-data` ship, as an exam of its own: each is counted once, with its reason."""

from __future__ import annotations

import re
import shutil
import warnings
from collections import Counter
from pathlib import Path

import pytest
from ingest_case import Hospital, counted

pydicom = pytest.importorskip("pydicom", reason="the files come with pydicom")
pytest.importorskip("data_store", reason="the files come with pydicom-data")

from dicom_frames import local_files  # noqa: E402
from llava_ultra_ext.data.dicom.instance import open_instance  # noqa: E402
from llava_ultra_ext.data.dicom.refusal import Refused  # noqa: E402

FILES = [path for _, path in local_files() if path.suffix not in (".py", ".pyc") and path.name.upper() != "DICOMDIR"]


def admitted(path: Path, target: Path, number: int) -> str:
    """A copy with ids of its own where that can be written; its modality, empty where there is no study."""
    try:
        dataset = pydicom.dcmread(path, force=True)
        known = bool(dataset.get("StudyInstanceUID") and dataset.get("SOPInstanceUID"))
        if known:
            dataset.StudyInstanceUID, dataset.SOPInstanceUID = f"2.25.60{number}", f"2.25.61{number}"
            dataset.AccessionNumber, dataset.PatientID = f"SHIP{number:04d}", f"SHIPPAT{number:04d}"
            if "TransferSyntaxUID" in dataset.file_meta:
                dataset.save_as(target)
                return str(dataset.get("Modality") or "none")
    except Exception:  # what pydicom cannot write is copied as it is
        known = False
    shutil.copyfile(path, target)
    try:
        header = pydicom.dcmread(target, force=True, stop_before_pixels=True)
        known = bool(header.get("StudyInstanceUID") and header.get("SOPInstanceUID"))
        return str(header.get("Modality") or "none") if known else ""
    except Exception:
        return ""


def test_each_shipped_file_is_counted_once(
    hospital: Hospital, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    modalities: dict[Path, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, path in enumerate(FILES):
            target = hospital.folder / "images" / f"F{number:04d}"
            modalities[target] = admitted(path, target, number)
            hospital.report(f"SHIP{number:04d}", patient_id=f"SHIPPAT{number:04d}")
    capfd.readouterr()
    found = hospital.ingest(tmp_path / "out", frames_per_cine="2")
    printed = capfd.readouterr()
    card, folder = found.card, found.card["folder"]

    kinds = Counter("none" if not one else "US" if one == "US" else "other" for one in modalities.values())
    listed = folder.get("of_exams", 0) + folder.get("without_report", 0) + folder.get("copy", 0)
    assert sum(folder.values()) == len(FILES) == sum(kinds.values())
    assert (listed, folder["other_modality"], folder["not_dicom"]) == (kinds["US"], kinds["other"], kinds["none"])
    assert card["files"] == folder["of_exams"]
    assert card["exams"] + card["exams_without_frames"] + card["unmatched"]["exam"] == len(FILES)

    reasons: Counter[str] = Counter()  # of the files of exams, by opening each
    for path, modality in modalities.items():
        number = hospital.exam(f"SHIP{int(path.name[1:]):04d}")
        if modality != "US" or {"exam": number} in found.lines("unmatched"):
            continue
        try:
            list(open_instance(path).frames([0]))
            assert number in found.exams or number in {one["exam"] for one in found.lines("quarantine")}
        except Refused as refused:
            reasons[refused.reason] += 1
            assert number not in found.exams
    kept = counted(found.lines("quarantine"), "reason")
    assert {reason: kept.get(reason) for reason in reasons} == dict(reasons)
    assert card["exams"] == card["files"] - card["files_kept_back"] >= 12
    assert "unexpected_error" not in kept

    assert re.sub(r"\r?exams: .*(?:exam/s|s/exam).*\n?|\r?exams: .*\]\n?", "", printed.err).strip() == ""
    assert printed.out.startswith(f"exams: {card['exams']} of") and len(printed.out.splitlines()) == 6
