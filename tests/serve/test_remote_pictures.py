"""Pictures of a request: data URLs, and addresses that the operator allowed; nothing else is opened."""

from __future__ import annotations

import base64
import contextlib
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from api_server import Running, chat_request, code_of, data_url, png, running_api
from fake_workers import FakeWorker, ours

from llava_ultra_ext.serve.limits import Limits
from llava_ultra_ext.serve.remote_pictures import AllowedAddresses


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("", "address_not_allowed"),
        ("/etc/passwd", "address_not_allowed"),
        ("file:///etc/passwd", "address_not_allowed"),
        ("ftp://127.0.0.1/a.png", "address_not_allowed"),
        ("http://127.0.0.1/a.png", "address_not_allowed"),
        ("data:", "bad_picture"),
        ("data:text/html;base64,QUJD", "bad_picture"),
        ("data:image/png,QUJD", "bad_picture"),
        ("data:image/png;base64,QUJ", "bad_picture"),
        ("data:image/png;base64,QU JD", "bad_picture"),
        ("data:image/png;base64,QUJD", "bad_picture"),
        ("data:image/png;base64,", "bad_picture"),
        (data_url(png()).replace("Q", "Q\n", 1), "bad_picture"),
        (data_url(png(64)[:-20]), "bad_picture"),
        (data_url(b"\0" * 128 + b"DICM" + b"\0" * 64), "bad_picture"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused(api: Running, address: str, code: str) -> None:
    response = api.post(chat_request("m", data_url(png()), address))
    assert response.status_code == 400 and code_of(response) == code
    assert "icture 2" in response.text and "passwd" not in response.text


def test_a_header_that_claims_far_too_many_pixels(api: Running) -> None:
    header = bytearray(png())
    header[16:24] = (30_000).to_bytes(4, "big") * 2
    checked = header[:29] + zlib.crc32(bytes(header[12:29])).to_bytes(4, "big") + header[33:]
    response = api.post(chat_request("m", data_url(bytes(checked))))
    assert response.status_code == 413 and code_of(response) == "picture_too_large"


def test_allowed_addresses_are_compared_part_by_part() -> None:
    allowed = AllowedAddresses(["https://pictures.example.org/exams/", "http://127.0.0.1:8042/wado"])
    for good in (
        "https://pictures.example.org/exams/1/2.png",
        "HTTPS://Pictures.Example.org:443/exams/a%20b.png?size=1",
        "http://127.0.0.1:8042/wado",
        "http://127.0.0.1:8042/wado/1",
    ):
        assert good in allowed, good
    for bad in (
        "http://pictures.example.org/exams/1.png",
        "https://pictures.example.org:444/exams/1.png",
        "https://pictures.example.org/examsecret",
        "https://pictures.example.org/other",
        "https://pictures.example.org/exams/../other",
        "https://pictures.example.org/exams/%2e%2e/other",
        "https://pictures.example.org/exams/%252e%252e/other",
        "https://pictures.example.org/exams/..%2fother",
        "https://pictures.example.org/exams/a%5c..%5cother",
        "https://pictures.example.org/exams//other",
        "https://pictures.example.org/exams/..;/other",
        "https://pictures.example.org/exams/%2e%2e;x/other",
        "https://pictures.example.org/exams/\\..\\other",
        "https://pictures.example.org@evil.org/exams/1.png",
        "https://evil.org#pictures.example.org/exams/1.png",
        "https://pictures.example.org.evil.org/exams/1.png",
        "https://pictures.example.org./exams/1.png",
        "https://pictures.example.org/exams/1.png#x",
        " https://pictures.example.org/exams/1.png",
        "https://pictures.example.org/exams/1.png\n",
        "https://pictures.example.org/exams/\r\nHost: evil",
        "https://pictureſ.example.org/exams/1.png",
        "http://2130706433:8042/wado",
        "http://0x7f.1:8042/wado",
        "http://[::ffff:127.0.0.1]:8042/wado",
        "http://127.0.0.1:08042/wadox",
        "//127.0.0.1:8042/wado",
        "http:/127.0.0.1:8042/wado",
    ):
        assert bad not in allowed, bad
    for prefix in (
        "",
        "example.org",
        "ftp://example.org/",
        "https://u@example.org/",
        "https://example.org/../",
        "http://a/?b",
    ):
        with pytest.raises(ValueError, match="--allow-url"):
            AllowedAddresses([prefix])


@pytest.fixture
def pictures() -> Iterator[tuple[str, list[str]]]:
    """A server of pictures: its address, and the paths that it was asked for."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            if self.path.startswith("/exams/moved"):
                self.send_response(302)
                self.send_header("Location", "/secret/1.png")
                self.end_headers()
                return
            self.send_response(200 if self.path.endswith(".png") else 404)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(png())
                while "endless" in self.path:
                    self.wfile.write(b"x" * 2**10)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_remote_pictures_come_from_allowed_addresses_only(
    pictures: tuple[str, list[str]], controller: str, model: str
) -> None:
    address, seen = pictures
    allowed, limits = AllowedAddresses([f"{address}/exams/"]), Limits(picture_bytes=2**16)
    with (
        running_api(controller, allowed=allowed, limits=limits) as running,
        FakeWorker(controller, model, ours("好")) as worker,
    ):
        for refused in (
            f"{address}/secret/1.png",
            f"{address}/exams/../secret/1.png",
            address.replace("127.0.0.1", "localhost"),
        ):
            assert (
                code_of(running.post(chat_request(model, f"{address}/exams/1.png", refused))) == "address_not_allowed"
            )
        assert seen == [], "not even the allowed one beside it"
        assert running.post(chat_request(model, f"{address}/exams/1.png", f"{address}/exams/2.png")).status_code == 200
        assert seen == ["/exams/1.png", "/exams/2.png"]
        assert [base64.b64decode(image) for image in worker.asked[0]["images"]] == [png()] * 2
        assert code_of(running.post(chat_request(model, f"{address}/exams/moved"))) == "bad_picture"
        assert code_of(running.post(chat_request(model, f"{address}/exams/none"))) == "bad_picture"
        assert code_of(running.post(chat_request(model, f"{address}/exams/endless.png"))) == "request_too_large"
        assert all(path.startswith("/exams/") for path in seen)
        assert len(worker.asked) == 1


def test_without_an_allow_list_no_connection_is_opened(
    pictures: tuple[str, list[str]], api: Running, model: str
) -> None:
    address, seen = pictures
    assert code_of(api.post(chat_request(model, f"{address}/exams/1.png"))) == "address_not_allowed"
    assert seen == []
