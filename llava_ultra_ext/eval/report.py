"""Tables, a chart and a page of examples from scores: ``llava-ultra report``. No model is loaded.

    llava-ultra report --scores slake.json --scores exams.json --title SLAKE-zh --title US-Exams --out report
    llava-ultra report --scores exams.json --out report --gold gold.jsonl --pred llava.jsonl --pred ultra.jsonl \\
        --image-folder images
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from llava_ultra_ext.data.sources.source import SPLITS
from llava_ultra_ext.data.whole_file import check_output, write_all_whole
from llava_ultra_ext.eval import tables
from llava_ultra_ext.eval.gold import Gold, fingerprint, of_language, read_gold
from llava_ultra_ext.eval.predictions import Answers, answers_fingerprint, read_all
from llava_ultra_ext.eval.score import answered
from llava_ultra_ext.eval.scores_file import read_scores
from llava_ultra_ext.eval.table_rows import Scores

logger = logging.getLogger(__name__)

EXAMPLES = 200
"""How many examples the page holds unless ``--examples`` says otherwise."""

_FILES = ("table.md", "table.tex", "report.json", "chart.png")
_PAGE = "examples.html"
_GENERIC = ("gold", *(f"{split}_gold" for split in SPLITS))  # names of gold files that say nothing of the data set


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report's files and say which.

    Raises:
        ValueError: a flag or file is unusable, files do not belong together, or a library is missing.
    """
    args = _parser().parse_args(argv)
    _check(args)
    datasets = _datasets(args.scores, args.title or ())
    out = Path(args.out).expanduser()
    makers: tuple[Callable[[], str | bytes], ...] = (
        lambda: tables.markdown(datasets, args.layout),
        lambda: tables.latex(datasets, args.layout),
        lambda: _json(datasets),
        lambda: _chart(datasets),
    )
    files = dict(zip(_FILES, makers, strict=True))
    if args.gold:
        page = _page(args, datasets)
        files[_PAGE] = lambda: page
    # Everything is made before anything is written: a report is of one state.
    write_all_whole({out / name: make() for name, make in files.items()})
    for name in files:
        sys.stdout.write(f"wrote {out / name}\n")
    if _PAGE not in files and (out / _PAGE).is_file():
        _remove_page(out / _PAGE)
    return 0


def _remove_page(path: Path) -> None:
    """Take away the page of an earlier report, which would stand beside tables that it does not belong to."""
    from llava_ultra_ext.eval.examples_page import is_page

    if is_page(path):
        path.unlink()
        sys.stdout.write(f"removed {path}, of an earlier report; with --gold and --pred it is made anew\n")
    else:
        sys.stdout.write(f"left {path}: llava-ultra report did not write it\n")


def _check(args: argparse.Namespace) -> None:
    """Flags that do not fit.

    Raises:
        ValueError: the first one.
    """
    if args.title and len(args.title) != len(args.scores):
        raise ValueError(
            f"--title: {len(args.title)} titles for {len(args.scores)} scores files. Give one --title for each "
            "--scores, or none."
        )
    if bool(args.gold) != bool(args.pred):
        given, other = ("--gold", "--pred") if args.gold else ("--pred", "--gold")
        raise ValueError(f"{given} without {other}: the page of examples needs both. Give {other} too, or neither.")
    if not args.gold and (args.image_folder or args.name or args.lang):
        raise ValueError("--image-folder, --name and --lang are for the page of examples. Give --gold and --pred too.")
    if args.examples < 1:
        raise ValueError(f"--examples {args.examples}: must be 1 or more.")
    if args.image_folder and not Path(args.image_folder).expanduser().is_dir():
        raise ValueError(f"--image-folder {args.image_folder}: is no folder. Give the one where picture names start.")
    out = Path(args.out).expanduser()
    blocking = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if blocking is not None:
        raise ValueError(f"--out {args.out}: {blocking} is a file. Give a folder; it is made where there is none.")
    inputs = {"--scores": args.scores, "--gold": [args.gold] if args.gold else [], "--pred": args.pred or []}
    for name in (*_FILES, *([_PAGE] if args.gold else [])):
        check_output(out / name, "--out", inputs)


def _datasets(paths: Sequence[str], titles: Sequence[str]) -> list[tuple[str, Scores]]:
    """Titles and scores; titles that are made up from file names are told apart by numbers."""
    scores = [read_scores(path) for path in paths]
    if titles:
        return list(zip(titles, scores, strict=True))
    seen: Counter[str] = Counter()
    datasets = []
    for path, own in zip(paths, scores, strict=True):
        title = _title(path, own)
        seen[title] += 1
        datasets.append((f"{title} ({seen[title]})" if seen[title] > 1 else title, own))
    return datasets


def _title(path: str, scores: Scores) -> str:
    """The gold file's name; where that says nothing, the scores file's name, then its folder's."""
    names = (Path(scores["gold"]["file"]).stem, Path(path).stem, Path(path).expanduser().resolve().parent.name)
    return next((name for name in names if name and name not in (*_GENERIC, "scores")), names[0])


def _json(datasets: Sequence[tuple[str, Scores]]) -> str:
    content = {"datasets": [{"title": title, "scores": scores} for title, scores in datasets]}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _chart(datasets: Sequence[tuple[str, Scores]]) -> bytes:
    from llava_ultra_ext.eval.chart import png

    return png(datasets)


def _page(args: argparse.Namespace, datasets: Sequence[tuple[str, Scores]]) -> str:
    """The page of examples.

    Raises:
        ValueError: the files are unusable, or do not belong to one of the scores.
    """
    from llava_ultra_ext.eval.examples_page import page

    golds = read_gold(args.gold)
    scored = of_language(golds, args.lang)
    others = frozenset(gold.id for gold in golds) - {gold.id for gold in scored}
    # What is wrong with the answers was said, or let pass, when they were scored.
    models = read_all(args.pred, scored, names=args.name or (), others=others, allow_missing=True)
    common = answered(scored, models)
    title, scores = _belonging(args, datasets, scored, common, models)
    if not args.image_folder and any(gold.images for gold in common):
        logger.warning("--image-folder is not given: the page of examples shows no pictures.")
    folder = str(Path(args.image_folder).expanduser()) if args.image_folder else None
    return page(
        common,
        models,
        title=title,
        shown=scores["settings"]["shown"],
        image_folder=folder,
        count=args.examples,
        seed=args.seed,
    )


def _belonging(
    args: argparse.Namespace,
    datasets: Sequence[tuple[str, Scores]],
    scored: list[Gold],
    common: list[Gold],
    models: Sequence[Answers],
) -> tuple[str, Scores]:
    """The scores that were computed on these questions, from these models' answers.

    Raises:
        ValueError: there are none.
    """
    prints = (fingerprint(common), fingerprint(scored))
    found = [own for own in datasets if own[1]["gold"].get("fingerprint") in prints]
    if not found:
        raise ValueError(
            f"--gold {args.gold}: none of the --scores was computed on its questions (fingerprint {prints[0]}). "
            "Give the same --gold, --pred and --lang as to `llava-ultra score`."
        )
    wanted = {model.name: answers_fingerprint(model, common) for model in models}
    holding = [own for own in found if wanted.keys() <= _fingerprints(own[1]).keys()]
    if not holding:
        known = max((_fingerprints(own[1]) for own in found), key=lambda held: len(wanted.keys() & held.keys()))
        path, name = next((path, name) for path, name in zip(args.pred, wanted, strict=True) if name not in known)
        raise ValueError(
            f"--pred {path}: its model {name} is not in --scores, which holds {', '.join(known)}. "
            "Give the names they have there, one --name for each --pred."
        )
    same = next((own for own in holding if wanted.items() <= _fingerprints(own[1]).items()), None)
    if same is None:
        known = _fingerprints(holding[0][1])
        path, name = next(
            (path, name) for path, name in zip(args.pred, wanted, strict=True) if wanted[name] != known[name]
        )
        raise ValueError(
            f"--pred {path}: the answers of {name} are not those that --scores was computed from (fingerprint "
            f"{wanted[name]}, there {known[name]}). Run `llava-ultra score` again, or give the file it was given."
        )
    return same


def _fingerprints(scores: Scores) -> dict[str, str | None]:
    """Model -> fingerprint of its answers; None where another program wrote the file without."""
    return {model["name"]: model.get("answers_fingerprint") for model in scores["models"]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-ultra report",
        description="Markdown and LaTeX tables, a chart and, with --gold and --pred, a page of examples from scores.",
    )
    add = parser.add_argument
    add("--scores", required=True, action="append", help="of llava-ultra score --json; again for each data set")
    add(
        "--title",
        action="append",
        help="the data set's, once for each --scores; default: the gold file's name, or its folder's",
    )
    add("--out", required=True, help="folder for table.md, table.tex, report.json, chart.png, examples.html")
    add(
        "--layout",
        choices=tables.LAYOUTS,
        default="main",
        help="main: data sets and models; ablation: one data set, differences to the first model (default: main)",
    )
    add("--gold", help="for the page of examples: the gold file of one of the scores")
    add("--pred", action="append", help="for the page: an answers file; again for each further model")
    add(
        "--name",
        action="append",
        help="the model's name in the scores, once for each --pred; default, and where empty: its model_id",
    )
    add("--lang", choices=("zh", "en"), help="the language that was scored, if --lang was given then")
    add("--image-folder", help="where the gold file's picture names start; without it the page has no pictures")
    add("--examples", type=int, default=EXAMPLES, help="how many the page holds at most (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the choice of examples")
    return parser


if __name__ == "__main__":
    from llava_ultra_ext.cli import main as command

    raise SystemExit(command(["report", *sys.argv[1:]]))
