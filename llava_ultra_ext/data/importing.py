"""Public and hospital data to training lists, question files and gold files: ``llava-ultra import SOURCE``.

For each split S it writes ``S.json`` (LLaVA's training list), ``S_questions.jsonl`` and ``S_gold.jsonl``; besides them
the card ``import.json`` and, where there is something to tell, ``missing.jsonl``, ``duplicates.jsonl`` and
``skipped.jsonl``. The same input gives the same bytes. No torch, no LLaVA.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.duplicates import Duplicates, Picture, find_duplicates, look_at
from llava_ultra_ext.data.import_files import gold_fault, write_card, write_lines, write_splits
from llava_ultra_ext.data.import_folder import check_inputs, check_out, restore_leftovers, whole_folder
from llava_ultra_ext.data.sources import SOURCES
from llava_ultra_ext.data.sources.source import ANSWER_TYPES, LANGUAGES, SPLITS, Item, Reading, Skipped
from llava_ultra_ext.data.splits import make_split, parse_shares, split_hash

logger = logging.getLogger(__name__)

_ARGUMENTS = ("lang", "site_cue", "modality", "split", "seed", "skip_missing")
"""Flags that the card repeats; paths are not among them, so that a card is the same on every machine."""


_SHOWN = 4
"""So many content types stand in the table; the card has them all."""


@dataclass(frozen=True)
class Version:
    """One version of an import, ready to be written.

    Args:
        items: split -> its questions, in order; splits without any are absent.
        card: counts and how they came about.
    """

    items: dict[str, list[Item]]
    card: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Import a source.

    Raises:
        ValueError: the source, a flag or the output folder is unusable, or nothing is left to write.
    """
    options = _parser().parse_args(argv)
    shares = parse_shares(options.split) if "split" in options else None
    out = Path(options.out).expanduser()
    check_inputs(out, options)
    restore_leftovers(out)
    check_out(out, options.source)
    reading: Reading = importlib.import_module(SOURCES[options.source]).read(options)
    no_gold = _without_gold_faults(reading)
    any_version = next(iter(reading.versions.values()))
    pictures = look_at(reading.image_folder, dict.fromkeys(name for item in any_version for name in item.images))
    splits = _splits(any_version, pictures, shares, options)
    duplicates = find_duplicates(any_version, splits, pictures)
    missing = _missing(any_version, pictures)
    skipped = [*reading.skipped, *no_gold]
    if options.skip_missing:
        skipped += _skipped_for_pictures(any_version, pictures)
    texts = []
    with whole_folder(out) as folder:
        for name, items in reading.versions.items():
            version = _version(items, splits, pictures, reading, no_gold, options)
            version.card["duplicates"] = _duplicate_counts(duplicates)
            version.card["missing_pictures"] = len(missing)
            _write(folder / name, version, missing, duplicates, skipped)
            texts.append(_table(version, out / name))
        if "" not in reading.versions:
            write_card(folder, {"source": options.source, "versions": list(reading.versions)})
        check_out(out, options.source)  # once more: reading takes minutes
    sys.stdout.write("\n\n".join(texts) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-ultra import", description="Public and hospital data to training, question and gold files."
    )
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for name, module_name in SOURCES.items():
        module = importlib.import_module(module_name)
        source = sources.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.add_arguments(source)
        source.add_argument("--out", required=True, help="folder to write; an earlier import of the source is replaced")
        source.add_argument(
            "--skip-missing",
            action="store_true",
            help="leave out questions with a missing or broken picture (without the flag they are listed and kept)",
        )
    return parser


def _splits(
    items: Sequence[Item],
    pictures: Mapping[str, Picture],
    shares: tuple[float, ...] | None,
    options: argparse.Namespace,
) -> dict[str, str]:
    """Study -> split, of the studies that have no official one."""
    keys: dict[str, list[str]] = {}
    for item in items:
        if not item.split:
            found = keys.setdefault(item.study, [])
            found += [f"name {name}" for name in item.images]
            found += [f"content {pictures[name].content}" for name in item.images if pictures[name].content]
    return make_split(keys, shares, options.seed) if shares is not None else {}


def _missing(items: Iterable[Item], pictures: Mapping[str, Picture]) -> list[dict[str, Any]]:
    """Lines of ``missing.jsonl``: each picture that cannot be read, and the questions about it."""
    users: dict[str, list[int | str]] = {}
    for item in items:
        for name in item.images:
            if pictures[name].fault is not None:
                users.setdefault(name, []).append(item.id)
    rows = []
    for name, ids in users.items():
        fault = pictures[name].fault
        rows.append({"image": name, "reason": fault.reason if fault is not None else "", "ids": ids})
    return rows


def _whole(item: Item, pictures: Mapping[str, Picture]) -> bool:
    return all(pictures[name].fault is None for name in item.images)


def _skipped_for_pictures(items: Iterable[Item], pictures: Mapping[str, Picture]) -> list[Skipped]:
    return [Skipped("question", item.id, "missing_picture") for item in items if not _whole(item, pictures)]


def _without_gold_faults(reading: Reading) -> list[Skipped]:
    """Take out the questions that `llava-ultra score` would refuse, from all versions alike; return them."""
    reasons: dict[int | str, str] = {}
    for items in reading.versions.values():
        for item in items:
            if item.id not in reasons and (reason := gold_fault(item)):
                reasons[item.id] = reason
    for name, items in reading.versions.items():
        reading.versions[name] = [item for item in items if item.id not in reasons]
    return [Skipped("question", key, reason) for key, reason in reasons.items()]


def _version(
    items: Sequence[Item],
    splits: Mapping[str, str],
    pictures: Mapping[str, Picture],
    reading: Reading,
    no_gold: Sequence[Skipped],
    options: argparse.Namespace,
) -> Version:
    kept = [item for item in items if not options.skip_missing or _whole(item, pictures)]
    if not kept:
        reasons = Counter(skip.reason for skip in (*reading.skipped, *no_gold)) + reading.left_out
        reasons["missing_picture"] += len(items)
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items() if count)
        raise ValueError(
            f"{options.source}: no question is left to write ({listed}). "
            "Give records with text (conversations, findings or diagnosis), and check --image-folder and --lang."
        )
    ids = Counter(item.id for item in kept)
    doubled = [key for key, count in ids.items() if count > 1]
    if doubled:
        raise ValueError(f"{options.source}: question id {doubled[0]} stands {ids[doubled[0]]} times. Ids are unique.")
    by_split: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in kept:
        by_split[item.split or splits[item.study]].append(item)
    present = {split: found for split, found in by_split.items() if found}
    return Version(present, _card(present, len(items), reading, no_gold, options))


def _card(
    present: Mapping[str, Sequence[Item]],
    questions: int,
    reading: Reading,
    no_gold: Sequence[Skipped],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """``import.json``, but for what is known of the pictures.

    Args:
        present: split -> its questions.
        questions: how many can be asked, before any is left out for its pictures.
        reading: the source, read.
        no_gold: questions that cannot be scored, besides `questions`.
        options: the command line.
    """
    written = sum(map(len, present.values()))
    return {
        "source": options.source,
        "arguments": {name: getattr(options, name) for name in _ARGUMENTS if name in options},
        "split_rule": "official" if reading.official_split else "sha256 of seed:study, equal pictures together",
        "split_hash": split_hash((item.study, split) for split, found in present.items() for item in found),
        "records": {
            "read": reading.read,
            "used": reading.used,
            "skipped": len(reading.skipped),
            "left_out": dict(reading.left_out),
        },
        "questions": {
            "read": questions + len(no_gold),
            "written": written,
            "skipped_as_no_gold": dict(Counter(skip.reason for skip in no_gold)),
            "skipped_for_missing_pictures": questions - written,
        },
        "counts": {split: _counts(found) for split, found in present.items()},
        "notes": dict(reading.notes),
    }


def _counts(items: Sequence[Item]) -> dict[str, Any]:
    kinds = Counter((item.lang, item.answer_type) for item in items)
    return {
        "studies": len({item.study for item in items}),
        "pictures": len({name for item in items for name in item.images}),
        "questions": len(items),
        "lang": {
            lang: {kind: kinds[lang, kind] for kind in ANSWER_TYPES}
            for lang in LANGUAGES
            if any(kinds[lang, kind] for kind in ANSWER_TYPES)
        },
        **{
            key: dict(sorted(Counter(getattr(item, key) for item in items if getattr(item, key)).items()))
            for key in ("modality", "content_type", "site")
        },
    }


def _duplicate_counts(duplicates: Duplicates) -> dict[str, int]:
    return {
        "equal_pictures": sum(row["match"] == "content" for row in duplicates.rows),
        "pictures_in_several_splits": sum(row["match"] == "name" for row in duplicates.rows),
        "across_splits": duplicates.across_splits,
        "conflicts": duplicates.conflicts,
        "exams_across_splits": duplicates.exams_across_splits,
    }


def _write(
    folder: Path,
    version: Version,
    missing: list[dict[str, Any]],
    duplicates: Duplicates,
    skipped: Sequence[Skipped],
) -> None:
    folder.mkdir(exist_ok=True)
    write_splits(folder, version.items)
    reports = {"missing": missing, "duplicates": duplicates.rows, "skipped": [vars(skip) for skip in skipped]}
    for name, rows in reports.items():
        if rows:
            write_lines(folder / f"{name}.jsonl", rows)
    write_card(folder, version.card)


def _table(version: Version, folder: Path) -> str:
    """What the command answers."""
    card = version.card
    lines = [f"{'split':10}{'lang':6}{'OPEN':>8}{'CLOSED':>8}{'studies':>9}{'pictures':>10}   modality, content"]
    for split, counts in card["counts"].items():
        kinds = {**counts["modality"], **(counts["content_type"] if len(counts["content_type"]) <= _SHOWN else {})}
        listed = ", ".join(f"{name} {count}" for name, count in kinds.items())
        for lang, types in counts["lang"].items():
            row = f"{split:10}{lang:6}{types['OPEN']:>8}{types['CLOSED']:>8}"
            if lang == next(iter(counts["lang"])):
                row += f"{counts['studies']:>9}{counts['pictures']:>10}   {listed}"
            lines.append(row)
    records, duplicates = card["records"], card["duplicates"]
    left_out = "".join(f", {reason} {count}" for reason, count in records["left_out"].items())
    lines += [f"{key.replace('_', ' ')}: {count}" for key, count in card["notes"].items() if count]
    if no_gold := card["questions"]["skipped_as_no_gold"]:
        listed = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in no_gold.items())
        lines.append(f"questions left out, since scoring would refuse them: {listed}")
    return "\n".join(
        [
            *lines,
            f"records: {records['read']} read, {records['used']} used, {records['skipped']} skipped{left_out}",
            f"across splits: {duplicates['across_splits']} pictures, {duplicates['exams_across_splits']} exams",
            f"duplicates: {duplicates['equal_pictures']} groups of equal pictures, {duplicates['conflicts']} with "
            "different labels",
            f"missing or broken pictures: {card['missing_pictures']}; questions left out for them: "
            f"{card['questions']['skipped_for_missing_pictures']}",
            f"split: {card['split_rule']}, hash {card['split_hash']}",
            f"written to {folder}",
        ]
    )
