"""A bar chart of scores as PNG: models side by side, with their intervals; one panel a data set and language."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from llava_ultra_ext.data.languages import has_chinese
from llava_ultra_ext.eval.table_rows import Datasets, Part, Scores, faults, figure, parts, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS = {"f1": "F1", "bleu": "BLEU", "closed_accuracy": "closed accuracy"}
"""Figures of the strict family that are drawn."""

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
"""Okabe and Ito's, which colour-blind readers can tell apart; more models begin again."""

_CJK = (
    *("Noto Sans CJK", "Source Han Sans", "Noto Sans SC", "PingFang", "Microsoft YaHei", "SimHei", "WenQuanYi"),
    *("Heiti", "Droid Sans Fallback", "Noto Serif CJK", "AR PL UMing", "SimSun"),
)
"""Beginnings of the names of fonts that have Chinese characters, the best first."""

_SHARE = 0.8  # of the room of a figure that its bars take
_WIDEST = 0.4
_LABELLED = 4  # models up to which each bar has its figure written above it


def png(datasets: Datasets) -> bytes:
    """The chart as a PNG file's content.

    Args:
        datasets: titles and scores.

    Raises:
        ValueError: matplotlib is not installed.
    """
    buffer = io.BytesIO()
    make_figure(datasets).savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def make_figure(datasets: Datasets) -> Figure:
    """The chart; each model's bars are a container labelled with its name.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "matplotlib is not installed, which the chart needs. Install it: pip install 'llava_ultra_ext[eval]'"
        ) from None
    panels = [(scores, part) for title, scores in datasets for part in _panels(title, scores)]
    names = list(dict.fromkeys(name for _, part in panels for name in part.blocks))
    colour = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}
    across = min(2, len(panels))
    down = math.ceil(len(panels) / across)
    legend_rows = math.ceil(len(names) / 3)
    height = 3.4 * down + 0.4 + 0.25 * legend_rows
    chart = Figure(figsize=(6.2 * across, height), layout="constrained")
    FigureCanvasAgg(chart)
    fonts = _fonts([*names, *(part.title for _, part in panels)])
    grid = chart.subplots(down, across, squeeze=False)
    for axes, (scores, part) in zip(grid.flat, panels, strict=False):
        _panel(axes, scores, part, colour, fonts)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    handles = {bars.get_label(): bars for axes in grid.flat for bars in axes.containers if hasattr(bars, "patches")}
    chart.legend(
        [handles[name] for name in names],
        [_plain(name) for name in names],
        loc="outside lower center",
        ncols=min(3, len(names)),
        frameon=False,
        prop={"family": fonts} if fonts else None,
    )
    return chart


def _panels(title: str, scores: Scores) -> list[Part]:
    """Languages apart; together only where there is one."""
    own = parts(title, scores)
    return own if len(own) == 1 else [part for part in own if not part.whole]


def _panel(axes: Axes, scores: Scores, part: Part, colour: dict[str, str], fonts: list[str]) -> None:
    width = min(_WIDEST, _SHARE / len(part.blocks))
    for place, (name, block) in enumerate(part.blocks.items()):
        values = [figure(block, "strict", part.tokenizer, key) for key in BARS]
        bounds = [figure(block.get("intervals", {}), "strict", part.tokenizer, key) for key in BARS]
        at = [group + (place - (len(part.blocks) - 1) / 2) * width for group in range(len(BARS))]
        heights = [0.0 if value is None else value for value in values]
        axes.bar(at, heights, width * 0.92, color=colour[name], label=name)
        drawn = [(x, value, bound) for x, value, bound in zip(at, values, bounds, strict=True) if bound]
        if drawn:
            x_of, tops, _ = zip(*drawn, strict=True)
            axes.errorbar(x_of, tops, yerr=_errors(drawn), fmt="none", ecolor="#222222", elinewidth=1, capsize=2.5)
        for x, value, bound in zip(at, values, bounds, strict=True):
            if value is None or len(part.blocks) <= _LABELLED:
                top = 0.0 if value is None else max(value, bound[1] if bound else 0.0)
                axes.text(x, top + 1.5, shown(value), ha="center", va="bottom", fontsize=8)
    family: dict[str, Any] = {"family": fonts} if fonts else {}
    lines = [_plain(part.title), f"strict, tokenizer {part.tokenizer}, {part.counts}"]
    if faults([("", scores)]):
        lines.append("scored with faults, see the table")
    axes.set_title("\n".join(lines), fontsize=10, loc="left", **family)
    axes.set_xticks(range(len(BARS)), list(BARS.values()))
    axes.set_xlim(-0.5, len(BARS) - 0.5)
    axes.set_ylim(0, 110)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    percent = scores["settings"]["bootstrap"]["percent"]
    axes.set_ylabel(f"0 to 100, {percent} % intervals" if any(m["intervals"] for m in scores["models"]) else "0 to 100")


def _errors(drawn: list[tuple[float, float, Any]]) -> list[list[float]]:
    """Lengths below and above each bar; an interval of BLEU can lie beside its figure, then one length is 0."""
    below = [max(0.0, value - bound[0]) for _, value, bound in drawn]
    above = [max(0.0, bound[1] - value) for _, value, bound in drawn]
    return [below, above]


def _plain(name: str) -> str:
    """A name that matplotlib does not read as a formula, without half characters, which no font has."""
    return " ".join(name.encode("utf-8", "replace").decode().split()).replace("$", r"\$")


def _fonts(texts: list[str]) -> list[str]:
    """Families for texts with Chinese characters, which matplotlib's own font lacks; empty: its default."""
    if not any(map(has_chinese, texts)):
        return []
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager

    known = sorted({font.name for font in fontManager.ttflist})
    found = next((name for wanted in _CJK for name in known if name.startswith(wanted)), None)
    return [*rcParams["font.sans-serif"][:1], found] if found else []
