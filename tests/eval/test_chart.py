"""The chart: heights and error bars are read from the figure, the file is a PNG."""

from __future__ import annotations

import io
import itertools
import sys
from typing import Any

import pytest
from PIL import Image
from small_scores import block, scores

from llava_ultra_ext.eval import chart

pytest.importorskip("matplotlib", reason="the chart needs matplotlib")

TWO = (("llava", block(50.0, 70.0)), ("ultra", block(60.5, 71.0)))


def heights(axes: Any) -> dict[str, list[float]]:
    return {
        bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers if hasattr(bars, "patches")
    }


def errors(axes: Any) -> list[list[tuple[float, float]]]:
    """Low and high end of every error bar, a list a model."""
    found = []
    for bars in axes.containers:
        if not hasattr(bars, "patches"):
            (segments,) = bars.lines[2]
            found.append([(float(low[1]), float(high[1])) for low, high in segments.get_segments()])
    return found


def test_bars_are_f1_bleu_and_closed_accuracy_with_their_intervals() -> None:
    (axes,) = chart.make_figure([("SLAKE", scores(*TWO))]).axes
    assert heights(axes) == {"llava": [51.0, 57.0, 70.0], "ultra": [61.5, 67.5, 71.0]}
    assert errors(axes) == [[(48, 53), (54, 59), (67, 72)], [(58.5, 63.5), (64.5, 69.5), (68, 73)]]
    assert axes.get_title(loc="left") == "SLAKE\nstrict, tokenizer char, n = 100 (60 open, 40 closed)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["F1", "BLEU", "closed accuracy"]
    assert {"51.0", "67.5", "71.0"} <= {label.get_text() for label in axes.texts}


def test_a_panel_for_each_language_and_data_set() -> None:
    both = scores(*TWO, lang={"en": 40, "zh": 60})
    for model in both["models"]:
        model["subsets"]["lang"] = {"en": block(10.0, 11.0), "zh": block(20.0, 21.0)}
    figure = chart.make_figure([("a", both), ("b", scores(("third", block(1.0, 2.0))))])
    drawn = [axes for axes in figure.axes if axes.containers]
    assert [axes.get_title(loc="left").splitlines()[0] for axes in drawn] == ["a, zh", "a, en", "b"]
    # English stands under 13a, which is 5 higher here
    assert [heights(axes).get("llava") for axes in drawn] == [[21, 27, 21], [16, 22, 11], None]
    (legend,) = figure.legends
    assert [label.get_text() for label in legend.get_texts()] == ["llava", "ultra", "third"]


def test_bars_of_six_models_do_not_overlap() -> None:
    six = [(f"m{place}", block(50.0 + place, 60.0)) for place in range(6)]
    (axes,) = chart.make_figure([("t", scores(*six))]).axes
    edges = sorted(
        (bar.get_x(), bar.get_x() + bar.get_width())
        for bars in axes.containers
        if hasattr(bars, "patches")
        for bar in bars
    )
    assert len(edges) == 18 and all(one[1] <= other[0] + 1e-9 for one, other in itertools.pairwise(edges))
    colours = {bars.patches[0].get_facecolor() for bars in axes.containers if hasattr(bars, "patches")}
    assert len(colours) == 6


def test_no_figure_is_a_dash_without_bar_and_no_bootstrap_no_error_bars() -> None:
    content = scores(("m", block(50.0, None, n_closed=0)))
    (axes,) = chart.make_figure([("t", content)]).axes
    assert heights(axes)["m"] == [51, 57, 0] and errors(axes) == [[(48, 53), (54, 59)]]
    assert [label.get_text() for label in axes.texts] == ["51.0", "57.0", "–"]
    content["models"][0]["intervals"] = {}
    (axes,) = chart.make_figure([("t", content)]).axes
    assert errors(axes) == [] and "interval" not in axes.get_ylabel()


def test_an_interval_beside_its_figure_does_not_fail() -> None:
    content = scores(("m", block(50.0, 70.0)))
    content["models"][0]["intervals"]["metrics"]["strict"]["char"]["bleu"] = [58.0, 60.0]
    (axes,) = chart.make_figure([("t", content)]).axes
    assert errors(axes)[0][1] == (57, 60)


def test_faults_are_named_in_the_title() -> None:
    content = scores(*TWO)
    content["models"][0]["faults"] = {"empty": 1}
    (axes,) = chart.make_figure([("t", content)]).axes
    assert "scored with faults" in axes.get_title(loc="left")


@pytest.mark.filterwarnings("ignore:Glyph")  # where no font has Chinese characters
def test_makes_a_png_whatever_the_names() -> None:
    names = ("_a $x_1$ \\frac{", "模型甲")
    content = scores(*zip(names, (block(1.0, 2.0), block(3.0, 4.0)), strict=True))
    with Image.open(io.BytesIO(chart.png([("甲状腺\n$", content)]))) as picture:
        assert picture.format == "PNG" and picture.width > 600
    (legend,) = chart.make_figure([("t", content)]).legends
    assert len(legend.get_texts()) == 2


def test_chinese_names_get_an_installed_chinese_font(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    class Font:
        def __init__(self, name: str) -> None:
            self.name = name

    monkeypatch.setattr(font_manager.fontManager, "ttflist", [Font("Arial"), Font("SimHei"), Font("Noto Sans CJK JP")])
    assert chart._fonts(["llava", "甲状腺"])[1:] == ["Noto Sans CJK JP"] and chart._fonts(["llava"]) == []
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [Font("Arial")])
    assert chart._fonts(["甲状腺"]) == []


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"matplotlib is not installed.*pip install 'llava_ultra_ext\[eval\]'"):
        chart.png([("t", scores(*TWO))])
