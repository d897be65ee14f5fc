"""What scoring costs: `llava-ultra score`, default columns and 1,000 bootstrap resamples, at growing numbers of pairs.

    python scripts/bench/score.py [--json FILE]

Each size runs as a process of its own, three times; the median is reported, with the largest resident memory and the
growth from size to size (1.0 is linear). Texts are made up: reports of about 90 Chinese characters, as long as OpenI's,
for the open questions; a fifth of the questions is closed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SIZES = (5_000, 10_000, 20_000)
TARGET_PAIRS, TARGET_S, TARGET_MB = 20_000, 60.0, 1000.0
ORGANS = ("甲状腺", "乳腺", "肝脏", "胆囊", "胰腺", "脾脏", "左肾", "右肾", "子宫", "前列腺", "膀胱", "颈部淋巴结")
PLACES = ("右叶", "左叶", "中部", "上极", "下段", "外上象限", "包膜下", "近门静脉处", "峡部", "深部")
SEEN = ("低回声结节", "无回声区", "强回声光团", "混合回声肿块", "点状强回声", "片状低回声", "管状结构", "稍高回声")
LOOKS = ("边界清晰", "边界欠清", "形态规则", "形态不规则", "内部回声欠均匀", "后方回声增强", "后伴声影", "纵横比大于1")
CLOSED = ("是", "不是", "有", "没有", "正常", "不正常")


def report(generator: random.Random) -> str:
    """About 90 characters: clauses of a few thousand different ones, as reports have them."""
    text = ""
    while len(text) < 85:
        organ, place, seen, looks = (generator.choice(words) for words in (ORGANS, PLACES, SEEN, LOOKS))
        text += f"{organ}{place}见{seen}，{looks}，大小约{generator.randint(3, 60)}mm×{generator.randint(3, 40)}mm，"
    return text[:95] + "。"


def write_case(folder: Path, pairs: int, seed: int = 0) -> list[str]:
    """A gold and an answers file of `pairs` questions; the command that scores them."""
    generator = random.Random(seed)
    files = [(folder / name).open("w", encoding="utf-8") for name in ("gold.jsonl", "answers.jsonl")]
    for number in range(pairs):
        closed = number % 5 == 0
        texts = [generator.choice(CLOSED) if closed else report(generator) for _ in range(2)]
        gold = {"question_id": number, "image": "x.png", "text": "请描述。", "answer": texts[0], "lang": "zh"}
        gold |= {"answer_type": "CLOSED" if closed else "OPEN", "modality": generator.choice(("CT", "MRI", "X-Ray"))}
        gold |= {"content_type": f"type{number % 10}"}
        rows = [gold, {"question_id": number, "text": texts[1], "model_id": "m"}]
        for file, row in zip(files, rows, strict=True):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    for file in files:
        file.close()
    command = [sys.executable, "-m", "llava_ultra_ext.cli", "score", "--gold", "gold.jsonl"]
    return [*command, "--pred", "answers.jsonl", "--json", "scores.json", "--resamples", "1000"]


class Memory(threading.Thread):
    """The most that a process and its children held at once, shared pages counted once (Linux's PSS), in MB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.ended = pid, 0.0, threading.Event()

    def run(self) -> None:
        """Looks until `ended` is set."""
        while not self.ended.wait(0.2):
            self.peak = max(self.peak, sum(map(self._held, [self.pid, *self._children()])) / 1024)

    def _children(self) -> list[int]:
        try:
            tasks = Path(f"/proc/{self.pid}/task").iterdir()
            return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        except OSError:
            return []

    @staticmethod
    def _held(pid: int) -> int:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def timed(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak megabytes of a process with its children.

    Raises:
        RuntimeError: it failed; with its exit status (below 0: the signal that ended it) and its last line.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
        memory = Memory(process.pid)
        memory.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        memory.ended.set()
        memory.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        last = said[-1] if said else "it said nothing"
        raise RuntimeError(f"{' '.join(command)} failed with status {process.returncode} in {folder}: {last}")
    return seconds, usage.ru_utime + usage.ru_stime, max(memory.peak, usage.ru_maxrss / 1024)


def reference() -> float:
    """Seconds that this machine needs now for five million additions in Python: says how fast it is, and how busy."""
    start, total = time.perf_counter(), 0
    for number in range(5_000_000):
        total += number
    return round(time.perf_counter() - start, 2)


def measure(pairs: int, runs: int) -> dict[str, float]:
    """One size."""
    with tempfile.TemporaryDirectory() as folder:
        command = write_case(Path(folder), pairs)
        figures = [timed(command, Path(folder)) for _ in range(runs)]
    seconds, cpu_seconds = (round(statistics.median(figure[part] for figure in figures), 2) for part in (0, 1))
    peak_mb = round(max(figure[2] for figure in figures), 1)
    row = {"pairs": pairs, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb}
    return {**row, "reference_s": reference()}


def main() -> int:
    """Command line; exit status 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--runs", type=int, default=3, help="runs of each size")
    args = parser.parse_args()
    rows = [measure(pairs, args.runs) for pairs in SIZES]
    for before, row in zip([None, *rows], rows, strict=False):
        if before:
            longer, more = row["seconds"] / before["seconds"], row["pairs"] / before["pairs"]
            row["growth"] = round(math.log(longer) / math.log(more), 2)
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    target = next(row for row in rows if row["pairs"] == TARGET_PAIRS)
    met = target["seconds"] < TARGET_S and target["peak_mb"] < TARGET_MB
    print(f"target {TARGET_PAIRS} pairs under {TARGET_S:.0f} s and {TARGET_MB:.0f} MB: {'met' if met else 'MISSED'}")
    if args.json:
        machine = f"{os.cpu_count()} processors, {platform.system()} {platform.machine()}"
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
