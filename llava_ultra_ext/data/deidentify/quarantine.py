"""What cannot be made safe is kept back, with a reason that holds no identifier."""

from __future__ import annotations

REASONS = {
    "no_patient_id": "has no PatientID, so its dates cannot be shifted with the patient's others. Give a patient.",
    "several_patients": "has pictures or a report of another patient id. Look at its accession number; where the "
    "database numbers patients otherwise than the archive, leave patient_id out of the mapping.",
    "header_unreadable": "has attributes that cannot be read, so they cannot be cleaned. Export the file again.",
    "header_identifier_left": "holds a known identifier in an attribute that must stay. Look at the file by hand.",
    "no_scan_region": "names no usable ultrasound region and none was found in the pixels. Look at it by hand.",
    "burned_in_unchecked": "says BurnedInAnnotation YES, names no usable region, and no text reader is installed. "
    "Install llava_ultra_ext[ocr], or export with regions.",
    "burned_in_text": "shows an identifier inside the scan region that could not be blanked. Look at it by hand.",
    "pixels_unreadable": "has pixels of an unexpected shape or kind. Export the file again.",
    "unexpected_error": "has a file that ended in an error that nobody foresaw. Please report it.",
}
"""Reason code -> what is the case and what to do; neither names a patient, a file or a value."""


class Quarantine(ValueError):
    """Something that cannot be made safe.

    Args:
        reason: a code of `REASONS`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"quarantined ({reason}): the exam {REASONS[reason]}")
        self.reason = reason
