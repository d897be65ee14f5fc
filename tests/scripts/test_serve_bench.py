"""The serving benchmarks: `--quick` runs, and what they look for would be seen if it were there."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
from run_llava import environment

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts' own modules can be imported."""
    monkeypatch.syspath_prepend(str(BENCH))


def test_load_quick(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    command = [sys.executable, str(BENCH / "serve_load.py"), "--quick", "--json", str(tmp_path / "load.json")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "| crossed; wrong | 0; 0 | 0; 0 |" in done.stdout and "target no answer lost: met" in done.stdout
    found = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    for side in found["sides"].values():
        assert side["counts"]["right"] > 8 == found["asked"]["clients"]
        assert len(side["memory"]) == 3 and min(side["memory"]) > 100  # MB of two workers
        assert all(0 < first <= total for first, total in zip(side["first"], side["total"], strict=True))


class TestLoad:
    EXPECTED = ("甲", "乙", "丙")

    def test_whose_answer_it_is(self) -> None:
        from serve_load import verdict
        from serve_parts import Reply

        replies = {"right": Reply("ok", "乙"), "crossed": Reply("ok", "丙"), "wrong": Reply("ok", "乙丙")}
        replies |= {"busy": Reply("busy"), "cut off": Reply("cut off", "乙"), "worker_lost": Reply("worker_lost", "乙")}
        assert {said: verdict(reply, 1, self.EXPECTED) for said, reply in replies.items()} == {
            said: said for said in replies
        }

    def test_a_service_that_crosses_loses_and_is_busy_is_found_out(self) -> None:
        from serve_load import load, table, targets
        from serve_parts import Reply

        asked = [0]

        async def ask(question: int) -> Reply:
            asked[0] += 1
            await asyncio.sleep(0.001)
            answers = {3: self.EXPECTED[question - 1], 5: "another"}
            if asked[0] % 10 in (7, 8):
                return Reply("busy" if asked[0] % 10 == 7 else "worker_lost")
            return Reply("ok", answers.get(asked[0] % 10, self.EXPECTED[question]), 0.1, 0.2)

        outcome = asyncio.run(load(ask, self.EXPECTED, 4, 0.5, [psutil.Process()]))
        assert min(outcome.counts[name] for name in ("crossed", "wrong", "busy", "worker_lost", "right")) > 0
        assert outcome.lost() == outcome.counts["worker_lost"]
        assert targets(outcome) == {"no answer lost": False, "none crossed or wrong": False, "memory flat": True}
        outcome.memory[:] = [100, 200, 400]
        assert not targets(outcome)["memory flat"]
        assert f"worker_lost: {outcome.lost()}" in table({"ours": outcome})

    def test_equal_answers_are_refused_as_a_reference(self) -> None:
        from serve_load import reference
        from serve_parts import Reply

        async def ask(question: int) -> Reply:
            return Reply("ok", "same" if question else "other")

        assert asyncio.run(reference(ask, 2)) == ["other", "same"]
        with pytest.raises(SystemExit, match="3 questions have 2 answers"):
            asyncio.run(reference(ask, 3))


class TestInputs:
    def test_a_request_that_is_answered_or_leaks_is_found_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import serve_inputs
        from serve_pictures import pictures
        from serve_values import SCRIPTS, Target

        said = {
            "/v1/chat/completions": httpx.Response(200, json={"choices": []}),
            "/worker_generate_stream": httpx.Response(200, content=b'{"text": "x", "error_code": 0}\0'),
            "/exam": httpx.Response(500, text="Internal Server Error"),
        }
        running = SimpleNamespace(api="http://a/v1", page="http://p", workers=lambda: [None])
        monkeypatch.setattr(serve_inputs, "address_of", lambda process: "http://w")
        bench = serve_inputs.Bench(running, Target("m", pictures(1)[0], "/canary", 1))

        def accepted() -> dict[tuple[str, str], list[str]]:
            bench.http = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: said[request.url.path]))
            kinds = [("API", "wrong types"), ("worker", "cut off"), ("page", "damaged")]
            for kind in kinds:
                bench.found[kind] = serve_inputs.Kind()
                asyncio.run(bench.try_one(*kind, random.Random(0)))
            return {kind: bench.found[kind].accepted for kind in kinds}

        assert all(len(found) == 1 for found in accepted().values())
        said["/v1/chat/completions"] = httpx.Response(400, json={"error": {"code": "bad_request"}})
        said["/worker_generate_stream"] = httpx.Response(200, content=b'{"text": "x", "error_code": 1, "code": "c"}\0')
        said["/exam"] = httpx.Response(413, json={"code": "too_many_frames"})
        assert not any(accepted().values())
        assert bench.found["worker", "cut off"].codes == {"c": 1}
        said["/v1/chat/completions"] = httpx.Response(400, text=serve_inputs.SECRET)
        said["/exam"] = httpx.Response(404, html=f"no {SCRIPTS[0]}")
        found = accepted()
        assert "the canary's text" in found["API", "wrong types"][0] and "a script" in found["page", "damaged"][0]

    def test_every_kind_changes_a_good_request_and_a_seed_makes_it_again(self) -> None:
        from serve_mutations import ROUTES, chat, stream, upload
        from serve_pictures import pictures
        from serve_values import Target

        target = Target("m", pictures(1)[0], "/canary.png", 1)
        good = {"API": chat(target), "worker": stream(target), "page": upload(target.picture)}
        assert len(ROUTES) == 3 and sum(map(len, ROUTES.values())) >= 35
        for route, kinds in ROUTES.items():
            for kind in kinds.values():
                made = [[kind(random.Random(seed), target) for seed in range(4)] for _ in range(2)]
                assert made[0] == made[1] and good[route] not in made[0]

    def test_openings_and_connections_are_seen(self, tmp_path: Path) -> None:
        from serve_inputs import listening, watched

        path = tmp_path / "canary"
        path.write_text("x")
        with watched(path) as opened:
            pass
        assert opened == [0]
        with watched(path) as opened:
            subprocess.run(["cat", str(path)], check=True, capture_output=True)
        assert opened == [1]

        async def knock() -> list[str]:
            async with listening(b"x") as (port, came):
                assert came == []
                async with httpx.AsyncClient(trust_env=False) as client:
                    await client.get(f"http://127.0.0.1:{port}/x.png")
                return came

        assert len(asyncio.run(knock())) == 1
