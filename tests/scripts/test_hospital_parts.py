"""What the script refuses; that it starts Orthanc and stops it again is seen by tests/data/pacs."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "hospital_parts.sh"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True)


def test_without_a_command_it_says_how() -> None:
    answer = run()
    assert answer.returncode == 2 and "start FOLDER" in answer.stdout


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    for command in ("start", "stop"):
        answer = run(command, tmp_path)
        assert answer.returncode == 1 and str(tmp_path) in answer.stderr
    assert (tmp_path / "mine").read_text() == "x"
