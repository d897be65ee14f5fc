"""A chat model behind a real server with faults: retries, refusals, budget, cache, kill -9."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from instruct_case import exam, instruct, lines, listed, manifest

from llava_ultra_ext.data.instructions.command import main

HERE = Path(__file__).parent


@contextmanager
def served(folder: Path, plan: list[str], delay_s: float = 0.0) -> Iterator[str]:
    (folder / "plan.json").write_text(json.dumps(plan))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE / "chat_server.py"), str(port), str(folder / "plan.json"), str(delay_s)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            try:
                httpx.get(f"{url}/seen", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def flags(url: str, *more: str) -> list[str]:
    given = ["--writer", "chat", "--base-url", f"{url}/v1", "--model", "m", "--first-wait-s", "0.05"]
    return [*given, "--workers", "1", "--timeout-s", "2", *more]


def seen(url: str) -> dict[str, Any]:
    return httpx.get(f"{url}/seen", trust_env=False).json()


def test_faults_of_the_server_are_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k-123")
    plan = ["429", "500", "cut", "html", "slow", "", "429-date"]
    with served(tmp_path, plan) as url:
        start = time.monotonic()
        card = instruct(tmp_path, [exam(0), exam(1)], *flags(url))
        told = seen(url)
    assert card["written_by"] == {"chat": 2} and card["refused"] == {}
    assert told["requests"] == 8 and set(told["keys"]) == {"Bearer k-123"}
    assert time.monotonic() - start > 2.3  # Retry-After and the slow answer's time-out
    assert all(b"k-123" not in path.read_bytes() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("fault", "reason", "claim"),
    [("not-json", "schema", ""), ("wrong-schema", "schema", ""), ("length", "cut_off", ""), ("invented", "word", "癌")],
)
def test_a_bad_answer_is_listed_and_replaced(tmp_path: Path, fault: str, reason: str, claim: str) -> None:
    with served(tmp_path, [fault, fault, fault]) as url:
        card = instruct(tmp_path, [exam(0), exam(1)], *flags(url))
        assert seen(url)["requests"] == 4
        again = instruct(tmp_path, [exam(0), exam(1)], *flags(url))
        assert seen(url)["requests"] == 4  # refused answers are in the cache too
    refused = {"exam_id": "US-00000", "reason": reason, "claim": claim}
    assert lines(tmp_path / "out" / "refused.jsonl") == [refused, refused, {**refused, "exam_id": "US-00001"}]
    assert card == again and card["written_by"] == {"template": 1, "chat": 1}
    assert [one["exam_id"] for one in listed(tmp_path / "out" / "stage2.json")] == ["US-00000", "US-00001"]
    assert "癌" not in (tmp_path / "out" / "stage2.json").read_text(encoding="utf-8")


def test_a_refused_request_and_a_failing_one_cost_one_exam(tmp_path: Path) -> None:
    with served(tmp_path, ["400", "500", "500"]) as url:
        card = instruct(tmp_path, [exam(number) for number in range(3)], *flags(url, "--attempts", "2"))
    assert card["refused"] == {"refused_by_server": 1, "server_failed": 1} and card["written_by"]["chat"] == 1


def test_a_wrong_key_or_a_dead_server_ends_the_run(tmp_path: Path) -> None:
    with served(tmp_path, ["401"]) as url, pytest.raises(RuntimeError, match="answers HTTP 401"):
        instruct(tmp_path, [exam(0)], *flags(url))
    with pytest.raises(RuntimeError, match="failed at every attempt for 5 exams in a row"):
        instruct(tmp_path, [exam(number) for number in range(9)], *flags(url, "--attempts", "1"))
    assert not (tmp_path / "out" / "stage1.json").exists()


def test_budget(tmp_path: Path) -> None:
    with served(tmp_path, []) as url:
        first = instruct(tmp_path, [exam(number) for number in range(30)], *flags(url, "--token-budget", "4000"))
        asked = seen(url)["requests"]
        second = instruct(tmp_path, [exam(number) for number in range(30)], *flags(url, "--token-budget", "4000"))
        assert seen(url)["requests"] == asked  # an earlier run's tokens count
    assert 0 < first["written_by"]["chat"] == asked < 30 and first["refused"] == {"budget": 30 - asked}
    assert second == first


def test_pace(tmp_path: Path) -> None:
    with served(tmp_path, []) as url:
        start = time.monotonic()
        instruct(tmp_path, [exam(number) for number in range(4)], *flags(url, "--requests-per-minute", "120"))
    assert time.monotonic() - start > 1.4


def test_another_machine_needs_leave(tmp_path: Path) -> None:
    for address in ("http://10.0.0.7/v1", "https://api.example.com/v1", "nothing"):
        with pytest.raises(ValueError, match="is another machine"):
            instruct(tmp_path, [exam(0)], "--writer", "chat", "--base-url", address, "--model", "m")
    with pytest.raises(ValueError, match="needs --base-url"):
        instruct(tmp_path, [exam(0)], "--writer", "chat")


def test_kill_and_go_on(tmp_path: Path) -> None:
    """After kill -9 no file is there in part, no answer is asked for twice, and the end is the same."""
    records = [exam(number) for number in range(40)]
    path = manifest(tmp_path, records)
    with served(tmp_path, [], delay_s=0.02) as url:
        command = [sys.executable, "-m", "llava_ultra_ext.cli", "instruct", str(path), "--out", str(tmp_path / "out")]
        for _ in range(2):
            before = seen(url)["requests"]
            process = subprocess.Popen([*command, *flags(url, "--workers", "3")], stdout=subprocess.DEVNULL)
            while seen(url)["requests"] < before + 8:
                assert process.poll() is None
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert not (tmp_path / "out" / "stage1.json").exists()
        assert main([str(path), "--out", str(tmp_path / "out"), *flags(url, "--workers", "3")]) == 0
        assert 40 <= seen(url)["requests"] <= 40 + 2 * 3  # at most what was on its way at each kill
        whole = tmp_path / "whole"
        assert main([str(path), "--out", str(whole), *flags(url, "--workers", "2")]) == 0
    for name in ("stage1.json", "stage2.json", "instruct.json", "refused.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert [one["exam_id"] for one in listed(whole / "stage2.json")] == [one["exam_id"] for one in records]
