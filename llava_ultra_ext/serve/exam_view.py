"""The worker and its model as LLaVA's ``generate_stream`` sees them for one request: the frames that are kept count."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

from llava_ultra_ext.data.exam import IMAGE_RUN, IMAGE_TOKEN
from llava_ultra_ext.serve.errors import ServeError


class ExamWorker:
    """The worker, with a model whose token budget is that of this prompt.

    Args:
        worker: LLaVA's ``ModelWorker``, whose model is one of ours.
        prompt: with an ``<image>`` for every frame.
    """

    is_multimodal = True

    def __init__(self, worker: Any, prompt: str) -> None:
        self._worker = worker
        # LLaVA's worker sends the prompt to --device, whose default is cuda on every machine.
        self.device = worker.model.device
        self.model = _ExamModel(worker.model, worker.tokenizer, prompt)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def too_long(self, prompt: str) -> ServeError:
        """What to say where LLaVA found no room for an answer, with the numbers that it compared."""
        from llava.constants import IMAGE_TOKEN_INDEX
        from llava.mm_utils import tokenizer_image_token

        text = len(tokenizer_image_token(prompt, self._worker.tokenizer, IMAGE_TOKEN_INDEX))
        tokens = text + prompt.count(IMAGE_TOKEN) * self.model.get_vision_tower().num_patches
        room = self.model.config.max_position_embeddings
        return ServeError(
            "context_too_long",
            f"The prompt takes {tokens:,} tokens with the frames that are kept, and this model reads {room:,}, the "
            "answer included. Shorten the question, or start a new conversation.",
        )


class _ExamModel:
    """The model, with ``num_patches`` such that LLaVA's ``tokens + count * num_patches`` is what enters the LLM.

    LLaVA's tokens hold every ``<image>`` and what separates them, most of which leave the prompt with their frames.
    `entering` is how many more tokens enter the LLM than LLaVA's own count of the prompt, images as one token each.
    """

    def __init__(self, model: Any, tokenizer: Any, prompt: str) -> None:
        self._model = model
        settings = model.settings
        runs = [run.group() for run in IMAGE_RUN.finditer(prompt)]
        entering = 0
        for run in runs:
            frames = run.count(IMAGE_TOKEN)
            kept = frames if settings.adr_strategy == "all" else min(settings.adr_top_k, frames)
            separators = run.split(IMAGE_TOKEN)[kept:-1]
            entering += kept * (settings.tokens - 1) - (frames - kept)
            entering -= sum(len(tokenizer(between, add_special_tokens=False).input_ids) for between in separators)
        self.entering = entering
        self._tower = SimpleNamespace(num_patches=-(-entering // max(1, prompt.count(IMAGE_TOKEN))))
        self.config = copy.copy(model.config)
        # LLaVA's own padding takes no greyscale picture; our image processor pads whatever the config says.
        self.config.image_aspect_ratio = None
        # LLaVA counts with the former, its splice cuts at the latter, which would silently take the question's end.
        cut = getattr(model.config, "tokenizer_model_max_length", None)
        if cut is not None:
            self.config.max_position_embeddings = min(cut, model.config.max_position_embeddings)

    def get_vision_tower(self) -> Any:
        return self._tower

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
