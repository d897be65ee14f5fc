"""A scores file by hand, for the tests of tables and charts: round figures that a reader can follow."""

from __future__ import annotations

from typing import Any

from llava_ultra_ext.eval.metrics import FIGURES


def block(base: float | None, closed: float | None, *, n_open: int = 60, n_closed: int = 40) -> dict[str, Any]:
    """A model's figures: `base` is strict EM, each further figure 1 more; llava_med is 10 lower; `13a` 5 higher."""
    tokens = {"char": 0.0, "13a": 5.0}

    def figures(shift: float) -> dict[str, float | None]:
        return {key: None if base is None else base + place + shift for place, key in enumerate(FIGURES)}

    metrics = {
        family: {name: figures(lower + more) for name, more in tokens.items()}
        for family, lower in (("strict", 0.0), ("llava_med", -10.0))
    }
    own: dict[str, Any] = {
        "n": n_open + n_closed,
        "n_open": n_open,
        "n_closed": n_closed,
        "metrics": metrics,
        "closed_accuracy": closed,
        "lmms_eval_accuracy": 44.4,
        "llava_med_open_accuracy": 33.3,
        "llava_med_closed_accuracy": None if closed is None else closed - 10,
        "llava_med_yes_no_accuracy": None if closed is None else 0.0,
    }
    return {**own, "intervals": _intervals(own)}


def _intervals(own: dict[str, Any]) -> dict[str, Any]:
    """3 below to 2 above each figure; no key where there is no figure, as in a scores file."""

    def around(value: Any) -> Any:
        if isinstance(value, dict):
            inner = {key: around(one) for key, one in value.items()}
            return {key: one for key, one in inner.items() if one}
        return None if value is None else [value - 3, value + 2]

    return {key: one for key, value in own.items() if key[0] != "n" and (one := around(value))}


def scores(*models: tuple[str, dict[str, Any]], **gold: Any) -> dict[str, Any]:
    """A scores file of one language.

    Args:
        models: names and blocks.
        gold: keys of ``gold`` to set.
    """
    comparisons = []
    if len(models) > 1:
        (a, first), (b, second) = models[:2]
        f1 = second["metrics"]["strict"]["char"]["f1"] - first["metrics"]["strict"]["char"]["f1"]
        pair = {"difference": f1, "low": f1 - 1.5, "high": f1 + 1.25, "p": 0.012}
        comparisons = [{"a": a, "b": b, "metrics": {"strict": {"char": {"f1": pair}}}}]
    about = {"file": "test.jsonl", "fingerprint": "0123456789abcdef", "questions": 100, "open": 60, "closed": 40}
    return {
        "format": "ultra_scores/1",
        "gold": {**about, "lang": {"zh": 100}, **gold},
        "settings": {
            "tokenizers": ["char", "13a"],
            "shown": {"zh": "char", "en": "13a"},
            "normalisation": "NFKC, 100 % lower case",
            "bleu": {"strict": "sacrebleu corpus BLEU, smooth exp", "llava_med": "sentence BLEU, no smoothing"},
            "bootstrap": {"resamples": 200, "seed": 0, "percent": 95},
        },
        "models": [{"name": name, "file": "a.jsonl", "faults": {}, "subsets": {}, **own} for name, own in models],
        "comparisons": comparisons,
    }


def with_modalities(content: dict[str, Any], **bases: tuple[float, float]) -> dict[str, Any]:
    """Adds rows of a modality: name -> (base, closed) of the first model; each further model has 1 more."""
    for place, model in enumerate(content["models"]):
        model["subsets"]["modality"] = {
            name: block(base + place, closed + place, n_open=6, n_closed=4) for name, (base, closed) in bases.items()
        }
    return content
