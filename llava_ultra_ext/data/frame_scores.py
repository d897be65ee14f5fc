"""The `frame_scores` file: a teacher's score for each frame, computed once after stage 1 and read in stage 2.

JSON lines. The first is a header that says which model and which data the scores belong to::

    {"format": "ultra_frame_scores/1", "model": "…", "data": "…", "strategy": "likelihood"}
    {"exam_id": "US-000123", "images": ["US-000123/001.png", …], "scores": [-2.31, …]}

Each rank appends to a part file of its own, a line an exam, so a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.whole_file import write_whole

logger = logging.getLogger(__name__)

FORMAT = "ultra_frame_scores/1"


@dataclass(frozen=True)
class Header:
    """Whose scores a file holds: fingerprints of the model and of the data, and the teacher's strategy."""

    model: str
    data: str
    strategy: str = "likelihood"
    format: str = FORMAT


@dataclass(frozen=True)
class FrameScores:
    """Scores of a file.

    Args:
        header: whose they are.
        scores: score key (`Exam.score_key`) -> picture name -> score; NaN where the teacher had none.
        torn: the last line was cut off and left out.
    """

    header: Header
    scores: Mapping[str, Mapping[str, float]]
    torn: bool = False


def data_fingerprint(exams: Iterable[Exam]) -> str:
    """A short name for what a teacher would score: ids, picture names and findings, whatever their order."""
    units = {json.dumps([exam.score_key, exam.images, exam.findings], ensure_ascii=False) for exam in exams}
    return hashlib.sha256("\n".join(sorted(units)).encode()).hexdigest()[:16]


def read_frame_scores(
    path: str | Path, *, expected_model: str | None = None, expected_data: str | None = None
) -> FrameScores:
    """Read a finished file, or a part.

    Args:
        path: the file.
        expected_model: fingerprint of the model in use; None: any.
        expected_data: `data_fingerprint` of the exams in use; None: any.

    Raises:
        ValueError: no such file, another format, another model or data set, or a broken line before the last.
    """
    header, rows, end = _scan(Path(path))
    for what, found, expected in (("model", header.model, expected_model), ("data", header.data, expected_data)):
        if expected is not None and found != expected:
            raise ValueError(
                f"--frame_scores {path}: was computed for another {what} ({found}, in use is {expected}). "
                "Compute it again with `llava-ultra score-frames`, or leave the flag out to run the teacher online."
            )
    torn = end < os.path.getsize(path)
    if torn:
        logger.warning("--frame_scores %s: its last line is cut off and left out (%d exams read).", path, len(rows))
    return FrameScores(header, rows, torn)


class FrameScoreWriter:
    """Appends scores to this rank's part file; use it as a context manager.

    Args:
        path: the finished file; parts are called ``<path>.part<rank>``.
        header: whose scores they are; an older part must have the same.
        rank: this process, from 0.

    Raises:
        ValueError: an older part or the finished file belongs to another model, data set or strategy.
    """

    def __init__(self, path: str | Path, header: Header, rank: int = 0) -> None:
        self._part = Path(f"{path}.part{rank}")
        self._known: dict[str, set[str]] = {}
        for known in [Path(path), *part_files(path)]:
            if known.exists():
                self._take_over(known, header)
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("a", encoding="utf-8")
        if self._file.tell() == 0:
            self._append({"format": header.format, **asdict(header)})

    def _take_over(self, known: Path, header: Header) -> None:
        try:
            found, rows, end = _scan(known)
        except _NothingWritten:
            found, rows, end = header, {}, 0
        if found != header:
            raise ValueError(
                f"{known} holds scores of another run ({asdict(found)}, this one is {asdict(header)}). "
                "Move it away, or write to another file."
            )
        for key, row in rows.items():
            self._known.setdefault(key, set()).update(row)
        if known == self._part and end < os.path.getsize(known):
            os.truncate(known, end)

    def has(self, key: str, images: Iterable[str]) -> bool:
        """Whether these pictures of an exam need no work: they are in the finished file, or in any rank's part."""
        return self._known.get(key, set()).issuperset(images)

    def write(self, key: str, images: Sequence[str], scores: Sequence[float]) -> None:
        """Append one exam; an exam that is there already is left alone.

        Args:
            key: `Exam.score_key`.
            images: k picture names.
            scores: k scores; NaN is kept as unknown.
        """
        if len(images) != len(scores):
            raise ValueError(f"exam {key}: {len(images)} pictures, {len(scores)} scores; give one score a picture.")
        if self.has(key, images):
            return
        self._known.setdefault(key, set()).update(images)
        values = [float(score) if math.isfinite(score) else None for score in scores]
        self._append({"exam_id": key, "images": list(images), "scores": values})

    def _append(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the part file."""
        self._file.close()

    def __enter__(self) -> FrameScoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def part_files(path: str | Path) -> list[Path]:
    """The part files of a scores file, in the order of the ranks."""
    target = Path(path)
    prefix = f"{target.name}.part"
    near = target.parent.iterdir() if target.parent.is_dir() else iter(())
    parts = [item for item in near if item.name.startswith(prefix) and item.name[len(prefix) :].isdigit()]
    return sorted(parts, key=lambda item: int(item.name[len(prefix) :]))


def merge_parts(path: str | Path) -> FrameScores:
    """Join the parts of all ranks (and an older finished file) into `path`, at once, and remove the parts.

    Call it on one rank, after all have closed their writers.

    Raises:
        ValueError: there is nothing to join, or the parts belong to different runs.
    """
    target = Path(path)
    parts = part_files(target)
    read: list[FrameScores] = []
    for source in [target, *parts] if target.exists() else parts:
        try:
            read.append(read_frame_scores(source))
        except _NothingWritten:
            logger.warning("%s is empty: its rank stopped before it wrote.", source)
    if not read:
        raise ValueError(f"{target}: no part file {target.name}.part0, … to join. Compute the scores first.")
    headers = {item.header for item in read}
    if len(headers) > 1:
        raise ValueError(f"{target}: its parts belong to different runs. Remove the parts of the old one.")
    merged: dict[str, dict[str, float]] = {}
    for item in read:
        for key, row in item.scores.items():
            merged.setdefault(key, {}).update(row)
    lines = [json.dumps({"format": FORMAT, **asdict(read[0].header)})]
    for key, row in merged.items():
        scores = [None if math.isnan(score) else score for score in row.values()]
        lines.append(json.dumps({"exam_id": key, "images": list(row), "scores": scores}, ensure_ascii=False))
    write_whole(target, "".join(f"{line}\n" for line in lines))
    for part in parts:
        part.unlink()
    return FrameScores(read[0].header, merged)


class _NothingWritten(ValueError):
    """An empty file, or one whose only line was cut off."""


def _scan(path: Path) -> tuple[Header, dict[str, dict[str, float]], int]:
    """Header, rows, and the number of bytes up to the last whole line."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ValueError(f"--frame_scores {path}: cannot be read ({error.strerror}).") from None
    if not lines or (len(lines) == 1 and not lines[0].endswith(b"\n")):
        raise _NothingWritten(f"--frame_scores {path}: is empty, or its header is cut off. Compute it again.")
    header = _header(path, lines[0])
    rows: dict[str, dict[str, float]] = {}
    end = len(lines[0])
    for number, line in enumerate(lines[1:], start=2):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            values = [math.nan if score is None else float(score) for score in row["scores"]]
            rows.setdefault(str(row["exam_id"]), {}).update(zip(row["images"], values, strict=True))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"--frame_scores {path}: line {number} is broken. Remove that line, or compute the file again."
            ) from None
        end += len(line)
    return header, rows, end


def _header(path: Path, line: bytes) -> Header:
    try:
        found = json.loads(line)
        if found["format"] == FORMAT:
            return Header(model=found["model"], data=found["data"], strategy=found["strategy"])
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"--frame_scores {path}: its first line is not a header of format {FORMAT}. "
        "Give a file that `llava-ultra score-frames` wrote."
    )
