"""A training run of ours inside LLaVA's unedited ``train()``.

The seam on ``llava.train.train.train`` lands here. For another vision tower it hands over to LLaVA at once. For ours it
checks flags, data, encoders and base model first (no model is loaded before all of that is right), then binds our
classes to the names that LLaVA's ``train()`` looks up, for as long as the run lasts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoTokenizer, HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from llava_ultra_ext.arguments import UltraDataArguments, UltraModelArguments, UltraSettings
from llava_ultra_ext.data.cached_frames import check_all_cached, open_cache
from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.exam_dataset import ExamCollator, ExamDataset
from llava_ultra_ext.data.frame_scores import data_fingerprint, read_frame_scores
from llava_ultra_ext.data.manifest import BadSamples, load_manifest
from llava_ultra_ext.model.builders import build_projector, build_tower
from llava_ultra_ext.model.dispatch import TrainingDispatch, config_dict
from llava_ultra_ext.train.checks import check_flags, check_processes, flag_value, usable_attention
from llava_ultra_ext.train.trainable import NAME, load_projector, state_fingerprint
from llava_ultra_ext.vision.encoders import parse_tower_name
from llava_ultra_ext.vision.feature_cache import FeatureCache
from llava_ultra_ext.vision.tower import FusedVisionTower

logger = logging.getLogger(__name__)

BAD_SAMPLES_FILE = "bad_samples.jsonl"


def run_training(host: ModuleType, original: Callable[..., Any], attn_implementation: str | None) -> Any:
    """LLaVA's ``train(attn_implementation)``, with our classes when ``--vision_tower`` is ours.

    Args:
        host: ``llava.train.train``.
        original: LLaVA's own function.
        attn_implementation: what ``train_mem.py`` asks for; falls back where flash-attention cannot run.

    Raises:
        ValueError: a flag, the data, an encoder or the base model is unusable; nothing was loaded or written.
    """
    if parse_tower_name(flag_value("--vision_tower")) is None:
        return original(attn_implementation=attn_implementation)
    names: dict[str, Any] = extended_arguments(host)
    if {"-h", "--help"} & set(sys.argv):
        with _bound(host, names):
            return original(attn_implementation=attn_implementation)
    prepared = Prepared.from_command_line(host, names)
    names.update(
        LlavaLlamaForCausalLM=TrainingDispatch(),
        LLaVATrainer=_trainer_class(),
        make_supervised_data_module=prepared.data_module(host),
        safe_save_model_for_hf_trainer=lambda trainer, output_dir: trainer.save_model(output_dir),
    )
    _say_where_from()
    # LLaVA builds the model before its trainer sets --seed: two equal commands would start from other projectors.
    set_seed(int(flag_value("--seed") or host.TrainingArguments.seed))
    with _bound(host, names):
        result = original(attn_implementation=usable_attention(attn_implementation))
    prepared.report()
    return result


def _say_where_from() -> None:
    """LLaVA goes on from an old checkpoint in the output folder without a word, with the old run's schedule."""
    folder = flag_value("--output_dir")
    last = get_last_checkpoint(folder) if folder is not None and Path(folder).is_dir() else None
    if last is not None:
        logger.warning(
            "The run goes on from %s, with its optimizer and learning-rate schedule. For other settings give another "
            "--output_dir, or remove that folder.",
            last,
        )


def extended_arguments(host: Any) -> dict[str, Any]:
    """LLaVA's ModelArguments and DataArguments with our flags mixed in, under LLaVA's names."""

    @dataclass
    class ModelArguments(UltraModelArguments, host.ModelArguments):
        @property
        def ultra_settings(self) -> UltraSettings:
            return UltraSettings.from_arguments(self, encoder_sources(self))

    @dataclass
    class DataArguments(UltraDataArguments, host.DataArguments):
        pass

    return {"ModelArguments": ModelArguments, "DataArguments": DataArguments}


def encoder_sources(model_args: Any) -> dict[str, str]:
    """Encoder kind -> source: ``--vision_tower``, with ``--clip_tower`` and ``--sam_tower`` on top."""
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


@dataclass
class Prepared:
    """What the checks before the run have read already."""

    model_args: Any
    data_args: Any
    exams: Sequence[Exam]
    bad: BadSamples
    frame_scores: dict[str, Any]
    tower: FusedVisionTower
    feature_cache: FeatureCache | None = None

    @classmethod
    def from_command_line(cls, host: Any, names: dict[str, Any]) -> Prepared:
        """Parse our part of the command line and check everything that can be wrong before a model loads."""
        parser = HfArgumentParser((names["ModelArguments"], names["DataArguments"]))
        parsed = parser.parse_args_into_dataclasses(return_remaining_strings=True)
        model_args, data_args = parsed[0], parsed[1]
        check_flags(model_args, data_args)
        check_processes()
        settings = model_args.ultra_settings
        tower = build_tower(settings, model_args.vision_tower)
        cache = open_cache(model_args.feature_cache, tower)
        scores = _frame_scores(model_args, data_args)
        _check_adapter(model_args, tower)
        exams, bad = load_manifest(
            data_args.data_path,
            image_folder=data_args.image_folder,
            strategy=settings.adr_strategy,
            frame_scores=scores or None,
            max_frames=data_args.max_frames,
            on_bad_sample=data_args.on_bad_sample,
        )
        if data_args.frame_scores is not None:
            read_frame_scores(data_args.frame_scores, expected_data=data_fingerprint(exams))
        if cache is not None:
            check_all_cached(cache, [name for exam in exams for name in exam.images], data_args.image_folder or "")
        prepared = cls(model_args, data_args, exams, bad, scores, tower, cache)
        prepared._leave_out_unfit(host)
        return prepared

    def _leave_out_unfit(self, host: Any) -> None:
        """Samples too long for the model, or of a form that the template cannot hold, need the tokenizer to be seen."""
        tokenizer = AutoTokenizer.from_pretrained(
            self.model_args.model_name_or_path,
            use_fast=False,
            model_max_length=int(flag_value("--model_max_length") or host.TrainingArguments.model_max_length),
        )
        templates = host.conversation_lib.conv_templates
        # LLaVA's train() falls back to vicuna_v1 for an unknown --version without a word.
        if self.model_args.version not in (*templates, "v0.5"):
            raise ValueError(f"--version {self.model_args.version}: no such template. Known: {', '.join(templates)}.")
        template = templates.get(self.model_args.version, templates["v0"])
        unfit = self._dataset(tokenizer, template, self.tower.image_processor).unfit()
        if not unfit:
            return
        self.bad = BadSamples((*self.bad.samples, *unfit))
        dropped = {sample.sample_id for sample in unfit}
        self.exams = [exam for exam in self.exams if exam.id not in dropped]
        if self.data_args.on_bad_sample == "error" or not self.exams:
            raise ValueError(
                f"--data_path {self.data_args.data_path}: {self.bad.summary()}\n"
                "Repair them, or leave them out with --on_bad_sample skip."
            )

    def _dataset(self, tokenizer: Any, template: Any, image_processor: Any) -> ExamDataset:
        settings = self.model_args.ultra_settings
        return ExamDataset(
            self.exams,
            tokenizer=tokenizer,
            template=template,
            image_folder=self.data_args.image_folder or "",
            image_processor=image_processor,
            frame_tokens=self.tower.num_patches,
            strategy=settings.adr_strategy,
            top_k=settings.adr_top_k,
            max_frames=self.data_args.max_frames,
            seed=settings.adr_seed,
            frame_scores=self.frame_scores,
            findings_max_length=self.data_args.findings_max_length,
            on_bad_sample=self.data_args.on_bad_sample,
            feature_cache=self.feature_cache,
        )

    def data_module(self, host: Any) -> Callable[..., dict[str, Any]]:
        """LLaVA's ``make_supervised_data_module(tokenizer, data_args)`` for exams."""

        def make_supervised_data_module(tokenizer: Any, data_args: Any) -> dict[str, Any]:
            template = host.conversation_lib.default_conversation
            dataset = self._dataset(tokenizer, template, data_args.image_processor)
            # Any id will do, masks go by length; LLaVA pads with <unk>, which some tokenizers lack.
            collator = ExamCollator(tokenizer.pad_token_id or 0)
            return {"train_dataset": dataset, "eval_dataset": None, "data_collator": collator}

        return make_supervised_data_module

    def report(self) -> None:
        """At the end of a run: which samples were left out, in the log and beside the model."""
        folder = flag_value("--output_dir")
        if not self.bad or folder is None or int(os.environ.get("RANK", "0")) != 0:
            return
        path = Path(folder) / BAD_SAMPLES_FILE
        self.bad.write(path)
        logger.warning("trained without %s\nAll of them: %s", self.bad.summary(), path)


def _check_adapter(model_args: Any, tower: FusedVisionTower) -> None:
    """Stage 1's projector must have the shapes of this run's; building one to compare costs a second."""
    if model_args.pretrain_mm_mlp_adapter is None:
        return
    described = tower.describe()
    settings = model_args.ultra_settings.replace(widths=described.widths, tokens=described.tokens, sam_trainable="none")
    hidden_size = config_dict(model_args.model_name_or_path)["hidden_size"]
    projector = build_projector(settings, hidden_size, model_args.mm_projector_type, tower)
    saved = _read_adapter(model_args.pretrain_mm_mlp_adapter)
    kept = {name: tensor for name, tensor in saved.items() if f"{NAME}.neck." not in name}
    load_projector(
        projector, kept, source=f"--pretrain_mm_mlp_adapter {model_args.pretrain_mm_mlp_adapter}", strict=True
    )


def _read_adapter(path: str) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        state = error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(
            f"--pretrain_mm_mlp_adapter {path}: is no file of tensors. Give the mm_projector.bin that stage 1 wrote."
        )
    return state


def _frame_scores(model_args: Any, data_args: Any) -> dict[str, Any]:
    if data_args.frame_scores is None:
        return {}
    expected = None
    if model_args.pretrain_mm_mlp_adapter is not None:
        expected = state_fingerprint(_read_adapter(model_args.pretrain_mm_mlp_adapter))
    read = read_frame_scores(data_args.frame_scores, expected_model=expected)
    teacher = read.header.strategy.split("/")[0]
    if teacher != model_args.adr_strategy:
        raise ValueError(
            f"--frame_scores {data_args.frame_scores}: holds scores of the {teacher} teacher, but --adr_strategy is "
            f"{model_args.adr_strategy}. Use --adr_strategy {teacher}, or compute the scores of the other teacher."
        )
    return dict(read.scores)


def _trainer_class() -> Any:
    from llava_ultra_ext.train.trainer import UltraTrainer

    return UltraTrainer


@contextlib.contextmanager
def _bound(host: Any, names: dict[str, Any]) -> Iterator[None]:
    """Names of ``llava.train.train`` replaced for one run, and put back."""
    before = {name: getattr(host, name) for name in names}
    for name, value in names.items():
        setattr(host, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(host, name, value)
