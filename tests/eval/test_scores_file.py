"""Scores files that someone changed: each fault is named by its place."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from small_scores import block, scores, with_modalities

from llava_ultra_ext.eval.scores_file import read_scores

GOOD = with_modalities(scores(("llava", block(50.0, 70.0)), ("ultra", block(60.5, None))), CT=(40, 50), MRI=(30, 20))
FIRST = ("models", 0)
F1 = (*FIRST, "metrics", "strict", "char", "f1")


def changed(*path: str | int, to: Any) -> Any:
    """`GOOD` with another value at a place."""
    content = copy.deepcopy(GOOD)
    inner: Any = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return content


def test_what_score_writes_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(GOOD))
    assert read_scores(path) == GOOD


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed("gold", to={}), "`gold.file` must be a string"),
        (changed("gold", to=[]), "`gold` must be an object"),
        (changed("gold", "lang", to={}), "`gold.lang` must be an object with at least one language"),
        (changed("gold", "lang", to={"fr": 1}), "`settings.shown.fr` must be a string"),
        (changed("gold", "lang", to={"zh": 1, "en": 1}), "`models[0].subsets.lang` must be an object with zh, en"),
        (changed("settings", "bleu", to={}), "`settings.bleu.strict` must be a string"),
        (changed("settings", "bootstrap", to={}), "`settings.bootstrap.percent` must be a number"),
        (changed("models", to=["llava"]), "`models[0]` must be an object"),
        (changed("models", to={"llava": 1}), "`models` must be a list"),
        (changed("models", 1, "name", to="llava"), "`models` must be of different names"),
        (changed("models", 1, "name", to=""), "`models[1].name` must be a string that is not empty"),
        (changed(*FIRST, "faults", to={"cut": "1"}), "`models[0].faults.cut` must be a whole number"),
        (changed(*FIRST, "n", to=None), "`models[0].n` must be a whole number"),
        (changed(*F1, to="5"), "`models[0].metrics.strict.char.f1` must be a number"),
        (changed(*F1, to=float("nan")), "`models[0].metrics.strict.char.f1` must be a number"),
        (changed(*F1, to=10**400), "`models[0].metrics.strict.char.f1` must be a number"),
        (changed(*FIRST, "closed_accuracy", to=[]), "`models[0].closed_accuracy` must be a number"),
        (changed(*FIRST, "intervals", "closed_accuracy", to=[1]), "closed_accuracy` must be a list of two numbers"),
        (changed(*FIRST, "subsets", "modality", "CT", to=5), "`models[0].subsets.modality.CT` must be an object"),
        (changed(*FIRST, "subsets", "modality", to={}), "`models[].subsets.modality` must be of the same values"),
        (changed("comparisons", to={}), "`comparisons` must be a list"),
    ],
)
def test_each_fault_is_named_by_its_place(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"--scores {path}: is no whole scores file, .*Make one with") as caught:
        read_scores(path)
    assert said in str(caught.value)


def test_a_number_of_many_digits_is_no_json_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(f'{{"format": {"9" * 5000}}}')
    with pytest.raises(ValueError, match=r"is not JSON \(a number has too many digits\)"):
        read_scores(path)
