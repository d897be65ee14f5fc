"""Real small LLaMA tokenizers (sentencepiece, byte fallback), legacy and not, and a picture processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava_ultra_ext.conversation import TEMPLATE_NAMES, register


@pytest.fixture(scope="session")
def tokenizers(tiny_llama: Path, tiny_llama_new_tokenizer: Path) -> dict[str, Any]:
    """`legacy` and `new` slow tokenizers, and `tags`: legacy with the chat marks as special tokens."""
    from transformers import LlamaTokenizer

    def load(folder: Path) -> Any:
        tokenizer = LlamaTokenizer.from_pretrained(str(folder), model_max_length=512)
        tokenizer.pad_token = tokenizer.unk_token  # as LLaVA's train() does
        return tokenizer

    found = {"legacy": load(tiny_llama), "new": load(tiny_llama_new_tokenizer), "tags": load(tiny_llama)}
    assert found["legacy"].legacy is True and found["new"].legacy is False
    found["tags"].add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return found


@pytest.fixture(scope="session")
def templates() -> dict[str, Any]:
    """LLaVA's templates and ours, by name."""

    conv = pytest.importorskip("llava.conversation")

    # The environment may have the package enabled: LLaVA's table then holds ours already.
    own = {name: template for name, template in conv.conv_templates.items() if name not in TEMPLATE_NAMES}
    return dict(register(own, conv.Conversation, conv.SeparatorStyle))


class GreyProcessor:
    """The contract of LLaVA's processors, at 8 px, values 0..255."""

    def __init__(self) -> None:
        self.crop_size = {"height": 8, "width": 8}

    def preprocess(self, images: Any, return_tensors: str) -> dict[str, torch.Tensor]:
        assert return_tensors == "pt"
        images = images if isinstance(images, list) else [images]
        arrays = [np.asarray(image.convert("RGB").resize((8, 8))) for image in images]
        return {"pixel_values": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()}


@pytest.fixture
def processor() -> GreyProcessor:
    return GreyProcessor()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folder with `0.png` … `9.png`; every pixel of picture i is 20 i."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for shade in range(10):
        Image.new("L", (12, 9), 20 * shade).save(folder / f"{shade}.png")
    return folder
