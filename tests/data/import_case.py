"""Runs the import command on made-up or real sources and reads what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_ultra_ext.data.importing import main

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


def real(name: str) -> Path:
    """A real source, or the test is skipped."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"real data not at hand: shared/data/{name}")
    return folder


def run_import(*arguments: str | Path) -> dict[str, Any]:
    """The card of an import; `--out` is among the arguments."""
    given = [str(argument) for argument in arguments]
    assert main(given) == 0
    return json.loads((Path(given[given.index("--out") + 1]) / "import.json").read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def picture(path: Path, shade: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6), shade).save(path, **options)
    return path
