"""Each bad input is named and explained before any model is loaded or anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exam_case import EXAM, Case, Flags, scores_file


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


def other_model(case: Case) -> None:
    adapter = case.folder / "mm_projector.bin"
    torch.save({"model.mm_projector.fusion.logits": torch.zeros(1)}, adapter)
    case.flags["pretrain_mm_mlp_adapter"] = adapter
    scores_file(case, model="0123456789abcdef")


def other_shape(case: Case) -> None:
    other_model(case)
    del case.flags["frame_scores"]


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
    "adapter of another shape": (other_shape, "mm_projector.bin does not fit this projector", "--mm_fusion_alpha"),
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
