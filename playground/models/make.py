"""Small foundation models for the phantom exams, in the real formats: CLIP, SAM, and a LLaMA with a Chinese tokenizer.

    python playground/models/make.py --out DIR [--exams 2000] [--size 192] [--clip-steps 800] …

They learn from exams of seeds that no training uses, and stay as they are: CLIP from frames and findings, at a quarter
of the resolution; SAM from the masks of tissue levels, at full resolution; LLaMA from the texts alone. A finished model
is kept; another setting in the same folder is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import reading
import tiny_models
from llava_ultra_ext.conversation import SYSTEM
from llava_ultra_ext.data.sources.phantom import records
from llava_ultra_ext.data.sources.phantom.case import Case
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings, draw_case
from llava_ultra_ext.data.sources.phantom.records import Drawn
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
LLAMA = {"hidden": 128, "layers": 4, "heads": 4, "max_positions": 1536}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: writes clip/, sam/, llama/ and made.json into OUT."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    out: Path = args.out
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "threads", "workers")}
    made = _made(out, settings)
    cases = [draw_case(f"PRE-{number:05d}", SEED + number, _phantom(args)) for number in range(args.exams)]
    frames: Pretraining | None = None
    for name in ("llama", "clip", "sam"):
        if name in made["models"]:
            continue
        if frames is None and name != "llama":
            frames = draw_frames(cases, _phantom(args).least_visible, args.size, args.size // CLIP_SHARE, args.workers)
        start = time.monotonic()
        torch.manual_seed(0)
        result = _llama(out, cases, args) if frames is None else _vision(name, out, frames, args)
        made["models"][name] = {**result, "seconds": round(time.monotonic() - start)}
        write_whole(out / "made.json", json.dumps(made, indent=1) + "\n")
        print(f"{name}: {made['models'][name]}", flush=True)
    return 0


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


def _phantom(args: argparse.Namespace) -> PhantomSettings:
    settings = PhantomSettings(size=args.size, min_frames=2, max_frames=8)
    settings.check()
    return settings


def _llama(out: Path, cases: Sequence[Case], args: argparse.Namespace) -> dict[str, Any]:
    least = _phantom(args).least_visible
    drawn = [Drawn(case, "train", case.valid_frames(least)) for case in cases]
    samples: dict[str, list[reading.Sample]] = {}
    for stage, made in ((1, records.stage1(drawn)), (2, records.stage2(drawn))):
        for record in made:
            samples.setdefault(record["exam_id"], []).append((stage, record))
    turns = [turn for own in samples.values() for _, sample in own for turn in sample["conversations"]]
    texts = [turn["value"].replace("<image>\n", "") for turn in turns]
    folder = tiny_models.make_llama(out / "llama", [*CORPUS, SYSTEM, *dict.fromkeys(texts)], **LLAMA)
    tokens = (args.size // CLIP_SHARE // CLIP["patch_size"]) ** 2
    course = reading.Course(args.llama_steps, 8, learning_rate=2e-3, frame_tokens=tokens, stand_in=reading.mixtures)
    first, last = reading.teach(folder, list(samples.values()), course)
    return {"loss_first": round(first, 3), "loss_last": round(last, 3), "texts": len(texts)}


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
    add("--size", type=int, default=192, help="side of SAM's picture; CLIP's is a quarter (default: %(default)s)")
    add("--clip-steps", type=int, default=800)
    add("--sam-steps", type=int, default=500)
    add("--llama-steps", type=int, default=1500)
    add("--threads", type=int, default=2)
    add("--workers", type=int, default=2, help="processes that draw frames")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
