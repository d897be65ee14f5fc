"""Floating-point operations a second of large matrix products here: what a part's own rate is a share of.

python playground/rehearsal/peak_rate.py --device cpu --dtype float32 --json FILE
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from steps import write_json

SIZES = (1024, 2048, 4096, 8192)
ENOUGH_S = 0.5  # a product that takes this long tells no more when it is larger


def peak_rate(device: str, dtype: torch.dtype) -> float:
    """The best of several sizes."""
    best = 0.0
    for size in SIZES:
        one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        shortest = min(_seconds(one, other) for _ in range(3))
        best = max(best, 2.0 * size**3 / shortest)
        if shortest > ENOUGH_S:
            break
    return best


def _seconds(one: torch.Tensor, other: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(one, other)
    if one.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(argv)
    write_json(args.json, peak_rate(args.device, getattr(torch, args.dtype)))


if __name__ == "__main__":
    main()
