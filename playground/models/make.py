"""Small foundation models for the phantom exams, in the real formats: CLIP, SAM, and a LLaMA with a Chinese tokenizer.

    python playground/models/make.py --out DIR [--exams 2000] [--clip-steps 800] [flags of llava-ultra phantom] …

They learn from exams of seeds that no training uses, and stay as they are: CLIP from frames and findings, at a quarter
of the resolution; SAM from the masks of tissue levels, at full resolution; LLaMA from the texts alone. A finished model
is kept; another setting in the same folder is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import reading
import tiny_models
from llava_ultra_ext.conversation import SYSTEM
from llava_ultra_ext.data.sources.phantom import generate, records
from llava_ultra_ext.data.sources.phantom.case import Case
from llava_ultra_ext.data.sources.phantom.cases import draw_case
from llava_ultra_ext.data.sources.phantom.records import Drawn
from llava_ultra_ext.data.sources.phantom.report_text import caption
from llava_ultra_ext.data.whole_file import write_whole
from pretraining_frames import Pretraining, draw_frames
from tiny_tokenizer import CORPUS
from train_clip import train_clip
from train_sam import train_sam

SEED = 1_000_000
"""Of the first exam that is read here; `llava-ultra phantom` counts from its --seed, far below."""

CLIP_SHARE = 4
"""CLIP sees the picture at 1/4 of SAM's side (the paper: 336 and 1024 pixels)."""

CLIP = {"patch_size": 8, "hidden": 128, "layers": 4, "heads": 4, "positions": 48}
SAM = {"hidden": 96, "layers": 4, "window": 6, "global_attn": (1, 3), "out_channels": 64}
LLAMA = {"hidden": 128, "layers": 4, "heads": 4, "max_positions": 1536, "longest": 3}
"""Words of at most 3 characters: 低回声 is one. Longer ones would be whole phrases of so few texts, and what an answer
has in common with the findings would be lost on a small model."""

ALONE, CHATS = 2, 4
"""How often the LLaMA reads an exam's caption, as stage 1 has it, and its findings, as the teacher reads them, with no
chat around them; and how many orders of the exam's questions."""

IMAGE_LINE = "<image>\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: writes clip/, sam/, llama/ and made.json into OUT."""
    args = _parser().parse_args(argv)
    out: Path = args.out
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "threads", "workers")}
    made = _made(out, settings)
    missing = [name for name in ("llama", "sam", "clip") if name not in made["models"]]
    phantom = generate.settings_of(args)
    phantom.check()
    cases = [draw_case(f"PRE-{number:05d}", SEED + number, phantom) for number in range(args.exams)]
    # The LLaMA reads beside the other two, in a process of its own.
    share = max(1, args.threads // 2)
    torch.set_num_threads(share)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
        texts = _texts(cases, args) if "llama" in missing else {}
        if texts:
            said = [turn["value"].replace(IMAGE_LINE, "") for own in texts.values() for turn in _turns(own)]
            tiny_models.make_llama(out / "llama", [*CORPUS, SYSTEM, *dict.fromkeys(said)], **LLAMA)
        reads = beside.submit(_timed, _read, out / "llama", cases, texts, args, share) if texts else None
        if {"sam", "clip"} & {*missing}:
            frames = draw_frames(cases, phantom.least_visible, args.size, args.size // CLIP_SHARE, args.workers)
            for name in ("sam", "clip"):
                if name in missing:
                    _keep(made, out, name, _timed(_vision, name, out, frames, args))
        if reads is not None:
            _keep(made, out, "llama", reads.result())
    return 0


def _timed(train: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What a seeded training says, and its seconds."""
    start = time.monotonic()
    torch.manual_seed(0)
    return {**train(*given), "seconds": round(time.monotonic() - start)}


def _keep(made: dict[str, Any], out: Path, name: str, result: dict[str, Any]) -> None:
    made["models"][name] = result
    write_whole(out / "made.json", json.dumps(made, indent=1) + "\n")
    print(f"{name}: {made['models'][name]}", flush=True)


def frame_tokens(size: int) -> int:
    """Tokens of a frame whose side is `size` pixels: CLIP's grid."""
    return (size // CLIP_SHARE // CLIP["patch_size"]) ** 2


def _made(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What is there already.

    Raises:
        SystemExit: it was made with other settings.
    """
    path = out / "made.json"
    if not path.exists():
        return {"settings": settings, "models": {}}
    made = json.loads(path.read_text(encoding="utf-8"))
    changed = {key: (made["settings"].get(key), value) for key, value in settings.items()}
    changed = {key: pair for key, pair in changed.items() if pair[0] != pair[1]}
    if changed:
        sys.exit(f"make.py: {out} was made with other settings {changed}. Give another --out, or remove the folder.")
    return dict(made)


def _texts(cases: Sequence[Case], args: argparse.Namespace) -> dict[str, list[reading.Sample]]:
    """What the LLaMA reads of each exam: caption and findings alone, and chats about all that can be asked of it."""
    drawn = [Drawn(case, "train", case.valid_frames(args.least_visible)) for case in cases]
    samples: dict[str, list[reading.Sample]] = {}
    asked: dict[str, list[dict[str, Any]]] = {}
    for record in records.stage1(drawn):
        samples[record["exam_id"]] = [(1, record)] * ALONE
    for record in records.manifest(drawn):
        if record["content_type"] == "findings":
            samples[record["exam_id"]] += [(1, record)] * ALONE + [(2, record)]
        else:
            asked.setdefault(record["exam_id"], []).append(record)
    for exam, questions in asked.items():
        order = random.Random(exam)
        samples[exam] += [(2, _chat(order.sample(questions, len(questions)))) for _ in range(CHATS)]
    return samples


def _chat(asked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One conversation of several records' questions: a text of many answers teaches more than many texts of one."""
    return {**asked[0], "conversations": [turn for record in asked for turn in record["conversations"]]}


def _turns(samples: Sequence[reading.Sample]) -> list[dict[str, Any]]:
    return [turn for _, sample in samples for turn in sample["conversations"]]


def _read(
    folder: Path,
    cases: Sequence[Case],
    texts: dict[str, list[reading.Sample]],
    args: argparse.Namespace,
    threads: int,
) -> dict[str, Any]:
    """Trains the LLaMA in `folder`."""
    torch.set_num_threads(threads)
    tokens = frame_tokens(args.size)
    shown = [(caption(case), caption(dataclasses.replace(case, lesions=()))) for case in cases]
    course = reading.Course(args.llama_steps, 12, learning_rate=3e-3, frame_tokens=tokens, stand_in=reading.keywords)
    first, last = reading.teach(folder, [texts[case.exam_id] for case in cases], course, shown=shown)
    return {"loss_first": round(first, 3), "loss_last": round(last, 3)}


def _vision(name: str, out: Path, frames: Pretraining, args: argparse.Namespace) -> dict[str, Any]:
    if name == "sam":
        folder = tiny_models.make_sam(out / "sam", image_size=args.size, **SAM)
        return {"dice": train_sam(folder, (frames.pixels, frames.masks), args.sam_steps)}
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(out / "llama", legacy=True)
    words = len(tokenizer) + 1
    folder = tiny_models.make_clip(out / "clip", image_size=args.size // CLIP_SHARE, words=words, **CLIP)
    found = train_clip(folder, (frames.small, frames.texts), tokenizer, args.clip_steps)
    return {"own_text_found_in_batch": round(found, 3)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write")
    add("--exams", type=int, default=2000, help="exams to learn from (default: %(default)s)")
    add("--clip-steps", type=int, default=800)
    add("--sam-steps", type=int, default=500)
    add("--llama-steps", type=int, default=1500)
    add("--threads", type=int, default=2)
    add("--workers", type=int, default=2, help="processes that draw frames")
    generate.add_settings(parser)
    parser.set_defaults(size=192, frames="2-8")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
