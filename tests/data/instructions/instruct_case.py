"""Exams with reports, made up, and the command that makes instructions of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.instructions.command import main

FINDINGS = "甲状腺右叶见一低回声结节，大小约12mm×8mm，边界清晰。左叶未见异常。"


def exam(number: int, **changes: Any) -> dict[str, Any]:
    record = {
        "exam_id": f"US-{number:05}",
        "image": [f"{number}/1.png", f"{number}/2.png"],
        "site": "甲状腺",
        "findings": FINDINGS.replace("12mm", f"{12 + number}mm"),
        "diagnosis": "甲状腺右叶结节。",
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not None}


def manifest(folder: Path, records: list[Any]) -> Path:
    path = folder / "exams.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def instruct(folder: Path, records: list[Any], *flags: str) -> dict[str, Any]:
    """The card; files lie in folder/out."""
    assert main([str(manifest(folder, records)), "--out", str(folder / "out"), *flags]) == 0
    return json.loads((folder / "out" / "instruct.json").read_text(encoding="utf-8"))


def listed(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
