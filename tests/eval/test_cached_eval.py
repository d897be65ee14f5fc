"""`llava-ultra answer` and `score-frames` with a feature cache: what they say without it, and no encoder runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from trained import Trained

from llava_ultra_ext.data.frame_scores import read_frame_scores
from llava_ultra_ext.eval import generate, score_frames
from llava_ultra_ext.train import cache
from llava_ultra_ext.vision.tower import FusedVisionTower

pytestmark = pytest.mark.usefixtures("armed")

TOLERANCE = {"float32": 2e-6, "int8": 2e-2}
"""Of a frame's score."""


@pytest.fixture(scope="module")
def build(trained_lora: Trained, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A cache of the trained model's encoders and pictures."""
    sources = dict(json.loads((trained_lora.lora / "config.json").read_text())["ultra_sources"])

    def make(dtype: str, *more: str) -> Path:
        folder = tmp_path_factory.mktemp("features")
        command = ["build", "--feature_cache", str(folder), "--dtype", dtype, "--image_folder", str(trained_lora.exams)]
        command += ["--data_path", str(trained_lora.exams / "train.json"), "--mm_vision_select_layer", "-1"]
        assert cache.main([*command, "--clip_tower", sources["clip"], "--sam_tower", sources["sam"], *more]) == 0
        return folder

    return make


@pytest.fixture(scope="module")
def caches(build: Callable[..., Path]) -> dict[str, Path]:
    return {dtype: build(dtype) for dtype in TOLERANCE}


@pytest.fixture(scope="module")
def question_file(trained_lora: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exams of 1, 2, 3, 4 and 7 frames, a single picture, text only; each asked in three ways."""
    rows: list[dict[str, Any]] = []
    for asked in ("", "简要回答。", "图像质量如何？"):
        for sample in json.loads((trained_lora.exams / "train.json").read_text(encoding="utf-8")):
            text = sample["conversations"][0]["value"].replace("<image>", "").strip() + asked
            rows.append({"question_id": len(rows), "text": text, **{k: sample[k] for k in ("image",) if k in sample}})
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def answer(trained: Trained, questions: Path, answers: Path, *more: str) -> list[dict[str, Any]]:
    command = ["--model-path", str(trained.lora), "--model-base", str(trained.base), "--question-file", str(questions)]
    command += ["--answers-file", str(answers), "--image-folder", str(trained.exams), "--max_new_tokens", "24"]
    assert generate.main([*command, *more]) == 0
    return [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def uncached(trained_lora: Trained, question_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return answer(trained_lora, question_file, tmp_path_factory.mktemp("answers") / "answers.jsonl")


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedVisionTower, "_encode", lambda *_: pytest.fail("an encoder ran"))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (generate, score_frames):
        monkeypatch.setattr(module, "open_model", lambda *_: pytest.fail("a model was loaded"))


@pytest.mark.usefixtures("no_encoder")
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_answers_choices_and_scores_are_those_without_the_cache(
    trained_lora: Trained, question_file: Path, uncached: Any, caches: dict[str, Path], tmp_path: Path, dtype: str
) -> None:
    found = answer(trained_lora, question_file, tmp_path / "a.jsonl", "--feature-cache", str(caches[dtype]))
    assert len({row["text"] for row in uncached}) >= 2  # a model that says one thing would hide most faults
    assert [row["metadata"].get("frames") for row in found] == [row["metadata"].get("frames") for row in uncached]
    for row, want in zip(found, uncached, strict=True):
        scores = zip(row["metadata"].get("frame_scores", ()), want["metadata"].get("frame_scores", ()), strict=True)
        for one, other in scores:
            assert one == pytest.approx(other, abs=TOLERANCE[dtype])
        if dtype == "float32":
            assert row["text"] == want["text"] and row["metadata"].get("image") == want["metadata"].get("image")


def test_answers_are_not_continued_with_features_of_another_dtype(
    trained_lora: Trained, question_file: Path, caches: dict[str, Path], tmp_path: Path
) -> None:
    answer(
        trained_lora, question_file, tmp_path / "a.jsonl", "--num-chunks", "21", "--feature-cache", str(caches["int8"])
    )
    with pytest.raises(ValueError, match=r"made by another run \(--feature-cache was int8, is None\)"):
        answer(trained_lora, question_file, tmp_path / "a.jsonl")


def score(trained: Trained, output: Path, *more: str) -> dict[str, float]:
    command = ["--model-path", str(trained.stage1), "--model-base", str(trained.base), "--output", str(output)]
    command += ["--data-path", str(trained.exams / "train.json"), "--image-folder", str(trained.exams)]
    assert score_frames.main([*command, "--gap-exams", "2", *more]) == 0
    return {name: score for row in read_frame_scores(output).scores.values() for name, score in row.items()}


def test_frame_scores_are_those_without_the_cache(
    trained_lora: Trained, caches: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = score(trained_lora, tmp_path / "uncached.jsonl")
    assert len(want) == 2 + 3 + 4 + 7 and len({round(value, 4) for value in want.values()}) > 4
    monkeypatch.setattr(FusedVisionTower, "_encode", lambda *_: pytest.fail("an encoder ran"))
    for dtype, tolerance in TOLERANCE.items():
        found = score(trained_lora, tmp_path / f"{dtype}.jsonl", "--feature-cache", str(caches[dtype]))
        assert found == pytest.approx(want, abs=tolerance)


@pytest.mark.usefixtures("no_model")
class TestRefused:
    """Before the model loads."""

    @pytest.fixture
    def changed(self, trained_lora: Trained, tmp_path: Path) -> Trained:
        """A picture of an exam of four frames is another one now."""
        exams = shutil.copytree(trained_lora.exams, tmp_path / "exams")
        Image.new("RGB", (64, 48)).save(exams / json.loads((exams / "train.json").read_text())[3]["image"][1])
        return Trained(trained_lora.base, trained_lora.stage1, trained_lora.lora, exams)

    def test_a_changed_picture(
        self, changed: Trained, question_file: Path, caches: dict[str, Path], tmp_path: Path
    ) -> None:
        more = ("--feature-cache", str(caches["float32"]))
        with pytest.raises(ValueError, match=r"1 of 18 pictures are not in it; they were added or changed"):
            answer(changed, question_file, tmp_path / "a.jsonl", *more)
        with pytest.raises(ValueError, match=r"1 of 16 pictures are not in it; they were added or changed"):
            score(changed, tmp_path / "s.jsonl", *more)
        assert not (tmp_path / "a.jsonl").exists() and not list(tmp_path.glob("s.jsonl*"))

    def test_other_encoders(
        self, trained_lora: Trained, question_file: Path, build: Callable[..., Path], tmp_path: Path
    ) -> None:
        more = ("--feature-cache", str(build("float32", "--sam_token_merge", "pool")))
        told = r"other encoders or settings \(sam sam_token_merge: pool in the cache, unshuffle now\)"
        with pytest.raises(ValueError, match=told):
            answer(trained_lora, question_file, tmp_path / "a.jsonl", *more)
        with pytest.raises(ValueError, match=told):
            score(trained_lora, tmp_path / "s.jsonl", *more)

    def test_a_stock_model(self, trained_lora: Trained, caches: dict[str, Path], tmp_path: Path) -> None:
        stock = tmp_path / "llava-stock"
        stock.mkdir()
        (stock / "config.json").write_text('{"mm_vision_tower": "openai/clip-vit-large-patch14"}')
        questions = tmp_path / "q.jsonl"
        questions.write_text('{"question_id": 1, "text": "?", "image": "frames/single.png"}\n')
        model = Trained(trained_lora.base, stock, stock, trained_lora.exams)
        with pytest.raises(ValueError, match=r"--feature-cache .*: a stock LLaVA model takes pictures only"):
            answer(model, questions, tmp_path / "a.jsonl", "--feature-cache", str(caches["float32"]))
