"""Which examples are chosen, and what differs between an answer and the truth."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llava_ultra_ext.eval.examples import Piece, choose, differences, examples, frames, is_right
from llava_ultra_ext.eval.gold import Gold
from llava_ultra_ext.eval.predictions import Answers

SHOWN = {"zh": "char", "en": "13a"}


def gold(number: int, answer: str = "左肺", **more: Any) -> Gold:
    return Gold(str(number), number, "问题", answer, **more)


def answers(name: str, texts: dict[str, str], **metadata: Any) -> Answers:
    return Answers(name, f"{name}.jsonl", texts, dict.fromkeys(texts, metadata) if metadata else {})


@pytest.mark.parametrize(
    ("answer", "truth", "pieces"),
    [
        (
            "右叶可见结节",
            "右叶见一结节",
            [("same", "右叶"), ("added", "可"), ("same", "见"), ("missing", "一"), ("same", "结节")],
        ),
        ("左肺。", " 左肺", [("same", "左肺。")]),
        (
            "The LEFT lung, lower",
            "left lung; upper",
            [("added", "The "), ("same", "LEFT lung, "), ("added", "lower"), ("missing", "upper")],
        ),
        ("Ｔ２ 加权", "T2加权", [("same", "Ｔ２ 加权")]),
        ("", "无", [("missing", "无")]),
        ("……", "无", [("added", "……"), ("missing", "无")]),
        ("阴性(-)", "阴性(+)", [("same", "阴性"), ("added", "(-)"), ("missing", "(+)")]),
    ],
)
def test_differences(answer: str, truth: str, pieces: list[tuple[str, str]]) -> None:
    found = differences(answer, truth)
    assert found == [Piece(*piece) for piece in pieces]
    assert "".join(piece.text for piece in found if piece.kind != "missing") == answer


def test_right_is_the_same_meaning_for_closed_and_the_same_text_for_open() -> None:
    assert is_right("是的", gold(1, "是", closed=True)) and not is_right("不是", gold(1, "是", closed=True))
    assert is_right("左肺。", gold(1)) and not is_right("左肺叶", gold(1))


def test_replies_say_f1_of_open_answers_and_what_differs_in_wrong_ones() -> None:
    golds = [gold(1), gold(2, "是", closed=True), gold(3)]
    one, two, three = examples(golds, [answers("m", {"1": "右肺", "2": "是的", "3": "没有"})], SHOWN)
    (reply,) = one.replies
    assert (reply.right, reply.f1) == (False, 50)  # 肺 of 右肺 and 左肺
    assert reply.pieces == (Piece("added", "右"), Piece("missing", "左"), Piece("same", "肺"))
    assert (two.replies[0].right, two.replies[0].f1, two.replies[0].pieces) == (True, None, (Piece("same", "是的"),))
    # nothing shared: the truth is not put into the answer
    assert three.replies[0].pieces == (Piece("added", "没有"),)


def test_frames_come_from_the_metadata_of_answer() -> None:
    assert frames({"frames": [[2]], "frame_scores": [[-0.3, -0.2, 1]]}, 3) == ((2,), (-0.3, -0.2, 1.0))
    # two redundancy groups of 2 and 1 frames
    assert frames({"frames": [[1], [2]], "frame_scores": [[0.1, 0.2], [0.3]]}, 3) == ((1, 2), (0.1, 0.2, 0.3))
    assert frames({"frames": [[0]], "frame_scores": [[None]]}, 1) == ((0,), ())
    assert frames({"frame_scores": [[math.nan, 0.5, 10**400]]}, 3) == ((), (None, 0.5, None))


@pytest.mark.parametrize(
    "metadata", [{}, {"frames": "x"}, {"frames": [3, [True, "1", 9, -1]]}, {"frame_scores": [[1.0]]}]
)
def test_frames_that_do_not_fit_are_left_out(metadata: dict[str, Any]) -> None:
    assert frames(metadata, 2) == ((), ())


def test_wrong_frame_needs_known_valid_frames() -> None:
    images = ("a", "b", "c")
    golds = [
        gold(1, images=images, valid_frames=(0,)),
        gold(2, images=images),
        gold(3, images=images, valid_frames=(2,)),
    ]
    found = examples(golds, [answers("m", {"1": "x", "2": "x", "3": "x"}, frames=[[2]])], SHOWN)
    assert [example.replies[0].wrong_frame for example in found] == [True, False, False]


def test_kinds_take_turns_and_disagreement_comes_first() -> None:
    golds = [gold(number, tags={"content_type": "Organ"}) for number in range(1, 41)]
    golds += [gold(number, tags={"content_type": "Size"}) for number in range(41, 44)]
    right = {one.id: "左肺" for one in golds}
    models = [answers("a", right), answers("b", {**right, "7": "肝", "19": "肝", "30": "肝"})]
    chosen = [one.line for one in choose(golds, models, 6)]
    # three of each kind, though one is rare; of the frequent kind those on which the models disagree
    assert chosen == [7, 19, 30, 41, 42, 43]
    assert choose(golds, models, 100) == golds


def test_the_choice_is_seeded() -> None:
    golds = [gold(number) for number in range(1, 101)]
    model = answers("a", {one.id: "左肺" for one in golds})
    assert choose(golds, [model], 10) == choose(golds, [model], 10) != choose(golds, [model], 10, seed=1)
