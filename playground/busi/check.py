"""Does the sampler find the lesion among real pictures? Exams of BUSI through LLaVA's training and our `answer`.

    bash scripts/busi_check.sh [--models DIR] [--seeds 3]

An exam is a picture of a lesion among k - 1 normal ones, with a text of its class. A row of a seed is a folder; a
finished one is kept. Writes OUT/results/busi.json and busi.md.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ablate
from busi import exams, saliency
from busi.busi_trainings import ROWS, BusiSetup, BusiTrainings
from llava_ultra_ext.data.whole_file import write_whole
from processes import ROOT, StepFailed, python, stop_on_signals
from rows import Scale
from steps import read_json, run, same_settings, write_json

DATA = ROOT / ".." / "shared" / "data" / "busi"
MODELS = ROOT / "playground" / "out" / "ablation" / "full" / "models"
PARTS = ("clip", "sam", "llama")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0 when every row is there."""
    args = _parser().parse_args(argv)
    args.given = shlex.join(sys.argv[1:] if argv is None else argv)
    start = time.monotonic()
    try:
        setup, held_out = prepare(args)
        print(f"{len(held_out)} held-out exams with a lesion; logs in {setup.out}", flush=True)
        for line in markdown(collect(setup, held_out, train(setup, args), args)):
            print(line)
        if args.results:
            shutil.copytree(setup.out / "results", args.results, dirs_exist_ok=True)
        print(f"{time.monotonic() - start:.0f} s; {setup.out / 'results'}")
    except (StepFailed, OSError, ValueError) as error:
        print(f"busi: FAILED: {error}", file=sys.stderr)
        return 1
    print("busi: OK")
    return 0


def prepare(args: argparse.Namespace) -> tuple[BusiSetup, list[exams.Exam]]:
    """The exams as files of `llava-ultra import`; the held-out ones with a lesion.

    Raises:
        ValueError: an input is not there, or OUT holds a run with other settings.
    """
    check(args)
    made = read_json(args.models / "made.json")
    found = exams.read_pictures(args.busi)
    pictures = exams.split(found, exams.twins(args.busi, found), args.held_out, args.seed)
    both = {name: exams.make_exams(side, args.k, args.seed) for name, side in pictures.items()}
    out = (args.out or ROOT / "playground" / "out" / "busi").resolve()
    settings = {"k": args.k, "held_out": args.held_out, "seed": args.seed, "models": made, "counts": _counts(pictures)}
    same_settings(out / "settings.json", {**settings, "steps": [args.stage1_steps, args.stage2_steps]})
    exams.write(both, pictures["train"], args.seed, args.busi, out / "pictures")
    scale = Scale(
        exams=len(both["train"]),
        held_out=len(both["test"]),
        reading_exams=made["settings"]["exams"],
        **{key: made["settings"][key] for key in ("size", "clip_steps", "sam_steps", "llama_steps")},
        stage1_steps=args.stage1_steps,
        stage2_steps=args.stage2_steps,
        frames=(args.k, args.k),
    )
    setup = BusiSetup(out, scale, args.models.resolve(), settings)
    for name, manifest, more in (("train", "stage2.json", ["--split", "1,0,0"]), ("test", "held_out.json", [])):
        command = python("-m", "llava_ultra_ext.cli", "import", "exams", setup.phantom / manifest, *more)
        run(f"import {name}", [*command, "--out", setup.data / name, "--site-cue", "both"], out / f"{name}.log")
    return setup, [exam for exam in both["test"] if exam.label != "normal"]


def check(args: argparse.Namespace) -> None:
    """Refuses what cannot be run before anything is written.

    Raises:
        ValueError: says what is missing.
    """
    unknown = [name for name in args.rows if name not in ROWS]
    if unknown:
        raise ValueError(f"--rows {','.join(args.rows)}: no row {', '.join(unknown)}. Known: {', '.join(ROWS)}.")
    if not 0 < args.held_out < 1:
        raise ValueError(f"--held-out {args.held_out}: is a share. Give a number between 0 and 1, as 0.4.")
    if not args.busi.is_dir():
        raise ValueError(f"--busi {args.busi}: no such folder. Give BUSI's, with benign, malignant and normal in it.")
    missing = [name for name in (*PARTS, "made.json") if not (args.models / name).exists()]
    if missing:
        raise ValueError(
            f"--models {args.models}: has no {', '.join(missing)}. Make them: python playground/models/make.py --out "
            "DIR; or run scripts/ablation.sh, and give its OUT/models."
        )


def _counts(pictures: Mapping[str, Sequence[exams.Picture]]) -> dict[str, dict[str, int]]:
    labels = exams.source.CLASSES
    return {
        name: {label: sum(picture.label == label for picture in found) for label in labels}
        for name, found in pictures.items()
    }


def train(setup: BusiSetup, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every row of every seed, one after the other: a signal then stops the command that runs, and with it all."""
    trainings = BusiTrainings(setup)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.rows}
    for seed in range(args.seeds):
        for name in args.rows:
            found[name].append(trainings.row(ROWS[name], seed))
            chosen = 100 * np.mean([exam["hit"] for exam in found[name][-1]["exams"]])
            print(f"{name:12} seed {seed}  lesion chosen {chosen:5.1f} %", flush=True)
    return found


def collect(
    setup: BusiSetup,
    held_out: Sequence[exams.Exam],
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Figures in 0 to 100, and where they come from; writes both files."""
    rows = []
    for name, results in found.items():
        exam_hits = np.mean([[exam["hit"] for exam in result["exams"]] for result in results], axis=0)
        row = {"name": name, "seeds": len(results), "frame_choice": interval(exam_hits)}
        row["by_seed"] = [100 * float(np.mean([exam["hit"] for exam in result["exams"]])) for result in results]
        for key in ("answers_right", "teacher"):
            if key in results[0]:
                row[key] = float(np.mean([result[key] for result in results]))
        rows.append(row)
    names = sorted({picture.name for exam in held_out for picture in exam.pictures})
    features = saliency.mean_features(setup.models / "clip", setup.phantom, names)
    rows.append({"name": "saliency", "frame_choice": interval(np.array(saliency.hits(held_out, features)))})
    content = {"about": about(setup, args), "exams": len(held_out), "chance": 100 / args.k, "rows": rows}
    write_json(setup.out / "results" / "busi.json", content)
    write_whole(setup.out / "results" / "busi.md", "\n".join(markdown(content)) + "\n")
    return content


def interval(hits: np.ndarray) -> dict[str, float]:
    """Mean of per-exam hits and its 95 % percentile bootstrap over exams, in 0 to 100.

    Exams share normal pictures, so it is somewhat too narrow; what other seeds would give stands in `by_seed`.
    """
    drawn = np.random.default_rng(0).choice(hits, (2000, len(hits))).mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"mean": 100 * float(hits.mean()), "low": 100 * float(low), "high": 100 * float(high)}


def about(setup: BusiSetup, args: argparse.Namespace) -> dict[str, Any]:
    """What the figures come from."""
    return {
        **ablate.about(setup.scale, f"bash scripts/busi_check.sh {args.given}".strip()),
        "data": "BUSI, Al-Dhabyani et al. 2020, CC BY 4.0",
        "models": "small CLIP, SAM and LLaMA that learnt from phantoms alone",
        "settings": setup.settings,
    }


def markdown(content: Mapping[str, Any]) -> list[str]:
    """A table of one line."""
    rows = content["rows"]
    cells = []
    for row in rows:
        found = row["frame_choice"]
        cells.append(f"{found['mean']:.1f} ({found['low']:.1f} to {found['high']:.1f})")
    heads = ["BUSI, lesion picture chosen, %", *(row["name"] for row in rows), "chance"]
    line = f"{content['exams']} exams of k = {content['about']['settings']['k']}"
    return [
        f"| {' | '.join(heads)} |",
        "|" + " --- |" * len(heads),
        f"| {line} | {' | '.join(cells)} | {content['chance']:.1f} |",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bash scripts/busi_check.sh", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--busi", type=Path, default=DATA, help="BUSI: folders benign, malignant, normal (default: %(default)s)")
    add("--models", type=Path, default=MODELS, help="clip, sam and llama of models/make.py (default: %(default)s)")
    add("--out", type=Path, help="folder of the run (default: playground/out/busi)")
    add("--results", type=Path, help="folder for busi.json and busi.md, beside OUT/results")
    add("--rows", type=lambda text: text.split(","), default=["likelihood", "first", "swapped"], metavar="A,B,…")
    add("--seeds", type=int, default=1, help="trainings of each row (default: %(default)s)")
    add("--k", type=int, default=4, help="pictures of an exam (default: %(default)s)")
    add("--held-out", type=float, default=0.4, help="share of held-out pictures (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the split and the exams (default: %(default)s)")
    add("--stage1-steps", type=int, default=700, help="of 32 pictures (default: %(default)s)")
    add("--stage2-steps", type=int, default=250, help="of 16 questions (default: %(default)s)")
    return parser


if __name__ == "__main__":
    stop_on_signals("busi")
    raise SystemExit(main())
