"""LLaVA's trainer with L_adr in the log and with checkpoints from which a killed run goes on.

What LLaVA's own misses: stage 1 checkpoints hold no optimizer, LoRA checkpoints hold no projector
(``non_lora_trainables.bin`` is written at the very end only), so a resumed run loses what it learnt.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from llava.train.llava_trainer import LLaVATrainer
from torch.utils.data import RandomSampler
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from llava_ultra_ext.train.trainable import (
    NON_LORA_FILE,
    PROJECTOR_FILE,
    gather_state,
    is_full,
    learned_parameters,
    load_projector,
    lora_state,
    save_tensors,
)

logger = logging.getLogger(__name__)

GAP_EVERY = 50
"""Steps between two measurements of the teacher's gap; a tenth of a run that is shorter than ten of them."""


class UltraTrainer(LLaVATrainer):
    """Bound in place of LLaVA's trainer while a run of ours lasts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._statistics: list[dict[str, torch.Tensor]] = []
        self._gap_measured = -1
        self.exam_model.scores_from_file = getattr(self.train_dataset, "has_frame_scores", False)

    @property
    def exam_model(self) -> Any:
        """Our model, inside PEFT's wrapper or not."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _get_train_sampler(self) -> Any:
        """The random order from a generator of its own.

        Transformers replays the order of past epochs when a run is resumed. From the global generator, an epoch draws
        once in the replay but twice in training (the loader takes its base seed there), and the order is another.
        """
        sampler = super()._get_train_sampler()
        if not isinstance(sampler, RandomSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return RandomSampler(self.train_dataset, generator=torch.Generator().manual_seed(seed))

    def _warmup_steps(self) -> float:
        warmup = self.exam_model.settings.adr_warmup
        return warmup if warmup > 1 else warmup * self.state.max_steps

    def _measures_gap(self) -> bool:
        """One micro-batch of every `GAP_EVERY` steps: the swapped findings cost a second pass of the teacher."""
        step, every = self.state.global_step, max(1, min(GAP_EVERY, self.state.max_steps // 10))
        due = (step + 1) % every == 0 and step != self._gap_measured
        if due:
            self._gap_measured = step
        return due

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Under DeepSpeed Transformers casts every float to bf16 or fp16, where near scores of a teacher become one."""
        scores = inputs.pop("frame_scores", None)
        prepared = super()._prepare_inputs(inputs)
        if scores is not None:
            prepared["frame_scores"] = scores.to(self.args.device)
        return prepared

    def create_optimizer(self) -> torch.optim.Optimizer:
        """LLaVA's groups without the empty ones.

        DeepSpeed drops those behind the scheduler's back; the learning rates then belong to other groups than meant
        (torch before 2.10), or the first step fails.
        """
        optimizer = super().create_optimizer()
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        """LLaVA's loss plus ``lambda * L_adr`` (added by the model), and the numbers for the log."""
        exam_model = self.exam_model
        exam_model.warmup = self.state.global_step < self._warmup_steps()
        exam_model.measure_gap = self._measures_gap()
        result = super().compute_loss(model, inputs, return_outputs)
        statistics = getattr(exam_model, "exam_statistics", None)
        if statistics:
            self._statistics.append(statistics)
            exam_model.exam_statistics = None
        return result

    def log(self, logs: dict[str, float]) -> None:
        """Adds LM loss, L_adr, alpha, agreement, entropy, picks by position and the teacher's gap to LLaVA's log."""
        if "loss" in logs and self._statistics:
            logs.update(self._averages())
            alpha = self.exam_model.get_model().mm_projector.alpha()
            logs["alpha"] = round(float(alpha.flatten(1).mean(1)[0] if alpha.ndim > 1 else alpha[0]), 6)
            self._statistics = []
        super().log(logs)

    def _averages(self) -> dict[str, float]:
        """Means over steps and ranks since the last log; one transfer from the device, NaN left out."""
        names = sorted({name for step in self._statistics for name in step})
        device = next(iter(self._statistics[0].values())).device
        missing = torch.full((), math.nan, device=device)
        table = torch.stack([torch.stack([step.get(n, missing).float() for n in names]) for step in self._statistics])
        known = torch.isfinite(table)
        sums = torch.stack([table.masked_fill(~known, 0).sum(0), known.sum(0).float()])
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            sums = self._over_ranks(sums, names)
        return {name: round(s / c, 6) for name, s, c in zip(names, *sums.tolist(), strict=True) if c > 0}

    def _over_ranks(self, sums: torch.Tensor, names: list[str]) -> torch.Tensor:
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, (names, sums.cpu()))
        total = torch.zeros_like(sums.cpu())
        for other_names, other in gathered:
            for column, name in enumerate(other_names):
                if name in names:
                    total[:, names.index(name)] += other[:, column]
        return total

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What LLaVA saves at the end, in every checkpoint: projector, or LoRA and the rest, or the whole model."""
        folder = Path(output_dir or self.args.output_dir)
        if self.args.tune_mm_mlp_adapter:
            self._write({PROJECTOR_FILE: gather_state(learned_parameters(self.model))}, folder)
        elif self.args.lora_enable:
            lora, rest = lora_state(self.model, self.args.lora_bias)
            self._write({NON_LORA_FILE: rest}, folder)
            if self.args.should_save:
                self.model.save_pretrained(str(folder), state_dict=lora)
        else:
            super().save_model(str(folder), _internal_call)
            return
        if self.args.should_save and self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder))

    def _write(self, files: dict[str, dict[str, torch.Tensor]], folder: Path) -> None:
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(str(folder))
        for name, state in files.items():
            save_tensors(state, folder / name)

    def _save_checkpoint(self, model: Any, trial: Any, metrics: dict[str, float] | None = None) -> None:
        """Transformers' checkpoint (optimizer, scheduler, random state), also in stage 1, under a temporary name first.

        Raises:
            OSError: the disk is full; the unfinished checkpoint is removed, the last whole one is named.
        """
        folder = Path(self.args.output_dir)
        for stale in folder.glob("tmp-checkpoint-*"):
            if self.args.should_save:
                shutil.rmtree(stale, ignore_errors=True)
        self.args.distributed_state.wait_for_everyone()
        try:
            Trainer._save_checkpoint(self, model, trial, metrics=metrics)
        except Exception as error:
            if not is_full(error, folder):
                raise
            shutil.rmtree(folder / f"tmp-checkpoint-{self.state.global_step}", ignore_errors=True)
            raise OSError(
                errno.ENOSPC,
                f"No space left in {folder} for checkpoint-{self.state.global_step}; the unfinished one was removed. "
                f"Last whole checkpoint: {get_last_checkpoint(str(folder))}. Free space, or lower --save_total_limit, "
                "and run the same command again: it goes on from there.",
            ) from error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Leaves the frozen LLM out of DeepSpeed's files: it is in the base folder, and would fill the disk."""
        engine = self.model_wrapped
        if not (self.is_deepspeed_enabled and self._mostly_frozen()):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        whole = engine.save_checkpoint
        engine.save_checkpoint = functools.partial(whole, exclude_frozen_parameters=True)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            engine.save_checkpoint = whole

    def _mostly_frozen(self) -> bool:
        """Stage 1 and LoRA train a small part; a full run trains the language model too."""
        return bool(self.args.tune_mm_mlp_adapter or self.args.lora_enable)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Resuming: a checkpoint without frozen parameters is read over the model that holds them already."""
        _leave_no_shared_memory()
        if self.is_deepspeed_enabled and self._mostly_frozen():
            with _lenient_deepspeed_load():
                return super()._inner_training_loop(*args, **kwargs)
        return super()._inner_training_loop(*args, **kwargs)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Since torch 2.6 a file is read without pickled objects unless they are allowed; NumPy's state is one."""
        allow = getattr(torch.serialization, "safe_globals", None)
        with allow(_numpy_state_types()) if allow else contextlib.nullcontext():
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Without DeepSpeed: projector and, for LoRA, the adapter; Transformers knows only the latter."""
        folder = Path(resume_from_checkpoint)
        if not self._mostly_frozen():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        if self.args.lora_enable:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        name = NON_LORA_FILE if self.args.lora_enable else PROJECTOR_FILE
        state = torch.load(folder / name, map_location="cpu", weights_only=True)
        load_projector(self.exam_model.get_model().mm_projector, state, str(folder / name), strict=True)


def _leave_no_shared_memory() -> None:
    """Take the names off the buffers through which DeepSpeed's ranks add up on a CPU; the mappings stay.

    DeepSpeed (``csrc/cpu/comm/shm.cpp``) never does, so that each run, killed or not, would hold 67 MB of memory for
    each rank until the machine is started anew.
    """
    if not torch.distributed.is_initialized():
        return
    torch.distributed.barrier()  # until then another rank may be looking for the name
    run = "_".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    rank = torch.distributed.get_rank()
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{run}_{rank}").unlink(missing_ok=True)


@contextlib.contextmanager
def _lenient_deepspeed_load() -> Iterator[None]:
    """Transformers calls ``engine.load_checkpoint`` without a way to say that frozen parameters are not in the file."""
    from deepspeed import DeepSpeedEngine

    strict = DeepSpeedEngine.load_checkpoint
    DeepSpeedEngine.load_checkpoint = functools.partialmethod(strict, load_module_strict=False)
    try:
        yield
    finally:
        DeepSpeedEngine.load_checkpoint = strict


def _numpy_state_types() -> list[Any]:
    """What ``numpy.random.get_state()`` pickles to: an array of uint32."""
    rebuild = np.zeros(1, dtype="uint32").__reduce__()[0]
    return [rebuild, np.ndarray, np.dtype, type(np.dtype("uint32"))]
