"""A training run of ours inside LLaVA's train(): what it finds bound, and what it trains on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exam_case import EXAM, Case, Flags, scores_file

from llava_ultra_ext.train.program import encoder_sources, run_training, usable_attention
from llava_ultra_ext.train.trainable import state_fingerprint
from llava_ultra_ext.vision.projector import UltraProjector
from llava_ultra_ext.vision.sampler import FrameScorer
from llava_ultra_ext.vision.tower import FusedVisionTower


class TestStart:
    @pytest.fixture
    def started(self, host: Any, command_line: Callable[[Flags], None]) -> Callable[..., dict[str, Any]]:
        """Starts a run and returns what LLaVA's train() would find under its names, with the training set."""

        def start(given: Flags, inside: Callable[[], Any] = lambda: None) -> dict[str, Any]:
            from transformers import AutoTokenizer

            found: dict[str, Any] = {}
            command_line(given)

            def train(attn_implementation: str | None = None) -> str:
                host.conversation_lib.default_conversation = host.conversation_lib.conv_templates["ultra_v1_zh"]
                tokenizer = AutoTokenizer.from_pretrained(given["model_name_or_path"], use_fast=False)
                tokenizer.pad_token = tokenizer.unk_token
                data_args = host.DataArguments(
                    data_path=str(given["data_path"]), image_folder=str(given["image_folder"])
                )
                tower = FusedVisionTower({"clip": str(given["clip_tower"]), "sam": str(given["sam_tower"])}, name="")
                data_args.image_processor = tower.image_processor
                found.update(host.make_supervised_data_module(tokenizer=tokenizer, data_args=data_args))
                found.update(names={name: getattr(host, name) for name in NAMES}, attention=attn_implementation)
                inside()
                return "trained"

            assert run_training(host, train, "flash_attention_2") == "trained"
            return found

        return start

    def test_our_classes_are_bound_while_the_run_lasts(
        self, host: Any, case: Case, started: Callable[..., dict[str, Any]]
    ) -> None:
        before = {name: getattr(host, name) for name in NAMES}
        found = started(case.flags)
        assert [name for name in NAMES if found["names"][name] is before[name]] == []
        assert issubclass(found["names"]["LLaVATrainer"], before["LLaVATrainer"])
        assert issubclass(found["names"]["ModelArguments"], before["ModelArguments"])
        assert {name: getattr(host, name) for name in NAMES} == before

        def fail() -> None:
            raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError, match="in the middle"):
            started(case.flags, fail)
        assert {name: getattr(host, name) for name in NAMES} == before

    def test_the_training_set_is_the_manifests(self, case: Case, started: Callable[..., dict[str, Any]]) -> None:
        dataset = started({**case.flags, "max_frames": 3, "adr_top_k": 2})["train_dataset"]
        assert [exam.id for exam in dataset.exams] == [record["id"] for record in case.records]
        assert [len(exam.images) for exam in dataset.exams] == [1, 2, 3, 3, 3, 1, 0]
        assert not dataset.has_frame_scores

    def test_frame_scores_reach_the_samples(self, case: Case, started: Callable[..., dict[str, Any]]) -> None:
        del case.records[EXAM]["findings"]  # a teacher that does not run needs none
        scores_file(case)
        case.save()
        dataset = started(case.flags)["train_dataset"]
        assert dataset.has_frame_scores
        assert dataset[EXAM]["frame_scores"].tolist() == [0.0, -1.0, -2.0, -3.0]

    def test_scores_of_the_right_model_are_taken(self, case: Case, started: Callable[..., dict[str, Any]]) -> None:
        projector = UltraProjector({"clip": 32, "sam": 64}, 64, 16, sampler=FrameScorer(64, 16))
        state = {f"model.mm_projector.{name}": tensor for name, tensor in projector.state_dict().items()}
        torch.save(state, case.folder / "mm_projector.bin")
        case.flags["pretrain_mm_mlp_adapter"] = case.folder / "mm_projector.bin"
        scores_file(case, model=state_fingerprint(state))
        assert started(case.flags)["train_dataset"].has_frame_scores

    def test_skip_leaves_bad_samples_out_counts_and_lists_them(
        self, case: Case, started: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
    ) -> None:
        (case.folder / case.records[EXAM]["image"][1]).unlink()
        case.records[0]["conversations"] = []
        case.save()
        with caplog.at_level(logging.WARNING, "llava_ultra_ext"):
            dataset = started({**case.flags, "on_bad_sample": "skip"})["train_dataset"]
        bad = [case.records[0]["id"], case.records[EXAM]["id"]]
        assert [exam.id for exam in dataset.exams] == [r["id"] for r in case.records if r["id"] not in bad]
        path = Path(case.flags["output_dir"]) / "bad_samples.jsonl"
        listed = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [(row["id"], row["reason"]) for row in listed] == [
            (bad[0], "no_conversation"),
            (bad[1], "missing_picture"),
        ]
        end = caplog.records[-1].getMessage()
        assert end.startswith("trained without 2 bad samples") and str(path) in end and all(i in end for i in bad)

    def test_skip_with_nothing_left_is_an_error(self, case: Case, refused: Callable[[Flags], str]) -> None:
        case.records = [{**case.records[EXAM], "image": []}]
        case.save()
        assert "no sample is left. 1 bad samples (no_images 1)" in refused({**case.flags, "on_bad_sample": "skip"})

    @pytest.mark.parametrize("tower", ["openai/clip-vit-large-patch14", "sam_clip_fused_v2", None])
    def test_another_tower_is_llavas_own_business(
        self, host: Any, case: Case, command_line: Callable[[Flags], None], tower: str | None
    ) -> None:
        command_line({**case.flags, "vision_tower": tower, "data_path": "nowhere", "max_frames": 0})
        names = {name: getattr(host, name) for name in NAMES}

        def train(attn_implementation: str | None = None) -> Any:
            return attn_implementation, {name: getattr(host, name) for name in NAMES}

        assert run_training(host, train, "flash_attention_2") == ("flash_attention_2", names)

    def test_help_shows_our_flags(
        self, host: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("sys.argv", ["train_mem.py", "--vision_tower", "sam_clip_fused", "--help"])
        with pytest.raises(SystemExit) as end:
            host.train()
        told = capsys.readouterr().out
        assert end.value.code == 0 and "--adr_strategy" in told and "--max_frames" in told and "--lora_enable" in told


NAMES = (
    "ModelArguments",
    "DataArguments",
    "LlavaLlamaForCausalLM",
    "LLaVATrainer",
    "make_supervised_data_module",
    "safe_save_model_for_hf_trainer",
)


def test_encoder_folders_become_absolute_and_hub_names_stay(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a model can be loaded from another folder than the one it was trained in."""
    from llava_ultra_ext.train.program import extended_arguments

    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip").mkdir()
    args = extended_arguments(host)["ModelArguments"](
        vision_tower="sam_clip_fused", clip_tower="clip", sam_tower="facebook/sam-vit-large"
    )
    assert encoder_sources(args) == {"clip": str(tmp_path / "clip"), "sam": "facebook/sam-vit-large"}
    assert list(encoder_sources(args)) == ["clip", "sam"]


def test_flash_attention_falls_back_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert usable_attention("flash_attention_2") in ("sdpa", "eager")
        assert len(caplog.records) == 1 and "flash-attention is not usable here" in caplog.text
        assert usable_attention("sdpa") == "sdpa" and usable_attention(None) is None
    assert len(caplog.records) == 1
