"""What the benchmarks measure: encoders and LLMs with random weights in the real formats, pictures, exams, a cache."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from llava_ultra_ext.data.cached_frames import open_cache, picture_keys
from llava_ultra_ext.data.whole_file import write_whole
from llava_ultra_ext.model.dispatch import TrainingDispatch
from llava_ultra_ext.train.checks import usable_attention
from llava_ultra_ext.train.program import extended_arguments
from llava_ultra_ext.vision.feature_cache import HEADER, CacheHeader, FeatureCache, ShardWriter
from llava_ultra_ext.vision.feature_record import DTYPES, pack
from llava_ultra_ext.vision.tower import FusedVisionTower

sys.path.append(str(Path(__file__).parents[2] / "playground"))
from tiny_tokenizer import make_tokenizer

LARGE = {
    "clip": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "sam": {"hidden_size": 1024, "mlp_dim": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
SMALL = {
    "clip": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "sam": {"hidden_size": 64, "mlp_dim": 128, "num_hidden_layers": 4, "num_attention_heads": 2},
}
LLMS = {  # hidden size, inner size, layers, heads, key heads, vocabulary
    "small": (64, 128, 2, 4, 2, 2048),
    "1b": (2048, 5632, 22, 32, 4, 32000),  # TinyLlama's 1.1B
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "13b": (5120, 13824, 40, 40, 40, 32000),
}
CACHE_DTYPE = "float16"
"""Of `llava-ultra cache build`."""

TEMPLATE = "v1"
QUESTION = "请描述该甲状腺超声图像，并给出诊断。"
ANSWER = "甲状腺右叶中部见一低回声结节，大小约12mm×8mm，边界清晰，形态规则。超声提示：甲状腺右叶结节，建议随访复查。"
FINDINGS = (
    "超声所见：甲状腺右叶中部见一低回声结节，大小约12mm×8mm，边界清晰，形态规则，内部回声均匀，未见明显血流信号。"
    "左叶大小形态正常，包膜光滑，实质回声均匀，血管走行清晰，未见异常回声。双侧颈部未见占位性病变。"
)


def make_encoders(folder: Path, size: int, quick: bool) -> dict[str, str]:
    """CLIP and SAM; SAM looks at `size` pixels and CLIP's grid is half of SAM's, 336 pixels for 768."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, SamConfig, SamModel

    torch.manual_seed(0)
    shapes = SMALL if quick else LARGE
    side = size * 7 // 16
    clip = CLIPVisionConfig(**shapes["clip"], image_size=side, patch_size=14)
    every = shapes["sam"]["num_hidden_layers"] // 4
    vision = {**shapes["sam"], "image_size": size, "global_attn_indexes": [every * part - 1 for part in (1, 2, 3, 4)]}
    CLIPVisionModel(clip).save_pretrained(folder / "clip")
    crop = {"height": side, "width": side}
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=crop).save_pretrained(folder / "clip")
    SamModel(SamConfig(vision_config=vision)).save_pretrained(folder / "sam")
    return {kind: str(folder / kind) for kind in shapes}


def make_pictures(folder: Path, count: int) -> list[str]:
    """Speckle as PNG, 768 x 576 like an ultrasound device's; their names."""
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = np.clip(generator.rayleigh(60.0, (576, 768)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).convert("RGB").save(folder / f"{number}.png")
    return [f"{number}.png" for number in range(count)]


def write_exams(path: Path, exams: Sequence[Sequence[str]]) -> Path:
    """A training file of exams that differ in their pictures only; a single picture stands as LLaVA wants it."""
    records = []
    for number, names in enumerate(exams):
        asked = {"from": "human", "value": "<image>\n" * len(names) + QUESTION}
        turns = [asked, {"from": "gpt", "value": ANSWER}]
        image = names[0] if len(names) == 1 else list(names)
        records.append({"id": str(number), "image": image, "findings": FINDINGS, "conversations": turns})
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return path


def make_llm(folder: Path, name: str, layers: int | None, dtype: torch.dtype, device: str) -> Path:
    """A LLaMA of `LLMS`, all of its layers or the first ones, with a tokenizer for the exams' text."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden, inner, all_layers, heads, key_heads, words = LLMS[name]
    make_tokenizer(folder, [QUESTION, ANSWER, FINDINGS, "A chat between a curious user and an artificial assistant."])
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers or all_layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=4096,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, torch_dtype=dtype)
    model.save_pretrained(folder)
    return folder


class Built(NamedTuple):
    """A model for training, as LLaVA's ``train()`` builds it.

    Args:
        model: ours or LLaVA's.
        wrapped: in PEFT, or the model itself.
        tokenizer: of the LLM.
        image_processor: of the vision tower.
    """

    model: Any
    wrapped: Any
    tokenizer: Any
    image_processor: Any


def build(
    llm: Path, sources: dict[str, str], ours: bool, dtype: torch.dtype, device: str, lora: int = 0, **flags: Any
) -> Built:
    """Stock LLaVA's own class with CLIP, or ours with both encoders; every weight of the LLM learns, or a LoRA.

    Args:
        llm: of `make_llm`.
        sources: of `make_encoders`.
        ours: which.
        dtype: of everything.
        device: where.
        lora: rank; 0: none.
        flags: of ModelArguments.
    """
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
    from transformers import AutoTokenizer

    host: Any = importlib.import_module("llava.train.train")
    arguments = extended_arguments(host)["ModelArguments"] if ours else host.ModelArguments
    towers = {"clip_tower": sources["clip"], "sam_tower": sources["sam"]} if ours else {}
    given = {"version": TEMPLATE, "mm_vision_select_layer": -2, "mm_use_im_patch_token": False, **towers, **flags}
    tower_name = "sam_clip_fused" if ours else sources["clip"]
    args = arguments(model_name_or_path=str(llm), vision_tower=tower_name, **given)
    source = TrainingDispatch() if ours else LlavaLlamaForCausalLM
    attention = usable_attention("flash_attention_2" if device.startswith("cuda") else "sdpa")
    torch.manual_seed(0)
    model = source.from_pretrained(str(llm), torch_dtype=dtype, attn_implementation=attention)
    model.config.use_cache = False
    wrapped = _with_lora(model, lora) if lora else model
    tokenizer = AutoTokenizer.from_pretrained(llm, use_fast=False, model_max_length=2048, padding_side="right")
    tokenizer.pad_token = tokenizer.unk_token
    model.get_model().initialize_vision_modules(args)
    model.get_vision_tower().to(dtype=dtype, device=device)
    model.to(device=device, dtype=dtype)
    model.config.mm_use_im_start_end, model.config.mm_use_im_patch_token = False, False
    model.config.tokenizer_padding_side, model.config.tokenizer_model_max_length = "right", 2048
    model.initialize_vision_tokenizer(args, tokenizer=tokenizer)
    return Built(model, wrapped, tokenizer, model.get_vision_tower().image_processor)


def _with_lora(model: Any, rank: int) -> Any:
    from llava.train.train import find_all_linear_names
    from peft import LoraConfig, get_peft_model

    names = find_all_linear_names(model)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, task_type="CAUSAL_LM"))


class Kept(list):
    """What the encoders said of frames, pass after pass: kind -> features."""

    def write(self, folder: Path, tower: FusedVisionTower, paths: Sequence[str]) -> FeatureCache:
        """As a feature cache, the files of `llava-ultra cache build`; `paths` are the frames' pictures in order."""
        dtype = str(tower.dtype).removeprefix("torch.")
        folder.mkdir(parents=True)
        header = CacheHeader(tower.identity(), tower.feature_shapes, CACHE_DTYPE, dtype)
        write_whole(folder / HEADER, header.as_json())
        keys = [str(key) for key in picture_keys(paths, 1)]
        with ShardWriter(folder) as writer:
            for features in self:
                count = len(next(iter(features.values())))
                writer.add(keys[:count], pack(features, DTYPES[CACHE_DTYPE]))
                keys = keys[count:]
        cache = open_cache(str(folder), tower)
        assert cache is not None
        return cache


@contextmanager
def keeping_features(model: Any) -> Iterator[Kept]:
    """Keeps what reaches the projector: on a CPU the encoders take minutes, and need not run again for the cache."""
    kept = Kept()
    projector = model.get_model().mm_projector
    handle = projector.register_forward_pre_hook(lambda _, given: kept.append(dict(given[0])))
    try:
        yield kept
    finally:
        handle.remove()
