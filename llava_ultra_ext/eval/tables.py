"""Tables of scores in the layout of the paper's Tables 2 and 3, as Markdown and LaTeX, and as text for a terminal.

Table 2: data sets as groups, models as rows, by modality too where questions have one; the best of each group and
column is bold. Table 3 (``ablation``): variants as rows, with their difference to the first. The strict table comes
first, then LLaVA-Med's figures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from llava_ultra_ext.eval.table_rows import (
    FAMILIES,
    FAULTY,
    NULL,
    OPEN_COLUMNS,
    Cell,
    Datasets,
    Family,
    Group,
    columns,
    faults,
    groups,
    rules,
    shown,
    signed,
    sources,
)
from llava_ultra_ext.eval.terminal_table import text

__all__ = ["LAYOUTS", "latex", "markdown", "text"]

LAYOUTS = ("main", "ablation")

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~$])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a row end before it would take it for its own
    "]": "{]}",
    '"': "{''}",
    "×": r"\ensuremath{\times}",
    "±": r"\ensuremath{\pm}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_SHORT = {"Precision": "Prec.", "Recall": "Rec."}


def markdown(datasets: Datasets, layout: str = "main") -> str:
    """Both families' tables.

    Args:
        datasets: titles and scores.
        layout: of `LAYOUTS`.

    Raises:
        ValueError: no such layout, or an ablation of several data sets.
    """
    _check(datasets, layout)
    return "\n".join(_markdown_table(datasets, family, layout == "ablation") for family in FAMILIES)


def latex(datasets: Datasets, layout: str = "main") -> str:
    """Both families' tables, for ``\\input``; arguments and errors as for `markdown`."""
    _check(datasets, layout)
    head = [
        "% In the preamble: \\usepackage{booktabs}; for Chinese names also \\usepackage{ctex} (xelatex or lualatex).",
        "% Written by llava-ultra report.",
    ]
    return "\n".join(head + [_latex_table(datasets, family, layout == "ablation") for family in FAMILIES])


def _check(datasets: Datasets, layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"--layout {layout}: no such layout. Known: {', '.join(LAYOUTS)}.")
    if layout == "ablation" and len(datasets) != 1:
        raise ValueError(f"--layout ablation: shows one data set, {len(datasets)} are given. Give one --scores.")


def _caption(datasets: Datasets, family: Family, found: Sequence[Group]) -> list[str]:
    """Sentences: what the figures are, what was scored."""
    return [*rules(datasets, family), *sources(datasets, [group.part for group in found])]


def _markdown_table(datasets: Datasets, family: Family, ablation: bool) -> str:
    found = groups(datasets, family, ablation=ablation)
    heads = columns(family)
    titles = [f"{label} (open)" if key in OPEN_COLUMNS else f"{label} (closed)" for key, label in heads.items()]
    lines = [f"## {family.title}", ""]
    lines += [f"**{FAULTY}:** {_md(line)}" + "\n" for line in faults(datasets)]
    lines += [_md_row(["", *titles]), _md_row([":---", *("---:" for _ in titles)])]
    for group in found:
        if len(found) > 1 or not ablation:
            lines.append(_md_row([f"**{_md(group.part.title)}**", *("" for _ in titles)]))
        for row in group.rows:
            label = f"&emsp;{_md(row.value)}" if row.value else _md(row.model)
            cells = [_cell(cell, "**{}**".format, " <sub>{}</sub>".format) for cell in row.cells]
            lines.append(_md_row([label, *cells]))
    return "\n".join([*lines, "", *(f"- {_md(line)}." for line in _caption(datasets, family, found)), ""])


def _cell(cell: Cell, bold: Callable[[str], str], small: Callable[[str], str]) -> str:
    figure = bold(shown(cell.value)) if cell.best else shown(cell.value)
    return figure if cell.difference is None else figure + small(signed(cell.difference))


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(given: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(given.split()).replace("&", "&amp;"))


def _latex_table(datasets: Datasets, family: Family, ablation: bool) -> str:
    found = groups(datasets, family, ablation=ablation)
    heads = columns(family)
    count, opened, closed = len(heads), len(OPEN_COLUMNS), len(family.closed)
    lines = [
        "",
        r"\begin{table*}[t]",
        r"\setlength{\belowcaptionskip}{4pt}",
        rf"\caption{{{_latex_caption(datasets, family, found)}}}",
        rf"\label{{tab:{family.title}}}",
        rf"\centering\footnotesize\setlength{{\tabcolsep}}{{{2 if ablation else 3}pt}}",
        rf"\begin{{tabular}}{{l{'r' * count}@{{}}}}",
        r"\toprule",
        rf"& \multicolumn{{{opened}}}{{c}}{{Open-set}} & \multicolumn{{{closed}}}{{c}}{{Closed-set}} \\",
        rf"\cmidrule(lr){{2-{opened + 1}}}\cmidrule(lr){{{opened + 2}-{count + 1}}}",
        _tex_row(["", *(_tex(_SHORT.get(label, label)) for label in heads.values())]),
    ]
    for group in found:
        lines.append(r"\midrule")
        if len(found) > 1 or not ablation:
            lines.append(rf"\multicolumn{{{count + 1}}}{{l}}{{\textit{{{_tex(group.part.title)}}}}} \\")
        for row in group.rows:
            label = rf"\quad {_tex(row.value)}" if row.value else _tex(row.model)
            aligned = r"\,\phantom{\tiny +0.0}" if ablation and row is group.rows[0] else ""
            lines.append(_tex_row([label, *(_cell(cell, _tex_bold, _tex_small) + aligned for cell in row.cells)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def _latex_caption(datasets: Datasets, family: Family, found: Sequence[Group]) -> str:
    warning = [rf"\textbf{{{_tex(FAULTY)}: {_tex('; '.join(faults(datasets)))}.}}"] if faults(datasets) else []
    sentences = [f"{_tex(line)}." for line in _caption(datasets, family, found)]
    return " ".join([f"Scores, {_tex(family.title)}.", *warning, *sentences])


def _tex_row(cells: Sequence[str]) -> str:
    return rf"{' & '.join(cell.replace(NULL, '--') for cell in cells)} \\"


def _tex_bold(given: str) -> str:
    return rf"\textbf{{{given}}}"


def _tex_small(given: str) -> str:
    return rf"\,{{\tiny {_tex(given)}}}"


def _tex(given: str) -> str:
    """A text that LaTeX sets as it is, in one line."""
    plain = "".join(_LATEX.get(character, character) for character in " ".join(given.split()))
    return re.sub("-(?=-)", "-{}", plain)  # two hyphens would become a dash
