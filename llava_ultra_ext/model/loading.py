"""LLaVA's ``load_pretrained_model`` for a folder of ours: the right branch, the right dtype, nothing missing.

LLaVA chooses its branch by substrings of the folder's name. Here the folder's own files decide: ``adapter_config.json``
means LoRA, ``mm_projector.bin`` without weights means stage 1, and the name that LLaVA's function gets is made to fit.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from llava_ultra_ext.arguments import MODEL_TYPES
from llava_ultra_ext.model.builders import is_ultra
from llava_ultra_ext.model.dispatch import config_dict
from llava_ultra_ext.train.trainable import NON_LORA_FILE, PROJECTOR_FILE, load_projector

logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def load_pretrained(
    original: Callable[..., Any], model_path: str, model_base: str | None, model_name: str, *args: Any, **kwargs: Any
) -> Any:
    """LLaVA's ``load_pretrained_model``; other folders go through untouched.

    Raises:
        ValueError: a LoRA or stage 1 folder without ``model_base``, a folder whose projector is missing or incomplete.
    """
    if not _is_ultra_folder(model_path):
        return original(model_path, model_base, model_name, *args, **kwargs)
    folder = Path(os.path.expanduser(model_path))
    _check_base(folder, model_base)
    names = ("load_8bit", "load_4bit", "device_map", "device", "use_flash_attn")
    kwargs.update(zip(names, args, strict=False))
    if not torch.cuda.is_available():
        kwargs.update(device="cpu", device_map="auto", use_flash_attn=False)
    tokenizer, model, image_processor, context_len = original(str(folder), model_base, _fitting_name(folder), **kwargs)
    learned = _learned_file(folder)
    if learned is not None:
        # LLaVA rounds mm_projector.bin to float16 and reads both files without asking whether anything is missing.
        load_projector(
            model.get_model().mm_projector,
            torch.load(learned, map_location="cpu", weights_only=True),
            str(learned),
            strict=True,
        )
    model.get_vision_tower().to(device=model.device, dtype=model.dtype)
    model.eval()
    _bind_running_program(model)
    return tokenizer, model, image_processor, context_len


def _is_ultra_folder(model_path: str) -> bool:
    try:
        return is_ultra(PretrainedConfig(**config_dict(os.path.expanduser(model_path))))
    except (OSError, ValueError):
        return False


def _learned_file(folder: Path) -> Path | None:
    for name in (NON_LORA_FILE, PROJECTOR_FILE):
        if (folder / name).is_file() and not _has_weights(folder):
            return folder / name
    return None


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in WEIGHTS)


def _check_base(folder: Path, model_base: str | None) -> None:
    if _has_weights(folder) or not folder.is_dir():
        return
    kind = "LoRA" if (folder / "adapter_config.json").is_file() else "stage 1"
    if model_base is None:
        raise ValueError(
            f"{folder} is a {kind} folder and holds no language model. Give the model it was trained from with "
            "--model-base, or merge first: llava-ultra merge --model-path … --model-base … --save-model-path …"
        )
    if _learned_file(folder) is None:
        raise ValueError(
            f"{folder} has neither {NON_LORA_FILE} nor {PROJECTOR_FILE}: without them the projector would be random. "
            "Load a folder that training finished, or one of its checkpoint-* folders."
        )
    _check_same_language_model(config_dict(str(folder)), config_dict(model_base), model_base)


def _check_same_language_model(own: dict[str, Any], base: dict[str, Any], model_base: str) -> None:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    expected = {"architecture": own.get("ultra_backbone"), **{name: own.get(name) for name in names}}
    found = {"architecture": MODEL_TYPES.get(base.get("model_type", "")), **{name: base.get(name) for name in names}}
    unlike = [
        f"{name} {found[name]} (trained from {expected[name]})" for name in found if found[name] != expected[name]
    ]
    if unlike:
        raise ValueError(
            f"--model-base {model_base} is not the model that this folder was trained from: {', '.join(unlike)}. "
            "Give the one that training had as --model_name_or_path."
        )


def _fitting_name(folder: Path) -> str:
    """A name that sends LLaVA's substring tests down the branch that this folder needs.

    Never its branch for Mistral: that one loads the fast tokenizer, and training used the slow one. The class is found
    by the config in every branch (`ModelDispatch`).
    """
    lora = (folder / "adapter_config.json").is_file() and not _has_weights(folder)
    return "llava-lora" if lora else "llava"


def _bind_running_program(model: Any) -> None:
    """Bind the seams of the LLaVA program that runs as ``__main__``: a post-import hook cannot see that module."""
    from llava_ultra_ext import llava_seams
    from llava_ultra_ext.serve.without_cuda import answer_without_cuda

    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    file = getattr(main, "__file__", None)
    if name is None and file:
        parts = Path(file).with_suffix("").parts
        start = len(parts) - 1 - parts[::-1].index("llava") if "llava" in parts else len(parts)
        name = ".".join(parts[start:])
    if name and name.startswith("llava."):
        llava_seams.bind(main, name)
        if name.startswith("llava.eval.") and not torch.cuda.is_available():
            answer_without_cuda()
