"""The card of a folder of phantom exams: with which settings it is made, and what it holds.

It is written before the first frame, so that a run that goes on in the folder can tell whether it may.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.sources.phantom.records import Drawn
from llava_ultra_ext.data.whole_file import write_whole

CARD = "card.json"
LISTS = ("exams.json", "stage1.json", "stage2.json", "truth.jsonl")
FORMAT = "ultra_phantom/1"
"""Raise the number when other pictures or texts come from the same settings: folders of both are never mixed."""

_ADVICE = "Give the settings of the folder, or another folder."
_ATTRIBUTES = ("kind", "place", "echo", "margin", "shape", "texture", "calcification", "posterior", "flow")


def check_out(out: Path, settings: Mapping[str, Any]) -> None:
    """Whether a run with these settings may write to a folder: absent, empty, or begun with the same settings.

    Args:
        out: the folder.
        settings: as `write_card` takes them.

    Raises:
        ValueError: it may not; the message says which settings differ, or what is in the way.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file. Give a folder that does not exist.")
    found_here = sorted(path.name for path in out.iterdir() if path not in partial_files(out)) if out.exists() else []
    if not found_here:
        return
    if CARD not in found_here:
        raise ValueError(f"--out {out}: holds {found_here[0]} and no {CARD} of phantom exams. Give another folder.")
    try:
        found = json.loads((out / CARD).read_text(encoding="utf-8"))
        made_by, made = found["format"], dict(found["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"--out {out}: {CARD} is not a card of phantom exams. Give another folder.") from None
    if made_by != FORMAT:
        raise ValueError(f"--out {out}: holds exams of {made_by}, this version makes {FORMAT}. Give another folder.")
    wanted = json.loads(json.dumps(settings))
    differing = [
        f"{name} {json.dumps(made.get(name))} there, {json.dumps(wanted.get(name))} here"
        for name in sorted({*made, *wanted})
        if made.get(name) != wanted.get(name)
    ]
    if differing:
        raise ValueError(f"--out {out}: holds exams of other settings: {'; '.join(differing)}. {_ADVICE}")


def partial_files(out: Path) -> list[Path]:
    """Temporary files of lists and card, left by a run that was killed while it wrote them."""
    return [path for name in (CARD, *LISTS) for path in out.glob(f".{name}.*")]


def write_card(out: Path, settings: Mapping[str, Any], counts: Mapping[str, Any] | None = None) -> None:
    """``card.json``.

    Args:
        out: made where it is absent.
        settings: name -> value, everything that decides the bytes of the folder.
        counts: of `count`; None: the run is not finished.
    """
    card = {"format": FORMAT, "finished": counts is not None, "settings": settings, **(counts or {})}
    write_whole(out / CARD, json.dumps(card, ensure_ascii=False, indent=2) + "\n")


def count(exams: Sequence[Drawn]) -> dict[str, Any]:
    """What the exams are.

    Returns:
        ``exams`` a split, ``sites`` a split, ``normal_share`` (of exams), ``frames`` (all, and exams by their number
        of frames), ``valid_share`` (of the frames of exams with lesions), ``chance`` (that a random frame of such an
        exam is valid, mean over exams), ``several_lesions`` (exams), ``lesions`` (attribute -> value -> how many).
    """
    ill = [exam for exam in exams if exam.case.lesions]
    lesions = [lesion for exam in ill for lesion in exam.case.lesions]
    lengths = Counter(len(exam.case.frames) for exam in exams)
    by_split: dict[str, Counter[str]] = {}
    for exam in exams:
        by_split.setdefault(exam.split, Counter())[exam.case.site] += 1
    shares = [len(exam.valid) / len(exam.case.frames) for exam in ill]
    shown = sum(len(exam.case.frames) for exam in ill)
    return {
        "exams": {split: sum(sites.values()) for split, sites in by_split.items()},
        "sites": {split: dict(sorted(sites.items())) for split, sites in by_split.items()},
        "normal_share": _round(1 - len(ill) / len(exams)),
        "frames": {
            "all": sum(length * number for length, number in lengths.items()),
            "exams_by_frames": {str(length): lengths[length] for length in sorted(lengths)},
        },
        "valid_share": _round(sum(len(exam.valid) for exam in ill) / shown) if ill else None,
        "chance": _round(sum(shares) / len(shares)) if ill else None,
        "several_lesions": sum(len(exam.case.lesions) > 1 for exam in ill),
        "lesions": {
            name: dict(sorted(Counter(getattr(lesion, name) for lesion in lesions).items())) for name in _ATTRIBUTES
        },
    }


def table(out: Path, counts: Mapping[str, Any]) -> str:
    """What the command answers."""
    lengths = [int(length) for length in counts["frames"]["exams_by_frames"]]
    lines = [f"{'split':10}{'exams':>8}   sites"]
    for split, number in counts["exams"].items():
        sites = ", ".join(f"{site} {found}" for site, found in counts["sites"][split].items())
        lines.append(f"{split:10}{number:>8}   {sites}")
    lines.append(
        f"frames: {counts['frames']['all']}, {min(lengths)} to {max(lengths)} an exam; "
        f"normal exams: {counts['normal_share']:.0%}; exams with several lesions: {counts['several_lesions']}"
    )
    if counts["chance"] is not None:
        lines.append(
            f"valid frames where there is a lesion: {counts['valid_share']:.0%}; "
            f"a random frame is valid: {counts['chance']:.0%}"
        )
    return "\n".join([*lines, f"written to {out}"])


def _round(value: float) -> float:
    return round(value, 4)
