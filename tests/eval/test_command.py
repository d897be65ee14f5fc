"""The commands as a shell sees them: Ctrl-C, and terminals that cannot show a name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from eval_files import answer_line, gold_line, write_lines
from interrupts import hear_ctrl_c

from llava_ultra_ext import cli
from llava_ultra_ext.data import importing

COMMAND = [sys.executable, "-m", "llava_ultra_ext.cli"]


@pytest.mark.parametrize(
    ("command", "kept"),
    [("import", "nothing was written; an earlier import stays as it was"), ("doctor", "")],
)
def test_an_interrupted_command_says_what_is_kept(
    command: str, kept: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, "main", interrupted)
    monkeypatch.setattr(cli, "doctor", interrupted)
    monkeypatch.setitem(sys.modules, "llava_ultra_ext.cli", cli)
    assert cli.main([command]) == 130
    assert capsys.readouterr().err == f"llava-ultra {command}: interrupted{f'; {kept}' if kept else ''}.\n"


def test_ctrl_c_while_scores_are_computed(tmp_path: Path) -> None:
    """With processes for the tokenizers, which hear it too: 3000 open questions, so that there is time."""
    gold = write_lines(tmp_path / "g.jsonl", [gold_line(number, f"左肺结节{number}" * 20) for number in range(3000)])
    pred = write_lines(tmp_path / "p.jsonl", [answer_line(number, f"右肺囊肿{number}" * 20) for number in range(3000)])
    command = [*COMMAND, "score", "--gold", str(gold), "--pred", str(pred), "--json", str(tmp_path / "s.json")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=hear_ctrl_c
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not children.read_text().strip():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130 and out == b"" and b"Traceback" not in said
    assert said.decode().rstrip().endswith("llava-ultra score: interrupted; no scores were written.")
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_names_that_a_terminal_cannot_show_are_no_reason_to_fail(encoding: str, tmp_path: Path) -> None:
    golds = [gold_line(number, "肺", modality=f"超声\ud83d{number}") for number in (1, 2)]
    files = {"g.jsonl": golds, "p.jsonl": [answer_line(number, "肺", "模型\ud83d") for number in (1, 2)]}
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="ascii")
    command = [*COMMAND, "score", "--gold", "g.jsonl", "--pred", "p.jsonl", "--resamples", "0"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    shown = "模型\\ud83d" if encoding == "utf-8" else "\\u6a21\\u578b\\ud83d"
    assert shown in done.stdout.decode("utf-8")
