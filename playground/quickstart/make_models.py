"""The quick start's models: CLIP and SAM with random weights, and a tiny LLaMA that has read the training texts.

    python playground/quickstart/make_models.py --exams DIR --out DIR

Stage 1 freezes the language model, so it needs one that speaks and that uses what stands before the text; random
weights do neither. The LLaMA therefore reads the training exams' texts first, without a picture: before each text stand
`T` tokens drawn from all texts of that exam and from elsewhere, where the frame's tokens will stand later. Held-out
exams are not read.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

import tiny_models
from llava_ultra_ext.conversation import SYSTEM
from tiny_tokenizer import CORPUS, read_corpus

CLIP = {"image_size": 96, "patch_size": 16, "hidden": 64, "layers": 2}
SAM = {"image_size": 192, "hidden": 32, "layers": 2, "window": 6, "global_attn": (1,), "out_channels": 32}
LLAMA = {"hidden": 96, "layers": 3, "heads": 4}
FRAME_TOKENS = (CLIP["image_size"] // CLIP["patch_size"]) ** 2  # T; SAM's 12x12 cells merge 2x2 into the same grid

STEPS, BATCH, LEARNING_RATE = 300, 8, 3e-3
OTHER_SHARE = 0.3  # of the T tokens, at most: a frame says more than its text does


def reading(exam: dict[str, Any], stage: int, frame: list[int], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids and labels of one text: `frame` tokens stand where the picture will, answers are learnt as in training."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    turns = [turn["value"].replace("<image>\n", "") for turn in exam["conversations"]]
    if stage == 1:
        answer = [*ids(turns[1]), tokenizer.eos_token_id]
        start = [tokenizer.bos_token_id, *frame]
        return start + answer, [-100] * len(start) + answer
    tokens, labels = [tokenizer.bos_token_id], [-100]
    for number, (question, answer_text) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
        opening = [*ids(f"{SYSTEM} 用户: "), *frame, *ids("\n")] if number == 0 else ids("用户: ")
        asked = opening + ids(f"{question} 助手:")
        answer = [*ids(answer_text), tokenizer.eos_token_id]
        tokens += asked + answer
        labels += [-100] * len(asked) + answer
    return tokens, labels


def teach(folder: Path, exams: Path, steps: int, seed: int = 0) -> tuple[float, float]:
    """Trains the LLaMA in `folder` on the texts of stage1.json and stage2.json; returns first and last mean loss."""
    from transformers import LlamaForCausalLM, LlamaTokenizer

    stages = [json.loads((exams / f"stage{stage}.json").read_text(encoding="utf-8")) for stage in (1, 2)]
    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=True)
    model = LlamaForCausalLM.from_pretrained(folder).train()
    words = [[i for sample in pair for i in _answer_ids(sample, tokenizer)] for pair in zip(*stages, strict=True)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    draw, losses = random.Random(seed), []
    for _ in range(steps):
        rows = []
        for _ in range(BATCH):
            stage, number = draw.choice((1, 2)), draw.randrange(len(words))
            frame = stand_in(words[number], draw.choice(words), draw)
            rows.append(reading(stages[stage - 1][number], stage, frame, tokenizer))
        loss = model(**_padded(rows)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.save_pretrained(folder)
    tenth = max(1, steps // 10)
    return losses[0], sum(losses[-tenth:]) / tenth


def stand_in(own: Sequence[int], other: Sequence[int], draw: random.Random) -> list[int]:
    """T tokens in a frame's place: most of an exam's own words, some of another's, in any order."""
    others = draw.randrange(round(FRAME_TOKENS * OTHER_SHARE) + 1)
    frame = draw.choices(own, k=FRAME_TOKENS - others) + draw.choices(other, k=others)
    draw.shuffle(frame)
    return frame


def _answer_ids(sample: dict[str, Any], tokenizer: Any) -> list[int]:
    answers = (turn["value"] for turn in sample["conversations"] if turn["from"] == "gpt")
    return [i for answer in answers for i in tokenizer(answer, add_special_tokens=False).input_ids]


def _padded(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    def pad(values: list[list[int]], fill: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=fill)

    ids, labels = ([row[part] for row in rows] for part in (0, 1))
    mask = pad([[1] * len(row) for row in ids], 0)
    return {"input_ids": pad(ids, 0), "attention_mask": mask, "labels": pad(labels, -100)}


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
    first, last = teach(llama, args.exams, args.steps)
    print(f"LLaMA read the training texts for {time.monotonic() - start:.0f} s: loss {first:.3f} -> {last:.3f}")


if __name__ == "__main__":
    main()
