"""The scores file: written by several ranks, cut off, resumed, joined, and refused where it does not belong."""

from __future__ import annotations

import json
import math

import pytest

from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.frame_scores import (
    FrameScoreWriter,
    Header,
    data_fingerprint,
    merge_parts,
    part_files,
    read_frame_scores,
)

HEADER = Header(model="m1", data="d1")
HEADER_LINE = '{"format": "ultra_frame_scores/1", "model": "m1", "data": "d1", "strategy": "likelihood"}'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores.jsonl"


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def exam(id="a", image=("1.png", "2.png"), findings="结节", answer="答", exam_id=""):
    tokens = "<image>" * len(image)
    talk = [{"from": "human", "value": f"{tokens}问"}, {"from": "gpt", "value": answer}]
    return Exam.from_record(
        {"id": id, "image": list(image), "findings": findings, "conversations": talk, "exam_id": exam_id}
    )


def test_data_fingerprint():
    base = data_fingerprint([exam("a"), exam("b")])
    assert len(base) == 16 and base == data_fingerprint([exam("b"), exam("a")])
    assert base == data_fingerprint([exam("a", answer="另一个"), exam("b")])
    for other in (
        [exam("a")],
        [exam("a"), exam("c")],
        [exam("a"), exam("b", image=("2.png", "1.png"))],
        [exam("a"), exam("b", findings="囊肿")],
    ):
        assert data_fingerprint(other) != base
    questions = [exam("q1", exam_id="E"), exam("q2", exam_id="E")]
    assert data_fingerprint(questions) == data_fingerprint(questions[:1])


def test_format_of_the_file(path):
    with FrameScoreWriter(path, HEADER) as writer:
        writer.write("检查1", ["a.png", "b.png"], [-1.5, math.nan])
    part = path.with_name("scores.jsonl.part0")
    assert lines(part) == [HEADER_LINE, '{"exam_id": "检查1", "images": ["a.png", "b.png"], "scores": [-1.5, null]}']
    assert not path.exists()
    merged = merge_parts(path)
    assert lines(path)[0] == HEADER_LINE and not part.exists()
    read = read_frame_scores(path, expected_model="m1", expected_data="d1")
    assert read.header == merged.header == HEADER and not read.torn
    assert read.scores["检查1"]["a.png"] == -1.5 and math.isnan(read.scores["检查1"]["b.png"])


def test_ranks_write_parts_that_are_joined(path):
    for rank in range(11):
        with FrameScoreWriter(path, HEADER, rank) as writer:
            writer.write(f"e{rank}", ["a"], [float(rank)])
    assert [part.name.rsplit("part", 1)[1] for part in part_files(path)] == [str(rank) for rank in range(11)]
    merge_parts(path)
    assert read_frame_scores(path).scores == {f"e{rank}": {"a": float(rank)} for rank in range(11)}
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_resume_skips_what_any_rank_has_done(path):
    with FrameScoreWriter(path, HEADER, rank=0) as writer:
        writer.write("a", ["1"], [0.1])
    with FrameScoreWriter(path, HEADER, rank=1) as writer:
        assert writer.has("a", ["1"]) and not writer.has("b", ["1"])
        writer.write("a", ["1"], [9.9])
        writer.write("a", ["2"], [0.5])
        writer.write("b", ["1"], [0.2])
        writer.write("b", ["2"], [0.3])  # another question about the exam, with another picture
    merge_parts(path)
    with FrameScoreWriter(path, HEADER, rank=0) as writer:
        assert writer.has("b", ["1", "2"]) and not writer.has("b", ["3"])
        writer.write("c", ["1"], [0.4])
    merge_parts(path)
    assert read_frame_scores(path).scores == {"a": {"1": 0.1, "2": 0.5}, "b": {"1": 0.2, "2": 0.3}, "c": {"1": 0.4}}


@pytest.mark.parametrize("kept", range(0, 170, 7))
def test_a_run_cut_off_anywhere_goes_on(path, kept):
    part = path.with_name("scores.jsonl.part0")

    def run(ids):
        with FrameScoreWriter(path, HEADER) as writer:
            for id in ids:
                writer.write(id, ["1.png"], [0.5])

    run("ab")
    content = part.read_bytes()
    part.write_bytes(content[:kept])
    run("ab")
    assert part.read_bytes() == content


def test_a_torn_last_line_is_left_out_and_reported(path, caplog):
    path.write_text(HEADER_LINE + '\n{"exam_id": "a", "images": ["1"], "scores": [1]}\n{"exam_id": "b", "ima')
    read = read_frame_scores(path)
    assert read.torn and read.scores == {"a": {"1": 1.0}}
    assert "last line is cut off and left out (1 exams read)" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty, or its header is cut off"),
        (HEADER_LINE[:20], "is empty, or its header is cut off"),
        ("{}\n", "first line is not a header of format ultra_frame_scores/1. Give a file that"),
        ("[]\n", "first line is not a header"),
        ("hello\n", "first line is not a header"),
        (HEADER_LINE.replace("/1", "/2") + "\n", "first line is not a header"),
        (HEADER_LINE + "\n{\n{}\n", "line 2 is broken. Remove that line"),
        (HEADER_LINE + '\n{"exam_id": "a", "images": ["1"], "scores": [1, 2]}\n', "line 2 is broken"),
        (HEADER_LINE + '\n{"exam_id": "a", "images": ["1"], "scores": ["x"]}\n', "line 2 is broken"),
    ],
)
def test_broken_files(path, content, message):
    path.write_text(content)
    with pytest.raises(ValueError, match=f"--frame_scores .*scores.jsonl: .*{message}"):
        read_frame_scores(path)


def test_a_missing_file(path):
    with pytest.raises(ValueError, match=r"scores.jsonl: cannot be read .No such file"):
        read_frame_scores(path)
    with pytest.raises(ValueError, match=r"no part file scores.jsonl.part0, … to join"):
        merge_parts(path)


def test_another_model_or_data_set_is_refused(path):
    path.write_text(HEADER_LINE + "\n")
    with pytest.raises(ValueError, match=r"computed for another model .m1, in use is m2.. Compute it again"):
        read_frame_scores(path, expected_model="m2", expected_data="d1")
    with pytest.raises(ValueError, match=r"computed for another data .d1, in use is d2."):
        read_frame_scores(path, expected_data="d2")
    assert read_frame_scores(path, expected_model=None, expected_data=None).scores == {}


@pytest.mark.parametrize("other", [Header("m2", "d1"), Header("m1", "d2"), Header("m1", "d1", "attention")])
def test_a_writer_refuses_another_runs_file(path, other):
    FrameScoreWriter(path, HEADER, rank=1).close()
    with pytest.raises(ValueError, match=r"scores of another run .*Move it away, or write to another file"):
        FrameScoreWriter(path, other, rank=0)


def test_parts_of_different_runs_are_not_joined(path):
    FrameScoreWriter(path, HEADER, rank=0).close()
    text = path.with_name("scores.jsonl.part0").read_text()
    path.with_name("scores.jsonl.part1").write_text(text.replace("m1", "m2"))
    with pytest.raises(ValueError, match=r"its parts belong to different runs"):
        merge_parts(path)
    assert len(part_files(path)) == 2 and not path.exists()


def test_a_part_of_a_rank_that_wrote_nothing_is_dropped(path, caplog):
    with FrameScoreWriter(path, HEADER, rank=0) as writer:
        writer.write("a", ["1"], [1.0])
    path.with_name("scores.jsonl.part1").touch()
    assert merge_parts(path).scores == {"a": {"1": 1.0}}
    assert "part1 is empty" in caplog.text and part_files(path) == []


def test_scores_must_match_pictures(path):
    with FrameScoreWriter(path, HEADER) as writer, pytest.raises(ValueError, match=r"exam a: 2 pictures, 1 scores"):
        writer.write("a", ["1", "2"], [0.5])
    assert json.loads(lines(path.with_name("scores.jsonl.part0"))[0])["model"] == "m1"
