"""Files that are there whole or not at all, and that do not take the place of what they were made from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write under a temporary name in the same folder, then rename.

    Args:
        path: the file; its folder is made.
        content: a text is written as UTF-8. Half a character, which JSON can spell (``\\ud83d``), becomes ``?``.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    write_all_whole({path: content})


def write_all_whole(contents: Mapping[str | Path, str | bytes]) -> None:
    """Write several files that belong together: the first one is renamed when all have been written.

    Args:
        contents: path -> content, as for `write_whole`.

    Raises:
        OSError: one cannot be written; the error names it, and none has changed.
    """
    partials: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            target = Path(path).expanduser()
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
            partials[target] = target.with_name(f".{target.name}.{os.getpid()}")
            data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
            try:
                partials[target].write_bytes(data)
            except OSError as error:  # a full disk is told without a name, anything else with the temporary one
                raise OSError(error.errno, error.strerror, str(target)) from None
        for target, partial in partials.items():
            os.replace(partial, target)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def check_output(path: str | Path, flag: str, inputs: Mapping[str, Iterable[str | Path]]) -> None:
    """Whether a file may be written: it is no folder, and none of the files that it is made from.

    Args:
        path: of the file to write.
        flag: the flag that named it, for messages.
        inputs: flag -> the files that it named.

    Raises:
        ValueError: it may not.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise ValueError(f"{flag} {path}: is a folder. Give the name of a file.")
    for other, files in inputs.items():
        for file in files:
            if same_place(target, Path(file).expanduser()):
                raise ValueError(f"{flag} {path}: is the file that {other} reads. Give another name.")


def same_place(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, by links too; neither needs to be there."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one.resolve() == other.resolve()
