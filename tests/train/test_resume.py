"""``kill -9`` in the middle of stage 2: the run goes on with the losses of the unbroken one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from run_llava import environment, flags
from trained import training_flags

HERE = Path(__file__).resolve().parent
ZERO3 = HERE.parents[1] / "scripts" / "zero3.json"
STEPS, SAVED = 24, 18
"""The second checkpoint lies in the third epoch of seven samples, where the order of two past epochs is replayed."""
LIMIT_S = 300
SHARED = Path("/dev/shm")


def _command(launcher: str, values: dict[str, object]) -> list[str]:
    script = str(HERE / "armed_train_mem.py")
    if launcher == "python":
        return [sys.executable, script, *flags(values)]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    return [deepspeed, "--num_gpus", "2", "--master_port", port, script, *flags(values), "--deepspeed", str(ZERO3)]


def _losses(folder: Path) -> list[tuple[int, float]]:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [(entry["step"], entry["loss"]) for entry in state["log_history"] if "loss" in entry]


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def _run_and_kill(command: list[str], folder: Path) -> None:
    """Start, wait for a checkpoint in the middle, then SIGKILL the launcher and all of its children at once."""
    log = folder.with_suffix(".log")
    with open(log, "w", encoding="utf-8") as output:
        run = subprocess.Popen(command, env=environment(), stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + LIMIT_S
        while not (folder / f"checkpoint-{SAVED}").is_dir():
            assert run.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        for process in family:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        run.wait(timeout=30)
    assert not (folder / "trainer_state.json").exists(), "the run was over before it could be killed"


@pytest.mark.parametrize(
    "launcher, stage",
    [("deepspeed", "lora"), ("python", "lora"), ("python", "stage1"), ("deepspeed", "stage1")],
)
def test_a_killed_run_goes_on_with_the_same_losses(
    launcher: str, stage: str, tiny_llama: Path, exam_folder: Path, tiny_clip: Path, tiny_sam: Path, tmp_path: Path
) -> None:
    def values(name: str) -> dict[str, object]:
        own: dict[str, object] = {"tune_mm_mlp_adapter": True}
        if stage == "lora":
            own = {"lora_enable": True, "lora_r": 4, "mm_projector_lr": 1e-3}
        return {
            **training_flags(tiny_llama, exam_folder, tiny_clip, tiny_sam, tmp_path / name),
            "version": "ultra_v1_zh",
            "max_steps": STEPS,
            "save_strategy": "steps",
            "save_steps": 6,
            "logging_steps": 1,
            "per_device_train_batch_size": 1,
            "gradient_checkpointing": True,
            "lr_scheduler_type": "cosine",
            **own,
        }

    whole, broken = tmp_path / "whole-llava-lora", tmp_path / "broken-llava-lora"
    _run(_command(launcher, values(whole.name)), whole)
    killed = _command(launcher, values(broken.name))
    _run_and_kill(killed, broken)
    _run(_command(launcher, values(broken.name)), broken)

    assert [step for step, _ in _losses(whole)] == list(range(1, STEPS + 1))
    assert _losses(broken) == _losses(whole)
    name = "non_lora_trainables.bin" if stage == "lora" else "mm_projector.bin"
    for folder in ("", f"checkpoint-{SAVED}", f"checkpoint-{STEPS}"):
        one, other = (torch.load(run / folder / name) for run in (whole, broken))
        assert any("fusion.logits" in key for key in one) and any("sampler" in key for key in one)
        assert set(one) == set(other)
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)
    assert not list(broken.glob("tmp-checkpoint-*"))
    if launcher == "deepspeed":
        port = killed[killed.index("--master_port") + 1]
        assert not list(SHARED.glob(f"deepspeed_*_{port}_*")), "a killed run holds memory that no process uses"
