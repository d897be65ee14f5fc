"""Equation 5 against plain Python on random data, and the numbers that are logged beside it."""

from __future__ import annotations

import math

import pytest
import torch

from llava_ultra_ext.vision.distillation import (
    STUDENT_VARIANCE_FLOOR,
    adr_loss,
    choice_statistics,
    normalise,
    teacher_gap,
)
from llava_ultra_ext.vision.sampler import pad_groups, select_frames

NAN = float("nan")


def groups(values: list[float], sizes: list[int]) -> list[list[float]]:
    rows, start = [], 0
    for size in sizes:
        rows.append(values[start : start + size])
        start += size
    return rows


def z_scores(xs: list[float], floor: float = 0.0) -> list[float]:
    mean = sum(xs) / len(xs)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in xs) / len(xs) + floor)
    return [(x - mean) / deviation for x in xs]


def softmax(xs: list[float]) -> list[float]:
    powers = [math.exp(x) for x in xs]
    return [p / sum(powers) for p in powers]


def plain_loss(teacher: list[float], student: list[float], sizes: list[int], temperature: float) -> float:
    losses = []
    for t, s in zip(groups(teacher, sizes), groups(student, sizes), strict=True):
        if len(t) > 1 and all(math.isfinite(x) for x in t):
            target = softmax([x / temperature for x in z_scores(t)])
            own = softmax(z_scores(s, STUDENT_VARIANCE_FLOOR))
            losses.append(-sum(p * math.log(q) for p, q in zip(target, own, strict=True)))
    return sum(losses) / len(losses) if losses else 0.0


SIZES = [3, 1, 4, 2, 5]


def random_scores(seed: int, spread: float = 1.0) -> list[float]:
    torch.manual_seed(seed)
    return (spread * torch.randn(sum(SIZES), dtype=torch.double)).tolist()


@pytest.mark.parametrize("spread", [0.02, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_loss_and_gradient_agree_with_plain_python(temperature: float, spread: float) -> None:
    teacher, student = random_scores(0, 0.01), random_scores(1, spread)
    teacher[4] = NAN  # one frame of the third group: the whole group is skipped
    s = torch.tensor(student, requires_grad=True)
    loss = adr_loss(torch.tensor(teacher), s, SIZES, temperature)
    assert float(loss.detach()) == pytest.approx(plain_loss(teacher, student, SIZES, temperature), abs=1e-5)
    loss.backward()
    step = 1e-5
    for i in range(len(student)):
        up, down = list(student), list(student)
        up[i] += step
        down[i] -= step
        slope = plain_loss(teacher, up, SIZES, temperature) - plain_loss(teacher, down, SIZES, temperature)
        assert float(s.grad[i]) == pytest.approx(slope / (2 * step), rel=1e-3, abs=2e-5)
    assert s.grad[3:8].abs().sum() == 0 and s.grad[8:].abs().min() > 0


def test_the_teacher_gets_no_gradient() -> None:
    teacher = torch.randn(3, requires_grad=True)
    adr_loss(teacher, torch.randn(3, requires_grad=True), [3]).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("teacher", "sizes"),
    [([NAN] * 4, [4]), ([1.0] * 4, [1] * 4), ([1.0, NAN, -math.inf, 2.0], [2, 2]), ([], [])],
)
def test_nothing_to_learn_is_a_connected_zero(teacher: list[float], sizes: list[int]) -> None:
    student = torch.randn(len(teacher), requires_grad=True)
    loss = adr_loss(torch.tensor(teacher), student, sizes)
    assert float(loss.detach()) == 0
    loss.backward()
    assert student.grad is not None and torch.equal(student.grad, torch.zeros_like(student))


def test_descending_the_loss_finds_the_teachers_frame() -> None:
    teacher, sizes = torch.tensor([0.501, 0.500, 0.503, 0.2, 0.1]), [3, 2]
    student = torch.zeros(5, requires_grad=True)
    for _ in range(200):
        (grad,) = torch.autograd.grad(adr_loss(teacher, student, sizes), student)
        student.data -= grad
    assert select_frames(student, sizes, strategy="attention").index.tolist() == [2, 3]


def test_equal_teacher_scores_ask_for_no_preference() -> None:
    student = torch.zeros(4, requires_grad=True)
    loss = adr_loss(torch.full((4,), -2.3), student, [4])
    assert float(loss.detach()) == pytest.approx(math.log(4), abs=1e-6)
    loss.backward()
    assert student.grad.abs().max() < 1e-6


def test_gradient_stays_small_for_near_identical_frames() -> None:
    """The floor holds it: a plain z-score would divide by a spread of .0001."""
    student = torch.tensor([1.0, 1.0001, 0.9999], requires_grad=True)
    adr_loss(torch.tensor([1.0, 2.0, 3.0]), student, [3]).backward()
    assert 10 < student.grad.abs().max() < 1 / math.sqrt(STUDENT_VARIANCE_FLOOR)


def test_the_loss_does_not_depend_on_the_scale_of_the_scores() -> None:
    teacher, student = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.5, 3.0])
    small, large = (adr_loss(teacher, scale * student, [3]).item() for scale in (1.0, 100.0))
    assert small == pytest.approx(large, rel=1e-3)


def test_normalise_has_mean_0_and_deviation_1_without_the_padding() -> None:
    padded, mask = pad_groups(torch.tensor([1.0, 3.0, 7.0, 7.0, 7.0, 0.501, 0.5]), [2, 3, 2])
    z = normalise(padded, mask)
    torch.testing.assert_close(z, torch.tensor([[-1.0, 1, 0], [0, 0, 0], [1, -1, 0]]), rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------- statistics


def statistics(teacher: list[float] | None, student: list[float], sizes: list[int], **kwargs: object) -> dict:
    s = torch.tensor(student)
    selection = select_frames(s, sizes, strategy="attention", **kwargs)
    t = None if teacher is None else torch.tensor(teacher)
    return {k: float(v) for k, v in choice_statistics(t, s, sizes, selection).items()}


def test_agreement_counts_groups_with_a_teacher() -> None:
    student = [0.0, 1, 0, 9, 1, 0, 1, 0, 1, 0]
    teacher = [0.0, 1, 0, 0, 0, 1, 1, NAN, 5, 0]
    found = statistics(teacher, student, [3, 1, 2, 2, 2])
    assert found["agreement"] == pytest.approx(2 / 3)  # yes, no, (no teacher), yes


def test_entropy_is_1_without_preference_and_less_the_clearer_it_is() -> None:
    assert statistics(None, [1.0] * 5, [3, 2])["entropy"] == pytest.approx(1.0)
    p = softmax(z_scores([9.0, 0.0, 0.0], STUDENT_VARIANCE_FLOOR))
    expected = -sum(x * math.log(x) for x in p) / math.log(3)
    assert expected < 0.6
    assert statistics(None, [9.0, 0.0, 0.0, 7.0], [3, 1])["entropy"] == pytest.approx(expected, abs=1e-6)


def test_picks_by_quarter_of_the_group() -> None:
    picks = ["picks_start", "picks_early", "picks_late", "picks_end"]
    scores = [0.0] * 9
    names = ["start"] * 2 + ["early"] * 2 + ["late"] * 2 + ["end"] * 3
    for frame, name in enumerate(names):
        one = list(scores)
        one[frame] = 1.0
        found = statistics(None, [*one, 0.0], [9, 1])
        assert [p for p in picks if found[p] == 1] == [f"picks_{name}"], frame
    found = statistics(None, [1.0, 0, 0, 1, 0, 1], [2, 2, 2])
    assert [found[p] for p in picks] == pytest.approx([1 / 3, 0, 0, 2 / 3])


def test_statistics_without_groups_are_nan() -> None:
    found = statistics([1.0, 2.0], [1.0, 2.0], [1, 1])
    assert set(found) == {"agreement", "entropy", "picks_start", "picks_early", "picks_late", "picks_end"}
    assert all(math.isnan(v) for v in found.values())
    assert "agreement" not in statistics(None, [1.0, 2.0], [1, 1])


# ------------------------------------------------------------------------------------------------- teacher gap


def test_gap_is_0_for_a_teacher_that_reads_no_text() -> None:
    own = torch.tensor([0.1, 0.5, 0.2, 1.0, 2.0])
    assert float(teacher_gap(own, own, [3, 2])) == 0
    assert float(teacher_gap(own, 100 * own - 7, [3, 2])) == pytest.approx(0, abs=1e-5)  # same order, another scale


def test_gap_is_the_total_variation_of_the_preferences() -> None:
    own, swapped = [1.0, 2.0, 4.0, 5.0, 1.0, 8.0], [3.0, 1.0, 1.0, NAN, 1.0, 0.0]
    p, q = (softmax([x / 0.5 for x in z_scores(xs[:3])]) for xs in (own, swapped))
    expected = sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
    found = teacher_gap(torch.tensor(own), torch.tensor(swapped), [3, 2, 1])
    assert float(found) == pytest.approx(expected, abs=1e-5) and expected > 0.5


def test_gap_without_groups_is_nan() -> None:
    assert math.isnan(float(teacher_gap(torch.ones(2), torch.ones(2), [1, 1])))


def test_nothing_waits_for_the_device() -> None:
    """Meta tensors hold no values: whatever would read one fails."""
    scores = torch.zeros(sum(SIZES), device="meta")
    selection = select_frames(scores, SIZES, strategy="attention")
    assert adr_loss(scores, scores, SIZES).shape == teacher_gap(scores, scores, SIZES).shape == ()
    assert all(value.shape == () for value in choice_statistics(scores, scores, SIZES, selection).values())
