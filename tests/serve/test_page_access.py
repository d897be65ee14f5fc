"""What the page lets in: whole uploads, this host's own scripts, those who know the password; nothing else."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page is made with Gradio")

import httpx
from fastapi import FastAPI
from fastapi.testclient import TestClient

from llava_ultra_ext.serve import web
from llava_ultra_ext.serve.errors import CODES
from llava_ultra_ext.serve.exam_pictures import open_exam
from llava_ultra_ext.serve.keys import hosts_of
from llava_ultra_ext.serve.page import routes
from llava_ultra_ext.serve.page.examples import Example
from llava_ultra_ext.serve.page.guard import Guard
from llava_ultra_ext.serve.page.store import ExamStore

LOOPBACK = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def app() -> Any:
    return web.create_app("http://127.0.0.1:9")


@pytest.fixture
def page(app: Any) -> Iterator[TestClient]:
    with TestClient(app, base_url=LOOPBACK) as client:
        yield client


def upload(client: TestClient, *files: bytes, **headers: str) -> Any:
    sizes = {"X-Sizes": ",".join(str(len(file)) for file in files)}
    return client.post("/exam", content=b"".join(files), headers={**sizes, **headers})


def png(value: int = 90) -> bytes:
    out = io.BytesIO()
    Image.new("L", (640, 480), value).save(out, "PNG")
    return out.getvalue()


def test_an_upload_gives_frames_as_data_urls(page: TestClient) -> None:
    answer = upload(page, png(10), png(200))
    assert answer.status_code == 200
    exam = answer.json()
    assert [frame["label"] for frame in exam["frames"]] == ["1", "2"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(one["url"].partition(",")[2]))) for one in exam["frames"]]
    assert [picture.getpixel((5, 5)) for picture in pictures] == [10, 200]
    assert "请确认不含姓名" in exam["notes"][0]
    assert page.post(f"/exam/drop/{exam['exam']}").status_code == 204


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({}, b"", "bad_request"),
        ({"X-Sizes": "10"}, b"123", "bad_request"),
        ({"X-Sizes": "1,x"}, b"123", "bad_request"),
        ({"X-Sizes": "-1"}, b"", "bad_request"),
        ({"X-Sizes": "99999999999"}, b"", "request_too_large"),
        ({"X-Sizes": ",".join(["1"] * 3000)}, b"1" * 3000, "too_many_frames"),
        ({"X-Sizes": "5"}, b"hello", "bad_picture"),
    ],
)
def test_a_wrong_upload_is_refused_in_words(page: TestClient, headers: Any, body: bytes, code: str) -> None:
    answer = page.post("/exam", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (CODES[code], code)
    assert any("\u4e00" <= letter <= "\u9fff" for letter in answer.json()["message"])


def test_gradios_doors_to_the_disk_and_to_other_hosts_are_shut(page: TestClient) -> None:
    files = {"files": ("a.png", png(), "image/png")}
    assert page.post("/gradio_api/upload", files=files).status_code == 404
    for path in ("file=/etc/passwd", "file/etc/passwd", "proxy=http://example.com", "deep_link?session_hash=a"):
        assert page.get(f"/gradio_api/{path}").status_code == 404
    for path in ("/monitoring", "/docs", "/openapi.json", "/page/../web.py", "/page/layout.py", "/login"):
        assert page.get(path).status_code == 404
    assert page.get("/").status_code == page.get("/page/page.js").status_code == 200


FILE = '{"path": "http://127.0.0.1:9/x.png", "meta": {"_type": "gradio.FileData"}}'


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (FILE, 400),
        (FILE.replace("path", "\\u0070ath"), 400),
        (FILE.replace("path", "url"), 400),
        ('[{"a": [' + FILE + "]}]", 400),
        ("[" * 100 + "]" * 100, 400),
        ("[" * 100_000 + "]" * 100_000, 400),
        ("{" * 5000, 400),
        ("9" * 5000, 400),
        ('"' + "x" * 2**20 + '"', 413),
        ('"请描述。", null, 0.2, true, {"a": "path"}', 200),
    ],
)
@pytest.mark.parametrize("route", ["queue/join", "run/predict"])
def test_events_carry_no_file(data: str, status: int, route: str) -> None:
    """Gradio would download it into its temporary folder."""
    seen = []

    async def inner(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        seen.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})

    client = TestClient(Guard(inner), base_url=LOOPBACK)
    body = f'{{"data": [{data}], "fn_index": 1}}'.encode()
    answer = client.post(f"/gradio_api/{route}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert [one["body"] for one in seen] == ([body] if status == 200 else [])
    if status != 200:
        assert any("\u4e00" <= letter <= "\u9fff" for letter in answer.text)


def test_gradio_itself_gets_no_file(page: TestClient) -> None:
    body = f'{{"data": [{FILE}], "fn_index": 0, "session_hash": "x"}}'
    for route in ("queue/join", "run/predict"):
        answer = page.post(f"/gradio_api/{route}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and "no file" in answer.text


def test_parallel_guesses_pause_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pausing, most = [0], [0]

    async def pause(seconds: float) -> None:
        pausing[0] += 1
        most[0] = max(most[0], pausing[0])
        for _ in range(5):
            await real(0)
        pausing[0] -= 1

    real = asyncio.sleep
    monkeypatch.setattr("llava_ultra_ext.serve.page.guard.asyncio.sleep", pause)
    guard = Guard(FastAPI(), "a long password")

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url=LOOPBACK) as client:
            answers = await asyncio.gather(*(client.get("/", auth=("u", str(guess))) for guess in range(5)))
        return [one.status_code for one in answers]

    assert asyncio.run(run()) == [401] * 5
    assert most == [1]


def test_examples_wait_their_turn_and_count_as_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read only when the one before it is open."""
    held, most = [0], [0]

    def files() -> list[bytes]:
        held[0] += 1
        most[0] = max(most[0], held[0])
        return [png()]

    def opened(*given: Any, **more: Any) -> Any:
        time.sleep(0.05)
        held[0] -= 1
        return open_exam(*given, **more)

    monkeypatch.setattr(routes, "open_exam", opened)
    exams = routes.ExamRoutes(ExamStore(), {"own-1": Example("own-1", "one", files)})

    async def run() -> list[int]:
        answers = await asyncio.gather(*(exams.example("own-1") for _ in range(routes.UPLOADS + 2)))
        return [one.status_code for one in answers]

    assert asyncio.run(run()) == [200] * routes.UPLOADS + [CODES["busy"]] * 2
    assert most == [1]


def test_exams_are_swept_while_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    swept = threading.Event()
    monkeypatch.setattr(web, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(ExamStore, "sweep", lambda store: swept.set())
    with TestClient(web.create_app("http://127.0.0.1:9"), base_url=LOOPBACK):
        assert swept.wait(20)


def test_the_page_names_no_other_host_and_its_scripts_carry_the_nonce(page: TestClient) -> None:
    answer = page.get("/")
    policy = answer.headers["content-security-policy"]
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    tags = [tag.partition(">")[0] for tag in answer.text.split("<script")[1:]]
    assert len(nonce) > 16 and len(tags) > 2 and all(f'nonce="{nonce}"' in tag for tag in tags)
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    assert page.get("/").headers["content-security-policy"] != policy
    assert "raw.githubusercontent" not in answer.text
    assert answer.headers["cache-control"] == "no-store"


def test_other_sites_and_other_names_of_this_host_are_refused(page: TestClient) -> None:
    assert page.get("/", headers={"host": "evil.example"}).status_code == 421
    assert page.get("/", headers={"host": "localhost:7860"}).status_code == 200
    assert upload(page, png(), Origin="http://evil.example").status_code == 403
    assert upload(page, png(), Origin=LOOPBACK).status_code == 200


def test_with_a_password_nothing_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_ultra_ext.serve.page.guard.WRONG_PASSWORD_SECONDS", 0.0)

    async def inner(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})

    client = TestClient(Guard(inner, "pass:wort 密", hosts_of("0.0.0.0")), base_url="http://hospital:7860")
    for path in ("/", "/page/page.js", "/gradio_api/queue/join", "/assets/a.js"):
        answer = client.get(path)
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic")
        for wrong in ("pass", "", "pass:wort"):
            assert client.get(path, auth=("ultra", wrong)).status_code == 401
        assert client.get(path, auth=("ultra", "pass:wort 密".encode())).text == "inside"
    assert client.get("/", headers={"Authorization": "Basic !!!"}).status_code == 401


def test_another_address_needs_a_password(capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.delenv(web.PASSWORD_VARIABLE, raising=False)
    monkeypatch.setattr("uvicorn.run", lambda *args, **kwargs: None)
    assert web.main(["--host", "0.0.0.0"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--host 0.0.0.0" in line and "--password-file" in line
    file = tmp_path / "password"
    file.write_text("geheimnis\n")
    assert web.check(web.parser().parse_args(["--host", "0.0.0.0", "--password-file", str(file)])) == "geheimnis"
    assert web.check(web.parser().parse_args([])) is None
    monkeypatch.setenv("ULTRA_SERVE_FRAMES", "many")
    assert web.main([]) == 2 and "ULTRA_SERVE_FRAMES" in capsys.readouterr().err
    monkeypatch.delenv("ULTRA_SERVE_FRAMES")
    monkeypatch.setenv(web.PASSWORD_VARIABLE, "andereres")
    assert web.check(web.parser().parse_args(["--host", "::"])) == "andereres"
    monkeypatch.setenv(web.PASSWORD_VARIABLE, "7 chars")
    file.write_text("7 chars\n")
    for flags, where in ([], web.PASSWORD_VARIABLE), (["--password-file", str(file)], "--password-file"):
        assert web.main(flags) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert where in line and "8 or more" in line and "7 chars" not in line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--conv-mode", "nonsense"], "no such template"),
        (["--examples", "/nowhere/at/all"], "no such folder"),
        (["--password-file", "/nowhere/at/all"], "cannot be read"),
    ],
)
def test_wrong_flags_end_with_one_line(flags: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert web.main(flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert says in line
