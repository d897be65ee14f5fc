"""What cannot be made safe is kept back, with a reason that holds no identifier."""

from __future__ import annotations

REASONS = {
    "no_patient_id": "has no PatientID, so its dates cannot be shifted with the patient's others. Give a patient.",
    "header_unreadable": "has attributes that cannot be read, so they cannot be cleaned. Export the file again.",
    "header_identifier_left": "holds a known identifier in an attribute that must stay. Look at the file by hand.",
    "no_scan_region": "names no usable ultrasound region and none was found in the pixels. Look at it by hand.",
    "burned_in_unchecked": "says BurnedInAnnotation YES, names no usable region, and no text reader is installed. "
    "Install llava_ultra_ext[ocr], or export with regions.",
    "burned_in_text": "shows an identifier inside the scan region that could not be blanked. Look at it by hand.",
    "pixels_unreadable": "has pixels of an unexpected shape or kind. Export the file again.",
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
