"""What answers were made with, in a small file beside them (``ANSWERS.run.json``), so that another run is told apart.

LLaVA's answers lines say a folder's name only, which a model that was trained again has too, and have no room for more.

Our choice: weights are told apart by path, size and time of change, as ``scripts/eval.sh`` does; reading 26 GB for a
hash would take longer than many question files. Batch size, device and the part of the file are left out: none of them
changes an answer, and a run that ran out of memory goes on in smaller batches.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.whole_file import write_whole

logger = logging.getLogger(__name__)

FORMAT = "ultra_run/1"

_WEIGHTS = (".bin", ".safetensors", ".model")
_CONFIGS = (
    *("config.json", "adapter_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
"""By name: answers and their record may stand in the model's folder."""


def describe_run(
    model_path: str,
    model_base: str | None,
    question_file: str | Path,
    image_folder: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What is written beside the answers.

    Args:
        model_path: ``--model-path``: a folder, or a hub's name.
        model_base: ``--model-base``.
        question_file: is read.
        image_folder: where picture names start.
        settings: flag without dashes -> value, of those that change answers.
    """
    questions = hashlib.sha256(Path(question_file).expanduser().read_bytes()).hexdigest()
    return {
        "format": FORMAT,
        "--model-path": _model(model_path),
        "--model-base": _model(model_base) if model_base else None,
        "--question-file": {"sha256": questions},
        "--image-folder": os.path.realpath(os.path.expanduser(image_folder)),
        **{f"--{name}": value for name, value in settings.items()},
    }


def record_path(answers: Path) -> Path:
    """Where the record of an answers file stands."""
    return answers.with_name(f"{answers.name}.run.json")


def check_run(answers: Path, run: Mapping[str, Any]) -> None:
    """Whether an answers file with answers may be continued by this run.

    Args:
        answers: the file.
        run: of `describe_run`.

    Raises:
        ValueError: its answers were made otherwise; the message says what differs.
    """
    path = record_path(answers)
    if not path.exists():
        logger.warning(
            "%s: has no %s beside it, so nothing tells whether its answers are this model's. It is continued.",
            answers,
            path.name,
        )
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        known = before["format"] == FORMAT
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        known = False
    if not known:
        raise ValueError(
            f"{path}: is not what llava-ultra answer wrote ({FORMAT}). Remove it, or write to another file."
        )
    differing = [
        line for key in run if before.get(key) != run[key] for line in _differences(key, before.get(key), run[key])
    ]
    if differing:
        raise ValueError(
            f"--answers-file {answers}: its answers were made by another run ({'; '.join(differing)}). Write to "
            f"another file. If they are what this run would give, as of a model folder that was copied, remove {path}."
        )


def write_run(answers: Path, run: Mapping[str, Any]) -> None:
    """Write the record of an answers file."""
    write_whole(record_path(answers), json.dumps(run, ensure_ascii=False, indent=1) + "\n")


def _model(given: str) -> dict[str, Any]:
    """A folder's path and its files, or the hub's name alone."""
    folder = Path(given).expanduser()
    if not folder.is_dir():
        return {"path": given, "files": {}}
    known = (path for path in sorted(folder.iterdir()) if path.suffix in _WEIGHTS or path.name in _CONFIGS)
    found = (path for path in known if path.is_file())
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in found}
    return {"path": str(folder.resolve()), "files": files}


def _differences(key: str, before: Any, now: Any) -> Iterator[str]:
    """In words, at most one a file."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        shown = [value.get("path", "…") if isinstance(value, Mapping) else value for value in (before, now)]
        yield f"{key} was {shown[0]}, is {shown[1]}"
    elif before.get("path") != now.get("path"):
        yield f"{key} was {before.get('path')}, is {now.get('path')}"
    else:
        held, files = before.get("files") or {}, now.get("files", {})
        changed = [name for name in sorted({*held, *files}) if held.get(name) != files.get(name)]
        yield f"{key}: {', '.join(changed) or 'the content'} changed"
