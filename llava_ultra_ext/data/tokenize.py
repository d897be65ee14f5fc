"""From a conversation to token ids and labels, for any tokenizer and any of LLaVA's templates.

LLaVA's ``preprocess_*`` (``train/train.py``) find the answers by counting the tokens of pieces of the prompt, which
holds for some tokenizers only; a miscount blanks the sample with a printed warning. Here the whole prompt is tokenized
exactly as inference does it, and an answer's labels lie between two prefixes of that prompt: the one that inference
would send (it ends with the assistant's role), and the one that ends with the answer's end marker. A token that reaches
over the first border belongs to the answer; one that reaches over the second is the next question's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from llava_ultra_ext.data.exam import IMAGE_RUN, IMAGE_TOKEN, Turn

IGNORE_INDEX = -100
"""LLaVA's ``constants.IGNORE_INDEX``: what cross entropy skips."""
IMAGE_TOKEN_INDEX = -200
"""LLaVA's ``constants.IMAGE_TOKEN_INDEX``: stands for a picture until its tokens are spliced in."""


class Template(Protocol):
    """What is used of LLaVA's ``Conversation``."""

    roles: Any
    messages: Any
    sep: str
    sep2: str | None
    sep_style: Any
    version: str

    def copy(self) -> Any:
        """A conversation of its own."""

    def get_prompt(self) -> str:
        """The prompt of its messages; a last message None asks for an answer."""


class UntrainableText(ValueError):
    """The conversation yields no labels; the message says why, without quoting it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Encoded:
    """A tokenized conversation.

    Args:
        input_ids: L ids, `IMAGE_TOKEN_INDEX` for each picture.
        labels: L ids, `IGNORE_INDEX` outside of answers.
        groups: [start, stop) of each redundancy group, from its first picture to behind its last.
    """

    input_ids: list[int]
    labels: list[int]
    groups: list[tuple[int, int]]


def place_images(text: str) -> str:
    """Where the pictures of a human turn stand.

    One picture goes to the front, on a line of its own (LLaVA's ``preprocess_multimodal``, and what its evaluation
    scripts send). Our choice for several: they stay where they are, each on a line of its own.
    """
    if text.count(IMAGE_TOKEN) == 1:
        return f"{IMAGE_TOKEN}\n{text.replace(IMAGE_TOKEN, '').strip()}".strip()
    if IMAGE_TOKEN not in text:
        return text
    return re.sub(
        rf"{IMAGE_RUN.pattern}\s*", lambda run: f"{IMAGE_TOKEN}\n" * run.group().count(IMAGE_TOKEN), text
    ).strip()


def encode_prompt(prompt: str, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a prompt as inference makes them (LLaVA's ``mm_utils.tokenizer_image_token``).

    The text between the pictures is tokenized piece by piece; when the tokenizer opens each piece with BOS, only the
    first one is kept.

    Returns:
        L ids, and [start, stop) of each redundancy group.
    """
    pieces = prompt.split(IMAGE_TOKEN)
    ids: list[int] = list(tokenizer(pieces[0]).input_ids)
    bos = tokenizer.bos_token_id
    skip = 1 if ids and bos is not None and ids[0] == bos else 0
    groups: list[tuple[int, int]] = []
    for before, piece in pairwise(pieces):
        joins = groups and not before.strip()
        groups.append((groups.pop()[0] if joins else len(ids), len(ids) + 1))
        ids.append(IMAGE_TOKEN_INDEX)
        ids.extend(tokenizer(piece).input_ids[skip:])
    return ids, groups


def tokenize_turns(turns: Sequence[Turn], template: Template, tokenizer: Any) -> Encoded:
    """Tokenize a conversation and label its answers, each with its end marker.

    Args:
        turns: human and gpt turns, alternating, human first (`Exam.conversations`).
        template: one of LLaVA's conversations, of any style.
        tokenizer: any Hugging Face tokenizer.

    Raises:
        UntrainableText: an answer has no token of its own, or the template does not fit the conversation.
    """
    prompt, answers = _plain_prompt(turns, template) if _is_plain(template) else _prompt(turns, template)
    ids, groups = encode_prompt(prompt, tokenizer)
    labels = [IGNORE_INDEX] * len(ids)
    spans = _spans_of_rounds(ids, answers, template, tokenizer) if len(answers) > 1 else None
    for start, stop in spans or _spans_of_prefixes(ids, answers, prompt, tokenizer):
        if start >= stop:
            raise UntrainableText(
                "empty_labels", "an answer has no token of its own. Check its text and the tokenizer."
            )
        labels[start:stop] = ids[start:stop]
    return Encoded(ids, labels, groups)


def truncate(encoded: Encoded, limit: int, group_tokens: Sequence[int]) -> Encoded:
    """Cut the end of a conversation that would be longer than the model allows once its pictures are spliced in.

    Args:
        encoded: a tokenized conversation.
        limit: ``--model_max_length``, in tokens after the splice.
        group_tokens: how many tokens each redundancy group brings into the language model.

    Raises:
        UntrainableText: what remains would lack a picture, or every label.
    """
    spliced = len(encoded.input_ids) - sum(stop - start for start, stop in encoded.groups) + sum(group_tokens)
    if spliced <= limit:
        return encoded
    length = len(encoded.input_ids) - (spliced - limit)
    advice = f"needs {spliced} tokens, --model_max_length allows {limit}: raise it, or shorten the conversation"
    if encoded.groups and length < encoded.groups[-1][1]:
        raise UntrainableText("too_long_images", f"{advice}; cut there, it would lose a picture.")
    labels = encoded.labels[: max(0, length)]
    if all(label == IGNORE_INDEX for label in labels):
        raise UntrainableText("too_long_labels", f"{advice}; cut there, it would lose every answer.")
    return Encoded(encoded.input_ids[:length], labels, encoded.groups)


def end_marker(template: Template) -> str:
    """The text that ends an answer: `sep2`, or `sep` in the styles that have one separator."""
    return template.sep2 or template.sep


def _is_plain(template: Template) -> bool:
    return bool(template.sep_style.name == "PLAIN")


def _prompt(turns: Sequence[Turn], template: Template) -> tuple[str, list[tuple[str, str]]]:
    """The whole prompt, and for each answer the two prefixes of it that enclose the answer."""
    conversation = template.copy()
    messages: list[list[str | None]] = []

    def render() -> str:
        conversation.messages = messages
        return str(conversation.get_prompt())

    answers: list[tuple[str, str]] = []
    for index, turn in enumerate(turns):
        role = template.roles[index % 2]
        if turn.speaker == "human":
            messages.append([role, place_images(turn.text)])
            continue
        messages.append([role, None])
        question = render()
        messages[-1][1] = turn.text
        answers.append((question, render()))
    prompt = render()
    if not all(prompt.startswith(prefix) for pair in answers for prefix in pair):
        raise UntrainableText(
            "template", f"template {template.version} rewrites earlier turns, its answers cannot be found. Use another."
        )
    return prompt, answers


def _plain_prompt(turns: Sequence[Turn], template: Template) -> tuple[str, list[tuple[str, str]]]:
    """Stage 1 (LLaVA's ``preprocess_plain``): the pictures, then the caption; the question's words are dropped."""
    if [turn.speaker for turn in turns] != ["human", "gpt"] or IMAGE_TOKEN not in turns[0].text:
        raise UntrainableText(
            "plain_needs_caption",
            "a plain template takes one question with its pictures and one caption. "
            "Use a conversation template (--version) for other samples.",
        )
    pictures = IMAGE_TOKEN * turns[0].text.count(IMAGE_TOKEN)
    prompt = pictures + turns[1].text + end_marker(template)
    return prompt, [(pictures, prompt)]


Spans = list[tuple[int, int]]
"""[start, stop) of each answer among the prompt's ids."""


def _spans_of_prefixes(
    ids: Sequence[int], answers: Sequence[tuple[str, str]], prompt: str, tokenizer: Any
) -> Iterator[tuple[int, int]]:
    """Each answer lies between what the prompt shares with its two prefixes; right for any tokenizer."""
    for question, answered in answers:
        start = _shared(ids, encode_prompt(question, tokenizer)[0])
        yield start, len(ids) if answered == prompt else _shared(ids, encode_prompt(answered, tokenizer)[0])


def _spans_of_rounds(
    ids: Sequence[int], answers: Sequence[tuple[str, str]], template: Template, tokenizer: Any
) -> Spans | None:
    """The same from each round by itself, behind the end marker of the round before: a chat of n rounds is tokenized
    three times instead of n times.

    Returns:
        None where the rounds' tokens are not those of the prompt.
    """
    marker = end_marker(template)
    opening = encode_prompt(marker, tokenizer)[0]
    spans: Spans = []
    joined: list[int] = []
    done = ""
    for question, answered in answers:
        before, skip = (marker, len(opening)) if done else ("", 0)
        tokens = encode_prompt(before + answered[len(done) :], tokenizer)[0]
        start = _shared(tokens, encode_prompt(before + question[len(done) :], tokenizer)[0])
        if tokens[:skip] != opening[:skip] or start < skip:
            return None
        spans.append((len(joined) + start - skip, len(joined) + len(tokens) - skip))
        joined += tokens[skip:]
        done = answered
    return spans if joined == list(ids) else None


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
