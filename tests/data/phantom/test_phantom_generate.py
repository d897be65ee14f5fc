"""The command: what it writes, the same bytes however often it was stopped, and what it refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from import_case import lines, run_import
from interrupts import hear_ctrl_c
from PIL import Image

from llava_ultra_ext import cli
from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.sources.phantom import drawing, words
from llava_ultra_ext.data.sources.phantom import generate as command
from llava_ultra_ext.data.sources.phantom.case import Case
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings, draw_case
from llava_ultra_ext.data.sources.phantom.generate import main

SMALL = ("--exams", "5", "--held-out", "3", "--size", "64", "--frames", "2-4", "--seed", "3")


def generate(out: Path, *flags: str, workers: int = 1) -> dict[str, Any]:
    assert main(["--out", str(out), *SMALL, "--workers", str(workers), *flags]) == 0
    return json.loads((out / "card.json").read_text(encoding="utf-8"))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("phantom") / "whole"
    generate(out)
    return out


def test_every_exam_is_written_as_it_was_drawn(whole: Path) -> None:
    rows = lines(whole / "truth.jsonl")
    assert [row["exam_id"] for row in rows] == [
        *(f"PH-train-0000{number}" for number in range(1, 6)),
        *(f"PH-test-0000{number}" for number in range(1, 4)),
    ]
    settings = PhantomSettings(size=64, min_frames=2, max_frames=4)
    for row in rows:
        case = draw_case(row["exam_id"], row["seed"], settings)
        assert (row["site"], len(row["lesions"])) == (case.site, len(case.lesions))
        assert row["valid_frames"] == list(case.valid_frames(settings.least_visible)) != []
        assert 2 <= len(row["frames"]) <= 4
        files = sorted((whole / "frames" / row["exam_id"]).iterdir())
        assert [path.name for path in files] == [f"{number:02d}.png" for number in range(len(row["frames"]))]
        for number, path in enumerate(files):
            with Image.open(path) as picture:
                assert (picture.size, picture.mode) == ((64, 64), "RGB")
                written = np.asarray(picture, np.int16)
            # Threads of this process may change the last bit of a product, and so a grey value by one.
            assert np.abs(written - drawing.render_frame(case, number, 64)).mean() < 0.01


def test_lists_hold_the_questions_of_their_split(whole: Path) -> None:
    truth = {row["exam_id"]: row for row in lines(whole / "truth.jsonl")}
    manifest = load(whole / "exams.json")
    assert {record["exam_id"] for record in manifest} == set(truth)
    assert len({record["id"] for record in manifest}) == len(manifest)
    for record in manifest:
        exam, row = Exam.from_record(record), truth[record["exam_id"]]
        assert exam.site == words.SITES[row["site"]] and list(exam.valid_frames or ()) == row["valid_frames"]
        assert record["split"] == row["split"] and f"-{row['split']}-" in exam.exam_id
        assert (record["lang"], record["modality"]) == ("zh", "ultrasound")
        assert all((whole / name).is_file() for name in exam.images)
        if record["content_type"] == "findings":
            assert exam.findings == exam.conversations[1].text
        if record["content_type"] == "lesion_seen":
            assert (exam.conversations[1].text in ("是", "有")) == bool(row["lesions"])
    first = load(whole / "stage1.json")
    assert [record["exam_id"] for record in first] == [name for name, row in truth.items() if row["split"] == "train"]
    for record in first:
        said = record["conversations"][1]["value"]
        assert len(said) < len(record["findings"]) and "\n" not in said
        assert ("未见病灶" in said) == (not truth[record["exam_id"]]["lesions"])


def test_a_third_of_stage_2_asks_for_findings_and_no_sample_is_held_out(whole: Path) -> None:
    second = load(whole / "stage2.json")
    ill = [row for row in lines(whole / "truth.jsonl") if row["split"] == "train" and len(row["lesions"]) == 1]
    assert ill, "the seed must draw a training exam with one lesion"
    for row in ill:
        own = [record for record in second if record["exam_id"] == row["exam_id"]]
        assert len(own) == 6 and all(len(record["conversations"]) == 2 for record in own)
        assert sum(record["conversations"][1]["value"] == record["findings"] for record in own) == 2
        assert sum(record["id"].endswith("-diagnosis") for record in own) == 1
    assert all("-train-" in record["exam_id"] for record in second)


def test_the_card_counts_what_is_there(whole: Path) -> None:
    card, rows = load(whole / "card.json"), lines(whole / "truth.jsonl")
    ill = [row for row in rows if row["lesions"]]
    shares = [len(row["valid_frames"]) / len(row["frames"]) for row in ill]
    assert card["finished"] is True and card["exams"] == {"train": 5, "test": 3}
    assert card["normal_share"] == round(1 - len(ill) / 8, 4)
    assert card["chance"] == round(sum(shares) / len(shares), 4)
    assert card["frames"]["all"] == len(list(whole.glob("frames/*/*.png"))) == sum(len(row["frames"]) for row in rows)
    assert sum(sum(sites.values()) for sites in card["sites"].values()) == 8
    assert card["settings"]["seed"] == 3 and card["settings"]["size"] == 64 and card["settings"]["max_frames"] == 4
    assert sum(card["lesions"]["margin"].values()) == sum(len(row["lesions"]) for row in rows)


def test_two_workers_write_the_same_bytes_and_another_seed_others(whole: Path, tmp_path: Path) -> None:
    generate(tmp_path / "two", workers=2)
    assert hashes(tmp_path / "two") == hashes(whole)
    generate(tmp_path / "other", "--seed", "4")
    assert hashes(tmp_path / "other")["truth.jsonl"] != hashes(whole)["truth.jsonl"]


def test_workers_start_with_one_thread_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Pool:
        def __init__(self, *given: Any, **named: Any) -> None: ...

        def submit(self, function: Any, task: drawing.Task) -> Future[str]:
            seen.append(os.environ["OPENBLAS_NUM_THREADS"])
            future: Future[str] = Future()
            future.set_result(task.exam_id)
            return future

        def shutdown(self, **named: Any) -> None: ...

    monkeypatch.setattr(drawing, "ProcessPoolExecutor", Pool)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    tasks = drawing.plan({"train": 2}, 0, PhantomSettings(), tmp_path)
    assert sorted(drawing.draw_all(tasks, 2)) == [(0, "PH-train-00001"), (1, "PH-train-00002")]
    assert seen == ["1", "1"]
    assert os.environ["OPENBLAS_NUM_THREADS"] == "5" and "MKL_NUM_THREADS" not in os.environ


def test_more_exams_change_no_other_exam(whole: Path, tmp_path: Path) -> None:
    generate(tmp_path / "more", "--exams", "6", "--validate", "1")
    more = hashes(tmp_path / "more")
    frames = {name: value for name, value in hashes(whole).items() if name.startswith("frames/")}
    assert frames.items() < more.items()
    assert load(tmp_path / "more" / "card.json")["exams"] == {"train": 6, "validate": 1, "test": 3}


def test_a_killed_run_goes_on_and_ends_as_if_undisturbed(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    run = started(out, "2")
    wait_for_frames(out, 4)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert load(out / "card.json")["finished"] is False and not (out / "exams.json").exists()
    kept = sorted(out.glob("frames/*/*.png"))
    kept[0].write_bytes(kept[0].read_bytes()[:200])  # a disk that lost a block
    kept[1].with_name(".01.png.99").write_bytes(b"half")  # a frame that was being written
    (out / ".exams.json.99").write_bytes(b"half")
    before = {path: path.stat().st_mtime_ns for path in kept[1:]}
    generate(out, workers=2)
    assert hashes(out) == hashes(whole)
    assert {path: path.stat().st_mtime_ns for path in kept[1:]} == before


@pytest.mark.parametrize("frames", [0, 4])
def test_ctrl_c_ends_without_a_traceback_and_keeps_whole_exams(tmp_path: Path, frames: int) -> None:
    out, more = tmp_path / "stopped", ("--exams", "60")  # so many that they are not done before the signal comes
    run = started(out, "2", *more)
    wait_until(lambda: len(psutil.Process(run.pid).children()) >= 3)  # the workers, and Python's resource tracker
    time.sleep(0.05)  # the last of them may have been started in this moment
    wait_for_frames(out, frames)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in said and "of 63 exams are whole and kept" in said
    generate(out, *more)
    generate(tmp_path / "whole", *more)
    assert hashes(out) == hashes(tmp_path / "whole")


def test_a_killed_parent_takes_its_workers_along(tmp_path: Path) -> None:
    out = tmp_path / "orphans"
    run = started(out, "2", "--exams", "500")
    wait_for_frames(out, 4)
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) >= 2
    run.kill()
    run.wait()
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_other_settings_in_the_folder_are_refused_by_name(whole: Path, tmp_path: Path) -> None:
    before = hashes(whole)
    with pytest.raises(ValueError, match=r"max_frames 4 there, 6 here; seed 3 there, 5 here\. Give the settings"):
        generate(whole, "--seed", "5", "--frames", "2-6")
    assert hashes(whole) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt and no card\.json"):
        generate(tmp_path)
    (tmp_path / "card.json").write_text("[]")
    with pytest.raises(ValueError, match=r"card\.json is not a card of phantom exams"):
        generate(tmp_path)


def test_frames_of_another_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    generate(out, "--exams", "1")
    before = hashes(out)
    real = drawing.render_frame
    monkeypatch.setattr(drawing, "render_frame", lambda *given: np.minimum(real(*given), 40))
    with pytest.raises(ValueError, match=r"PH-t[a-z]+-00001/00\.png: another version"):
        generate(out, "--exams", "1")
    assert hashes(out) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--frames", "0"), "min_frames 0.*1 to 16"),
        (("--frames", "8-2"), "min_frames 8, max_frames 2"),
        (("--frames", "two"), "--frames two: must be a number"),
        (("--size", "32"), "size 32: must be 64 to 512"),
        (("--sites", "liver,spleen"), "spleen.*Choose some of thyroid"),
        (("--lesion-scale", "9"), "does not fit"),
        (("--normal", "1.5"), "normal 1.5"),
        (("--exams", "0", "--held-out", "0"), "no exam is left"),
        (("--held-out", "-1"), "--held-out -1"),
        (("--workers", "0"), "--workers 0"),
        (("--seed", "-1"), "--seed -1"),
    ],
)
def test_impossible_flags_are_refused_before_anything_is_written(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        main(["--out", str(tmp_path / "out"), *SMALL, *flags])
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_and_what_is_drawn_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = 0

    def fills(path: Path, content: bytes) -> None:
        nonlocal written
        written += 1
        if written > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def here(tasks: list[drawing.Task], workers: int) -> Iterator[tuple[int, Case]]:
        return ((place, drawing.draw_exam(task)) for place, task in enumerate(tasks))

    with monkeypatch.context() as patch:
        patch.setattr(drawing, "write_whole", fills)
        patch.setattr(command, "draw_all", here)
        assert cli.main(["phantom", "--out", str(tmp_path / "full"), *SMALL]) == 1
    said = capsys.readouterr().err
    assert "no space is left on the disk" in said and "of 8 exams are whole and kept" in said
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "full").glob("frames/*/*.png")}
    assert len(kept) == 8
    assert generate(tmp_path / "full")["finished"] is True
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_another_error_of_a_worker_is_told_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(tmp_path / "out", "--exams", "1", "--held-out", "0")
    folder = tmp_path / "out" / "frames" / "PH-train-00001"
    shutil.rmtree(folder)
    folder.write_text("in the way")
    given = ["phantom", "--out", str(tmp_path / "out"), *SMALL, "--exams", "1", "--held-out", "0"]
    assert cli.main(given) == 1
    said = capsys.readouterr().err
    assert "PH-train-00001" in said and "no space" not in said


def test_the_manifest_is_imported_in_both_versions_of_the_cue(whole: Path, tmp_path: Path) -> None:
    run_import("exams", whole / "exams.json", "--site-cue", "both", "--out", tmp_path / "out")
    truth = {row["exam_id"]: row for row in lines(whole / "truth.jsonl")}
    manifest = load(whole / "exams.json")
    for cue in ("with", "without"):
        gold = lines(tmp_path / "out" / f"{cue}_site" / "test_gold.jsonl")
        assert len(gold) == sum(record["split"] == "test" for record in manifest)
        for row in gold:
            assert row["valid_frames"] == truth[row["exam_id"]]["valid_frames"]
            assert (row["site"] in row["text"]) == (cue == "with")
            assert row["content_type"] in row["question_id"]
        assert {row["answer_type"] for row in gold} == {"OPEN", "CLOSED"}


def started(out: Path, workers: str, *flags: str) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    command = [sys.executable, "-m", "llava_ultra_ext.cli", "phantom", "--out", str(out), *SMALL, "--workers", workers]
    return subprocess.Popen(
        [*command, *flags], start_new_session=True, text=True, stderr=subprocess.PIPE, preexec_fn=hear_ctrl_c
    )


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "nothing happened within a minute"
        time.sleep(0.01)


def wait_for_frames(out: Path, count: int) -> None:
    wait_until(lambda: len(list(out.glob("frames/*/*.png"))) >= count)
