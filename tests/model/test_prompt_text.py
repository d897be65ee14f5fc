"""What the sampler reads of a batch's own text, on ids that can be followed by eye."""

from __future__ import annotations

import torch

from llava_ultra_ext.model.prompt_text import answers_to_read, questions_to_read

IMAGE, NONE = -200, -100
ROWS = [torch.tensor([1, IMAGE, IMAGE, 5, 6, 7, 8, 9]), torch.tensor([1, 5, 7])]
LABELS = [torch.tensor([NONE, NONE, NONE, NONE, NONE, 7, NONE, 9]), torch.tensor([NONE, NONE, 7])]


def test_a_question_ends_where_the_first_answer_begins() -> None:
    ids, mask = questions_to_read(ROWS, LABELS)
    assert ids.tolist() == [[1, 5, 6], [1, 5, 0]]
    assert mask.tolist() == [[True, True, True], [True, True, False]]


def test_without_answers_the_whole_prompt_is_read() -> None:
    ids, mask = questions_to_read(ROWS, None)
    assert ids[mask].tolist() == [1, 5, 6, 7, 8, 9, 1, 5, 7]


def test_a_row_of_pictures_only_has_no_question() -> None:
    _, mask = questions_to_read([torch.tensor([IMAGE])], None)
    assert mask.tolist() == [[False]]


def test_the_teacher_reads_all_text_and_is_asked_for_the_answers() -> None:
    ids, mask = answers_to_read(ROWS, LABELS)
    assert ids is not None and mask is not None
    assert ids.tolist() == [[1, 5, 6, 7, 8, 9], [1, 5, 7, 0, 0, 0]]
    assert mask.tolist() == [[False, False, False, True, False, True], [False, False, True, False, False, False]]
    assert answers_to_read(ROWS, []) == (None, None)
