"""Equation 3 by hand, every strategy's choice, and the straight-through gradient."""

from __future__ import annotations

import pytest
import torch

from llava_ultra_ext.vision.sampler import (
    STRATEGIES,
    FrameScorer,
    evidence,
    gather_frames,
    pad_groups,
    select_frames,
)

T, D = 5, 8
SIZES = [1, 3, 2, 4]
SCORES = torch.tensor([9.0, 1.0, 3.0, 2.0, 5.0, 4.0, 0.0, 0.5, 0.7, 0.6])
BEST = [0, 2, 4, 8]


def pick(strategy: str, scores: torch.Tensor = SCORES, sizes: list[int] = SIZES, **kwargs: object) -> list[int]:
    return select_frames(scores, sizes, strategy=strategy, **kwargs).index.tolist()


def layer_norm(h: torch.Tensor) -> torch.Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


# ------------------------------------------------------------------------------------------------- scorer


@pytest.mark.parametrize("weights", ["channel", "token", "token_channel"])
def test_score_is_the_weighted_average_of_equation_3(weights: str) -> None:
    torch.manual_seed(0)
    scorer, h = FrameScorer(D, T, weights), 3 * torch.randn(4, T, D) + 1
    for p in scorer.parameters():
        p.data.normal_()
    normed = layer_norm(h)
    expected = {
        "channel": lambda: (normed.mean(1) * scorer.channel_weights).sum(1),
        "token": lambda: (normed.abs().mean(2) * scorer.token_weights).sum(1),
        "token_channel": lambda: (normed * scorer.channel_weights * scorer.token_weights[:, None]).sum((1, 2)),
    }[weights]()
    torch.testing.assert_close(scorer(h), expected)


def test_scorer_starts_without_ties_and_with_a_token_average() -> None:
    torch.manual_seed(0)
    channel, both = FrameScorer(D, T, "channel"), FrameScorer(D, T, "token_channel")
    h = torch.randn(6, T, D)
    assert len(set(channel(h).tolist())) == 6
    assert 0 < channel.channel_weights.abs().max() < 0.1
    both.channel_weights.data.copy_(channel.channel_weights.data)
    torch.testing.assert_close(both(h), channel(h))


def test_contributions_say_which_token_a_score_comes_from() -> None:
    scorer, h = FrameScorer(D, T, "token_channel"), torch.zeros(2, T, D)
    scorer.channel_weights.data.copy_(torch.arange(D))
    scorer.token_weights.data.copy_(torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]))
    h[1, 2] = torch.arange(D)  # normed: (i - 3.5) / sqrt(5.25), times i: 42 / sqrt(5.25) = 18.33, weighted twice
    expected = torch.zeros(2, T)
    expected[1, 2] = 36.66
    torch.testing.assert_close(scorer.contributions(h), expected, rtol=1e-3, atol=1e-3)
    channel = FrameScorer(D, T, "channel")
    channel.channel_weights.data.copy_(torch.arange(D))
    torch.testing.assert_close(channel.contributions(h)[1, 2], torch.tensor(18.33 / T), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(channel(h), channel.contributions(h).sum(-1))


def test_a_question_changes_the_channel_weights() -> None:
    torch.manual_seed(0)
    plain, asked = FrameScorer(D, T), FrameScorer(D, T, question_rank=2)
    asked.channel_weights.data.copy_(plain.channel_weights.data)
    h, questions = torch.randn(2, T, D), torch.randn(2, D)
    torch.testing.assert_close(asked(h, questions), plain(h))  # U is zero: training starts from the plain score
    asked.question_out.data.normal_()
    normed = layer_norm(questions)
    for frame in range(2):
        w = plain.channel_weights + asked.question_out.T @ (asked.question_in.T @ normed[frame])
        expected = (layer_norm(h[frame]) @ w).mean()
        torch.testing.assert_close(asked(h, questions)[frame], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="give the questions"):
        asked(h)
    with pytest.raises(ValueError, match="channel or token_channel"):
        FrameScorer(D, T, "token", question_rank=2)


def test_scores_are_float32_whatever_the_parameters() -> None:
    torch.manual_seed(0)
    scorer, h = FrameScorer(D, T).to(torch.bfloat16), torch.randn(4, T, D, dtype=torch.bfloat16)
    exact = (layer_norm(h.double()).mean(1) * scorer.channel_weights.double()).sum(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = scorer(h)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=1e-6)


def test_score_does_not_depend_on_the_scale_of_the_features() -> None:
    torch.manual_seed(0)
    scorer, h = FrameScorer(D, T), torch.randn(4, T, D)
    torch.testing.assert_close(scorer(50 * h), scorer(h), rtol=1e-3, atol=1e-5)


def test_scorer_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="token_channel"):
        FrameScorer(D, T, "tokens")
    with pytest.raises(ValueError, match="image size"):
        FrameScorer(D, T, "token")(torch.randn(2, T + 1, D))
    with pytest.raises(ValueError, match="image size"):
        FrameScorer(D, T)(torch.randn(2, T, D + 1))


# ------------------------------------------------------------------------------------------------- groups


def test_pad_groups_puts_one_group_in_a_row() -> None:
    values, mask = pad_groups(torch.arange(1.0, 7.0), [1, 3, 2])
    assert values.tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0]]
    assert mask.tolist() == [[True, False, False], [True] * 3, [True, True, False]]


def test_pad_groups_keeps_nan_of_real_frames_and_the_gradient() -> None:
    x = torch.tensor([1.0, float("nan"), 2.0], requires_grad=True)
    values, _ = pad_groups(x, [2, 1])
    assert torch.isnan(values).tolist() == [[False, True], [False, False]]
    values[1, 0].backward()
    assert x.grad.tolist() == [0, 0, 1]


@pytest.mark.parametrize("sizes", [[2, 2], [5, 1], [4, 0], [6, -1]])
def test_sizes_that_do_not_fit_are_refused(sizes: list[int]) -> None:
    for call in (lambda: pad_groups(torch.zeros(5), sizes), lambda: pick("feature", torch.zeros(5), sizes)):
        with pytest.raises(ValueError, match="sum to the 5 frames"):
            call()


# ------------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize("strategy", ["feature", "attention", "likelihood"])
@pytest.mark.parametrize("training", [True, False])
def test_learnt_strategies_keep_the_best_frame_of_each_group(strategy: str, training: bool) -> None:
    selection = select_frames(SCORES, SIZES, strategy=strategy, training=training)
    assert selection.index.tolist() == BEST
    assert selection.kept == [1, 1, 1, 1]


def test_several_frames_are_kept_in_frame_order() -> None:
    selection = select_frames(SCORES, SIZES, strategy="feature", top_k=3)
    assert selection.index.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert selection.kept == [1, 3, 2, 3]


def test_ties_go_to_the_earlier_frame_and_nan_loses() -> None:
    nan = float("nan")
    assert pick("feature", torch.tensor([2.0, 3.0, 3.0, 1.0, 1.0]), [3, 2]) == [1, 3]
    assert pick("feature", torch.tensor([nan, -5.0, nan, nan]), [2, 2]) == [1, 2]


def test_many_equal_frames_keep_their_order() -> None:
    assert pick("feature", torch.zeros(100), [100], top_k=60) == list(range(60))


def test_baselines() -> None:
    assert pick("first") == [0, 1, 4, 6]
    assert pick("first", top_k=2) == [0, 1, 2, 4, 5, 6, 7]
    assert pick("none", top_k=2) == [0, 1, 4, 6]
    assert pick("all") == list(range(10))
    assert select_frames(SCORES, SIZES, strategy="all").kept == SIZES


def test_random_reproduces_from_the_cpu_state_and_reaches_every_frame() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = [pick("random") for _ in range(60)]
    torch.set_rng_state(state)
    assert [pick("random") for _ in range(60)] == first
    assert {choice[3] for choice in first} == {6, 7, 8, 9} and all(choice[0] == 0 for choice in first)
    a, b = (pick("random", generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert a == b


def test_warmup_is_random_in_training_only_and_for_learnt_strategies_only() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    warm = [pick("likelihood", training=True, warmup=True) for _ in range(40)]
    torch.set_rng_state(state)
    assert warm == [pick("random") for _ in range(40)] and len({tuple(w) for w in warm}) > 5
    assert all(pick("likelihood", training=False, warmup=True) == BEST for _ in range(5))
    assert all(pick("first", training=True, warmup=True) == [0, 1, 4, 6] for _ in range(5))


def test_training_may_follow_the_teacher_where_it_is_known() -> None:
    teacher = torch.tensor([0, 5.0, 1, 1, float("nan"), 9, 1, 0, 0, 0])
    taught = {"training": True, "teacher_scores": teacher, "select_by": "teacher"}
    assert pick("attention", **taught) == [0, 1, 4, 6]  # third group: no teacher, so its student
    assert pick("attention", **{**taught, "select_by": "student"}) == BEST
    assert pick("attention", **{**taught, "training": False}) == BEST
    assert pick("feature", **taught) == BEST
    with pytest.raises(ValueError, match="teacher score"):
        pick("likelihood", training=True, select_by="teacher")


def test_oracle_takes_the_first_valid_frames_then_the_best() -> None:
    valid = torch.tensor([0, 0, 0, 1, 0, 0, 0, 1, 0, 1], dtype=torch.bool)
    assert pick("oracle", valid=valid) == [0, 3, 4, 7]
    assert pick("oracle", valid=valid, top_k=3) == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert pick("oracle", valid=valid, top_k=2) == [0, 2, 3, 4, 5, 7, 9]
    two = torch.tensor([1, 1, 0, 0], dtype=torch.bool)
    assert pick("oracle", torch.tensor([0.0, 5.0, 9.0, 1.0]), [4], valid=two, top_k=1) == [0]
    assert pick("oracle", torch.tensor([0.0, 5.0, 9.0, 1.0]), [4], valid=two, top_k=3) == [0, 1, 2]


@pytest.mark.parametrize("valid", [None, torch.ones(3, dtype=torch.bool)])
def test_oracle_without_validity_is_refused(valid: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match="valid_frames"):
        pick("oracle", valid=valid)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"strategy": "best"}, "likelihood"),
        ({"strategy": "feature", "top_k": 0}, "top_k"),
        ({"strategy": "feature", "select_by": "both"}, "'student' or 'teacher'"),
    ],
)
def test_unknown_settings_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_frames(SCORES, SIZES, **kwargs)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_group_of_one_is_never_sampled(strategy: str) -> None:
    one = select_frames(
        torch.randn(3), [1, 1, 1], strategy=strategy, training=True, warmup=True, valid=torch.zeros(3).bool()
    )
    assert one.index.tolist() == [0, 1, 2] and one.kept == [1, 1, 1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_empty_batch_selects_nothing(strategy: str) -> None:
    nothing = torch.zeros(0)
    selection = select_frames(nothing, [], strategy=strategy, training=True, valid=nothing.bool())
    assert gather_frames(torch.zeros(0, T, D), selection.index, selection.weights).shape == (0, T, D)
    assert selection.kept == []


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("warmup", [True, False])
def test_nothing_waits_for_the_device(strategy: str, warmup: bool) -> None:
    """Meta tensors hold no values: whatever would read one (item, tolist, boolean indexing) fails."""
    meta = SCORES.to("meta")
    taught = {"teacher_scores": meta, "select_by": "teacher", "valid": meta.bool()}
    selection = select_frames(meta, SIZES, strategy=strategy, training=True, warmup=warmup, **taught)
    out = gather_frames(torch.zeros(10, T, D, device="meta"), selection.index, selection.weights)
    assert out.shape == (sum(selection.kept), T, D)


# ------------------------------------------------------------------------------------------------- gradient


def _soft_reference(h: torch.Tensor, scores: torch.Tensor, sizes: list[int], upstream: torch.Tensor) -> torch.Tensor:
    """Gradient of the scores when each group gave its softmax mixture instead of one frame (top_k = 1)."""
    scores = scores.detach().clone().requires_grad_()
    start, total = 0, torch.zeros(())
    for size, g in zip(sizes, upstream, strict=True):
        part = slice(start, start + size)
        mixture = (scores[part].softmax(0)[:, None, None] * h.detach()[part]).sum(0)
        total, start = total + (mixture * g).sum(), start + size
    return torch.autograd.grad(total, scores)[0]


def test_straight_through_value_is_hard_and_gradient_is_the_softmax() -> None:
    torch.manual_seed(0)
    h, scores = torch.randn(10, T, D), SCORES.clone().requires_grad_()
    selection = select_frames(scores, SIZES, strategy="feature", training=True)
    out = gather_frames(h, selection.index, selection.weights)
    assert torch.equal(out, h[BEST])
    upstream = torch.randn_like(out)
    out.backward(upstream)
    torch.testing.assert_close(scores.grad, _soft_reference(h, SCORES, SIZES, upstream))
    assert scores.grad[0] == 0 and scores.grad[1:].abs().min() > 0


def test_gradient_reaches_the_weights_and_every_frame_of_a_group() -> None:
    torch.manual_seed(0)
    scorer, h = FrameScorer(D, T, "token_channel"), torch.randn(10, T, D, requires_grad=True)
    scores = scorer(h)
    selection = select_frames(scores, SIZES, strategy="feature", training=True)
    out = gather_frames(h, selection.index, selection.weights)
    (out * torch.randn_like(out)).sum().backward()
    assert scorer.channel_weights.grad.abs().sum() > 0 and scorer.token_weights.grad.abs().sum() > 0
    assert all(frame.abs().sum() > 0 for frame in h.grad)


def test_a_kept_frame_still_gets_its_own_gradient() -> None:
    h = torch.randn(3, T, D, requires_grad=True)
    selection = select_frames(torch.tensor([0.0, 2.0, 1.0], requires_grad=True), [3], strategy="feature", training=True)
    upstream = torch.randn(1, T, D)
    gather_frames(h, selection.index, selection.weights).backward(upstream)
    assert torch.equal(h.grad[1], upstream[0])
    assert h.grad[0].abs().sum() == 0  # the others only through their scores


def test_top_k_draws_without_replacement() -> None:
    torch.manual_seed(0)
    h, values = torch.randn(3, T, D), torch.tensor([0.5, 2.0, 1.0])
    scores = values.clone().requires_grad_()
    selection = select_frames(scores, [3], strategy="feature", top_k=2, training=True)
    out = gather_frames(h, selection.index, selection.weights)
    assert torch.equal(out, h[[1, 2]])
    upstream = torch.randn_like(out)
    out.backward(upstream)
    soft = values.clone().requires_grad_()
    first = (soft.softmax(0)[:, None, None] * h).sum(0)  # best frame: rivals are all
    second = (soft[[0, 2]].softmax(0)[:, None, None] * h[[0, 2]]).sum(0)  # next: all but the best
    (expected,) = torch.autograd.grad((first * upstream[0]).sum() + (second * upstream[1]).sum(), soft)
    torch.testing.assert_close(scores.grad, expected)


def test_hard_value_is_exact_in_half_precision() -> None:
    h = torch.randn(10, T, D).to(torch.bfloat16)
    selection = select_frames(SCORES.clone().requires_grad_(), SIZES, strategy="feature", training=True)
    assert torch.equal(gather_frames(h, selection.index, selection.weights), h[BEST])


def test_warmup_keeps_the_scorer_in_the_graph() -> None:
    scores = SCORES.clone().requires_grad_()
    selection = select_frames(scores, SIZES, strategy="feature", training=True, warmup=True)
    gather_frames(torch.randn(10, T, D), selection.index, selection.weights).sum().backward()
    assert scores.grad is not None


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s not in ("feature", "oracle")])
def test_only_func_a_lets_the_answer_reach_the_scores(strategy: str) -> None:
    assert select_frames(SCORES.clone().requires_grad_(), SIZES, strategy=strategy, training=True).weights is None
    assert select_frames(SCORES, SIZES, strategy="feature", training=False).weights is None


# ----------------------------------------------------------------------------------------------- coverage


def test_the_second_pick_shows_something_else() -> None:
    # frames 0 and 1 show lesion a (scores 3, 2.9), frame 2 lesion b (2), frame 3 nothing (0)
    shown = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    scores, sizes = torch.tensor([3.0, 2.9, 2.0, 0.0, 1.0]), [4, 1]
    shown = torch.cat([shown, torch.ones(1, 2)])
    kwargs = {"strategy": "likelihood", "top_k": 2, "evidence": shown}
    assert select_frames(scores, sizes, coverage=0.0, **kwargs).index.tolist() == [0, 1, 4]
    # z-scores .87, .79, .02, -1.68: frame 1 falls to .79 - 1 = -.21, below frame 2
    assert select_frames(scores, sizes, coverage=1.0, **kwargs).index.tolist() == [0, 2, 4]
    # at .5 it stays above: .79 - .5 = .29
    assert select_frames(scores, sizes, coverage=0.5, **kwargs).index.tolist() == [0, 1, 4]


def test_evidence_is_what_the_speaking_tokens_show() -> None:
    h, contributions = torch.zeros(2, 2, 3), torch.zeros(2, 2)
    h[0, 0], h[1, 1] = torch.tensor([3.0, 0, 0]), torch.tensor([0, 3.0, 0])
    contributions[0, 0] = contributions[1, 1] = 1.0
    # mean over all four tokens (.75, .75, 0): frame 0 speaks by (2.25, -.75, 0), frame 1 by (-.75, 2.25, 0)
    expected = torch.tensor([[3.0, -1.0, 0.0], [-1.0, 3.0, 0.0]]) / 10**0.5
    torch.testing.assert_close(evidence(h, contributions), expected)
