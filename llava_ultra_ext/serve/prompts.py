"""The worker's prompt for a conversation about one exam, without importing LLaVA (and with it torch).

LLaVA's worker takes the finished text of a template and the string at which its answers end. The page and the API
write both here, to the letter what LLaVA's ``Conversation.get_prompt`` gives; a test compares every template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from llava_ultra_ext.conversation import SYSTEM
from llava_ultra_ext.data.exam import IMAGE_TOKEN
from llava_ultra_ext.serve.errors import ServeError

Turns = Sequence[tuple[str, str | None]]
"""User text and answer of each turn; the last answer is None: it is asked for."""

DEFAULT_TEMPLATE = "ultra_v1_zh"

_VICUNA = (
    "A chat between a curious {who} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {who}'s questions."
)


@dataclass(frozen=True)
class Template:
    """How a template writes turns.

    Args:
        write: system text and turns -> prompt.
        system: who speaks and how.
        stop: what ends an answer; the worker is told, and never shows it.
    """

    write: Callable[[str, Turns], str]
    system: str
    stop: str = "</s>"


def _two(user: str, assistant: str) -> Callable[[str, Turns], str]:
    """LLaVA's style TWO: a blank behind the user's text, ``</s>`` behind an answer."""

    def write(system: str, turns: Turns) -> str:
        written = [f"{user}: {text} {assistant}:" + (f" {answer}</s>" if answer else "") for text, answer in turns]
        return f"{system} " + "".join(written)

    return write


def _llama2(system: str, turns: Turns) -> str:
    """LLaVA's style LLAMA_2: the system text is wrapped into the first question; no ``<s>`` before the first turn."""
    written = []
    for turn, (text, answer) in enumerate(turns):
        asked = f"<<SYS>>\n{system}\n<</SYS>>\n\n{text}" if turn == 0 else text
        written.append(f"[INST] {asked} [/INST]" + (f" {answer} </s>" if answer else ""))
    return "<s>".join(written)


def _chatml(system: str, turns: Turns) -> str:
    """LLaVA's style MPT: nothing but ``<|im_end|>`` between the parts, no newline."""
    written = [
        f"<|im_start|>user\n{text}<|im_end|><|im_start|>assistant\n" + (f"{answer}<|im_end|>" if answer else "")
        for text, answer in turns
    ]
    return f"<|im_start|>system\n{system}<|im_end|>" + "".join(written)


TEMPLATES: dict[str, Template] = {
    "ultra_v1_zh": Template(_two("用户", "助手"), SYSTEM),
    "ultra_llama2_zh": Template(_llama2, SYSTEM),
    "ultra_chatml_zh": Template(_chatml, SYSTEM, stop="<|im_end|>"),
    "vicuna_v1": Template(_two("USER", "ASSISTANT"), _VICUNA.format(who="user")),
    "llava_v1": Template(_two("USER", "ASSISTANT"), _VICUNA.format(who="human")),
}
"""Names of ``--conv-mode``: ours and LLaVA's."""


def write_prompt(template: str, turns: Turns, images: int, images_turn: int = 0) -> str:
    """The prompt that asks for the last turn's answer.

    Args:
        template: a name of `TEMPLATES`.
        turns: at least one; all but the last one with an answer.
        images: frames of the exam; one ``<image>`` and a newline for each stand before the text of one turn.
        images_turn: that turn, counted from 0.

    Raises:
        ServeError: ``bad_request``: no turn, an answer where none may be or none where one must be, a question
            without text and pictures, or a text that holds ``<image>``, which would shift the frames behind it.
    """
    if not turns or any((answer is None) != (turn == len(turns) - 1) for turn, (_, answer) in enumerate(turns)):
        raise ServeError(
            "bad_request", "A conversation ends with a question, and each earlier question has one answer."
        )
    if any(IMAGE_TOKEN in (text or "") for turn in turns for text in turn):
        raise ServeError(
            "bad_request", f"A text holds {IMAGE_TOKEN}, a picture's mark. Leave it out: pictures have it."
        )
    marks = f"{IMAGE_TOKEN}\n" * images
    marked = [(marks + text if turn == images_turn else text, answer) for turn, (text, answer) in enumerate(turns)]
    if any(not text.strip() for text, _ in marked):
        raise ServeError("bad_request", "A question is empty. Each needs a text, or pictures.")
    chosen = TEMPLATES[template]
    return chosen.write(chosen.system, marked)


@dataclass(frozen=True)
class TemplateChoice:
    """Which template a model was trained with: LLaVA's workers do not say.

    Args:
        default: of every model that `by_model` does not name.
        by_model: name of a model -> template.
    """

    default: str = DEFAULT_TEMPLATE
    by_model: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, values: Sequence[str]) -> TemplateChoice:
        """From the values of ``--conv-mode``: ``TEMPLATE`` for all models, ``TEMPLATE=MODEL`` for one.

        Raises:
            ValueError: an unknown template.
        """
        default, by_model = DEFAULT_TEMPLATE, {}
        for value in values:
            template, equals, model = value.partition("=")
            if template not in TEMPLATES:
                raise ValueError(
                    f"--conv-mode {value}: there is no such template. Give one of {', '.join(TEMPLATES)}, "
                    "or TEMPLATE=MODEL for one model."
                )
            if equals:
                by_model[model] = template
            else:
                default = template
        return cls(default, by_model)

    def of(self, model: str) -> str:
        """The template's name for a model."""
        return self.by_model.get(model, self.default)
