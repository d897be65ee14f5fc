"""What instructions by template cost: `llava-ultra instruct`, both versions, at growing numbers of reports.

    python scripts/bench/instruct.py [--json FILE] [--sizes 5000 10000 20000]

Each size runs as a process of its own; wall seconds, processor seconds and the largest memory are reported, and the
growth from size to size (1.0 is linear). Reports are made up, of about 90 Chinese characters and 8 frames an exam.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import sys
import tempfile
from pathlib import Path

from score import ORGANS, report, timed

TARGET_REPORTS, TARGET_S, TARGET_MB = 20_000, 120.0, 1500.0
FRAMES = 8


def write_manifest(path: Path, reports: int, seed: int = 0) -> None:
    """A list of exams."""
    choice = random.Random(seed)
    records = []
    for number in range(reports):
        exam, site = f"US-{number:06}", choice.choice(ORGANS)
        image = [f"{exam}/{frame:03}.png" for frame in range(FRAMES)]
        texts = {"site": site, "findings": report(choice), "diagnosis": f"{site}结节。"}
        records.append({"exam_id": exam, "image": image, **texts})
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")


def measure(reports: int) -> dict[str, float]:
    """One size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder / "exams.json", reports)
        command = [sys.executable, "-m", "llava_ultra_ext.cli", "instruct", "exams.json", "--out", "out"]
        seconds, cpu_seconds, peak_mb = timed([*command, "--site-cue", "both"], folder)
        written = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "out").glob("*/*.json"))]
        if [len(found) for found in written] != [reports] * 4:
            raise RuntimeError(f"wrote {[len(found) for found in written]} records of {reports} exams")
    return {
        "reports": reports,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_mb": round(peak_mb, 1),
    }


def main() -> int:
    """Command line; exit status 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 10_000, TARGET_REPORTS], help="reports")
    args = parser.parse_args()
    rows = [measure(size) for size in args.sizes]
    for before, row in zip([None, *rows], rows, strict=False):
        if before:
            longer, more = row["cpu_seconds"] / before["cpu_seconds"], row["reports"] / before["reports"]
            row["growth"] = round(math.log(longer) / math.log(more), 2)
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if args.json:
        machine = f"{os.cpu_count()} processors, {platform.system()} {platform.machine()}"
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    target = next((row for row in rows if row["reports"] == TARGET_REPORTS), None)
    if target is None:
        return 0
    met = target["seconds"] < TARGET_S and target["peak_mb"] < TARGET_MB
    print(f"target {TARGET_REPORTS} reports under {TARGET_S:.0f} s, {TARGET_MB:.0f} MB: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
