"""``llava-ultra cache build`` that says which pictures it encoded, slowly, a shard a batch: for tests that stop it.

    python counted_build.py LOG SECONDS build …

A line a batch is appended to LOG when it was encoded and before it is stored: the keys of its pictures.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

from llava_ultra_ext import cli
from llava_ultra_ext.train import cache
from llava_ultra_ext.vision.feature_cache import ShardWriter
from llava_ultra_ext.vision.tower import FusedVisionTower


def run(log: Path, seconds: float, argv: list[str]) -> int:
    """The command's exit status. The process is changed for good: give it one of its own."""
    encode, add = FusedVisionTower.__call__, ShardWriter.add

    def slowly(tower: FusedVisionTower, pixels: Any) -> Any:
        time.sleep(seconds)
        return encode(tower, pixels)

    def noted(writer: ShardWriter, keys: Any, records: Any) -> None:
        with log.open("a") as file:
            file.write(f"{' '.join(keys)}\n")
        add(writer, keys, records)

    FusedVisionTower.__call__ = slowly  # type: ignore[method-assign]
    ShardWriter.add = noted  # type: ignore[method-assign]
    cache.ShardWriter = functools.partial(ShardWriter, shard_bytes=1)  # type: ignore[misc]
    return cli.main(["cache", *argv])


if __name__ == "__main__":
    raise SystemExit(run(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
