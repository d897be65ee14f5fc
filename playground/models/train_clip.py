"""Contrastive training of a small CLIP on frames and reports, as OpenAI's was trained on pictures and captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

Pairs = tuple[np.ndarray, list[str]]


def train_clip(folder: Path, pairs: Pairs, tokenizer: Any, steps: int, batch: int = 64, seed: int = 0) -> float:
    """Trains the CLIP in `folder` and writes it back.

    Args:
        folder: of `tiny_models.make_clip`, with a word more than the tokenizer has, which ends a text.
        pairs: frames (N, S, S, 3) uint8, S the model's image size, and the text of each.
        tokenizer: turns a text into ids.

    Returns:
        The share of frames that find their own text in a batch, over the last tenth of the steps.
    """
    from transformers import CLIPImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(folder).train()
    processor = CLIPImageProcessor.from_pretrained(folder)
    frames, texts = pairs
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    words = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    generator, found = np.random.default_rng(seed), []
    for _ in tqdm(range(steps), desc="CLIP", unit="step", mininterval=5):
        index = generator.choice(len(texts), batch, replace=False)
        pixels = (torch.from_numpy(frames[index]).permute(0, 3, 1, 2).float() / 255 - mean) / std
        ids = windows([words[number] for number in index], model.config.text_config, generator)
        output = model(input_ids=ids, pixel_values=pixels)
        target = torch.arange(batch)
        loss = (F.cross_entropy(output.logits_per_image, target) + F.cross_entropy(output.logits_per_text, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        found.append(float((output.logits_per_image.argmax(1) == target).float().mean()))
    model.eval().save_pretrained(folder)
    return float(np.mean(found[-max(1, steps // 10) :]))


def windows(texts: list[list[int]], config: Any, generator: np.random.Generator) -> Tensor:
    """(N, positions) long: a random stretch of each text, ended and filled up by the model's last word.

    Our choice: findings are longer than CLIP reads, and every part of them should count.
    """
    length = config.max_position_embeddings - 1
    rows = []
    for text in texts:
        start = int(generator.integers(max(1, len(text) - length + 1)))
        own = text[start : start + length]
        rows.append(own + [config.eos_token_id] * (length + 1 - len(own)))
    return torch.tensor(rows)
