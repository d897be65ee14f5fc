"""The files of a DICOM folder: any tree, with or without a DICOMDIR (PS3.10 8, PS3.3 F).

Our choice: the tree is walked even where a DICOMDIR lists it, since everything that it lists lies below its folder and
stale ones list too little; it is read only to tell what it lists and the tree lacks, such as on a broken disc.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.dicom.refusal import refusing

DIRECTORY = "DICOMDIR"


def dicom_files(folder: str | Path) -> Iterator[Path]:
    """Every file below a folder, in the same order every time; hidden ones, DICOMDIRs and linked folders left out.

    Args:
        folder: the folder, or the DICOMDIR in it.

    Raises:
        ValueError: no such folder.
    """
    top = Path(folder).expanduser()
    if top.is_file() and top.name.upper() == DIRECTORY:
        top = top.parent
    if not top.is_dir():
        raise ValueError(f"DICOM folder {folder}: is no folder. Give the folder above the files, or its DICOMDIR.")
    for place, folders, names in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.upper() != DIRECTORY:
                yield Path(place, name)


def listed_but_absent(folder: str | Path) -> list[str]:
    """Referenced File IDs (0004,1500) of the folder's DICOMDIR that are not there, as paths relative to it.

    Raises:
        Refused: `broken_header`: the DICOMDIR cannot be read.
    """
    from pydicom import dcmread

    given = Path(folder).expanduser()
    top = given.parent if given.is_file() else given
    directory = next((path for path in sorted(top.iterdir()) if path.name.upper() == DIRECTORY), None)
    if directory is None:
        return []
    with refusing("broken_header", "the DICOMDIR cannot be read. Give the folder without it."):
        records = dcmread(directory).get("DirectoryRecordSequence") or ()
        listed = [_relative(record.ReferencedFileID) for record in records if record.get("ReferencedFileID")]
    there = {str(path.relative_to(top)).upper().split(".")[0] for path in dicom_files(top)}
    return [name for name in listed if name.upper() not in there]


def _relative(parts: Any) -> str:
    return parts if isinstance(parts, str) else os.path.join(*parts)
