"""Where an encoder's files are: a local folder, or a Hugging Face hub name (offline mode and cache respected)."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def find_file(source: str, *names: str) -> Path | None:
    """The first of `names` that a source has.

    Args:
        source: a folder, or a hub name such as ``openai/clip-vit-large-patch14-336``.
        names: file names, the preferred one first.

    Returns:
        A path on this machine (the hub's files are downloaded once, and not at all in offline mode), or None.
    """
    if os.path.isdir(source):
        return next((path for path in (Path(source) / name for name in names) if path.is_file()), None)
    if os.path.exists(source) or not _HUB_NAME.fullmatch(source):
        return None
    from transformers.utils import cached_file

    for name in names:
        try:
            found = cached_file(
                source,
                name,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        except OSError:  # no such repository, or one that asks for a login: the caller's error says what to do
            found = None
        if found is not None:
            return Path(found)
    return None


def read_config(source: str, kind: str) -> dict[str, Any]:
    """``config.json`` of a source.

    Args:
        source: folder or hub name.
        kind: the encoder's kind, for the message.

    Raises:
        ValueError: there is no such folder or hub name, or it has no ``config.json``.
    """
    path = find_file(source, "config.json")
    if path is None:
        raise ValueError(f"{kind} encoder {source!r}: {_what_is_wrong(source)} {_ALLOWED}")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{kind} encoder {source!r}: {path} is no JSON object. {_ALLOWED}")
    return config


def read_normalisation(
    source: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in 0..1, from ``preprocessor_config.json``, else the given ones."""
    path = find_file(source, "preprocessor_config.json")
    if path is None:
        return mean, std
    config = json.loads(path.read_text(encoding="utf-8"))
    return tuple(config.get("image_mean") or mean), tuple(config.get("image_std") or std)


def weights_hash(source: str) -> str:
    """SHA-256 over the weight files of a source and its ``config.json``; of a single file, over that file.

    Raises:
        ValueError: there are none.
    """
    files = [Path(source)] if os.path.isfile(source) else _weight_files(source)
    if not files:
        raise ValueError(f"encoder {source!r}: has no weights ({', '.join(_WEIGHTS)}). {_ALLOWED}")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _weight_files(source: str) -> list[Path]:
    first = find_file(source, *_WEIGHTS)
    if first is None:
        return []
    names = []
    if first.suffix == ".json":
        names = sorted(set(json.loads(first.read_text(encoding="utf-8"))["weight_map"].values()))
    found = [find_file(source, name) for name in ("config.json", first.name, *names)]
    return [path for path in found if path is not None]


_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_ALLOWED = (
    "Needed: a folder that holds config.json and the weights, or a Hugging Face hub name (organisation/model). "
    "Check the spelling; without network, download the model first and give its folder."
)


def _what_is_wrong(source: str) -> str:
    if os.path.isdir(source):
        return "the folder has no config.json."
    if os.path.exists(source):
        return "this is a file, not a folder."
    if _HUB_NAME.fullmatch(source):
        offline = " (offline mode is on: HF_HUB_OFFLINE)" if _offline() else ""
        return f"no such folder here, and the hub gave no config.json for this name{offline}."
    return "no such folder."


def _offline() -> bool:
    from transformers.utils import is_offline_mode

    return bool(is_offline_mode())
