"""Who may ask, and when the server refuses to start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from api_server import chat_request, code_of, running_api, user_message
from fastapi.testclient import TestClient

from llava_ultra_ext.serve.keys import ApiKeys
from llava_ultra_ext.serve.openai_api import main


def test_keys(controller: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first-key\n\n  second-key \n", encoding="utf-8")
    keys = ApiKeys.read(file, {"ULTRA_API_KEY": "third-key"})
    with running_api(controller, keys=keys) as running:
        assert running.get("/health").status_code in (200, 503)
        for key in ("first-key", "second-key", "third-key"):
            running.openai(key).models.list()
        for headers in (
            {},
            {"Authorization": "first-key"},
            {"Authorization": "Bearer first-ke"},
            {"Authorization": "Bearer"},
        ):
            for response in (running.get("/v1/models", **headers), running.post(chat_request("m"), **headers)):
                assert response.status_code == 401 and code_of(response) == "unauthorized"
            assert running.get("/metrics", **headers).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            running.openai("wrong-key").chat.completions.create(model="m", messages=[user_message()])
        counted = running.get("/metrics", Authorization="Bearer third-key").text
        assert 'code="unauthorized"' in counted


@pytest.mark.parametrize("text", ["", "\n \n", "short\n", "with blank\n", "schlüssel-lang\n"])
def test_a_file_of_keys_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as refused:
        ApiKeys.read(file, {})
    assert not text.strip() or text.strip() not in str(refused.value)
    with pytest.raises(ValueError, match="cannot be read"):
        ApiKeys.read(tmp_path / "none", {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5", "example.org", ""])
def test_other_machines_are_not_let_in_without_a_key(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ULTRA_API_KEY", raising=False)
    monkeypatch.setattr(uvicorn, "run", lambda *args, **kwargs: pytest.fail("it started"))
    assert main(["--host", host]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--api-keys-file" in line and "127.0.0.1" in line


def test_with_a_key_or_on_this_machine_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: list[str] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, host, **kwargs: hosts.append(host))
    monkeypatch.delenv("ULTRA_API_KEY", raising=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        assert main(["--host", host]) == 0
    monkeypatch.setenv("ULTRA_API_KEY", "0123456789abcdef")
    assert main(["--host", "0.0.0.0"]) == 0
    assert hosts == ["127.0.0.1", "localhost", "::1", "0.0.0.0"]
    for wrong in (["--conv-mode", "none"], ["--allow-url", "file:///"], ["--api-keys-file", "/nowhere/keys"]):
        assert main(wrong) == 2


@pytest.mark.parametrize(
    ("name", "status"),
    [("127.0.0.1:8000", 503), ("localhost", 503), ("evil.example", 400), ("127.0.0.1.evil.example", 400)],
)
def test_without_keys_no_page_of_another_name_is_answered(
    name: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    apps: list[Any] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **kwargs: apps.append(app))
    monkeypatch.delenv("ULTRA_API_KEY", raising=False)
    assert main(["--controller-address", "http://127.0.0.1:9"]) == 0
    with TestClient(apps[0]) as client:
        assert client.get("/health", headers={"Host": name}).status_code == status
    monkeypatch.setenv("ULTRA_API_KEY", "0123456789abcdef")
    assert main(["--controller-address", "http://127.0.0.1:9"]) == 0
    with TestClient(apps[1]) as client:  # who has a key may stand behind a proxy with a name of its own
        assert client.get("/health", headers={"Host": name}).status_code == 503
