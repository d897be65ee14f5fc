"""Pictures, prompts and batches for the small models of `build` (conftest)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from llava_ultra_ext.model.groups import IMAGE_TOKEN_INDEX

T = 16
QUESTION = "请描述该甲状腺超声图像。"
FINDINGS = "甲状腺内见一低回声结节，边界清晰。"
OTHER = "胆囊壁光滑，未见明显血流信号。"
EXAM = ("<image>\n" * 3 + QUESTION, "未见异常。", FINDINGS)
SINGLE = ("<image>\nIs there a nodule?", "No.", "")
TEXT = ("超声检查前需要空腹吗？", "需要空腹。", "")
TWO_GROUPS = ("<image>\n<image>\n左侧，右侧\n<image>\n<image>\n有何不同？", "结节。", OTHER)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """uint8 (count, 3, 128, 128): coarse random patterns, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, size=128).to(torch.uint8)


def prompt_ids(tokenizer: Any, text: str) -> torch.Tensor:
    """(L,) token ids with `<image>` as -200, made as LLaVA's inference does."""
    from llava.mm_utils import tokenizer_image_token

    return tokenizer_image_token(text, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")


def batch_of(tokenizer: Any, rows: list[tuple[str, str, str]]) -> dict[str, torch.Tensor]:
    """Text part of a batch from (question, answer, findings): the answers are labelled."""
    ids, labels, findings = [], [], []
    for question, answer, text in rows:
        head = prompt_ids(tokenizer, question)
        tail = torch.tensor(tokenizer(answer, add_special_tokens=False).input_ids)
        ids.append(torch.cat([head, tail]))
        labels.append(torch.cat([torch.full_like(head, -100), tail]))
        words = tokenizer(text, add_special_tokens=False).input_ids if text else []
        findings.append(torch.tensor(words, dtype=torch.long))

    def pad(items: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=value)

    return {
        "input_ids": pad(ids, 0),
        "labels": pad(labels, -100),
        "attention_mask": pad([torch.ones_like(item) for item in ids], 0).bool(),
        "findings_ids": pad([torch.cat([item, torch.zeros(1, dtype=torch.long)]) for item in findings], 0),
        "findings_mask": pad([torch.cat([torch.ones_like(f), f.new_zeros(1)]) for f in findings], 0).bool(),
    }


@contextlib.contextmanager
def watching(model: Any) -> Iterator[list[torch.Tensor]]:
    """The embeddings (E, L, D) of each call of the decoder."""
    seen: list[torch.Tensor] = []
    decoder = model.get_model()
    stock = decoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("inputs_embeds") is not None:
            seen.append(kwargs["inputs_embeds"].detach().clone())
        return stock(*args, **kwargs)

    decoder.forward = forward
    try:
        yield seen
    finally:
        del decoder.forward
