"""Small DICOM files with known pixels, written by pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid


def made(pixels: Any, photometric: str = "MONOCHROME2", syntax: str = ExplicitVRLittleEndian, **more: Any) -> Dataset:
    """A data set.

    Args:
        pixels: (H, W) or (H, W, 3), or (k, H, W[, 3]) with NumberOfFrames in `more`; 8 or 16 bits.
        more: keyword -> value of further elements.
    """
    pixels = np.asarray(pixels)
    dataset = FileDataset("", {}, preamble=b"\0" * 128)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UltrasoundImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["made"])
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.1", "2.25.2"
    dataset.Modality = "US"
    colour = pixels.shape[-1] == 3
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits, bits - 1, 0
    dataset.PhotometricInterpretation = photometric
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    return dataset


def write(path: Path, dataset: Dataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path
