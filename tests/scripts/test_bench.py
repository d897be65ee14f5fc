"""The benchmarks of `scripts/bench`: `--quick` runs and tells what it should, and the clock counts what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_llava import environment

from llava_ultra_ext.data.cached_frames import picture_keys
from llava_ultra_ext.train import cache
from llava_ultra_ext.vision.feature_cache import FeatureCache
from llava_ultra_ext.vision.tower import FusedVisionTower

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


def quick(name: str, folder: Path, *more: str) -> dict[str, Any]:
    """What a benchmark writes; its plot is a picture."""
    files = folder / "result.json", folder / "plot.png"
    command = [sys.executable, str(BENCH / f"{name}.py"), "--quick", "--device", "cpu", *more]
    command += ["--json", str(files[0]), "--plot", str(files[1])]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert files[1].read_bytes().startswith(b"\x89PNG") and "not judged" in done.stdout
    result: dict[str, Any] = json.loads(files[0].read_text(encoding="utf-8"))
    assert result["machine"] and result["torch"] and result["asked"]["quick"] and not result["judged"]
    return result


def test_a_training_step(tmp_path: Path) -> None:
    result = quick("train_step", tmp_path, "--dtype", "bfloat16")  # the stricter one: nothing may stay in float32
    seconds = {f"{side}_k{k}_s" for side in ("ultra", "ultra_cached") for k in (1, 4, 8, 16)}
    seconds |= {"stock_k1_s", "ultra_cached_k8_teacher_s"}
    assert seconds <= set(result) and all(0 < result[name] < 60 for name in seconds)
    assert result["cached_over_stock"] == pytest.approx(result["ultra_cached_k8_s"] / result["stock_k1_s"])
    assert result["derived"] == ["ultra_k4_s", "ultra_k16_s"] and "ultra_k8_s" in result["measured_once"]
    assert len(result["targets"]) == 3 and result["text_tokens"] > 50

    shares = result["shares"]
    for side in shares.values():
        assert sum(side.values()) == pytest.approx(1) and all(share > 0 for share in side.values())
    every = {"loading", "llm", "projections", "optimizer"}
    ours = every | {"tower", "fusion", "sampler"}
    assert set(shares["stock_k1"]) == every | {"clip"}
    assert set(shares["ultra_k8"]) == ours | {"clip", "sam"}
    assert set(shares["ultra_cached_k8"]) == ours
    assert set(shares["ultra_cached_k8_teacher"]) == ours | {"teacher"}


def test_time_to_the_first_token(tmp_path: Path) -> None:
    result = quick("answer_latency", tmp_path)
    for side in ("uncached", "cached", "caption"):
        assert all(0 < result[f"{side}_k{k}_s"] < 60 for k in (1, 2, 4, 8, 16))
    captions = [result[f"caption_k{k}_s"] for k in (1, 2, 4, 8, 16)]
    assert captions == sorted(captions)  # each counts those before
    assert result["caption_over_cached"] == pytest.approx(result["caption_k8_s"] / result["cached_k8_s"])
    assert result["derived"] == ["uncached_k2_s", "uncached_k4_s", "uncached_k16_s"]
    assert len(result["targets"]) == 2 and result["cached_k8_over_k1"] > 0


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts' own modules can be imported."""
    monkeypatch.syspath_prepend(str(BENCH))


@pytest.mark.usefixtures("bench")
class TestMeasuring:
    def test_a_part_has_the_clock_while_its_method_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import measuring

        clock = [0.0]
        monkeypatch.setattr(measuring, "now", lambda device: clock[0])

        class Work:
            def outer(self) -> None:
                clock[0] += 2
                self.inner()

            def inner(self) -> None:
                clock[0] += 4

        parts, work = measuring.Parts("cpu"), Work()
        parts.watch(work, "outer", "outer")
        parts.watch(work, "inner", lambda: "inner")
        parts.switch("rest")
        clock[0] += 1
        work.outer()
        parts.switch("")
        clock[0] += 8  # nobody's
        assert parts.take() == {"rest": 1, "outer": 2, "inner": 4} and parts.take() == {}

    def test_backward_is_told_apart_by_the_tensors_it_passes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from measuring import Parts

        parts, weight = Parts("cpu"), torch.ones(2, requires_grad=True)
        order: list[str] = []
        monkeypatch.setattr(parts, "switch", lambda part: order.append(part) or "")
        first = weight * 2
        second = first * 3
        for tensor, part in ((first, "first"), (second, "second"), (torch.ones(2), "frozen")):
            parts.in_backward(tensor, part)
        second.sum().backward()
        assert order == ["second", "first"] and weight.grad is not None and weight.grad.tolist() == [6, 6]

    def test_what_was_not_measured_is_on_the_line(self) -> None:
        from measuring import line_from

        assert line_from({"a_k1_s": 3.0, "a_k8_s": 17.0, "b_k4_s": 1.0}, "a_k", (1, 4, 8, 16)) == {
            "a_k4_s": 9.0,
            "a_k16_s": 33.0,
        }


@pytest.mark.usefixtures("bench")
def test_the_cache_of_a_benchmark_is_that_of_the_command(tiny_clip: Path, tiny_sam: Path, tmp_path: Path) -> None:
    from making import Kept, make_pictures, write_exams
    from PIL import Image

    names = make_pictures(tmp_path, 3)
    data = write_exams(tmp_path / "exams.json", [names[:1], names[1:]])
    command = ["build", "--feature_cache", str(tmp_path / "built"), "--data_path", str(data)]
    command += ["--image_folder", str(tmp_path), "--clip_tower", str(tiny_clip), "--sam_tower", str(tiny_sam)]
    assert cache.main([*command, "--device", "cpu"]) == 0
    tower = FusedVisionTower({"clip": str(tiny_clip), "sam": str(tiny_sam)}, name="bench")
    tower.load_model()
    paths = [tmp_path / name for name in names]
    pixels = tower.image_processor.preprocess([Image.open(path) for path in paths])["pixel_values"]
    kept = Kept([tower(pixels[:2]), tower(pixels[2:])])
    made, built = kept.write(tmp_path / "made", tower, list(map(str, paths))), FeatureCache(tmp_path / "built")
    assert made.header == built.header and len(made) == len(built) == 3
    keys = [str(key) for key in picture_keys(list(map(str, paths)), 1)]
    assert torch.allclose(made.read(keys).float(), built.read(keys).float(), atol=1e-3)
