"""`llava-ultra score` from files to the scores file: subsets, comparisons, refusals, nothing left half written."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eval_files import answer_line, gold_line, write_lines

from llava_ultra_ext import cli
from llava_ultra_ext.eval import score, sheets
from llava_ultra_ext.eval.metrics import FIGURES

GOLD = [
    gold_line(1, "左肺", lang="zh", answer_type="OPEN", modality="CT", content_type="Organ"),
    gold_line(2, "肝脏", lang="zh", answer_type="OPEN", modality="MRI", content_type="Organ"),
    gold_line(3, "没有", lang="zh", answer_type="CLOSED", modality="CT", content_type="Abnormality"),
    gold_line(4, "是", lang="zh", answer_type="CLOSED", modality="MRI", content_type="Abnormality"),
]
HALF = [answer_line(1, "右肺"), answer_line(2, "肝脏。"), answer_line(3, "有"), answer_line(4, "是的")]
PERFECT = [answer_line(row["question_id"], row["answer"], "perfect") for row in GOLD]


def scored(folder: Path, golds: list[Any], *models: list[Any], flags: tuple[str, ...] = ()) -> dict[str, Any]:
    """The scores file of a run of the command."""
    command = ["score", "--gold", str(write_lines(folder / "gold.jsonl", golds)), "--json", str(folder / "s.json")]
    for place, rows in enumerate(models):
        command += ["--pred", str(write_lines(folder / f"model{place}.jsonl", rows))]
    assert cli.main([*command, "--resamples", "200", *flags]) == 0
    found: dict[str, Any] = json.loads((folder / "s.json").read_text(encoding="utf-8"))
    return found


def test_figures_stand_where_the_format_says(tmp_path: Path) -> None:
    result = scored(tmp_path, GOLD, HALF)
    (model,) = result["models"]
    assert result["format"] == "ultra_scores/1" and model["name"] == "llava-ultra"
    assert set(model["metrics"]) == {"strict", "llava_med"}
    for family in model["metrics"].values():
        assert list(family) == ["char", "jieba", "zh", "13a"] and all(tuple(f) == FIGURES for f in family.values())
    # open: 左肺/右肺 shares 1 of 2 characters, 肝脏 is right; closed: 有 is wrong, 是的 right
    strict = model["metrics"]["strict"]["char"]
    assert (strict["em"], strict["f1"], strict["bleu_1"], strict["bleu_2"]) == (50, 75, 75, 61.237244)
    assert model["closed_accuracy"] == 50
    # LLaVA-Med: 有 holds not 没有, 是的 holds 是; without "yes" or "no" all is wrong; open: 肝脏。 holds 肝脏
    assert (model["llava_med_closed_accuracy"], model["llava_med_yes_no_accuracy"]) == (50, 0)
    assert model["llava_med_open_accuracy"] == 50
    # lmms-eval: 肝脏, 是的
    assert model["lmms_eval_accuracy"] == 50
    assert (model["n"], model["n_open"], model["n_closed"]) == (4, 2, 2)
    said = '["1", "右肺"]\n["2", "肝脏。"]\n["3", "有"]\n["4", "是的"]'
    assert model["answers_fingerprint"] == hashlib.sha256(said.encode()).hexdigest()[:16]
    assert result["gold"]["questions"] == 4 and len(result["gold"]["fingerprint"]) == 16


def test_subsets_have_the_same_figures_of_their_questions(tmp_path: Path) -> None:
    (model,) = scored(tmp_path, GOLD, HALF)["models"]
    ct, mri = model["subsets"]["modality"]["CT"], model["subsets"]["modality"]["MRI"]
    assert (ct["metrics"]["strict"]["char"]["f1"], mri["metrics"]["strict"]["char"]["f1"]) == (50, 100)
    assert (ct["closed_accuracy"], mri["closed_accuracy"]) == (0, 100)
    assert (ct["n"], ct["n_open"], ct["n_closed"]) == (2, 1, 1)
    organ = model["subsets"]["content_type"]["Organ"]
    assert organ["closed_accuracy"] is None and organ["metrics"]["strict"]["char"]["em"] == 50
    assert model["subsets"]["answer_type"]["CLOSED"]["metrics"]["strict"]["char"]["em"] is None
    assert set(model["subsets"]) == {"lang", "answer_type", "modality", "content_type"}


def test_the_settings_name_tokenizers_smoothing_and_rules(tmp_path: Path) -> None:
    settings = scored(tmp_path, GOLD, HALF, flags=("--tokenizer", "char,whitespace", "--seed", "3"))["settings"]
    assert settings["tokenizers"] == ["char", "whitespace"] and settings["shown"] == {"zh": "char", "en": "char"}
    assert settings["bleu"]["strict"].startswith("sacrebleu ") and "smooth exp" in settings["bleu"]["strict"]
    assert "no smoothing" in settings["bleu"]["llava_med"] and "NFKC" in settings["normalisation"]
    assert settings["bootstrap"] == {"resamples": 200, "seed": 3, "percent": 95, "unit": "exam"}


def test_intervals_hold_the_figure_and_stand_at_its_place(tmp_path: Path) -> None:
    (model,) = scored(tmp_path, GOLD, HALF)["models"]
    low, high = model["intervals"]["metrics"]["strict"]["char"]["f1"]
    assert (low, high) == (50, 100)  # either question twice
    assert model["intervals"]["closed_accuracy"] == [0, 100]
    assert model["subsets"]["modality"]["CT"]["intervals"]["metrics"]["strict"]["char"]["f1"] == [50, 50]


def test_questions_of_an_exam_are_drawn_together(tmp_path: Path) -> None:
    golds = [{**row, "exam_id": "US-1"} for row in GOLD]
    (model,) = scored(tmp_path, golds, HALF)["models"]
    assert model["intervals"]["metrics"]["strict"]["char"]["f1"] == [75, 75]  # one exam: nothing varies


def test_models_are_compared_on_the_same_questions(tmp_path: Path) -> None:
    result = scored(tmp_path, GOLD, HALF, PERFECT)
    (entry,) = result["comparisons"]
    assert (entry["a"], entry["b"]) == ("llava-ultra", "perfect")
    assert entry["metrics"]["strict"]["char"]["f1"]["difference"] == 25
    assert entry["closed_accuracy"]["difference"] == 50
    assert 0 <= entry["closed_accuracy"]["low"] <= 50 <= entry["closed_accuracy"]["high"] <= 100
    same = scored(tmp_path, GOLD, HALF, [{**row, "model_id": "again"} for row in HALF])["comparisons"][0]
    assert same["metrics"]["strict"]["char"]["f1"] == {"difference": 0, "low": 0, "high": 0, "p": 1}


def test_the_order_of_lines_changes_no_figure(tmp_path: Path) -> None:
    first = scored(tmp_path, GOLD, HALF, flags=("--resamples", "0"))
    golds, rows = GOLD.copy(), HALF.copy()
    random.Random(1).shuffle(golds)
    random.Random(2).shuffle(rows)
    second = scored(tmp_path, golds, rows, flags=("--resamples", "0"))
    assert first == second
    assert first["comparisons"] == [] and first["models"][0]["intervals"] == {}


def test_tokenizers_in_processes_of_their_own_change_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golds = [gold_line(number, answer) for number, answer in enumerate(("左肺上叶", "肝脏右叶囊肿", "左 lung"))]
    answers = [answer_line(number, text) for number, text in enumerate(("左肺下叶", "肝右叶囊肿", "右 lung"))]
    one = scored(tmp_path, golds, answers)
    monkeypatch.setattr(sheets, "PROCESSES_FROM", 1)
    side_by_side = scored(tmp_path, golds, answers)
    assert one["models"] == side_by_side["models"] and list(one["models"][0]["metrics"]["strict"]) == [
        *("char", "jieba", "zh", "13a")
    ]


def test_a_perfect_prediction_scores_100_and_an_empty_one_0(tmp_path: Path) -> None:
    (perfect,) = scored(tmp_path, GOLD, PERFECT)["models"]
    empty = [answer_line(row["question_id"], "") for row in GOLD]
    (nothing,) = scored(tmp_path, GOLD, empty, flags=("--allow-missing",))["models"]
    for name in ("char", "jieba", "zh", "13a"):
        assert perfect["metrics"]["strict"][name] == dict.fromkeys(FIGURES, 100)
        assert nothing["metrics"]["strict"][name] == dict.fromkeys(FIGURES, 0)
    assert (perfect["closed_accuracy"], nothing["closed_accuracy"]) == (100, 0)
    assert nothing["faults"] == {"empty": 4}


def test_faults_refuse_the_scores_and_leave_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = write_lines(tmp_path / "gold.jsonl", GOLD)
    answers = write_lines(tmp_path / "a.jsonl", [*HALF[:2], '{"question_id": 3, "te'])
    command = ["score", "--gold", str(gold), "--pred", str(answers), "--json", str(tmp_path / "s.json")]
    assert cli.main(command) == 1
    said = capsys.readouterr()
    assert "line 3: was cut off" in said.err and "gold line 3: question 3 has no answer" in said.err
    assert said.out == "" and sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "gold.jsonl"]
    assert cli.main([*command, "--allow-missing"]) == 0
    table = capsys.readouterr().out
    assert "2 questions without answer" in table and "1 lines that were cut off" in table


def test_with_missing_answers_all_models_are_scored_on_the_same_questions(tmp_path: Path) -> None:
    result = scored(tmp_path, GOLD, HALF[1:], PERFECT[:3], flags=("--allow-missing",))
    assert [model["n"] for model in result["models"]] == [2, 2] and result["gold"]["questions"] == 2
    assert [model["faults"] for model in result["models"]] == [{"missing": 1}, {"missing": 1}]


def test_one_language_of_a_bilingual_file(tmp_path: Path) -> None:
    english = {"question_id": 5, "text": "Which organ?", "answer": "Lung", "lang": "en", "modality": "CT"}
    rows = [*HALF, answer_line(5, "lung")]
    result = scored(tmp_path, [*GOLD, english], rows, flags=("--lang", "en"))
    assert result["gold"]["questions"] == 1 and result["models"][0]["metrics"]["strict"]["13a"]["em"] == 100
    both = scored(tmp_path, [*GOLD, english], rows)["models"][0]["subsets"]["lang"]
    assert (both["zh"]["n"], both["en"]["n"]) == (4, 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tokenizer", "spacy"], "--tokenizer spacy: no such tokenizer. Known: char, jieba"),
        (["--tokenizer", ","], "--tokenizer: is empty"),
        (["--resamples", "-1"], "--resamples -1: must be 0"),
        (["--seed", "-1"], "--seed -1: must be 0 or more"),
        (["--json", "."], r"--json \.: is a folder\. Give the name of a file"),
        (["--json", "g.jsonl"], r"--json g\.jsonl: is the file that --gold reads"),
        (["--json", "x/../a.jsonl"], r"--json x/\.\./a\.jsonl: is the file that --pred reads"),
        (["--lang", "en"], "--lang en: no question"),
        (["--name", "a", "--name", "b"], "2 names for 1 answers files"),
    ],
)
def test_flags_are_checked_before_anything_is_scored(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold, answers = write_lines(tmp_path / "g.jsonl", GOLD), write_lines(tmp_path / "a.jsonl", HALF)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        score.main(["--gold", str(gold), "--pred", str(answers), *flags])


def test_scoring_loads_neither_torch_nor_llava(tmp_path: Path) -> None:
    gold, answers = write_lines(tmp_path / "g.jsonl", GOLD), write_lines(tmp_path / "a.jsonl", HALF)
    program = (
        "import sys; from llava_ultra_ext.eval import score; "
        f"score.main(['--gold', {str(gold)!r}, '--pred', {str(answers)!r}, '--resamples', '10']); "
        "assert not {'torch', 'transformers', 'llava'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
