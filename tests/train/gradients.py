"""One step of a model of ours, run by test_zero3.py: under ZeRO-3 on two ranks, or in one process.

Rank 0 has a text-only sample and a single picture, rank 1 exams of two and of seven frames. The ranks then need other
numbers of encoder chunks and teacher passes, which is where ZeRO-3 hangs when a rank walks modules alone.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

SAMPLES = (("text", "single"), ("k2", "k7"))
"""What each rank gets."""


def training_arguments(options: argparse.Namespace) -> Any:
    """What LLaVA's train() hands to initialize_vision_modules."""
    from llava.train import train as host

    from llava_ultra_ext.train.program import extended_arguments

    return extended_arguments(host)["ModelArguments"](
        model_name_or_path=options.base,
        vision_tower="sam_clip_fused",
        clip_tower=options.clip,
        sam_tower=options.sam,
        mm_vision_select_layer=-2,
        mm_use_im_patch_token=False,
        encoder_batch_size=2,
        adr_strategy=options.strategy,
        feature_cache=options.feature_cache,
    )


def build(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model as LLaVA's train() makes it, and its tokenizer."""
    from transformers import AutoTokenizer

    from llava_ultra_ext.model.dispatch import TrainingDispatch

    torch.manual_seed(0)
    model = TrainingDispatch().from_pretrained(options.base, attn_implementation="sdpa")
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    tokenizer = AutoTokenizer.from_pretrained(options.base, use_fast=False, model_max_length=256)
    tokenizer.pad_token = tokenizer.unk_token
    arguments = training_arguments(options)
    torch.manual_seed(0)
    model.get_model().initialize_vision_modules(arguments)
    model.initialize_vision_tokenizer(arguments, tokenizer=tokenizer)
    return model.train(), tokenizer


def _is(kind: str, exam: Any) -> bool:
    if kind == "text":
        return not exam.images
    return len(exam.images) == 1 and not exam.exam_id if kind == "single" else len(exam.images) == int(kind[1:])


def batches(options: argparse.Namespace, tower: Any, tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    """The batch of each rank."""
    from llava.conversation import conv_templates

    from llava_ultra_ext.data.cached_frames import open_cache
    from llava_ultra_ext.data.exam import Exam
    from llava_ultra_ext.data.exam_dataset import ExamCollator, ExamDataset

    records = json.loads((Path(options.exams) / "train.json").read_text(encoding="utf-8"))
    exams = [Exam.from_record(record) for record in records]
    chosen = [next(e for e in exams if _is(kind, e)) for kind in sum(SAMPLES, ())]
    dataset = ExamDataset(
        chosen,
        tokenizer=tokenizer,
        template=conv_templates["ultra_v1_zh"],
        image_folder=options.exams,
        image_processor=tower.image_processor,
        frame_tokens=tower.num_patches,
        strategy=options.strategy,
        feature_cache=open_cache(options.feature_cache, tower),
    )
    collate = ExamCollator(tokenizer.pad_token_id)
    return [collate([dataset[2 * rank], dataset[2 * rank + 1]]) for rank in range(2)]


def one_process(options: argparse.Namespace) -> None:
    """Gradients averaged over the two ranks' batches, as data-parallel training defines them."""
    model, tokenizer = build(options)
    losses = []
    for batch in batches(options, model.get_vision_tower(), tokenizer):
        loss = model(**batch).loss
        (loss / 2).backward()
        losses.append(loss.item())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.save({"losses": losses, "gradients": gradients}, options.out)


def two_ranks(options: argparse.Namespace) -> None:
    """The same under DeepSpeed ZeRO-3; rank 0 writes what it sees."""
    import deepspeed
    from deepspeed.utils import safe_get_full_grad
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed.init_distributed("gloo")
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "train_batch_size": 4,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    keep_alive = HfDeepSpeedConfig(config)
    model, tokenizer = build(options)
    rank = torch.distributed.get_rank()
    batch = batches(options, model.get_vision_tower(), tokenizer)[rank]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    loss = engine(**batch).loss
    engine.backward(loss)
    gradients = {name: safe_get_full_grad(p) for name, p in engine.module.named_parameters()}
    losses = [torch.zeros(()) for _ in range(2)]
    torch.distributed.all_gather(losses, loss.detach())
    if rank == 0:
        found = {name: g for name, g in gradients.items() if g is not None}
        torch.save({"losses": [loss.item() for loss in losses], "gradients": found}, options.out)
    del keep_alive


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("base", "clip", "sam", "exams", "strategy", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--feature_cache")
    parser.add_argument("--local_rank", type=int, default=-1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    from llava_ultra_ext.activate import arm

    arm()
    (two_ranks if "RANK" in os.environ else one_process)(options)


if __name__ == "__main__":
    main()
