"""What a client gets when something of the service dies, hangs or runs out of memory, and how long that takes.

    python scripts/bench/serve_faults.py [--json FILE]

`llava-ultra serve` with two workers of a tiny model; everything goes through the API. Processes are really killed and
stopped, memory really runs out: the kernel gives the workers no more (RLIMIT_AS), and a request of large pictures asks
for it. One row a fault; `then` is what the next request, or the waiting one, gets.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image
from serve_making import OURS, Exam, draw_exams, make_models
from serve_parts import ApiClient, Reply, Service, address_of, machine, markdown, request_body, service

MOST_SECONDS = 5.0
"""Until an error is told, or the next request is taken by another worker."""
LONG, SHORT = 400, 8
"""Tokens of an answer that is still being written when something happens, and of one that soon is there."""
RECOVERY_SECONDS = 180.0
SPARE_BYTES = 150 * 2**20
"""More address space than a worker has when its memory is to run out: enough for a question of small pictures."""


@dataclass
class Row:
    """A fault and what came of it.

    Args:
        fault: what happened.
        got: what the request that it hit got.
        seconds: until then.
        then: what came next.
        then_seconds: until then.
        met: whether that is what is asked.
    """

    fault: str
    got: str
    seconds: float
    then: str
    then_seconds: float
    met: bool


class Bench:
    """A service, its client, and the faults.

    Args:
        running: with two workers.
        exams: to ask about.
    """

    def __init__(self, running: Service, exams: Sequence[Exam]) -> None:
        self.running, self.exams = running, exams
        self.client = ApiClient(running.api)
        self.long = request_body(OURS, exams[0], LONG)
        self.short = request_body(OURS, exams[1], SHORT)
        self.http = httpx.AsyncClient(trust_env=False, timeout=10)

    async def begun(self) -> asyncio.Task[Reply]:
        """A long answer whose first text is there."""
        started = asyncio.Event()
        task = asyncio.create_task(self.client.ask(self.long, started))
        await asyncio.wait({task, waiting := asyncio.create_task(started.wait())}, return_when="FIRST_COMPLETED")
        waiting.cancel()
        if task.done():
            raise SystemExit(f"a long answer was over too soon: {task.result().code}")
        return task

    async def queues(self) -> list[tuple[psutil.Process, int]]:
        """Each worker with how many requests it has."""
        found = []
        for process in self.running.workers():
            with contextlib.suppress(httpx.HTTPError, psutil.NoSuchProcess):
                status = await self.http.post(f"{address_of(process)}/worker_get_status")
                found.append((process, int(status.json()["queue_length"])))
        return found

    async def busiest(self, least: int) -> psutil.Process:
        """The worker with the most requests, once it has so many."""
        async with asyncio.timeout(30) if hasattr(asyncio, "timeout") else contextlib.nullcontext():
            while True:
                process, length = max(await self.queues(), key=lambda entry: entry[1])
                if length >= least:
                    return process
                await asyncio.sleep(0.05)

    async def recovered(self) -> float:
        """Seconds until API, controller and both workers answer."""
        begin = time.monotonic()
        while time.monotonic() - begin < RECOVERY_SECONDS:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                # The controller asks each of its workers; /health of the API is a few seconds old.
                told = (await self.http.post(f"{self.running.controller}/worker_get_status")).json()
                served = await self.http.get(f"{self.running.api}/models")
                if told["speed"] == 2 and served.status_code == 200:
                    return time.monotonic() - begin
            await asyncio.sleep(0.25)
        raise SystemExit(f"the service was not whole again after {RECOVERY_SECONDS:.0f} s")

    async def timed(self, body: bytes) -> tuple[Reply, float]:
        """The reply to a request, and its seconds."""
        begin = time.monotonic()
        reply = await self.client.ask(body)
        return reply, time.monotonic() - begin

    async def killed_worker(self) -> list[Row]:
        """Two long answers, one on each worker, and a request that waits behind one of them; that worker is killed."""
        first, second = await self.begun(), await self.begun()
        waiting = asyncio.create_task(self.timed(self.short))
        process = await self.busiest(2)
        process.kill()
        begin = time.monotonic()
        back = asyncio.create_task(self.recovered())
        done, left = await asyncio.wait({first, second}, return_when="FIRST_COMPLETED", timeout=30)
        hit = done.pop().result() if done else Reply("nothing in 30 s")
        seconds = time.monotonic() - begin
        reply, _ = await waiting
        waited = time.monotonic() - begin
        other = await left.pop() if left else Reply("")
        joined = await back
        again, took = await self.timed(self.short)
        then, met = f"the one waiting there: {reply.code}", hit.code == "worker_lost" and seconds < MOST_SECONDS
        return [
            Row("a worker is killed in mid-stream", hit.code, seconds, then, waited, met and reply.code == "ok"),
            Row("the other worker's stream meanwhile", other.code, other.total, "", 0.0, other.code == "ok"),
            Row("the killed worker", "joins again", joined, f"next request: {again.code}", took, again.code == "ok"),
        ]

    async def hanging_worker(self) -> list[Row]:
        """A worker stops computing in mid-stream, its connections stay open."""
        task = await self.begun()
        process = await self.busiest(1)
        process.suspend()
        begin = time.monotonic()
        try:
            hit = await task
            seconds = time.monotonic() - begin
            reply, took = await self.timed(self.short)
        finally:
            process.resume()
        await self.recovered()
        met = hit.code == "worker_lost" and seconds < MOST_SECONDS and reply.code == "ok" and took < 2 * MOST_SECONDS
        return [Row("a worker hangs in mid-stream", hit.code, seconds, f"next request: {reply.code}", took, met)]

    async def killed_controller(self) -> list[Row]:
        """What runs goes on; what comes meanwhile is told at once; workers register again."""
        task = await self.begun()
        [controller] = self.running.programs("llava.serve.controller")
        controller.kill()
        meanwhile, told = await self.timed(self.short)
        joined = await self.recovered()
        reply, _ = await self.timed(self.short)
        stream = await task
        met = meanwhile.code in ("no_worker", "ok") and told < MOST_SECONDS and reply.code == "ok"
        return [
            Row(
                "the controller is killed: a new request", meanwhile.code, told, "workers are there again", joined, met
            ),
            Row("a stream that ran meanwhile", stream.code, stream.total, "", 0.0, stream.code == "ok"),
        ]

    async def killed_api(self) -> list[Row]:
        """The connection breaks; the API starts again."""
        task = await self.begun()
        [api] = self.running.programs("llava_ultra_ext.serve.openai_api")
        api.kill()
        begin = time.monotonic()
        hit = await task
        seconds, joined = time.monotonic() - begin, await self.recovered()
        reply, _ = await self.timed(self.short)
        met = hit.code.startswith("connection") and seconds < MOST_SECONDS and reply.code == "ok"
        return [Row("the API is killed in mid-stream", hit.code, seconds, "it answers again", joined, met)]

    async def client_gone(self) -> list[Row]:
        """A client closes its connection in mid-stream: its worker is free again."""
        task = await self.begun()
        begin = time.monotonic()
        task.cancel()
        while any(length for _, length in await self.queues()) and time.monotonic() - begin < 30:
            await asyncio.sleep(0.02)
        free = time.monotonic() - begin
        reply, took = await self.timed(self.short)
        met = free < MOST_SECONDS and reply.code == "ok"
        return [
            Row("a client goes in mid-stream", "its worker is free", free, f"next request: {reply.code}", took, met)
        ]

    async def out_of_memory(self) -> list[Row]:
        """Eight pictures of 16 million pixels, with room for three; the next request comes while there is no more."""
        file = io.BytesIO()
        Image.new("RGB", (4096, 4096), (90, 90, 90)).save(file, "PNG")
        large = request_body(OURS, Exam(self.exams[0].text, (file.getvalue(),) * 8), SHORT)
        workers = self.running.workers()
        for process in workers:
            resource.prlimit(process.pid, resource.RLIMIT_AS, (_room(process), resource.RLIM_INFINITY))
        try:
            hit, seconds = await self.timed(large)
            reply, took = await self.timed(self.short)
        finally:
            for process in workers:
                resource.prlimit(process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        same = workers == self.running.workers()
        met = hit.code == "out_of_memory" and reply.code == "ok" and same
        return [Row("a request runs out of memory", hit.code, seconds, f"next request: {reply.code}", took, met)]


def _room(process: psutil.Process) -> int:
    return int(process.memory_info().vms) + SPARE_BYTES


async def faults(running: Service, exams: Sequence[Exam]) -> list[Row]:
    """All rows but the last one."""
    bench = Bench(running, exams)
    parts: list[Callable[[], Awaitable[list[Row]]]] = [
        *(bench.client_gone, bench.out_of_memory, bench.killed_worker),
        *(bench.hanging_worker, bench.killed_controller, bench.killed_api),
    ]
    rows: list[Row] = []
    for part in parts:
        found = await part()
        rows += found
        print("\n".join(f"{row.fault}: {row.got}, {row.seconds:.2f} s" for row in found), flush=True)
    await bench.client.close()
    await bench.http.aclose()
    return rows


def ended(running: Service) -> Row:
    """Ctrl-C: everything is gone."""
    started = psutil.Process(running.process.pid).children(recursive=True)
    begin = time.monotonic()
    running.process.send_signal(2)
    status = running.process.wait(30)
    seconds = time.monotonic() - begin
    left = sum(process.is_running() for process in started)
    got = f"exit status {status}, {left} of {len(started)} programs left"
    return Row("Ctrl-C", got, seconds, "", 0.0, status == 0 and not left and len(started) == 4)


def table(rows: Sequence[Row]) -> str:
    """One row a fault."""
    told: list[Sequence[object]] = [("fault", "got", "s", "then", "s", "")]
    for row in rows:
        then = row.then_seconds if row.then else ""
        told.append((row.fault, row.got, row.seconds, row.then, then, "met" if row.met else "MISSED"))
    return markdown(told)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; exit status 1 when something is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model, exams = make_models(work)[OURS], draw_exams(2, 3)
        with service(model, "--workers", 2, "--device", "cpu", "--no-page", log=work / "serve.log") as running:
            rows = asyncio.run(faults(running, exams))
            rows.append(ended(running))
    print("\n" + table(rows))
    if args.json:
        found: dict[str, Any] = {"machine": machine(), "rows": [astuple(row) for row in rows]}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
