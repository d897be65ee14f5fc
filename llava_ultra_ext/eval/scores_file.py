"""Reading a scores file that someone hands in: everything that tables, chart and page take from it is checked first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.json_lines import json_fault, read_text
from llava_ultra_ext.eval.scores import FORMAT
from llava_ultra_ext.eval.table_rows import FAMILIES, Scores

_MAKE = "Make one with: llava-ultra score --gold … --pred … --json FILE"
_LARGEST = 1e6  # far above any figure; NaN is not below it either
_KEYS = ("gold", "settings", "models", "comparisons")


def read_scores(path: str | Path) -> Scores:
    """A scores file of `llava-ultra score`.

    Raises:
        ValueError: it is none, of another version, or something in it is not as `scores` writes it.
    """
    text = read_text(path, "--scores", "a scores file")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--scores {path}: is not JSON ({json_fault(error)}). {_MAKE}") from None
    given = content.get("format") if isinstance(content, Mapping) else None
    if isinstance(given, str) and given != FORMAT:
        raise ValueError(f"--scores {path}: has the format {given}; this release reads {FORMAT}. {_MAKE}")
    if given != FORMAT or any(key not in content for key in _KEYS):
        raise ValueError(f"--scores {path}: is no scores file. {_MAKE}")
    if content["models"] == []:
        raise ValueError(f"--scores {path}: holds no model. {_MAKE}")
    try:
        _check(content)
    except _Unfit as fault:
        raise ValueError(f"--scores {path}: is no whole scores file, {fault}. {_MAKE}") from None
    return dict(content)


class _Unfit(ValueError):
    """The first thing that is not as it should be: its place in the file, and what must stand there."""

    def __init__(self, place: str, wanted: str) -> None:
        super().__init__(f"`{place}` must be {wanted}")


def _check(content: Mapping[str, Any]) -> None:
    """Look at all that is shown.

    Raises:
        _Unfit: the first fault.
    """
    gold, settings = _object(content["gold"], "gold"), _object(content["settings"], "settings")
    for key in ("file", "fingerprint"):
        _text(gold.get(key), f"gold.{key}")
    langs = list(_object(gold.get("lang"), "gold.lang"))
    if not langs:
        raise _Unfit("gold.lang", "an object with at least one language")
    shown = _object(settings.get("shown"), "settings.shown")
    for lang in langs:
        _text(shown.get(lang), f"settings.shown.{lang}")
    _text(settings.get("normalisation"), "settings.normalisation")
    rules = _object(settings.get("bleu"), "settings.bleu")
    for family in FAMILIES:
        _text(rules.get(family.key), f"settings.bleu.{family.key}")
    percent = _object(settings.get("bootstrap"), "settings.bootstrap").get("percent")
    _number(percent, "settings.bootstrap.percent")
    models = _list(content["models"], "models")
    for place, model in enumerate(models):
        _check_model(model, f"models[{place}]", langs)
    _check_together(models)
    _list(content["comparisons"], "comparisons")


def _check_model(given: Any, place: str, langs: Sequence[str]) -> None:
    model = _object(given, place)
    if not _text(model.get("name"), f"{place}.name"):
        raise _Unfit(f"{place}.name", "a string that is not empty")
    for kind, count in _object(model.get("faults"), f"{place}.faults").items():
        _count(count, f"{place}.faults.{kind}")
    _check_block(model, place)
    subsets = _object(model.get("subsets"), f"{place}.subsets")
    for tag, values in subsets.items():
        for value, block in _object(values, f"{place}.subsets.{tag}").items():
            _check_block(_object(block, f"{place}.subsets.{tag}.{value}"), f"{place}.subsets.{tag}.{value}")
    if len(langs) > 1 and not set(langs) <= set(subsets.get("lang", {})):
        raise _Unfit(f"{place}.subsets.lang", f"an object with {', '.join(langs)}")


def _check_together(models: Sequence[Mapping[str, Any]]) -> None:
    """Models stand in one table."""
    names = [model["name"] for model in models]
    if len(set(names)) < len(names):
        raise _Unfit("models", "of different names")
    for tag in {tag for model in models for tag in model["subsets"]}:
        if len({frozenset(model["subsets"].get(tag, ())) for model in models}) > 1:
            raise _Unfit(f"models[].subsets.{tag}", "of the same values for every model")


def _check_block(block: Mapping[str, Any], place: str) -> None:
    """Figures over some questions, with their intervals."""
    for key in ("n", "n_open", "n_closed"):
        _count(block.get(key), f"{place}.{key}")
    _check_figures(block, place, _figure)
    _check_figures(_object(block.get("intervals", {}), f"{place}.intervals"), f"{place}.intervals", _bounds)


def _check_figures(block: Mapping[str, Any], place: str, check: Callable[[Any, str], None]) -> None:
    for family, tokenizers in _object(block.get("metrics", {}), f"{place}.metrics").items():
        for name, figures in _object(tokenizers, f"{place}.metrics.{family}").items():
            for key, value in _object(figures, f"{place}.metrics.{family}.{name}").items():
                check(value, f"{place}.metrics.{family}.{name}.{key}")
    for key in (key for columns in FAMILIES for key in columns.closed):
        if block.get(key) is not None:
            check(block[key], f"{place}.{key}")


def _figure(given: Any, place: str) -> None:
    if given is not None:
        _number(given, place)


def _bounds(given: Any, place: str) -> None:
    if len(_list(given, place)) != 2:
        raise _Unfit(place, "a list of two numbers")
    for bound in given:
        _number(bound, place)


def _number(given: Any, place: str) -> None:
    if type(given) not in (int, float) or not -_LARGEST < given < _LARGEST:
        raise _Unfit(place, "a number")


def _count(given: Any, place: str) -> None:
    if type(given) is not int:
        raise _Unfit(place, "a whole number")


def _text(given: Any, place: str) -> str:
    if not isinstance(given, str):
        raise _Unfit(place, "a string")
    return given


def _list(given: Any, place: str) -> list[Any]:
    if not isinstance(given, list):
        raise _Unfit(place, "a list")
    return given


def _object(given: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise _Unfit(place, "an object {…}")
    return given
