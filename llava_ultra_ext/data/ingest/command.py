"""``llava-ultra ingest``: reports of a database and pictures of a PACS become exams that are safe to train on.

    llava-ultra secret hospital.secret
    llava-ultra ingest --reports postgresql://reader@db/ris --mapping mapping.yaml \\
        --images https://pacs.example/dicom-web --dates 2023-01-01 2023-12-31 --secret hospital.secret --out exams

An exam is finished as a whole; the same command goes on behind the last one, however the run before it ended.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.deidentify.keys import VARIABLE, load_secret
from llava_ultra_ext.data.deidentify.pixel_text import rapid_reader
from llava_ultra_ext.data.dicom.cine import RULES
from llava_ultra_ext.data.ingest import engines, sources
from llava_ultra_ext.data.ingest.joining import Joining
from llava_ultra_ext.data.ingest.ledger import Ledger
from llava_ultra_ext.data.ingest.one_exam import FORMATS, Outcome, Settings, folder_of, ingest_exam
from llava_ultra_ext.data.ingest.output import CARD, write_output
from llava_ultra_ext.data.pacs.spool import empty
from llava_ultra_ext.data.reports import load_mapping, read_reports
from llava_ultra_ext.data.sites import load_sites

REPORTS = "REPORTS_URL"
"""Environment variable with the database's URL, so that its password stands in no list of processes."""

LEDGER = "work/ledger.sqlite"

_LOGGER = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Ingest.

    Raises:
        ValueError: a flag, the mapping, the secret or the output folder is unusable; nothing was written.
        RuntimeError: the archive does not answer, or a worker died; finished exams are kept.
        OSError: something cannot be written; finished exams are kept.
    """
    options = _parser().parse_args(argv)
    out = Path(options.out).expanduser().resolve()
    secret, settings = load_secret(options.secret), _settings(options, out)
    load_sites(settings.sites)
    mapping, source, dates = load_mapping(options.mapping), sources.open_source(options), _dates(options.dates)
    spool = Path(options.spool or f"{out}.spool").expanduser().resolve()
    _check_places(options, out, spool)
    engines.check(options.engine, options.workers)
    decisive = _decisive(settings)
    with contextlib.ExitStack() as opened:
        rows = opened.enter_context(contextlib.closing(read_reports(_reports(options), mapping)))
        first = list(itertools.islice(rows, 1))  # a database that cannot be read says so before anything is written
        made_with = {**decisive, "secret": secret.pseudonym("secret", "")}
        ledger = opened.enter_context(contextlib.closing(Ledger(out / LEDGER, made_with)))
        joining = Joining(source, dates, spool, secret, ledger)
        tasks = joining.tasks(itertools.chain(first, rows))
        work = functools.partial(ingest_exam, settings=settings)
        _finish_all(engines.run(work, tasks, options.engine, options.workers, options.ray_address), joining)
        for exam in joining.withdrawn:
            if ledger.drop(exam):
                shutil.rmtree(out / folder_of(exam), ignore_errors=True)
        content = write_output(out, ledger, joining.left, decisive, settings.sites)
    if not joining.left.incomplete:
        empty(spool)
    sys.stdout.write(_told(content, joining, out) + "\n")
    return 0


def _check_places(options: argparse.Namespace, out: Path, spool: Path) -> None:
    if spool == out or out in spool.parents:
        raise ValueError(f"--spool {spool}: lies in --out, which holds no patient's data. Give another folder.")
    if "://" in options.images:
        return
    images = Path(options.images).expanduser().resolve()
    if out == images or images in out.parents:
        raise ValueError(f"--out {options.out}: lies in --images, where the next run would read it. Give another.")


def _finish_all(outcomes: Iterable[Outcome], joining: Joining) -> None:
    from tqdm import tqdm

    for outcome in tqdm(outcomes, desc="exams", unit="exam"):
        joining.ledger.add(outcome)
        joining.finish(outcome.exam)


def _settings(options: argparse.Namespace, out: Path) -> Settings:
    if options.frames_per_cine < 1:
        raise ValueError(f"--frames-per-cine {options.frames_per_cine}: at least 1.")
    reader = options.ocr != "off" and rapid_reader() is not None
    if options.ocr == "require" and not reader:
        raise ValueError("--ocr require: no text reader is installed. pip install 'llava_ultra_ext[ocr]'")
    if not reader:
        _LOGGER.warning("text inside the scan region is not looked for: --ocr off, or llava_ultra_ext[ocr] is absent")
    return Settings(
        out,
        Path(options.secret).expanduser().resolve() if options.secret else None,
        options.sites,
        options.modality,
        options.frames_per_cine,
        options.cine_rule,
        options.picture_format,
        reader,
    )


def _decisive(settings: Settings) -> dict[str, Any]:
    """Settings that decide the bytes of the output; neither a path nor the secret is shown."""
    names = ("modality", "frames_per_cine", "cine_rule", "picture_format", "read_text")
    sites = None if settings.sites is None else hashlib.sha256(Path(settings.sites).read_bytes()).hexdigest()[:16]
    return {**{name: getattr(settings, name) for name in names}, "sites": sites}


def _reports(options: argparse.Namespace) -> str:
    given = options.reports or os.environ.get(REPORTS, "")
    if not given:
        raise ValueError(f"--reports: name a file or a database's URL, or set {REPORTS}.")
    return str(given)


def _dates(given: Sequence[str] | None) -> tuple[date, date] | None:
    if given is None:
        return None
    try:
        first, last = (date.fromisoformat(text) for text in given)
    except ValueError:
        raise ValueError(f"--dates {' '.join(given)}: give two dates as 2024-01-31.") from None
    if first > last:
        raise ValueError(f"--dates {first} {last}: the first must not be later. Swap them.")
    return first, last


def _told(card: dict[str, Any], joining: Joining, out: Path) -> str:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"

    rows, unmatched = card["reports"], card["unmatched"]
    lines = [
        f"exams: {card['exams']} of {card['patients']} patients, {card['frames']} frames "
        f"({card['near_duplicates']} near-duplicates marked)",
        f"finished before: {joining.left.counts['finished_before']}",
        f"kept back: {listed(card['kept_back'])}",
        f"report rows: {rows['rows']}, usable {rows['usable']}; refused: {listed(rows['refused'])}",
        f"reports without pictures: {unmatched['exam']}; studies without report: {unmatched['study']}",
    ]
    if card["incomplete"]:
        lines.append(f"not fetched whole: {card['incomplete']}; the same command asks for them again")
    return "\n".join([*lines, f"written to {out} ({CARD}, card.png: the data card)"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-ultra ingest", description="Reports and pictures of a hospital as exams that are safe to train on."
    )
    add = parser.add_argument
    add("--reports", help=f"CSV, Excel or SQLite file, or a database's URL; else it is read from ${REPORTS}")
    add("--mapping", required=True, help="YAML: which column is what")
    add("--out", required=True, help="folder to write; holds no identifier")
    add("--secret", help=f"file of `llava-ultra secret`; else it is read from ${VARIABLE}")
    add("--dates", nargs=2, metavar=("FROM", "TO"), help="study dates; with a PACS, finds studies without report too")
    add("--spool", help="folder of fetched files until their exam is finished; identifies patients (OUT.spool)")
    add("--frames-per-cine", type=int, default=8, help="most frames of a multi-frame file (8)")
    add("--cine-rule", choices=RULES, default="uniform", help="which: evenly spread, or where it changes (uniform)")
    add("--picture-format", choices=tuple(FORMATS), default="png", help="lossless, or a fifth of the bytes (png)")
    add("--ocr", choices=("auto", "require", "off"), default="auto", help="look for text left in pictures (auto)")
    add("--sites", help="YAML with further sites and words")
    add("--modality", default="ultrasound", help="that records carry (ultrasound)")
    add("--engine", choices=engines.ENGINES, default="processes", help="this machine, or a Ray cluster (processes)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="exams at once (processors)")
    add("--ray-address", default="", help="auto or host:port; else a cluster of this machine. OUT and files are shared")
    sources.add_arguments(parser)
    return parser
