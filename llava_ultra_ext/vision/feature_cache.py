"""Frozen features on disk: what CLIP and SAM say of a frame, computed once and read in every step (DESIGN section 2).

A folder with ``cache.json`` (whose features these are) and shards in the safetensors format. A frame's key is the
SHA-256 of its picture file, so a picture that changed is a picture that is missing, whatever its name; the encoders'
weights, sizes and settings are hashed into ``cache.json``, so features of other encoders are refused. A shard names the
``cache.json`` that it was made for, and has a CRC-32 of each record.

Our choice of safetensors: it is what models are kept in already, it is read by memory map (no copy until used), any
number of processes and machines write shards of their own, and a shard appears under its name when it is whole, so a
build that was killed loses the frames in flight only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_ultra_ext.vision.feature_record import DTYPES, Shapes, record_size

logger = logging.getLogger(__name__)

FORMAT = "ultra_features/1"
HEADER = "cache.json"
SHARDS, PARTIAL = "features-*.safetensors", "features-*.partial"
Identity = Mapping[str, Mapping[str, Any]]

SHARD_BYTES = 256 << 20
"""A shard is written when it holds this much: it bounds the memory of a build."""

SHARD_SECONDS = 60.0
"""… or when the last one is this old: it bounds what a killed build computes again where an encoder is slow."""

_OPEN_SHARDS = 8192
"""Memory maps that a reader keeps, one or two a shard; Linux allows a process 65,530."""


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
    def read(cls, folder: Path) -> CacheHeader:
        """Of a folder.

        Raises:
            ValueError: it is no cache, or one of another version of this package.
        """
        path = folder / HEADER
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            given = found["format"]
        except (OSError, ValueError, TypeError, KeyError):
            raise ValueError(
                f"--feature_cache {folder}: is no feature cache (no readable {HEADER}). Build one: "
                "llava-ultra cache build."
            ) from None
        if given != FORMAT:
            raise ValueError(
                f"--feature_cache {folder}: is of format {given}, this version reads {FORMAT}. Build anew."
            )
        found["shapes"] = {kind: tuple(shape) for kind, shape in found["shapes"].items()}
        return cls(**found)

    def as_json(self) -> str:
        """Content of ``cache.json``."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"

    @property
    def fingerprint(self) -> str:
        """Of everything that this says; shards carry it."""
        values = [list(self.shapes.items()), self.encoders, self.dtype, self.computed_in, self.format]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def difference(self, encoders: Identity, shapes: Shapes) -> str:
        """What differs from the encoders in use (`FusedVisionTower.identity`); empty where their features are these."""
        unlike = []
        for kind in dict.fromkeys([*self.encoders, *encoders]):
            if kind not in encoders or kind not in self.encoders:
                unlike.append(f"{kind}: {'not used now' if kind in self.encoders else 'not in the cache'}")
                continue
            stored, now = self.encoders[kind], encoders[kind]
            for name in dict.fromkeys([*stored, *now]):
                if stored.get(name) != now.get(name):
                    values = [str(one.get(name))[:16] if name == "weights" else one.get(name) for one in (stored, now)]
                    unlike.append(f"{kind} {name}: {values[0]} in the cache, {values[1]} now")
        if not unlike and list(self.shapes.items()) != list(shapes.items()):
            unlike.append(f"features: {dict(self.shapes)} in the cache, {dict(shapes)} now")
        return "; ".join(unlike)


def picture_key(picture: str | os.PathLike[str] | bytes) -> str:
    """Key of a picture, given its file or the file's content: the SHA-256.

    Raises:
        OSError: it cannot be read.
    """
    content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return hashlib.sha256(content).hexdigest()


class Shard(NamedTuple):
    """A whole shard: its file, its pictures' keys, and each record's CRC-32 (none in shards of the first version)."""

    path: Path
    keys: list[str]
    sums: Mapping[str, int]


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
        self._place = {key: shard.path for shard in shards(self.folder, self.header) for key in shard.keys}
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
            if len(self._open) >= _OPEN_SHARDS:
                self._open.clear()
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
    """Adds frames to a cache, a shard at a time, while others are computed; use it as a context manager.

    Args:
        folder: of the cache; its header is there already.
        shard_bytes: when a shard is written. Twice as much is held: one shard fills while the last one is written.
        seconds: … or after which time.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES, seconds: float = SHARD_SECONDS) -> None:
        self._folder, self._limit, self._seconds = folder, shard_bytes, seconds
        self._fingerprint = CacheHeader.read(folder).fingerprint
        self._pool = ThreadPoolExecutor(1, "shard-writer")
        self._writing: Future[None] | None = None
        self._start_anew()

    def _start_anew(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._bytes, self._since = 0, time.monotonic()

    def add(self, keys: Sequence[str], records: Tensor) -> None:
        """Takes (k, R) records.

        Raises:
            OSError: the disk is full; shards that are there stay.
        """
        for key, record in zip(keys, records, strict=True):
            if key not in self._held:
                self._held[key] = record.clone()  # safetensors refuses tensors that share memory
                self._bytes += record.nbytes
        if self._bytes >= self._limit or time.monotonic() - self._since >= self._seconds:
            self._hand_over()

    def flush(self) -> None:
        """Writes what is held, and waits until it is there.

        Raises:
            OSError: the disk is full; shards that are there stay.
        """
        self._hand_over()
        self._wait()

    def _hand_over(self) -> None:
        self._wait()
        if self._held:
            self._writing = self._pool.submit(self._write, self._held)
        self._start_anew()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, held: Mapping[str, Tensor]) -> None:
        target = self._folder / f"features-{uuid.uuid4().hex}.safetensors"
        partial = target.with_suffix(".partial")
        sums = {key: checksum(record) for key, record in held.items()}
        try:
            save_file(dict(held), str(partial), {"cache": self._fingerprint, "crc32": json.dumps(sums)})
            os.replace(partial, target)
        except (SafetensorError, OSError) as error:
            raise OSError(
                f"{self._folder}: a shard could not be written ({error}). Make room, then run the same command again: "
                "shards that are there are kept."
            ) from None
        finally:
            partial.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or not issubclass(kind, OSError):  # whatever ended the build, what is held is whole
                self.flush()
        finally:
            self._pool.shutdown()


def checksum(record: Tensor) -> int:
    """CRC-32 of a record (R,) on the CPU."""
    return zlib.crc32(record.contiguous().view(torch.uint8).numpy().data)


def shards(folder: Path, header: CacheHeader) -> Iterator[Shard]:
    """Every whole shard; a broken one (a copy that was cut off) or a stranger is said and left out."""
    for path in sorted(folder.glob(SHARDS)):
        try:
            with safe_open(str(path), framework="pt") as shard:
                facts, keys = shard.metadata() or {}, list(shard.keys())
        except (SafetensorError, OSError) as error:
            logger.warning(
                "%s is damaged (%s): its frames count as missing, `cache build` computes them again.", path, error
            )
            continue
        if facts.get("cache", header.fingerprint) != header.fingerprint:
            logger.warning("%s belongs to another cache: its frames count as missing.", path)
            continue
        yield Shard(path, keys, json.loads(facts.get("crc32", "{}")))
