"""The paper's ablation on phantom exams: every row through LLaVA's own training, `llava-ultra answer` and `score`.

    bash scripts/ablation.sh --quick
    bash scripts/ablation.sh --seeds 3

A row of a seed is a folder; a finished one is kept, so a run that was cut off goes on. Writes OUT/ablation.json,
ablation.md and plots, and with --results copies them there.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plots
import table
from exam_data import PAIRS, gold_file
from make import frame_tokens
from processes import ROOT, StepFailed, python, stop_on_signals
from rows import ALL, BEYOND, DEFAULTS, ROWS, SCALES, Scale
from steps import alone, read_json, run, same_settings, write_json
from trainings import Setup, Trainings

OUT = ROOT / "playground" / "out" / "ablation"
PAIRS_SEED = 100_000
"""Of the exams of one frame: far from the others' seeds and from those that the models read."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0 when every row is there."""
    args = _parser().parse_args(argv)
    out = (args.out or OUT / args.scale).resolve()
    start = time.monotonic()
    try:
        names = _names(args.rows)
        with alone(out):
            failures = _work(Setup(out, SCALES[args.scale]), names, args)
        print(f"{time.monotonic() - start:.0f} s; {out / 'results'}")
        if failures:
            raise StepFailed("; ".join(failures))
    except (StepFailed, OSError, ValueError) as error:
        print(f"ablation: FAILED: {error}", file=sys.stderr)
        return 1
    print("ablation: OK")
    return 0


def _work(setup: Setup, names: Sequence[str], args: argparse.Namespace) -> list[str]:
    """Everything, up to the table on the terminal; the rows that failed."""
    same_settings(setup.out / "settings.json", asdict(setup.scale))
    prepare(setup, args.jobs)
    failures = train(setup, names, args.seeds, args.jobs)
    for line in table.terminal(collect(setup)):
        print(line)
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        for path in (setup.out / "results").iterdir():
            shutil.copy(path, args.results / path.name)
    return failures


def prepare(setup: Setup, jobs: int) -> None:
    """Phantom exams, their question versions, and the foundation models."""
    scale = setup.scale
    given = [part for name, value in scale.phantom.items() for part in (f"--{name}", value) if part]
    given += ["--size", str(scale.size)]
    phantom = python("-m", "llava_ultra_ext.cli", "phantom", *given, "--workers", str(jobs))
    several = ["--exams", str(scale.exams), "--held-out", str(scale.held_out), "--out", str(setup.phantom)]
    single = ["--exams", str(scale.pairs), "--held-out", "0", "--out", str(setup.phantom / PAIRS), "--frames", "1"]
    lowest, highest = scale.frames
    several += ["--frames", f"{lowest}-{highest}"]
    _part("phantom exams", [*phantom, *several], setup.out / "phantom.log", setup.phantom / "exams.json")
    made = setup.phantom / PAIRS / "exams.json"
    _part("exams of one frame", [*phantom, *single, "--seed", str(PAIRS_SEED)], setup.out / "pairs.log", made)
    questions = python("-m", "llava_ultra_ext.cli", "import", "exams", setup.phantom / "exams.json")
    questions += ["--out", str(setup.data), "--site-cue", "both"]
    _part("questions", questions, setup.out / "questions.log", setup.data / "import.json")
    models = python(ROOT / "playground" / "models" / "make.py", "--out", setup.models, "--exams", scale.reading_exams)
    models += ["--clip-steps", str(scale.clip_steps), "--sam-steps", str(scale.sam_steps)]
    models += ["--llama-steps", str(scale.llama_steps), "--threads", str(jobs), "--workers", str(jobs), *given]
    with ThreadPoolExecutor(1) as beside:
        making = beside.submit(_part, "small CLIP, SAM, LLaMA", models, setup.out / "models.log", None)
        while not (making.done() or _encoders_are_there(setup)):
            time.sleep(1)
        if not making.done():  # the LLaMA takes longer, and frames can be encoded meanwhile
            for stage1 in ("base", "no_sam"):
                Trainings(setup).features(stage1)
        making.result()


def _encoders_are_there(setup: Setup) -> bool:
    made = setup.models / "made.json"
    return made.exists() and {"sam", "clip"} <= set(read_json(made)["models"])


def _part(title: str, command: list[str], log: Path, finished: Path | None) -> None:
    if finished is None or not finished.exists():
        print(f"{title:34}", end="", flush=True)
        usage = run(title, command, log)
        print(f"{usage.seconds:5.0f} s", flush=True)


def train(setup: Setup, names: Sequence[str], seeds: int, jobs: int) -> list[str]:
    """Every row of every seed, `jobs` at once; the failures, after all others are done."""
    trainings, failures = Trainings(setup), []
    pool = ThreadPoolExecutor(jobs)
    try:
        waiting = {pool.submit(trainings.row, name, seed): (name, seed) for seed in range(seeds) for name in names}
        for number, done in enumerate(as_completed(waiting), start=1):
            name, seed = waiting[done]
            try:
                found = done.result()
                line = f"frame choice {found['frame_choice']:5.1f}  F1 {found['f1']:5.1f}"
            except (StepFailed, ValueError, OSError) as error:
                failures.append(f"{name} seed {seed}: {error}")
                line = f"FAILED: {error}"
            print(f"[{number}/{len(waiting)}] {name:24} seed {seed}  {line}", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for rows that have not begun
    return failures


def collect(setup: Setup) -> dict[str, Any]:
    """Rows that are finished, whatever was asked for now, with means and intervals; files and plots."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ALL:
        results = sorted((setup.out / "rows" / name).glob("seed*/result.json"))
        if results:
            found[name] = [read_json(path) for path in results]
    if not found:
        raise StepFailed("no row was finished")
    tokens = frame_tokens(setup.scale.size)
    content = {
        "about": about(setup.scale, _commands(setup.scale, found)),
        "rows": table.summarise(found, tokens),
        "beside": [],
    }
    if "best" in found:  # beside settings of one seed its first seed, beside those of three its three
        for seeds in sorted({len(results) for name, results in found.items() if name not in ROWS}):
            content["beside"] += table.summarise({"best": found["best"][:seeds]}, tokens)
    folder = setup.out / "results"
    write_json(folder / "ablation.json", content["rows"])
    write_json(folder / "about.json", content["about"])
    (folder / "ablation.md").write_text(table.markdown(content), encoding="utf-8")
    plots.write(found, folder)
    _heatmaps(setup, folder / "heatmaps.png")
    return content


def _heatmaps(setup: Setup, path: Path) -> None:
    """Of the paper's sampler and of ours, where both were trained; of seed 0."""
    models = {name: setup.out / "rows" / name / "seed0" for name in ("full", "best")}
    if all((folder / "result.json").exists() for folder in models.values()):
        command = python(ROOT / "playground" / "ablation" / "heatmaps.py", "--images", setup.phantom, "--out", path)
        for name, folder in models.items():
            command += ["--model", f"{name}={folder / 'llava-full'}"]
        command += ["--gold", str(gold_file(setup.data, ALL["best"]))]
        run("heat maps", command, setup.out / "heatmaps.log")


def about(scale: Scale, command: str) -> dict[str, Any]:
    """What figures come from."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True)
    return {
        "command": command,
        "commit": commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else ""),
        "machine": f"{os.cpu_count()} processors, {platform.system()} {platform.machine()}, no GPU",
        "scale": asdict(scale),
    }


def _commands(scale: Scale, found: Mapping[str, Sequence[Any]]) -> str:
    """That made the finished rows, whatever command was the last one."""
    name = next(name for name, known in SCALES.items() if known == scale)
    commands = []
    for flag, group in (("", ROWS), (" --rows defaults", DEFAULTS), (" --rows beyond", BEYOND)):
        seeds = max((len(found[row]) for row in group if row in found), default=0)
        if seeds:
            commands.append(f"bash scripts/ablation.sh --scale {name}{flag} --seeds {seeds}")
    return "; ".join(commands)


def _names(given: str) -> list[str]:
    groups = {"table": list(ROWS), "defaults": list(DEFAULTS), "beyond": list(BEYOND), "all": list(ALL)}
    names = groups.get(given) or [name for name in given.split(",") if name]
    unknown = [name for name in names if name not in ALL]
    if unknown or not names:
        known = ", ".join([*groups, *ALL])
        raise ValueError(f"--rows {given}: no row {', '.join(unknown)}. Known: {known}.")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bash scripts/ablation.sh", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--scale", choices=list(SCALES), default="full", help="how much is trained (default: %(default)s)")
    add("--quick", dest="scale", action="store_const", const="quick", help="--scale quick: one table in 25 minutes")
    add("--seeds", type=int, default=1, help="trainings of each row (default: %(default)s)")
    add("--rows", default="table", help="table, defaults, beyond, all, or names with commas (default: %(default)s)")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="rows at once, one processor each")
    add("--out", type=Path, help="folder of the run; default: playground/out/ablation/SCALE")
    add("--results", type=Path, help="folder for the table and the plots, beside OUT/results")
    return parser


if __name__ == "__main__":
    stop_on_signals("ablation")
    raise SystemExit(main())
