"""Headers with planted identifiers: a dataset for each made-up report, cleaned and searched as a whole."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import Any

from deidentify_cases import Case
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from llava_ultra_ext.data.deidentify.headers import clean_header
from llava_ultra_ext.data.deidentify.keys import Secret


def header(case: Case, generator: random.Random) -> tuple[Dataset, list[str]]:
    """A header of an ultrasound file and the strings that must not be in it afterwards."""
    digits = "".join(generator.choices("123456789", k=24))
    dataset, item, region = Dataset(), Dataset(), Dataset()
    values = {
        "PatientID": case.patient_id,
        "AccessionNumber": "A" + digits[:9],
        "PatientBirthDate": f"19{digits[9:11]}0317",
        "PatientAddress": "文三路" + digits[11:14] + "号",
        "PatientTelephoneNumbers": "138" + digits[:8],
        "OtherPatientIDs": "Q" + digits[3:12],
        "StudyDate": f"2{generator.randint(0, 20):03d}0{digits[12]}1{digits[13]}",
        "SeriesInstanceUID": "1.2.826." + digits[:12],
        "StudyInstanceUID": "1.2.826." + digits[2:16],
        "SOPInstanceUID": "1.2.826." + digits[4:20],
        "InstitutionName": "第" + digits[14:17] + "医院",
        "DeviceSerialNumber": "SN" + digits[5:13],
        "OperatorsName": "Zh" + "".join(generator.choices("abcdefgh", k=5)) + "^Wei",
    }
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = case.patient_name
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.ImageComments = f"{case.patient_name} {values['PatientTelephoneNumbers']}"
    dataset.PatientComments = case.text[:200]
    dataset.add_new((0x0008, 0x103F), "SQ", [])  # an attribute that the table does not name, with items of any content
    item.ReferencedSOPInstanceUID, item.PatientName = values["SOPInstanceUID"], case.patient_name
    dataset.ReferencedImageSequence = Sequence([item])
    dataset.private_block(0x0029, "MAKER", create=True).add_new(1, "LO", case.patient_name)
    for keyword, number in (("MinX0", 1), ("MinY0", 2), ("MaxX1", 90), ("MaxY1", 80)):
        setattr(region, f"RegionLocation{keyword}", number)
    dataset.SequenceOfUltrasoundRegions = Sequence([region])
    dataset.Modality, dataset.Rows, dataset.Columns = "US", 100, 120
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"]
    dataset.file_meta.SourceApplicationEntityTitle = "AE" + digits[:8]
    return dataset, [case.patient_name, *values.values(), "AE" + digits[:8]]


def header_leaks_of(cases: Iterable[Case], secret: Secret, seed: int) -> tuple[int, float]:
    """(planted strings left, CPU seconds) of cleaning a header for each case."""
    generator = random.Random(seed)
    left, spent = 0, 0.0
    for case in cases:
        dataset, planted = header(case, generator)
        start = time.process_time()
        clean_header(dataset, secret)
        spent += time.process_time() - start
        text = f"{everything(dataset)}\n{dataset.file_meta}"
        left += sum(value in text for value in planted)
        assert dataset.SequenceOfUltrasoundRegions[0].RegionLocationMaxX1 == 90 and dataset.Columns == 120
    return left, spent


def everything(dataset: Any) -> str:
    """Every value at every depth."""
    return "\n".join(
        everything(item) if isinstance(item, Dataset) else str(item) for element in dataset for item in _items(element)
    )


def _items(element: Any) -> list[Any]:
    return list(element.value or ()) if element.VR == "SQ" else [element.value]
