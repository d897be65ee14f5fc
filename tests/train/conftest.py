"""LLaVA's training module with the seams bound, and a command line of ours for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from exam_case import EXAM, Case, Flags


@pytest.fixture(scope="session")
def host() -> Iterator[Any]:
    """`llava.train.train`; its `train()` is ours for the session where the environment did not do it."""
    pytest.importorskip("llava")
    import llava.conversation
    import llava.train.train

    from llava_ultra_ext import llava_seams

    bound = llava_seams.bind(llava.conversation) + llava_seams.bind(llava.train.train)
    yield llava.train.train
    if bound:
        llava_seams.undo()


@pytest.fixture
def flags(exam_folder: Path, tiny_clip: Path, tiny_sam: Path, tiny_llama: Path, tmp_path: Path) -> dict[str, Any]:
    """A stage 1 run of two steps on the synthetic exams; change a copy."""
    return {
        "model_name_or_path": tiny_llama,
        "data_path": exam_folder / "train.json",
        "image_folder": exam_folder,
        "vision_tower": "sam_clip_fused",
        "clip_tower": tiny_clip,
        "sam_tower": tiny_sam,
        "version": "ultra_v1_zh",
        "tune_mm_mlp_adapter": True,
        "mm_vision_select_layer": -2,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "model_max_length": 512,
        "report_to": "none",
        "use_cpu": True,
    }


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Puts flags where LLaVA's train() reads them; a value of None leaves the flag out."""

    def put(given: dict[str, Any]) -> None:
        argv = [text for name, value in given.items() if value is not None for text in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["train_mem.py", *argv])

    return put


@pytest.fixture
def case(exam_folder: Path, flags: Flags, tmp_path: Path) -> Case:
    folder = tmp_path / "exams"
    shutil.copytree(exam_folder, folder)
    records = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    assert len(records[EXAM]["image"]) == 4
    return Case(folder, {**flags, "data_path": folder / "train.json", "image_folder": folder}, records)


@pytest.fixture
def refused(
    host: Any, command_line: Callable[[Flags], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Flags], str]:
    """Starts a run that must end before LLaVA's train() begins and before any weights are read; its message."""

    def start(given: Flags) -> str:
        from transformers import PreTrainedModel

        from llava_ultra_ext.train.program import run_training
        from llava_ultra_ext.vision.tower import FusedVisionTower

        command_line(given)
        never = lambda what: lambda *args, **kwargs: pytest.fail(f"{what} was called")  # noqa: E731
        monkeypatch.setattr(PreTrainedModel, "from_pretrained", never("from_pretrained"))
        monkeypatch.setattr(FusedVisionTower, "load_model", never("load_model"))
        with pytest.raises(ValueError) as error:
            run_training(host, never("LLaVA's train()"), None)
        assert not Path(given["output_dir"]).exists()
        return str(error.value)

    return start


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many kilobytes; needs Linux and the right to mount."""
    folder = tmp_path / "disk"

    def mount(kilobytes: int) -> Path:
        folder.mkdir()
        try:
            command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot mount a small file system here: {error}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a half-written file may still be open
