"""A model that takes training steps under a clock, for `train_step.py`."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from making import Built
from measuring import Parts, now
from torch.utils.data import DataLoader


class Trainee:
    """A model that learns, with its optimizer and a clock in its parts."""

    def __init__(self, built: Built, parts: Parts, ours: bool, checkpointing: bool) -> None:
        self.built, self.model, self.parts = built, built.model, parts
        built.wrapped.train()
        if checkpointing:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable()
        learns = [parameter for parameter in built.wrapped.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learns, lr=2e-5, weight_decay=0.0)
        projector = self.model.get_model().mm_projector
        parts.watch(projector, "forward", "projections")
        if ours:
            self._watch_ours(projector)
        else:
            parts.watch(self.model.get_vision_tower(), "forward", "clip")
            projector.register_forward_hook(lambda _, __, found: parts.in_backward(found, "projections"))

    def _watch_ours(self, projector: Any) -> None:
        """Backward, the chosen frames' gradient is ready first, then that of all frames, then of each projection."""
        parts, encode = self.parts, self.model.encode_images

        def encode_images(images: torch.Tensor) -> torch.Tensor:
            if images.ndim == 3:  # LLaVA's splice hands the chosen frames' features through
                parts.in_backward(images, "sampler")
                return encode(images)
            found = encode(images)
            parts.in_backward(found, "fusion")
            return found

        def projected(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            for each in given:
                parts.in_backward(each, "projections")

        self.model.encode_images = encode_images
        parts.watch(self.model, "encode_images", lambda images: "llm" if images.ndim == 3 else "tower")
        parts.watch(self.model.get_vision_tower(), "_encode", lambda kind, *_: kind)
        parts.watch(projector.fusion, "forward", "fusion")
        projector.fusion.register_forward_pre_hook(projected)
        parts.watch(self.model, "_choose", "sampler")
        parts.watch(self.model, "score_frames", "teacher")

    def step(self, batches: Iterator[dict[str, torch.Tensor]]) -> float:
        """Seconds of one."""
        device, start = self.parts.device, now(self.parts.device)
        self.parts.switch("loading")
        batch = {name: tensor.to(device) for name, tensor in next(batches).items()}
        if batch["images"].is_floating_point():  # as Transformers does under DeepSpeed
            batch["images"] = batch["images"].to(self.model.dtype)
        self.parts.switch("llm")
        loss = self.built.wrapped(**batch).loss
        loss.backward()
        self.parts.switch("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.parts.switch("")
        seconds = now(device) - start
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"The loss became {loss.item()}: these times are of no use.")
        return seconds


class Side:
    """What is compared: a model on exams of k frames."""

    def __init__(self, trainee: Trainee, data: tuple[Any, Any], args: argparse.Namespace, online: bool) -> None:
        self.trainee, self.online = trainee, online
        self.dataset, collator = data
        self.skipped, self.counted = args.workers, args.steps
        ahead: dict[str, Any] = {"num_workers": args.workers, "prefetch_factor": 1} if args.workers else {}
        order = [list(range(args.batch))] * 100_000
        self.batches = iter(DataLoader(self.dataset, batch_sampler=order, collate_fn=collator, **ahead))
        self.seconds: list[float] = []
        self.spent: dict[str, float] = {}

    def run(self, measured: bool = True) -> None:
        """Some steps; what they took."""
        self.trainee.model.scores_from_file = not self.online
        for _ in range(self.skipped):
            self.trainee.step(self.batches)
        self.trainee.parts.take()
        seconds = statistics.mean(self.trainee.step(self.batches) for _ in range(self.counted))
        spent = self.trainee.parts.take()
        if measured and spent:
            self.spent = {part: self.spent.get(part, 0.0) + some for part, some in spent.items()}
        if measured and not (spent and self.trainee.parts.device.startswith("cuda")):
            self.seconds.append(seconds)

    def shares(self) -> dict[str, float]:
        """Part -> share of the step, the largest first."""
        total = sum(self.spent.values())
        return {part: some / total for part, some in sorted(self.spent.items(), key=lambda item: -item[1])}
