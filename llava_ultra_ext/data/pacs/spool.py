"""The folder that fetched files lie in: whole files only, so that what is there need not be fetched again.

It holds patients' data as the archive gave it; what leaves it goes through de-identification. Folders and files are
readable by their owner only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from llava_ultra_ext.data.pacs.source import Failure, Fetched, Study, key_of


class Spool:
    """One study's folder.

    Args:
        folder: of all studies; made where absent.
        study: whose folder it is.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.study = study.key
        self.folder = folder / study.key
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._before = {path.name for path in self.folder.glob("*.dcm")}

    def path(self, instance_uid: str) -> Path:
        """Where an instance lies."""
        return self.folder / f"{key_of(instance_uid)}.dcm"

    def missing(self, instance_uids: Iterable[str]) -> list[str]:
        """Those that are not there, each once, in their order."""
        return [uid for uid in dict.fromkeys(instance_uids) if not self.path(uid).exists()]

    def store(self, instance_uid: str, content: bytes | Path) -> None:
        """Under a temporary name, flushed to the disk, then renamed.

        Args:
            instance_uid: whose file it is.
            content: the file's bytes, or a file to copy.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        target = self.path(instance_uid)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                if isinstance(content, bytes):
                    out.write(content)
                else:
                    with content.open("rb") as copied:
                        shutil.copyfileobj(copied, out)
                out.flush()
                os.fsync(out.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def fetched(self, failed: Iterable[Failure] = ()) -> Fetched:
        """The report."""
        files = tuple(sorted(self.folder.glob("*.dcm")))
        new = sum(path.name not in self._before for path in files)
        return Fetched(self.study, files, new, tuple(failed))


def empty(folder: Path) -> None:
    """Remove all studies of a spool, and the spool where nothing else lies in it: it may be a folder with other things.

    Args:
        folder: the spool; need not exist.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if re.fullmatch(r"[0-9a-f]{24}", path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()
