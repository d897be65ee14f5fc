"""What is in a feature cache, whether it is whole, and how it gets rid of what is not needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from tqdm import tqdm

from llava_ultra_ext.vision.feature_cache import FeatureCache, ShardWriter, picture_key, shards
from llava_ultra_ext.vision.feature_record import DTYPES

logger = logging.getLogger(__name__)


def info(folder: Path) -> str:
    """A few lines: encoders, shapes, dtype, frames, size.

    Raises:
        ValueError: it is no cache.
    """
    cache = FeatureCache(folder)
    files = list(folder.glob("features-*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    header = cache.header
    lines = [f"{folder}: {len(cache)} frames, {size / 1e9:.3f} GB in {len(files)} shards"]
    lines.append(
        f"stored {header.dtype}, computed in {header.computed_in}, {size / max(1, len(cache)) / 1e3:.1f} KB a frame"
    )
    for kind, facts in header.encoders.items():
        lines.append(
            f"{kind}: {' x '.join(map(str, header.shapes[kind]))}, weights {facts['weights'][:16]}, "
            f"{facts['image_size']} px"
        )
    return "\n".join(lines)


def verify(folder: Path, pictures: Sequence[str]) -> int:
    """Reads every record; 1 when one is damaged, or a picture is missing.

    Args:
        folder: of the cache.
        pictures: files that should be in it.
    """
    cache = FeatureCache(folder)
    files = dict(shards(folder))
    broken = sorted(set(folder.glob("features-*.safetensors")) - set(files))
    wrong = 0
    for path, keys in tqdm(files.items(), desc="shards", unit="shard"):
        with safe_open(str(path), framework="pt") as shard:
            wrong += sum(not _is_whole(shard.get_tensor(key), cache) for key in keys)
    looked = tqdm(pictures, desc="pictures", unit="file", disable=not pictures)
    absent = sum(_key(path) not in cache for path in looked)
    total = sum(map(len, files.values()))
    logger.info("%d frames in %d shards, %d of them doubled.", total, len(files), total - len(cache))
    for count, what in (
        (len(broken), "shards are damaged"),
        (wrong, "records are damaged"),
        (absent, "pictures are missing"),
    ):
        if count:
            logger.error("%d %s: `llava-ultra cache prune`, then `cache build`, mends it.", count, what)
    return 1 if broken or wrong or absent else 0


def prune(folder: Path, pictures: Sequence[str]) -> int:
    """Writes shards anew that hold something that is not wanted; removes damaged ones.

    Args:
        folder: of the cache.
        pictures: files whose features are kept.
    """
    cache = FeatureCache(folder)
    wanted = set(map(_key, tqdm(pictures, desc="pictures", unit="file")))
    files = dict(shards(folder))
    for path in set(folder.glob("features-*.safetensors")) - set(files):
        path.unlink()
    seen: set[str] = set()
    kept = before = 0
    for path, keys in tqdm(files.items(), desc="shards", unit="shard"):
        with safe_open(str(path), framework="pt") as shard:
            own = [key for key in keys if key in wanted - seen and _is_whole(shard.get_tensor(key), cache)]
            before, kept = before + len(keys), kept + len(own)
            seen.update(own)
            if len(own) == len(keys):
                continue
            with ShardWriter(folder) as writer:
                for key in own:
                    writer.add([key], shard.get_tensor(key)[None])
        path.unlink()
    logger.info("%d of %d records kept.", kept, before)
    return 0


def _key(path: str) -> str:
    """Of a picture; of one that is not there a key that no picture has."""
    return picture_key(path) if os.path.isfile(path) else ""


def _is_whole(record: torch.Tensor, cache: FeatureCache) -> bool:
    fits = record.dtype == DTYPES[cache.header.dtype] and tuple(record.shape) == (cache.record_size,)
    return fits and (not record.dtype.is_floating_point or bool(record.isfinite().all()))
