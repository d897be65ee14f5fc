"""Fetch every study of a query, with progress, and tell what failed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from llava_ultra_ext.data.pacs.source import Fetched, Query, Source, Study
from llava_ultra_ext.data.whole_file import write_whole

FAILED = "failed.jsonl"
"""In the spool: a line for each study that is not whole: ``study``, ``files`` (how many there are), ``failed``."""

_LOGGER = logging.getLogger(__name__)


def fetch_studies(source: Source, query: Query, folder: Path) -> Iterator[tuple[Study, Fetched]]:
    """Each study as it arrives; what lies in the spool already is not fetched again.

    `FAILED` is written when all have been tried, and removed when nothing failed.

    Args:
        source: where from.
        query: which.
        folder: the spool; made where absent.

    Raises:
        SourceError: the studies cannot be listed.
        OSError: the spool cannot be written.
    """
    from tqdm import tqdm

    studies = list(source.studies(query))
    broken: list[Fetched] = []
    for study in tqdm(studies, desc="fetching", unit="study"):
        fetched = source.fetch(study, folder)
        if fetched.failed:
            broken.append(fetched)
        yield study, fetched
    lines = [json.dumps({**asdict(one), "files": len(one.files)}, ensure_ascii=False) + "\n" for one in broken]
    if lines:
        write_whole(folder / FAILED, "".join(lines))
        missing = sum(len(one.failed) for one in broken)
        _LOGGER.warning("%d of %d studies are not whole, %d failures: %s", len(broken), len(studies), missing, FAILED)
    else:
        (folder / FAILED).unlink(missing_ok=True)
