"""Values that no field may have, names that no model has, addresses where a server must not look."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from llava_ultra_ext.serve.limits import Limits

Draw = random.Random
SCRIPTS = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}${7*7}", "javascript:alert(1)")


@dataclass(frozen=True)
class Target:
    """What mutations are made of.

    Args:
        model: name.
        picture: a good one.
        canary: path of a file, a good picture, that nobody may read.
        knock: port of this machine at which a good picture is to be had, and nobody may knock.
    """

    model: str
    picture: bytes
    canary: str
    knock: int


_NUMBERS: tuple[Any, ...] = ("hot", -0.1, 2.5, [0.5], {"a": 1}, True, 10**400)
_WHOLES: tuple[Any, ...] = (0, -5, 1.5, "9", [4], True)
API_FIELDS: dict[str, tuple[Any, ...]] = {
    "model": (None, 5, [], {}, True),
    "messages": (
        None,
        5,
        "x",
        {},
        [],
        [None],
        ["x"],
        [[]],
        [{}],
        [{"role": "user"}],
        [{"role": "root", "content": "x"}],
    ),
    "temperature": _NUMBERS,
    "top_p": _NUMBERS,
    "max_tokens": _WHOLES,
    "max_completion_tokens": _WHOLES,
    "stop": (5, [5], {"a": 1}, [""], ["a"] * 5, True),
    "stream": ("yes", 1, []),
    "n": (2, 0, "1", -1),
    "heat": ("yes", 1, []),
    "stream_options": ("x", 5, [1]),
}
API_PARTS: tuple[Any, ...] = (
    *(None, 5, "", [], {}),
    *([None], ["x"], [{}], [{"type": "video"}], [{"type": "text"}], [{"type": "text", "text": 5}]),
    *(
        [{"type": "image_url"}],
        [{"type": "image_url", "image_url": 5}],
        [{"type": "image_url", "image_url": {"url": None}}],
    ),
    *([{"type": "image_url", "image_url": {"url": ["x"]}}], [{"type": "text", "text": "  "}]),
)
WORKER_FIELDS: dict[str, tuple[Any, ...]] = {
    "prompt": (None, 5, "", "  ", [], {}, ["x"], True),
    "images": (5, "x", {}, [5], [None], [[]], [{}], True),
    "temperature": _NUMBERS,
    "top_p": _NUMBERS,
    "max_new_tokens": _WHOLES,
    "stop": (5, [], ["</s>"], {}, True),
    "model": (5, [], {}, True),
    "heat": ("yes", 1, []),
}


def addresses(draw: Draw, target: Target) -> str:
    """Where a server must not look: files, this machine, other schemes."""
    port, path = target.knock, target.canary
    return draw.choice(
        [
            *(f"file://{path}", f"file://localhost{path}", f"FILE://{path}", f"file:{path}", path, f"//{path}"),
            *(f"../../../../../../../..{path}", f"\\\\127.0.0.1@{port}\\x.png", f"local-file:{path}"),
            *(f"http://127.0.0.1:{port}/x.png", f"http://localhost:{port}/x.png", f"https://127.0.0.1:{port}/x.png"),
            *(f"http://[::1]:{port}/x.png", f"http://[::ffff:127.0.0.1]:{port}/x.png", f"http://0.0.0.0:{port}/x.png"),
            *(f"http://2130706433:{port}/x.png", f"http://0x7f000001:{port}/x.png", f"http://127.1:{port}/x.png"),
            *(f"http://user:password@127.0.0.1:{port}/x.png", f"http://127.0.0.1:{port}#@example.com/x.png"),
            *(f"HTTP://127.0.0.1:{port}/x.png", f" http://127.0.0.1:{port}/x.png", f"http:/\t/127.0.0.1:{port}/x.png"),
            *(f"ftp://127.0.0.1:{port}/x.png", f"gopher://127.0.0.1:{port}/x", f"jar:http://127.0.0.1:{port}!/x.png"),
            *(
                "http://169.254.169.254/latest/meta-data/",
                "data:text/html,<script>alert(1)</script>",
                "data:,",
                "",
                "x",
            ),
            *(f"data:image/png;base64,file://{path}", f"data:image/png,{path}", f"blob:http://127.0.0.1:{port}/x"),
        ]
    )


def wrong_model(draw: Draw, target: Target) -> str:
    """A name that no model has."""
    return draw.choice(
        [
            *SCRIPTS,
            "../../etc/passwd",
            target.canary,
            target.model + " ",
            target.model.upper(),
            "x" * 100_000,
            "\0",
            "模型",
        ]
    )


def long_text(draw: Draw) -> str:
    """More than a prompt may have; up to 1 MB."""
    characters = draw.choice([Limits().prompt_characters + 1, 100_000, 500_000])
    return draw.choice("超a ") * characters + "x"
