"""Flags that would train well and save a folder that cannot be opened are refused before anything loads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ultra_ext.activate import arm

arm()

from llava.train import train as host  # noqa: E402

from llava_ultra_ext.train.checks import check_flags, check_processes  # noqa: E402
from llava_ultra_ext.train.program import extended_arguments  # noqa: E402


@pytest.fixture
def check(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*command_line: str, **model_flags: Any) -> None:
        names = extended_arguments(host)
        given = {"mm_use_im_patch_token": False, "version": "ultra_v1_zh", **model_flags}
        model_args = names["ModelArguments"](model_name_or_path=str(tiny_llama), vision_tower="sam_clip_fused", **given)
        monkeypatch.setattr(sys, "argv", ["train_mem.py", *command_line])
        check_flags(model_args, names["DataArguments"](data_path="train.json"))

    return run


LORA = ("--lora_enable", "True")


@pytest.mark.parametrize(
    "command_line, model_flags, message",
    [
        (LORA, {"mm_use_im_patch_token": True}, "--mm_use_im_patch_token True (LLaVA's default) adds a token"),
        ((), {"mm_use_im_patch_token": True, "tune_mm_mlp_adapter": True}, "Give --mm_use_im_patch_token False"),
        (LORA, {"version": "v0"}, "--version v0 adds a [PAD] token"),
        ((*LORA, "--freeze_mm_mlp_adapter", "True"), {}, "the projector would be in no file"),
        ((), {"mm_use_im_start_end": True}, "exams are not wrapped into tags"),
        ((), {"adr_layers": 99}, "layers. Give 1 to 4."),
        ((), {"mm_patch_merge_type": "spatial_unpad"}, "only flat fits whole frames"),
    ],
)
def test_refused(check: Any, command_line: tuple[str, ...], model_flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="--") as refused:
        check(*command_line, **model_flags)
    assert message in str(refused.value)


def test_a_full_run_may_add_tokens_since_it_saves_them(check: Any) -> None:
    check(mm_use_im_patch_token=True)
    check(*LORA)


def test_several_gpus_in_one_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="2 GPUs but one process"):
        check_processes()
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_processes()
