"""Quick-start exams from the real files that pydicom ships: each text is checked against pixels and headers again."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="the quick start's pictures come with pydicom")
pytest.importorskip("data_store", reason="the quick start's pictures come with pydicom-data")

import build_exams  # noqa: E402
import demo_texts  # noqa: E402
from dicom_frames import Source, collect_sources, local_files  # noqa: E402
from llava_ultra_ext import cli  # noqa: E402


def _no_network(*_args, **_kwargs):
    raise AssertionError("the quick start's data must be built without a network")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _no_network)
        patch.setattr(socket, "getaddrinfo", _no_network)
        summary = build_exams.build(out, cine_exams=8, mixed_exams=16)
    return out, summary


@pytest.fixture(scope="module")
def stages(built):
    return [json.loads((built[0] / f"stage{stage}.json").read_text(encoding="utf-8")) for stage in (1, 2)]


@pytest.fixture(scope="module")
def gold(built):
    return [json.loads(line) for line in (built[0] / "gold.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_real_files_are_used_once_each(built):
    summary = built[1]
    frames = {source["file"]: source["frames"] for source in summary["used"]}
    assert frames["examples_ybr_color.dcm"] == 30
    assert frames["color3d_jpeg_baseline.dcm"] == 120
    assert {"examples_rgb_color.dcm", "examples_palette.dcm", "JPGLosslessP14SV1_1s_1f_8b.dcm"} <= set(frames)
    reasons = {entry["file"]: entry["reason"] for entry in summary["skipped"]}
    assert "icon" in reasons["ExplVR_BigEnd.dcm"]
    assert reasons["color-px.dcm"] == "holds the same picture as color-pl.dcm"
    assert reasons["OBXXXX1A_expb.dcm"] == "holds the same picture as OBXXXX1A.dcm"  # byte-swapped palette undone
    assert not set(frames) & set(reasons)


def test_number_of_exams_of_each_kind(built):
    summary = built[1]
    stills = sum(source["frames"] == 1 for source in summary["used"])
    kinds = Counter((exam["kind"], exam["split"]) for exam in summary["exams"])
    assert kinds == {
        ("still", "train"): stills,
        ("cine", "train"): 6,
        ("cine", "test"): 2,
        ("mixed", "train"): 12,
        ("mixed", "test"): 4,
    }
    assert len({exam["exam_id"] for exam in summary["exams"]}) == stills + 24


def test_every_frame_exists_and_valid_frames_are_of_the_described_source(built, stages):
    out, summary = built
    described = {exam["exam_id"]: exam for exam in summary["exams"]}
    for sample in stages[1]:
        stem = described[sample["exam_id"]]["source"].removesuffix(".dcm")
        of_source = [place for place, name in enumerate(sample["image"]) if name.startswith(f"frames/{stem}_")]
        assert sample["valid_frames"] == of_source
        assert len(set(sample["image"])) == len(sample["image"])
        assert all((out / name).is_file() for name in sample["image"])
        assert sample["conversations"][0]["value"].count("<image>") == len(sample["image"])
        if described[sample["exam_id"]]["kind"] == "mixed":
            assert len(sample["image"]) > len(of_source)


def test_texts_are_true_of_pixels_and_headers(built, stages):
    out, summary = built
    files = {source["file"]: source for source in summary["used"]}
    source_of = {exam["exam_id"]: files[exam["source"]] for exam in summary["exams"]}
    for sample in stages[0]:
        source, text = source_of[sample["exam_id"]], sample["findings"]
        assert sample["conversations"][1]["value"] == text
        valid = [Image.open(out / sample["image"][place]) for place in sample["valid_frames"]]
        spread = np.mean([np.ptp(np.asarray(image).astype(int), axis=2) > 100 for image in valid])
        assert ("可见彩色血流信号" in text) == (spread > 0.01) == text.startswith("彩色多普勒")
        grey = np.mean([np.asarray(image.convert("L")).mean() for image in valid])
        assert ("画面整体较暗" in text) == (grey < 15) and ("画面整体较亮" in text) == (grey > 32)
        assert ("动态序列" in text) == (source["frames"] > 1)
        assert not re.search("[0-9]", text)  # sizes and lengths are not in the picture
    for sample in stages[1]:
        turns = [turn["value"].replace("<image>\n", "") for turn in sample["conversations"]]
        answers = dict(zip(turns[::2], turns[1::2], strict=True))
        assert len(answers) == 5
        assert answers["该检查是否为彩色多普勒超声图像？"].startswith("是") == ("可见彩色" in sample["findings"])
        assert answers["原始文件共有多少帧？"] == f"{source_of[sample['exam_id']]['frames']}帧。"
        assert answers["彩色血流以哪些颜色为主？"].removesuffix("。") in sample["findings"]


def test_distractors_rank_behind_the_described_source(built, stages):
    out = built[0]

    def colour(name):
        return demo_texts.facts_of(np.asarray(Image.open(out / name))[None]).colour

    for sample in stages[0]:
        coloured = [place for place, name in enumerate(sample["image"]) if colour(name)]
        assert coloured in ([], sample["valid_frames"])


def test_held_out_frames_of_the_cine_are_never_trained_on(stages, gold):
    def cine(samples):
        return {name for sample in samples for name in sample["image"] if "color3d_jpeg_baseline" in name}

    held_out = cine(line for line in gold if line["split"] == "test")
    assert held_out and not held_out & cine(stages[0]) and not held_out & cine(stages[1])
    assert not {line["exam_id"] for line in gold if line["split"] == "test"} & {s["exam_id"] for s in stages[0]}
    assert {line["split"] for line in gold} == {"train", "test"}


def test_questions_are_gold_without_the_answers(built, gold):
    asked = [json.loads(line) for line in (built[0] / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["question_id"] for line in asked] == [line["question_id"] for line in gold]
    assert len({line["question_id"] for line in gold}) == len(gold) == 2 * 6 + 6
    assert not any("answer" in line or "valid_frames" in line or "<image>" in line["text"] for line in asked)
    assert len({line["text"] for line in gold}) == 5


def test_the_held_out_manifest_asks_every_question_of_every_held_out_exam(built, gold, tmp_path):
    out, summary = built
    records = json.loads((out / "held_out.json").read_text(encoding="utf-8"))
    held_out = {exam["exam_id"]: exam["kind"] for exam in summary["exams"] if exam["split"] == "test"}
    assert Counter(record["exam_id"] for record in records) == dict.fromkeys(held_out, 5)
    assert all(record["content_type"] == held_out[record["exam_id"]] for record in records)
    answers = {(line["exam_id"], line["text"]): line["answer"] for line in gold}
    asked = [
        (record["exam_id"], record["conversations"][0]["value"].replace("<image>\n", ""), record["conversations"][1])
        for record in records
    ]
    both = [(answers[exam, text], answer["value"]) for exam, text, answer in asked if (exam, text) in answers]
    assert len(both) == 2 * len(held_out) and all(one == other for one, other in both)
    imported = tmp_path / "data"
    assert cli.main(["import", "exams", str(out / "held_out.json"), "--out", str(imported)]) == 0
    lines = (imported / "test_gold.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["exam_id"] for line in lines] == [record["exam_id"] for record in records]


def test_the_same_seed_gives_the_same_plan_and_another_seed_another(built):
    sources, _, _ = collect_sources([entry for entry in local_files() if "examples_" in entry[1].name])
    plans = [
        [[frame.path for frame in exam.frames] for exam in build_exams.plan_exams(sources, 4, 4, seed)]
        for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]


def test_without_pydicom_data_the_short_cine_is_enough():
    sources, _, _ = collect_sources([entry for entry in local_files() if entry[0] == "pydicom"])
    exams = build_exams.plan_exams(sources, 80, 80, 0)
    sizes = Counter(len(exam.frames) for exam in exams if exam.kind == "cine")
    assert set(sizes) == set(range(2, 9)) and sum(sizes.values()) == 80
    held_out = {frame.index for exam in exams if exam.split == "test" for frame in exam.frames if frame.source.is_cine}
    assert held_out == set(range(22, 30))


def test_no_cine_says_what_to_do():
    still = Source("a.dcm", "pydicom", "RGB", np.zeros((1, 100, 100, 3), np.uint8))
    with pytest.raises(ValueError, match="pip install pydicom"):
        build_exams.plan_exams([still], 4, 4, 0)


def test_broken_and_foreign_files_are_listed_not_fatal(tmp_path):
    broken = pydicom.dcmread(next(path for _, path in local_files() if path.name == "examples_rgb_color.dcm"))
    broken.PixelData = broken.PixelData[:1000]
    broken.save_as(tmp_path / "broken.dcm")
    (tmp_path / "text.dcm").write_text("no picture")
    sources, skipped, others = collect_sources([("test", path) for path in sorted(tmp_path.iterdir())])
    assert sources == [] and [entry["file"] for entry in skipped] == ["broken.dcm"]
    assert "decoded" in skipped[0]["reason"] and others == 1
