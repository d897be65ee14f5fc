"""Scores of answers files against a gold file: ``llava-ultra score``. No model is loaded.

llava-ultra score --gold gold.jsonl --pred llava.jsonl --pred ultra.jsonl --json scores.json
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from llava_ultra_ext.data.whole_file import check_output, write_whole
from llava_ultra_ext.eval import tokenizers
from llava_ultra_ext.eval.gold import Gold, of_language, read_gold
from llava_ultra_ext.eval.predictions import Answers, read_all
from llava_ultra_ext.eval.scores import score

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Score answers files, print the table, write the scores file.

    Raises:
        ValueError: a flag or a file is unusable, or answers have faults and ``--allow-missing`` is not given.
    """
    args = _parser().parse_args(argv)
    names = _tokenizers(args.tokenizer)
    if args.resamples < 0:
        raise ValueError(f"--resamples {args.resamples}: must be 0 (no intervals) or more; 1000 is usual.")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: must be 0 or more.")
    if args.json is not None:
        check_output(args.json, "--json", {"--gold": [args.gold], "--pred": args.pred})
    golds = read_gold(args.gold)
    scored = of_language(golds, args.lang)
    others = frozenset(gold.id for gold in golds) - {gold.id for gold in scored}
    models = read_all(args.pred, scored, names=args.name or (), others=others, allow_missing=args.allow_missing)
    result = score(
        args.gold,
        answered(scored, models),
        models,
        tokenizers=names,
        resamples=args.resamples,
        seed=args.seed,
    )
    if args.json:
        write_whole(Path(args.json).expanduser(), json.dumps(result, ensure_ascii=False, indent=1, allow_nan=False))
    from llava_ultra_ext.eval.tables import text

    sys.stdout.write(text(result) + "\n")
    return 0


def answered(golds: Sequence[Gold], models: Sequence[Answers]) -> list[Gold]:
    """The questions that every model answered, so that their figures are about the same questions.

    Raises:
        ValueError: there are none.
    """
    common = [gold for gold in golds if all(gold.id in model.texts for model in models)]
    if not common:
        raise ValueError("no question of --gold is answered by every --pred. Do the files belong together?")
    return common


def _tokenizers(given: str) -> list[str]:
    """Names of ``--tokenizer``.

    Raises:
        ValueError: an unknown one.
    """
    names = list(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))
    for name in names:
        tokenizers.tokenizer(name)
    if not names:
        raise ValueError(f"--tokenizer: is empty. Known: {', '.join(tokenizers.NAMES)}.")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-ultra score",
        description="Exact match, F1, precision, recall and BLEU of open answers, accuracy of closed ones.",
    )
    add = parser.add_argument
    add("--gold", required=True, help="JSON lines: question_id, text, answer, lang, answer_type, … or LLaVA-Med's list")
    add("--pred", required=True, action="append", help="an answers file; again for each further model")
    add(
        "--name",
        action="append",
        help="the model's name in tables, once for each --pred; default, and where empty: its model_id",
    )
    add("--json", help="where to write every figure")
    add("--lang", choices=("zh", "en"), help="score the questions of this language only")
    add(
        "--tokenizer",
        default=",".join(tokenizers.DEFAULT),
        help=f"columns, by commas, of {', '.join(tokenizers.NAMES)} (default: %(default)s)",
    )
    add("--resamples", type=int, default=1000, help="of the bootstrap; 0: no intervals (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the bootstrap")
    add("--allow-missing", action="store_true", help="score although answers have faults; the counts are printed")
    return parser
