"""Runs LLaVA's programs with the plugin armed by hand: tests work whether the environment has it enabled or not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_ARMED = """
import runpy, sys
from llava_ultra_ext.activate import arm
arm()
program, *sys.argv = sys.argv[1:]
sys.argv.insert(0, program)
if program.endswith(".py"):
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


def train_mem() -> str:
    """LLaVA's own training script."""
    spec = importlib.util.find_spec("llava")
    assert spec is not None and spec.submodule_search_locations
    return str(Path(next(iter(spec.submodule_search_locations))) / "train" / "train_mem.py")


def armed_command(program: str, *arguments: object) -> list[str]:
    """The command line of a script (`….py`) or module, armed."""
    return [sys.executable, "-c", _ARMED, program, *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """For a child process: offline, one thread, the project importable."""
    kept = {name: value for name, value in os.environ.items() if name not in ("ULTRA_EXT", "RANK", "WORLD_SIZE")}
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]),
    }
    return {**kept, **fixed, **changes}


def run_llava(
    program: str, *arguments: object, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run one of LLaVA's programs to its end; its output is in the assertion where it fails."""
    command = armed_command(program, *arguments)
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{program} {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
    return done


def flags(values: dict[str, object]) -> Sequence[str]:
    """`{"lora_r": 8}` as `--lora_r 8`."""
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]
