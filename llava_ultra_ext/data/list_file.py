"""Lists that are written entry by entry, so that they may be longer than memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class ListFile:
    """A JSON list or JSON lines, an entry a line; it takes its name when it is whole.

    Args:
        path: its name; ``.jsonl`` gives JSON lines, anything else a JSON list.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._partial, self._empty = path, path.with_name(f".{path.name}.part"), True
        self._lines = path.suffix == ".jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8")

    def add(self, row: Any) -> None:
        """One more entry."""
        self.add_json(json.dumps(row, ensure_ascii=False))

    def add_json(self, text: str) -> None:
        """One more entry, as JSON without line ends."""
        if self._lines:
            self._file.write(text + "\n")
            return
        self._file.write(("[\n" if self._empty else ",\n") + text)
        self._empty = False

    def finish(self) -> None:
        """Close it and give it its name."""
        if not self._lines:
            self._file.write("[\n]\n" if self._empty else "\n]\n")
        self._file.close()
        os.replace(self._partial, self.path)

    def drop(self) -> None:
        """Remove what is not finished."""
        try:
            self._file.close()
        except OSError:  # what could not be written is not wanted any more
            pass
        finally:
            self._partial.unlink(missing_ok=True)
