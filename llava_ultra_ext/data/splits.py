"""A split into train, validate and test that a study's own id decides.

So new studies move no old ones, unless they share a picture with them: studies that share one go together, to where the
smallest of their ids goes, which may be the new one's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from llava_ultra_ext.data.sources.source import SPLITS


def parse_shares(text: str) -> tuple[float, ...]:
    """``--split``: three shares, of train, validate and test.

    Raises:
        ValueError: not three numbers of 0 or more, or their sum is not 1.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) != len(SPLITS) or not all(math.isfinite(share) and share >= 0 for share in shares):
        raise ValueError(f"--split {text}: must be three shares, of {', '.join(SPLITS)}, as in 0.8,0.1,0.1.")
    if abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"--split {text}: the shares' sum is {sum(shares):g}, must be 1, as in 0.8,0.1,0.1.")
    return shares


def place(study: str, seed: int) -> float:
    """Where a study stands in [0, 1): a hash of its id and the seed."""
    return int(hashlib.sha256(f"{seed}:{study}".encode()).hexdigest()[:13], 16) / 16**13


def make_split(pictures: Mapping[str, Iterable[str]], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Study -> split.

    Studies that share a picture, directly or through others, go together: all of them to the place of the smallest id.

    Args:
        pictures: study -> what identifies its pictures (names, content hashes).
        shares: of train, validate and test (`parse_shares`).
        seed: of the split.
    """
    heads = _heads(pictures)
    return {study: _split_at(place(heads[study], seed), shares) for study in pictures}


def split_hash(studies: Iterable[tuple[str, str]]) -> str:
    """A short name for a split, from its (study, split) pairs: 16 hexadecimal digits of a SHA-256."""
    lines = sorted({f"{study}\t{split}" for study, split in studies})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _split_at(position: float, shares: Sequence[float]) -> str:
    end = 0.0
    for split, share in zip(SPLITS, shares, strict=True):
        end += share
        if position < end:
            return split
    return next(split for split, share in reversed(list(zip(SPLITS, shares, strict=True))) if share)  # rounding


def _heads(pictures: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Study -> smallest id among the studies that it is connected with."""
    parent = {study: study for study in pictures}

    def head(study: str) -> str:
        while parent[study] != study:
            parent[study] = parent[parent[study]]
            study = parent[study]
        return study

    owner: dict[str, str] = {}
    for study, keys in pictures.items():
        for key in keys:
            one, other = sorted((head(study), head(owner.setdefault(key, study))))
            parent[other] = one
    return {study: head(study) for study in pictures}
