"""The secret of a hospital, and what is derived from it: pseudonyms, UIDs, the date shift of a patient.

Everything is HMAC-SHA256 under the secret with a word for its use in front, so that the same patient is the same
pseudonym in reports and in pictures, and nobody without the secret can test a guess. Losing the secret loses the link
to earlier output; giving it away gives the patients away.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import os
import stat
import sys
import unicodedata
import uuid
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "LLAVA_ULTRA_SECRET"
"""Environment variable that holds the secret as 64 hexadecimal digits."""

SECRET_BYTES = 32

LARGEST_SHIFT = 365
"""Days; a shift is one of -365 ... -1, 1 ... 365, never 0. Our choice: it hides the day and the season, while the years
of a data set stay about right; an exam may move to the year before or after."""

_PSEUDONYM_DIGITS = 16  # 64 bits; DICOM's SH, which AccessionNumber has, holds 16 characters


@dataclass(frozen=True)
class PatientKey:
    """What stands for a patient.

    Args:
        pseudonym: 16 hexadecimal digits.
        shift_days: by which every date of the patient is moved; 1 to `LARGEST_SHIFT` days back or forth.
    """

    pseudonym: str
    shift_days: int


@dataclass(frozen=True)
class Secret:
    """32 bytes that only the hospital has; never shown, not by `repr` either."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != SECRET_BYTES:
            raise ValueError(
                f"the secret has {len(self.key)} bytes, must have {SECRET_BYTES}. Make one with `llava-ultra secret`."
            )

    def pseudonym(self, kind: str, value: str) -> str:
        """16 hexadecimal digits for an identifier.

        Args:
            kind: ``patient``, ``accession``, ``exam`` …: equal values of two kinds get unlike pseudonyms.
            value: the identifier; white space around it and full-width forms make no difference.
        """
        return self._digest(kind, value).hex()[:_PSEUDONYM_DIGITS]

    def uid(self, value: str) -> str:
        """A DICOM UID for a UID: ``2.25.`` and a UUID in decimal (PS3.5 B.2), so no root has to be registered."""
        return f"2.25.{uuid.UUID(bytes=self._digest('uid', value)[:16], version=5).int}"

    def patient(self, patient_id: str) -> PatientKey:
        """Pseudonym and date shift of a patient.

        Raises:
            ValueError: an empty id; all patients without one would share a shift.
        """
        if not _plain(patient_id):
            raise ValueError(
                "the patient id is empty; must be the hospital's id of the patient. Give it, or leave out."
            )
        number = int.from_bytes(self._digest("shift", patient_id)[:8], "big") % (2 * LARGEST_SHIFT)
        shift = number - LARGEST_SHIFT if number < LARGEST_SHIFT else number - LARGEST_SHIFT + 1
        return PatientKey(self.pseudonym("patient", patient_id), shift)

    def _digest(self, kind: str, value: str) -> bytes:
        message = f"{kind}\0{_plain(value)}".encode("utf-8", "surrogatepass")
        return hmac.new(self.key, message, hashlib.sha256).digest()


def _plain(value: str) -> str:
    return unicodedata.normalize("NFKC", value).strip(" \t\r\n\0")


def create_secret(path: str | Path) -> Path:
    """Make a new secret file that only its owner can read (mode 600).

    Raises:
        ValueError: the file is there already; a new secret would cut the link to what the old one made.
        OSError: it cannot be written.
    """
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:  # O_EXCL: never over another secret; the mode holds from the first byte on
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ValueError(f"{path}: is there already and was not touched. Use it, or give another name.") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(os.urandom(SECRET_BYTES).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return target


def load_secret(path: str | Path | None = None) -> Secret:
    """The secret of a file, or of the environment variable `VARIABLE` where no file is named.

    Raises:
        ValueError: none, not 64 hexadecimal digits, or a file that others may read. The message holds no part of it.
    """
    if path is None:
        if VARIABLE not in os.environ:
            raise ValueError(
                f"no secret: name a file, or set {VARIABLE} to {2 * SECRET_BYTES} hexadecimal digits. "
                "`llava-ultra secret FILE` makes one."
            )
        return _parse(os.environ[VARIABLE], VARIABLE)
    source = Path(path).expanduser()
    try:
        with open(source, "rb") as file:  # the opened file is asked, so that it cannot be exchanged in between
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise ValueError(f"{path}: has mode {mode:03o}, others may read it; must be 600. Run chmod 600 on it.")
            return _parse(file.read(1024).decode("ascii", "replace"), str(path))
    except OSError as error:
        raise ValueError(f"{path}: the secret cannot be read ({error.strerror}). Check its name and owner.") from None


def _parse(text: str, source: str) -> Secret:
    digits = text.strip()
    if len(digits) != 2 * SECRET_BYTES or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
        raise ValueError(
            f"{source}: holds no secret; must be {2 * SECRET_BYTES} hexadecimal digits. "
            "`llava-ultra secret FILE` makes one."
        )
    return Secret(bytes.fromhex(digits))


def main(argv: list[str] | None = None) -> int:
    """Make a secret file."""
    parser = argparse.ArgumentParser(prog="llava-ultra secret", description="Make the secret of de-identification.")
    parser.add_argument(
        "file", metavar="FILE", help="new file, readable by its owner only; keep it, and keep it secret"
    )
    target = create_secret(parser.parse_args(argv).file)
    sys.stdout.write(f"written: {target} (mode 600). Keep a copy in a safe place: without it no later exam fits.\n")
    return 0
