"""The folder that ``llava-ultra import`` writes: it appears whole or not at all, and only an import takes its place."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.import_files import CARD, FILES, FORMAT, SUBFOLDERS, content_hash

logger = logging.getLogger(__name__)

_ALLOWED = FILES | {f"{folder}/{name}" for folder in SUBFOLDERS for name in FILES}


def check_inputs(out: Path, options: argparse.Namespace) -> None:
    """What is read must not lie in the folder that is replaced.

    Args:
        out: ``--out``.
        options: of the command line; sources name what they read ``folder``, ``manifest`` and ``image_folder``.

    Raises:
        ValueError: it does.
    """
    target = out.resolve()
    for name, flag in (("folder", "FOLDER"), ("manifest", "MANIFEST"), ("image_folder", "--image-folder")):
        given = getattr(options, name, None)
        if given is not None and Path(given).expanduser().resolve().is_relative_to(target):
            raise ValueError(
                f"--out {options.out}: holds {flag} {given}, which is read. The import would remove it. "
                "Give another folder."
            )


def check_out(out: Path, source: str) -> None:
    """Whether a folder may be written to: absent, empty, or an earlier import of the same source and nothing else.

    Raises:
        ValueError: it is not; the message names the file in the way.
    """
    if not out.exists():
        return
    advice = "Give a folder that does not exist, or remove it."
    if not out.is_dir():
        raise ValueError(f"--out {out}: is a file. {advice}")
    if out.is_symlink():
        raise ValueError(f"--out {out}: is a link, which the new folder would replace. Give the folder itself.")
    found = _files(out)
    foreign = [name for name in found if name not in _ALLOWED]
    if foreign:
        raise ValueError(f"--out {out}: holds {foreign[0]}, which no import wrote. {advice}")
    if found and _card(out).get("source") != source:
        raise ValueError(f"--out {out}: is not an earlier import of {source}. {advice}")
    changed = next((name for name in found if not _is_as_written(out / name)), None)
    if changed is not None:
        raise ValueError(f"--out {out}: {changed} was changed, or added, after the import. Move it away, or: {advice}")


def restore_leftovers(out: Path) -> None:
    """Mend what imports of this folder left that were killed: their processes are gone, their hidden folders stay.

    An earlier import that had been put aside, and whose successor never came, is put back; anything else is removed.
    Only what holds nothing but an import's files is touched.
    """
    out = Path(os.path.abspath(out))
    if not out.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(new|old)([0-9]+)")
    found = [(path, match) for path in out.parent.iterdir() if (match := pattern.fullmatch(path.name))]
    gone = [(path, match[1]) for path, match in found if path.is_dir() and not _runs(int(match[2]))]
    for path, kind in sorted(gone, key=lambda one: one[0].stat().st_mtime, reverse=True):
        if not set(_files(path)) <= _ALLOWED:
            logger.warning("%s: is left there, since it holds files that no import writes.", path)
        elif kind == "old" and not os.path.lexists(out):
            path.rename(out)
            logger.warning("%s: an import was killed while it replaced this folder; the earlier one is back.", out)
        else:
            shutil.rmtree(path)
            logger.warning("%s: removed, of an import that was killed.", path)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place at the end, or is removed after an error.

    Args:
        out: the folder to make; `check_out` has allowed it.

    Raises:
        OSError: a file cannot be written; the error names the folder where it names nothing.
    """
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (out.with_name(f".{out.name}.{kind}{os.getpid()}") for kind in ("new", "old"))
    partial.mkdir()
    try:
        yield partial
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk
            raise OSError(error.errno, error.strerror, str(out)) from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _is_as_written(path: Path) -> bool:
    """By the card beside it; a card of an earlier release, without content, vouches for all of its files."""
    files = _card(path.parent).get("files")
    return path.name == CARD or not isinstance(files, Mapping) or files.get(path.name) == content_hash(path)


def _card(folder: Path) -> Mapping[str, Any]:
    """What a folder's card says; empty: it has none."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, Mapping) and card.get("format") == FORMAT else {}


def _runs(process: int) -> bool:
    """Whether a process is there; this one has not made its folders yet."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
