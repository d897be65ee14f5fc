"""Why a DICOM file gives no frames: one error with a code for counting, and silence of what would quote its values."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

REASONS = {
    "unreadable_file": "the file cannot be opened",
    "not_dicom": "the bytes are no DICOM data set",
    "broken_header": "the data set cannot be read up to its pixels",
    "not_an_image": "there are no pixels: a report, a directory, a waveform, …",
    "other_modality": "another modality than those wanted",
    "too_small": "an icon",
    "too_large": "more pixels, frames or bytes than the limits allow",
    "no_decoder": "no installed plugin decodes this transfer syntax",
    "unsupported_pixels": "a photometric interpretation or depth that has no rule",
    "broken_pixels": "the pixels are cut off, or the decoder refuses them",
}
"""Reason -> what it means; the only ones that occur."""


class Refused(ValueError):
    """A DICOM file that gives no frames, or no more of them.

    Args:
        reason: a key of `REASONS`, for counting and for the quarantine.
        message: what was given, what is allowed, what to do; no value of the data set, no file name.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


@contextmanager
def refusing(reason: str, what: str) -> Iterator[None]:
    """Any error inside becomes `Refused`; pydicom's warnings and log stay silent, since they quote values.

    Our choice: only the kind of the error is told, since messages of pydicom and of decoders may quote a header.

    Args:
        reason: the reason of an error that has none.
        what: the sentence that says what could not be done and what to do next.

    Raises:
        Refused: anything was raised inside, except KeyboardInterrupt and its like.
    """
    logging.getLogger("pydicom").addFilter(_drop)  # adding it again changes nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Refused:
            raise
        except Exception as error:  # pydicom and its plugins raise anything, RecursionError and MemoryError too
            raise Refused(reason, f"{what} ({type(error).__name__})") from None


def _drop(record: logging.LogRecord) -> bool:
    return False
