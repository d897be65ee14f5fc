"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write under a temporary name in the same folder, then rename.

    Args:
        path: the file; its folder is made.
        content: a text is written as UTF-8. Half a character, which JSON can spell (``\\ud83d``), becomes ``?``.
    """
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
