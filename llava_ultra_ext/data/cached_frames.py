"""An exam's frames from a feature cache instead of from pictures, and the check before a run that all are there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
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
    """A picture that the cache has no features of: it was added or changed after the build, or is gone."""


def read_frames(cache: FeatureCache, owner: str, names: Sequence[str], folder: str) -> torch.Tensor:
    """Records (k, R) that go the way of pixels (k, 3, S, S); of a text-only sample one record of zeros.

    Args:
        cache: of the encoders in use.
        owner: whose pictures they are, for the message.
        names: pictures of an exam.
        folder: where their names start.

    Raises:
        NotCached: a picture was added or changed after the cache was built, or cannot be read.
    """
    if not names:
        return torch.zeros(1, cache.record_size, dtype=DTYPES[cache.header.dtype])
    keys = list(picture_keys([os.path.join(folder, name) for name in names], workers=1))
    for place, key in enumerate(keys, start=1):
        if key is None or key not in cache:
            what = "cannot be read" if key is None else "was added or changed after the cache was built"
            raise NotCached(
                f"{owner}: picture {place} of {len(keys)} is not in {cache.folder}, it {what}. To go on, {_BUILD}."
            )
    return cache.read([key for key in keys if key])


def picture_keys(paths: Iterable[str], workers: int = 8) -> Iterator[str | None]:
    """`picture_key` of each file, several at once (the work is reading); None for one that cannot be read."""
    if workers == 1:
        yield from map(_key, paths)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(_key, paths)


def _key(path: str) -> str | None:
    try:
        return picture_key(path)
    except OSError:
        return None


def check_all_cached(cache: FeatureCache, names: Iterable[str], folder: str) -> None:
    """Whether a cache has all pictures of a run, as they are now.

    Our choice: every file is read and hashed before a run (each rank its share), since a run that stops in the night
    because of one changed picture costs more.

    Raises:
        ValueError: it has not; how many are missing.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    paths = [os.path.join(folder, name) for name in dict.fromkeys(names)][rank::world]
    hidden = len(paths) < PROGRESS_FROM
    keys = tqdm(picture_keys(paths), total=len(paths), desc="pictures in cache", unit="file", disable=hidden)
    absent = sum(key is None or key not in cache for key in keys)
    if absent:
        raise ValueError(
            f"--feature_cache {cache.folder}: {absent} of {len(paths)} pictures are not in it; they were added or "
            f"changed after it was built. To go on, {_BUILD}; or leave the flag out."
        )
