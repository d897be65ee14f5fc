"""A run whose disk fills while its second checkpoint is written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exam_case import Case, Flags


class TestFullDisk:
    """A run whose disk fills while its second checkpoint is written."""

    @pytest.mark.parametrize("fails_at", ["mm_projector.bin", "optimizer.pt"])
    def test_it_says_so_and_the_checkpoint_before_stays_whole(
        self,
        host: Any,
        case: Case,
        command_line: Callable[[Flags], None],
        monkeypatch: pytest.MonkeyPatch,
        fails_at: str,
    ) -> None:
        out = Path(case.flags["output_dir"])
        save, before = torch.save, {}

        def full(tensors: Any, target: Any, *args: Any, **kwargs: Any) -> None:
            name = str(target) if isinstance(target, Path) else str(getattr(target, "name", target))
            if "checkpoint-2" in name and fails_at in name:
                before.update(contents(out / "checkpoint-1"))
                Path(name).write_bytes(b"half a file")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(tensors, target, *args, **kwargs)

        command_line(case.flags)
        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"No space left in .* for checkpoint-2") as error:
            host.train()
        assert error.value.errno == errno.ENOSPC
        message = str(error.value)
        assert f"Last whole checkpoint: {out / 'checkpoint-1'}" in message and "run the same command again" in message
        assert {path.name for path in out.iterdir() if "checkpoint" in path.name} == {"checkpoint-1"}
        assert before and contents(out / "checkpoint-1") == before
        monkeypatch.undo()
        command_line(case.flags)
        host.train()
        assert (out / "checkpoint-2").is_dir() and (out / "mm_projector.bin").is_file()
        assert len(json.loads((out / "trainer_state.json").read_text())["log_history"]) == 3


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("stage", [1, 2])
def test_a_disk_that_is_really_full(
    host: Any, case: Case, command_line: Callable[[Flags], None], small_disk: Callable[[int], Path], stage: int
) -> None:
    lora = {"tune_mm_mlp_adapter": None, "lora_enable": True, "lora_r": 4, "version": "ultra_v1_zh"}
    given = {**case.flags, **(lora if stage == 2 else {})}
    command_line({**given, "max_steps": 1})
    host.train()
    first = Path(given["output_dir"]) / "checkpoint-1"
    size = sum(path.stat().st_size // 1024 + 4 for path in first.iterdir())
    out = small_disk(size + size // 2) / "out"
    command_line({**given, "output_dir": out})
    with pytest.raises(OSError, match=r"No space left in .* for checkpoint-2; the unfinished one was removed"):
        host.train()
    assert [path.name for path in out.iterdir() if "checkpoint" in path.name] == ["checkpoint-1"]
    whole, kept = contents(first), contents(out / "checkpoint-1")
    assert set(kept) == set(whole)
    assert all(len(kept[name]) == len(whole[name]) for name in whole if name != "trainer_state.json")
