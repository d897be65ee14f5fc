"""A training run of ours inside LLaVA's unedited ``train()``.

The seam on ``llava.train.train.train`` lands here. For another vision tower it hands over to LLaVA at once. For ours it
checks flags, data, encoders and base model first (no model is loaded before all of that is right), then binds our
classes to the names that LLaVA's ``train()`` looks up, for as long as the run lasts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, Optional, Sequence

import torch
from transformers import HfArgumentParser

from llava_ultra_ext.arguments import UltraDataArguments, UltraModelArguments, UltraSettings
from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.exam_dataset import ExamCollator, ExamDataset
from llava_ultra_ext.data.frame_scores import data_fingerprint, read_frame_scores
from llava_ultra_ext.data.manifest import BadSamples, load_manifest
from llava_ultra_ext.model.builders import build_tower
from llava_ultra_ext.model.dispatch import TrainingDispatch, backbone_of, config_dict
from llava_ultra_ext.train.trainable import state_fingerprint
from llava_ultra_ext.vision.encoders import parse_tower_name

logger = logging.getLogger(__name__)

BAD_SAMPLES_FILE = "bad_samples.jsonl"


def run_training(host: ModuleType, original: Callable[..., Any], attn_implementation: Optional[str]) -> Any:
    """LLaVA's ``train(attn_implementation)``, with our classes when ``--vision_tower`` is ours.

    Args:
        host: ``llava.train.train``.
        original: LLaVA's own function.
        attn_implementation: what ``train_mem.py`` asks for; falls back where flash-attention cannot run.

    Raises:
        ValueError: a flag, the data, an encoder or the base model is unusable; nothing was loaded or written.
    """
    if parse_tower_name(_flag_value("--vision_tower")) is None:
        return original(attn_implementation=attn_implementation)
    names: Dict[str, Any] = extended_arguments(host)
    if not {"-h", "--help"} & set(sys.argv):
        prepared = Prepared.from_command_line(names)
        names.update(
            LlavaLlamaForCausalLM=TrainingDispatch(),
            LLaVATrainer=_trainer_class(),
            make_supervised_data_module=prepared.data_module(host),
            safe_save_model_for_hf_trainer=lambda trainer, output_dir: trainer.save_model(output_dir),
        )
    with _bound(host, names):
        return original(attn_implementation=usable_attention(attn_implementation))


def extended_arguments(host: Any) -> Dict[str, Any]:
    """LLaVA's ModelArguments and DataArguments with our flags mixed in, under LLaVA's names."""

    @dataclass
    class ModelArguments(UltraModelArguments, host.ModelArguments):  # type: ignore[misc, name-defined]
        @property
        def ultra_settings(self) -> UltraSettings:
            return UltraSettings.from_arguments(self, encoder_sources(self))

    @dataclass
    class DataArguments(UltraDataArguments, host.DataArguments):  # type: ignore[misc, name-defined]
        pass

    return {"ModelArguments": ModelArguments, "DataArguments": DataArguments}


def encoder_sources(model_args: Any) -> Dict[str, str]:
    """Encoder kind -> source, from ``--vision_tower`` with ``--clip_tower`` and ``--sam_tower`` on top; folders absolute."""
    sources = parse_tower_name(model_args.vision_tower) or {}
    for kind, given in (("clip", model_args.clip_tower), ("sam", model_args.sam_tower)):
        if given is None:
            continue
        if kind not in sources:
            raise ValueError(
                f"--{kind}_tower {given}: --vision_tower {model_args.vision_tower} has no {kind} encoder. "
                f"Leave the flag out, or add {kind}={given} to the fused:… list."
            )
        sources[kind] = given
    return {kind: os.path.abspath(path) if os.path.exists(path) else path for kind, path in sources.items()}


@dataclass(frozen=True)
class Prepared:
    """What the checks before the run have read already."""

    model_args: Any
    data_args: Any
    exams: Sequence[Exam]
    bad: BadSamples
    frame_scores: Dict[str, Any]
    frame_tokens: int

    @classmethod
    def from_command_line(cls, names: Dict[str, Any]) -> "Prepared":
        """Parse our part of the command line and check everything that can be wrong before a model loads."""
        parser = HfArgumentParser((names["ModelArguments"], names["DataArguments"]))
        parsed = parser.parse_args_into_dataclasses(return_remaining_strings=True)
        model_args, data_args = parsed[0], parsed[1]
        _check_flags(model_args, data_args)
        settings = model_args.ultra_settings
        tokens = build_tower(settings, model_args.vision_tower).describe().tokens
        scores = _frame_scores(model_args, data_args)
        exams, bad = load_manifest(
            data_args.data_path,
            image_folder=data_args.image_folder,
            strategy=settings.adr_strategy,
            frame_scores=scores or None,
            max_frames=data_args.max_frames,
            on_bad_sample=data_args.on_bad_sample,
        )
        if data_args.frame_scores is not None:
            expected = data_fingerprint(exams)
            read_frame_scores(data_args.frame_scores, expected_data=expected)
        return cls(model_args, data_args, exams, bad, scores, tokens)

    def data_module(self, host: Any) -> Callable[..., Dict[str, Any]]:
        """LLaVA's ``make_supervised_data_module(tokenizer, data_args)`` for exams."""

        def make_supervised_data_module(tokenizer: Any, data_args: Any) -> Dict[str, Any]:
            settings = self.model_args.ultra_settings
            dataset = ExamDataset(
                self.exams,
                tokenizer=tokenizer,
                template=host.conversation_lib.default_conversation,
                image_folder=data_args.image_folder or "",
                image_processor=data_args.image_processor,
                frame_tokens=self.frame_tokens,
                strategy=settings.adr_strategy,
                top_k=settings.adr_top_k,
                max_frames=data_args.max_frames,
                seed=settings.adr_seed,
                frame_scores=self.frame_scores,
                findings_max_length=data_args.findings_max_length,
                on_bad_sample=data_args.on_bad_sample,
            )
            dataset.bad_samples = self.bad
            dataset.has_frame_scores = bool(self.frame_scores)
            collator = ExamCollator(tokenizer.pad_token_id)
            return {"train_dataset": dataset, "eval_dataset": None, "data_collator": collator}

        return make_supervised_data_module


def _frame_scores(model_args: Any, data_args: Any) -> Dict[str, Any]:
    if data_args.frame_scores is None:
        return {}
    expected = None
    if model_args.pretrain_mm_mlp_adapter is not None:
        expected = state_fingerprint(torch.load(model_args.pretrain_mm_mlp_adapter, map_location="cpu"))
    return dict(read_frame_scores(data_args.frame_scores, expected_model=expected).scores)


def _check_flags(model_args: Any, data_args: Any) -> None:
    base = model_args.model_name_or_path
    try:
        values = config_dict(base)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--model_name_or_path {base}: no config.json could be read there ({error}). "
            "Give a folder with a language model, or a hub name that is reachable or cached."
        ) from None
    backbone_of(values, base)
    if "mpt" in base:
        raise ValueError(
            f"--model_name_or_path {base}: the path contains 'mpt', which LLaVA's train.py takes for an MPT model "
            "(it tests substrings). Rename or link the folder."
        )
    if data_args.data_path is None:
        raise ValueError("--data_path is missing. Give the JSON list of training samples.")
    for name, path in (("pretrain_mm_mlp_adapter", model_args.pretrain_mm_mlp_adapter), ("frame_scores", data_args.frame_scores)):
        if path is not None and not Path(path).is_file():
            raise ValueError(f"--{name} {path}: no such file. Stage 1 writes mm_projector.bin, score-frames the scores.")
    if data_args.image_aspect_ratio not in ("square", "pad"):
        raise ValueError(
            f"--image_aspect_ratio {data_args.image_aspect_ratio}: tiles are not supported by this tower. Use pad "
            "(square is taken as pad too: the field of view is never cropped)."
        )
    if model_args.mm_patch_merge_type != "flat":
        raise ValueError(f"--mm_patch_merge_type {model_args.mm_patch_merge_type}: only flat fits whole frames.")


def usable_attention(wanted: Optional[str]) -> Optional[str]:
    """The attention kernel that this machine can run: flash-attention needs CUDA and its package."""
    if wanted != "flash_attention_2":
        return wanted
    if torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None:
        return wanted
    from transformers import utils

    sdpa = getattr(utils, "is_torch_sdpa_available", lambda: False)()
    kernel = "sdpa" if sdpa else "eager"
    logger.warning("flash-attention is not usable here (it needs CUDA and the package flash-attn): attention runs with %s.", kernel)
    return kernel


def _trainer_class() -> Any:
    from llava_ultra_ext.train.trainer import UltraTrainer

    return UltraTrainer


def _flag_value(flag: str) -> Optional[str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, dest="value", default=None)
    return parser.parse_known_args()[0].value


@contextlib.contextmanager
def _bound(host: Any, names: Dict[str, Any]) -> Iterator[None]:
    """Names of ``llava.train.train`` replaced for one run, and put back."""
    before = {name: getattr(host, name) for name in names}
    for name, value in names.items():
        setattr(host, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(host, name, value)
