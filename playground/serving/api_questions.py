"""What a program asks through the API, with OpenAI's own client: exams, a stream, and requests that must be refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from processes import StepFailed


@dataclass(frozen=True)
class Question:
    """One of the quick start's.

    Args:
        exam: its number.
        text: of the question.
        frames: picture files.
    """

    exam: str
    text: str
    frames: tuple[Path, ...]

    def messages(self) -> list[dict[str, Any]]:
        """As OpenAI's clients send it."""
        pictures = [{"type": "image_url", "image_url": {"url": data_url(path.read_bytes())}} for path in self.frames]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": self.text}]}]


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def read_questions(exams: Path, least_frames: int) -> list[Question]:
    """Of held-out exams with so many frames, one an exam."""
    found: dict[str, Question] = {}
    for line in (exams / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        asked = json.loads(line)
        if len(asked["image"]) >= least_frames:
            frames = tuple(exams / name for name in asked["image"])
            found.setdefault(asked["exam_id"], Question(asked["exam_id"], asked["text"], frames))
    return list(found.values())


def ask(client: openai.OpenAI, model: str, question: Question) -> str:
    """The answer, and the same as a stream; a line for the terminal.

    Raises:
        StepFailed: they differ, nothing came piece by piece, or the chosen frame is not the one with the best score.
    """
    asked: dict[str, Any] = {"model": model, "messages": question.messages(), "temperature": 0, "max_tokens": 64}
    whole = client.chat.completions.create(**asked)
    answer = whole.choices[0].message.content or ""
    pieces = [
        piece.choices[0].delta.content or ""
        for piece in client.chat.completions.create(**asked, stream=True)
        if piece.choices
    ]
    exam = (whole.model_extra or {})["exam"]
    [chosen], scores = exam["chosen_frames"], exam["frame_scores"]
    if "".join(pieces) != answer or len(list(filter(None, pieces))) < 2:
        raise StepFailed(f"{question.exam}: the stream of {len(pieces)} pieces is not the answer")
    if len(scores) != len(question.frames) or scores[chosen] != max(scores):
        raise StepFailed(f"{question.exam}: frame {chosen} was chosen of scores {scores}")
    told = " ".join(f"[{score:.2f}]" if place == chosen else f"{score:.2f}" for place, score in enumerate(scores))
    return f"{model:20}{question.exam} {question.text} -> {answer}\n{'':20}frame {chosen + 1} of {len(scores)}: {told}"


def refusals(client: openai.OpenAI, model: str, question: Question) -> list[str]:
    """Requests with an error, each with the status and code that OpenAI's client raises.

    Raises:
        StepFailed: one was answered, or has another code.
    """
    picture = data_url(question.frames[0].read_bytes())

    def chat(urls: Sequence[str] = (), text: str = question.text, name: str = model, **more: Any) -> None:
        content = [*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": text}]
        messages: Any = [{"role": "user", "content": content}]
        client.chat.completions.create(model=name, messages=messages, **more)

    wrong: dict[str, tuple[Callable[[], None], str]] = {
        "a model that is not served": (lambda: chat(name="llava-ultra-13b"), "wrong_model"),
        "65 frames": (lambda: chat([picture] * 65), "too_many_frames"),
        "half a picture": (lambda: chat([data_url(question.frames[0].read_bytes()[:2000])]), "bad_picture"),
        "a file of this machine": (lambda: chat(["file:///etc/hostname"]), "address_not_allowed"),
        "an address of this machine": (lambda: chat(["http://127.0.0.1:22/x.png"]), "address_not_allowed"),
        "a text of 1 MB": (lambda: chat(text="超声" * 170_000), "context_too_long"),
        "a temperature of 5": (lambda: chat(temperature=5), "bad_request"),
    }
    told = []
    for what, (request, code) in wrong.items():
        try:
            request()
        except openai.APIStatusError as error:
            if error.code != code:
                raise StepFailed(f"{what}: {error.status_code} {error.code} in the place of {code}") from None
            told.append(f"{what:30}{error.status_code} {error.code}")
        else:
            raise StepFailed(f"{what}: was answered")
    return told
