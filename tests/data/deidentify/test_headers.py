"""DICOM attributes: nothing that identifies is left at any depth, and what images need stays."""

import copy
import datetime

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

pytest.importorskip("dicomanonymizer", reason="needs llava_ultra_ext[hospital]")

from llava_ultra_ext.data.deidentify.headers import clean_header, mark_pixels_cleaned
from llava_ultra_ext.data.deidentify.keys import Secret
from llava_ultra_ext.data.deidentify.quarantine import Quarantine

SECRET = Secret(bytes(range(32)))


def header():
    dataset, item, region = Dataset(), Dataset(), Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Zhang^Wei=张^伟", "P778899", "19330317"
    dataset.AccessionNumber, dataset.StudyDate, dataset.StudyTime = "A20240305", "20240305", "103000"
    dataset.AcquisitionDateTime = "20240305103000.5+0800"
    dataset.StudyInstanceUID, dataset.SOPInstanceUID = "1.2.3.4", "1.2.3.5"
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    dataset.OperatorsName, dataset.InstitutionName = "李四", "第三医院"
    dataset.ImageComments = "张伟 13812345678"
    item.ReferencedSOPInstanceUID, item.PatientName, item.PatientID = "1.2.3.5", "Zhang^Wei", "P778899"
    item.private_block(0x0029, "MAKER", create=True).add_new(1, "LO", "张伟")
    dataset.SourceImageSequence = Sequence([item])
    region.RegionLocationMinX0, region.RegionLocationMaxX1 = 10, 90
    dataset.SequenceOfUltrasoundRegions = Sequence([region])
    dataset.Modality, dataset.Rows, dataset.Columns, dataset.PixelSpacing = "US", 100, 120, [0.1, 0.1]
    dataset.PixelData = b"\1" * 12000
    dataset.private_block(0x0029, "MAKER", create=True).add_new(1, "LO", "张伟")
    dataset.add_new(0x60000010, "US", 100)
    dataset.add_new(0x60003000, "OW", b"\0" * 100)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.5"
    dataset.file_meta.SourceApplicationEntityTitle = "ZHANGWEI"
    return dataset


def test_nothing_identifying_is_left_and_images_stay():
    dataset = header()
    result = clean_header(dataset, SECRET)
    text = f"{dataset}\n{dataset.file_meta}"
    for value in (
        "Zhang",
        "张",
        "伟",
        "778899",
        "A2024",
        "20240305",
        "1933",
        "103000",
        "李四",
        "第三",
        "138",
        "1.2.3.5",
        "ZHANGWEI",
        "MAKER",
    ):
        assert value not in text
    assert dataset.PixelData == b"\1" * 12000 and dataset.PixelSpacing == [0.1, 0.1] and dataset.Columns == 120
    assert dataset.SequenceOfUltrasoundRegions[0].RegionLocationMaxX1 == 90
    assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.6.1" and 0x60003000 not in dataset
    assert (
        dataset.PatientIdentityRemoved == "YES" and dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    )
    assert result.removed["private_removed"] >= 2 and result.accession == dataset.AccessionNumber
    assert "李四" in result.names


def test_pseudonyms_uids_and_dates_are_keyed_and_agree():
    first, second = header(), header()
    second.SOPInstanceUID = "1.2.3.6"
    result = clean_header(first, SECRET)
    clean_header(second, SECRET)
    assert first.PatientID == second.PatientID == result.patient.pseudonym == SECRET.patient("P778899").pseudonym
    assert first.StudyInstanceUID == second.StudyInstanceUID == SECRET.uid("1.2.3.4")
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    assert (
        first.SourceImageSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
        if "SourceImageSequence" in first
        else True
    )
    moved = datetime.date(2024, 3, 5) + datetime.timedelta(days=result.patient.shift_days)
    assert (
        first.StudyDate == f"{moved:%Y%m%d}"
        and first.PatientBirthDate == ""
        and first.AcquisitionDateTime == first.StudyDate
    )
    other = header()
    clean_header(other, Secret(bytes(32)))
    assert other.PatientID != first.PatientID and other.StudyInstanceUID != first.StudyInstanceUID


def test_a_header_without_patient_is_kept_back():
    dataset = header()
    del dataset.PatientID
    with pytest.raises(Quarantine, match="no_patient_id"):
        clean_header(copy.deepcopy(dataset), SECRET)
    assert clean_header(dataset, SECRET, "P778899").patient == SECRET.patient("P778899")


def test_a_known_identifier_in_an_attribute_that_stays_is_found():
    dataset = header()
    dataset.ImageType = ["ORIGINAL", "P778899"]
    with pytest.raises(Quarantine, match="header_identifier_left") as caught:
        clean_header(dataset, SECRET)
    assert "778899" not in str(caught.value)


def test_cleaned_pixels_are_marked_once():
    dataset = header()
    clean_header(dataset, SECRET)
    mark_pixels_cleaned(dataset)
    mark_pixels_cleaned(dataset)
    codes = [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]
    assert dataset.BurnedInAnnotation == "NO" and codes == ["113100", "113107", "113101"]
