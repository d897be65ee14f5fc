"""Frozen features on disk: what CLIP and SAM say of a frame, computed once and read in every step (DESIGN section 2).

A folder with ``cache.json`` (whose features these are) and shards in the safetensors format. A frame's key is the
SHA-256 of its picture file, so a picture that changed is a picture that is missing, whatever its name; the encoders'
weights, sizes and settings are hashed into ``cache.json``, so features of other encoders are refused.

Our choice of safetensors: it is what models are kept in already, it is read by memory map (no copy until used), any
number of processes and machines write shards of their own, and a shard appears under its name when it is whole, so a
build that was killed loses the frames in flight only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_ultra_ext.vision.feature_record import DTYPES, Shapes, record_size

logger = logging.getLogger(__name__)

FORMAT = "ultra_features/1"
HEADER = "cache.json"
Identity = Mapping[str, Mapping[str, Any]]

SHARD_BYTES = 256 << 20
"""A shard is written when it holds this much: what a killed build computes again, and what it keeps in memory."""

_SHARDS = "features-*.safetensors"


@dataclass(frozen=True)
class CacheHeader:
    """Whose features a folder holds.

    Args:
        encoders: `FusedVisionTower.identity`: kind -> weights' hash, sizes, settings.
        shapes: kind -> shape of one frame's features.
        dtype: a key of `DTYPES`.
        computed_in: dtype that the encoders computed in.
    """

    encoders: Identity
    shapes: Shapes
    dtype: str
    computed_in: str
    format: str = FORMAT

    @classmethod
    def read(cls, folder: Path, flag: str = "--feature_cache") -> CacheHeader:
        """Of a folder.

        Raises:
            ValueError: it is no cache, or one of another version of this package.
        """
        path = folder / HEADER
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ValueError(
                f"{flag} {folder}: is no feature cache (no readable {HEADER}). Build one: llava-ultra cache build."
            ) from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            given = found.get("format") if isinstance(found, dict) else None
            raise ValueError(f"{flag} {folder}: is of format {given}, this version reads {FORMAT}. Build it again.")
        found["shapes"] = {kind: tuple(shape) for kind, shape in found["shapes"].items()}
        return cls(**found)

    def as_json(self) -> str:
        """Content of ``cache.json``."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"

    def difference(self, encoders: Identity, shapes: Shapes) -> str:
        """What differs from the encoders in use (`FusedVisionTower.identity`); empty where their features are these."""
        unlike = []
        for kind in dict.fromkeys([*self.encoders, *encoders]):
            mine, theirs = self.encoders.get(kind, {}), encoders.get(kind, {})
            for name in dict.fromkeys([*mine, *theirs]):
                if mine.get(name) != theirs.get(name):
                    unlike.append(f"{kind} {name}: {mine.get(name)} in the cache, {theirs.get(name)} now")
        if not unlike and list(self.shapes.items()) != list(shapes.items()):
            unlike.append(f"features: {dict(self.shapes)} in the cache, {dict(shapes)} now")
        return "; ".join(unlike)


def picture_key(path: str | os.PathLike[str]) -> str:
    """Key of a picture: the SHA-256 of its file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    return hashlib.sha256(file.read()).hexdigest()  # Python 3.10


class FeatureCache:
    """A cache that is read; safe to open in several processes, and cheap to hand to data-loader workers.

    Args:
        folder: of the cache.

    Raises:
        ValueError: it is no cache.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.header = CacheHeader.read(self.folder)
        self._place = {key: path for path, keys in shards(self.folder) for key in keys}
        self._open: dict[Path, Any] = {}
        self._owner = os.getpid()

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    @property
    def record_size(self) -> int:
        """R of a record."""
        return record_size(self.header.shapes, DTYPES[self.header.dtype])

    def read(self, keys: Sequence[str]) -> Tensor:
        """Records (k, R) of pictures.

        Raises:
            KeyError: a picture is not in the cache; its key.
        """
        if self._owner != os.getpid():  # a forked loader worker: a memory map of its own
            self._open, self._owner = {}, os.getpid()
        return torch.stack([self._shard(self._place[key]).get_tensor(key) for key in keys])

    def _shard(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = safe_open(str(path), framework="pt")
        return self._open[path]

    def check(self, encoders: Identity, shapes: Shapes) -> None:
        """Whether its features are those that the encoders in use would compute.

        Raises:
            ValueError: they are not.
        """
        unlike = self.header.difference(encoders, shapes)
        if unlike:
            raise ValueError(
                f"--feature_cache {self.folder}: holds features of other encoders or settings ({unlike}). Build a "
                "cache with the flags of this run in another folder, or leave the flag out."
            )


class ShardWriter:
    """Adds frames to a cache, a shard at a time; use it as a context manager.

    Args:
        folder: of the cache; its header is there already.
        shard_bytes: when a shard is written.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._limit = folder, shard_bytes
        self._held: dict[str, Tensor] = {}
        self._bytes = 0

    def add(self, keys: Sequence[str], records: Tensor) -> None:
        """Takes (k, R) records.

        Raises:
            OSError: the disk is full; shards that are there stay.
        """
        for key, record in zip(keys, records, strict=True):
            if key not in self._held:
                self._held[key] = record.clone()  # safetensors refuses tensors that share memory
                self._bytes += record.nbytes
        if self._bytes >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Writes what is held."""
        if not self._held:
            return
        target = self._folder / f"features-{uuid.uuid4().hex}.safetensors"
        partial = target.with_suffix(".partial")
        try:
            save_file(self._held, str(partial))
            os.replace(partial, target)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"{self._folder}: a shard could not be written ({error}). Make room, then run the same command again: "
                "shards that are there are kept."
            ) from None
        finally:
            partial.unlink(missing_ok=True)
        self._held, self._bytes = {}, 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.flush()


def shards(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every whole shard with its keys; a broken one (a copy that was cut off) is said and left out."""
    for path in sorted(folder.glob(_SHARDS)):
        try:
            with safe_open(str(path), framework="pt") as shard:
                yield path, list(shard.keys())
        except (SafetensorError, OSError) as error:
            logger.warning(
                "%s is damaged (%s): its frames count as missing, `cache build` computes them again.", path, error
            )
