"""A made-up hospital: DICOM files in a folder, reports in a CSV file, and what an ingest makes of them."""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from made_file import made, write
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from llava_ultra_ext.data.deidentify.keys import Secret, load_secret
from llava_ultra_ext.data.ingest.command import main

HEIGHT, WIDTH, BANNER = 100, 120, 20
COLUMNS = {
    "accession_number": "检查号",
    "patient_id": "患者号",
    "patient_name": "姓名",
    "exam_date": "检查日期",
    "site": "检查部位",
    "history": "病史",
    "findings": "超声所见",
    "diagnosis": "超声提示",
    "version": "版本",
}
FINDINGS = "甲状腺右叶见一低回声结节，大小约12mm×8mm，边界清。"
DIGITS = "0123456789abcdef" * 4


def secret_file(path: Path, digits: str = DIGITS) -> Path:
    path.write_text(digits)
    path.chmod(0o600)
    return path


def speckle(seed: int, noise: int = 0) -> np.ndarray:
    """(100, 120) of blocks that no other seed has, below 20 black rows; `noise` changes it a little."""
    blocks = np.random.default_rng(seed).integers(40, 200, (8, 12))
    picture = np.kron(blocks, np.ones((10, 10))) + np.random.default_rng([seed, noise]).integers(0, 6, (80, WIDTH))
    return np.concatenate([np.zeros((BANNER, WIDTH)), picture]).astype(np.uint8)


def region() -> Items:
    """Everything below the banner, as (0018,6011) says it."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionLocationMinX0, item.RegionLocationMinY0 = 1, 0, BANNER
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = WIDTH - 1, HEIGHT - 1
    return Items([item])


@dataclass
class Hospital:
    """Its folder of pictures, its reports, its secret.

    Args:
        folder: gets ``images``, ``reports.csv`` and ``mapping.yaml``.
        secret: the file.
    """

    folder: Path
    secret: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    number: int = 0

    def __post_init__(self) -> None:
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        columns = "".join(f"  {name}: {column}\n" for name, column in COLUMNS.items())
        (self.folder / "mapping.yaml").write_text(f"columns:\n{columns}", encoding="utf-8")

    @property
    def key(self) -> Secret:
        return load_secret(self.secret)

    def exam(self, accession: str) -> str:
        """Its pseudonym."""
        return self.key.pseudonym("accession", accession)

    def report(self, accession: str, **cells: str) -> None:
        self.rows.append({"accession_number": accession, "findings": FINDINGS, **cells})

    def picture(self, accession: str, patient: str, pixels: Any = None, study: str = "", **header: Any) -> Path:
        """A DICOM file of a study; without pixels a speckle that no other has."""
        self.number += 1
        pixels = speckle(self.number) if pixels is None else pixels
        more = {"SequenceOfUltrasoundRegions": region(), "StudyDate": "20240305", "SeriesNumber": 1, **header}
        more = {"InstanceNumber": self.number, **more}
        dataset = made(pixels, "MONOCHROME2" if pixels.shape[-1] != 3 else "RGB", **more)
        dataset.AccessionNumber, dataset.PatientID = accession, patient
        dataset.StudyInstanceUID = study or f"2.25.77.{int.from_bytes(accession.encode(), 'big')}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.78.{self.number}"
        return write(self.folder / "images" / f"IM{self.number:04d}", dataset)

    def uid(self, path: Path) -> str:
        """The pseudonym of a file's instance."""
        return self.key.pseudonym("instance", f"2.25.78.{int(path.name[2:])}")

    def save(self) -> None:
        """The reports."""
        with (self.folder / "reports.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS.values())
            table.writerows([row.get(name, "") for name in COLUMNS] for row in self.rows)

    def arguments(self, out: Path, /, *more: str, **instead: str) -> list[str]:
        flags = {
            "--reports": str(self.folder / "reports.csv"),
            "--mapping": str(self.folder / "mapping.yaml"),
            "--images": str(self.folder / "images"),
            "--secret": str(self.secret),
            "--out": str(out),
            "--workers": "1",
            "--ocr": "off",
            **{f"--{name.replace('_', '-')}": value for name, value in instead.items()},
        }
        return [*(word for flag, value in flags.items() if value for word in (flag, value)), *more]

    def ingest(self, out: Path, /, *more: str, **instead: str) -> Ingested:
        """Save the reports, run the command, and read what it left."""
        self.save()
        assert main(self.arguments(out, *more, **instead)) == 0
        return Ingested(out)


@dataclass(frozen=True)
class Ingested:
    """What an ingest left."""

    out: Path

    @property
    def card(self) -> dict[str, Any]:
        return json.loads((self.out / "ingest.json").read_text())

    @property
    def exams(self) -> dict[str, dict[str, Any]]:
        rows = json.loads((self.out / "exams.json").read_text())
        found = {row["exam_id"]: row for row in rows}
        assert len(found) == len(rows), "an exam is listed twice"
        return found

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / f"{name}.jsonl").read_text().splitlines()]

    def reasons(self, name: str) -> list[tuple[str, str]]:
        return sorted((one["exam"], one["reason"]) for one in self.lines(name))


def contents(out: Path) -> dict[str, bytes]:
    """Name -> bytes of everything but ``work``."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.relative_to(out).parts[0] != "work")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def ward(hospital: Hospital, exams: int, pictures: int = 2) -> Hospital:
    """A hospital with so many ordinary exams."""
    for number in range(exams):
        accession, patient = f"ACC{number:04d}", f"PAT{number // 2:04d}"
        hospital.report(accession, patient_id=patient, site="甲状腺", exam_date="2024-03-05", version="1")
        for _ in range(pictures):
            hospital.picture(accession, patient)
    hospital.save()
    return hospital


def moved(day: str, days: int) -> str:
    return (datetime.date.fromisoformat(day) + datetime.timedelta(days=days)).isoformat()


def counted(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        found[row[key]] = found.get(row[key], 0) + 1
    return found
