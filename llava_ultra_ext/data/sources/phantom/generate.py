"""Exams of phantoms with known truth: ``llava-ultra phantom --out DIR``.

Writes to DIR: ``frames/<exam>/<nn>.png``; ``exams.json``, a manifest with every question, for ``llava-ultra import
exams``; ``stage1.json`` and ``stage2.json``, training lists; ``truth.jsonl``, what is in each exam; ``card.json``. The
same settings and seed give the same bytes. A run that was stopped goes on where it was. No torch, no LLaVA.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_ultra_ext.data.sources.phantom import records
from llava_ultra_ext.data.sources.phantom.card import LISTS, check_out, count, partial_files, table, write_card
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings
from llava_ultra_ext.data.sources.phantom.drawing import Task, check_kept, draw_all, plan
from llava_ultra_ext.data.sources.phantom.records import Drawn
from llava_ultra_ext.data.whole_file import write_whole

logger = logging.getLogger(__name__)

STOPPED = 130
"""Exit status after Ctrl-C, the shell's own."""

_HELP = {
    "size": "side of a picture in pixels, 64 to 512",
    "normal": "share of exams without a lesion",
    "two_lesions": "share of the others with two lesions",
    "distractor_exams": "share of exams with distractors",
    "stray_exams": "share of exams with frames of another organ",
    "valid_share": "wanted share of valid frames in exams with a lesion",
    "edge_frames": "share of stays in the sweep that show a lesion's edge only",
    "doppler_exams": "share of exams whose valid frames have colour Doppler on",
    "sites": "what exams may be of, with commas between",
    "least_visible": "share of its largest cross-section by which a valid frame shows a lesion",
    "lesion_scale": "times the site's sizes of lesions",
    "detail_scale": "times the usual size of their spikes and micro-calcifications",
    "plain": "texts with one wording a value, in one order",
    "shuffled": "frames in random order, else as the sweep goes",
    "easy": "large lesions that stand out, no edges",
}
"""Field of `PhantomSettings` -> its flag's help."""

_OF_FRAMES = ("min_frames", "max_frames")


def main(argv: Sequence[str] | None = None) -> int:
    """Generate phantom exams.

    Returns:
        0 when all is written, 130 after Ctrl-C.

    Raises:
        ValueError: a flag is out of its range, or the folder holds something else; nothing is written then.
        OSError: no space is left; what is drawn is kept.
        RuntimeError: a worker was killed; what is drawn is kept.
    """
    options = _parser().parse_args(argv)
    settings = settings_of(options)
    counts = {"train": options.exams, "validate": options.validate, "test": options.held_out}
    _check(options, settings, counts)
    recorded = {**{f"exams_{split}": number for split, number in counts.items()}, "seed": options.seed}
    recorded |= dataclasses.asdict(settings)
    out = Path(options.out).expanduser()
    check_out(out, recorded)
    tasks = plan({split: number for split, number in counts.items() if number}, options.seed, settings, out)
    check_kept(tasks)
    done: list[Drawn | None] = [None] * len(tasks)
    try:
        write_card(out, recorded)
        for partial in partial_files(out):
            partial.unlink(missing_ok=True)
        _draw(tasks, options.workers, done)
        exams = [exam for exam in done if exam is not None]
        _write_lists(out, exams)
        counted = count(exams)
        write_card(out, recorded, counted)
    except KeyboardInterrupt:
        logger.warning("stopped: %s", _kept(done))
        return STOPPED
    except BrokenExecutor as error:
        raise RuntimeError(
            f"a worker process was killed, perhaps for want of memory: {_kept(done)} Fewer --workers take less memory."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(f"--out {options.out}: no space is left on the disk. Make room: {_kept(done)}") from error
    sys.stdout.write(table(out, counted) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-ultra phantom", description="Synthetic ultrasound exams with known truth, to train and to measure."
    )
    parser.add_argument("--out", required=True, help="folder to write; a run that was stopped there goes on")
    parser.add_argument("--exams", type=int, default=2000, help="training exams (2000)")
    parser.add_argument("--held-out", type=int, default=400, help="test exams, besides (400)")
    parser.add_argument("--validate", type=int, default=0, help="validation exams, besides (0)")
    parser.add_argument("--seed", type=int, default=0, help="of all exams (0)")
    parser.add_argument("--workers", type=int, default=2, help="processes; they change no byte (2)")
    add_settings(parser)
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds ``--frames`` and a flag for each other field of `PhantomSettings`."""
    lowest, highest = (getattr(PhantomSettings, name) for name in _OF_FRAMES)
    default = f"{lowest}-{highest}"
    parser.add_argument("--frames", default=default, metavar="K|A-B", help=f"frames an exam ({default})")
    for field in dataclasses.fields(PhantomSettings):
        if field.name not in _OF_FRAMES:
            _add_flag(parser, field)


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    flag, text = "--" + field.name.replace("_", "-"), _HELP.get(field.name, f"see PhantomSettings.{field.name}")
    if isinstance(field.default, bool):
        shown = "yes" if field.default else "no"
        parser.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=field.default, help=f"{text} ({shown})"
        )
    elif isinstance(field.default, tuple):
        listed = ",".join(field.default)
        parser.add_argument(flag, default=listed, metavar="A,B,…", help=f"{text} ({listed})")
    else:
        kind = type(field.default)
        parser.add_argument(flag, type=kind, default=field.default, help=f"{text} ({field.default})")


def settings_of(options: argparse.Namespace) -> PhantomSettings:
    """What the flags of `add_settings` say.

    Raises:
        ValueError: ``--frames`` is no number or range; values are checked by `PhantomSettings.check`.
    """
    given: dict[str, Any] = dict(zip(_OF_FRAMES, _frames(options.frames), strict=True))
    for field in dataclasses.fields(PhantomSettings):
        if field.name not in _OF_FRAMES:
            value = getattr(options, field.name)
            if isinstance(field.default, tuple):
                value = tuple(part.strip() for part in value.split(",") if part.strip())
            given[field.name] = value
    return PhantomSettings(**given)


def _frames(text: str) -> tuple[int, int]:
    """``--frames``: one number, or the lowest and the highest.

    Raises:
        ValueError: neither.
    """
    parts = text.split("-")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--frames {text}: must be a number of frames, or the lowest and the highest, as in 2-16.")
    return int(parts[0]), int(parts[-1])


def _check(options: argparse.Namespace, settings: PhantomSettings, counts: dict[str, int]) -> None:
    """Refuse flags before anything is written.

    Raises:
        ValueError: names the flag, its value and what is allowed.
    """
    settings.check()
    flags = {"train": "--exams", "validate": "--validate", "test": "--held-out"}
    for split, number in counts.items():
        if number < 0:
            raise ValueError(f"{flags[split]} {number}: must be 0 or more exams.")
    if not any(counts.values()):
        raise ValueError("--exams 0 --held-out 0: no exam is left to draw. Ask for at least one.")
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers}: must be at least 1 process.")
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: must be 0 or more.")


def _draw(tasks: Sequence[Task], workers: int, done: list[Drawn | None]) -> None:
    """Fill `done`, in the order of the tasks, as exams become whole."""
    with tqdm(total=len(tasks), desc="drawing", unit="exam") as bar:
        for place, case in draw_all(tasks, min(workers, len(tasks))):
            task = tasks[place]
            done[place] = Drawn(case, task.split, case.valid_frames(task.settings.least_visible))
            bar.update()


def _write_lists(out: Path, exams: Sequence[Drawn]) -> None:
    for name, rows in zip(LISTS, (records.manifest, records.stage1, records.stage2), strict=False):
        write_whole(out / name, _list(rows(exams)))
    write_whole(out / LISTS[-1], "".join(f"{_line(row)}\n" for row in records.truth(exams)))


def _list(rows: Iterable[Any]) -> str:
    """A JSON list, a row a line."""
    return "[\n" + ",\n".join(map(_line, rows)) + "\n]\n"


def _line(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False)


def _kept(done: Sequence[Drawn | None]) -> str:
    whole = sum(exam is not None for exam in done)
    return f"{whole} of {len(done)} exams are whole and kept. The same command goes on from there."
