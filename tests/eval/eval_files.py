"""Small gold and answers files for the tests of scoring and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_lines(path: Path, rows: list[Any]) -> Path:
    """JSON lines; a string is written as it is, without line end."""
    text = "".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def gold_line(number: int | str, answer: str, **more: Any) -> dict[str, Any]:
    """A line of a gold file; open and Chinese unless said otherwise."""
    return {"question_id": number, "image": "a.png", "text": f"问题{number}？", "answer": answer, **more}


def answer_line(number: int | str, text: str, model: str = "llava-ultra", **more: Any) -> dict[str, Any]:
    """A line as LLaVA's evaluation scripts write it."""
    row = {"question_id": number, "prompt": f"问题{number}？", "text": text, "answer_id": "x", "model_id": model}
    return {**row, "metadata": {}, **more}
