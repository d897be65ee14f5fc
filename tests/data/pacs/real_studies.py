"""Real ultrasound files of `pydicom` and `pydicom-data` as studies of made-up exams."""

from __future__ import annotations

import warnings
from pathlib import Path

import pydicom

from dicom_frames import local_files

STUDIES = {
    "ACC-0001": ("20240105", ("examples_rgb_color.dcm", "US1_J2KR.dcm", "examples_ybr_color.dcm")),
    "ACC-0002": ("20240210", ("OBXXXX1A_rle.dcm", "gdcm-US-ALOKA-16.dcm", "color-pl.dcm")),
    "ACC-0003": ("20240311", ("JPGLosslessP14SV1_1s_1f_8b.dcm",)),
}
"""Accession number -> study date, and the files: native, JPEG 2000, JPEG cine; RLE, palette, a retired
storage class; JPEG lossless."""


def make_studies(folder: Path) -> dict[str, list[str]]:
    """Write them into `folder`, and a CT picture into the last study.

    Returns:
        Accession number -> SOP Instance UIDs of its ultrasound.
    """
    known = {path.name: path for _, path in local_files()}
    made: dict[str, list[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (accession, (day, names)) in enumerate(STUDIES.items(), start=1):
            for index, name in enumerate((*names, "CT_small.dcm") if number == len(STUDIES) else names, start=1):
                dataset = pydicom.dcmread(known[name])
                dataset.StudyInstanceUID = f"2.25.{number}000"
                dataset.SeriesInstanceUID = f"2.25.{number}000.{index}"
                dataset.SOPInstanceUID = f"2.25.{number}000.{index}.1"
                dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
                dataset.AccessionNumber, dataset.StudyDate = accession, day
                dataset.PatientName, dataset.PatientID = "Synthetic^Patient", f"SYN{number}"
                path = folder / f"disc{number}" / f"IM{index:04d}"
                path.parent.mkdir(parents=True, exist_ok=True)
                dataset.save_as(path)
                if dataset.Modality == "US":
                    made.setdefault(accession, []).append(str(dataset.SOPInstanceUID))
    return made
