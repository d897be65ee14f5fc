"""A thousand requests that must be refused: none is answered, kills, hangs, reads a file or opens a connection.

    python scripts/bench/serve_inputs.py [--count 1000] [--seed 0] [--json FILE] [--quick]

`llava-ultra serve` with a tiny model and the page. Every request is a good one with one thing changed, and that is
known to be wrong (`serve_mutations`). They go to the API, straight to the worker, and to the page's own routes. Refused
is a status of 4xx, `busy` and its like, or an error code in a worker's stream. Proofs:

* A picture waits at a port of this machine, and no connection may come there.
* A picture lies in a file that requests name; inotify tells of every opening, and its text is in no reply.
* Afterwards every program has the process id that it had, and a good request is answered on each route.
* No reply is HTML that holds a script of a request; what the page shows of models' names and answers is tested in
  `tests/serve/test_web.py`, in a browser.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import random
import struct
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from serve_making import OURS, make_models
from serve_mutations import ROUTES, Sent, chat, stream, upload
from serve_parts import Service, address_of, machine, markdown, service
from serve_pictures import pictures
from serve_values import SCRIPTS, Target

AT_ONCE = 3
"""The page takes three uploads at a time."""
HANG_SECONDS = 60.0
SECRET = "canary-text-that-no-reply-may-hold"


@dataclass
class Kind:
    """What became of the requests of one kind.

    Args:
        sent: how many.
        codes: code or status of those that were refused -> how many.
        accepted: what was answered, or failed otherwise; each in a few words.
        slowest: seconds.
    """

    sent: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
    slowest: float = 0.0


@contextlib.contextmanager
def watched(path: Path) -> Iterator[list[int]]:
    """How often a file was opened by now, as the only entry; inotify, which sees other users' processes too.

    Raises:
        SystemExit: an opening is not seen here, so that the proof would be void.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    opened = 0x20  # IN_OPEN
    if handle < 0 or libc.inotify_add_watch(handle, os.fsencode(path), opened) < 0:
        raise SystemExit("inotify does not work here.")
    count = [0]

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            events = os.read(handle, 1 << 16)
            count[0] += len(events) // struct.calcsize("iIII")  # a file's events carry no name

    path.read_bytes()
    read()
    if count[0] != 1:
        raise SystemExit("inotify does not tell of a file that is opened here.")
    count[0] = 0
    try:
        yield count
        read()
    finally:
        os.close(handle)


@contextlib.asynccontextmanager
async def listening(picture: bytes) -> AsyncIterator[tuple[int, list[str]]]:
    """A port of this machine, IPv4 and IPv6, where a picture is to be had; and who came there."""
    came: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(str(writer.get_extra_info("peername")))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + picture)
        writer.close()

    first = await asyncio.start_server(serve, "0.0.0.0", 0)
    port = first.sockets[0].getsockname()[1]
    servers = [first]
    with contextlib.suppress(OSError):  # a machine without IPv6
        servers.append(await asyncio.start_server(serve, "::1", port))
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    await asyncio.sleep(0.1)
    if len(came) != 1:
        raise SystemExit("a connection to the waiting port is not seen.")
    came.clear()
    try:
        yield port, came
    finally:
        for server in servers:
            server.close()


def refusal(response: httpx.Response) -> str | None:
    """The code by which a request was refused, or its status; None: it was not.

    A worker's stream is always 200; its last message says whether it is an error.
    """
    if response.status_code == 200 and response.headers.get("content-type") is None:
        messages = [json.loads(part) for part in response.content.split(b"\0") if part]
        return str(messages[-1].get("code") or "error") if messages and messages[-1]["error_code"] else None
    if not (400 <= response.status_code < 500 or response.status_code == 503):
        return None
    with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
        told = response.json()
        return str(told.get("error", told)["code"])
    return str(response.status_code)


def leak(response: httpx.Response) -> str | None:
    """What a reply must not hold: the canary's text, or a script as HTML."""
    if SECRET in response.text:
        return "the canary's text"
    html = "html" in response.headers.get("content-type", "")
    return "a script" if html and any(script in response.text for script in SCRIPTS) else None


class Bench:
    """A running service and what is sent to it.

    Args:
        running: the service.
        target: what mutations are made of.
    """

    def __init__(self, running: Service, target: Target) -> None:
        self.target, self.found = target, {(route, name): Kind() for route, kinds in ROUTES.items() for name in kinds}
        api, worker = running.api.removesuffix("/v1"), address_of(running.workers()[0])
        self.usual = {
            "API": (api, "/v1/chat/completions"),
            "worker": (worker, "/worker_generate_stream"),
            "page": (running.page, "/exam"),
        }
        # Each request has a connection of its own: one that a refusal closed would be another's error.
        alone = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.AsyncClient(trust_env=False, timeout=HANG_SECONDS, limits=alone)

    async def send(self, route: str, sent: Sent) -> httpx.Response:
        """The reply to one request."""
        host, path = self.usual[route]
        headers = {"Content-Type": "application/json", **sent.headers}
        return await self.http.request(sent.method, host + (sent.path or path), content=sent.body, headers=headers)

    async def try_one(self, route: str, name: str, draw: random.Random) -> None:
        """One mutation of a kind."""
        kind, sent = self.found[route, name], ROUTES[route][name](draw, self.target)
        begin = time.monotonic()
        try:
            response = await self.send(route, sent)
        except httpx.HTTPError as error:
            code, other = None, f"{type(error).__name__}"
        else:
            code, other = refusal(response), f"status {response.status_code}"
            other, code = (f"holds {held}", None) if (held := leak(response)) else (other, code)
        kind.sent += 1
        kind.slowest = max(kind.slowest, time.monotonic() - begin)
        if code is None:
            kind.accepted.append(f"{other}: {sent.path or sent.body[-120:]!r}")
        else:
            kind.codes[code] += 1

    async def try_all(self, count: int, seed: int) -> None:
        """All kinds in turn, `AT_ONCE` at a time."""
        kinds = sorted(self.found)
        plan = [(*kinds[number % len(kinds)], random.Random(f"{seed}-{number}")) for number in range(count)]
        waiting = iter(plan)

        async def work() -> None:
            for route, name, draw in waiting:
                await self.try_one(route, name, draw)

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def good(self) -> dict[str, bool]:
        """Whether a good request is answered, by route."""
        answered = {}
        for route, sent in (("API", chat), ("worker", stream)):
            answered[route] = refusal(reply := await self.send(route, sent(self.target))) is None and reply.is_success
        answered["page"] = (await self.send("page", upload(self.target.picture))).status_code == 200
        return answered


def table(found: dict[tuple[str, str], Kind]) -> str:
    """One row a kind."""
    rows: list[Sequence[object]] = [("to", "what", "sent", "refused", "codes", "slowest, s")]
    for (route, name), kind in found.items():
        codes = ", ".join(f"{code} {count}" for code, count in kind.codes.most_common())
        rows.append((route, name, kind.sent, sum(kind.codes.values()), codes, kind.slowest))
    kinds = found.values()
    total = sum(kind.sent for kind in kinds), sum(sum(kind.codes.values()) for kind in kinds)
    return markdown([*rows, ("all", "", *total, "", max(kind.slowest for kind in kinds))])


def canary(path: Path) -> None:
    """A good picture with a text that would be recognised."""
    told = PngInfo()
    told.add_text("comment", SECRET)
    Image.new("RGB", (64, 64), (200, 10, 10)).save(path, pnginfo=told)


async def run(running: Service, work: Path, count: int, seed: int) -> tuple[Bench, dict[str, bool]]:
    """Sends all; the bench with what it found, and the proofs."""
    path = work / "canary.png"
    canary(path)
    async with listening(path.read_bytes()) as (port, came):
        with watched(path) as opened:
            bench = Bench(running, Target(OURS, pictures(1)[0], str(path), port))
            before = {child.pid for child in running.children()}
            ready = await bench.good()
            await bench.try_all(count, seed)
            await asyncio.sleep(1)  # what comes late
        answered = await bench.good()
        await bench.http.aclose()
        proofs = {
            "all refused": not any(kind.accepted for kind in bench.found.values()),
            "no connection was opened": not came,
            "no file was opened": not opened[0],
            "every program still has its process": before == {child.pid for child in running.children()},
            "good requests are answered before and after": all(ready.values()) and all(answered.values()),
        }
    return bench, proofs


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and the proofs; exit status 1 when one fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--count", type=int, default=1000)
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="where to write the figures")
    add("--quick", action="store_true", help="each kind three times")
    args = parser.parse_args(argv)
    count = 3 * sum(map(len, ROUTES.values())) if args.quick else args.count
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = make_models(work)[OURS]
        with service(model, "--device", "cpu", log=work / "serve.log") as running:
            bench, proofs = asyncio.run(run(running, work, count, args.seed))
    print(table(bench.found))
    for (route, name), kind in bench.found.items():
        for what in kind.accepted[:3]:
            print(f"not refused: {route}, {name}: {what}")
    for proof, holds in proofs.items():
        print(f"{proof}: {'yes' if holds else 'NO'}")
    if args.json:
        kinds = [{"to": key[0], "what": key[1], **vars(kind)} for key, kind in bench.found.items()]
        found = {"machine": machine(), "count": count, "seed": args.seed, "kinds": kinds, "proofs": proofs}
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if all(proofs.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
