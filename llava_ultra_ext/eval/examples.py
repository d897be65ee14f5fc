"""Which questions the page of examples shows, and what it says about each model's answer to them."""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

from llava_ultra_ext.eval.closed import same_answer
from llava_ultra_ext.eval.gold import Gold
from llava_ultra_ext.eval.metrics import overlap
from llava_ultra_ext.eval.normalize import normalise
from llava_ultra_ext.eval.predictions import Answers
from llava_ultra_ext.eval.tokenizers import char, tokenizer

SAME, MISSING, ADDED = "same", "missing", "added"


class Piece(NamedTuple):
    """A run of an answer beside the truth: in both, only in the truth (`MISSING`), only in the answer (`ADDED`)."""

    kind: str
    text: str


@dataclass(frozen=True)
class Reply:
    """One model's answer.

    Args:
        right: closed answers by `same_answer`, open ones by exact match of the normalised texts.
        f1: of an open answer, 0 to 100; None for a closed one.
        pieces: the answer beside the truth; the answer alone where it is right, or shares nothing with the truth.
        chosen: 0-based frames that the model read; empty: not known.
        scores: one a frame; empty: not known.
        wrong_frame: none of the chosen frames is valid, where both are known.
    """

    right: bool
    f1: float | None
    pieces: tuple[Piece, ...]
    chosen: tuple[int, ...] = ()
    scores: tuple[float | None, ...] = ()
    wrong_frame: bool = False


@dataclass(frozen=True)
class Example:
    """A question with one reply a model, in the models' order."""

    gold: Gold
    replies: tuple[Reply, ...]

    @property
    def disagree(self) -> bool:
        """Whether some models are right and others wrong."""
        return len({reply.right for reply in self.replies}) > 1


def is_right(predicted: str, gold: Gold) -> bool:
    """Whether an answer counts as right on the page, as in the ``strict`` columns."""
    if gold.closed:
        return same_answer(predicted, gold.answer)
    return normalise(predicted) == normalise(gold.answer)


def choose(golds: Sequence[Gold], models: Sequence[Answers], count: int, seed: int = 0) -> list[Gold]:
    """Questions for the page, in the order of the gold file.

    Our choice: languages, answer types and content types take turns, so that a rare kind is seen too; within a kind
    come questions on which models disagree first, in seeded random order, then the others.

    Args:
        golds: questions that every model answered.
        models: one or more.
        count: how many at most.
        seed: of the order.
    """
    kinds: dict[tuple[str, bool, str], list[Gold]] = {}
    for gold in golds:
        kinds.setdefault((gold.lang, gold.closed, gold.tags.get("content_type", "")), []).append(gold)
    generator = random.Random(seed)
    for own in kinds.values():
        generator.shuffle(own)
        own.sort(key=lambda gold: len({is_right(model.texts[gold.id], gold) for model in models}) == 1)
    turns = [gold for turn in zip_longest(*kinds.values()) for gold in turn if gold is not None]
    return sorted(turns[:count], key=lambda gold: gold.line)


def examples(golds: Iterable[Gold], models: Sequence[Answers], shown: Mapping[str, str]) -> list[Example]:
    """What the page says about each question.

    Args:
        golds: chosen questions.
        models: one or more, each with an answer to each question.
        shown: language -> tokenizer of F1.

    Raises:
        ValueError: an unknown tokenizer, or its library is missing.
    """
    return [Example(gold, tuple(_reply(model, gold, shown) for model in models)) for gold in golds]


def _reply(model: Answers, gold: Gold, shown: Mapping[str, str]) -> Reply:
    text = model.texts[gold.id]
    right = is_right(text, gold)
    cut = tokenizer(shown[gold.lang])
    f1 = None if gold.closed else 100 * overlap(cut(normalise(text)), cut(normalise(gold.answer)))[0]
    pieces = [Piece(SAME, text)] if right else differences(text, gold.answer)
    if all(piece.kind != SAME for piece in pieces):
        # Where nothing is shared, the truth in the middle of the answer would only be hard to read.
        pieces = [piece for piece in pieces if piece.kind == ADDED]
    chosen, scores = frames(model.metadata.get(gold.id, {}), len(gold.images))
    valid = set(gold.valid_frames or ())
    return Reply(right, f1, tuple(pieces), chosen, scores, bool(valid and chosen and not valid & set(chosen)))


def frames(metadata: Mapping[str, Any], count: int) -> tuple[tuple[int, ...], tuple[float | None, ...]]:
    """Chosen frames and every frame's score from the ``metadata`` of `llava-ultra answer`; empty where they do not fit.

    Args:
        metadata: ``frames`` and ``frame_scores``, each a list a redundancy group; frames count through the question.
        count: pictures of the question.
    """
    chosen = [frame for frame in _flat(metadata.get("frames")) if type(frame) is int and 0 <= frame < count]
    scores = [_number(score) for score in _flat(metadata.get("frame_scores"))]
    fit = len(scores) == count and any(score is not None for score in scores)
    return tuple(dict.fromkeys(chosen)), tuple(scores) if fit else ()


def _number(given: Any) -> float | None:
    try:
        value = float(given) if type(given) in (int, float) else math.nan
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _flat(groups: Any) -> list[Any]:
    return [item for group in groups if isinstance(group, list) for item in group] if isinstance(groups, list) else []


def differences(answer: str, truth: str) -> list[Piece]:
    """An answer beside the truth, token by token (`char`); width, case and punctuation make no difference.

    The texts of `SAME` and `ADDED` pieces put together are the answer.
    """
    own, other = _tokens(answer), _tokens(truth)
    matcher = difflib.SequenceMatcher(None, [key for key, _ in own], [key for key, _ in other], autojunk=False)
    pieces: list[Piece] = []
    for code, a, b, c, d in matcher.get_opcodes():
        same = code == "equal"
        runs = [Piece(SAME if same else ADDED, "".join(text for _, text in own[a:b]))]
        runs += [] if same else [Piece(MISSING, "".join(text for _, text in other[c:d]))]
        pieces += [piece for piece in runs if piece.text]
    return pieces


def _tokens(text: str) -> list[tuple[str, str]]:
    """Keys to compare by and the stretches of text that they stand for; punctuation and spaces join what precedes."""
    keys, starts, end = [], [], 0
    for token in char(text):
        start = text.index(token, end)
        end = start + len(token)
        key = normalise(token)
        if key:
            keys.append(key)
            starts.append(start)
    if not keys:
        return [("", text)] if text else []
    starts[0] = 0
    return [(key, text[a:b]) for key, a, b in zip(keys, starts, [*starts[1:], len(text)], strict=True)]
