"""The quick start's models: CLIP and SAM with random weights, and a tiny LLaMA that has read the training texts.

    python playground/quickstart/make_models.py --exams DIR --out DIR

The LLaMA reads the training exams' texts first, without a picture (`playground/reading.py`); held-out exams are not
read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import reading
import tiny_models
from llava_ultra_ext.conversation import SYSTEM
from tiny_tokenizer import CORPUS, read_corpus

CLIP = {"image_size": 96, "patch_size": 16, "hidden": 64, "layers": 2}
SAM = {"image_size": 192, "hidden": 32, "layers": 2, "window": 6, "global_attn": (1,), "out_channels": 32}
LLAMA = {"hidden": 96, "layers": 3, "heads": 4}
FRAME_TOKENS = (CLIP["image_size"] // CLIP["patch_size"]) ** 2  # T; SAM's 12x12 cells merge 2x2 into the same grid

STEPS = 300


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: writes clip/, sam/ and llama/ into OUT."""
    parser = argparse.ArgumentParser(description="Make the quick start's small models.")
    parser.add_argument("--exams", type=Path, required=True, help="folder of build_exams.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps in which the LLaMA reads the training texts")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # matrices this small are slower on more
    # All files, so that every text can be written; what the model reads is the training exams' alone.
    files = sorted(args.exams.glob("*.json")) + sorted(args.exams.glob("*.jsonl"))
    texts = [*CORPUS, SYSTEM, *read_corpus(files)]
    tiny_models.make_clip(args.out / "clip", **CLIP)
    tiny_models.make_sam(args.out / "sam", **SAM)
    llama = tiny_models.make_llama(args.out / "llama", texts, **LLAMA)
    torch.manual_seed(0)
    start = time.monotonic()
    stages = [json.loads((args.exams / f"stage{stage}.json").read_text(encoding="utf-8")) for stage in (1, 2)]
    exams = [list(enumerate(pair, start=1)) for pair in zip(*stages, strict=True)]
    first, last = reading.teach(llama, exams, reading.Course(args.steps, frame_tokens=FRAME_TOKENS))
    print(f"LLaMA read the training texts for {time.monotonic() - start:.0f} s: loss {first:.3f} -> {last:.3f}")


if __name__ == "__main__":
    main()
