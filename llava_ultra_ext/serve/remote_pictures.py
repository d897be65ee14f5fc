"""The pictures of a request to the API: data URLs, and remote addresses where the operator allowed some.

No address is looked at before its text has matched the allow-list: refused ones cost no file, no look-up of a name and
no connection.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import httpx

from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.limits import Limits, decode, open_header

FETCH_SECONDS = 20.0
"""Our choice: for all remote pictures of a request."""

_DATA = re.compile(r"data:image/[a-z]{3,4};base64,", re.IGNORECASE)

# Nothing that two programs read in two ways: no user, fragment, backslash, blank or other alphabet.
_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[\w.~!$&'()*+,;=:@%/-]*)?(?P<query>\?[\w.~!$&'()*+,;=:@%/?-]*)?",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Address:
    """The parts of an address that an allow-list compares; `port` is never empty, `path` begins with ``/``."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Address | None:
        """None for what is no plain address, and for paths that mean another one: ``..``, ``%2e``, ``//``."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            return None
        scheme, path = match["scheme"].lower(), match["path"] or "/"
        parts = [unquote(part, errors="replace") for part in path.split("/")[1:]]
        # A percent sign that is left would be another part to a server that decodes twice.
        # Some servers read `..;x` as `..`.
        if any(part.split(";")[0] in (".", "..") or set(part) & set("/\\%\0") for part in parts) or "" in parts[:-1]:
            return None
        return cls(scheme, match["host"].lower(), int(match["port"] or {"http": 80, "https": 443}[scheme]), path)


class AllowedAddresses:
    """Remote addresses that may be fetched: the same scheme, host and port, and a path below that of a prefix.

    Args:
        prefixes: such as ``https://pictures.example.org/exams/``; none: no remote address is fetched.

    Raises:
        ValueError: a prefix is no such address.
    """

    def __init__(self, prefixes: Sequence[str] = ()) -> None:
        self._allowed = []
        for prefix in prefixes:
            address = None if "?" in prefix else Address.parse(prefix)
            if address is None:
                raise ValueError(
                    f"--allow-url {prefix}: give http(s)://HOST[:PORT]/PATH/, without user, query, fragment or `..`."
                )
            self._allowed.append(address)

    def __contains__(self, text: str) -> bool:
        address = Address.parse(text)
        return address is not None and any(
            (address.scheme, address.host, address.port) == (allowed.scheme, allowed.host, allowed.port)
            and (address.path == allowed.path or address.path.startswith(allowed.path.rstrip("/") + "/"))
            for allowed in self._allowed
        )


async def read_pictures(addresses: Sequence[str], allowed: AllowedAddresses, limits: Limits) -> tuple[bytes, ...]:
    """The picture files of a request, checked, in their order.

    Args:
        addresses: of `image_url` parts; all are judged before the first one is decoded or fetched.

    Raises:
        ServeError: ``too_many_frames``, ``address_not_allowed``, ``bad_picture``, ``picture_too_large`` or
            ``request_too_large``.
    """
    if len(addresses) > limits.frames:
        raise ServeError(
            "too_many_frames", f"{len(addresses)} pictures were sent, {limits.frames} are allowed. Send fewer frames."
        )
    for place, address in enumerate(addresses, start=1):
        if not address[:5].lower() == "data:" and address not in allowed:
            raise ServeError(
                "address_not_allowed",
                f"Picture {place} has an address that is not fetched. Send it as data:image/png;base64,…, or ask the "
                "operator to allow the address with --allow-url.",
            )
    return await _read_all(addresses, limits)


async def _read_all(addresses: Sequence[str], limits: Limits) -> tuple[bytes, ...]:
    pictures: list[bytes] = []
    pixels, left_s = 0, FETCH_SECONDS
    loop = asyncio.get_running_loop()
    for place, address in enumerate(addresses, start=1):
        which = f"Picture {place}"
        if address[:5].lower() == "data:":
            data = await asyncio.to_thread(_data, address, which, limits)
        else:
            start = loop.time()
            data = await _fetch(address, which, limits, left_s)
            left_s -= loop.time() - start
        pictures.append(data)
        if sum(map(len, pictures)) > limits.request_bytes:
            most = limits.request_bytes / 2**20
            raise ServeError("request_too_large", f"All pictures together may have {most:.0f} MiB. Send fewer.")
        pixels += await asyncio.to_thread(_check, data, which, limits)
        if pixels > limits.request_pixels:
            raise ServeError(
                "picture_too_large", f"All pictures together may have {limits.request_pixels:,} pixels. Send fewer."
            )
    return tuple(pictures)


def _check(data: bytes, which: str, limits: Limits) -> int:
    """Decodes a picture to its end; its number of pixels."""
    picture = decode(open_header(data, limits, which), which)
    return math.prod(picture.size)


def _data(address: str, which: str, limits: Limits) -> bytes:
    head = _DATA.match(address)
    if head is None:
        raise ServeError("bad_picture", f"{which} is no data:image/…;base64,… with a picture. Send PNG or JPEG so.")
    if (len(address) - head.end()) // 4 * 3 > limits.picture_bytes + 2:
        raise _too_large(which, limits)
    try:
        return base64.b64decode(address[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ServeError("bad_picture", f"{which} is not valid base64: send it again, without line breaks.") from None


async def _fetch(address: str, which: str, limits: Limits, seconds: float) -> bytes:
    """One GET: no redirects, no proxy, no compression, no more bytes and seconds than allowed."""
    try:
        return await asyncio.wait_for(_get(address, which, limits), max(0.1, seconds))
    except (httpx.HTTPError, httpx.InvalidURL, asyncio.TimeoutError):
        raise ServeError("bad_picture", f"{which} could not be fetched in time. Send it as a data URL.") from None


async def _get(address: str, which: str, limits: Limits) -> bytes:
    data = bytearray()
    async with (
        httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=FETCH_SECONDS) as http,
        http.stream("GET", address, headers={"Accept-Encoding": "identity"}) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise ServeError("bad_picture", f"{which}: its server answered {response.status_code}, not with a picture.")
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > limits.picture_bytes:
                raise _too_large(which, limits)
    return bytes(data)


def _too_large(which: str, limits: Limits) -> ServeError:
    most = limits.picture_bytes / 2**20
    return ServeError(
        "request_too_large", f"{which} has more than {most:.0f} MiB, the most allowed. Send a smaller one."
    )
