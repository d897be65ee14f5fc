"""What can be seen to be wrong from the command line alone, before anything is read or loaded."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch

from llava_ultra_ext.model.dispatch import backbone_of, config_dict

logger = logging.getLogger(__name__)


def flag_value(flag: str) -> str | None:
    """What the command line gives for a flag, ``None`` where it does not; nothing else of it is parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", default=None)
    return parser.parse_known_args()[0].value


def check_flags(model_args: Any, data_args: Any) -> None:
    """Flags that do not go together, and files that are not there.

    Raises:
        ValueError: the first of them.
    """
    base = model_args.model_name_or_path
    try:
        values = config_dict(base)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model_name_or_path {base}: no config.json could be read there ({error}). "
            "Give a folder with a language model, or a hub name that is reachable or cached."
        ) from None
    backbone_of(values, base)
    depth = values.get("num_hidden_layers")
    if depth is not None and model_args.adr_layers is not None and model_args.adr_layers > depth:
        raise ValueError(f"--adr_layers {model_args.adr_layers}: {base} has {depth} layers. Give 1 to {depth}.")
    if "mpt" in base:
        raise ValueError(
            f"--model_name_or_path {base}: the path contains 'mpt', which LLaVA's train.py takes for an MPT model "
            "(it tests substrings). Rename or link the folder."
        )
    if data_args.data_path is None:
        raise ValueError("--data_path is missing. Give the JSON list of training samples.")
    for name, path in (
        ("pretrain_mm_mlp_adapter", model_args.pretrain_mm_mlp_adapter),
        ("frame_scores", data_args.frame_scores),
    ):
        if path is not None and not Path(path).is_file():
            raise ValueError(
                f"--{name} {path}: no such file. Stage 1 writes mm_projector.bin, score-frames the scores."
            )
    if data_args.image_aspect_ratio not in ("square", "pad"):
        raise ValueError(
            f"--image_aspect_ratio {data_args.image_aspect_ratio}: tiles are not supported by this tower. Use pad "
            "(square is taken as pad too: the field of view is never cropped)."
        )
    if model_args.mm_use_im_start_end:
        raise ValueError("--mm_use_im_start_end True: exams are not wrapped into tags. Use False, as LLaVA 1.5 does.")
    _check_what_is_saved(model_args)
    if model_args.mm_patch_merge_type != "flat":
        raise ValueError(f"--mm_patch_merge_type {model_args.mm_patch_merge_type}: only flat fits whole frames.")


def _check_what_is_saved(model_args: Any) -> None:
    """Stage 1 and LoRA save the projector (and LoRA): whatever else is changed would be lost."""
    lora = flag_value("--lora_enable") in ("True", "true", "1")
    if not (lora or model_args.tune_mm_mlp_adapter):
        return
    if model_args.mm_use_im_patch_token:
        raise ValueError(
            "--mm_use_im_patch_token True (LLaVA's default) adds a token whose weights neither stage 1 nor LoRA saves. "
            "Give --mm_use_im_patch_token False, as LLaVA's own scripts do."
        )
    if model_args.version == "v0":
        raise ValueError("--version v0 adds a [PAD] token that neither stage 1 nor LoRA saves. Use ultra_v1_zh, or v1.")
    if flag_value("--freeze_mm_mlp_adapter") in ("True", "true", "1"):
        raise ValueError(
            "--freeze_mm_mlp_adapter True: the projector would be in no file that this run saves. Leave the flag out."
        )


def check_processes() -> None:
    """Several GPUs in one process would be data-parallel by rows, which takes exams apart.

    Raises:
        ValueError: so it is.
    """
    if torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"{torch.cuda.device_count()} GPUs but one process: Transformers would cut batches of exams by rows. "
            "Launch with deepspeed or torchrun, or choose one GPU with CUDA_VISIBLE_DEVICES=0."
        )


def usable_attention(wanted: str | None) -> str | None:
    """The attention kernel that this machine can run: flash-attention needs CUDA and its package."""
    if wanted != "flash_attention_2":
        return wanted
    if torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None:
        return wanted
    from transformers import utils

    sdpa = getattr(utils, "is_torch_sdpa_available", lambda: False)()
    kernel = "sdpa" if sdpa else "eager"
    logger.warning(
        "flash-attention is not usable here (it needs CUDA and the package flash-attn): attention runs with %s.", kernel
    )
    return kernel
