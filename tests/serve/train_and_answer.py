"""LLaVA's ``train()`` with the plugin armed; before the process ends, the trained model answers exams itself.

Writes the greedy token ids of each question to ``ANSWERS`` (environment). Run by test_same_tokens.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from llava_ultra_ext.activate import arm


def answer(
    model: Any, tokenizer: Any, questions: list[dict[str, Any]], folder: Path, new_tokens: int
) -> list[list[int]]:
    """Greedy token ids, one question at a time, by LLaVA's own functions only."""
    from llava.conversation import conv_templates
    from llava.mm_utils import process_images, tokenizer_image_token
    from PIL import Image

    found = []
    model.config.use_cache = True
    for question in questions:
        conversation = conv_templates["ultra_v1_zh"].copy()
        conversation.append_message(conversation.roles[0], "<image>\n" * len(question["image"]) + question["text"])
        conversation.append_message(conversation.roles[1], None)
        ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, return_tensors="pt")[None]
        pictures = [Image.open(folder / name).convert("RGB") for name in question["image"]]
        pixels = process_images(pictures, model.get_vision_tower().image_processor, model.config)
        with torch.inference_mode():
            output = model.generate(
                ids, images=pixels.half(), do_sample=False, max_new_tokens=new_tokens, use_cache=True
            )
        found.append(output[0].tolist())
    return found


def main() -> None:
    torch.set_num_threads(1)
    arm()
    from llava.train import train

    from llava_ultra_ext.train.trainer import UltraTrainer

    kept: list[UltraTrainer] = []
    save_state = UltraTrainer.save_state

    def keep(self: UltraTrainer) -> None:
        kept.append(self)
        save_state(self)

    UltraTrainer.save_state = keep
    train.train(attn_implementation="flash_attention_2")
    trainer = kept[0]
    asked = json.loads(Path(os.environ["QUESTIONS"]).read_text(encoding="utf-8"))
    model = trainer.exam_model.eval()
    tokens = answer(model, trainer.tokenizer, asked, Path(os.environ["EXAMS"]), int(os.environ["NEW_TOKENS"]))
    Path(os.environ["ANSWERS"]).write_text(json.dumps(tokens))


if __name__ == "__main__":
    main()
