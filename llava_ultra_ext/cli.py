"""``llava-ultra``: a table of commands; each is a function of its own module that takes ``argv``."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import sys
from collections.abc import Callable

COMMANDS: dict[str, tuple[str, str]] = {
    "enable": ("llava_ultra_ext.cli:enable", "switch LLaVA-Ultra on in this Python environment"),
    "disable": ("llava_ultra_ext.cli:disable", "switch it off; LLaVA is stock again"),
    "doctor": ("llava_ultra_ext.cli:doctor", "what is active, for which LLaVA, and whether every seam fits"),
    "merge": ("llava_ultra_ext.train.merge:main", "merge a LoRA folder into one that LLaVA opens without model_base"),
    "cache": ("llava_ultra_ext.train.cache:main", "frozen features of every picture, computed once for all runs"),
    "score-frames": ("llava_ultra_ext.eval.score_frames:main", "teacher scores of every frame, after stage 1"),
    "import": ("llava_ultra_ext.data.importing:main", "SLAKE, OpenI, BUSI or your exams, ready to train and to score"),
    "ingest": ("llava_ultra_ext.data.ingest.command:main", "exams from a PACS and a report database, made safe"),
    "instruct": ("llava_ultra_ext.data.instructions.command:main", "stage 1 and stage 2 data from exams with reports"),
    "secret": ("llava_ultra_ext.data.deidentify.keys:main", "make the secret that de-identification needs"),
    "phantom": ("llava_ultra_ext.data.sources.phantom.generate:main", "synthetic ultrasound exams with known truth"),
    "answer": ("llava_ultra_ext.eval.generate:main", "answer a question file, exams included"),
    "serve": ("llava_ultra_ext.serve.launch:main", "controller, workers, API and page, started and stopped as one"),
    "score": ("llava_ultra_ext.eval.score:main", "score answers files against a gold file; loads no model"),
    "report": ("llava_ultra_ext.eval.report:main", "tables, a chart and a page of examples from scores"),
}


_KEPT = {
    "cache": "features so far are kept, the same command goes on from there",
    "import": "nothing was written; an earlier import stays as it was",
    "ingest": "finished exams are kept, the same command goes on from there",
    "instruct": "nothing was written; a chat model's answers are kept, the same command goes on from there",
    "answer": "answers so far are kept, the same command goes on from there",
    "score": "no scores were written",
    "report": "an earlier report stays as it was",
    "score-frames": "scores so far are kept, the same command goes on from there",
}
"""Command -> what Ctrl-C leaves."""


def enable(argv: list[str]) -> int:
    """Write the activation line; refuses a LLaVA that it does not know."""
    from llava_ultra_ext import activate

    argparse.ArgumentParser(prog="llava-ultra enable", description=COMMANDS["enable"][1]).parse_args(argv)
    path = activate.enable()
    _say(f"enabled: {path} (one line; `llava-ultra disable` removes it, ULTRA_EXT=off skips it once)")
    return 0


def disable(argv: list[str]) -> int:
    """Remove the activation line."""
    from llava_ultra_ext import activate, llava_seams

    argparse.ArgumentParser(prog="llava-ultra disable", description=COMMANDS["disable"][1]).parse_args(argv)
    _say("disabled: LLaVA is stock again" if activate.disable() else "was not enabled: nothing to remove")
    folder = llava_seams.llava_folder()
    if folder is not None and activate.is_patched(folder):
        _say(f"note: {folder} still carries the patch; scripts/apply_patches.sh <checkout> --reverse removes it")
    return 0


def doctor(argv: list[str]) -> int:
    """Print the state; exit status 1 when LLaVA is absent or unknown."""
    from llava_ultra_ext.doctor import describe, examine

    argparse.ArgumentParser(prog="llava-ultra doctor", description=COMMANDS["doctor"][1]).parse_args(argv)
    report = examine()
    _say(describe(report))
    return 1 if report.problems else 0


def _say(text: str) -> None:
    """What a command answers goes to standard output, bare; logging is for what happens meanwhile."""
    sys.stdout.write(text + "\n")


def _usage() -> str:
    lines = [f"  {name:14}{text}" for name, (_, text) in COMMANDS.items()]
    return "usage: llava-ultra COMMAND [options]\n\n" + "\n".join(lines) + "\n\nllava-ultra COMMAND --help says more."


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0 done, 1 the command failed for a reason that it has said, 2 unknown command, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if not arguments or arguments[0] in ("-h", "--help"):
        _say(_usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        sys.stderr.write(f"llava-ultra: no command {name!r}.\n{_usage()}\n")
        return 2
    module, function = COMMANDS[name][0].split(":")
    try:
        command: Callable[[list[str]], int | None] = getattr(importlib.import_module(module), function)
        return command(rest) or 0
    except KeyboardInterrupt:
        kept = f"; {_KEPT[name]}" if name in _KEPT else ""
        sys.stderr.write(f"llava-ultra {name}: interrupted{kept}.\n")
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        sys.stderr.write(f"llava-ultra {name}: {error}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
