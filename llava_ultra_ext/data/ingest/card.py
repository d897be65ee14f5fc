"""The data card: what a data set holds, in numbers (``ingest.json``) and as a picture (``card.png``).

Its numbers are counts and lengths over all exams, so that it may be shown to anybody. Years are those of moved dates.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

from llava_ultra_ext.data.ingest.one_exam import TEXTS, Outcome
from llava_ultra_ext.data.sites import SiteDictionary

_UNKNOWN = "unknown"
_BINS = 40
_COLOURS = ("#2f6f9f", "#d98032", "#5a9e6f")


class DataCard:
    """Counts that grow exam by exam.

    Args:
        sites: names sites by their keys, which every font can show.
    """

    def __init__(self, sites: SiteDictionary) -> None:
        self._sites = sites
        self._numbers: Counter[str] = Counter()
        self._by: dict[str, Counter[Any]] = {name: Counter() for name in ("site", "frames", "year")}
        self._lengths: dict[str, Counter[int]] = {name: Counter() for name in TEXTS}
        self._kept_back: Counter[str] = Counter()
        self._patients: set[bytes] = set()

    def add(self, outcome: Outcome) -> None:
        """One finished exam."""
        self._numbers["files"] += outcome.files
        self._kept_back.update(one["reason"] for one in outcome.refused)
        record = outcome.record
        if record is None:
            self._numbers["exams_without_frames"] += 1
            self._numbers["files_kept_back"] += outcome.files
            return
        self._numbers["files_kept_back"] += sum(bool(one["instance"]) for one in outcome.refused)
        self._numbers["exams"] += 1
        self._numbers["frames"] += len(record["image"])
        self._numbers["near_duplicates"] += sum(copy is not None for copy in record["near_duplicates"])
        self._patients.add(bytes.fromhex(record["patient"]))
        self._by["frames"][len(record["image"])] += 1
        self._by["year"][record["exam_date"][:4] or _UNKNOWN] += 1
        self._by["site"].update(self._sites.keys_in(record["site"]) or (_UNKNOWN,))
        for name in TEXTS:
            self._lengths[name][len(record[name])] += 1

    def numbers(self) -> dict[str, Any]:
        """Everything that was counted: totals, exams by site, by number of frames and by year, lengths of the texts in
        characters, and what was kept back by its reason."""
        names = ("exams", "exams_without_frames", "frames", "near_duplicates", "files", "files_kept_back")
        return {
            **{name: self._numbers[name] for name in names},
            "patients": len(self._patients),
            "exams_by_site": dict(self._by["site"].most_common()),
            "exams_by_frames": {str(key): self._by["frames"][key] for key in sorted(self._by["frames"])},
            "exams_by_year": {key: self._by["year"][key] for key in sorted(self._by["year"])},
            "characters": {name: _quantiles(counts) for name, counts in self._lengths.items()},
            "kept_back": dict(sorted(self._kept_back.items())),
        }

    def picture(self) -> bytes:
        """A PNG of sites, frames an exam, lengths of texts, and years.

        Raises:
            ValueError: matplotlib is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError:
            raise ValueError("the data card's picture needs pip install 'llava_ultra_ext[eval]'.") from None
        figure = Figure(figsize=(12, 8), layout="constrained")
        FigureCanvasAgg(figure)
        (sites, frames), (lengths, years) = figure.subplots(2, 2)
        found = self._by["site"].most_common(25)[::-1]
        bars = sites.barh(range(len(found)), [number for _, number in found], color=_COLOURS[0])
        size = 7 if len(found) > 15 else 10  # points
        sites.bar_label(bars, [f"{number:,}" for _, number in found], padding=3, fontsize=size)
        sites.set_yticks(range(len(found)), [str(name).replace("_", " ") for name, _ in found], fontsize=size)
        sites.set(title="Exams by site", xlabel="exams")
        _bars(frames, self._by["frames"], "Frames an exam", "frames")
        _bars(years, self._by["year"], "Exams by year (dates moved)", "year")
        self._draw_lengths(lengths)
        for axes in (sites, frames, lengths, years):
            axes.spines[["top", "right"]].set_visible(False)
            counted = axes.xaxis if axes is sites else axes.yaxis
            counted.set_major_locator(MaxNLocator(integer=True, nbins=6))
        total = self._numbers
        figure.suptitle(
            f"{total['exams']:,} exams, {len(self._patients):,} patients, {total['frames']:,} frames\n"
            f"{total['near_duplicates']:,} near-duplicate frames marked, "
            f"{sum(self._kept_back.values()):,} files or exams kept back"
        )
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
        return content.getvalue()

    def _draw_lengths(self, axes: Any) -> None:
        """Of all texts in the same bins, so that their heights compare."""
        longest = max((length for counts in self._lengths.values() for length in counts), default=0)
        width = max(1, -(-longest // _BINS))
        edges = range(0, (longest // width + 2) * width, width)
        for name, colour in zip(TEXTS, _COLOURS, strict=True):
            counts = {length: number for length, number in self._lengths[name].items() if length}
            if counts:
                axes.hist(list(counts), edges, weights=list(counts.values()), color=colour, alpha=0.6, label=name)
        axes.set(title=f"Lengths of texts (bins of {width})", xlabel="characters", ylabel="exams")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)


def _bars(axes: Any, counts: Mapping[Any, int], title: str, label: str) -> None:
    """Whole numbers stand where they belong on the axis, other names side by side."""
    names = sorted(counts, key=lambda name: (str(name) == _UNKNOWN, name if isinstance(name, int) else str(name)))
    numeric = all(isinstance(name, int) for name in names)
    places = names if numeric else list(range(len(names)))
    axes.bar(places, [counts[name] for name in names], width=0.8 if numeric else 0.6, color=_COLOURS[0])
    axes.set(title=title, xlabel=label, ylabel="exams")
    if numeric:
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        step = max(1, len(names) // 12)
        axes.set_xticks(places[::step], [str(name) for name in names[::step]])


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    """Median, and the lengths that 5 % are below and above; of texts that say anything."""
    lengths = sorted(length for length in counts if length)
    total = sum(counts[length] for length in lengths)
    found: dict[str, int] = {"texts": total}
    for name, share in (("p05", 0.05), ("median", 0.5), ("p95", 0.95)):
        seen = 0
        for length in lengths:
            seen += counts[length]
            if seen >= share * total:
                found[name] = length
                break
    return found
