"""DICOM attributes by the Basic Application Level Confidentiality Profile (PS3.15 Annex E, table E.1-1 of 2026c).

The table and its dummy values are dicom-anonymizer's. Of the kept libraries it alone carries the whole table, and a new
one; dicognito handles some fifty attributes, and deid's recipes are to be written by the user. It works on the top
level and makes random UIDs, so here its actions are applied at every depth, with keyed UIDs, pseudonyms and moved dates
(option Retain Longitudinal Temporal Information Modified Dates).

Our choice, stricter than the table: every UID that is not DICOM's own is replaced; times of day go; what the table does
not name is removed where it is private, of unknown form or binary (except pixels and their colour tables), and emptied
where it is a text that holds an identifier. Image attributes, SequenceOfUltrasoundRegions among them, stay.
"""

from __future__ import annotations

import datetime
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from llava_ultra_ext.data.deidentify.keys import PatientKey, Secret
from llava_ultra_ext.data.deidentify.quarantine import Quarantine
from llava_ultra_ext.data.deidentify.text import clean_text

TABLE = "dicomfields_2026c"

_PSEUDONYMS = {
    (0x0008, 0x0050): "accession",
    (0x0010, 0x0010): "patient",
    (0x0010, 0x0020): "patient",
    (0x0020, 0x0010): "study",
}
"""AccessionNumber, PatientName, PatientID, StudyID."""
_BIRTH = {(0x0010, 0x0030), (0x0010, 0x0033), (0x0010, 0x0034)}
_IDENTIFYING = (
    *(
        "PatientName",
        "PatientID",
        "AccessionNumber",
        "OtherPatientIDs",
        "OtherPatientNames",
        "PatientBirthName",
        "PatientMotherBirthName",
    ),
    *(
        "ReferringPhysicianName",
        "PerformingPhysicianName",
        "OperatorsName",
        "PhysiciansOfRecord",
        "NameOfPhysiciansReadingStudy",
    ),
    *("RequestingPhysician", "ResponsiblePerson", "PatientTelephoneNumbers", "PatientAddress", "StudyID"),
)
_TEXT = {"LO", "SH", "LT", "ST", "UT", "UC"}
_BINARY = {"OB", "OW", "OF", "OD", "OL", "OV", "UN"}
_META_KEPT = {0x0000, 0x0001, 0x0002, 0x0003, 0x0010, 0x0012, 0x0013}
_CODES = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
)
_MAY_HOLD_NAMES = ("PN", "SQ", "UN", None)
"""Value representations; None: not written in the file (implicit), looked up when the value is read."""

_PIXELS_CLEANED = ("113101", "Clean Pixel Data Option")


@dataclass(frozen=True)
class CleanHeader:
    """What was done to a dataset.

    Args:
        patient: what now stands for the patient; its shift is for the patient's texts too.
        accession: pseudonym of the accession number, equal to `Secret.pseudonym("accession", …)`; empty without one.
        names: the names that the header held, for `clean_text` and `clean_frames`; never to be written down.
        removed: kind (`audit.KINDS`) -> how often.
    """

    patient: PatientKey
    accession: str
    names: tuple[str, ...]
    removed: Mapping[str, int]


def known_names(dataset: Any) -> tuple[str, ...]:
    """Names of patient and staff at any depth of a dataset (VR PN), before it is cleaned."""
    found = _person_names(dataset)
    return tuple(sorted(name for name in found if name.strip(" ^=")))


def _person_names(dataset: Any) -> set[str]:
    """Of what can be read: one broken element hides no name of another."""
    found: set[str] = set()
    for raw in list(dataset.elements()):
        if raw.VR not in _MAY_HOLD_NAMES:
            continue  # unread: to convert every value takes longer than to decode a small picture
        try:
            element = dataset[raw.tag]
            if element.VR == "PN":
                found.update(str(value) for value in _values(element))
            elif element.VR == "SQ":
                for item in element.value:
                    found |= _person_names(item)
        except Exception:  # pydicom raises anything
            continue
    return found


def clean_header(dataset: Any, secret: Secret, patient_id: str | None = None) -> CleanHeader:
    """Clean a dataset in place; its pixels are left to `pixels.clean_frames`.

    Args:
        dataset: a pydicom Dataset, with or without ``file_meta``. After an error it is half cleaned: drop it.
        secret: the hospital's.
        patient_id: where the dataset's own PatientID (0010,0020) is not to be used or missing.

    Raises:
        Quarantine: ``no_patient_id``, ``header_unreadable``, ``header_identifier_left``.
        ImportError: without dicom-anonymizer, named with the extra that brings it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom quotes values that break the standard: they may identify
        quiet = logging.getLogger("pydicom")
        level, quiet.level = quiet.level, logging.CRITICAL
        try:
            return _clean(dataset, secret, patient_id)
        except (Quarantine, ImportError):
            raise
        except Exception:  # a broken file: the error may quote its content, so it goes no further
            raise Quarantine("header_unreadable") from None
        finally:
            quiet.level = level


def mark_pixels_cleaned(dataset: Any) -> None:
    """Say that the banners are gone: BurnedInAnnotation (0028,0301) NO, and the option of PS3.15 E.3.1."""
    dataset.BurnedInAnnotation = "NO"
    codes = dataset.get("DeidentificationMethodCodeSequence")
    if codes is not None and all(item.CodeValue != _PIXELS_CLEANED[0] for item in codes):
        codes.append(_code(*_PIXELS_CLEANED))


def _clean(dataset: Any, secret: Secret, patient_id: str | None) -> CleanHeader:
    _drop_unreadable(dataset)
    given = str(patient_id or dataset.get("PatientID") or "").strip()
    if not given:
        raise Quarantine("no_patient_id")
    patient = secret.patient(given)
    names = known_names(dataset)
    identifiers = {given, *(str(value) for key in _IDENTIFYING for value in _values(dataset.get(_tag(key))))}
    identifiers |= {part for name in names for part in (name, name.replace("^", " "), name.replace("^", ""))}
    accession = str(dataset.get("AccessionNumber") or "").strip()
    removed: Counter[str] = Counter()
    _walk(dataset, _Cleaner(secret, given, patient, names, removed))
    _clean_meta(dataset, removed)
    _stamp(dataset)
    _check(dataset, {value.strip() for value in identifiers})
    return CleanHeader(
        patient, secret.pseudonym("accession", accession) if accession else "", names, dict(sorted(removed.items()))
    )


def _walk(dataset: Any, cleaner: _Cleaner) -> None:
    for tag in list(dataset.keys()):
        element = dataset[tag]
        cleaner.clean(dataset, element)
        if tag in dataset and dataset[tag].VR == "SQ":
            for item in dataset[tag].value:
                _walk(item, cleaner)


@dataclass
class _Cleaner:
    """What happens to one attribute."""

    secret: Secret
    patient_id: str
    patient: PatientKey
    names: tuple[str, ...]
    removed: Counter[str]

    def clean(self, dataset: Any, element: Any) -> None:
        key = (element.tag.group, element.tag.element)
        if element.tag.is_private:
            self._drop(dataset, element, "private_removed")
        elif key in _PSEUDONYMS:
            self._pseudonym(element, _PSEUDONYMS[key])
        elif element.VR == "UI":
            self._uids(element)
        elif element.VR in ("DA", "DT") and key not in _BIRTH:
            if element.value:
                element.value = [_moved(str(value), self.patient.shift_days) for value in _values(element)]
                self.removed["attribute_shifted"] += 1
        elif element.tag.group == 0x7FE0:
            pass
        elif (action := _action(key)) is not None:
            self._act(dataset, element, action)
        else:
            self._unlisted(dataset, element)

    def _pseudonym(self, element: Any, kind: str) -> None:
        value = self.patient_id if kind == "patient" else str(element.value or "").strip()
        if value:
            element.value = self.secret.pseudonym(kind, value)
            self.removed["pseudonym"] += 1

    def _uids(self, element: Any) -> None:
        values = [str(value) for value in _values(element)]
        if any(value and not value.startswith("1.2.840.10008.") for value in values):
            element.value = [
                value if value.startswith("1.2.840.10008.") else self.secret.uid(value) for value in values
            ]
            self.removed["uid_replaced"] += 1

    def _act(self, dataset: Any, element: Any, action: Callable[[Any, tuple[int, int]], None]) -> None:
        kind = {"delete": "attribute_removed", "empty": "attribute_emptied"}.get(action.__name__, "attribute_replaced")
        try:
            if element.VR == "TM" or (element.tag.group, element.tag.element) in _BIRTH:
                element.value, kind = "", "attribute_emptied"  # the library writes the year 1 and midnight
            elif kind != "attribute_removed" and element.VR == "SQ":
                raise NotImplementedError  # dummies in every item say nothing; without it nothing can be left
            else:
                action(dataset, (element.tag.group, element.tag.element))
                self.removed[kind] += 1
                return
            self.removed[kind] += 1
        except NotImplementedError:
            self._drop(dataset, element, "attribute_removed")

    def _unlisted(self, dataset: Any, element: Any) -> None:
        if element.VR in ("PN", "AE", "TM", "UR") and element.value:
            element.value = ""
            self.removed["attribute_emptied"] += 1
        elif element.VR in _BINARY and element.tag.group != 0x0028:
            self._drop(dataset, element, "attribute_removed")
        elif element.VR in _TEXT and any(self._identifies(str(value)) for value in _values(element)):
            element.value = ""
            self.removed["attribute_cleaned"] += 1

    def _identifies(self, value: str) -> bool:
        return self.patient_id in value or bool(clean_text(value, 1, self.names).removed)

    def _drop(self, dataset: Any, element: Any, kind: str) -> None:
        del dataset[element.tag]
        self.removed[kind] += 1


def _moved(value: str, days: int) -> str:
    """A DA, or the date of a DT, moved; empty where it is no date."""
    digits = value.replace(".", "")[:8]
    try:
        date = datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])) + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{date:%Y%m%d}" if date.year >= 1000 else ""


def _clean_meta(dataset: Any, removed: Counter[str]) -> None:
    """File meta information (group 0002): what names the sender goes; the preamble may hold anything."""
    dataset.preamble = b"\0" * 128
    meta = getattr(dataset, "file_meta", None)
    if meta is None:
        return
    for tag in list(meta.keys()):
        if tag.element not in _META_KEPT:
            del meta[tag]
            removed["attribute_removed"] += 1
    if "SOPInstanceUID" in dataset:
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def _stamp(dataset: Any) -> None:
    from pydicom.sequence import Sequence

    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    dataset.DeidentificationMethod = "PS3.15 2026c basic profile"
    dataset.DeidentificationMethodCodeSequence = Sequence([_code(*code) for code in _CODES])


def _code(value: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _check(dataset: Any, identifiers: set[str]) -> None:
    """Our choice: identifiers of four characters, or two Chinese ones, are looked for; shorter ones stand anywhere."""
    wanted = [value for value in identifiers if len(value) > 3 or (len(value) > 1 and min(value) > "\u3000")]
    for element in _elements(dataset):
        if element.VR in ("SQ", "UI", "DA", "DT") or element.VR in _BINARY or element.tag.group == 0x7FE0:
            continue
        text = "\n".join(str(value) for value in _values(element))
        if any(value in text for value in wanted):
            raise Quarantine("header_identifier_left")


def _drop_unreadable(dataset: Any) -> None:
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            str(element.value) if element.VR not in _BINARY else None
        except Exception:
            del dataset[tag]
            continue
        if element.VR == "SQ":
            for item in element.value:
                _drop_unreadable(item)


def _elements(dataset: Any) -> Iterator[Any]:
    for element in dataset:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)


def _values(element: Any) -> list[Any]:
    if element is None or element.value is None:
        return []
    return list(element.value) if element.VM > 1 else [element.value]


def _tag(keyword: str) -> int:
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    assert tag is not None, f"{keyword} is no DICOM keyword"
    return tag


def _action(key: tuple[int, int]) -> Callable[[Any, tuple[int, int]], None] | None:
    single, masked = _actions()
    if key in single:
        return single[key]
    for group, element, group_mask, element_mask, action in masked:
        if key[0] & group_mask == group & group_mask and key[1] & element_mask == element & element_mask:
            return action
    return None


@cache
def _actions() -> tuple[dict[tuple[int, int], Any], list[tuple[int, int, int, int, Any]]]:
    """The table: single attributes, and repeating groups (curves 50xx, overlays 60xx) with their masks."""
    try:
        from dicomanonymizer.simpledicomanonymizer import initialize_actions
    except ImportError as error:
        raise ImportError(
            "The table of PS3.15 is dicom-anonymizer's. pip install llava_ultra_ext[hospital]."
        ) from error
    actions = initialize_actions(TABLE)
    return (
        {tag: action for tag, action in actions.items() if len(tag) == 2},
        [(*tag, action) for tag, action in actions.items() if len(tag) > 2],
    )
