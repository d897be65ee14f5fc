"""An exam's frames from a feature cache instead of from pictures, and the check before a run that all are there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from tqdm import tqdm

from llava_ultra_ext.data.pictures import PROGRESS_FROM
from llava_ultra_ext.vision.feature_cache import FeatureCache, picture_key
from llava_ultra_ext.vision.feature_record import DTYPES
from llava_ultra_ext.vision.tower import FusedVisionTower

_BUILD = "run `llava-ultra cache build` again with the flags of the first time: it computes what is missing"


def open_cache(folder: str | None, tower: FusedVisionTower) -> FeatureCache | None:
    """The cache of ``--feature_cache``, checked to hold the features of a tower; None where the flag is left out.

    Raises:
        ValueError: no cache, or one of other encoders.
    """
    if folder is None:
        return None
    cache = FeatureCache(folder)
    cache.check(tower.identity(), tower.feature_shapes)
    return cache


class NotCached(ValueError):
    """A picture that the cache has no features of: it was added or changed after the build."""


def read_frames(cache: FeatureCache, names: Sequence[str], folder: str) -> torch.Tensor:
    """Records (k, R) that go the way of pixels (k, 3, S, S); of a text-only sample one record of zeros.

    Args:
        cache: of the encoders in use.
        names: pictures of an exam.
        folder: where their names start.

    Raises:
        NotCached: a picture was added or changed after the cache was built.
        OSError: a picture file cannot be read.
    """
    if not names:
        return torch.zeros(1, cache.record_size, dtype=DTYPES[cache.header.dtype])
    keys = [picture_key(os.path.join(folder, name)) for name in names]
    for place, key in enumerate(keys, start=1):
        if key not in cache:
            raise NotCached(
                f"picture {place} of {len(keys)} is not in {cache.folder}: it was added or changed after the cache was "
                f"built. To go on, {_BUILD}."
            )
    return cache.read(keys)


def check_all_cached(cache: FeatureCache, names: Iterable[str], folder: str, workers: int = 8) -> None:
    """Whether a cache has all pictures of a run, as they are now.

    Our choice: every file is read and hashed before a run (each rank its share), since a run that stops in the night
    because of one changed picture costs more.

    Raises:
        ValueError: it has not; how many are missing.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    paths = [os.path.join(folder, name) for name in dict.fromkeys(names)][rank::world]
    with ThreadPoolExecutor(workers) as pool:
        keys = pool.map(picture_key, paths)
        shown = tqdm(keys, total=len(paths), desc="pictures in cache", unit="file", disable=len(paths) < PROGRESS_FROM)
        absent = sum(key not in cache for key in shown)
    if absent:
        raise ValueError(
            f"--feature_cache {cache.folder}: {absent} of {len(paths)} pictures are not in it; they were added or "
            f"changed after it was built. To go on, {_BUILD}; or leave the flag out."
        )
