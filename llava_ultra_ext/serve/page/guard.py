"""Who may use the page, and what of Gradio may be used: wrapped round the whole application.

Gradio serves far more than this page needs: uploads and caches on the disk, files of the machine, a proxy to other
hosts. Only what the page itself asks for passes. Scripts run only from this host or with the nonce of the page's own
inline scripts, so markup in a model's name or answer stays without effect even where a component would let it in.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.page.event_body import replayed

_ALLOWED = re.compile(
    r"/|/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt)/?|/(assets|static|svelte)/[\w./@-]+"
    r"|/gradio_api/(queue/(join|data)|heartbeat/\w+|run/predict|cancel|reset|app_id|startup-events|login_check)/?"
    r"|/page/[\w.]+|/exam|/exam/(example|drop)/[\w-]+"
)
"""Paths that pass; uploads, ``file=``, ``proxy=``, monitoring, component_server and the rest do not."""

_POLICY = (
    "default-src 'self'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Gradio makes functions of the templates and ``js=`` that we give it, hence ``unsafe-eval``."""

WRONG_PASSWORD_SECONDS = 1.0
"""Pause after a wrong password, one guess after the other, so that guessing is slow."""

_EXTERNAL_META = re.compile(rb"<meta\s[^>]*?(?:og:|twitter:)[^>]*?/?>", re.DOTALL)


class Guard:
    """An ASGI application round another one.

    Args:
        app: what is guarded.
        password: that HTTP Basic must give, with any user name; None: nobody is asked.
        hosts: names of this host that a browser may use; empty: any. Without it a foreign page whose name resolves to
            127.0.0.1 could read what a reader sees.
    """

    def __init__(self, app: ASGIApp, password: str | None = None, hosts: Sequence[str] = ()) -> None:
        self._app, self._password, self._hosts = app, password, frozenset(hosts)
        self._pause = asyncio.Lock()  # held while one guess pauses: many at once are no faster

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # websockets are not needed
        refused = await self._refused(Headers(scope=scope), scope["path"])
        if refused is not None:
            await refused(scope, receive, send)
            return
        if scope["path"].startswith("/gradio_api/") and scope["method"] not in ("GET", "HEAD"):
            try:
                receive = await replayed(receive)
            except ServeError as error:
                await _plain(error.status, str(error))(scope, receive, send)
                return
        nonce = secrets.token_urlsafe(16)
        page = scope["path"] == "/" and scope["method"] == "GET"
        if page:  # an uncompressed answer can be given its nonce
            kept = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            # Gradio would load a stored state that the address names.
            scope = {**scope, "headers": kept, "query_string": b""}
        await self._app(scope, receive, _Sender(send, nonce, page).send)

    async def _refused(self, headers: Headers, path: str) -> Response | None:
        host = headers.get("host", "")
        if self._hosts and _host_name(host) not in self._hosts:
            return _plain(421, "这个地址不能用。 Open the page by the address that the server printed.")
        origin = headers.get("origin")
        if origin is not None and origin.split("://")[-1] != host:
            return _plain(403, "不接受其他网站的请求。 Requests of other sites are refused.")
        if self._password is not None and not _gives(headers.get("authorization", ""), self._password):
            if "authorization" in headers:
                async with self._pause:
                    await asyncio.sleep(WRONG_PASSWORD_SECONDS)
            answer = _plain(401, "需要密码。 A password is needed.")
            answer.headers["WWW-Authenticate"] = 'Basic realm="LLaVA-Ultra", charset="UTF-8"'
            return answer
        if not _ALLOWED.fullmatch(path):
            return _plain(404, "没有这个页面。 There is no such page.")
        return None


def _host_name(header: str) -> str:
    return re.sub(r":\d*$", "", header).strip("[]").lower()


def _gives(authorization: str, password: str) -> bool:
    kind, _, value = authorization.partition(" ")
    try:
        given = base64.b64decode(value, validate=True).partition(b":")[2] if kind.lower() == "basic" else None
    except (binascii.Error, ValueError):
        given = None
    return given is not None and hmac.compare_digest(given, password.encode())


def _plain(status: int, text: str) -> Response:
    return Response(text, status, media_type="text/plain; charset=utf-8")


class _Sender:
    """Adds the headers, and to the page the nonce; the page is held until it is whole."""

    def __init__(self, send: Send, nonce: str, page: bool) -> None:
        self._send, self._nonce, self._page = send, nonce, page
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._secure(message)
            if self._page:
                self._start = message
                return
        elif self._page and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_page()
            return
        await self._send(message)

    async def _send_page(self) -> None:
        assert self._start is not None  # a body follows its start
        body = _EXTERNAL_META.sub(b"", self._body)
        body = re.sub(rb"<script(?=[\s>])", b'<script nonce="' + self._nonce.encode() + b'"', body)
        MutableHeaders(raw=self._start["headers"])["content-length"] = str(len(body))
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})

    def _secure(self, message: dict[str, Any] | Message) -> None:
        headers = MutableHeaders(raw=message["headers"])
        headers["Content-Security-Policy"] = _POLICY.format(nonce=self._nonce)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        if "cache-control" not in headers:
            headers["Cache-Control"] = "no-store"
