"""Requests that must be refused, by kind and route: to the API, straight to a worker, to the page.

Each kind changes one thing of a good request, so that this thing is why it is refused. A kind is a function of a seeded
generator and a `Target`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_pictures import BROKEN, broken_base64, dicom, wrong_dicom
from serve_values import (
    API_FIELDS,
    API_PARTS,
    SCRIPTS,
    WORKER_FIELDS,
    Draw,
    Target,
    addresses,
    long_text,
    wrong_model,
)

from llava_ultra_ext.serve.prompts import write_prompt

TEXT = "请给出诊断。"


@dataclass(frozen=True)
class Sent:
    """One request.

    Args:
        body: bytes.
        headers: beside Content-Type.
        path: of another route than the usual one, on the same server.
        method: of HTTP.
    """

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    method: str = "POST"


def url(data: bytes | str, kind: str = "image/jpeg") -> str:
    """A data URL."""
    return f"data:{kind};base64," + (data if isinstance(data, str) else base64.b64encode(data).decode())


def chat(target: Target, urls: list[str] | None = None, **changes: Any) -> Sent:
    """A chat completion; good without changes."""
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": one}} for one in (urls or [url(target.picture)] * 2)
    ]
    asked = {
        "model": target.model,
        "messages": [{"role": "user", "content": [*content, {"type": "text", "text": TEXT}]}],
    }
    return Sent(json.dumps({**asked, "temperature": 0, "max_tokens": 4, **changes}).encode())


def stream(target: Target, pictures: list[str] | None = None, **changes: Any) -> Sent:
    """A request to a worker; good without changes."""
    given = [base64.b64encode(target.picture).decode()] * 2 if pictures is None else pictures
    asked = {"model": target.model, "prompt": write_prompt("ultra_v1_zh", [(TEXT, None)], len(given)), "images": given}
    return Sent(json.dumps({**asked, "temperature": 0, "max_new_tokens": 4, "stop": "</s>", **changes}).encode())


def upload(*files: bytes, **headers: str) -> Sent:
    """Files to the page."""
    return Sent(b"".join(files), {"X-Sizes": ",".join(str(len(file)) for file in files), **headers})


def no_json(draw: Draw, good: Sent) -> Sent:
    """A body that is no JSON, or no object."""
    body = good.body
    cut = body[: draw.randrange(1, len(body) - 1)]
    others = [
        b"",
        cut,
        draw.randbytes(200),
        b"[" * 100_000,
        b"{" * 5000,
        b'"x"',
        b"[]",
        b"null",
        b"5",
        b"\xff\xfe" + body,
    ]
    others += [body.replace(b'"', b"'"), body + b"}", b'{"a": ' * 2000 + b"1" + b"}" * 2000]
    return Sent(draw.choice(others))


def _field(draw: Draw, fields: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    name = draw.choice(sorted(fields))
    return {name: draw.choice(fields[name])}


def _one_of(bad: str, target: Target, draw: Draw) -> list[str]:
    """Good pictures with a bad one among them."""
    urls = [url(target.picture)] * draw.randrange(0, 4)
    urls.insert(draw.randint(0, len(urls)), bad)
    return urls


def _message(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def _base64(url_: str) -> str:
    return url_.partition(",")[2]


Kind = Callable[[Draw, Target], Sent]

API: dict[str, Kind] = {
    "broken base64": lambda d, t: chat(t, _one_of(url(broken_base64(d, t.picture)), t, d)),
    **{
        name: (lambda d, t, make=make: chat(t, _one_of(url(make(d, t.picture)), t, d)))  # type: ignore[misc]
        for name, make in BROKEN.items()
    },
    "65 to 500 frames": lambda d, t: chat(t, [url(t.picture)] * d.choice([65, 100, 500])),
    "DICOM": lambda d, t: chat(t, _one_of(url(d.choice([dicom, lambda: wrong_dicom(d, b"")])()), t, d)),
    "prompt up to 1 MB": lambda d, t: chat(t, messages=_message(long_text(d))),
    "wrong types": lambda d, t: chat(t, **_field(d, API_FIELDS)),
    "wrong parts": lambda d, t: chat(t, messages=_message(d.choice(API_PARTS))),
    "no JSON": lambda d, t: no_json(d, chat(t)),
    "addresses": lambda d, t: chat(t, _one_of(addresses(d, t), t, d)),
    "<image> in a text": lambda d, t: chat(
        t, messages=_message(d.choice(["<image>", "a <image>\n b", "<image><image>"]))
    ),
    "model names": lambda d, t: chat(t, model=wrong_model(d, t)),
    "paths": lambda d, t: Sent(
        b"",
        path=d.choice(
            [
                f"/%2e%2e{t.canary}",
                f"/v1/models/..%2f..%2f..{t.canary}",
                "/docs",
                "/openapi.json",
                f"/v1/models/{SCRIPTS[0]}",
            ]
        ),
        method="GET",
    ),
}

WORKER: dict[str, Kind] = {
    "broken base64": lambda d, t: stream(t, [*_good(t, d), broken_base64(d, t.picture)]),
    **{
        name: (lambda d, t, make=make: stream(t, [*_good(t, d), base64.b64encode(make(d, t.picture)).decode()]))  # type: ignore[misc]
        for name, make in BROKEN.items()
    },
    "65 to 500 frames": lambda d, t: stream(t, _good(t, d, d.choice([65, 100, 500]))),
    "images without tokens": lambda d, t: stream(
        t, prompt=write_prompt("ultra_v1_zh", [(TEXT, None)], d.choice([0, 1, 3]))
    ),
    "prompt up to 1 MB": lambda d, t: stream(t, [], prompt=long_text(d)),
    "wrong types": lambda d, t: stream(t, **_field(d, WORKER_FIELDS)),
    "no JSON": lambda d, t: no_json(d, stream(t)),
    "addresses": lambda d, t: stream(t, [*_good(t, d), addresses(d, t)]),
    "model names": lambda d, t: stream(t, model=wrong_model(d, t)),
}


def _good(target: Target, draw: Draw, count: int | None = None) -> list[str]:
    return [base64.b64encode(target.picture).decode()] * (draw.randrange(0, 4) if count is None else count)


def _sizes(draw: Draw, target: Target) -> Sent:
    size = len(target.picture)
    wrong = [
        size - 1,
        size + 1,
        -1,
        10**11,
        "",
        "x",
        f"{size},",
        f"{size},{size}",
        "9" * 5000,
        f"{size};",
        f"+{size}",
    ]
    return Sent(target.picture, {"X-Sizes": str(draw.choice(wrong))})


def _gradio(draw: Draw, target: Target) -> Sent:
    """Gradio's own doors to the disk and to other hosts."""
    port, path = target.knock, target.canary
    routes = [f"/gradio_api/file={path}", f"/file={path}", f"/gradio_api/proxy=http://127.0.0.1:{port}/x.png"]
    routes += [
        f"/proxy=http://127.0.0.1:{port}/x.png",
        f"/assets/../../../../../..{path}",
        f"/assets/..%2f..%2f..{path}",
    ]
    routes += [
        f"/page/..%2f..%2f..{path}",
        f"/page/{path}",
        f"/static/..%2f..{path}",
        "/monitoring/summary",
        "/gradio_api/info",
    ]
    routes += [
        f"/gradio_api/upload_progress?upload_id={path}",
        f"/svelte/..%2f..{path}",
        "/gradio_api/component_server",
    ]
    return Sent(b"", path=draw.choice(routes), method=draw.choice(["GET", "POST"]))


def _gradio_event(draw: Draw, target: Target) -> Sent:
    """An event that makes Gradio fetch an address or a file for its input."""
    address = draw.choice([f"http://127.0.0.1:{target.knock}/x.png", target.canary])
    given = {draw.choice(["path", "url"]): address, "meta": {"_type": "gradio.FileData"}}
    given.setdefault("path", address)
    depth = draw.choice([1, 2, 5, 5000])
    body = f'{{"fn_index": 1, "session_hash": "x", "data": {"[" * depth}{json.dumps(given)}{"]" * depth}}}'
    if draw.random() < 0.5:
        body = body.replace('"path"', '"\\u0070ath"').replace('"url"', '"\\u0075rl"')
    route = draw.choice(["queue/join", "run/predict"])
    return Sent(draw.choice([body, body, body[:-1]]).encode(), path=f"/gradio_api/{route}")


PAGE: dict[str, Kind] = {
    **{name: (lambda d, t, make=make: upload(make(d, t.picture))) for name, make in BROKEN.items()},  # type: ignore[misc]
    "DICOM, wrong lengths": lambda d, t: upload(wrong_dicom(d, b"")),
    "65 to 500 frames": lambda d, t: upload(*[t.picture] * d.choice([65, 100, 500])),
    "wrong sizes": _sizes,
    "other sites": lambda d, t: upload(
        t.picture, **d.choice([{"Origin": "http://example.com"}, {"Host": "example.com"}])
    ),
    "examples": lambda d, t: Sent(b"", path=f"/exam/example/{d.choice(['x', '..%2f..%2fetc', '<script>', 'own-1'])}"),
    "Gradio's doors": _gradio,
    "Gradio's files": _gradio_event,
}

ROUTES: dict[str, dict[str, Kind]] = {"API": API, "worker": WORKER, "page": PAGE}
