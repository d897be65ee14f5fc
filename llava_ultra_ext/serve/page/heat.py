"""Where a chosen frame's tokens spoke for it: the sampler's token contributions as a see-through picture to lay over.

The model sees the frame padded to a square (`vision.image_processor`); the grid covers that square, so the picture's
own part of it is cut out. Our choice of colours: orange for, blue against, told apart by every kind of colour vision;
clear at zero, so that the frame stays readable.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

FOR, AGAINST = (255, 140, 0), (0, 114, 255)
STRONGEST = 160
"""Opacity of the largest contribution, of 255."""

_SIDE = 256  # longer side of the overlay, pixels; a page draws its cells larger without blurring them


def overlay(grid: tuple[int, int], scores: Sequence[float], size: tuple[int, int], largest: float = 0.0) -> Image.Image:
    """The contributions over a frame, ``RGBA``, with the frame's proportions; each token is one plain cell.

    Args:
        grid: rows and columns of tokens.
        scores: contribution of each, row by row.
        size: width and height of the frame, pixels.
        largest: contribution that is drawn strongest; 0: the largest of `scores`.

    Raises:
        ValueError: the scores do not fill the grid.
    """
    rows, columns = grid
    if rows < 1 or columns < 1 or len(scores) != rows * columns:
        raise ValueError(f"{len(scores)} scores for a grid of {rows}x{columns}; one for each cell is needed.")
    values = np.nan_to_num(np.asarray(scores, dtype=np.float64)).reshape(rows, columns)
    share = np.abs(values) / (largest or float(np.abs(values).max()) or 1.0)
    cells = np.empty((rows, columns, 4), dtype=np.uint8)
    cells[..., :3] = np.where(values[..., None] > 0, FOR, AGAINST)
    cells[..., 3] = np.rint(share.clip(0, 1) * STRONGEST)
    width, height = size
    side = max(width, height)
    left, top = (side - width) // 2 / side, (side - height) // 2 / side
    part = (left * columns, top * rows, (left + width / side) * columns, (top + height / side) * rows)
    shown = (max(1, round(width * _SIDE / side)), max(1, round(height * _SIDE / side)))
    return Image.fromarray(cells).resize(shown, Image.Resampling.NEAREST, box=part)


def data_url(picture: Image.Image) -> str:
    """A PNG that a page shows without asking for it again."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
