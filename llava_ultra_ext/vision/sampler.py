"""Adaptive sampling of a redundancy group: score every frame, keep the best (paper section 3.3, equation 3).

Shapes: N frames of a batch (all groups one after another), G groups, k frames of one group, T tokens a frame,
D hidden size of the LLM, M kept frames of the batch.

Nothing here waits for the device: group sizes are plain integers, so every shape is known on the host and the choice
itself stays a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_ultra_ext.arguments import STRATEGIES, TAUGHT

SCORER_WEIGHTS = ("channel", "token", "token_channel")
LEARNT_STRATEGIES = ("feature", *TAUGHT)  # the ones that follow the scorer, hence know a warm-up


class FrameScorer(nn.Module):
    """The feature score of equation 3: a learnt weighted average of a frame's projected features.

    The paper's index runs over channels while its text speaks of tokens, so both are offered. Features pass a LayerNorm
    without affine weights first (Our choice: the score must not depend on the projector's scale), and all maths is
    float32 whatever the parameter dtype or autocast, because frames of one sweep differ little.

    * ``channel``: one weight a channel, tokens averaged. Steadiest under distillation.
    * ``token_channel``: the product of a weight a token and a weight a channel. Steadier when the choice itself is
      trained (strategy ``feature``).
    * ``token``: one weight a token on the mean absolute value of its channels (a LayerNormed token's channel mean is
      zero by construction). For comparison only: it picks badly.

    With a question rank r the channel weights depend on the question: ``w + U V q``, q being the LayerNormed mean of
    its token embeddings (Our choice; the paper scores a frame without knowing what is asked). U starts at zero, so
    training starts from the plain score.

    Args:
        hidden_size: D.
        tokens: T; needed by the two kinds that weigh tokens.
        weights: one of ``SCORER_WEIGHTS``.
        question_rank: r; 0: the question plays no part.

    Raises:
        ValueError: for an unknown kind of weights, or a question rank with ``token`` weights.
    """

    def __init__(self, hidden_size: int, tokens: int, weights: str = "channel", question_rank: int = 0) -> None:
        super().__init__()
        if weights not in SCORER_WEIGHTS:
            raise ValueError(f"Scorer weights {weights!r} are unknown: choose one of {', '.join(SCORER_WEIGHTS)}.")
        if question_rank and weights == "token":
            raise ValueError("A question rank needs channel weights: choose channel or token_channel.")
        self.hidden_size, self.tokens, self.weights = hidden_size, tokens, weights
        self.channel_weights = nn.Parameter(torch.empty(hidden_size)) if "channel" in weights else None
        self.token_weights = nn.Parameter(torch.empty(tokens)) if "token" in weights else None
        self.question_in = nn.Parameter(torch.empty(hidden_size, question_rank)) if question_rank else None
        self.question_out = nn.Parameter(torch.empty(question_rank, hidden_size)) if question_rank else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random channel weights, so that scores never tie; token weights start as a plain average."""
        if self.channel_weights is not None:
            nn.init.normal_(self.channel_weights, std=0.02)
        if self.token_weights is not None:
            nn.init.constant_(self.token_weights, 1.0 / self.tokens)
        if self.question_in is not None and self.question_out is not None:
            nn.init.normal_(self.question_in, std=self.hidden_size**-0.5)
            nn.init.zeros_(self.question_out)

    def forward(self, h: Tensor, questions: Tensor | None = None) -> Tensor:
        """Scores frames.

        Args:
            h: projected features (N, T, D), any floating dtype.
            questions: (N, D) mean token embeddings of what is asked about each frame; needed with a question rank.

        Returns:
            s_fea (N,), float32.

        Raises:
            ValueError: if T or D differ from what the weights were built for, or the questions are missing.
        """
        return self.contributions(h, questions).sum(-1)

    def contributions(self, h: Tensor, questions: Tensor | None = None) -> Tensor:
        """What each token adds to its frame's score: where in the frame the score comes from.

        Args:
            h: as in `forward`.
            questions: likewise.

        Returns:
            (N, T) float32; their sum over the tokens is the score.

        Raises:
            ValueError: as `forward`.
        """
        if h.shape[-1] != self.hidden_size or (self.token_weights is not None and h.shape[1] != self.tokens):
            raise ValueError(
                f"The frame scorer got features {tuple(h.shape)}, but was built for (N, {self.tokens}, "
                f"{self.hidden_size}). Use the image size and LLM that the scorer was trained with."
            )
        with torch.autocast(h.device.type, enabled=False):
            normed = F.layer_norm(h.float(), (self.hidden_size,))  # (N, T, D)
            channels, tokens = self._channels(questions), self.token_weights
            per_token = normed.abs().mean(-1) if channels is None else (normed @ channels).squeeze(-1)  # (N, T)
            return per_token / h.shape[1] if tokens is None else per_token * tokens.float()

    def _channels(self, questions: Tensor | None) -> Tensor | None:
        """(D, 1), or (N, D, 1) where the question has a say."""
        if self.channel_weights is None:
            return None
        plain = self.channel_weights.float().unsqueeze(-1)
        if self.question_in is None or self.question_out is None:
            return plain
        if questions is None:
            raise ValueError("This frame scorer was built with a question rank: give the questions.")
        asked = F.layer_norm(questions.float(), (self.hidden_size,)) @ self.question_in.float()  # (N, r)
        return plain + (asked @ self.question_out.float()).unsqueeze(-1)


@dataclass(frozen=True)
class Selection:
    """Which frames of a batch enter the LLM.

    Attributes:
        index: (M,) long, positions among the N frames, group after group, in frame order.
        kept: how many frames each group keeps, min(top_k, k).
        weights: (M, N) straight-through weights or None. Their value is zero; their gradient is that of the softmax
            over the frames that the kept one competed with (those that were not preferred to it).
    """

    index: Tensor
    kept: list[int]
    weights: Tensor | None = None


def pad_groups(values: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Brings flat per-frame values into one row a group.

    Args:
        values: (N,).
        sizes: frames of each group; they sum to N.

    Returns:
        values (G, kmax), zero where a group is shorter, and the mask (G, kmax) that is True on real frames.
    """
    lengths = _lengths(sizes, values.shape[0])
    place = torch.arange(max(sizes, default=0))
    mask = place < lengths[:, None]  # (G, kmax)
    grid = (lengths.cumsum(0) - lengths)[:, None] + place
    grid = _to(grid.masked_fill(~mask, 0), values.device)
    mask = _to(mask, values.device)
    return values[grid].masked_fill(~mask, 0), mask


def select_frames(
    scores: Tensor,
    sizes: Sequence[int],
    *,
    strategy: str,
    top_k: int = 1,
    training: bool = False,
    warmup: bool = False,
    select_by: str = "student",
    teacher_scores: Tensor | None = None,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
    evidence: Tensor | None = None,
    coverage: float = 0.0,
) -> Selection:
    """Chooses the frames of every group (the ``Sampling`` of equation 3).

    Args:
        scores: the scorer's s_fea (N,). Inference follows nothing else.
        sizes: frames of each group; they sum to N. A group of one is never sampled.
        strategy: ``feature``, ``attention`` and ``likelihood`` follow the scores (only ``feature`` lets the gradient of
            the answer reach them); ``oracle`` takes the first valid frames and fills up by score; ``first``, ``random``
            and ``all`` are baselines; ``none`` expects groups of one and keeps the first frame of a longer group.
        top_k: frames to keep of a group.
        training: whether warm-up, teacher and straight-through gradient apply.
        warmup: pick at random while the scores mean nothing yet (training of a strategy that follows the scores).
        select_by: ``teacher`` lets training of a taught strategy follow ``teacher_scores``, where a group has them.
        teacher_scores: (N,), not finite where there is no teacher.
        valid: (N,) bool, the frames that show what the text describes; for ``oracle``.
        generator: a CPU generator; default: the global one, which LLaVA's checkpoints restore.
        evidence: (N, D) what a frame's score comes from (`evidence`); needed with a coverage.
        coverage: with top_k > 1, what a frame loses for showing what a kept one shows already (`_covering`).

    Returns:
        The selection. Ties go to the earlier frame.

    Raises:
        ValueError: for an unknown strategy, sizes that do not fit, or missing ``valid_frames`` / teacher scores.
    """
    _check_choice(strategy, top_k, select_by)
    lengths = _lengths(sizes, scores.shape[0])
    group = torch.arange(len(lengths)).repeat_interleave(lengths)  # (N,) on the host
    same = _to(group[:, None] == group[None, :], scores.device)  # (N, N)
    warm = training and warmup and strategy in LEARNT_STRATEGIES
    taught = training and not warm and strategy in TAUGHT and select_by == "teacher"
    if strategy == "random" or warm:
        preference = _to(torch.rand(scores.shape[0], generator=generator), scores.device)
    elif strategy == "oracle":
        preference = _valid_first(scores, same, valid)
    elif taught:
        preference = _by_teacher(scores, same, teacher_scores)
    elif strategy in LEARNT_STRATEGIES:
        preference = scores.detach()
        if coverage and top_k > 1 and evidence is not None:
            preference = _covering(preference, sizes, evidence.detach(), coverage)
    else:
        preference = -torch.arange(scores.shape[0], device=scores.device)
    limit = {"none": 1, "all": max(sizes, default=1)}.get(strategy, top_k)
    kept = [min(limit, size) for size in sizes]
    rank = _rank(preference, same)
    dropped = rank >= _to(torch.tensor(kept, dtype=torch.long)[group], scores.device)  # (N,)
    index = torch.sort(dropped.to(torch.uint8), stable=True).indices[: sum(kept)]  # host knows the count: no wait
    soft = strategy == "feature" and training
    return Selection(index, kept, _straight_through(scores, same, rank, index) if soft else None)


def gather_frames(h: Tensor, index: Tensor, weights: Tensor | None = None) -> Tensor:
    """Takes the kept frames, with the straight-through gradient where the selection carries one.

    Args:
        h: projected features (N, T, D).
        index: ``Selection.index`` (M,).
        weights: ``Selection.weights`` (M, N) or None.

    Returns:
        (M, T, D), exactly ``h[index]``. With weights, a kept frame's gradient also reaches the scores of all frames it
        competed with, and through the scorer their features.
    """
    kept = h.index_select(0, index)
    if weights is None:
        return kept
    # The weights are zero, so h needs no gradient here; the product exists for the gradient of the weights.
    change = weights.to(h.dtype) @ h.detach().flatten(1)  # (M, T*D)
    return kept + change.view_as(kept)


def evidence(h: Tensor, contributions: Tensor) -> Tensor:
    """What a frame's score comes from: its tokens, weighted by what speaks for the frame.

    Args:
        h: projected features (N, T, D).
        contributions: (N, T), of `FrameScorer.contributions`.

    Returns:
        (N, D) of length 1; its inner products say how alike two frames' evidence is.
    """
    weights = torch.relu(contributions - contributions.mean(1, keepdim=True))
    centred = h.float() - h.float().mean(dim=(0, 1))  # what all tokens share is no evidence
    return F.normalize((weights.unsqueeze(1) @ centred).squeeze(1), dim=-1)


def _covering(preference: Tensor, sizes: Sequence[int], shown: Tensor, coverage: float) -> Tensor:
    """(N,) an order in which each next frame adds something: maximal marginal relevance (Carbonell and Goldstein 1998).

    Scores are z-scored in their group, then each next frame is the one with the largest score minus `coverage` times
    its likeness to the most alike frame before it. Our choice where several lesions are no one frame's.
    """
    order, start = torch.empty_like(preference), 0
    for size in sizes:
        group = slice(start, start + size)
        own = preference[group].float()
        left = (own - own.mean()) / own.std(unbiased=False).clamp_min(1e-6)
        alike = shown[group] @ shown[group].T  # (k, k)
        nearest = torch.zeros_like(left)
        for place in range(size):
            best = (left - coverage * nearest).argmax().unsqueeze(0)
            order[group] = order[group].index_fill(0, best, float(size - place))
            left = left.index_fill(0, best, float("-inf"))
            nearest = torch.maximum(nearest, alike.index_select(0, best).squeeze(0))
        start += size
    return order


def _rank(preference: Tensor, same: Tensor) -> Tensor:
    """(N,): how many frames of its group go before each frame. NaN comes last, ties go to the earlier frame."""
    key = torch.nan_to_num(preference.float(), nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    place = torch.arange(len(key), device=key.device)
    tie_won = (key[None, :] == key[:, None]) & (place[None, :] < place[:, None])
    ahead = (key[None, :] > key[:, None]) | tie_won  # (N, N): column goes before row
    return (same & ahead).sum(1)


def _straight_through(scores: Tensor, same: Tensor, rank: Tensor, index: Tensor) -> Tensor:
    """(M, N) weights of value 0 and softmax gradient.

    Our choice for top_k > 1: the r-th pick competes with the frames that were not picked before it, as in drawing
    without replacement.
    """
    rivals = same[index] & (rank[None, :] >= rank[index][:, None])  # (M, N)
    soft = scores.float()[None, :].masked_fill(~rivals, float("-inf")).softmax(-1)
    return soft - soft.detach()


def _valid_first(scores: Tensor, same: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None or valid.shape != scores.shape:
        given = "none" if valid is None else f"shape {tuple(valid.shape)}"
        raise ValueError(
            f"Strategy 'oracle' needs a validity flag for each of the {len(scores)} frames, got {given}: "
            "add 'valid_frames' to the exams, or choose another strategy."
        )
    frames = scores.shape[0]
    place = torch.arange(frames, device=scores.device)
    return torch.where(valid.to(scores.device, torch.bool), frames - place, -_rank(scores.detach(), same))


def _by_teacher(scores: Tensor, same: Tensor, teacher_scores: Tensor | None) -> Tensor:
    if teacher_scores is None or teacher_scores.shape != scores.shape:
        given = "none" if teacher_scores is None else f"shape {tuple(teacher_scores.shape)}"
        raise ValueError(
            f"Picking by the teacher needs a teacher score for each of the {len(scores)} frames, got {given}: "
            "compute them, or let training pick by the student."
        )
    teacher = teacher_scores.detach().to(scores.device, torch.float32)
    unknown = (same & ~torch.isfinite(teacher)[None, :]).any(1)  # (N,): somewhere in the frame's group
    return torch.where(unknown, scores.detach().float(), teacher)


def _check_choice(strategy: str, top_k: int, select_by: str) -> None:
    if strategy not in STRATEGIES:
        raise ValueError(f"Sampling strategy {strategy!r} is unknown: choose one of {', '.join(STRATEGIES)}.")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, but at least 1 frame must be kept: give 1 or more.")
    if select_by not in ("student", "teacher"):
        raise ValueError(f"select_by is {select_by!r}: choose 'student' or 'teacher'.")


def _lengths(sizes: Sequence[int], frames: int) -> Tensor:
    if any(size < 1 for size in sizes) or sum(sizes) != frames:
        raise ValueError(f"Group sizes {list(sizes)} must be 1 or more and sum to the {frames} frames given.")
    return torch.tensor(list(sizes), dtype=torch.long)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it."""
    return tensor.to(device, non_blocking=True)
