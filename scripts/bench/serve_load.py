"""What many clients at once get: exams through API, controller and workers, beside stock LLaVA with one picture.

    python scripts/bench/serve_load.py [--clients 50] [--minutes 5] [--frames 8] [--workers 2] [--json FILE] [--quick]

Both sides in one run, one after the other, with tiny models of the same LLM and CLIP. Ours: `llava-ultra serve`, the
API's stream, exams of --frames frames. Stock: LLaVA's controller and model_worker with the plugin off, asked as LLaVA's
own web server asks them: the worker's address from the controller, one picture, 10 s without a byte are a failure.

Every question holds a token of its own. At temperature 0 its answer is always the same; one client alone asks each once
before, and all answers must differ, also from that to its text with the pictures of another. Under load an answer that
belongs to another question is *crossed*, one that belongs to none *wrong* (as text and pictures of two would be), and
a request that ends without an answer *lost*, with its code. *Busy* replies are counted apart: the client asks again
after a pause. Seconds are of the request that was answered; `with tries` also counts those that were told to come
again. Memory is the workers' RSS.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from serve_making import OURS, STOCK, Exam, draw_exams, make_models
from serve_parts import ApiClient, Reply, machine, markdown, percentile, request_body, service, stock_service

Ask = Callable[[int], Awaitable[Reply]]
"""The number of a question -> what became of it."""

PAUSE = (0.3, 1.0)
"""Seconds until a client that was told `busy` asks again."""
WEB_SERVER_SECONDS = 10.0
"""Timeout of LLaVA's gradio_web_server."""
FLAT_SHARE, FLAT_MB = 1.05, 16.0
"""Memory is flat when its end is at most this much above one minute in; the allocator keeps what the first requests
used."""


@dataclass
class Outcome:
    """What the clients got.

    Args:
        counts: by verdict: right, crossed, wrong, busy, and each code of what was lost.
        first: seconds to the first text, of right answers.
        total: to their end.
        tries: to their end from the first time that the question was asked.
        seconds: of the whole.
        memory: MB of all workers at the start, after a minute (or half of a shorter run), at the end.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    tries: list[float] = field(default_factory=list)
    seconds: float = 0.0
    memory: list[float] = field(default_factory=list)

    def lost(self) -> int:
        """Requests without an answer."""
        return sum(self.counts.values()) - sum(self.counts[name] for name in ("right", "crossed", "wrong", "busy"))

    def flat(self) -> bool:
        """Whether memory was."""
        return self.memory[-1] <= FLAT_SHARE * self.memory[1] + FLAT_MB


def verdict(reply: Reply, question: int, expected: Sequence[str]) -> str:
    """Whose answer it is: right, crossed, wrong, or the code of one that did not come.

    Args:
        reply: to a question.
        question: its number.
        expected: the answer to each.
    """
    if reply.code != "ok":
        return reply.code
    if reply.text == expected[question]:
        return "right"
    return "crossed" if reply.text in expected else "wrong"


async def reference(ask: Ask, questions: int) -> list[str]:
    """Each question's answer, asked by one client alone.

    Raises:
        SystemExit: one was not answered, or two have the same answer, so that a crossed one would not be seen.
    """
    replies = [await ask(number) for number in range(questions)]
    if bad := [reply.code for reply in replies if reply.code != "ok"]:
        raise SystemExit(f"one client alone was not answered: {Counter(bad)}")
    answers = [reply.text for reply in replies]
    if len(set(answers)) < questions:
        raise SystemExit(f"{questions} questions have {len(set(answers))} answers: crossed ones would not be seen.")
    return answers


async def load(
    ask: Ask, expected: Sequence[str], clients: int, seconds: float, workers: Sequence[psutil.Process]
) -> Outcome:
    """Clients that ask one question after the other until the time is over; what is under way is waited for."""
    outcome, begin = Outcome(), time.monotonic()

    async def client(number: int) -> None:
        order = random.Random(number)
        while time.monotonic() - begin < seconds:
            question, asked = order.randrange(len(expected)), time.monotonic()
            while True:
                reply = await ask(question)
                outcome.counts[said := verdict(reply, question, expected)] += 1
                if said != "busy" or time.monotonic() - begin >= seconds:
                    break
                await asyncio.sleep(order.uniform(*PAUSE))
            if said == "right":
                outcome.first.append(reply.first)
                outcome.total.append(reply.total)
                outcome.tries.append(time.monotonic() - asked)

    outcome.memory.append(_megabytes(workers))
    running = [asyncio.create_task(client(number)) for number in range(clients)]
    await asyncio.sleep(min(60.0, seconds / 2))
    outcome.memory.append(_megabytes(workers))
    await asyncio.gather(*running)
    outcome.seconds = time.monotonic() - begin
    outcome.memory.append(_megabytes(workers))
    return outcome


def _megabytes(workers: Sequence[psutil.Process]) -> float:
    return sum(process.memory_info().rss for process in workers) / 1e6


async def through_the_api(args: argparse.Namespace, model: Path, exams: Sequence[Exam], work: Path) -> Outcome:
    """Our side."""
    flags = ("--workers", args.workers, "--device", "cpu", "--no-page")
    with service(model, *flags, log=work / "serve.log") as running:
        client = ApiClient(running.api)
        bodies = [request_body(OURS, exam, args.tokens) for exam in exams]
        expected = await reference(lambda number: client.ask(bodies[number]), len(exams))
        for exam, next_exam in zip(exams, [*exams[1:], exams[0]], strict=True):
            mixed = await client.ask(request_body(OURS, Exam(exam.text, next_exam.frames), args.tokens))
            if mixed.text in expected:
                raise SystemExit("text and pictures of two questions have the answer of one: it would not be seen.")
        found = await load(
            lambda number: client.ask(bodies[number]), expected, args.clients, 60 * args.minutes, running.workers()
        )
        await client.close()
        return found


class WebServer:
    """LLaVA's gradio_web_server, as far as it asks.

    Args:
        controller: address.
    """

    def __init__(self, controller: str) -> None:
        limits = httpx.Limits(max_connections=None)
        self.http = httpx.AsyncClient(trust_env=False, timeout=WEB_SERVER_SECONDS, limits=limits)
        self.controller = controller

    async def ask(self, payload: Mapping[str, Any]) -> Reply:
        """One question; the stream's texts begin with the prompt, which holds the question's number."""
        begin, first, text, prompt = time.monotonic(), 0.0, "", payload["prompt"]
        try:
            told = await self.http.post(f"{self.controller}/get_worker_address", json={"model": payload["model"]})
            worker = told.json()["address"]
            if not worker:
                return Reply("no worker")
            async with self.http.stream("POST", f"{worker}/worker_generate_stream", json=payload) as response:
                rest = b""
                async for chunk in response.aiter_raw():
                    *whole, rest = (rest + chunk).split(b"\0")
                    for message in map(json.loads, filter(None, whole)):
                        if message["error_code"]:
                            return Reply(f"error {message['error_code']}", text, first, time.monotonic() - begin)
                        if not message["text"].startswith(prompt):
                            return Reply("ok", "the prompt of another", first, time.monotonic() - begin)
                        text = message["text"][len(prompt) :].strip()
                        if text and not first:
                            first = time.monotonic() - begin
        except httpx.HTTPError as error:
            return Reply(f"connection: {type(error).__name__}", text, first, time.monotonic() - begin)
        return Reply("ok" if text else "empty", text, first, time.monotonic() - begin)


async def through_llava(args: argparse.Namespace, model: Path, exams: Sequence[Exam], work: Path) -> Outcome:
    """LLaVA's side: the first frame of each exam."""
    with stock_service(model, args.workers, work / "stock") as (controller, workers):
        web = WebServer(controller)
        payloads = [_payload(exam, args.tokens) for exam in exams]
        expected = await reference(lambda number: web.ask(payloads[number]), len(exams))
        found = await load(lambda number: web.ask(payloads[number]), expected, args.clients, 60 * args.minutes, workers)
        await web.http.aclose()
        return found


def _payload(exam: Exam, tokens: int) -> dict[str, Any]:
    from llava_ultra_ext.serve.prompts import write_prompt

    return {
        "model": STOCK,
        "prompt": write_prompt("llava_v1", [(exam.text, None)], 1),
        "temperature": 0.0,
        "top_p": 0.7,
        "max_new_tokens": tokens,
        "stop": "</s>",
        "images": [base64.b64encode(exam.frames[0]).decode()],
    }


def table(sides: Mapping[str, Outcome]) -> str:
    """The outcomes side by side."""
    rows: list[list[object]] = [["", *sides]]
    each = list(sides.values())
    rows.append(["answers, right", *(side.counts["right"] for side in each)])
    rows.append(["lost", *(_lost(side) for side in each)])
    rows.append(["crossed; wrong", *(f"{side.counts['crossed']}; {side.counts['wrong']}" for side in each)])
    rows.append(["busy replies", *(side.counts["busy"] for side in each)])
    rows.append(["answers a minute", *(60 * side.counts["right"] / side.seconds for side in each)])
    for name, pick in (("first token", "first"), ("whole answer", "total"), ("whole answer with tries", "tries")):
        values = [getattr(side, pick) for side in each]
        rows.append([f"{name}, p50; p95, s", *(f"{percentile(v, 0.5):.2f}; {percentile(v, 0.95):.2f}" for v in values)])
    told = ["; ".join(f"{value:.0f}" for value in side.memory) for side in each]
    rows.append(["workers' memory: start; 1 min; end, MB", *told])
    return markdown(rows)


def _lost(side: Outcome) -> str:
    codes = {code: count for code, count in side.counts.items() if code not in ("right", "crossed", "wrong", "busy")}
    return f"{side.lost()}" + "".join(f", {code}: {count}" for code, count in sorted(codes.items()))


def targets(ours: Outcome) -> dict[str, bool]:
    """What is asked of our side."""
    return {
        "no answer lost": ours.lost() == 0,
        "none crossed or wrong": not ours.counts["crossed"] and not ours.counts["wrong"],
        "memory flat": ours.flat(),
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = made.add_argument
    add("--clients", type=int, default=50)
    add("--minutes", type=float, default=5.0, help="of each side (default: %(default)s)")
    add("--frames", type=int, default=8, help="of an exam (default: %(default)s)")
    add("--workers", type=int, default=2, help="of each side (default: %(default)s)")
    add("--tokens", type=int, default=32, help="of an answer (default: %(default)s)")
    add("--json", type=Path, help="where to write the figures")
    add("--quick", action="store_true", help="8 clients, 5 seconds a side: shows that it runs")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; exit status 1 when a target is missed, which --quick judges but for memory."""
    args = parser().parse_args(argv)
    if args.quick:
        args.clients, args.minutes, args.frames, args.tokens = 8, 5 / 60, 3, 8
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models, exams = make_models(work), draw_exams(args.clients, args.frames)
        ours = asyncio.run(through_the_api(args, models[OURS], exams, work))
        stock = asyncio.run(through_llava(args, models[STOCK], exams, work))
    sides = {f"exams of {args.frames} frames, API": ours, "one picture, stock LLaVA": stock}
    judged = targets(ours)
    if args.quick:
        judged.pop("memory flat")
    print(table(sides))
    for target, met in judged.items():
        print(f"target {target}: {'met' if met else 'MISSED'}")
    if args.json:
        asked = {name: value for name, value in vars(args).items() if name != "json"}
        figures = {name: {**vars(side), "counts": dict(side.counts)} for name, side in sides.items()}
        found = {"machine": machine(), "asked": asked, "sides": figures, "targets": judged}
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if all(judged.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
