"""Reading JSON lines that people hand in: every fault is named with its line number and with what to do about it.

Only ``\\n`` ends a line: JSON strings may hold U+2028 and its like, at which ``str.splitlines()`` would cut.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARKS = {b"\x84\x31\x95\x33": "GB18030", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte order marks of the encodings that Chinese editors and spreadsheets write besides UTF-8."""

_FROM_JSON_LIST = (
    'python -c "import json,sys; [print(json.dumps(q, ensure_ascii=False)) '
    "for q in json.load(open(sys.argv[1], encoding='utf-8'))]\" {0} > {0}l"
)


@dataclass(frozen=True)
class JsonLines:
    """What a file holds.

    Args:
        rows: line numbers from 1, and what each line holds; blank lines are left out.
        torn: number of a last line that was cut off in writing; None: the file is whole.
    """

    rows: list[tuple[int, Any]]
    torn: int | None = None


def is_clean(text: str) -> bool:
    """Whether a text can be written and can name a file: JSON can spell NUL and half a character (``\\ud83d``) too."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def json_fault(error: ValueError | RecursionError) -> str:
    """Why ``json.loads`` refused a text, without place; Python raises three kinds of errors there."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def read_text(path: str | Path, flag: str, wanted: str) -> str:
    """A whole UTF-8 file, with or without byte order mark.

    Args:
        path: the file.
        flag: the flag that named it, for messages.
        wanted: what it should be, for messages: "a JSON lines file".

    Raises:
        ValueError: it cannot be read or is not UTF-8; the message names the first line that is not.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{flag} {path}: cannot be read ({error.strerror}). Give {wanted}.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
        encoding = marked or _chinese_encoding(data)
        line = data.count(b"\n", 0, error.start) + 1
        given = f"line {line} begins with the byte order mark of {marked}" if marked else f"line {line} is not UTF-8"
        raise ValueError(
            f"{flag} {path}: is not UTF-8. Convert it, for example from {encoding}: "
            f"iconv -f {encoding} -t UTF-8 {path} > {path}.utf8   ({given})"
        ) from None


def _chinese_encoding(data: bytes) -> str:
    """GB18030 holds all of GBK; what it cannot decode is something else."""
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        return "GBK"
    return "GB18030"


def read_json_lines(path: str | Path, flag: str, unit: str, *, torn_end: bool = False) -> JsonLines:
    """Every line of a file.

    Args:
        path: the file.
        flag: the flag that named it, for messages.
        unit: what a line holds, for messages: "question".
        torn_end: a last line without line end that is no JSON is left out and named in the result, as an interrupted
            writer leaves it; otherwise it is an error like any other.

    Raises:
        ValueError: not readable, not UTF-8, empty, a JSON list, or a line that is not JSON.
    """
    text = read_text(path, flag, "a JSON lines file")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{flag} {path}: is empty; at least one {unit} is needed.")
    if text.lstrip().startswith("["):
        raise ValueError(
            f"{flag} {path}: holds a JSON list; JSON lines are needed, one {unit} a line. "
            f"Convert it: {_FROM_JSON_LIST.format(path)}"
        )
    rows: list[tuple[int, Any]] = []
    for number, line in lines:
        try:
            rows.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            if torn_end and number == lines[-1][0] and not text.endswith("\n"):
                return JsonLines(rows, torn=number)
            raise ValueError(
                f"{flag} {path}: line {number} is not JSON ({json_fault(error)}). "
                f"One {unit} a line is needed, {{…}}, as JSON lines."
            ) from None
    return JsonLines(rows)
