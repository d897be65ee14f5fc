"""A small OpenAI-compatible server with faults, in a process of its own: ``python chat_server.py PORT PLAN.json``.

PLAN.json: a list of faults, one a request in the order of arrival, after which all goes well; every request is counted
at ``/seen``. A good answer repeats the report.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

FAULTS = (
    "429",
    "429-date",
    "500",
    "400",
    "401",
    "cut",
    "html",
    "not-json",
    "wrong-schema",
    "invented",
    "length",
    "slow",
)


def good(messages: list[dict[str, str]]) -> dict[str, Any]:
    parts = dict(line.split("：", 1) for line in messages[1]["content"].splitlines() if "：" in line)
    site, findings, diagnosis = parts["检查部位"], parts["超声所见"], parts["诊断"]
    turns = [
        {"topic": "site", "question": "这是什么部位？", "answer": f"{site}。"},
        {"topic": "findings", "question": "图中有哪些表现？", "answer": findings},
        {"topic": "diagnosis", "question": "应如何诊断？", "answer": diagnosis},
    ]
    return {"description": findings.split("，")[0] + "。", "conversation": turns}


def completion(text: str, finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 100}}


def make_app(plan: list[str], delay_s: float) -> FastAPI:
    app, seen = FastAPI(), {"requests": 0, "keys": []}

    @app.get("/seen")
    async def told() -> dict[str, Any]:
        return seen

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> Response:
        body = await request.json()
        fault = plan[seen["requests"]] if seen["requests"] < len(plan) else ""
        seen["requests"] += 1
        seen["keys"].append(request.headers.get("authorization", ""))
        await asyncio.sleep(delay_s)
        text = json.dumps(good(body["messages"]), ensure_ascii=False)
        if fault == "429":
            return JSONResponse({"error": "slow down"}, 429, {"Retry-After": "0.3"})
        if fault == "429-date":
            return JSONResponse({"error": "slow down"}, 429, {"Retry-After": "Thu, 01 Jan 2015 00:00:00 GMT"})
        if fault.isdigit():
            return JSONResponse({"error": "no"}, int(fault))
        if fault == "cut":
            half = json.dumps(completion(text)).encode()[:100]

            async def cut() -> Any:
                yield half
                raise ConnectionResetError

            return StreamingResponse(cut(), media_type="application/json")
        if fault == "html":
            return Response("<html>gateway</html>", media_type="text/html")
        if fault == "slow":
            await asyncio.sleep(5)
        wrong = {"not-json": "好的，以下是", "wrong-schema": '{"description": "见结节", "conversation": []}'}
        if fault == "invented":
            text = text.replace("结节", "结节伴癌", 1)
        finish = "length" if fault == "length" else "stop"
        return JSONResponse(completion(wrong.get(fault, text), finish))

    return app


if __name__ == "__main__":
    port, plan, delay = int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), float(sys.argv[3])
    uvicorn.run(make_app(plan, delay), host="127.0.0.1", port=port, log_level="critical")
