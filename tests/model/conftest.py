"""Small real models of ours, built the way LLaVA's train() builds them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def build(tiny_clip: Path, tiny_sam: Path, tiny_llama: Path, tiny_mistral: Path) -> Callable[..., Any]:
    """Makes a model and its tokenizer from flags; the random state of the caller is left alone.

    Keyword arguments: `base` (llama, mistral or a folder), `peft` (LoRA, as stage 2), and any flag of ModelArguments.
    """
    pytest.importorskip("llava")

    def make(base: str | Path = "llama", peft: bool = False, seed: int = 0, **flags: Any) -> Any:
        from transformers import AutoTokenizer

        from llava_ultra_ext.model.dispatch import TrainingDispatch
        from llava_ultra_ext.train.program import extended_arguments

        folder = str({"llama": tiny_llama, "mistral": tiny_mistral}.get(str(base), base))
        names = extended_arguments(importlib.import_module("llava.train.train"))
        given = {
            "model_name_or_path": folder,
            "vision_tower": "sam_clip_fused",
            "clip_tower": str(tiny_clip),
            "sam_tower": str(tiny_sam),
            "mm_vision_select_layer": -2,
            "mm_use_im_patch_token": False,
            **flags,
        }
        args = names["ModelArguments"](**given)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = TrainingDispatch().from_pretrained(folder, attn_implementation="eager")
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=False, model_max_length=1024)
            tokenizer.pad_token = tokenizer.unk_token
            wrapped = _with_lora(model) if peft else model
            model.get_model().initialize_vision_modules(args)
            model.get_vision_tower().to(dtype=torch.float16, device="cpu")  # as train() does
            model.config.mm_use_im_start_end = args.mm_use_im_start_end
            model.config.mm_use_im_patch_token = args.mm_use_im_patch_token
            model.config.tokenizer_padding_side = "right"
            model.config.tokenizer_model_max_length = 1024
            model.initialize_vision_tokenizer(args, tokenizer=tokenizer)
            with torch.no_grad():  # alpha away from its start, so that swapping the encoders shows
                if model.get_model().mm_projector.fusion.logits is not None:
                    model.get_model().mm_projector.fusion.logits.fill_(0.7)
        return SimpleNamespace(model=model, wrapped=wrapped, tokenizer=tokenizer, args=args)

    return make


def _with_lora(model: Any) -> Any:
    from llava.train.train import find_all_linear_names
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=find_all_linear_names(model), task_type="CAUSAL_LM")
    )
