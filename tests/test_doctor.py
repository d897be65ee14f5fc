"""`llava-ultra doctor` is right in four cases: enabled, disabled, patch applied, unknown LLaVA."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from llava_ultra_ext import activate, cli, llava_seams
from llava_ultra_ext.doctor import Report, describe, examine

INSTALLED = llava_seams.llava_folder()
pytestmark = pytest.mark.skipif(INSTALLED is None, reason="no llava package in this environment")
PATCH = Path(__file__).resolve().parents[1] / "patches" / "llava_init.patch"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages folder of its own with a copy of LLaVA; nothing is enabled or patched in it."""
    assert INSTALLED is not None
    folder = tmp_path / "llava"
    shutil.copytree(INSTALLED, folder, ignore=shutil.ignore_patterns("__pycache__", "examples"))
    init = folder / "__init__.py"
    init.write_text("from .model import LlavaLlamaForCausalLM\n", encoding="utf-8")
    monkeypatch.setattr(activate, "pth_path", lambda: tmp_path / activate.PTH_NAME)
    monkeypatch.setattr(llava_seams, "llava_folder", lambda: folder if folder.is_dir() else None)
    monkeypatch.delenv("ULTRA_EXT", raising=False)
    return tmp_path


def patch(folder: Path) -> None:
    lines = PATCH.read_text(encoding="utf-8").splitlines()
    added = [line[1:] for line in lines if line.startswith("+") and not line.startswith("+++")]
    init = folder / "__init__.py"
    init.write_text("\n".join(added) + "\n" + init.read_text(encoding="utf-8"), encoding="utf-8")


def verdict(report: Report) -> str:
    return describe(report).splitlines()[-1]


def test_disabled(environment: Path) -> None:
    report = examine()
    assert (report.state, report.ready, report.problems) == ("disabled", False, [])
    assert report.known_as in llava_seams.KNOWN_STATES.values()
    assert verdict(report) == "doctor: LLaVA is stock; run `llava-ultra enable` to switch LLaVA-Ultra on"


def test_enabled(environment: Path) -> None:
    activate.enable()
    report = examine()
    assert (report.state, report.ready) == ("enabled", True)
    text = describe(report)
    assert "[DIFFERS]" not in text and text.count("[fits]") == len(llava_seams.SEAMS)
    assert verdict(report) == "doctor: ready: --vision_tower sam_clip_fused works in this environment"


def test_patch_applied_alone_and_beside_the_line(environment: Path) -> None:
    patch(environment / "llava")
    report = examine()
    assert (report.state, report.ready) == ("patched", True)
    activate.enable()
    assert examine().state == "enabled and patched"
    assert examine().ready
    activate.disable()
    assert examine().state == "patched"


def test_unknown_llava_names_the_seam(environment: Path) -> None:
    activate.enable()
    path = environment / "llava" / "train" / "train.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"def train\(attn_implementation", "def train(kernel", text), encoding="utf-8")
    report = examine()
    assert not report.ready and report.known_as == ""
    text = describe(report)
    assert "[DIFFERS] llava.train.train:train" in text
    assert "problem: llava.train.train:train: expected parameters ('attn_implementation',), found ('kernel',)" in text
    assert text.count("[DIFFERS]") == 1
    assert verdict(report).startswith("doctor: this LLaVA is unknown: nothing of it is changed")


def test_switched_off_for_one_run(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activate.enable()
    monkeypatch.setenv("ULTRA_EXT", "off")
    report = examine()
    assert (report.state, report.ready) == ("off (ULTRA_EXT=off)", False)
    assert "ULTRA_EXT=off" in verdict(report), "running `llava-ultra enable` again would not help"


def test_no_llava(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(environment / "llava")
    report = examine()
    assert not report.ready
    assert verdict(report).startswith("doctor: no LLaVA here")
    assert cli.main(["doctor"]) == 1


def test_the_command_prints_the_report_and_its_status(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.startswith("llava_ultra_ext: disabled\n")
    assert cli.main(["enable"]) == 0
    assert cli.main(["doctor"]) == 0
    assert "llava_ultra_ext: enabled\n" in capsys.readouterr().out
    (environment / "llava" / "train" / "train.py").unlink()
    assert cli.main(["doctor"]) == 1
    assert "train.py does not exist" in capsys.readouterr().out


def test_every_command_of_the_table_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    usage = capsys.readouterr().out
    assert all(name in usage for name in cli.COMMANDS)
    assert cli.main(["enabel"]) == 2
    assert "no command 'enabel'" in capsys.readouterr().err
