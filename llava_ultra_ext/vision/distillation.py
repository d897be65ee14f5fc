"""What the frame scorer learns from a teacher that reads the findings (paper section 3.3, equation 5).

``L_adr = - sum_i Norm(teacher_i) * log Norm(student_i)``, Norm a z-score in the group, then a softmax.

Shapes: N frames of a batch, G groups, k frames of one group. No function waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llava_ultra_ext.vision.sampler import Selection, pad_groups

TEACHER_TEMPERATURE = 0.5
STUDENT_VARIANCE_FLOOR = 1e-4
"""Added to the variance of s_fea. A z-score divides the gradient by the spread, and the frames of one sweep are near
identical: without a floor their gradient alone would fill the norm at which the whole model's gradient is clipped."""
POSITION_BINS = ("start", "early", "late", "end")


def normalise(padded: Tensor, mask: Tensor, eps: float = 1e-12) -> Tensor:
    """Z-score inside each group.

    The paper writes ``Norm`` without saying which. Our choice: raw attention mass differs between frames by about .01,
    so that its softmax is uniform and teaches nothing; a z-score makes every teacher's scale the same.

    Args:
        padded: (G, kmax), of :func:`~llava_ultra_ext.vision.sampler.pad_groups`.
        mask: (G, kmax), True on real frames.
        eps: added to the variance; small, so that it acts on ties only.

    Returns:
        (G, kmax) float32: mean 0 and population standard deviation 1 in each group, 0 on padding and on ties.
    """
    values = padded.float().masked_fill(~mask, 0)
    count = mask.sum(1, keepdim=True).clamp(min=1)
    centred = (values - values.sum(1, keepdim=True) / count).masked_fill(~mask, 0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred * torch.rsqrt(variance + eps)


def adr_loss(
    teacher: Tensor,
    student: Tensor,
    sizes: Sequence[int],
    temperature: float = TEACHER_TEMPERATURE,
) -> Tensor:
    """Equation 5, averaged over the groups that have something to learn.

    Args:
        teacher: (N,) scores that carry no gradient; not finite where there is no teacher.
        student: s_fea (N,).
        sizes: frames of each group; they sum to N.
        temperature: of the teacher's softmax after its z-score.

    Returns:
        A scalar, the mean over groups of two frames or more whose teacher scores are all finite. With no such group:
        a zero that is still connected to ``student``, so that every rank walks the same graph.
    """
    taught, _ = pad_groups(teacher.detach().float(), sizes)
    scores, mask = pad_groups(student.float(), sizes)
    usable = _usable(taught, mask)
    target = _preference(taught, mask, temperature)  # (G, kmax)
    logits = normalise(scores, mask, STUDENT_VARIANCE_FLOOR)
    # A finite fill: -inf would meet the zero target as 0 * inf.
    log_student = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).log_softmax(1).masked_fill(~mask, 0)
    return _mean_over(-(target * log_student).sum(1), usable, empty=0.0)


def choice_statistics(
    teacher: Tensor | None, student: Tensor, sizes: Sequence[int], selection: Selection
) -> dict[str, Tensor]:
    """Numbers that show whether the scorer follows its teacher, has collapsed, or prefers a position.

    Args:
        teacher: (N,), not finite where there is no teacher; None without one.
        student: s_fea (N,).
        sizes: frames of each group.
        selection: what was picked.

    Returns:
        Detached scalars over groups of two frames or more; NaN where there is none.
        ``agreement``: share of groups whose best frame is the teacher's;
        ``entropy``: of Norm(student) over log k; 1 = no preference, and never 0, since a z-score is bounded;
        ``picks_start``, ``picks_early``, ``picks_late``, ``picks_end``: share of picks in each quarter of the group.
    """
    scores, mask = pad_groups(student.detach().float(), sizes)
    several = mask.sum(1) > 1
    soft = _preference(scores, mask, 1.0, STUDENT_VARIANCE_FLOOR)
    surprise = -(soft * soft.clamp(min=torch.finfo(soft.dtype).tiny).log()).sum(1)
    log_sizes = torch.tensor([math.log(max(size, 2)) for size in sizes]).to(scores.device, non_blocking=True)
    statistics = {"entropy": _mean_over(surprise / log_sizes, several)}
    if teacher is not None:
        taught, _ = pad_groups(teacher.detach().float(), sizes)
        usable = _usable(taught, mask)
        same = _best(taught, mask) == _best(scores, mask)
        statistics["agreement"] = _mean_over(same.float(), usable)
    return statistics | _picks_by_position(sizes, selection)


def teacher_gap(own: Tensor, swapped: Tensor, sizes: Sequence[int], temperature: float = TEACHER_TEMPERATURE) -> Tensor:
    """How much a teacher's preference depends on the text it is given.

    A teacher that follows visual saliency prefers the same frames whatever the findings say, and picks valid frames
    often enough to look good. This number does not let it.

    Args:
        own: (N,) teacher scores with each exam's own findings.
        swapped: (N,) with another exam's findings.
        sizes: frames of each group.
        temperature: of the softmax after the z-score, as in :func:`adr_loss`.

    Returns:
        Scalar in [0, 1]: total variation between the two preferences over frames, mean over groups of two frames or
        more with finite scores; 0 = reads no text, NaN = no such group.
    """
    first, mask = pad_groups(own.detach().float(), sizes)
    second, _ = pad_groups(swapped.detach().float(), sizes)
    usable = _usable(first, mask) & _usable(second, mask)
    distance = (_preference(first, mask, temperature) - _preference(second, mask, temperature)).abs().sum(1) / 2
    return _mean_over(distance, usable)


def _preference(padded: Tensor, mask: Tensor, temperature: float, eps: float = 1e-12) -> Tensor:
    """(G, kmax): softmax of the z-scores; values that are not finite count as 0, their groups are skipped later."""
    scores = normalise(torch.nan_to_num(padded, nan=0.0, posinf=0.0, neginf=0.0), mask, eps)
    return (scores / temperature).masked_fill(~mask, float("-inf")).softmax(1)


def _usable(padded: Tensor, mask: Tensor) -> Tensor:
    """(G,): more than one frame, and a finite score on each."""
    return (torch.isfinite(padded) | ~mask).all(1) & (mask.sum(1) > 1)


def _best(padded: Tensor, mask: Tensor) -> Tensor:
    return padded.masked_fill(~mask, float("-inf")).argmax(1)


def _mean_over(values: Tensor, chosen: Tensor, empty: float = math.nan) -> Tensor:
    """Mean of the chosen entries of (G,), ``empty`` without any."""
    count = chosen.sum()
    mean = values.masked_fill(~chosen, 0).sum() / count.clamp(min=1)
    return torch.where(count > 0, mean, torch.full_like(mean, empty))


def _picks_by_position(sizes: Sequence[int], selection: Selection) -> dict[str, Tensor]:
    lengths = torch.tensor(list(sizes), dtype=torch.long)
    place = torch.cat([torch.arange(size) for size in sizes] or [lengths])  # (N,) position inside the group
    length = lengths.repeat_interleave(lengths)
    quarter = (len(POSITION_BINS) * place / (length - 1).clamp(min=1)).long().clamp(max=len(POSITION_BINS) - 1)
    device = selection.index.device
    quarter, several = (x.to(device, non_blocking=True)[selection.index] for x in (quarter, length > 1))
    return {f"picks_{name}": _mean_over((quarter == bin_).float(), several) for bin_, name in enumerate(POSITION_BINS)}
