"""Pictures of any kind to one uint8 tensor of squares, with the contract of LLaVA's image processor.

Nothing is cropped and nothing is normalised: the picture is padded to a square (LLaVA's ``expand2square``) so that the
whole field of view stays, and every encoder normalises its own copy on the device. Whole numbers 0..255 survive LLaVA's
``.half()`` and ``.bfloat16()`` exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

Array = np.ndarray[Any, Any]
Picture = Image.Image | Array


class SquareImageProcessor:
    """Pads to a square and resizes.

    Args:
        size: side S of the result in pixels.
        image_mean: of the reference encoder, in 0..1; its colour fills the padding, and LLaVA reads it for the same.
        image_std: likewise, for callers that ask.
    """

    def __init__(self, size: int, image_mean: Sequence[float], image_std: Sequence[float]) -> None:
        self.crop_size = {"height": size, "width": size}
        self.size = {"shortest_edge": size}
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def __call__(self, images: Picture | Sequence[Picture], return_tensors: str | None = "pt") -> BatchFeature:
        """The same as `preprocess`."""
        return self.preprocess(images, return_tensors)

    def preprocess(self, images: Picture | Sequence[Picture], return_tensors: str | None = "pt") -> BatchFeature:
        """Pictures -> ``{"pixel_values": uint8 (n, 3, S, S)}``, values 0..255.

        Args:
            images: one PIL picture of any mode or one array ((H, W), (H, W, 1 | 3 | 4)), or a sequence of them.
            return_tensors: ``pt`` (or None, which means the same here).

        Raises:
            ValueError: another tensor type, no picture, or a picture without an image in it.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors={return_tensors!r}: this processor makes torch tensors only; give 'pt'.")
        if isinstance(images, (Image.Image, np.ndarray)):
            images = list(images) if isinstance(images, np.ndarray) and images.ndim == 4 else [images]
        if not len(images):
            raise ValueError("No pictures were given; an exam has at least one frame.")
        return BatchFeature({"pixel_values": torch.stack([self._square(image) for image in images])})

    def _square(self, image: Picture) -> Tensor:
        picture = to_rgb(image)
        width, height = picture.size
        if width != height:
            side = max(width, height)
            canvas = Image.new("RGB", (side, side), tuple(int(value * 255) for value in self.image_mean))
            canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
            picture = canvas
        target = self.crop_size["height"]
        if picture.width != target:
            picture = picture.resize((target, target), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()  # (3, S, S)


def to_rgb(image: Picture) -> Image.Image:
    """Any picture as 8-bit RGB.

    Our choice: see-through pixels lie on black (the ground of ultrasound pictures); deep greyscale is scaled by the
    smallest usual bit depth that holds its maximum, so that 12 bits stored in 16 do not come out black.

    Raises:
        ValueError: not a picture, empty, or with values that have no place in 0..1 or 0..65535.
    """
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image)
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"A picture of type {type(image).__name__} was given; "
            "allowed are PIL pictures and numpy arrays (H, W) or (H, W, 1 | 3 | 4)."
        )
    if image.mode == "F" or image.mode.startswith("I"):
        return _array_to_rgb(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        solid = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, (0, 0, 0, 255)), solid).convert("RGB")
    return image.convert("RGB")


def _array_to_rgb(array: Array) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise ValueError(f"A picture array of shape {array.shape} was given; allowed are (H, W) and (H, W, 1 | 3 | 4).")
    return to_rgb(Image.fromarray(_to_bytes(array)))


def _to_bytes(array: Array) -> Array:
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return array
    values = array.astype(np.float32)
    low, top = float(values.min()), float(values.max())
    if not (low >= 0 and top <= 65535):
        raise ValueError(
            f"A picture with values {low:g} to {top:g} was given; allowed are 0..1 (floats) and 0..65535. "
            "Apply the window of the DICOM file first."
        )
    if np.issubdtype(array.dtype, np.floating) and top <= 1:
        full = 1.0
    else:
        full = next(2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if top <= 2**bits - 1)
    return np.round(values * (255 / full)).astype(np.uint8)
