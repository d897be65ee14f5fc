"""What was removed how often, a JSON line an exam and step: a file that may be shown to anybody.

It cannot hold an identifier by construction: exams are pseudonyms of 16 hexadecimal digits, everything else is a word
of a fixed list or a count, and any other content is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llava_ultra_ext.data.deidentify.quarantine import REASONS

STEPS = ("text", "headers", "pixels")

KINDS = (
    *("name", "id_number", "phone", "number", "bed", "address", "institution", "email", "url", "date", "age"),
    *("attribute_removed", "attribute_emptied", "attribute_replaced", "attribute_shifted", "attribute_cleaned"),
    *("uid_replaced", "pseudonym", "private_removed"),
    *("frames_blanked", "pixels_blanked", "text_blanked", "text_unchecked"),
)
"""What may be counted. The first line is of texts, the next two of headers, the last of pixels."""

_EXAM = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Entry:
    """One line of the audit.

    Args:
        exam: the exam's pseudonym (`Secret.pseudonym`).
        step: one of `STEPS`.
        removed: kind of `KINDS` -> how often; zeros are left out.
        quarantined: a code of `quarantine.REASONS` when the exam was kept back.
    """

    exam: str
    step: str
    removed: Mapping[str, int]
    quarantined: str = ""

    def __post_init__(self) -> None:
        if not _EXAM.fullmatch(self.exam):
            raise ValueError(
                "an audit entry's exam is no pseudonym; must be 16 hexadecimal digits of Secret.pseudonym."
            )
        unknown = [self.step not in STEPS, bool(self.quarantined) and self.quarantined not in REASONS]
        unknown += [kind not in KINDS or type(count) is not int or count < 0 for kind, count in self.removed.items()]
        if any(unknown):  # what was given may be an identifier, so it is not shown
            raise ValueError(
                f"an audit entry holds an unknown word; steps are {STEPS}, kinds {KINDS}. Add new ones there."
            )

    def line(self) -> str:
        """As JSON with sorted keys, without line end: equal entries are equal bytes."""
        removed = {kind: count for kind, count in self.removed.items() if count}
        record = {"exam": self.exam, "step": self.step, "removed": removed}
        return json.dumps(record | ({"quarantined": self.quarantined} if self.quarantined else {}), sort_keys=True)


def append(path: str | Path, entry: Entry) -> None:
    """Add a line. Several processes may write one file: a line is one write at the end of it.

    A last line that was torn by a crash is ended first, so that it spoils no other.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (("\n" if torn else "") + entry.line() + "\n").encode("ascii"))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
