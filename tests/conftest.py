"""Shared fixtures: small real models in the real formats, and a folder of synthetic exams. Offline, CPU, one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Before torch, transformers or deepspeed are imported by any test: they read these once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PLAYGROUND = Path(__file__).resolve().parents[1] / "playground"
FOLDERS = ("", "quickstart", "models", "ablation", "rehearsal", "hospital", "serving")
sys.path[:0] = [str(PLAYGROUND / name) for name in FOLDERS]

import pytest  # noqa: E402
import torch  # noqa: E402
import trained  # noqa: E402

import tiny_exams  # noqa: E402
import tiny_models  # noqa: E402
from llava_ultra_ext import activate  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's small models live."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_clip(models_folder: Path) -> Path:
    """A CLIP folder: 32 px, patches of 8 px, grid 4x4, 32 channels, 2 layers."""
    return tiny_models.make_clip(models_folder / "clip")


@pytest.fixture(scope="session")
def tiny_sam(models_folder: Path) -> Path:
    """A SAM folder: 128 px, grid 8x8 (2x2 cells merge to CLIP's 4x4), neck of 16 channels, 4 layers, windows of 4."""
    return tiny_models.make_sam(models_folder / "sam")


@pytest.fixture(scope="session")
def tiny_sam_pth(models_folder: Path) -> Path:
    """The weights of `tiny_sam` as a segment-anything file."""
    return tiny_models.make_sam_pth(models_folder / "sam_vit_tiny.pth")


@pytest.fixture(scope="session")
def tiny_dinov2(models_folder: Path) -> Path:
    """A DINOv2 folder: 56 px, grid 4x4 behind a class token, 32 channels, 2 layers."""
    return tiny_models.make_dinov2(models_folder / "dinov2")


@pytest.fixture(scope="session")
def tiny_llama(models_folder: Path) -> Path:
    """A LLaMA folder: hidden 64, 4 layers, 4 heads, legacy sentencepiece tokenizer."""
    return tiny_models.make_llama(models_folder / "llama")


@pytest.fixture(scope="session")
def tiny_llama_new_tokenizer(models_folder: Path) -> Path:
    """A tokenizer folder like `tiny_llama`'s with `legacy=False`."""
    return tiny_models.make_tokenizer(models_folder / "tokenizer-not-legacy", legacy=False)


@pytest.fixture(scope="session")
def tiny_mistral(models_folder: Path) -> Path:
    """A Mistral folder: hidden 64, 4 layers, 4 query heads over 2 key heads."""
    return tiny_models.make_mistral(models_folder / "mistral")


@pytest.fixture(scope="session")
def exam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.json` and `frames/*.png`: exams of 1, 2, 3, 4 and 7 frames, a single image, a text. Treat as read-only."""
    return tiny_exams.make_exams(tmp_path_factory.mktemp("exams"))


@pytest.fixture(scope="session")
def trained_lora(
    tiny_llama: Path, exam_folder: Path, tiny_clip: Path, tiny_sam: Path, tmp_path_factory: pytest.TempPathFactory
) -> trained.Trained:
    """Stage 1 and LoRA stage 2 by LLaVA's own `train_mem.py`, on `exam_folder`. Treat its folders as read-only."""
    return trained.train(tiny_llama, exam_folder, tiny_clip, tiny_sam, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def armed() -> Iterator[None]:
    """LLaVA with the plugin in this process; afterwards as it was before, whether the environment enables it or not."""
    before = activate.is_armed()
    activate.arm()
    yield
    if not before:
        activate.disarm()
