"""A model from a folder, for our own programs: armed first, and what cannot work is said before anything loads."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from llava_ultra_ext.activate import arm

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedModel:
    """What LLaVA's ``load_pretrained_model`` returns, with the name that LLaVA's programs give the model."""

    model: Any
    tokenizer: Any
    image_processor: Any
    name: str


def model_name(model_path: str) -> str:
    """LLaVA's ``get_model_name_from_path``: the folder's name, for a checkpoint with its parent's before."""
    path = Path(os.path.abspath(os.path.expanduser(model_path)))
    return f"{path.parent.name}_{path.name}" if path.name.startswith("checkpoint-") else path.name


def folder_config(model_path: str, flag: str = "--model-path") -> PretrainedConfig:
    """``config.json`` of a folder or hub name, before any weights are read.

    Raises:
        ValueError: there is none.
    """
    from llava_ultra_ext.model.dispatch import config_dict

    try:
        return PretrainedConfig(**config_dict(os.path.expanduser(model_path)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{flag} {model_path}: no config.json could be read there ({error}). "
            "Give a folder that training or merging wrote, or a hub name that is reachable or cached."
        ) from None


def check_device(device: str | None) -> str:
    """The device to use; by default the first GPU, else the CPU.

    Raises:
        ValueError: a GPU is asked for where there is none.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: no CUDA device is usable here. Use --device cpu, or leave the flag out.")
    return device


def open_model(model_path: str, model_base: str | None = None, device: str | None = None) -> OpenedModel:
    """Load with LLaVA's ``load_pretrained_model``, through our seam for a folder of ours.

    Args:
        model_path: LLaVA's ``--model-path``: stage 1, LoRA or whole folder, ours or stock LLaVA.
        model_base: LLaVA's ``--model-base``.
        device: as torch names it; None: the first GPU, else the CPU.

    Raises:
        ValueError: no such folder, a device that is not there, a name that LLaVA would take for a text-only model.
    """
    from llava_ultra_ext.model.builders import is_ultra

    config, device, name = folder_config(model_path), check_device(device), model_name(model_path)
    ours = is_ultra(config)
    if not arm() and ours:
        raise ValueError(f"ULTRA_EXT=off is set, but {model_path} is a LLaVA-Ultra model. Unset it.")
    if not ours and "llava" not in name.lower():
        raise ValueError(
            f"--model-path {model_path}: the folder's name has no 'llava' in it, so LLaVA's builder would load a "
            "language model without pictures. Rename or link the folder."
        )
    from llava.model.builder import load_pretrained_model

    tokenizer, model, image_processor, _ = load_pretrained_model(
        os.path.expanduser(model_path), model_base, name, device=device
    )
    if device == "cpu" and model.dtype == torch.float16:
        # LLaVA loads half precision everywhere; a CPU computes it slowly, before torch 2.3 not at all.
        model.float()
        model.get_vision_tower().to(device="cpu", dtype=torch.float32)
    return OpenedModel(model.eval(), tokenizer, image_processor, name)
