"""A small SAM's image encoder learns to segment pixel by pixel, so that its cells know fine detail as the real one's.

Segment Anything learns masks of whatever a point is put on. Our choice: one linear layer reads the masks of all kinds
of structure out of the neck's cells at once, 16x16 pixels from each, and is thrown away afterwards. SAM's own mask
decoder would need thousands of prompts to come as far; it is written untrained, and LLaVA-Ultra does not read it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

Masked = tuple[np.ndarray, np.ndarray]


class Readout(nn.Module):
    """Masks (N, kinds, S, S) from neck features (N, C, S/16, S/16)."""

    def __init__(self, channels: int, kinds: int) -> None:
        super().__init__()
        self.cell = nn.Conv2d(channels, kinds * 256, 1)
        nn.init.constant_(self.cell.bias, -3.0)  # most pixels belong to nothing

    def forward(self, features: Tensor) -> Tensor:
        return F.pixel_shuffle(self.cell(features), 16)


def train_sam(folder: Path, masked: Masked, steps: int, batch: int = 8, seed: int = 0) -> dict[str, float]:
    """Trains the encoder of the SAM in `folder` and writes the model back.

    Args:
        folder: of `tiny_models.make_sam`.
        masked: frames (N, S, S, 3) uint8, and masks (N, kinds, S, S) bool.

    Returns:
        Kind number -> Dice coefficient over the last tenth of the steps.
    """
    from transformers import SamImageProcessor, SamModel

    model = SamModel.from_pretrained(folder).train()
    processor = SamImageProcessor.from_pretrained(folder)
    frames, masks = masked
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    readout = Readout(model.config.vision_config.output_channels, masks.shape[1])
    learnt = [*model.vision_encoder.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    generator, dice = np.random.default_rng(seed), []
    for _ in tqdm(range(steps), desc="SAM", unit="step", mininterval=5):
        index = generator.choice(len(frames), batch, replace=False)
        pixels = (torch.from_numpy(frames[index]).permute(0, 3, 1, 2).float() / 255 - mean) / std
        target = torch.from_numpy(masks[index]).float()
        logits = readout(model.vision_encoder(pixels)[0])
        overlap = _dice(logits.sigmoid(), target)
        loss = F.binary_cross_entropy_with_logits(logits, target) + (1 - overlap).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        schedule.step()
        dice.append(overlap.detach())
    model.eval().save_pretrained(folder)
    last = torch.stack(dice[-max(1, steps // 10) :]).mean(0)
    return {str(kind): round(float(value), 3) for kind, value in enumerate(last)}


def _dice(found: Tensor, target: Tensor) -> Tensor:
    """(kinds,) soft Dice over a batch."""
    both = (found * target).sum((0, 2, 3))
    return (2 * both + 1) / (found.sum((0, 2, 3)) + target.sum((0, 2, 3)) + 1)
