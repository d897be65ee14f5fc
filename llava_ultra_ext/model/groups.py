"""Redundancy groups: which frames of a batch belong to one exam, and what remains in the prompt.

A group is a run of adjacent ``<image>`` tokens in one row with only separators (white space) between them. Pure
functions on lists of token ids; the model moves the ids to the host once, as LLaVA's own splice does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

IMAGE_TOKEN_INDEX = -200
"""LLaVA's ``constants.IMAGE_TOKEN_INDEX``: part of its file formats."""


@dataclass(frozen=True)
class Group:
    """One run of ``<image>`` tokens.

    Args:
        row: row of the batch.
        positions: places of the image tokens in the row's unpadded ids; empty for the stand-in of a text-only row.
        frames: how many of the batch's frames belong to it (k).
    """

    row: int
    positions: tuple[int, ...]
    frames: int


def runs(ids: Sequence[int], separators: set[int]) -> list[tuple[int, ...]]:
    """Positions of the image tokens of one row, run by run."""
    found: list[list[int]] = []
    for position, token in enumerate(ids):
        if token != IMAGE_TOKEN_INDEX:
            continue
        adjacent = found and all(between in separators for between in ids[found[-1][-1] + 1 : position])
        if adjacent:
            found[-1].append(position)
        else:
            found.append([position])
    return [tuple(run) for run in found]


def flatten_images(images: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[int] | None]:
    """All frames of a batch as one tensor.

    Args:
        images: (N, 3, S, S), (E, k, 3, S, S), or a list of (3, S, S) or (k, 3, S, S), one item a row. Of a feature
            cache: (N, R), or a list of (k, R).

    Returns:
        Frames (N, 3, S, S) or (N, R), and how many each row brought, ``None`` when the tensor does not say.
    """
    if isinstance(images, torch.Tensor) and images.ndim in (2, 4):
        return images, None
    per_row = [item[None] if item.ndim == 3 else item for item in images]
    return torch.cat(list(per_row)), [item.shape[0] for item in per_row]


def _frames_per_row(tokens: list[int], frames: int, per_row: list[int] | None) -> list[int]:
    """How many frames each row owns; a text-only row may bring one stand-in picture (LLaVA's convention)."""
    if per_row is not None and len(per_row) == len(tokens):
        return per_row
    if len(tokens) == 1:
        return [frames]
    if frames == sum(max(1, count) for count in tokens):
        return [max(1, count) for count in tokens]
    if frames == sum(tokens):
        return list(tokens)
    raise ValueError(
        f"{frames} images for rows with {tokens} <image> tokens. Give as many images as <image> tokens, in reading "
        "order (a row without <image> may bring one picture, which is not used)."
    )


def find_groups(
    rows: Sequence[Sequence[int]], separators: set[int], frames: int, per_row: list[int] | None = None
) -> list[Group]:
    """Assign a batch's frames to the redundancy groups of its rows, in reading order.

    A row with one ``<image>`` token and several frames is one group (LLaVA's ``run_llava`` with several images).

    Raises:
        ValueError: a row has k images but another number of ``<image>`` tokens.
    """
    found = [runs(ids, separators) for ids in rows]
    tokens = [sum(len(run) for run in row) for row in found]
    groups: list[Group] = []
    for row, (row_runs, count) in enumerate(zip(found, _frames_per_row(tokens, frames, per_row), strict=True)):
        if len(row_runs) == 1 and len(row_runs[0]) == 1 and count > 1:
            groups.append(Group(row, row_runs[0], count))
        elif count == tokens[row]:
            groups.extend(Group(row, run, len(run)) for run in row_runs)
        elif tokens[row] == 0 and count == 1:
            groups.append(Group(row, (), 1))
        else:
            raise ValueError(
                f"Row {row} has {count} images but {tokens[row]} <image> tokens. Write one <image> for each image, "
                "adjacent ones for the frames of one exam."
            )
    return groups


def keep_positions(ids: Sequence[int], groups: Sequence[Group], kept: Sequence[int]) -> list[int]:
    """Places of a row that stay: the first K image tokens of each group, and all that does not stand inside a group.

    The separators between dropped tokens go with them, so a prompt is the same for any k.
    """
    if len(groups) == 1 and len(groups[0].positions) == 1 and kept[0] > 1:
        # One token stands for the whole exam: repeat it.
        place = groups[0].positions[0]
        return [*range(place), *([place] * kept[0]), *range(place + 1, len(ids))]
    dropped: set[int] = set()
    for group, count in zip(groups, kept, strict=True):
        if group.positions:
            dropped.update(range(group.positions[count - 1] + 1, group.positions[-1] + 1))
    return [position for position in range(len(ids)) if position not in dropped]


def pad_rows(rows: Sequence[torch.Tensor], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad 1-D tensors to one (E, L) tensor, and say which places are real."""
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
    lengths = torch.tensor([row.shape[0] for row in rows], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device)[None] < lengths[:, None]
