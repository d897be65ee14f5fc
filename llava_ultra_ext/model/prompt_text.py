"""What the sampler reads of a batch's own text: the question, for a score that knows it, and the answer, for a teacher.

Pure functions on rows of token ids without padding (LLaVA's, ``<image>`` is -200) and their labels (-100: no answer).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llava_ultra_ext.model.groups import IMAGE_TOKEN_INDEX, pad_rows

IGNORE_INDEX = -100
"""LLaVA's ``constants.IGNORE_INDEX``."""


def questions_to_read(
    rows: Sequence[torch.Tensor], labels: Sequence[torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The text that is known before the first answer: in training up to it, else the whole prompt.

    Args:
        rows: (L_e,) token ids of each row.
        labels: likewise; None when no answer is known.

    Returns:
        ids (E, Q) and mask (E, Q), padded on the right; Q at least 1.
    """
    kept = []
    for place, ids in enumerate(rows):
        text = ids != IMAGE_TOKEN_INDEX
        if labels is not None:
            text &= (labels[place] != IGNORE_INDEX).cumsum(0) == 0
        kept.append(ids[text])
    return _padded(kept)


def answers_to_read(
    rows: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """A row's text for the likelihood teacher: all of it behind the picture, with the answers marked.

    Args:
        rows: (L_e,) token ids of each row.
        labels: likewise; empty when no answer is known.

    Returns:
        ids (E, L) and mask (E, L), True on answer tokens: the teacher averages over those; None without labels.
    """
    if not labels:
        return None, None
    kept = [
        (ids[ids != IMAGE_TOKEN_INDEX], own[ids != IMAGE_TOKEN_INDEX]) for ids, own in zip(rows, labels, strict=True)
    ]
    ids, real = _padded([ids for ids, _ in kept])
    answers = pad_rows([own for _, own in kept], IGNORE_INDEX)[0] != IGNORE_INDEX
    return ids, real & answers


def _padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = pad_rows([row if len(row) else row.new_zeros(1) for row in rows], 0)
    empty = torch.tensor([not len(row) for row in rows], device=mask.device)
    return ids, mask & ~empty[:, None]
