"""`llava-ultra score-frames`: the online teacher's scores, in a file that stage 2 takes or refuses for a reason."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_llava import environment, flags
from trained import Trained, training_flags

import tiny_exams
from llava_ultra_ext import cli
from llava_ultra_ext.arguments import ATTENTION_LAYERS, UltraSettings
from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.exam_dataset import ExamCollator, ExamDataset
from llava_ultra_ext.data.frame_scores import read_frame_scores
from llava_ultra_ext.data.manifest import load_manifest
from llava_ultra_ext.eval import score_frames
from llava_ultra_ext.eval.frame_reader import FrameReader, Teacher
from llava_ultra_ext.model.opening import open_model
from llava_ultra_ext.train.trainable import state_fingerprint
from llava_ultra_ext.vision.distillation import teacher_gap

pytestmark = pytest.mark.usefixtures("armed")


def arguments(trained: Trained, output: Path, exams: Path | None = None) -> list[str]:
    exams = exams or trained.exams
    return [
        *("--model-path", str(trained.stage1), "--model-base", str(trained.base), "--output", str(output)),
        *("--data-path", str(exams / "train.json"), "--image-folder", str(exams)),
    ]


@pytest.fixture(scope="module")
def scores_file(trained_lora: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scores") / "frame_scores.jsonl"
    assert score_frames.main(arguments(trained_lora, path)) == 0
    return path


@pytest.fixture(scope="module")
def many_exams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 exams of 2 and 3 frames."""
    return tiny_exams.make_exams(tmp_path_factory.mktemp("many"), frames_per_exam=(2, 3) * 30)


@pytest.fixture(scope="module")
def many_scores(trained_lora: Trained, many_exams: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The scores of an unbroken run of one process."""
    path = tmp_path_factory.mktemp("scores") / "many.jsonl"
    score_frames.main(arguments(trained_lora, path, many_exams))
    return dict(read_frame_scores(path).scores)


def online_scores(trained: Trained, strategy: str, layers: int | None) -> dict[str, float]:
    """Picture -> teacher score, as LLaVA's trainer meets it: ExamDataset, collator, the model's forward in training."""
    from llava.conversation import conv_templates

    opened = open_model(str(trained.stage1), str(trained.base))
    model, tokenizer = opened.model, opened.tokenizer
    model.settings.replace(adr_strategy=strategy, adr_layers=layers).to_config(model.config)
    tokenizer.pad_token, tokenizer.model_max_length = tokenizer.unk_token, 512
    exams, _ = load_manifest(trained.exams / "train.json", image_folder=str(trained.exams))
    dataset = ExamDataset(
        exams,
        tokenizer=tokenizer,
        template=conv_templates["ultra_v1_zh"],
        image_folder=str(trained.exams),
        image_processor=opened.image_processor,
        frame_tokens=model.settings.tokens,
        strategy=strategy,
    )
    met: list[torch.Tensor] = []
    ask = model._teacher_scores
    model._teacher_scores = lambda *given: met.append(ask(*given)) or met[-1]
    model.train()
    model(**ExamCollator(tokenizer.pad_token_id)([dataset[i] for i in range(len(dataset))]))
    names = [name for exam in exams for name in exam.images or ("none",)]
    return dict(zip(names, met[0].tolist(), strict=True))


@pytest.mark.parametrize(("strategy", "layers"), [("likelihood", None), ("likelihood", 2), ("attention", 2)])
def test_the_file_holds_what_training_computes_online(
    strategy: str, layers: int | None, trained_lora: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "scores.jsonl"
    more = ["--adr-strategy", strategy, *(["--adr-layers", str(layers)] if layers else []), "--gap-exams", "0"]
    score_frames.main([*arguments(trained_lora, path), *more])
    online = online_scores(trained_lora, strategy, layers)
    scores = {name: score for row in read_frame_scores(path).scores.values() for name, score in row.items()}
    assert len(scores) == 2 + 3 + 4 + 7  # exams with something to choose; not the single frames
    assert scores == pytest.approx({name: online[name] for name in scores}, abs=2e-6)
    assert len({round(score, 4) for score in scores.values()}) > 4
    assert all(math.isnan(score) for name, score in online.items() if name not in scores)


def test_header_names_the_stage1_file(scores_file: Path, trained_lora: Trained) -> None:
    header = read_frame_scores(scores_file).header
    assert header.model == state_fingerprint(torch.load(trained_lora.stage1 / "mm_projector.bin"))
    assert header.strategy == "likelihood"


# --- stage 2 ---


@pytest.fixture
def stage_2_starts(trained_lora: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Runs stage 2's checks, up to where LLaVA's `train()` would load the model: whether it gets there."""
    import llava.train.train as host

    from llava_ultra_ext.train.program import run_training

    config = dict(json.loads((trained_lora.stage1 / "config.json").read_text())["ultra_sources"])
    towers = Path(config["clip"]), Path(config["sam"])

    def start(exams: Path, scores: Path, **changes: object) -> bool:
        values = training_flags(trained_lora.base, exams, *towers, tmp_path / "unused")
        stage1 = {"pretrain_mm_mlp_adapter": trained_lora.stage1 / "mm_projector.bin", "frame_scores": scores}
        monkeypatch.setattr(sys, "argv", ["train_mem.py", *flags({**values, **stage1, **changes})])
        reached: list[bool] = []
        run_training(host, lambda attn_implementation: reached.append(True), None)
        return reached == [True]

    return start


def test_stage_2_takes_the_file(scores_file: Path, trained_lora: Trained, stage_2_starts: Callable[..., bool]) -> None:
    assert stage_2_starts(trained_lora.exams, scores_file)
    assert stage_2_starts(trained_lora.exams, scores_file, max_frames=2)


def test_stage_2_refuses_scores_of_another_model(
    scores_file: Path, trained_lora: Trained, tmp_path: Path, stage_2_starts: Callable[..., bool]
) -> None:
    other = tmp_path / "mm_projector.bin"
    state = torch.load(trained_lora.stage1 / "mm_projector.bin")
    torch.save({name: tensor + 1e-3 for name, tensor in state.items()}, other)
    with pytest.raises(ValueError, match=r"was computed for another model \(\w+, in use is \w+\). Compute it again"):
        stage_2_starts(trained_lora.exams, scores_file, pretrain_mm_mlp_adapter=other)


def test_stage_2_refuses_scores_of_another_data_set(
    scores_file: Path, many_exams: Path, stage_2_starts: Callable[..., bool]
) -> None:
    with pytest.raises(ValueError, match=r"was computed for another data \(\w+, in use is \w+\)"):
        stage_2_starts(many_exams, scores_file)


@pytest.mark.parametrize("strategy", ["likelihood", "attention"])
def test_bad_samples_are_left_out_alike(
    strategy: str, trained_lora: Trained, tmp_path: Path, stage_2_starts: Callable[..., bool]
) -> None:
    """A damaged picture, an exam without findings, and one whose findings stand in one of its two samples only."""
    exams = shutil.copytree(trained_lora.exams, tmp_path / "exams")
    records = json.loads((exams / "train.json").read_text(encoding="utf-8"))
    (exams / records[1]["image"][0]).write_bytes(b"")
    del records[2]["findings"]
    again = {**records[3], "id": "again"}
    del again["findings"]
    (exams / "train.json").write_text(json.dumps([*records, again]), encoding="utf-8")
    path = tmp_path / "scores.jsonl"
    more = ["--adr-strategy", strategy, "--gap-exams", "0"]
    with pytest.raises(ValueError, match=r"bad samples[\s\S]*is an empty file"):
        score_frames.main([*arguments(trained_lora, path, exams), *more])
    score_frames.main([*arguments(trained_lora, path, exams), *more, "--on-bad-sample", "skip"])
    assert set(read_frame_scores(path).scores) == {records[3]["exam_id"], records[4]["exam_id"]}
    assert stage_2_starts(exams, path, on_bad_sample="skip", adr_strategy=strategy)


# --- several processes, SIGKILL ---


def test_killed_in_the_middle_it_goes_on(
    trained_lora: Trained, many_exams: Path, many_scores: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "scores.jsonl"
    part = tmp_path / "scores.jsonl.part0"
    command = [sys.executable, "-m", "llava_ultra_ext.eval.score_frames", *arguments(trained_lora, path, many_exams)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not part.exists() or part.read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = [line for line in part.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 4 <= len(kept) < 61 and not path.exists()
    score_frames.main([*arguments(trained_lora, path, many_exams), "--gap-exams", "0"])
    assert read_frame_scores(path).scores == many_scores
    assert path.read_bytes().startswith(b"".join(kept))
    assert [item.name for item in tmp_path.iterdir()] == ["scores.jsonl"]


def test_two_ranks_share_the_exams(
    trained_lora: Trained, many_exams: Path, many_scores: dict[str, Any], tmp_path: Path
) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    path = tmp_path / "scores.jsonl"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    command = [*launcher, "-m", "llava_ultra_ext.eval.score_frames", *arguments(trained_lora, path, many_exams)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert read_frame_scores(path).scores == many_scores
    assert done.stderr.count("60 exams to score, 0 are there already") == 2
    assert "30/30" in done.stderr  # rank 0's bar: half of the exams
    assert [item.name for item in tmp_path.iterdir()] == ["scores.jsonl"]


def test_a_finished_file_needs_no_model(
    scores_file: Path, trained_lora: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scores_file.read_bytes()
    monkeypatch.setattr(score_frames, "open_model", None)
    assert score_frames.main(arguments(trained_lora, scores_file)) == 0
    assert scores_file.read_bytes() == before


def test_another_teachers_file_is_not_continued(scores_file: Path, trained_lora: Trained) -> None:
    for more in (["--adr-strategy", "attention"], ["--adr-layers", "1"]):
        with pytest.raises(ValueError, match="holds scores of another run"):
            score_frames.main([*arguments(trained_lora, scores_file), *more])


# --- the gap ---


def test_gap_compares_own_findings_with_another_exams(trained_lora: Trained) -> None:
    opened = open_model(str(trained_lora.stage1), str(trained_lora.base))
    reader = FrameReader(opened, Teacher("likelihood", None), str(trained_lora.exams), 512, None)
    exams = score_frames.to_score(score_frames.load_exams(*_data(trained_lora), "likelihood", "error"))[:2]
    expected = []
    for exam, other in (exams, exams[::-1]):
        h = reader.features(exam)
        own, swapped = reader.scores(exam, h, exam.findings), reader.scores(exam, h, other.findings)
        expected.append(float(teacher_gap(own, swapped, [len(exam.images)])))
    assert reader.gap(exams, 32) == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert reader.gap(exams, 32) > 0
    twins = [exams[0], Exam("x", exams[1].images, exams[1].conversations, "x", exams[0].findings)]
    assert math.isnan(reader.gap(twins, 32))


def _data(trained: Trained) -> tuple[str, str]:
    return str(trained.exams / "train.json"), str(trained.exams)


def test_the_log_says_the_gap(
    trained_lora: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    score_frames.main(arguments(trained_lora, tmp_path / "a.jsonl"))
    assert "A teacher whose gap is zero reads no text" in caplog.text and "hardly reads" not in caplog.text
    monkeypatch.setattr(FrameReader, "gap", lambda *_: 0.0)
    score_frames.main(arguments(trained_lora, tmp_path / "b.jsonl"))
    assert "teacher gap 0.000 over 4 exams" in caplog.text and "hardly reads the findings" in caplog.text


# --- flags ---


@pytest.mark.parametrize(
    ("trained_with", "given", "expected"),
    [
        (("likelihood", None), (None, None), ("likelihood", None)),
        (("likelihood", 3), (None, None), ("likelihood", 3)),
        (("attention", 2), (None, None), ("attention", 2)),
        (("attention", 2), ("likelihood", None), ("likelihood", None)),
        (("feature", None), (None, None), ("likelihood", None)),
        (("feature", None), ("attention", None), ("attention", ATTENTION_LAYERS)),
        (("likelihood", None), ("attention", 5), ("attention", 5)),
    ],
)
def test_the_teacher_is_the_models_unless_told_otherwise(
    trained_with: tuple[str, int | None], given: tuple[str | None, int | None], expected: tuple[str, int | None]
) -> None:
    settings = UltraSettings(sources={}, adr_strategy=trained_with[0], adr_layers=trained_with[1])
    assert Teacher.choose(*given, settings) == Teacher(*expected)


def test_what_is_refused_before_the_model_loads(
    trained_lora: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score_frames, "open_model", None)
    path = tmp_path / "scores.jsonl"
    with pytest.raises(ValueError, match=r"--adr-layers 0: must be 1 or more"):
        score_frames.main([*arguments(trained_lora, path), "--adr-layers", "0"])
    with pytest.raises(ValueError, match=r"is not a LLaVA-Ultra model. Give the folder of stage 1"):
        score_frames.main([*arguments(trained_lora, path), "--model-path", str(trained_lora.base)])
    single = tiny_exams.make_exams(tmp_path / "single", frames_per_exam=(1, 1))
    with pytest.raises(ValueError, match="no exam has several frames and findings: nothing to score"):
        score_frames.main(arguments(trained_lora, path, single))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(trained_lora.stage1 / "config.json", bare)
    assert cli.main(["score-frames", *arguments(trained_lora, path), "--model-path", str(bare)]) == 1
    assert "has no projector (mm_projector.bin)" in capsys.readouterr().err
    assert not list(tmp_path.glob("scores*"))
