"""What is in a feature cache, whether it is whole, and how it gets rid of what is not needed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from tqdm import tqdm

from llava_ultra_ext.data.cached_frames import picture_keys
from llava_ultra_ext.vision.feature_cache import PARTIAL, SHARDS, CacheHeader, Shard, ShardWriter, checksum, shards
from llava_ultra_ext.vision.feature_record import DTYPES, record_size

logger = logging.getLogger(__name__)


def info(folder: Path) -> str:
    """A few lines: encoders, shapes, dtype, frames, size.

    Raises:
        ValueError: it is no cache.
    """
    header = CacheHeader.read(folder)
    whole, other = _look(folder, header)
    records = sum(len(shard.keys) for shard in whole)
    frames = len({key for shard in whole for key in shard.keys})
    size = sum(shard.path.stat().st_size for shard in whole)
    lines = [
        f"{folder}: {frames} frames, {size / 1e9:.3f} GB in {len(whole)} shards",
        f"stored {header.dtype}, computed in {header.computed_in}, {size / max(1, records) / 1e3:.1f} KB a frame",
    ]
    for kind, facts in header.encoders.items():
        shape = " x ".join(map(str, header.shapes[kind]))
        lines.append(f"{kind}: {shape}, weights {facts['weights'][:16]}, {facts['image_size']} px")
    if records > frames or other:
        lines.append(f"{records - frames} doubled records, {len(other)} damaged, foreign or unfinished files: prune")
    return "\n".join(lines)


def verify(folder: Path, pictures: Sequence[str]) -> int:
    """Reads every record; 1 when one is damaged, or a picture is missing.

    Args:
        folder: of the cache.
        pictures: files that should be in it.

    Raises:
        ValueError: it is no cache.
    """
    header = CacheHeader.read(folder)
    whole, other = _look(folder, header)
    damaged, good = 0, set[str]()
    for shard in tqdm(whole, desc="shards", unit="shard"):
        own = _whole_records(shard, header)
        damaged += len(shard.keys) - len(own)
        good.update(own)
    keys = tqdm(picture_keys(pictures), total=len(pictures), desc="pictures", unit="file", disable=not pictures)
    absent = sum(key not in good for key in keys)
    total = sum(len(shard.keys) for shard in whole)
    logger.info("%d records of %d frames in %d shards are whole.", total - damaged, len(good), len(whole))
    broken = [path for path in other if path.match(SHARDS)]
    for count, what, cure in (
        (len(broken), "shards are damaged or foreign", "`llava-ultra cache prune`, then `cache build`"),
        (damaged, "records are damaged", "`llava-ultra cache prune`, then `cache build`"),
        (absent, "pictures are missing", "`llava-ultra cache build` with the flags of the first time"),
    ):
        if count:
            logger.error("%d %s: %s mends it.", count, what, cure)
    return 1 if broken or damaged or absent else 0


def prune(folder: Path, pictures: Sequence[str]) -> int:
    """Writes shards anew that hold something damaged, doubled or not wanted; removes damaged and unfinished files.

    No build or training should run on the cache meanwhile. A shard is removed when what is kept of it is written.

    Args:
        folder: of the cache.
        pictures: files whose features are kept.

    Raises:
        ValueError: it is no cache, or a picture cannot be read: with a wrong folder everything would go.
        OSError: the disk is full; nothing is lost.
    """
    header = CacheHeader.read(folder)
    keys = list(tqdm(picture_keys(pictures), total=len(pictures), desc="pictures", unit="file"))
    if None in keys:
        raise ValueError(
            f"{keys.count(None)} of {len(keys)} pictures of --data_path cannot be read, so nothing tells which features"
            " are theirs. Nothing was removed. Check --image_folder."
        )
    wanted = set(keys)
    whole, other = _look(folder, header)
    kept = 0
    for shard in tqdm(whole, desc="shards", unit="shard"):
        own = [key for key in _whole_records(shard, header) if key in wanted]
        wanted.difference_update(own)  # a second record of a picture is one too many
        kept += len(own)
        if len(own) < len(shard.keys):
            _keep(folder, shard, own)
    for path in other:
        path.unlink()
    total = sum(len(shard.keys) for shard in whole)
    logger.info("%d of %d records kept, %d files removed that were not whole.", kept, total, len(other))
    return 0


def _look(folder: Path, header: CacheHeader) -> tuple[list[Shard], list[Path]]:
    """Whole shards, and the other files: damaged shards, those of another cache, and what a killed build left."""
    whole = list(shards(folder, header))
    good = {shard.path for shard in whole}
    return whole, [path for path in sorted([*folder.glob(SHARDS), *folder.glob(PARTIAL)]) if path not in good]


def _whole_records(shard: Shard, header: CacheHeader) -> list[str]:
    """Keys of a shard's records that are as they were written."""
    dtype = DTYPES[header.dtype]
    size = (record_size(header.shapes, dtype),)

    def is_whole(key: str, record: torch.Tensor) -> bool:
        if record.dtype != dtype or tuple(record.shape) != size:
            return False
        if key in shard.sums:
            return checksum(record) == shard.sums[key]
        return not dtype.is_floating_point or bool(record.isfinite().all())

    with safe_open(str(shard.path), framework="pt") as file:
        return [key for key in shard.keys if is_whole(key, file.get_tensor(key))]


def _keep(folder: Path, shard: Shard, keys: Sequence[str]) -> None:
    with safe_open(str(shard.path), framework="pt") as file, ShardWriter(folder) as writer:
        for key in keys:
            writer.add([key], file.get_tensor(key)[None])
    shard.path.unlink()
