"""Dress rehearsal: random weights at the real shapes through unedited LLaVA, what it takes, and the paper's set-up.

    bash scripts/rehearse.sh                      LLaMA of 1.1B on a CPU
    bash scripts/rehearse.sh --llm 13b            on a GPU
    bash scripts/rehearse.sh --quick              small shapes, minutes

What is made stays in OUT, and a finished part is not run again.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import measured_parts
import rehearsal_tables
import room
from paper_plan import UTILISATION, WAYS, Assumptions, hours, measured_utilisation, scaled
from parts import EXAMS, Options, Part, Rehearsal, due
from processes import ROOT, StepFailed, stop_on_signals
from shapes import LLAMAS
from steps import read_json, same_settings, write_json
from watched import Took

OUT = ROOT / "playground" / "out" / "rehearsal"
SCALES = (170_000, 10_000_000)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0 when every part ran."""
    args = _parser().parse_args(argv)
    start = time.monotonic()
    try:
        given, options = assumptions(args), options_of(args)
        out = (args.out or OUT / ("quick" if args.quick else options.llm)).resolve()
        rehearsal = Rehearsal(out, options)
        todo = due(rehearsal.parts(), lambda part: rehearsal.record(part) is not None, args.again)
        check_room(rehearsal, bool(todo))
        same_settings(out / "settings.json", asdict(options))
        run(rehearsal, todo)
        result = results(rehearsal, given)
        print(f"\n{rehearsal_tables.terminal(result)}\n")
        for path in filter(None, (out / "rehearsal.json", args.json)):
            write_json(path, result)
        for path in filter(None, (out / "rehearsal.md", args.markdown)):
            path.write_text(rehearsal_tables.markdown(result), encoding="utf-8")
        print(f"{time.monotonic() - start:.0f} s; {out / 'rehearsal.md'}")
    except (StepFailed, OSError, ValueError) as error:
        print(f"rehearsal: FAILED: {error}", file=sys.stderr)
        return 1
    print("rehearsal: OK")
    return 0


def check_room(rehearsal: Rehearsal, something_to_do: bool) -> None:
    """Says what is needed and what is there.

    Raises:
        ValueError: it does not fit; nothing was made.
    """
    options = rehearsal.options
    cached = options.frames * (1 + EXAMS["held-out"])
    needed = room.needs(options.shapes, options.device, cached, options.encoder_batch, options.lora_rank)
    if not something_to_do:
        return
    free = room.available(rehearsal.out, options.device)
    room.check(needed, free, rehearsal.out)
    gpu = f", GPU {needed.gpu_memory / room.GB:.1f} of {free.gpu_memory / room.GB:.1f}" if needed.gpu_memory else ""
    print(
        f"about {needed.disk / room.GB:.1f} GB of disk ({free.disk / room.GB:.1f} free) and "
        f"{needed.memory / room.GB:.1f} GB of memory ({free.memory / room.GB:.1f} free){gpu}: {rehearsal.out}",
        flush=True,
    )


def run(rehearsal: Rehearsal, todo: Sequence[Part]) -> None:
    """The parts that are due, each with what it will take as soon as that is known.

    Raises:
        StepFailed: a command failed; what is finished stays.
    """
    names = {part.name for part in todo}
    told = False
    for part in rehearsal.parts():
        if part.name not in names:
            continue
        expected = _at_least(rehearsal)
        if expected and not told:
            told = True
            left = sum(seconds for name, seconds in expected.items() if name in names)
            print(f"all of the following: at least {left / 60:.0f} minutes, at the peak rate", flush=True)
        least = f"at least {expected[part.name]:.0f} s," if part.name in expected else ""
        print(f"{part.title:42}{least:>18}", end="", flush=True)
        took = rehearsal.run(part)
        gpu = "" if took.gpu_mb is None else f", GPU {took.gpu_mb:,.0f} MB"
        print(f"{took.seconds:8.0f} s  {took.peak_mb:8,.0f} MB{gpu}", flush=True)


def _at_least(rehearsal: Rehearsal) -> dict[str, float]:
    """Part -> seconds at the machine's peak; the real time is longer. Empty while the peak is not measured."""
    peak = rehearsal.out / "peak.json"
    if not (peak.exists() and (rehearsal.models / "llama").exists() and rehearsal.data.exists()):
        return {}
    work = measured_parts.operations(rehearsal, measured_parts.texts(rehearsal))
    return {name: count / read_json(peak) for name, count in work.items()}


def results(rehearsal: Rehearsal, given: Assumptions) -> dict[str, Any]:
    """Everything that the tables show."""
    options = rehearsal.options
    took: dict[str, Took] = {}
    titles = {}
    for part in rehearsal.parts():
        record = rehearsal.record(part)
        if record is not None:
            took[part.name], titles[part.name] = record, part.title
    work = measured_parts.operations(rehearsal, measured_parts.texts(rehearsal))
    peak = read_json(rehearsal.out / "peak.json")
    return {
        "machine": _machine(options),
        "asked": {**asdict(options), "dtype": options.dtype},
        "peak_tflops": peak / 1e12,
        "parts": [
            {"name": name, "title": titles[name], **asdict(one), "tflop": work[name] / 1e12 if name in work else None}
            for name, one in took.items()
        ],
        "sizes_mb": measured_parts.sizes(rehearsal),
        "utilisation": measured_parts.utilisation(rehearsal, took, work, peak),
        "assumptions": asdict(given),
        "plan": {way: hours(given, way) for way in WAYS},
        "scaling": [scaled(given, frames) for frames in SCALES],
    }


def _machine(options: Options) -> str:
    name = f"{os.cpu_count()} processors ({options.threads} used), {platform.system()} {platform.machine()}"
    if options.device == "cpu":
        return name
    import torch

    return f"{name}, {torch.cuda.get_device_name(0)}"


def assumptions(args: argparse.Namespace) -> Assumptions:
    """The plan's, from flags and measurements; a flag wins.

    Raises:
        ValueError: a file of `--measured` holds no measurement.
    """
    shares = {**UTILISATION, **measured_utilisation([read_json(path) for path in args.measured])}
    given = {
        "encoders": args.encoder_utilisation,
        "teacher": args.teacher_utilisation,
        "language model": args.utilisation,
    }
    shares |= {kind: share for kind, share in given.items() if share is not None}
    names = ("gpus", "gpu_tflops", "exams", "frames", "samples", "stage1_epochs", "stage2_epochs", "text", "findings")
    found = {name: getattr(args, f"plan_{name}") for name in (*names, "llm", "picture_kb")}
    made = replace(
        Assumptions(utilisation=shares), **{name: value for name, value in found.items() if value is not None}
    )
    bad = [name for name, value in asdict(made).items() if isinstance(value, int | float) and value <= 0]
    bad += [kind for kind, share in shares.items() if not 0 < share <= 1]
    if bad:
        raise ValueError(f"The plan's {', '.join(bad)}: must be above 0, and shares of the peak at most 1.")
    return made


def options_of(args: argparse.Namespace) -> Options:
    """What will run, with the defaults of the device.

    Raises:
        ValueError: a number is out of range.
    """
    device = args.device or _device()
    batch = args.encoder_batch or (2 if device == "cpu" else 8)
    for name in ("exam_frames", "steps", "threads", "new_tokens"):
        if getattr(args, name) < 1 + (name == "exam_frames"):
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: is too small.")
    return Options(
        llm=args.llm,
        quick=args.quick,
        device=device,
        threads=args.threads,
        frames=args.exam_frames,
        steps=args.steps,
        encoder_batch=batch,
        teacher=args.teacher,
        zero=args.zero,
        sam=args.sam,
        new_tokens=args.new_tokens,
    )


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bash scripts/rehearse.sh", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--llm", choices=list(LLAMAS), default="1.1b", help="size of the LLaMA (default: %(default)s)")
    add("--quick", action="store_true", help="small shapes: that it runs")
    add("--out", type=Path, help="folder of the run; default: playground/out/rehearsal/LLM")
    add("--json", type=Path, help="where to write the figures, beside OUT/rehearsal.json")
    add("--markdown", type=Path, help="where to write the tables, beside OUT/rehearsal.md")
    add("--again", nargs="*", metavar="PART", help="run these parts once more, or all but exams and weights")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    add("--threads", type=int, default=os.cpu_count() or 1, help="processors to use (default: %(default)s)")
    add("--exam-frames", type=int, default=8, help="frames of an exam (default: %(default)s)")
    add("--steps", type=int, default=2, help="of each training; the last is the steady one (default: %(default)s)")
    add("--encoder-batch", type=int, help="frames at once (default: 2 on a CPU, 8 on a GPU)")
    add("--teacher", choices=("likelihood", "attention"), default="likelihood", help="of stage 1; attention is cheap")
    add(
        "--zero",
        default="zero2",
        help="ZeRO file of the trainings; zero2 copies no frozen weights (default: %(default)s)",
    )
    add("--sam", choices=("folder", "pth"), default="folder", help="SAM's format to read (default: %(default)s)")
    add("--new-tokens", type=int, default=32, help="of an answer, at most (default: %(default)s)")
    _add_plan_flags(parser)
    return parser


def _add_plan_flags(parser: argparse.ArgumentParser) -> None:
    plan, usual = parser.add_argument_group("the paper's set-up"), Assumptions()
    plan.add_argument(
        "--measured",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="JSON whose shares of "
        "the peak to use: of a rehearsal, or of scripts/bench/sam_encoder.py; may be given again",
    )
    for flag, text in (
        ("gpus", "GPUs"),
        ("exams", "texts, one exam each"),
        ("frames", "pictures"),
        ("samples", "questions an exam in stage 2"),
        ("stage1_epochs", "epochs of stage 1"),
        ("stage2_epochs", "epochs of stage 2"),
        ("text", "tokens of system text, question and answer"),
        ("findings", "tokens of findings"),
    ):
        default = getattr(usual, flag)
        plan.add_argument(f"--plan-{flag.replace('_', '-')}", type=int, help=f"{text} (default: {default})")
    plan.add_argument("--plan-gpu-tflops", type=float, help=f"bf16 peak of a GPU (default: {usual.gpu_tflops})")
    plan.add_argument("--plan-picture-kb", type=float, help=f"size of a picture file (default: {usual.picture_kb:g})")
    plan.add_argument("--plan-llm", choices=list(LLAMAS), help=f"its LLaMA (default: {usual.llm})")
    for flag, kind in (("", "language model"), ("encoder-", "encoders"), ("teacher-", "teacher")):
        text = f"share of the peak, {kind} (default: {UTILISATION[kind]})"
        plan.add_argument(f"--{flag}utilisation", type=float, help=text)


if __name__ == "__main__":
    stop_on_signals("rehearsal")
    raise SystemExit(main())
