"""A small LLaMA reads reports before it sees a picture, so that it speaks and uses what stands before a text.

Stage 1 freezes the language model, so it needs one that does both; random weights do neither. Before each text stand
`frame_tokens` places where the frame's tokens will stand later, with words of that exam and of another one. What
follows from the words is thus learnt here; what they look like is left to the projector.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from llava_ultra_ext.conversation import SYSTEM

OTHER_SHARE = 0.3
"""Of `whole_words`, at most: a frame says more than its text does."""
TOLD_SHARE = (0.12, 0.5)
"""Of `keywords`: share of the places that hold the exam's own words, least and most: a lesion fills some of a frame's
tokens."""
MIXED = 4
"""Of `keywords`: words that share a place, at most: a projector gives mixtures."""

SORTED = 6
"""Batches that are drawn at once and sorted by length."""

Row = tuple[list[int], list[int]]
Places = list[list[int]]
"""For each place the words whose embeddings are summed there."""
Sample = tuple[int, dict[str, Any]]

PLACE = -1
"""Stands for a place of the frame among token ids."""


@dataclass(frozen=True)
class Course:
    """How much is read.

    Args:
        steps: optimizer steps.
        batch: texts a step.
        learning_rate: the highest of a one-cycle schedule.
        frame_tokens: T.
        stand_in: what fills the frame's places: `whole_words` or `keywords`.
    """

    steps: int
    batch: int = 8
    learning_rate: float = 3e-3
    frame_tokens: int = 36
    stand_in: Callable[[Sequence[int], Sequence[int], int, random.Random], Places] = field(
        default_factory=lambda: whole_words
    )


def teach(
    folder: Path,
    exams: Sequence[Sequence[Sample]],
    course: Course,
    seed: int = 0,
    shown: Sequence[tuple[str, str]] | None = None,
) -> tuple[float, float]:
    """Trains the LLaMA in `folder`.

    Args:
        folder: of `tiny_models.make_llama`; its weights are replaced.
        exams: for each exam its samples: the stage that shows it, and LLaVA's record.
        shown: for each exam the words of what its frames show, and of what they show without a lesion. Default: its own
            answers, and those of any other exam.

    Returns:
        The first step's loss and the mean of the last tenth.
    """
    from transformers import LlamaForCausalLM, LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=True)
    model = LlamaForCausalLM.from_pretrained(folder).train()
    own, background = _words(exams, shown, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, course.learning_rate, total_steps=course.steps, pct_start=0.1
    )
    draw, losses = random.Random(seed), []
    batches = _batches(exams, (own, background), course, tokenizer, draw)
    for _ in tqdm(range(course.steps), desc="LLaMA reads", unit="step", mininterval=5):
        rows, frames = zip(*next(batches), strict=True)
        loss = model(**_with_frames(_padded(rows), frames, model.get_input_embeddings())).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.save_pretrained(folder)
    tenth = max(1, course.steps // 10)
    return losses[0], sum(losses[-tenth:]) / tenth


def _batches(
    exams: Sequence[Sequence[Sample]],
    words: tuple[list[list[int]], list[list[int]]],
    course: Course,
    tokenizer: Any,
    draw: random.Random,
) -> Iterator[list[tuple[Row, Places]]]:
    """Without end, batches of texts of about one length: beside a long chat a caption would be mostly padding."""
    own, background = words
    while True:
        drawn: list[tuple[Row, Places]] = []
        for _ in range(SORTED * course.batch):
            number = draw.randrange(len(exams))
            beside = background[number] if background else draw.choice(own)
            frame = course.stand_in(own[number], beside, course.frame_tokens, draw)
            drawn.append((row(*draw.choice(exams[number]), [PLACE] * course.frame_tokens, tokenizer), frame))
        drawn.sort(key=lambda text: len(text[0][0]))
        batches = [drawn[start : start + course.batch] for start in range(0, len(drawn), course.batch)]
        draw.shuffle(batches)
        yield from batches


def row(stage: int, sample: dict[str, Any], frame: list[int], tokenizer: Any) -> Row:
    """Ids and labels of one text: `frame` tokens stand where the picture will, answers are learnt as in training.

    Args:
        stage: 1, the frame and the answer alone; 2, the chat template around every turn.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    turns = [turn["value"].replace("<image>\n", "") for turn in sample["conversations"]]
    if stage == 1:
        answer = [*ids(turns[1]), tokenizer.eos_token_id]
        start = [tokenizer.bos_token_id, *frame]
        return start + answer, [-100] * len(start) + answer
    tokens, labels = [tokenizer.bos_token_id], [-100]
    for number, (question, answer_text) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
        opening = [*ids(f"{SYSTEM} 用户: "), *frame, *ids("\n")] if number == 0 else ids("用户: ")
        asked = opening + ids(f"{question} 助手:")
        answer = [*ids(answer_text), tokenizer.eos_token_id]
        tokens += asked + answer
        labels += [-100] * len(asked) + answer
    return tokens, labels


def whole_words(own: Sequence[int], other: Sequence[int], count: int, draw: random.Random) -> Places:
    """`count` places with a word each: most of them the exam's own, some another's, in any order."""
    others = draw.randrange(round(count * OTHER_SHARE) + 1)
    frame = draw.choices(own, k=count - others) + draw.choices(other, k=others)
    draw.shuffle(frame)
    return [[word] for word in frame]


def keywords(own: Sequence[int], background: Sequence[int], count: int, draw: random.Random) -> Places:
    """`count` places, in some of them words of what the exam shows, in the others words of a normal one, in any order.

    Nearer to a frame than `whole_words`: what is seen takes little room, and beside it nothing contradicts it. Each
    word has its turn before one comes again: where half of them were missing by chance, reading was not learnt.
    """
    told, turn = max(2, round(count * draw.uniform(*TOLD_SHARE))), itertools.cycle(draw.sample(own, len(own)))
    places = [[next(turn) for _ in range(draw.randint(1, MIXED))] for _ in range(told)]
    places += [draw.choices(background, k=draw.randint(1, MIXED // 2)) for _ in range(count - told)]
    draw.shuffle(places)
    return places


def _with_frames(batch: dict[str, torch.Tensor], frames: Sequence[Places], embed: Any) -> dict[str, torch.Tensor]:
    """The batch as embeddings, with the sums of words in their places; a sum of m words is as long as one."""
    ids = batch.pop("input_ids")
    words = [words for places in frames for words in places]
    sizes = torch.tensor([len(own) for own in words])
    flat = embed(torch.tensor([word for own in words for word in own]))
    sums = flat.new_zeros(len(words), flat.shape[1])
    sums = sums.index_add(0, torch.arange(len(words)).repeat_interleave(sizes), flat) / sizes.sqrt()[:, None]
    embedded = embed(ids.clamp_min(0))
    return {**batch, "inputs_embeds": embedded.masked_scatter((ids == PLACE)[..., None], sums)}


def _words(
    exams: Sequence[Sequence[Sample]], shown: Sequence[tuple[str, str]] | None, tokenizer: Any
) -> tuple[list[list[int]], list[list[int]]]:
    if shown is None:
        return [_answer_ids(samples, tokenizer) for samples in exams], []
    ids = [[tokenizer(text, add_special_tokens=False).input_ids for text in pair] for pair in shown]
    # A word of both says nothing; an exam that shows no more than the background is normal.
    return [[word for word in own if word not in beside] or beside for own, beside in ids], [pair[1] for pair in ids]


def _answer_ids(samples: Sequence[Sample], tokenizer: Any) -> list[int]:
    answers = (turn["value"] for _, sample in samples for turn in sample["conversations"] if turn["from"] == "gpt")
    return [i for answer in answers for i in tokenizer(answer, add_special_tokens=False).input_ids]


def _padded(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    def pad(values: list[list[int]], fill: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=fill)

    ids, labels = ([row[part] for row in rows] for part in (0, 1))
    mask = pad([[1] * len(row) for row in ids], 0)
    return {"input_ids": pad(ids, 0), "attention_mask": mask, "labels": pad(labels, -100)}
