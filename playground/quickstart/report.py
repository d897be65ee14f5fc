"""One self-contained page about a quick-start run: losses, frames with their scores, answers beside the truth.

    python playground/quickstart/report.py --result result.json --out report.html

`result.json`:

    {"stages": [{"name": str, "loss": [float per logged step], "loss_before": float, "loss_after": float,
                 "alpha": float | null}],
     "exams": [{"exam_id": str, "images": [path], "scores": [float | null per image], "chosen": [int], "valid": [int],
                "question": str, "answer": str, "truth": str, "split": "train" | "test"}],
     "environment": {str: any}, "blind": {"test": int, "train": int}}

One entry of `exams` is one question; entries of one exam share a card. `chosen` and `valid` are positions in `images`,
from 0; an empty or missing `valid` means unknown. `scores` are null where nothing was sampled (a single frame). `split`
is optional, and so is `blind`: how many answers would match if each question got its most frequent answer of training.
Image paths are absolute or relative to `--images` (default: the folder of `result.json`).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

THUMBNAIL = (240, 180)  # pixels, at most: one and a half times the size on the page, for fine screens
_CHART_WIDTH, _CHART_HEIGHT, _LEFT, _BOTTOM, _TOP = 440, 170, 44, 22, 10

_STYLE = """
:root{color-scheme:light;--ink:#1d2329;--soft:#5d6873;--line:#d9dee3;--pick:#0b6e4f;--miss:#a3341f;--bar:#8fa3b5}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:32px 24px 64px;color:var(--ink);background:#fff;font:15px/1.55 system-ui,
-apple-system,"Segoe UI",Roboto,"PingFang SC","Hiragino Sans GB","Microsoft YaHei","Noto Sans CJK SC","Noto Sans SC",
"WenQuanYi Micro Hei",sans-serif}
h1{font-size:25px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px}h3{font-size:15px;margin:0}
p{margin:4px 0}.soft{color:var(--soft)}.num{font-variant-numeric:tabular-nums}
.facts{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0 0}
.fact{border:1px solid var(--line);border-radius:6px;padding:10px 16px;min-width:190px;flex:1}
.fact b{display:block;font-size:22px;font-weight:600}
.stages{display:flex;flex-wrap:wrap;gap:16px}
.stage{border:1px solid var(--line);border-radius:6px;padding:14px 16px;flex:1}
svg{display:block;max-width:100%;height:auto;margin-top:8px}svg text{font-size:11px;fill:var(--soft)}
.exam{border:1px solid var(--line);border-radius:6px;padding:14px 16px;margin:0 0 16px;break-inside:avoid}
.head{display:flex;gap:10px;align-items:baseline;flex-wrap:wrap}
.tag{font-size:12px;border:1px solid var(--line);border-radius:3px;padding:0 6px;color:var(--soft)}
.frames{display:flex;flex-wrap:wrap;gap:10px;margin:12px 0}
figure{margin:0;width:162px;border:2px solid var(--line);border-radius:4px;padding:2px;background:#fff}
figure.chosen{border-color:var(--pick);box-shadow:0 0 0 1px var(--pick)}
figure .pic{height:116px;background:#000;display:flex;align-items:center;justify-content:center}
.pic{color:#bbb;font-size:12px}
figure img{max-width:100%;max-height:100%}
figcaption{padding:4px 6px 5px;font-size:12px}
.track{height:7px;background:#edf0f2;border-radius:2px;margin:3px 0}.track i{display:block;height:7px;border-radius:2px;
background:var(--bar)}.chosen .track i{background:var(--pick)}
.marks{display:flex;justify-content:space-between;gap:6px;min-height:1.55em}.pick{color:var(--pick);font-weight:600}
table{border-collapse:collapse;width:100%}
.answers{table-layout:fixed}.answers th:last-child{width:76px}
th,td{text-align:left;padding:5px 12px 5px 0;border-top:1px solid var(--line);
vertical-align:top}th{font-weight:500;color:var(--soft);font-size:13px}td.yes{color:var(--pick);white-space:nowrap}
td.no{color:var(--miss);white-space:nowrap}
@media print{body{padding:0}}
"""


def render(result: Mapping[str, Any], image_root: Path) -> str:
    """The page for a result (schema: module docstring).

    Raises:
        ValueError: A key that the page needs is missing; the message names it.
    """
    _check(result)
    cards = _group(result["exams"])
    body = [
        "<h1>LLaVA-Ultra quick start</h1>",
        '<p class="soft">Real ultrasound frames, tiny encoders with random weights, a tiny language model that has '
        "read the training texts, two training stages, answers streamed by LLaVA's own controller and worker. It shows "
        "that the parts work together; tiny models say nothing about clinical quality.</p>",
        _headline(result["exams"], cards, result.get("blind", {})),
        "<h2>Training</h2>",
        f'<div class="stages">{"".join(_stage(stage) for stage in result["stages"])}</div>',
        "<h2>Exams and answers</h2>",
        '<p class="soft">Frames in their order. The bar is the sampler\'s preference (Norm of eq. 5), the number its '
        "score. The language model reads the <b>chosen</b> frame only. A <b>valid</b> frame is one that the "
        "exam's text describes. Held out are exams and their cine frames; the few still pictures were seen in "
        "training.</p>",
        *(_card(card, image_root) for card in cards),
        "<h2>Environment</h2>",
        _table(result.get("environment", {})),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>LLaVA-Ultra quick start</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def write_report(result_path: Path, out: Path, image_root: Path | None = None) -> Path:
    """Reads `result_path` and writes the page to `out`."""
    page = render(json.loads(result_path.read_text(encoding="utf-8")), image_root or result_path.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(out)
    return out


def same_answer(answer: str, truth: str) -> bool:
    """Whether two answers agree apart from width variants, letter case, spaces and punctuation."""

    def core(text: str) -> str:
        wide = unicodedata.normalize("NFKC", text).casefold()
        return "".join(character for character in wide if character.isalnum())

    return core(answer) == core(truth)


def choice_record(exams: Sequence[Mapping[str, Any]]) -> tuple[int, int, float]:
    """Over exams that mix valid and other frames: how many first choices are valid, of how many, and chance's share."""
    hits, chances = [], []
    for exam in exams:
        valid = exam.get("valid") or []
        if valid and len(valid) < len(exam["images"]) and exam["chosen"]:
            hits.append(exam["chosen"][0] in valid)
            chances.append(len(valid) / len(exam["images"]))
    return sum(hits), len(hits), sum(chances) / len(chances) if chances else 0.0


def _check(result: Mapping[str, Any]) -> None:
    needed: dict[str, tuple[str, ...]] = {
        "stages": ("name", "loss", "loss_before", "loss_after"),
        "exams": ("exam_id", "images", "scores", "chosen", "question", "answer", "truth"),
    }
    for part, keys in needed.items():
        if part not in result:
            raise ValueError(f"result.json has no {part!r}; it needs {', '.join(needed)}. See report.py's docstring.")
        for number, entry in enumerate(result[part]):
            missing = [key for key in keys if key not in entry]
            if missing:
                raise ValueError(
                    f"result.json: {part}[{number}] lacks {', '.join(missing)}. See report.py's docstring."
                )


def _group(entries: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Entries about the same frames and the same choice, in the order of their first appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        key = json.dumps([entry["exam_id"], entry["images"], entry["chosen"]])
        groups.setdefault(key, []).append(entry)
    return list(groups.values())


def _headline(
    entries: Sequence[Mapping[str, Any]], cards: Sequence[Sequence[Mapping[str, Any]]], blind: Mapping[str, int]
) -> str:
    facts = []
    for split, label in (("test", "held-out exams"), ("train", "training exams"), (None, "exams")):
        chosen = [entry for entry in entries if entry.get("split") == split]
        if chosen:
            right = sum(same_answer(entry["answer"], entry["truth"]) for entry in chosen)
            note = f" (most frequent answer, blind: {blind.get(split, 0)})" if blind else ""
            facts.append((f"{right} of {len(chosen)}", f"answers match the truth, {label}{note}"))
    hits, total, chance = choice_record([card[0] for card in cards])
    if total:
        facts.append((f"{hits} of {total}", f"mixed exams: a valid frame was chosen (by chance {chance * total:.1f})"))
    boxes = [f'<div class="fact"><b class="num">{escape(value)}</b>{escape(label)}</div>' for value, label in facts]
    return f'<div class="facts">{"".join(boxes)}</div>'


def _stage(stage: Mapping[str, Any]) -> str:
    alpha = stage.get("alpha")
    weight = f" · alpha {alpha:.3f}" if alpha is not None else ""
    return (
        f'<div class="stage"><h3>{escape(stage["name"])}</h3>'
        f'<p class="num">Loss <b>{stage["loss_before"]:.3f}</b> → <b>{stage["loss_after"]:.3f}</b>'
        f'<span class="soft"> · {len(stage["loss"])} logged steps{weight}</span></p>{_curve(stage["loss"])}</div>'
    )


def _curve(loss: Sequence[float]) -> str:
    """The loss over logged steps as an inline SVG; the axis starts at zero. Non-finite values leave a gap."""
    finite = [value for value in loss if math.isfinite(value)]
    if not finite:
        return '<p class="soft">No loss was logged.</p>'
    top = max(max(finite), 1e-6)
    width, height = _CHART_WIDTH - _LEFT - 8, _CHART_HEIGHT - _BOTTOM - _TOP
    runs: list[list[str]] = [[]]
    for step, value in enumerate(loss):
        if not math.isfinite(value):
            runs.append([])
            continue
        x = _LEFT + width * step / max(len(loss) - 1, 1)
        runs[-1].append(f"{x:.1f},{_TOP + height * (1 - value / top):.1f}")
    lines = "".join(
        f'<polyline points="{" ".join(run)}" fill="none" stroke="#0b6e4f" stroke-width="1.6"/>' for run in runs if run
    )
    ticks = "".join(
        f'<line x1="{_LEFT}" x2="{_CHART_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e7ea"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label:.2f}</text>'
        for y, label in ((_TOP + height * (1 - part), top * part) for part in (0.0, 0.5, 1.0))
    )
    foot = f'<text x="{_LEFT}" y="{_CHART_HEIGHT - 6}">1</text><text x="{_CHART_WIDTH - 8}" y="{_CHART_HEIGHT - 6}" '
    foot += f'text-anchor="end">step {len(loss)}</text>'
    return f'<svg viewBox="0 0 {_CHART_WIDTH} {_CHART_HEIGHT}" role="img" aria-label="loss">{ticks}{lines}{foot}</svg>'


def _card(card: Sequence[Mapping[str, Any]], image_root: Path) -> str:
    exam = card[0]
    split = {"test": "held out", "train": "seen in training"}.get(exam.get("split", ""), "")
    count, kept = len(exam["images"]), len(exam["chosen"])
    tags = [f"{count} frame{'s' * (count > 1)}, {kept} read"] + [split] * bool(split)
    frames = "".join(_frame(exam, position, image_root) for position in range(count))
    rows = "".join(_answer_row(entry) for entry in card)
    return (
        f'<section class="exam"><div class="head"><h3>{escape(exam["exam_id"])}</h3>'
        + "".join(f'<span class="tag">{escape(tag)}</span>' for tag in tags)
        + f'</div><div class="frames">{frames}</div><table class="answers">'
        "<tr><th>Question</th><th>Answer</th><th>Truth</th><th></th></tr>"
        f"{rows}</table></section>"
    )


def _norm(scores: list[float]) -> list[float]:
    """Norm of eq. 5: z-scores, with the floor that training uses, then a softmax."""
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores) + 1e-4)
    powers = [math.exp((score - mean) / deviation) for score in scores]
    return [power / sum(powers) for power in powers]


def _frame(exam: Mapping[str, Any], position: int, image_root: Path) -> str:
    scores = exam["scores"]
    chosen, valid = position in exam["chosen"], position in (exam.get("valid") or [])
    score = scores[position] if position < len(scores) else None
    if score is None or not math.isfinite(score):
        bar, number = "", "not scored"
    else:
        known = [value for value in scores if value is not None and math.isfinite(value)]
        share = _norm(known)[known.index(score)]
        bar, number = f'<div class="track"><i style="width:{100 * share:.1f}%"></i></div>', f"{score:.3f}"
    marks = f'<span class="pick">{"chosen" if chosen else ""}</span><span>{"valid" if valid else ""}</span>'
    picture = _picture(exam["images"][position], image_root)
    return (
        f'<figure{" class=chosen" if chosen else ""}><div class="pic">{picture}</div>'
        f'<figcaption><div class="marks num"><span>{position + 1}</span><span>{number}</span></div>{bar}'
        f'<div class="marks">{marks}</div></figcaption></figure>'
    )


def _picture(path: str, image_root: Path) -> str:
    try:
        with Image.open(image_root / path) as image:
            small = image.convert("RGB")
    except OSError:
        return "picture not found"
    small.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(Path(path).name)}" src="data:image/jpeg;base64,{data}">'


def _answer_row(entry: Mapping[str, Any]) -> str:
    verdict = (
        '<td class="yes">match</td>' if same_answer(entry["answer"], entry["truth"]) else '<td class="no">differs</td>'
    )
    cells = "".join(f'<td lang="zh">{escape(entry[key])}</td>' for key in ("question", "answer", "truth"))
    return f"<tr>{cells}{verdict}</tr>"


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>" for key, value in values.items()
    )
    return f"<table>{rows}</table>"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: result.json to a page."""
    parser = argparse.ArgumentParser(description="Write the quick start's page from its result.json.")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="folder of relative image paths (default: result.json's folder)")
    args = parser.parse_args(argv)
    print(write_report(args.result, args.out, args.images))


if __name__ == "__main__":
    main()
