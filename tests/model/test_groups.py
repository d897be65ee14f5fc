"""Redundancy groups: which frames belong together, and what remains of a prompt."""

from __future__ import annotations

import pytest
import torch

from llava_ultra_ext.model.groups import (
    IMAGE_TOKEN_INDEX,
    Group,
    find_groups,
    flatten_images,
    keep_positions,
    pad_rows,
    runs,
)

I = IMAGE_TOKEN_INDEX  # noqa: E741
NEWLINE, SPACE = 13, 29871
SEPARATORS = {NEWLINE, SPACE}


def groups_of(*rows: list[int], frames: int, per_row: list[int] | None = None) -> list[tuple]:
    return [(g.row, g.positions, g.frames) for g in find_groups(rows, SEPARATORS, frames, per_row)]


class TestRuns:
    @pytest.mark.parametrize(
        ("ids", "expected"),
        [
            ([1, 5, 6], []),
            ([1, I, 5], [(1,)]),
            ([I, I, I], [(0, 1, 2)]),
            ([1, I, NEWLINE, I, SPACE, NEWLINE, I, 5], [(1, 3, 6)]),
            ([1, I, NEWLINE, 5, I, I], [(1,), (4, 5)]),
            ([I, 5, I], [(0,), (2,)]),
            ([NEWLINE, I, NEWLINE], [(1,)]),
        ],
    )
    def test_a_run_ends_at_the_first_token_that_is_no_separator(self, ids: list, expected: list) -> None:
        assert runs(ids, SEPARATORS) == expected

    def test_without_separators_only_touching_tokens_belong_together(self) -> None:
        assert runs([I, I, NEWLINE, I], set()) == [(0, 1), (3,)]


class TestFindGroups:
    def test_frames_go_to_rows_in_reading_order(self) -> None:
        rows = ([1, I, NEWLINE, I, 5], [1, I, 5, I, I], [1, I, 5])
        expected = [(0, (1, 3), 2), (1, (1,), 1), (1, (3, 4), 2), (2, (1,), 1)]
        assert groups_of(*rows, frames=6) == expected

    def test_a_text_only_row_brings_one_picture_or_none(self) -> None:
        rows = ([1, I, I], [1, 5], [1, I])
        assert groups_of(*rows, frames=4) == [(0, (1, 2), 2), (1, (), 1), (2, (1,), 1)]
        assert groups_of(*rows, frames=3) == [(0, (1, 2), 2), (2, (1,), 1)]

    def test_one_token_stands_for_all_images_of_its_row(self) -> None:
        assert groups_of([1, I, 5], frames=7) == [(0, (1,), 7)]
        assert groups_of([1, I, 5], [1, I, I], frames=5, per_row=[3, 2]) == [(0, (1,), 3), (1, (1, 2), 2)]

    def test_counts_a_row_win_over_guessing(self) -> None:
        assert groups_of([1, 5], [1, I], frames=2, per_row=[1, 1]) == [(0, (), 1), (1, (1,), 1)]

    @pytest.mark.parametrize(
        ("rows", "frames", "per_row", "message"),
        [
            (([1, I, I],), 3, None, "Row 0 has 3 images but 2 <image> tokens"),
            (([1, I, I, I],), 2, None, "Row 0 has 2 images but 3 <image> tokens"),
            (([1, I, 5, I],), 3, None, "Row 0 has 3 images but 2 <image> tokens"),
            (([1, 5],), 2, None, "Row 0 has 2 images but 0 <image> tokens"),
            (([1, I], [1, I, I]), 3, [2, 1], "Row 1 has 1 images but 2 <image> tokens"),
            (([1, I], [1, I]), 3, None, r"3 images for rows with [1, 1] <image> tokens. Give as many images"),
            (([1, I], [1, I, I]), 2, None, r"2 images for rows with [1, 2] <image> tokens"),
        ],
    )
    def test_a_mismatch_names_row_and_counts(
        self, rows: tuple, frames: int, per_row: list | None, message: str
    ) -> None:
        with pytest.raises(ValueError) as error:
            find_groups(rows, SEPARATORS, frames, per_row)
        assert message in str(error.value)


class TestFlattenImages:
    def test_a_plain_batch_does_not_say_whose_the_frames_are(self) -> None:
        frames = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 2)
        flat, per_row = flatten_images(frames)
        assert flat is frames and per_row is None

    def test_lists_and_five_dimensions_do(self) -> None:
        frames = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2)
        flat, per_row = flatten_images([frames[:2], frames[2], frames[3:]])
        assert torch.equal(flat, frames) and per_row == [2, 1, 3]
        flat, per_row = flatten_images(frames.reshape(2, 3, 3, 2, 2))
        assert torch.equal(flat, frames) and per_row == [3, 3]


class TestKeepPositions:
    IDS = (1, 7, I, NEWLINE, I, NEWLINE, I, NEWLINE, 8, I, 9)
    GROUPS = (Group(0, (2, 4, 6), 3), Group(0, (9,), 1))

    def kept(self, *counts: int) -> list[int]:
        return [self.IDS[place] for place in keep_positions(self.IDS, self.GROUPS, counts)]

    def test_dropped_tokens_take_the_separators_between_them_along(self) -> None:
        assert self.kept(1, 1) == [1, 7, I, NEWLINE, 8, I, 9]

    def test_top_k_keeps_the_first_tokens_with_what_is_between(self) -> None:
        assert self.kept(2, 1) == [1, 7, I, NEWLINE, I, NEWLINE, 8, I, 9]
        assert self.kept(3, 1) == list(self.IDS)

    def test_the_prompt_is_the_same_for_any_k(self) -> None:
        def prompt(k: int) -> list[int]:
            ids = [1, *([I, NEWLINE] * k), 8]
            group = Group(0, tuple(range(1, 1 + 2 * k, 2)), k)
            return [ids[place] for place in keep_positions(ids, [group], [1])]

        assert prompt(1) == prompt(4) == prompt(12) == [1, I, NEWLINE, 8]

    def test_one_token_for_a_whole_exam_is_repeated_for_top_k(self) -> None:
        ids, group = [1, I, NEWLINE, 8], Group(0, (1,), 5)
        assert keep_positions(ids, [group], [1]) == [0, 1, 2, 3]
        assert keep_positions(ids, [group], [3]) == [0, 1, 1, 1, 2, 3]

    def test_a_row_without_images_stays_whole(self) -> None:
        assert keep_positions([1, 5, 6], [Group(0, (), 1)], [1]) == [0, 1, 2]
        assert keep_positions([1, 5, 6], [], []) == [0, 1, 2]


def test_pad_rows_pads_on_the_right_and_says_where() -> None:
    padded, real = pad_rows([torch.tensor([4, 5, 0]), torch.tensor([6])], -100)
    assert padded.tolist() == [[4, 5, 0], [6, -100, -100]]
    assert real.tolist() == [[True, True, True], [True, False, False]], "by length: an id may equal the padding"
