"""Answers from a loaded model, in batches: ours, exams included, or stock LLaVA with one picture a question."""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from llava_ultra_ext.data.cached_frames import read_frames
from llava_ultra_ext.data.tokenize import encode_prompt, end_marker
from llava_ultra_ext.eval.frames import open_frames
from llava_ultra_ext.eval.questions import Question
from llava_ultra_ext.model.builders import is_ultra
from llava_ultra_ext.model.groups import pad_rows
from llava_ultra_ext.model.opening import OpenedModel
from llava_ultra_ext.vision.feature_cache import FeatureCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoding:
    """How an answer is made; greedy by default.

    Args:
        temperature: 0 is greedy; above 0 tokens are drawn.
        top_p: share of probability to draw from; None: all.
        num_beams: of beam search.
        max_new_tokens: an answer's longest length.
    """

    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: must be 1 or more.")
        if self.temperature < 0:
            raise ValueError(f"--temperature {self.temperature}: must be 0 (greedy) or more.")

    def arguments(self) -> dict[str, Any]:
        """Of Hugging Face's ``generate``."""
        drawn = {"temperature": self.temperature, "top_p": self.top_p} if self.temperature > 0 else {}
        return {
            **drawn,
            "do_sample": self.temperature > 0,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "use_cache": True,
        }


@dataclass(frozen=True)
class Answer:
    """An answer, and for each redundancy group which frames it is based on.

    Args:
        text: without end marker.
        metadata: ``frames``: a list a group, of indices into the question's ``image``; ``frame_scores``: a list a
            group, every frame's s_fea (eq. 3). Empty for text only and for stock LLaVA.
    """

    text: str
    metadata: dict[str, Any]


class Answerer:
    """A loaded model that answers questions in batches.

    Args:
        opened: ours or stock LLaVA.
        template: LLaVA's conversation of ``--conv-mode``.
        image_folder: where picture names start.
        decoding: how answers are made.
        feature_cache: ``--feature-cache``, of the model's encoders: records of frames are read from it.
    """

    def __init__(
        self,
        opened: OpenedModel,
        template: Any,
        image_folder: str,
        decoding: Decoding,
        feature_cache: FeatureCache | None = None,
    ) -> None:
        self._model, self._tokenizer = opened.model, opened.tokenizer
        self._processor = opened.image_processor
        self._ours = is_ultra(opened.model.config)
        self._template, self._folder, self._decoding = template, image_folder, decoding
        self._marker = end_marker(template)
        self._cache = feature_cache
        if feature_cache is not None:
            opened.model.get_vision_tower().unload()

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer questions together; greedy answers do not depend on the company.

        Raises:
            ValueError: a picture cannot be decoded.
        """
        ids, mask = pad_rows([torch.tensor(self._ids(question)) for question in questions], 0)
        images, sizes = zip(*(self._pixels(question) for question in questions), strict=True)
        device = self._model.device
        extra: dict[str, Any] = {"image_sizes": list(sizes)}
        if self._ours:
            extra = {"valid_frames": torch.cat([_valid_frames(question) for question in questions]).to(device)}
        # Only what is drawn (temperature, the `random` baseline) depends on this: a resumed run draws the same.
        torch.manual_seed(zlib.crc32(str(questions[0].id).encode()))
        with torch.inference_mode(), _left_padding(self._model.config):
            output = self._model.generate(
                ids.to(device),
                images=[image.to(device) for image in images],
                attention_mask=mask.to(device),
                pad_token_id=self._pad_id(),
                stopping_criteria=self._stopping(),
                **extra,
                **self._decoding.arguments(),
            )
        choices = self._model.last_choices if self._ours else ()
        return [
            Answer(self._text(row.tolist()), _metadata([choice for choice in choices if choice.row == number]))
            for number, row in enumerate(output)
        ]

    def _ids(self, question: Question) -> list[int]:
        conversation = self._template.copy()
        conversation.messages = [[self._template.roles[0], self._with_tags(question.prompt_text)]]
        conversation.append_message(self._template.roles[1], None)
        ids, groups = encode_prompt(conversation.get_prompt(), self._tokenizer)
        self._warn_if_cut(question, len(ids), groups)
        return ids

    def _with_tags(self, text: str) -> str:
        """LLaVA's ``<im_start>`` and ``<im_end>``, for a stock model that was trained with them."""
        if self._ours or not getattr(self._model.config, "mm_use_im_start_end", False):
            return text
        from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN

        return text.replace(DEFAULT_IMAGE_TOKEN, DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN)

    def _warn_if_cut(self, question: Question, length: int, groups: Sequence[tuple[int, int]]) -> None:
        """LLaVA's splice cuts the end of a prompt that is too long, the question itself, and says nothing."""
        limit = getattr(self._model.config, "tokenizer_model_max_length", None)
        if limit is None:
            return
        settings = self._model.settings if self._ours else None
        every = settings is not None and settings.adr_strategy == "all"
        kept = len(question.images) if every else len(groups) * (settings.adr_top_k if settings is not None else 1)
        tokens = self._model.get_vision_tower().num_patches
        if length + kept * tokens - len(question.images) > limit:
            logger.warning(
                "question %s: its prompt may exceed the model's %d tokens; LLaVA then cuts its end. Ask shorter.",
                question.id,
                limit,
            )

    def _pixels(self, question: Question) -> tuple[torch.Tensor, tuple[int, int]]:
        """Frames (k, 3, S, S) or records (k, R), one black picture for text only, and the first picture's size."""
        if self._cache is not None:
            records = read_frames(self._cache, f"question {question.id}", question.images, self._folder)
            return records, (0, 0)  # sizes are for LLaVA's tiles
        pictures = open_frames(f"question {question.id}", question.images, self._folder)
        if not pictures:
            side = self._processor.crop_size
            height, width = side["height"], side["width"]
            black = torch.zeros(1, 3, height, width, dtype=torch.uint8 if self._ours else self._model.dtype)
            return black, (width, height)
        if self._ours:
            return self._processor.preprocess(pictures, return_tensors="pt")["pixel_values"], pictures[0].size
        from llava.mm_utils import process_images

        colour = [picture.convert("RGB") for picture in pictures]
        return process_images(colour, self._processor, self._model.config)[0].to(self._model.dtype), colour[0].size

    def _pad_id(self) -> int:
        pad = self._tokenizer.pad_token_id
        return int(self._tokenizer.eos_token_id if pad is None else pad)

    def _stopping(self) -> StoppingCriteriaList:
        """Stops at the template's end marker where that is not the token at which Hugging Face stops by itself."""
        if self._marker == self._tokenizer.eos_token or self._decoding.num_beams > 1:
            return StoppingCriteriaList()  # beams change places between steps; their text is cut afterwards
        eos = self._model.generation_config.eos_token_id
        ends = {*(eos if isinstance(eos, list) else [eos]), self._tokenizer.eos_token_id}
        return StoppingCriteriaList([AllRowsEnded(self._marker, self._tokenizer, ends)])

    def _text(self, ids: Sequence[int]) -> str:
        """Of new tokens; a row that was done before its neighbours has more behind its end marker."""
        marker = self._tokenizer.convert_tokens_to_ids(self._marker)
        for end in {self._tokenizer.eos_token_id, marker} - {None, self._tokenizer.unk_token_id}:
            ids = ids[: ids.index(end)] if end in ids else ids
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.split(self._marker)[0].strip() if self._marker else text.strip()


class AllRowsEnded(StoppingCriteria):
    """True once every row of a batch holds the end marker, as text or as a token, or an end-of-sequence token.

    LLaVA's ``KeywordsStoppingCriteria`` looks at the last tokens only: a row that ended earlier would be forgotten.

    Args:
        marker: the template's end marker.
        tokenizer: of the model.
        ends: ids of end-of-sequence tokens.
    """

    def __init__(self, marker: str, tokenizer: Any, ends: set[int]) -> None:
        self._marker, self._tokenizer, self._ends = marker, tokenizer, ends
        self._tail = len(marker.encode()) + 1  # tokens; no token is shorter than a byte
        self._ended: dict[int, bool] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> bool:
        """Asked after each new token; `input_ids` (E, new tokens), since LLaVA prompts with embeddings."""
        for number, row in enumerate(input_ids[:, -self._tail :].tolist()):
            if not self._ended.get(number):
                text = self._tokenizer.decode(row, skip_special_tokens=False)
                self._ended[number] = row[-1] in self._ends or self._marker in text
        return all(self._ended.values())


@contextlib.contextmanager
def _left_padding(config: Any) -> Iterator[None]:
    """LLaVA's splice pads on the side that the config names; a batch is generated from the right end of each row."""
    before = getattr(config, "tokenizer_padding_side", "right")
    config.tokenizer_padding_side = "left"
    try:
        yield
    finally:
        config.tokenizer_padding_side = before


def _valid_frames(question: Question) -> torch.Tensor:
    valid = question.valid_frames or ()
    return torch.tensor([frame in valid for frame in range(max(1, len(question.images)))])


def _metadata(choices: Sequence[Any]) -> dict[str, Any]:
    """From the choices of one row, in reading order."""
    if not choices:
        return {}
    frames, start = [], 0
    for choice in choices:
        frames.append([start + frame for frame in choice.frames])
        start += len(choice.scores)
    return {"frames": frames, "frame_scores": [[round(score, 6) for score in choice.scores] for choice in choices]}
