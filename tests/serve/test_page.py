"""The page's parts without a browser: overlays, questions, exams in memory, what is said of answers, examples."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page is made with Gradio")

from llava_ultra_ext.data.sites import load_sites
from llava_ultra_ext.serve.client import Piece
from llava_ultra_ext.serve.errors import CODES, ServeError
from llava_ultra_ext.serve.page import questions, shown
from llava_ultra_ext.serve.page.asking import Turn
from llava_ultra_ext.serve.page.examples import Example, examples
from llava_ultra_ext.serve.page.heat import AGAINST, FOR, STRONGEST, data_url, overlay
from llava_ultra_ext.serve.page.layout import viewer_markup
from llava_ultra_ext.serve.page.store import Bounds, Exam, ExamStore


def cells(picture: Image.Image, rows: int, columns: int) -> np.ndarray:
    """The overlay's colour in the middle of each of `rows` x `columns` equal parts."""
    width, height = picture.size
    across = [int((column + 0.5) * width / columns) for column in range(columns)]
    down = [int((row + 0.5) * height / rows) for row in range(rows)]
    return np.asarray(picture)[np.ix_(down, across)]


def test_the_overlay_of_a_square_frame_has_each_token_in_its_place() -> None:
    scores = [1.0, -0.5, 0.0, 0.25, -1.0, 0.5]
    found = cells(overlay((2, 3), scores, (300, 300)), 2, 3)
    assert [tuple(cell[:3]) for cell in found.reshape(6, 4)[[0, 1, 4]]] == [FOR, AGAINST, AGAINST]
    np.testing.assert_array_equal(found[..., 3].ravel(), [round(abs(score) * STRONGEST) for score in scores])


def test_the_overlay_of_a_wide_frame_leaves_the_padding_out() -> None:
    """4x4 tokens of a 2:1 frame: the model saw one row of padding above and one below."""
    scores = [9.0] * 4 + [1.0, 0, 0, 0] + [0, 0, 0, -1.0] + [9.0] * 4
    picture = overlay((4, 4), scores, (400, 200), largest=1.0)
    assert picture.size == (256, 128)
    found = cells(picture, 2, 4)
    np.testing.assert_array_equal(found[..., 3], [[STRONGEST, 0, 0, 0], [0, 0, 0, STRONGEST]])
    tall = cells(overlay((4, 4), np.array(scores).reshape(4, 4).T.ravel().tolist(), (200, 400), largest=1.0), 4, 2)
    np.testing.assert_array_equal(tall[..., 3], found[..., 3].T)


def test_overlays_share_a_scale_and_refuse_what_does_not_fit() -> None:
    assert cells(overlay((1, 1), [0.5], (9, 9), largest=1.0), 1, 1)[0, 0, 3] == STRONGEST // 2
    assert cells(overlay((1, 2), [0.0, float("nan")], (9, 9)), 1, 2)[..., 3].max() == 0
    with pytest.raises(ValueError, match="3 scores for a grid of 2x2"):
        overlay((2, 2), [1, 2, 3], (9, 9))


def test_every_site_has_questions_in_the_words_of_training() -> None:
    known = load_sites()
    assert [key for _, key in questions.sites()] == list(known.sites)
    for name, key in questions.sites():
        asked = questions.questions(key)
        assert f"请描述该{name}超声图像的所见。" in asked and len(asked) > len(questions.questions())
        assert not any("{" in text for text in asked)


def test_every_error_has_a_sentence() -> None:
    assert set(shown.SENTENCES) == set(CODES)
    assert shown.error_text(ServeError("busy", "16 wait.")) == "当前请求太多，请稍后再试。 16 wait."
    assert shown.error_text(ServeError("busy", "上传太多。")) == "上传太多。"


# Exams in memory


def kept(store: ExamStore, size: int = 10) -> Exam:
    return store.add([b"x" * size], [(4, 3)], ["1"])


def test_the_store_keeps_the_newest_within_its_bounds() -> None:
    now = [0.0]
    store = ExamStore(Bounds(exams=2, total_bytes=100, age_seconds=60), lambda: now[0])
    first, second = kept(store), kept(store)
    now[0] = 1.0
    assert store.get(first.key) is first
    third = kept(store)  # the second was unused for longest
    assert len(store) == 2 and store.get(first.key) and store.get(third.key)
    with pytest.raises(ServeError, match="请先放入"):
        store.get(second.key)
    kept(store, 95)
    assert len(store) == 1
    now[0] = 62.0
    with pytest.raises(ServeError):
        store.get(third.key)
    assert len(store) == 0
    with pytest.raises(ServeError) as caught:
        kept(store, 101)
    assert caught.value.code == "request_too_large"


def test_an_old_exam_goes_though_nobody_asks() -> None:
    now = [0.0]
    store = ExamStore(Bounds(age_seconds=60), lambda: now[0])
    kept(store)
    store.sweep()
    assert len(store) == 1
    now[0] = 61.0
    store.sweep()
    assert len(store) == 0


def test_keys_cannot_be_guessed_and_frames_are_not_printed() -> None:
    store = ExamStore()
    keys = {kept(store).key for _ in range(20)}
    assert len(keys) == 20 and all(len(key) >= 32 for key in keys)
    assert "xxx" not in repr(store.get(keys.pop()))


def test_marks_say_scores_choice_times_and_heat() -> None:
    exam = ExamStore().add([b"1", b"2"], [(8, 8), (8, 8)], ["1 · 帧 2/30", "1 · 帧 6/30"])
    heat = {"frame": 1, "grid": [1, 2], "scores": [0.5, -0.5]}
    piece = Piece(text="结节。", chosen=(1,), scores=(-0.5, -0.123456), alpha=0.497, heat=(heat,))
    exam.lanes[0].turns.append(Turn("问？", "one", "done", piece, None, 2.34, 4.51))
    marks = shown.marks(exam, 2)
    assert marks["exam"] == exam.key and marks["lanes"][1] == {"turns": []}
    [turn] = marks["lanes"][0]["turns"]
    assert turn["scores"] == [-0.5, -0.1235] and turn["chosen"] == [1]
    assert turn["status"] == "完成 · 首字 2.3 秒 · 共 4.5 秒 · α 0.497 · 依据「1 · 帧 6/30」"
    assert turn["heat"] == {"1": data_url(overlay((1, 2), [0.5, -0.5], (8, 8)))}
    waiting = Turn("问？", "one", piece=Piece(waiting=3))
    assert shown.status(waiting, exam.labels) == "排队中，前面还有 3 个请求"


def test_a_second_model_stays_shown_when_it_is_no_longer_asked() -> None:
    exam = kept(ExamStore())
    exam.lanes[1].turns.append(Turn("问？", "two", "done"))
    assert len(shown.marks(exam, 1)["lanes"]) == 2


def test_titles_of_examples_are_escaped() -> None:
    markup = viewer_markup([Example("own-1", "<script>x</script>", list)])
    assert "<script>" not in markup and "&lt;script&gt;" in markup
    assert 'class="examples"' not in viewer_markup([])


# Examples


def test_examples_are_exams(tmp_path: Any) -> None:
    (tmp_path / "WANG XIAOMING").mkdir()
    Image.new("L", (64, 48), 9).save(tmp_path / "WANG XIAOMING" / "2.png")
    Image.new("L", (64, 48), 5).save(tmp_path / "WANG XIAOMING" / "10.png")
    found = examples(tmp_path)
    assert {"phantom-thyroid", "examples_ybr_color", "own-1"} <= set(found)
    assert "WANG" not in repr(found["own-1"])[:60] and "WANG" not in found["own-1"].title
    assert len(found["own-1"].files()) == 2
    frames = found["phantom-liver"].files()
    assert len(frames) == 8 and frames == found["phantom-liver"].files(), "the same exam each time"
    assert Image.open(io.BytesIO(frames[0])).size == (384, 384)
