"""Tables: the rows that a scores file gives, as text, Markdown and LaTeX."""

from __future__ import annotations

import re
from typing import Any

import pytest
from small_scores import block, scores, with_modalities

from llava_ultra_ext.eval import table_rows, tables, terminal_table
from llava_ultra_ext.eval.metrics import FIGURES
from llava_ultra_ext.eval.tables import latex, markdown, text

TWO = (("llava", block(50.0, 70.0)), ("ultra", block(60.5, 70.04)))


def rows(table: str) -> list[list[str]]:
    """Cells of every line of a Markdown table."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines() if line[:1] == "|"
    ]


def bilingual() -> dict[str, Any]:
    content = scores(*TWO, lang={"en": 40, "zh": 60})
    for place, model in enumerate(content["models"]):
        model["subsets"]["lang"] = {"en": block(10.0 + place, 11.0), "zh": block(20.0 + place, None, n_closed=0)}
    return content


def test_markdown_has_the_papers_columns_and_marks_the_best() -> None:
    strict, med = markdown([("SLAKE-zh", scores(*TWO))]).split("## llava-med")
    head, _, title, first, second = rows(strict)
    assert head == [
        "",
        *(f"{name} (open)" for name in ("EM", "F1", "Precision", "Recall")),
        *(f"{name} (open)" for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU")),
        "Acc (closed)",
    ]
    assert title[0] == "**SLAKE-zh**"
    # 70.0 and 70.04 are shown as the same figure: no model is better than the other
    assert first == ["llava", "50.0", "51.0", "52.0", "53.0", "54.0", "55.0", "56.0", "57.0", "70.0"]
    assert second == ["ultra", *(f"**{value}.5**" for value in range(60, 68)), "70.0"]
    # the other family: 10 lower, and both of LLaVA-Med's closed accuracies
    assert rows(med)[0][-2:] == ["Acc (closed)", "Acc y/n (closed)"]
    assert rows(med)[3] == ["llava", *(f"{value}.0" for value in range(40, 48)), "60.0", "0.0"]


def test_a_model_alone_is_not_called_best_and_no_figure_is_a_dash() -> None:
    table = rows(markdown([("t", scores(("only", block(50.0, None, n_closed=0))))]).split("## llava-med")[0])
    assert table[-1] == ["only", *(f"{value}.0" for value in range(50, 58)), "–"]


def test_modalities_are_rows_of_each_model_with_their_own_best() -> None:
    content = with_modalities(scores(*TWO), CT=(30.0, 80.0), MRI=(40.0, 90.0))
    table = rows(markdown([("t", content)]).split("## llava-med")[0])
    assert [row[0] for row in table[3:]] == ["llava", "&emsp;CT", "&emsp;MRI", "ultra", "&emsp;CT", "&emsp;MRI"]
    assert (table[4][1], table[4][-1]) == ("30.0", "80.0") and (table[7][1], table[7][-1]) == ("**31.0**", "**81.0**")


def test_one_modality_is_no_row() -> None:
    table = rows(markdown([("t", with_modalities(scores(*TWO), CT=(30.0, 80.0)))]).split("## llava-med")[0])
    assert [row[0] for row in table[3:]] == ["llava", "ultra"]


def test_languages_stand_apart_each_under_its_tokenizer() -> None:
    table = rows(markdown([("t", bilingual())]).split("## llava-med")[0])
    assert [row[0] for row in table[2:]] == ["**t, zh**", "llava", "ultra", "**t, en**", "llava", "ultra"]
    # Chinese by char, English by 13a, which is 5 higher here
    assert (table[3][1], table[6][1]) == ("20.0", "15.0")
    together = rows(markdown([("t", with_modalities(bilingual(), CT=(1.0, 1.0), MRI=(2.0, 2.0)))]))
    assert ["**t, zh and en**"] in [row[:1] for row in together]


def test_datasets_are_groups_and_best_counts_within_them() -> None:
    content = [("a", scores(*TWO)), ("b", scores(("llava", block(99.0, 1.0)), ("other", block(1.0, 2.0))))]
    table = rows(markdown(content).split("## llava-med")[0])
    assert [row[0] for row in table[2:]] == ["**a**", "llava", "ultra", "**b**", "llava", "other"]
    assert table[6][1] == "**99.0**" and table[4][1] == "**60.5**"


def test_ablation_shows_the_difference_to_the_first_row() -> None:
    content = with_modalities(scores(*TWO, ("less", block(49.98, 60.0))), CT=(1.0, 1.0), MRI=(1.0, 1.0))
    table = rows(markdown([("t", content)], "ablation").split("## llava-med")[0])
    assert [row[0] for row in table[2:]] == ["llava", "ultra", "less"]
    assert (table[2][1], table[3][1], table[4][1]) == ("50.0", "**60.5** <sub>+10.5</sub>", "50.0 <sub>±0.0</sub>")
    assert table[4][-1] == "60.0 <sub>-10.0</sub>"
    assert r"\textbf{60.5}\,{\tiny +10.5}" in latex([("t", content)], "ablation")


def test_captions_name_what_the_figures_are() -> None:
    strict, med = markdown([("t", scores(*TWO))]).split("## llava-med")
    for part, rule in ((strict, "sacrebleu corpus BLEU, smooth exp"), (med, "sentence BLEU, no smoothing")):
        for wanted in (rule, "tokenizer char", "n = 100 (60 open, 40 closed)", "fingerprint 0123456789abcdef"):
            assert wanted in part
    assert "NFKC, 100 % lower case" in strict and "FAULTS" not in strict + med


def test_faults_are_counted_loudly_everywhere() -> None:
    content = scores(*TWO)
    content["models"][1]["faults"] = {"missing": 3, "empty": 2}
    counted = "ultra: 3 questions without answer, 2 empty answers"
    assert markdown([("t", content)]).count(counted) == 2
    assert r"\textbf{SCORED WITH FAULTS (-{}-allow-missing)" in latex([("t", content)]) and counted in latex(
        [("t", content)]
    )
    shown = text(content)
    assert shown.endswith(f"!!   {counted}") and "!! SCORED WITH FAULTS" in shown
    assert shown.count("ultra (!)") == 2 and "llava (!)" not in shown


def test_names_are_escaped() -> None:
    name = 'a_b|c & <i> 100% #1 [x] {y} $z$ ~^\\ "q"\nnew --n'
    content = [("d_1 & *e*", scores((name, block(1.0, 2.0)), ("m", block(3.0, 4.0))))]
    row = next(row for row in rows(markdown(content)) if row[0].startswith("a"))
    assert row[0] == r'a\_b\|c &amp; \<i\> 100% \#1 \[x\] \{y\} \$z\$ \~^\\ "q" new --n'
    assert len(row) == 10 and r"**d\_1 &amp; \*e\***" in markdown(content)
    line = next(line for line in latex(content).splitlines() if line.startswith(r"a\_b"))
    assert line.startswith(
        r"a\_b\textbar{}c \& \textless{}i\textgreater{} 100\% \#1 {[}x{]} \{y\} \$z\$ "
        r"\textasciitilde{}\textasciicircum{}\textbackslash{} {''}q{''} new -{}-n & 1.0 &"
    )


def test_latex_is_a_whole_booktabs_table_for_each_family() -> None:
    table = latex([("SLAKE", with_modalities(scores(*TWO), CT=(30.0, 80.0), MRI=(1.0, 2.0)))])
    assert table.startswith("% In the preamble: \\usepackage{booktabs}; for Chinese names also \\usepackage{ctex}")
    for command in (r"\begin{table*}", r"\end{table*}", r"\toprule", r"\bottomrule", r"\end{tabular}"):
        assert table.count(command) == 2
    assert [line.count("&") for line in table.splitlines() if line.startswith("llava ")] == [9, 10]
    assert r"\multicolumn{8}{c}{Open-set} & \multicolumn{2}{c}{Closed-set} \\" in table
    assert r"\quad CT & 30.0 & 31.0" in table and r"\textit{SLAKE}" in table
    assert r"ultra & \textbf{60.5}" in table


def test_a_further_figure_gets_its_column_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"em": "EM", "rouge": "ROUGE", **dict(list(table_rows.OPEN_COLUMNS.items())[1:])}
    for module in (table_rows, tables, terminal_table):
        monkeypatch.setattr(module, "OPEN_COLUMNS", more)
    content = scores(*TWO)
    for model in content["models"]:
        for family in model["metrics"].values():
            family["char"]["rouge"] = 12.5
    table = latex([("t", content)])
    assert r"\multicolumn{9}{c}{Open-set} & \multicolumn{1}{c}{Closed-set} \\" in table
    assert r"\cmidrule(lr){2-10}\cmidrule(lr){11-11}" in table and r"\cmidrule(lr){2-10}\cmidrule(lr){11-12}" in table
    line = " ".join(text(content).splitlines()[2].split())
    assert line == "llava 50.0 12.5 51.0 52.0 53.0 54.0 55.0 56.0 57.0 | 70.0 | 44.4"


def test_every_figure_has_its_column() -> None:
    assert tuple(table_rows.OPEN_COLUMNS) == FIGURES


def test_unknown_layouts_and_ablations_of_several_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--layout other: no such layout\. Known: main, ablation"):
        markdown([("t", scores(*TWO))], "other")
    with pytest.raises(ValueError, match="shows one data set, 2 are given"):
        latex([("t", scores(*TWO))] * 2, "ablation")


def test_text_lines_up_figures_and_intervals() -> None:
    lines = text(scores(*TWO)).splitlines()
    assert lines[0] == "strict (tokenizer char, n = 100 (60 open, 40 closed))"
    assert " ".join(lines[1].split()) == "EM F1 P R BLEU-1 BLEU-2 BLEU-3 BLEU | closed | lmms-eval"
    assert " ".join(lines[2].split()) == "llava 50.0 51.0 52.0 53.0 54.0 55.0 56.0 57.0 | 70.0 | 44.4"
    assert lines[3] == "  95 %: F1 [48.0, 53.0]  BLEU [54.0, 59.0]  closed [67.0, 72.0]"
    assert len({len(line) for line in (lines[1], lines[2], lines[4])}) == 1
    assert lines[7].startswith("llava-med (tokenizer char")
    assert " ".join(lines[9].split()) == "llava 40.0 41.0 42.0 43.0 44.0 45.0 46.0 47.0 | 60.0 0.0 | 33.3"


def test_text_compares_pairs_and_ends_with_the_legend() -> None:
    shown = text(scores(*TWO))
    assert "ultra minus llava\n  F1 +10.5 [+9.0, +11.8] p 0.012\n" in shown
    unwrapped = " ".join(shown.split())
    for wanted in ("NFKC, 100 % lower case", "smooth exp", "no smoothing", "fingerprint 0123456789abcdef"):
        assert wanted in unwrapped
    assert "not corrected for the number of comparisons" in unwrapped


def test_text_without_bootstrap_has_neither_intervals_nor_comparisons() -> None:
    content = scores(*TWO)
    content["comparisons"] = []
    for model in content["models"]:
        model["intervals"] = {}
    assert "95 %" not in text(content) and "minus" not in text(content)


def test_text_shows_languages_and_subsets() -> None:
    shown = text(with_modalities(bilingual(), CT=(30.0, 80.0), MRI=(40.0, 90.0)))
    titles = [line for line in shown.splitlines() if line.startswith("strict (")]
    assert titles == [
        "strict (zh, tokenizer char, n = 60 (60 open, 0 closed))",
        "strict (en, tokenizer 13a, n = 100 (60 open, 40 closed))",
        "strict (zh and en, tokenizer char, n = 100 (60 open, 40 closed))",
    ]
    assert re.search(r"^CT +6 +4 +31\.0 /  80\.0 +32\.0 /  81\.0$", shown, re.MULTILINE)
    assert re.search(r"^llava .* \|      – \|", shown, re.MULTILINE)  # no closed question in Chinese


def test_chinese_names_take_two_columns_of_a_terminal() -> None:
    names = ("甲状腺模型甲状腺模型甲状腺", "plain-model-of-26-letters")
    lines = text(scores(*zip(names, (block(1.0, 2.0), block(3.0, 4.0)), strict=True))).splitlines()
    first, second = lines[2], lines[4]
    assert terminal_table._text_width(first) == terminal_table._text_width(second) == len(second)
    assert len(first) == len(second) - 13
