"""A small model that LLaVA's own `train_mem.py` trained: stage 1 and LoRA stage 2 as the scripts run them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from run_llava import flags, run_llava, train_mem


@dataclass(frozen=True)
class Trained:
    """Folders of a finished training.

    Args:
        base: the language model.
        stage1: `mm_projector.bin` and `config.json`.
        lora: adapter and `non_lora_trainables.bin`; its name holds "llava" and "lora", as LLaVA's builder wants it.
        exams: `train.json` and `frames/`.
    """

    base: Path
    stage1: Path
    lora: Path
    exams: Path


def training_flags(base: Path, exams: Path, clip: Path, sam: Path, output: Path) -> dict[str, object]:
    """What both stages share."""
    return {
        "model_name_or_path": base,
        "data_path": exams / "train.json",
        "image_folder": exams,
        "vision_tower": "sam_clip_fused",
        "clip_tower": clip,
        "sam_tower": sam,
        "mm_projector_type": "linear",
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "bf16": False,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "logging_steps": 100,
        "learning_rate": 3e-3,
        "model_max_length": 256,
        "lazy_preprocess": True,
        "report_to": "none",
        "output_dir": output,
    }


def train(base: Path, exams: Path, clip: Path, sam: Path, out: Path, epochs: int = 20) -> Trained:
    """Both stages into `out`; about 10 s each, half of it imports. Its answers differ from question to question."""
    stage1, lora = out / "llava-stage1", out / "llava-lora"
    common = training_flags(base, exams, clip, sam, stage1)
    first = {"tune_mm_mlp_adapter": True, "version": "ultra_v1_zh", "num_train_epochs": 1}
    run_llava(train_mem(), *flags({**common, **first}))
    second = {
        "output_dir": lora,
        "learning_rate": 5e-3,
        "lora_enable": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "mm_projector_lr": 1e-3,
        "pretrain_mm_mlp_adapter": stage1 / "mm_projector.bin",
        "version": "ultra_v1_zh",
        "num_train_epochs": epochs,
    }
    run_llava(train_mem(), *flags({**common, **second}))
    return Trained(base, stage1, lora, exams)
