"""What a feature cache keeps of one frame: every encoder's features, flat, in one tensor of a stored dtype.

A batch of records (N, R) takes the place of pixels (N, 3, S, S) on the way through LLaVA, and the tower turns it back
into features; R and the dtype say all there is to know.

=========  ======================================================================================
float32    as computed: training with the cache has the losses of training without it
float16    rounded: an error up to 2**-11 of each value (up to 2**-25 for values under 2**-14), values up to 65504;
           what an encoder computes in float16 is kept exactly
bfloat16   rounded: an error up to 2**-8 of each value (or 1e-40); what an encoder computes in bfloat16 is kept exactly
int8       each token (with a trained neck: each channel) in 255 steps between minus and plus its largest value: an
           error up to 1/254 of that value (or 1e-38). Each scale is a float32, kept as four of the record's numbers.
=========  ======================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Encoder kind -> shape of its features of one frame, in the tower's order."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""``--dtype`` of a cache -> what it stores."""

_STEPS = 127
_SCALE_BYTES = 4


def record_size(shapes: Shapes, dtype: torch.dtype) -> int:
    """R: how many numbers of `dtype` one frame takes."""
    numbers = sum(math.prod(shape) for shape in shapes.values())
    scales = sum(shape[0] for shape in shapes.values())
    return numbers + _SCALE_BYTES * scales if dtype == torch.int8 else numbers


def pack(features: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Features of N frames as records.

    Args:
        features: kind -> (N, …), as `FusedVisionTower.__call__` gives them.
        dtype: of `DTYPES`.

    Returns:
        (N, R) on the CPU.

    Raises:
        ValueError: a feature is not finite, or `dtype` cannot hold it.
    """
    for kind, feature in features.items():
        _check_range(kind, float(feature.abs().amax()), dtype)
    if dtype != torch.int8:
        return torch.cat([feature.flatten(1).to(dtype) for feature in features.values()], dim=1).cpu()
    numbers, scales = [], []
    for feature in features.values():
        rows = feature.float().flatten(2)  # (N, tokens or channels, …)
        # Not below the smallest normal number: of an empty token 0 / 0, and on some machines smaller ones are zero.
        scale = (rows.abs().amax(dim=2, keepdim=True) / _STEPS).clamp_min(torch.finfo(torch.float32).tiny)
        numbers.append((rows / scale).round().to(torch.int8).flatten(1))
        scales.append(scale.flatten(1).contiguous().view(torch.int8))
    return torch.cat([*numbers, *scales], dim=1).cpu()


def _check_range(kind: str, largest: float, dtype: torch.dtype) -> None:
    if not math.isfinite(largest):
        raise ValueError(
            f"{kind} features are not finite ({largest}): the encoder's numbers ran over. Compute in another dtype "
            "(--compute_dtype float32 or bfloat16), and check the encoder's weights."
        )
    if dtype.is_floating_point and largest > torch.finfo(dtype).max:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{kind} features reach {largest:g}, which {name} cannot hold. Use --dtype bfloat16 or float32."
        )


def unpack(records: Tensor, shapes: Shapes, dtype: torch.dtype) -> dict[str, Tensor]:
    """Records as the features that `pack` was given.

    Args:
        records: (N, R).
        shapes: of the tower that made them.
        dtype: that the features are wanted in.

    Returns:
        kind -> (N, …) in `dtype`, where `records` are.

    Raises:
        ValueError: R is not what these shapes need.
    """
    needed = record_size(shapes, records.dtype)
    if records.shape[1] != needed:
        raise ValueError(
            f"Feature records hold {records.shape[1]} numbers of {records.dtype} a frame, this tower needs {needed}: "
            "they were made by other encoders. Build the cache with the flags of this training."
        )
    sizes = [math.prod(shape) for shape in shapes.values()]
    parts = records[:, : sum(sizes)].split(sizes, dim=1)
    if records.dtype != torch.int8:
        return {
            kind: part.unflatten(1, shape).to(dtype) for (kind, shape), part in zip(shapes.items(), parts, strict=True)
        }
    rows = [shape[0] for shape in shapes.values()]
    stored = records[:, sum(sizes) :].clone(memory_format=torch.contiguous_format)  # float32 wants its own alignment
    scales = stored.view(torch.float32).split(rows, dim=1)
    return _scaled(shapes, parts, scales, dtype)


def _scaled(shapes: Shapes, parts: Sequence[Tensor], scales: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    found = {}
    for (kind, shape), part, scale in zip(shapes.items(), parts, scales, strict=True):
        rows = part.unflatten(1, (shape[0], -1)).float() * scale.unsqueeze(2)
        found[kind] = rows.unflatten(2, shape[1:]).to(dtype)
    return found
