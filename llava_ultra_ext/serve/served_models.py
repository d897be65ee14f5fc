"""Which folders ``llava-ultra serve`` serves, and what is wrong with them, before anything loads; no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Model:
    """A folder to serve.

    Args:
        path: absolute folder, or a hub name.
        base: the language model of a LoRA or stage 1 folder, or None.
    """

    path: str
    base: str | None

    @property
    def name(self) -> str:
        """By which it is asked for; LLaVA's rule: the folder's name, for a checkpoint behind its parent's."""
        *_, parent, last = ["", *self.path.rstrip("/").split("/")]
        return f"{parent}_{last}" if last.startswith("checkpoint-") else last


def served_models(paths: Sequence[str], bases: Sequence[str]) -> list[Model]:
    """The models of the command line.

    Args:
        paths: folders or hub names.
        bases: of ``--model-base``: for every folder that needs one, or NAME=BASE for one of them.

    Raises:
        ValueError: no such folder, two of one name, a base that is missing or belongs to none, a name without "llava".
    """
    named = dict(base.split("=", 1) for base in bases if "=" in base)
    common = [base for base in bases if "=" not in base]
    if len(common) > 1:
        raise ValueError(f"--model-base {' '.join(common)}: one for all models, or NAME=BASE for each.")
    models: dict[str, Model] = {}
    for path in paths:
        bare = Model(_place(path, "MODEL"), None)
        if bare.name in models:
            raise ValueError(f"{path}: two models would be called {bare.name}. Rename or link one of the folders.")
        base = named.pop(bare.name, None) or (common[0] if common and _needs_base(bare) else None)
        models[bare.name] = Model(bare.path, None if base is None else _place(base, "--model-base"))
        _check(models[bare.name], path)
    if named:
        raise ValueError(f"--model-base {next(iter(named))}=…: no model of that name. There are: {', '.join(models)}.")
    return list(models.values())


def _place(path: str, flag: str) -> str:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return os.path.abspath(folder)  # a link keeps its name: LLaVA goes by names
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not path.startswith("."):
        return path  # a hub name; its worker says when it cannot be had
    raise ValueError(f"{flag} {path}: no such folder. Give a folder that training or merging wrote, or a hub name.")


def _needs_base(model: Model) -> bool:
    """Whether a folder holds no language model of its own."""
    folder = Path(model.path)
    parts = [folder / name for name in ("adapter_config.json", "mm_projector.bin")]
    whole = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return not whole and any(part.is_file() for part in parts)


def _check(model: Model, given: str) -> None:
    config = Path(model.path) / "config.json"
    if not Path(model.path).is_dir():
        return
    if not config.is_file():
        raise ValueError(f"{given}: holds no config.json. Give a folder that training or merging wrote.")
    if _needs_base(model) and model.base is None:
        raise ValueError(
            f"{given}: is a LoRA or stage 1 folder and holds no language model. Give the one that it was trained from: "
            f"--model-base BASE, or --model-base {model.name}=BASE where models have different ones."
        )
    ours = "ultra_backbone" in json.loads(config.read_text(encoding="utf-8"))
    if not ours and "llava" not in model.name.lower():
        raise ValueError(
            f"{given}: LLaVA shows pictures only to models with 'llava' in their name. Rename or link the folder."
        )
