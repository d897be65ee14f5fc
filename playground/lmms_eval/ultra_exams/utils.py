"""What the YAML files beside this one name: questions of a gold file for lmms-eval, and `llava-ultra score`'s figures.

The gold file is given by ``ULTRA_GOLD``, the folder of its pictures by ``ULTRA_IMAGES`` (default: the current folder).
lmms-eval runs this file anew for every name, so nothing is kept in module variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llava_ultra_ext.data.exam import IMAGE_TOKEN
from llava_ultra_ext.eval import metrics
from llava_ultra_ext.eval.closed import same_answer
from llava_ultra_ext.eval.frames import open_frames
from llava_ultra_ext.eval.gold import TAGS, read_gold
from llava_ultra_ext.eval.normalize import normalise
from llava_ultra_ext.eval.questions import Question, read_questions
from llava_ultra_ext.eval.tokenizers import OF_LANGUAGE, tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

Doc = Mapping[str, Any]
Options = Mapping[str, Any] | None
"""``lmms_eval_specific_kwargs`` of the YAML file for a model."""

GOLD_FILES = {"gold_file": None, "zh_gold_file": "zh", "en_gold_file": "en"}
OPEN_FIGURES = ("em", "f1", "precision", "recall")
BLEU = {"bleu_1": 1, "bleu_2": 2, "bleu_3": 3, "bleu": metrics.MAX_ORDER}


def __getattr__(name: str) -> str:
    """``gold_file``: the path itself, which a YAML file cannot take from the environment otherwise.

    Faults of the file and of pictures are found here, when the YAML files are read: what is raised while lmms-eval
    loads the data is tried five times and reported as RetryError. ``zh_gold_file`` and ``en_gold_file`` look for
    questions of a language only; the file that they stand in includes the one with ``gold_file``.

    Raises:
        ValueError: ULTRA_GOLD is not set, the gold file or a picture has a fault, or there is no such question.
    """
    if name not in GOLD_FILES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    path, lang = _gold_path(), GOLD_FILES[name]
    try:
        read_gold(path, lang)
        if lang is None:
            read_questions(path, _image_folder())
    except ValueError as fault:
        raise ValueError(f"ULTRA_GOLD={path} ULTRA_IMAGES={_image_folder()}: {fault}") from None
    return str(path)


def _gold_path() -> Path:
    given = os.environ.get("ULTRA_GOLD")
    if not given:
        raise ValueError(
            "ULTRA_GOLD is not set. Give the gold file that `llava-ultra import` wrote, and the folder of its "
            "pictures: export ULTRA_GOLD=test_gold.jsonl ULTRA_IMAGES=images"
        )
    return Path(given).expanduser().absolute()


def _image_folder() -> str:
    return os.path.expanduser(os.environ.get("ULTRA_IMAGES", ""))


def exam_docs(lang: str | None = None) -> list[dict[str, Any]]:
    """The gold file's questions as lmms-eval's documents, in the order of the file.

    Args:
        lang: ``zh`` or ``en``; None: both.

    Raises:
        ValueError: the gold file has a fault, or no question of that language.
    """
    return [
        {
            "question_id": gold.id,
            "exam_id": gold.exam_id,
            "images": list(gold.images),
            "text": gold.text,
            "answer": gold.answer,
            **{tag: gold.tags.get(tag, "") for tag in TAGS},
        }
        for gold in read_gold(_gold_path(), lang)
    ]


def all_docs(_: Dataset) -> Dataset:
    """`exam_docs` in both languages; what lmms-eval hands over, the file's lines as text, is left aside."""
    return _dataset(None)


def zh_docs(_: Dataset) -> Dataset:
    """`exam_docs` in Chinese."""
    return _dataset("zh")


def en_docs(_: Dataset) -> Dataset:
    """`exam_docs` in English."""
    return _dataset("en")


def _dataset(lang: str | None) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list(exam_docs(lang))


def doc_to_visual(doc: Doc) -> list[Image.Image]:
    """Every frame of the exam, in order, as LLaVA-Ultra sees it (RGB, see-through pixels on black).

    Raises:
        ValueError: a picture cannot be decoded.
    """
    from llava_ultra_ext.vision.image_processor import to_rgb

    return [to_rgb(frame) for frame in open_frames(f"question {doc['question_id']}", doc["images"], _image_folder())]


def doc_to_text(doc: Doc, lmms_eval_specific_kwargs: Options = None) -> str:
    """The question alone; with the option ``image_tokens`` as `llava-ultra answer` asks it, <image> for each frame."""
    if (lmms_eval_specific_kwargs or {}).get("image_tokens"):
        return _prompt(doc, lmms_eval_specific_kwargs)
    return _text(doc, lmms_eval_specific_kwargs).replace(IMAGE_TOKEN, "").strip()


def doc_to_messages(doc: Doc, lmms_eval_specific_kwargs: Options = None) -> list[dict[str, Any]]:
    """One turn of the user: a frame where the prompt of `llava-ultra answer` has an <image>, and the text between."""
    content: list[dict[str, Any]] = []
    frames = doc_to_visual(doc)
    for place, text in enumerate(_prompt(doc, lmms_eval_specific_kwargs).split(IMAGE_TOKEN)):
        if place:
            content.append({"type": "image", "url": frames[place - 1]})
        if text.strip():
            content.append({"type": "text", "text": text.strip()})
    return [{"role": "user", "content": content}]


def _text(doc: Doc, options: Options) -> str:
    options = options or {}
    return f"{options.get('pre_prompt', '')}{doc['text']}{options.get('post_prompt', '')}"


def _prompt(doc: Doc, options: Options) -> str:
    return Question(doc["question_id"], _text(doc, options), tuple(doc["images"])).prompt_text


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One answer's part of every figure, None where a figure does not cover the question.

    Returns:
        0 or 100 for ``closed_accuracy`` (closed questions); for open ones 0 to 100 for `OPEN_FIGURES`, and the n-gram
        counts that the figures of `BLEU` are aggregated from.
    """
    figures: dict[str, Any] = dict.fromkeys(("closed_accuracy", *OPEN_FIGURES, *BLEU))
    predicted = results[0] if results else ""
    if doc["answer_type"] == "CLOSED":
        return {**figures, "closed_accuracy": 100.0 * same_answer(predicted, doc["answer"])}
    cut = tokenizer(OF_LANGUAGE[doc["lang"]])
    own, truth = normalise(predicted), normalise(doc["answer"])
    row = metrics.statistics([own == truth], [cut(own)], [cut(truth)])[0]
    counts = [int(count) for count in row[len(OPEN_FIGURES) :]]
    shares = [100.0 * float(share) for share in row[: len(OPEN_FIGURES)]]
    return {**figures, **dict(zip(OPEN_FIGURES, shares, strict=True)), **dict.fromkeys(BLEU, counts)}


def mean(values: Sequence[float | None]) -> float | None:
    """Over the questions that the figure covers; None, which lmms-eval shows as N/A, when there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def bleu_1(counts: Sequence[list[int] | None]) -> float | None:
    """Corpus BLEU of 1-grams."""
    return _bleu(counts, "bleu_1")


def bleu_2(counts: Sequence[list[int] | None]) -> float | None:
    """Corpus BLEU up to 2-grams."""
    return _bleu(counts, "bleu_2")


def bleu_3(counts: Sequence[list[int] | None]) -> float | None:
    """Corpus BLEU up to 3-grams."""
    return _bleu(counts, "bleu_3")


def bleu(counts: Sequence[list[int] | None]) -> float | None:
    """Corpus BLEU up to 4-grams."""
    return _bleu(counts, "bleu")


def _bleu(counts: Sequence[list[int] | None], name: str) -> float | None:
    known = [row for row in counts if row is not None]
    return metrics.reported_bleu(np.sum(known, axis=0), BLEU[name]) if known else None
