"""A LoRA folder and its base as one folder that plain ``load_pretrained_model`` opens: ``llava-ultra merge``.

LLaVA's own loader does the merging, so the result is the model that answers from the LoRA folder. It runs on the CPU.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from llava_ultra_ext.model.builders import is_ultra
from llava_ultra_ext.model.dispatch import settle_generation
from llava_ultra_ext.model.opening import OpenedModel, folder_config, model_name, open_model
from llava_ultra_ext.train.trainable import is_full

logger = logging.getLogger(__name__)

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def adapter_dtype(folder: Path) -> torch.dtype:
    """The dtype in which a LoRA folder was trained: that of its adapter. ``config.json`` says what its base stores.

    Raises:
        ValueError: it is no LoRA folder.
    """
    path = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(
            f"--model-path {folder}: is no LoRA folder (no {' or '.join(ADAPTER_FILES)}). Give the --output_dir of a "
            "--lora_enable run, or one of its checkpoint-* folders; a whole folder needs no merging."
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(str(path))
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    return next(iter(tensors.values())).dtype


def check_target(target: Path) -> None:
    """Refuse a folder that is in use, or whose name LLaVA would misread.

    Raises:
        ValueError: with the reason.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--save-model-path {target}: exists and is not empty. Give a new folder, or remove it first.")
    name = model_name(str(target)).lower()
    why = "LLaVA's programs choose by the folder's name how to open it"
    if "llava" not in name:
        raise ValueError(
            f"--save-model-path {target}: the name must have 'llava' in it: {why}, and take one without it for a "
            "language model without pictures."
        )
    for part, meaning in (("lora", "a LoRA folder that needs --model-base"), ("mpt", "an MPT model")):
        if part in name:
            raise ValueError(f"--save-model-path {target}: the name must not have {part!r} in it: {why}, {meaning}.")


def save_merged(opened: OpenedModel, target: Path, dtype: torch.dtype) -> None:
    """Write model and tokenizer under a temporary name, then rename.

    Raises:
        OSError: the disk is full; nothing is left behind.
    """
    model = opened.model.to(dtype)
    settle_generation(model.generation_config)
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f".{target.name}.[0-9]*"):  # of a merge that was killed: as large as a model
        shutil.rmtree(stale, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        model.save_pretrained(str(temporary))
        opened.tokenizer.save_pretrained(str(temporary))
        os.replace(temporary, target)
    except BaseException as error:
        full = is_full(error, target.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        if full:
            raise OSError(
                errno.ENOSPC, f"No space left for {target}; nothing was left behind. Free some, and merge again."
            ) from error
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Merge a LoRA folder.

    Raises:
        ValueError: a folder is unusable; nothing was loaded or written.
        OSError: the disk is full.
    """
    args = _parser().parse_args(argv)
    source, target = (Path(os.path.expanduser(path)) for path in (args.model_path, args.save_model_path))
    check_target(target)
    if not is_ultra(folder_config(args.model_path)):
        raise ValueError(
            f"--model-path {source}: is not a LLaVA-Ultra folder. "
            "LLaVA merges its own with scripts/merge_lora_weights.py."
        )
    dtype = adapter_dtype(source)
    folder_config(args.model_base, "--model-base")
    if torch.cuda.is_available():
        return _without_gpu(sys.argv[1:] if argv is None else argv)
    save_merged(open_model(args.model_path, args.model_base, "cpu"), target, dtype)
    logger.info("%s: merged in %s; open it without --model-base.", target, str(dtype).replace("torch.", ""))
    return 0


def _without_gpu(argv: Sequence[str]) -> int:
    """Merge in a process that sees no GPU: on one LLaVA loads float16, which rounds a bfloat16 or float32 training."""
    command = [sys.executable, "-m", "llava_ultra_ext.train.merge", *argv]
    return subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=False).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-ultra merge", description="Merge a LoRA folder into one that LLaVA opens without --model-base."
    )
    parser.add_argument("--model-path", required=True, help="LoRA folder of stage 2, or one of its checkpoints")
    parser.add_argument("--model-base", required=True, help="the language model it was trained on")
    parser.add_argument(
        "--save-model-path", required=True, help="new folder; its name has 'llava' and not 'lora' in it"
    )
    return parser


if __name__ == "__main__":
    from llava_ultra_ext.cli import main as command

    raise SystemExit(command(["merge", *sys.argv[1:]]))
