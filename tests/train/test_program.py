"""A training run of ours starts only when everything is right: each bad input says so before any model is loaded."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.frame_scores import FrameScoreWriter, Header, data_fingerprint, merge_parts
from llava_ultra_ext.train.program import encoder_sources, run_training, usable_attention
from llava_ultra_ext.train.trainable import state_fingerprint
from llava_ultra_ext.vision.tower import FusedVisionTower

Flags = dict[str, Any]
EXAM = 3  # a place in the list of records: four frames; their count is checked below


@dataclass
class Case:
    """A training set of its own that a test may spoil."""

    folder: Path
    flags: Flags
    records: list[dict[str, Any]]

    def picture(self, frame: int = 1) -> Path:
        return self.folder / self.records[EXAM]["image"][frame]

    def save(self) -> None:
        (self.folder / "train.json").write_text(json.dumps(self.records, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def case(exam_folder: Path, flags: Flags, tmp_path: Path) -> Case:
    folder = tmp_path / "exams"
    shutil.copytree(exam_folder, folder)
    records = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    assert len(records[EXAM]["image"]) == 4
    return Case(folder, {**flags, "data_path": folder / "train.json", "image_folder": folder}, records)


@pytest.fixture
def refused(
    host: Any, command_line: Callable[[Flags], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Flags], str]:
    """Starts a run that must end before LLaVA's train() begins and before any weights are read; its message."""

    def start(given: Flags) -> str:
        command_line(given)
        never = lambda what: lambda *args, **kwargs: pytest.fail(f"{what} was called")  # noqa: E731
        monkeypatch.setattr(PreTrainedModel, "from_pretrained", never("from_pretrained"))
        monkeypatch.setattr(FusedVisionTower, "load_model", never("load_model"))
        with pytest.raises(ValueError) as error:
            run_training(host, never("LLaVA's train()"), None)
        assert not Path(given["output_dir"]).exists()
        return str(error.value)

    return start


def named(value: Any) -> str:
    return getattr(value, "__name__", "")


def missing(case: Case) -> None:
    case.picture().unlink()


def truncated(case: Case) -> None:
    case.picture().write_bytes(case.picture().read_bytes()[:-300])


def empty_file(case: Case) -> None:
    case.picture().write_bytes(b"")


def dicom(case: Case) -> None:
    case.picture().write_bytes(bytes(128) + b"DICM" + bytes(300))


def text_file(case: Case) -> None:
    case.picture().write_text("not a picture")


def fewer_tokens(case: Case) -> None:
    turn = case.records[EXAM]["conversations"][0]
    turn["value"] = turn["value"].replace("<image>\n", "", 1)


def more_tokens(case: Case) -> None:
    case.records[EXAM]["conversations"][0]["value"] += "<image>"


def no_images(case: Case) -> None:
    case.records[EXAM]["image"] = []


def no_answer(case: Case) -> None:
    del case.records[EXAM]["conversations"][1:]


def no_findings(case: Case) -> None:
    del case.records[EXAM]["findings"]


def attention_without_findings(case: Case) -> None:
    no_findings(case)
    case.flags["adr_strategy"] = "attention"


def no_valid_frames(case: Case) -> None:
    del case.records[EXAM]["valid_frames"]
    case.flags["adr_strategy"] = "oracle"


def outside(case: Case) -> None:
    case.records[EXAM]["image"][1] = "../secret.png"


def too_long(case: Case) -> None:
    case.flags["model_max_length"] = 48


def wrong_template(case: Case) -> None:
    case.flags["version"] = "ultra_plain_zh"


BAD_SAMPLES = [
    (missing, "missing_picture", "picture 2 of 4 does not exist below --image_folder. Check the folder and the name."),
    (truncated, "truncated_picture", "picture 2 of 4 is damaged or cut off. Export it again."),
    (empty_file, "empty_picture", "picture 2 of 4 is an empty file (0 bytes). Export it again."),
    (dicom, "dicom_picture", "picture 2 of 4 is a DICOM file. Convert it to PNG and remove identifying data first."),
    (text_file, "not_a_picture", "picture 2 of 4 is not a picture that Pillow can read. Use PNG or JPEG."),
    (fewer_tokens, "image_tokens", "4 pictures and 3 <image> tokens; the questions must hold exactly one <image>"),
    (more_tokens, "image_tokens", "4 pictures and 5 <image> tokens; the questions must hold exactly one <image>"),
    (no_images, "no_images", "`image` is an empty list; give at least one file name, or leave the key out"),
    (no_answer, "no_answer", "no gpt turn answers a human turn: there is nothing to learn. Add the answer."),
    (no_findings, "no_findings", "--adr_strategy likelihood needs `findings` to compare 4 frames with. Add them"),
    (attention_without_findings, "no_findings", "--adr_strategy attention needs `findings` to compare 4 frames with."),
    (no_valid_frames, "no_valid_frames", "--adr_strategy oracle needs `valid_frames`"),
    (outside, "outside_folder", "picture 2 of 4 lies outside --image_folder. Give a path relative to that folder."),
]
UNFIT = [
    (too_long, "too_long_", "tokens, --model_max_length allows 48: raise it, or shorten the conversation"),
    (wrong_template, "plain_needs_caption", "a plain template takes one question with its pictures and one caption."),
]


@pytest.mark.parametrize(("spoil", "reason", "message"), BAD_SAMPLES + UNFIT, ids=named)
def test_a_bad_sample_is_named_counted_and_explained(
    case: Case, refused: Callable[[Flags], str], spoil: Callable[[Case], None], reason: str, message: str
) -> None:
    spoil(case)
    case.save()
    told = refused(case.flags)
    assert f"--data_path {case.folder / 'train.json'}: " in told and reason in told
    assert f"sample {case.records[EXAM]['id']}: " in told and message in told
    assert "leave them out with --on_bad_sample skip" in told
    assert case.records[EXAM]["conversations"][0]["value"].replace("<image>", "").strip() not in told, "patient text"


def bad_manifest(text: str) -> Callable[[Case], None]:
    return lambda case: case.folder.joinpath("train.json").write_text(text, encoding="utf-8") and None


def scores_file(case: Case, model: str | None = None, data: str | None = None) -> None:
    """Scores for the exams of the case, of the given model and data (default: those in use)."""
    exams = [Exam.from_record(record) for record in case.records]
    header = Header(model or "any", data or data_fingerprint(exams))
    path = case.folder / "scores.jsonl"
    with FrameScoreWriter(path, header) as writer:
        for exam in exams:
            writer.write(exam.score_key, exam.images, [-float(i) for i in range(len(exam.images))])
    merge_parts(path)
    case.flags["frame_scores"] = path


def other_model(case: Case) -> None:
    adapter = case.folder / "mm_projector.bin"
    torch.save({"model.mm_projector.fusion.logits": torch.zeros(1)}, adapter)
    case.flags["pretrain_mm_mlp_adapter"] = adapter
    scores_file(case, model="0123456789abcdef")


def other_findings(case: Case) -> None:
    scores_file(case)
    case.records[EXAM]["findings"] += "边界不清。"
    case.save()


def no_scores(case: Case) -> None:
    case.flags["frame_scores"] = case.folder / "scores.txt"
    case.flags["frame_scores"].write_text("one\ntwo\n")


def other_sam_size(case: Case) -> None:
    import tiny_models

    case.flags["sam_tower"] = tiny_models.make_sam_pth(case.folder / "sam_vit_l_0b3195.pth")


def mpt_in_path(case: Case) -> None:
    folder = case.folder / "prompt" / "model"
    shutil.copytree(case.flags["model_name_or_path"], folder)
    case.flags["model_name_or_path"] = folder


def other_architecture(case: Case) -> None:
    folder = case.folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    case.flags["model_name_or_path"] = folder


def flag(**changes: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        case.flags.update(changes)

    return change


OTHERS = {
    "not JSON": (bad_manifest("[{"), "is not JSON (line 1, column 3", "A JSON list of samples is needed."),
    "JSON lines": (bad_manifest('{"id": 1}\n{"id": 2}\n'), "holds JSON lines; a JSON list is needed", "dump"),
    "an object": (bad_manifest('{"id": 1}'), "holds a JSON dict; a list of samples is needed"),
    "an empty list": (bad_manifest("[]"), "the list is empty; at least one sample is needed"),
    "no manifest": (flag(data_path="nowhere.json"), "--data_path nowhere.json: cannot be read"),
    "manifest not given": (flag(data_path=None), "--data_path is missing"),
    "folder not given": (flag(image_folder=None), "--image_folder is not given, but samples have pictures"),
    "scores of another model": (other_model, "--frame_scores ", "was computed for another model (0123456789abcdef, in"),
    "scores of other data": (other_findings, "--frame_scores ", "was computed for another data (", "score-frames"),
    "not a scores file": (no_scores, "its first line is not a header of format ultra_frame_scores/1"),
    "no scores file": (flag(frame_scores="nowhere.jsonl"), "--frame_scores nowhere.jsonl: no such file"),
    "no adapter": (flag(pretrain_mm_mlp_adapter="nowhere.bin"), "--pretrain_mm_mlp_adapter nowhere.bin: no such file"),
    "SAM of another size": (
        other_sam_size,
        "the name says ViT-L (width 1024, 24 blocks), the file holds width 32, 4 blocks",
        "Give the right file, or rename it to what it holds.",
    ),
    "SAM folder gone": (flag(sam_tower="nowhere/sam"), "sam encoder 'nowhere/sam'"),
    "unmergeable grids": (flag(sam_image_size=112), "7 x 7 cells, which cannot be merged whole", "64, 128", "pool"),
    "SAM size": (flag(sam_image_size=100), "100", "multiple of 16"),
    "no SAM in the list": (flag(vision_tower="fused:clip=x"), "has no sam encoder. Leave the flag out, or add sam="),
    "max_frames 0": (flag(max_frames=0), "--max_frames 0: an exam keeps at least one frame. Give 1 or more"),
    "mpt in the path": (mpt_in_path, "the path contains 'mpt'", "Rename or link the folder."),
    "another architecture": (other_architecture, "model_type 'qwen2' in its config.json. Allowed: llama,", "mistral"),
    "no base": (flag(model_name_or_path="nowhere/base"), "--model_name_or_path nowhere/base: no config.json could be"),
    "tiles": (flag(image_aspect_ratio="anyres"), "--image_aspect_ratio anyres: tiles are not supported", "Use pad"),
    "spatial merge": (flag(mm_patch_merge_type="spatial"), "--mm_patch_merge_type spatial: only flat"),
    "image tags": (flag(mm_use_im_start_end=True), "--mm_use_im_start_end True: exams are not wrapped into tags"),
    "unknown template": (flag(version="vicuna_v9"), "--version vicuna_v9: no such template. Known: ", "ultra_v1_zh"),
    "unknown strategy": (flag(adr_strategy="best"), "--adr_strategy best: not a known value. Allowed: none, feature"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(OTHERS))
def test_a_bad_file_or_flag_is_named_and_explained(case: Case, refused: Callable[[Flags], str], what: str) -> None:
    spoil, *messages = OTHERS[what]
    case.save()
    spoil(case)
    told = refused(case.flags)
    assert all(message in told for message in messages), told


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
        state = {"model.mm_projector.fusion.logits": torch.ones(1)}
        torch.save(state, case.folder / "mm_projector.bin")
        case.flags["pretrain_mm_mlp_adapter"] = case.folder / "mm_projector.bin"
        scores_file(case, model=state_fingerprint(state))
        assert started(case.flags)["train_dataset"].has_frame_scores

    @pytest.mark.parametrize(("spoil", "reason", "_"), [BAD_SAMPLES[0], BAD_SAMPLES[5]], ids=named)
    def test_skip_leaves_bad_samples_out_counts_and_lists_them(
        self,
        case: Case,
        started: Callable[..., dict[str, Any]],
        caplog: pytest.LogCaptureFixture,
        spoil: Callable[[Case], None],
        reason: str,
        _: str,
    ) -> None:
        spoil(case)
        case.records[0]["conversations"] = []
        case.save()
        with caplog.at_level(logging.WARNING, "llava_ultra_ext"):
            dataset = started({**case.flags, "on_bad_sample": "skip"})["train_dataset"]
        bad = [case.records[0]["id"], case.records[EXAM]["id"]]
        assert [exam.id for exam in dataset.exams] == [r["id"] for r in case.records if r["id"] not in bad]
        path = Path(case.flags["output_dir"]) / "bad_samples.jsonl"
        listed = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [(row["id"], row["reason"]) for row in listed] == [(bad[0], "no_conversation"), (bad[1], reason)]
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


class TestFullDisk:
    """A run whose disk fills while its second checkpoint is written."""

    @pytest.mark.parametrize("fails_at", ["mm_projector.bin", "optimizer.pt"])
    def test_it_says_so_and_the_checkpoint_before_stays_whole(
        self,
        host: Any,
        case: Case,
        command_line: Callable[[Flags], None],
        monkeypatch: pytest.MonkeyPatch,
        fails_at: str,
    ) -> None:
        out = Path(case.flags["output_dir"])
        save, before = torch.save, {}

        def full(tensors: Any, target: Any, *args: Any, **kwargs: Any) -> None:
            name = str(target) if isinstance(target, Path) else str(getattr(target, "name", target))
            if "checkpoint-2" in name and fails_at in name:
                before.update(contents(out / "checkpoint-1"))
                Path(name).write_bytes(b"half a file")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(tensors, target, *args, **kwargs)

        command_line(case.flags)
        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"No space left in .* for checkpoint-2") as error:
            host.train()
        assert error.value.errno == errno.ENOSPC
        message = str(error.value)
        assert f"Last whole checkpoint: {out / 'checkpoint-1'}" in message and "run the same command again" in message
        assert {path.name for path in out.iterdir() if "checkpoint" in path.name} == {"checkpoint-1"}
        assert before and contents(out / "checkpoint-1") == before
        monkeypatch.undo()
        command_line(case.flags)
        host.train()
        assert (out / "checkpoint-2").is_dir() and (out / "mm_projector.bin").is_file()
        assert len(json.loads((out / "trainer_state.json").read_text())["log_history"]) == 3


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many kilobytes; needs Linux and the right to mount."""
    folder = tmp_path / "disk"

    def mount(kilobytes: int) -> Path:
        folder.mkdir()
        try:
            command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot mount a small file system here: {error}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a half-written file may still be open


@pytest.mark.parametrize("stage", [1, 2])
def test_a_disk_that_is_really_full(
    host: Any, case: Case, command_line: Callable[[Flags], None], small_disk: Callable[[int], Path], stage: int
) -> None:
    lora = {"tune_mm_mlp_adapter": None, "lora_enable": True, "lora_r": 4, "version": "ultra_v1_zh"}
    given = {**case.flags, **(lora if stage == 2 else {})}
    command_line({**given, "max_steps": 1})
    host.train()
    first = Path(given["output_dir"]) / "checkpoint-1"
    size = sum(path.stat().st_size // 1024 + 4 for path in first.iterdir())
    out = small_disk(size + size // 2) / "out"
    command_line({**given, "output_dir": out})
    with pytest.raises(OSError, match=r"No space left in .* for checkpoint-2; the unfinished one was removed"):
        host.train()
    assert [path.name for path in out.iterdir() if "checkpoint" in path.name] == ["checkpoint-1"]
    whole, kept = contents(first), contents(out / "checkpoint-1")
    assert set(kept) == set(whole)
    assert all(len(kept[name]) == len(whole[name]) for name in whole if name != "trainer_state.json")
