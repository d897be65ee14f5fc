"""What OpenAI's clients send and expect: chat completions with pictures, as JSON, and the conversation they mean."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, Strict, ValidationError
from pydantic_core import PydanticCustomError

from llava_ultra_ext.serve.answer import Piece
from llava_ultra_ext.serve.openai_errors import BadField

Text = Annotated[str, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Whole = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ImageAddress(BaseModel):
    """Where a picture is; `detail` is ignored, since frames are chosen and not scaled."""

    url: Text


class ImagePart(BaseModel):
    """A frame."""

    type: Literal["image_url"]
    image_url: ImageAddress


MOST = 1024
"""Messages, and parts of one. Our choice: far more than frames are allowed, whose excess has a code of its own."""


def _parts(content: Any) -> Any:
    if not isinstance(content, str | list):
        raise PydanticCustomError("content", "give a text or a list of parts")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(BaseModel):
    """One message; a text stands for one text part."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
        Field(max_length=MOST),
        BeforeValidator(_parts),
    ]

    @property
    def text(self) -> str:
        """Its text parts, a line each."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def addresses(self) -> list[str]:
        """Addresses of its pictures."""
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)]


def _texts(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class StreamOptions(BaseModel):
    """Of a stream."""

    include_usage: Flag = False


class ChatRequest(BaseModel):
    """``POST /v1/chat/completions``; keys that are not here are ignored. `heat` is ours: a map for each chosen frame.

    Our choice: the defaults are those of LLaVA's page. OpenAI's temperature of 1 invents more than a report may hold.
    """

    model: Text
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST)]
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    stop: (
        Annotated[
            list[Annotated[Text, Field(min_length=1, max_length=256)]], Field(max_length=4), BeforeValidator(_texts)
        ]
        | None
    ) = None
    n: Literal[1] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    heat: Flag | None = None

    @classmethod
    def parse(cls, body: bytes | bytearray) -> ChatRequest:
        """From a request's body.

        Raises:
            BadField: the first thing that is wrong; nothing of the body is quoted.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Behind the number of a part pydantic names the part's type, which is no field of the request.
        loc = first["loc"]
        steps = [step for at, step in enumerate(loc) if not (at > 1 and loc[at - 2] == "content")]
        place = ".".join(map(str, steps))
        if first["type"].startswith("union_tag"):  # pydantic's own message quotes what was given
            raise BadField(f"{place}.type", "give text or image_url")
        if first["type"] == "json_invalid":
            raise BadField("", f"not JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
        raise BadField(place, f"{first['msg'][:1].lower()}{first['msg'][1:]}")


@dataclass
class Conversation:
    """What the messages mean: turns as `client.Question` has them, and the exam's pictures, not yet read."""

    turns: list[tuple[str, str | None]] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    images_turn: int = 0


def read_conversation(messages: Sequence[Message]) -> Conversation:
    """Turns of user and assistant from OpenAI's list.

    Our choice: a system text stands in front of the next user's text, since the system text of a template is what its
    model was trained with; messages of one speaker in a row are one text; pictures stand in front of their message's
    text and are one exam, so only one message has some. Questions about the exam may follow in later messages.

    Raises:
        BadField: pictures where none may be, an answer without a question, or no question at the end.
    """
    found = Conversation()
    system: list[str] = []
    for place, message in enumerate(messages):
        where = f"messages.{place}"
        if message.addresses:
            _take_pictures(found, message, where)
        if message.role in ("system", "developer"):
            system.append(message.text)
        elif message.role == "user":
            text = "\n".join([*system, message.text])
            system = []
            if found.turns and found.turns[-1][1] is None:
                text = f"{found.turns.pop()[0]}\n{text}"
            found.turns.append((text, None))
            if message.addresses:
                found.images_turn = len(found.turns) - 1
        elif not found.turns:
            raise BadField(where, "an assistant's message needs a user's message before it")
        else:
            asked, answer = found.turns.pop()
            found.turns.append((asked, message.text if answer is None else f"{answer}\n{message.text}"))
    if not found.turns or found.turns[-1][1] is not None or system:
        raise BadField("messages", "the last message must be a user's, with the question to answer")
    return found


def _take_pictures(found: Conversation, message: Message, where: str) -> None:
    if message.role != "user":
        raise BadField(where, "pictures belong into a user's message")
    if found.addresses:
        raise BadField(
            where,
            "a conversation is about one exam, and an earlier message has its pictures. Send all of its frames in one "
            "message, or start a new conversation",
        )
    found.addresses = message.addresses


class Completion:
    """The answer to one request, in OpenAI's forms; `exam` is ours."""

    def __init__(self, model: str) -> None:
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, last: Piece) -> dict[str, Any]:
        """A ``chat.completion``."""
        message = {"role": "assistant", "content": last.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": last.finish, "logprobs": None}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(last),
            "exam": exam(last),
        }

    def chunk(self, delta: dict[str, Any], last: Piece | None = None) -> bytes:
        """A ``chat.completion.chunk`` as an event; `last` closes the choice and carries `exam`."""
        choice = {"index": 0, "delta": delta, "finish_reason": last.finish if last else None, "logprobs": None}
        values = {**self._common, "object": "chat.completion.chunk", "choices": [choice]}
        return event({**values, "exam": exam(last)} if last else values)

    def usage_chunk(self, last: Piece) -> bytes:
        """The event that ``stream_options.include_usage`` asks for."""
        return event({**self._common, "object": "chat.completion.chunk", "choices": [], "usage": usage(last)})


def exam(piece: Piece) -> dict[str, Any]:
    """What is known of the exam; a stock worker knows nothing of it."""
    return {
        "chosen_frames": list(piece.chosen),
        "frame_scores": list(piece.scores),
        "alpha": piece.alpha,
        "times": dict(piece.times),
        "heat": list(piece.heat),
    }


def usage(piece: Piece) -> dict[str, int] | None:
    """OpenAI's count of tokens; None where the worker does not count, rather than a guess."""
    if not piece.tokens:
        return None
    prompt, answer = int(piece.tokens["prompt"]), int(piece.tokens["answer"])
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def event(values: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(values)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
