"""Reading a training file, and finding every sample that would fail, before any model is loaded."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.exam import BadSample, Exam
from llava_ultra_ext.data.pictures import Fault, check_pictures, inside_folder
from llava_ultra_ext.data.whole_file import write_whole

logger = logging.getLogger(__name__)

LISTED = 10
"""How many bad samples an error shows."""

_FROM_JSON_LINES = (
    "python -c \"import json,sys; json.dump([json.loads(l) for l in open(sys.argv[1], encoding='utf-8') if l.strip()], "
    "open(sys.argv[2], 'w', encoding='utf-8'), ensure_ascii=False)\" {0} {0}.json"
)


@dataclass(frozen=True)
class BadSamples:
    """The samples of a file that cannot be trained on, one fault each."""

    samples: tuple[BadSample, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def reasons(self) -> dict[str, int]:
        """How many samples have each kind of fault, the most frequent first."""
        return dict(Counter(sample.reason for sample in self.samples).most_common())

    def summary(self) -> str:
        """The count, the kinds of faults, and the first samples, one a line."""
        kinds = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
        more = [f"… and {len(self) - LISTED} more"] if len(self) > LISTED else []
        return "\n".join([f"{len(self)} bad samples ({kinds}):", *map(str, self.samples[:LISTED]), *more])

    def write(self, path: str | Path) -> None:
        """Write the report as JSON lines (id, reason, message); it identifies nobody beyond the sample id."""
        rows = [{"id": bad.sample_id, "reason": bad.reason, "message": bad.message} for bad in self.samples]
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_records(path: str | Path) -> list[Any]:
    """The entries of a training file: a JSON list, as LLaVA reads it.

    Raises:
        ValueError: no such file, not UTF-8, not JSON, JSON lines, not a list, or an empty list.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"--data_path {path}: cannot be read ({error.strerror}). Give a JSON file.") from None
    except UnicodeDecodeError:
        raise ValueError(
            f"--data_path {path}: is not UTF-8. Convert it, for example from GBK: iconv -f GBK -t UTF-8 {path}"
        ) from None
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        if _is_json_lines(text):
            raise ValueError(
                f"--data_path {path}: holds JSON lines; a JSON list is needed. "
                f"Convert it: {_FROM_JSON_LINES.format(path)}"
            ) from None
        raise ValueError(
            f"--data_path {path}: is not JSON (line {error.lineno}, column {error.colno}: {error.msg}). "
            "A JSON list of samples is needed."
        ) from None
    if not isinstance(records, list):
        raise ValueError(
            f"--data_path {path}: holds a JSON {type(records).__name__}; a list of samples is needed, [{{…}}, {{…}}]."
        )
    if not records:
        raise ValueError(f"--data_path {path}: the list is empty; at least one sample is needed.")
    return records


def _is_json_lines(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()][:2]
    try:
        return len(lines) == 2 and all(isinstance(json.loads(line), dict) for line in lines)
    except json.JSONDecodeError:
        return False


def load_manifest(
    path: str | Path,
    *,
    image_folder: str | None,
    strategy: str = "none",
    frame_scores: Mapping[str, Mapping[str, float]] | None = None,
    max_frames: int | None = None,
    on_bad_sample: str = "error",
    workers: int = 8,
) -> tuple[list[Exam], BadSamples]:
    """Read a training file and check every sample and picture.

    Args:
        path: ``--data_path``.
        image_folder: ``--image_folder``; may be None when no sample has a picture.
        strategy: ``--adr_strategy``; decides which optional keys a sample must have.
        frame_scores: known teacher scores, score key -> picture name -> score (`frame_scores.read_frame_scores`).
        max_frames: ``--max_frames``.
        on_bad_sample: ``error`` raises when any sample is bad; ``skip`` leaves them out.
        workers: threads that look at pictures.

    Returns:
        The good exams in the file's order, and the report of the others.

    Raises:
        ValueError: the file or a flag is unusable, a sample is bad under ``error``, or all are under ``skip``.
    """
    if on_bad_sample not in ("error", "skip"):
        raise ValueError(f"--on_bad_sample {on_bad_sample}: not a known value. Allowed: error, skip.")
    if max_frames is not None and max_frames < 1:
        raise ValueError(
            f"--max_frames {max_frames}: an exam keeps at least one frame. Give 1 or more, or leave it out."
        )
    parsed = [_parse(record, position) for position, record in enumerate(read_records(path))]
    exams = [item for item in parsed if isinstance(item, Exam)]
    if image_folder is None and any(exam.images for exam in exams):
        raise ValueError("--image_folder is not given, but samples have pictures. Give the folder that holds them.")
    faults = _picture_faults(exams, image_folder or "", workers)
    good: list[Exam] = []
    bad: list[BadSample] = []
    for item in parsed:
        fault = (
            item if isinstance(item, BadSample) else _fault(item, faults, image_folder or "", strategy, frame_scores)
        )
        if fault is not None:
            bad.append(fault)
        elif isinstance(item, Exam):
            good.append(item)
    return good, _judge(path, good, BadSamples(tuple(bad)), on_bad_sample)


def _judge(path: str | Path, good: Sequence[Exam], report: BadSamples, on_bad_sample: str) -> BadSamples:
    if report and on_bad_sample == "error":
        raise ValueError(
            f"--data_path {path}: {report.summary()}\nRepair them, or leave them out with --on_bad_sample skip."
        )
    if not good:
        raise ValueError(f"--data_path {path}: no sample is left. {report.summary()}")
    if report:
        logger.warning("%s: training goes on without %s", path, report.summary())
    return report


def _parse(record: Any, position: int) -> Exam | BadSample:
    try:
        return Exam.from_record(record, position)
    except BadSample as fault:
        return fault


def _picture_faults(exams: Sequence[Exam], folder: str, workers: int) -> dict[str, Fault | None]:
    names = dict.fromkeys(name for exam in exams for name in exam.images if inside_folder(folder, name))
    checked = check_pictures([os.path.join(folder, name) for name in names], workers)
    return dict(zip(names, checked.values(), strict=True))


def _fault(
    exam: Exam,
    faults: Mapping[str, Fault | None],
    folder: str,
    strategy: str,
    frame_scores: Mapping[str, Mapping[str, float]] | None,
) -> BadSample | None:
    """The first reason not to train on an exam whose record is well formed."""
    for index, name in enumerate(exam.images):
        picture = f"picture {index + 1} of {len(exam.images)}"
        if not inside_folder(folder, name):
            return BadSample(
                exam.id,
                "outside_folder",
                f"{picture} lies outside --image_folder. Give a path relative to that folder.",
            )
        fault = faults[name]
        if fault is not None:
            return BadSample(exam.id, fault.reason, f"{picture} {fault.message}")
    sampled = any(len(group) > 1 for group in exam.groups)
    if sampled and not exam.findings and _reads_findings(exam, strategy, frame_scores):
        return BadSample(
            exam.id,
            "no_findings",
            f"--adr_strategy {strategy} needs `findings` to compare {len(exam.images)} frames with. "
            "Add them, or use --adr_strategy feature.",
        )
    if sampled and not exam.valid_frames and strategy == "oracle":
        return BadSample(
            exam.id,
            "no_valid_frames",
            "--adr_strategy oracle needs `valid_frames`, the numbers of the frames to choose.",
        )
    return None


def _reads_findings(exam: Exam, strategy: str, frame_scores: Mapping[str, Mapping[str, float]] | None) -> bool:
    known = (frame_scores or {}).get(exam.score_key, {})
    return strategy == "attention" or (strategy == "likelihood" and not all(name in known for name in exam.images))
