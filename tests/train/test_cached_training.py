"""Training with ``--feature_cache`` through LLaVA's own ``train()``: the losses and choices of training without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exam_case import EXAM, Case, Flags
from PIL import Image

from llava_ultra_ext.model import ultra_arch
from llava_ultra_ext.train import cache
from llava_ultra_ext.vision.sampler import Selection
from llava_ultra_ext.vision.tower import FusedVisionTower

STEPS = 4
ROUNDED = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.5e-2, "int8": 3e-2}
"""Largest relative difference of L_adr, which compares the frames' scores with one another; measured here: 0, 9e-4,
7e-3, 1.6e-2. The language model's loss differs by less than 4e-6 in all of them."""

LORA = {"tune_mm_mlp_adapter": None, "lora_enable": True, "lora_r": 4, "mm_projector_lr": 1e-3}


def build(case: Case, folder: Path, **changes: Any) -> Path:
    names = ("data_path", "image_folder", "clip_tower", "sam_tower", "mm_vision_select_layer")
    values = {**{name: case.flags[name] for name in names}, "feature_cache": folder, "dtype": "float32", **changes}
    assert cache.main(["build", *(part for name, value in values.items() for part in (f"--{name}", str(value)))]) == 0
    return folder


@pytest.fixture
def trained(
    host: Any, command_line: Callable[[Flags], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[list[dict[str, float]], list[list[int]]]]:
    """Runs a training; the numbers that it logs at each step, and the frames that it chose in each batch."""
    select = ultra_arch.select_frames

    def run(given: Flags) -> tuple[list[dict[str, float]], list[list[int]]]:
        chosen: list[list[int]] = []

        def seen(*args: Any, **kwargs: Any) -> Selection:
            selection = select(*args, **kwargs)
            chosen.append(selection.index.flatten().tolist())
            return selection

        monkeypatch.setattr(ultra_arch, "select_frames", seen)
        out = tmp_path / ("cached" if given.get("feature_cache") else "uncached")
        command_line({"adr_warmup": 0, **given, "output_dir": out, "max_steps": STEPS, "save_steps": 100})
        host.train()
        history = json.loads((out / "trainer_state.json").read_text())["log_history"]
        shutil.rmtree(out)
        names = ("lm_loss", "adr_loss", "alpha")  # `loss` is rounded to four places
        return [{name: step[name] for name in names} for step in history if "loss" in step], chosen

    return run


def assert_like(cached: list[dict[str, float]], uncached: list[dict[str, float]], tolerance: float) -> None:
    assert len(cached) == STEPS
    for one, other in zip(cached, uncached, strict=True):
        assert one["adr_loss"] == pytest.approx(other["adr_loss"], rel=tolerance, abs=2e-6)
        for name in ("lm_loss", "alpha"):
            assert one[name] == pytest.approx(other[name], rel=1e-5)


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on no encoder may run."""
    return lambda: monkeypatch.setattr(FusedVisionTower, "_encode", lambda *_: pytest.fail("an encoder ran"))


def test_losses_and_choices_are_those_without_the_cache(
    case: Case, trained: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, chosen = trained(case.flags)
    assert len({step["lm_loss"] for step in losses}) == STEPS
    assert len({frame for batch in chosen for frame in batch}) > 3, "one choice for ever would hide most faults"
    folders = {dtype: build(case, tmp_path / dtype, dtype=dtype) for dtype in ROUNDED}
    monkeypatch.setattr(FusedVisionTower, "load_model", lambda *_: pytest.fail("weights were read"))
    for dtype, tolerance in ROUNDED.items():
        cached_losses, cached_chosen = trained({**case.flags, "feature_cache": folders[dtype]})
        assert_like(cached_losses, losses, tolerance)
        assert cached_chosen == chosen


def test_lora_with_the_feature_score(
    case: Case, trained: Callable[..., Any], tmp_path: Path, no_encoder: Callable[[], None]
) -> None:
    given = {**case.flags, **LORA, "adr_strategy": "feature"}
    losses, chosen = trained(given)
    folder = build(case, tmp_path / "features")
    no_encoder()
    cached_losses, cached_chosen = trained({**given, "feature_cache": folder})
    assert_like(cached_losses, losses, ROUNDED["float32"])
    assert cached_chosen == chosen


def test_a_trained_neck_learns_from_the_cache(
    case: Case, trained: Callable[..., Any], tmp_path: Path, no_encoder: Callable[[], None]
) -> None:
    """It starts from SAM's own, so the weights are read once, and let go."""
    given = {**case.flags, "sam_trainable": "neck"}
    losses, chosen = trained(given)
    frozen, _ = trained(case.flags)
    assert frozen[-1]["lm_loss"] != pytest.approx(losses[-1]["lm_loss"], rel=1e-5), "a neck that learns is felt"
    folder = build(case, tmp_path / "features", sam_trainable="neck")
    no_encoder()
    unloaded: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        unload = FusedVisionTower.unload
        patch.setattr(FusedVisionTower, "unload", lambda tower: unloaded.append(tower.is_loaded) or unload(tower))
        cached_losses, cached_chosen = trained({**given, "feature_cache": folder})
    assert_like(cached_losses, losses, ROUNDED["float32"])
    assert cached_chosen == chosen and unloaded == [True]


class TestRefused:
    """Before a model or an encoder loads."""

    def test_a_changed_picture(self, case: Case, refused: Callable[[Flags], str], tmp_path: Path) -> None:
        folder = build(case, tmp_path / "features")
        Image.new("RGB", (64, 48), (90, 20, 20)).save(case.picture())
        told = refused({**case.flags, "feature_cache": folder})
        assert f"--feature_cache {folder}: 1 of 18 pictures are not in it" in told
        assert "run `llava-ultra cache build` again with the flags of the first time" in told

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"sam_image_size": 192}, "sam image_size: 128 in the cache, 192 now"),
            ({"sam_token_merge": "pool"}, "sam sam_token_merge: unshuffle in the cache, pool now"),
            ({"sam_trainable": "neck"}, "sam sam_trainable: none in the cache, neck now"),
            ({"mm_vision_select_layer": -1}, "clip clip_select_layer: -2 in the cache, -1 now"),
        ],
    )
    def test_other_encoders(
        self, case: Case, refused: Callable[[Flags], str], tmp_path: Path, changes: Flags, named: str
    ) -> None:
        folder = build(case, tmp_path / "features")
        told = refused({**case.flags, "feature_cache": folder, **changes})
        assert f"--feature_cache {folder}: holds features of other encoders or settings (" in told and named in told

    def test_other_weights(self, case: Case, refused: Callable[[Flags], str], tmp_path: Path) -> None:
        folder = build(case, tmp_path / "features")
        clip = shutil.copytree(case.flags["clip_tower"], tmp_path / "clip")
        content = bytearray((clip / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (clip / "model.safetensors").write_bytes(content)
        assert "clip weights: " in refused({**case.flags, "clip_tower": clip, "feature_cache": folder})

    def test_no_cache(self, case: Case, refused: Callable[[Flags], str], tmp_path: Path) -> None:
        told = refused({**case.flags, "feature_cache": tmp_path / "nowhere"})
        assert "is no feature cache (no readable cache.json). Build one: llava-ultra cache build." in told


def test_a_picture_that_changes_during_the_run_stops_it(
    host: Any, case: Case, command_line: Callable[[Flags], None], tmp_path: Path
) -> None:
    from llava_ultra_ext.data.cached_frames import NotCached, check_all_cached
    from llava_ultra_ext.train import program

    folder = build(case, tmp_path / "features")

    def then_change(*given: Any) -> None:
        check_all_cached(*given)
        case.picture().write_bytes(case.picture(2).read_bytes())  # in the cache, so only its own key can tell
        case.picture(2).write_bytes(b"no picture")

    command_line({**case.flags, "feature_cache": folder, "max_steps": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "check_all_cached", then_change)
        told = rf"sample {case.records[EXAM]['id']}: picture 3 of 4 is not in .*, it was added or changed after"
        with pytest.raises(NotCached, match=told):
            host.train()
