"""Whether what `llava-ultra ingest` left is what the plan says: equal ways, planted counts, no identifier anywhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hospital_plan import EXAMS, FRAMES_PER_CINE, OTHER, UNCLEAN, WITHOUT_PICTURES, WITHOUT_REPORT, Plan
from llava_ultra_ext.data.deidentify.keys import Secret

LEDGER = "work"  # its SQLite file holds the exams in the order in which they came
EQUAL = ("exams.json", "exams.parquet", "audit.jsonl", "quarantine.jsonl", "ingest.json", "card.png")


def files_of(folder: Path) -> dict[str, Path]:
    """Name relative to the folder -> file."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def unlike(first: Path, other: Path) -> list[str]:
    """How two output folders differ, but for their ledgers; empty: byte for byte equal."""
    one, two = (
        {name: path for name, path in files_of(folder).items() if not name.startswith(f"{LEDGER}/")}
        for folder in (first, other)
    )
    missing = [name for name in EQUAL if name not in one]
    found = [f"{first.name} has no {name}" for name in missing]
    found += [f"{name} is in one of {first.name} and {other.name}" for name in sorted(one.keys() ^ two.keys())]
    same = sorted(one.keys() & two.keys())
    found += [f"{name} differs" for name in same if one[name].read_bytes() != two[name].read_bytes()]
    return found


def miscounted(plan: Plan, card: Mapping[str, Any], audit: Path, frames: Mapping[str, int]) -> list[str]:
    """What the data card or the audit counts otherwise than planted.

    Args:
        plan: of the hospital.
        card: ``ingest.json``.
        audit: ``audit.jsonl``.
        frames: real file -> its frames.
    """
    taken = {name: min(FRAMES_PER_CINE, count) for name, count in frames.items()}
    good = [name for study in plan.good.values() for name in study.files if name != OTHER]
    rows = len(plan.rows)
    wanted: dict[str, Any] = {
        "exams": EXAMS,
        "exams_without_frames": 2,
        "patients": len({study.person.number for study in plan.good.values()}),
        "frames": sum(taken[name] for name in good if name != UNCLEAN),
        "files": len(good) + 3,
        "kept_back": {"no_scan_region": 1, "several_patients": 1, "too_small": 1},
        "reports": {"rows": rows, "usable": rows - 1, "refused": {"no_findings": 1}},
        "unmatched": {"exam": WITHOUT_PICTURES, "study": WITHOUT_REPORT + 1},
        "incomplete": 0,
    }
    found = [f"{name}: {card[name]}, planted {value}" for name, value in wanted.items() if card[name] != value]
    removed: Counter[str] = Counter()
    for line in audit.read_text(encoding="utf-8").splitlines():
        removed.update(json.loads(line)["removed"])
    return found + [
        f"audit {kind}: {removed[kind]}, planted {n}" for kind, n in plan.planted.items() if removed[kind] != n
    ]


def dates_left(plan: Plan, secret: Secret, exams: Sequence[Mapping[str, Any]]) -> list[str]:
    """Exams in whose record a date of their own report still stands, or that are not in the list at all.

    Another exam's date is no sign: a moved date may be any.
    """
    records = {record["exam_id"]: record for record in exams}
    found = []
    for accession, study in plan.good.items():
        exam = secret.pseudonym("accession", accession)
        record = records.get(exam)
        if record is None:
            found.append(f"exam {exam} is not in exams.json")
        elif record["exam_date"] == study.day.isoformat() or any(
            day in str(record[name]) for day in plan.dates[accession] for name in ("history", "findings", "diagnosis")
        ):
            found.append(f"exam {exam} holds a date of its report")
    return found


def banner_left(
    plan: Plan, secret: Secret, out: Path, exams: Sequence[Mapping[str, Any]], frames: Mapping[str, int]
) -> list[str]:
    """Real files whose cleaned pictures differ between exams; half the copies of one have a name burned in."""
    images = {record["exam_id"]: record["image"] for record in exams}
    seen: dict[str, set[tuple[bytes, ...]]] = {}
    for accession, study in plan.good.items():
        names = list(images.get(secret.pseudonym("accession", accession), ()))
        for file in study.files:
            if file in (OTHER, UNCLEAN):
                continue
            count = min(FRAMES_PER_CINE, frames[file])
            seen.setdefault(file, set()).add(tuple((out / name).read_bytes() for name in names[:count]))
            names = names[count:]
    return [f"{file}: its pictures differ between exams" for file, versions in seen.items() if len(versions) != 1]


def identifiers_in(
    identifiers: Iterable[str], folders: Iterable[Path], skip: Iterable[Path] = ()
) -> dict[str, list[str]]:
    """Identifier -> where it stands: files and file names below `folders`, Parquet read too; plain, or escaped as in
    JSON.

    Args:
        identifiers: to look for.
        folders: whose files are read; equal contents once.
        skip: files that are left out.
    """
    needles = {word: {word.encode(), json.dumps(word)[1:-1].encode()} for word in identifiers}
    left_out = {path.resolve() for path in skip}
    found: dict[str, list[str]] = {}
    seen: set[bytes] = set()
    for folder in folders:
        for name, path in files_of(folder).items():
            if path.resolve() in left_out:
                continue
            for content in (name.encode(), *_contents(path)):
                if content in seen:
                    continue
                seen.add(content)
                for word, forms in needles.items():
                    if any(form in content for form in forms):
                        found.setdefault(word, []).append(name)
    return found


def _contents(path: Path) -> Iterator[bytes]:
    yield path.read_bytes()
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        yield json.dumps(pq.read_table(path).to_pylist(), ensure_ascii=False).encode()


def parquet_differs(folder: Path) -> list[str]:
    """Whether ``exams.parquet`` says something else than ``exams.json``."""
    import pyarrow.parquet as pq

    records = json.loads((folder / "exams.json").read_text(encoding="utf-8"))
    rows = pq.read_table(folder / "exams.parquet").to_pylist()
    return (
        []
        if rows == [{name: record[name] for name in rows[0]} for record in records]
        else ["exams.parquet and exams.json differ"]
    )
