"""Two ZeRO-3 ranks with unlike samples: no hang, and the gradients of one process over the same samples."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_ultra_ext.train import cache

STEP = Path(__file__).with_name("gradients.py")
LIMIT_S = 240


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _run(launcher: list[str], arguments: list[str], out: Path) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(STEP.parents[2])}
    command = [*launcher, str(STEP), *arguments, "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    if "--master_port" in launcher:  # gradients.py has no trainer of ours that does it
        port = launcher[launcher.index("--master_port") + 1]
        for buffer in Path("/dev/shm").glob(f"deepspeed_*_{port}_*"):
            buffer.unlink()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return torch.load(out)


def _deepspeed() -> list[str]:
    return [
        str(Path(sys.executable).with_name("deepspeed")),
        "--num_gpus",
        "2",
        "--master_port",
        str(_free_port()),
    ]


def _assert_alike(ranks: dict[str, Any], alone: dict[str, Any]) -> None:
    assert ranks["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert set(ranks["gradients"]) == set(alone["gradients"])
    assert len(alone["gradients"]) > 40
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(
            ranks["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def arguments(tiny_llama: Path, tiny_clip: Path, tiny_sam: Path, exam_folder: Path) -> Callable[[str], list[str]]:
    """Of gradients.py, for a strategy."""
    given = ["--base", str(tiny_llama), "--clip", str(tiny_clip), "--sam", str(tiny_sam), "--exams", str(exam_folder)]
    return lambda strategy: [*given, "--strategy", strategy]


@pytest.fixture(scope="module")
def alone(
    arguments: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """What one process finds, once for each strategy."""
    out = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda strategy: _run([sys.executable], arguments(strategy), out / f"{strategy}.pt"))


@pytest.mark.parametrize("strategy", ["likelihood", "attention", "feature"])
def test_unlike_ranks_give_the_gradients_of_one_process(
    strategy: str, arguments: Callable[[str], list[str]], alone: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    one = alone(strategy)
    _assert_alike(_run(_deepspeed(), arguments(strategy), tmp_path / "two.pt"), one)
    for part in ("projections.clip.weight", "projections.sam.weight", "fusion.logits", "sampler.channel_weights"):
        name = f"model.mm_projector.{part}"
        if strategy == "feature" and part == "sampler.channel_weights":
            assert (
                one["gradients"][name].abs().max() > 0
                and one["gradients"]["model.mm_projector.sampler.token_weights"].abs().max() > 0
            )
        assert one["gradients"][name].abs().max() > 1e-6, name


def test_unlike_ranks_with_a_feature_cache_give_the_gradients_of_one_process_without(
    arguments: Callable[[str], list[str]],
    alone: Callable[[str], dict[str, Any]],
    tiny_clip: Path,
    tiny_sam: Path,
    exam_folder: Path,
    tmp_path: Path,
) -> None:
    command = ["build", "--feature_cache", str(tmp_path / "features"), "--dtype", "float32"]
    command += ["--data_path", str(exam_folder / "train.json"), "--image_folder", str(exam_folder)]
    assert cache.main([*command, "--clip_tower", str(tiny_clip), "--sam_tower", str(tiny_sam)]) == 0
    cached = [*arguments("likelihood"), "--feature_cache", str(tmp_path / "features")]
    _assert_alike(_run(_deepspeed(), cached, tmp_path / "two.pt"), alone("likelihood"))
