"""`llava-ultra report` from files to files, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from eval_files import answer_line, gold_line, write_lines
from small_scores import block, scores

from llava_ultra_ext import cli
from llava_ultra_ext.eval import report

TWO = (("llava", block(50.0, 70.0)), ("ultra", block(60.5, 71.0)))
GOLD = [
    gold_line(1, "左肺", lang="zh", answer_type="OPEN"),
    gold_line(2, "没有", lang="zh", answer_type="CLOSED"),
    gold_line(3, "left lung", lang="en", answer_type="OPEN", text="Where?"),
]
ANSWERS = [answer_line(1, "右肺"), answer_line(2, "没有"), answer_line(3, "left lung")]


def write_scores(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A gold file, an answers file and their scores."""
    gold, pred = (str(write_lines(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("g", GOLD), ("p", ANSWERS)))
    made = str(tmp_path / "s.json")
    assert cli.main(["score", "--gold", gold, "--pred", pred, "--json", made, "--resamples", "20"]) == 0
    return {"gold": gold, "pred": pred, "scores": made, "out": str(tmp_path / "out")}


def test_writes_tables_scores_and_chart_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = scores(*TWO)
    a, b = write_scores(tmp_path / "a.json", content), write_scores(tmp_path / "b.json", content)
    out = tmp_path / "new" / "report"
    assert report.main(["--scores", a, "--scores", b, "--title", "甲", "--title", "乙", "--out", str(out)]) == 0
    names = ["table.md", "table.tex", "report.json", "chart.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)  # nothing temporary is left
    assert capsys.readouterr().out.splitlines() == [f"wrote {out / name}" for name in names]
    merged = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert merged == {"datasets": [{"title": "甲", "scores": content}, {"title": "乙", "scores": content}]}
    assert "| **甲** |" in (out / "table.md").read_text(encoding="utf-8")
    assert r"\textit{乙}" in (out / "table.tex").read_text(encoding="utf-8")
    assert (out / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("gold", "paths", "titles"),
    [
        ("slake_zh.jsonl", ["x.json"], ["slake_zh"]),
        ("gold.jsonl", ["openi.json"], ["openi"]),
        ("test_gold.jsonl", ["exams/scores.json"], ["exams"]),
        ("train_gold.jsonl", ["exams/scores.json"], ["exams"]),
        ("validate_gold.jsonl", ["busi.json"], ["busi"]),
        ("test.jsonl", ["a.json", "b.json"], ["test", "test (2)"]),
    ],
)
def test_titles_come_from_file_names(tmp_path: Path, gold: str, paths: list[str], titles: list[str]) -> None:
    flags = [flag for path in paths for flag in ("--scores", write_scores(tmp_path / path, scores(*TWO, file=gold)))]
    report.main([*flags, "--out", str(tmp_path / "out")])
    merged = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [entry["title"] for entry in merged["datasets"]] == titles


def test_layout_reaches_the_tables(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "a.json", scores(*TWO))
    report.main(["--scores", path, "--layout", "ablation", "--out", str(tmp_path)])
    assert "<sub>+10.5</sub>" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_gold_and_answers_make_the_page_of_examples(files: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    flags = ["--scores", files["scores"], "--gold", files["gold"], "--pred", files["pred"], "--out", files["out"]]
    report.main([*flags, "--examples", "2", "--title", "SLAKE"])
    html = (Path(files["out"]) / "examples.html").read_text(encoding="utf-8")
    assert html.count("<article") == 2 and "Examples: SLAKE" in html and "2 of 3 questions" in html
    assert str(Path(files["gold"]).parent) not in html
    assert "--image-folder is not given" in caplog.text


def test_without_gold_the_page_of_an_earlier_report_goes(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--scores", files["scores"], "--out", files["out"]]
    page = Path(files["out"]) / "examples.html"
    report.main([*flags, "--gold", files["gold"], "--pred", files["pred"]])
    assert page.exists() and "removed" not in capsys.readouterr().out
    report.main(flags)
    assert not page.exists() and f"removed {page}" in capsys.readouterr().out
    report.main(flags)
    assert "removed" not in capsys.readouterr().out


def test_only_a_page_that_a_report_made_goes(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(files["out"]) / "examples.html"
    page.parent.mkdir()
    page.write_text("<!doctype html><title>my own</title>")
    report.main(["--scores", files["scores"], "--out", files["out"]])
    assert "my own" in page.read_text() and f"left {page}" in capsys.readouterr().out


def test_no_file_of_the_report_takes_the_place_of_its_input(tmp_path: Path, files: dict[str, str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for flag, name in (("scores", "report.json"), ("gold", "table.md"), ("pred", "examples.html")):
        given = {**files, flag: str(Path(files[flag]).rename(out / name))}
        flags = ["--scores", given["scores"], "--gold", given["gold"], "--pred", given["pred"], "--out", str(out)]
        before = (out / name).read_bytes()
        assert f"{name}: is the file that --{flag} reads" in refused(*flags)
        assert (out / name).read_bytes() == before
        (out / name).rename(files[flag])


def test_a_full_disk_leaves_the_report_as_it_was(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--scores", files["scores"], "--out", files["out"]]
    report.main(flags)
    before = {path.name: path.read_bytes() for path in Path(files["out"]).iterdir()}
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "chart" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    capsys.readouterr()
    assert cli.main(["report", *flags, "--title", "new"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith(f"No space left on device: '{Path(files['out']) / 'chart.png'}'\n")
    assert {path.name: path.read_bytes() for path in Path(files["out"]).iterdir()} == before


def test_names_of_half_characters(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "s.json", scores(("llava\ud83d", block(50.0, 70.0)), TWO[1]))
    assert report.main(["--scores", path, "--title", "\udcff", "--out", str(tmp_path / "out")]) == 0
    assert "| llava? |" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_of_scores_on_one_gold_those_with_the_models_are_the_pages(tmp_path: Path, files: dict[str, str]) -> None:
    rows = [{**row, "model_id": "second", "text": f"{row['text']}."} for row in ANSWERS]
    pred, made = str(write_lines(tmp_path / "q.jsonl", rows)), str(tmp_path / "t.json")
    cli.main(["score", "--gold", files["gold"], "--pred", pred, "--json", made, "--resamples", "0"])
    both = ["--scores", files["scores"], "--scores", made, "--title", "one", "--title", "two", "--gold", files["gold"]]
    for answers, title in ((pred, "two"), (files["pred"], "one")):
        report.main([*both, "--pred", answers, "--out", files["out"]])
        assert f"Examples: {title}" in (Path(files["out"]) / "examples.html").read_text(encoding="utf-8")
    message = refused(*both, "--pred", files["pred"], "--pred", pred, "--out", str(tmp_path / "none"))
    assert "q.jsonl: its model second is not in --scores, which holds llava-ultra." in message


def test_answers_that_changed_since_they_were_scored_are_refused(tmp_path: Path, files: dict[str, str]) -> None:
    base = ("--scores", files["scores"], "--gold", files["gold"], "--out", files["out"])
    report.main([*base, "--pred", str(write_lines(tmp_path / "order.jsonl", ANSWERS[::-1]))])
    changed = str(write_lines(tmp_path / "changed.jsonl", [*ANSWERS[:2], answer_line(3, "right lung")]))
    message = refused(*base, "--pred", changed)
    assert "changed.jsonl: the answers of llava-ultra are not those that --scores was computed from" in message
    lost = str(write_lines(tmp_path / "lost.jsonl", ANSWERS[:2]))
    assert "lost.jsonl: the answers of llava-ultra are not those" in refused(*base, "--pred", lost)


def test_the_page_is_about_the_scored_questions(tmp_path: Path, files: dict[str, str]) -> None:
    pred = str(write_lines(tmp_path / "zh.jsonl", [answer_line(1, "左肺")]))
    made = str(tmp_path / "zh.json")
    common = ["--gold", files["gold"], "--pred", pred, "--lang", "zh"]
    assert cli.main(["score", *common, "--allow-missing", "--json", made, "--resamples", "0"]) == 0
    report.main(["--scores", files["scores"], "--scores", made, *common, "--out", files["out"]])
    html = (Path(files["out"]) / "examples.html").read_text(encoding="utf-8")
    assert html.count("<article") == 1 and "Examples: g (2)" in html
    table = (Path(files["out"]) / "table.md").read_text(encoding="utf-8")
    assert "g (2), llava-ultra: 1 questions without answer" in table


def refused(*flags: str) -> str:
    with pytest.raises(ValueError) as caught:
        report.main(flags)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ([], "is no scores file"),
        ({"datasets": []}, "is no scores file"),
        ({"format": "ultra_scores/1"}, "is no scores file"),
        (
            {**scores(*TWO), "format": "ultra_scores/2"},
            "has the format ultra_scores/2; this release reads ultra_scores/1",
        ),
        ({**scores(*TWO), "models": []}, "holds no model"),
    ],
)
def test_files_that_are_no_scores_are_refused(tmp_path: Path, content: Any, said: str) -> None:
    path = write_scores(tmp_path / "s.json", content)
    message = refused("--scores", path, "--out", str(tmp_path / "out"))
    assert said in message and "llava-ultra score" in message
    assert not (tmp_path / "out").exists()


def test_flags_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "s.json", scores(*TWO))
    base = ("--scores", path, "--out", str(tmp_path / "out"))
    assert "2 titles for 1 scores files" in refused(*base, "--title", "a", "--title", "b")
    assert "--pred without --gold" in refused(*base, "--pred", "p")
    assert "--gold without --pred" in refused(*base, "--gold", "g")
    assert "Give --gold and --pred too" in refused(*base, "--image-folder", str(tmp_path))
    assert "must be 1 or more" in refused(*base, "--gold", "g", "--pred", "p", "--examples", "0")
    assert "is no folder" in refused(*base, "--gold", "g", "--pred", "p", "--image-folder", str(tmp_path / "none"))
    assert "s.json is a file. Give a folder" in refused("--scores", path, "--out", path)
    assert "s.json is a file. Give a folder" in refused("--scores", path, "--out", f"{path}/sub")
    assert "cannot be read" in refused("--scores", str(tmp_path / "none.json"), "--out", str(tmp_path / "out"))
    assert "shows one data set, 2 are given" in refused(*base, "--scores", path, "--layout", "ablation")


def test_answers_and_gold_must_belong_to_the_scores(tmp_path: Path, files: dict[str, str]) -> None:
    base = ("--scores", files["scores"], "--out", files["out"], "--pred", files["pred"])
    message = refused(*base, "--gold", files["gold"], "--name", "other")
    assert "its model other is not in --scores, which holds llava-ultra" in message
    changed = [{**GOLD[0], "answer": "右肺"}, *GOLD[1:]]
    other = str(write_lines(tmp_path / "other.jsonl", changed))
    assert "none of the --scores was computed on its questions" in refused(*base, "--gold", other)
    assert "same --gold, --pred and --lang" in refused(*base, "--gold", files["gold"], "--lang", "zh")
    assert not Path(files["out"]).exists()


def test_a_library_that_is_missing_leaves_no_half_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    path = write_scores(tmp_path / "s.json", scores(*TWO))
    assert "llava_ultra_ext[eval]" in refused("--scores", path, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
