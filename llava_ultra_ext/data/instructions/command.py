"""``llava-ultra instruct MANIFEST.json --out FOLDER``: stage 1 and stage 2 training lists from exams with reports.

For each version it writes ``stage1.json`` and ``stage2.json`` with one record an exam, and beside them the card
``instruct.json``, ``skipped.jsonl`` (records without instructions) and ``refused.jsonl`` (answers of a chat model that
were not taken). The same input gives the same bytes; a run that was killed leaves the earlier files, and its answers.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.instructions.records import CUES, STAGES, records
from llava_ultra_ext.data.instructions.reported_exam import ReportedExam, Skip, read_exam
from llava_ultra_ext.data.instructions.template import TemplateWriter
from llava_ultra_ext.data.instructions.written import Writer, Written
from llava_ultra_ext.data.list_file import ListFile
from llava_ultra_ext.data.sites import load_sites
from llava_ultra_ext.data.sources.source import read_json, record_list
from llava_ultra_ext.data.whole_file import check_output, write_whole

logger = logging.getLogger(__name__)

FORMAT = "ultra_instructions/1"
CARD = "instruct.json"
KEY_VARIABLE = "OPENAI_API_KEY"


def main(argv: Sequence[str] | None = None) -> int:
    """Write instructions.

    Raises:
        ValueError: the manifest or a flag is unusable, or no exam is left to write.
        RuntimeError: the chat model's server is of no use; nothing was written.
    """
    options = _parser().parse_args(argv)
    out, manifest = Path(options.out).expanduser(), Path(options.manifest).expanduser()
    folders = {version: out / (version if options.site_cue == "both" else "") for version in _versions(options)}
    for path in [out / CARD, *(folder / f"{stage}.json" for folder in folders.values() for stage in STAGES)]:
        check_output(path, "--out", {"MANIFEST": [manifest]})
    given = record_list(read_json(manifest, "MANIFEST"), f"MANIFEST {options.manifest}")
    exams, skipped = _exams(given, options.modality)
    if not exams:
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(row["reason"] for row in skipped).items())
        raise ValueError(f"MANIFEST {options.manifest}: no exam has what is needed ({reasons}).")
    writer, close = _writer(options, out)
    try:
        card, refused = _write(write_all(exams, writer), folders)
    finally:
        close()
    reports = {"skipped.jsonl": skipped, "refused.jsonl": refused}
    for name, rows in reports.items():
        write_whole(out / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    card = {"format": FORMAT, "records": len(given), "exams": len(exams), **card}
    card["skipped"] = dict(Counter(row["reason"] for row in skipped))
    card["arguments"] = {name: getattr(options, name) for name in ("writer", "seed", "site_cue", "modality", "model")}
    write_whole(out / CARD, json.dumps(card, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.write(_told(card, out) + "\n")
    return 0


def write_all(exams: Iterable[ReportedExam], writer: Writer) -> Iterator[tuple[ReportedExam, Written]]:
    """Each exam with its instructions, in order; `writer.workers` threads, twice as many exams held.

    Raises:
        RuntimeError: as `Writer.write`.
    """
    if writer.workers == 1:
        yield from ((exam, writer.write(exam)) for exam in exams)
        return
    waiting: deque[tuple[ReportedExam, Future[Written]]] = deque()
    pool = ThreadPoolExecutor(writer.workers)
    try:
        for exam in exams:
            waiting.append((exam, pool.submit(writer.write, exam)))
            if len(waiting) >= 2 * writer.workers:
                first, found = waiting.popleft()
                yield first, found.result()
        for first, found in waiting:
            yield first, found.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write(
    written: Iterable[tuple[ReportedExam, Written]], folders: dict[str, Path]
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Both stages of each version; what the card counts, and the refusals."""
    files = {(name, stage): ListFile(folder / f"{stage}.json") for name, folder in folders.items() for stage in STAGES}
    writers: Counter[str] = Counter()
    topics: Counter[str] = Counter()
    cues: dict[str, Counter[str]] = {name: Counter() for name in folders}
    refused: list[dict[str, str]] = []
    try:
        for exam, one in written:
            writers[one.writer] += 1
            topics.update(asked.topic for asked in one.conversation)
            refused += [{"exam_id": no.exam, "reason": no.reason, "claim": no.claim} for no in one.refusals]
            for name in folders:
                made, counts = records(exam, one, name)
                cues[name].update(counts)
                for stage, record in made.items():
                    files[name, stage].add(record)
        for file in files.values():
            file.finish()
    finally:
        for file in files.values():
            file.drop()
    card = {"written_by": dict(writers), "questions": dict(topics), "site_cue": {k: dict(v) for k, v in cues.items()}}
    return {**card, "refused": dict(Counter(row["reason"] for row in refused))}, refused


def _exams(given: Sequence[Any], modality: str) -> tuple[list[ReportedExam], list[dict[str, str]]]:
    """Usable exams, and ``skipped.jsonl``: place, reason, and what is wrong with a bad record."""
    exams: dict[str, ReportedExam] = {}
    skipped: list[dict[str, str]] = []
    for position, record in enumerate(given):
        try:
            exam = read_exam(record, position, modality)
            if exam.id in exams:
                raise Skip("repeated_exam")
            exams[exam.id] = exam
        except Skip as skip:
            skipped.append({"place": f"#{position}", "reason": str(skip)})
        except ValueError as fault:
            reason = getattr(fault, "reason", "bad_record")
            skipped.append({"place": f"#{position}", "reason": reason, "message": str(fault)})
    return list(exams.values()), skipped


def _writer(options: argparse.Namespace, out: Path) -> tuple[Writer, Any]:
    template = TemplateWriter(options.seed)
    if options.writer == "template":
        return template, lambda: None
    if not options.base_url or not options.model:
        raise ValueError("--writer chat: needs --base-url (http://127.0.0.1:8000/v1) and --model.")
    from llava_ultra_ext.data.instructions.answer_cache import AnswerCache
    from llava_ultra_ext.data.instructions.chat import ChatWriter, Reply
    from llava_ultra_ext.data.instructions.chat_client import ChatClient, ChatSettings, is_local

    if not is_local(options.base_url) and not options.remote:
        raise ValueError(
            f"--base-url {options.base_url}: is another machine, and every report is sent there. "
            "Give --remote if that is allowed, or a server on this machine."
        )
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    names = [
        *("base_url", "model", "temperature", "max_tokens", "response_format", "timeout_s", "attempts"),
        *("first_wait_s", "requests_per_minute", "token_budget"),
    ]
    settings = ChatSettings(
        **{name: getattr(options, name) for name in names}, api_key=os.environ.get(KEY_VARIABLE, "")
    )
    cache = AnswerCache(Path(options.cache).expanduser() if options.cache else out / "answers.sqlite")
    client = ChatClient(settings, cache, Reply.model_json_schema())

    def close() -> None:
        client.close()
        cache.close()

    return ChatWriter(client, template, load_sites(options.sites), options.workers), close


def _versions(options: argparse.Namespace) -> list[str]:
    return [name for name in CUES if options.site_cue in ("both", name.removesuffix("_site"))]


def _told(card: dict[str, Any], out: Path) -> str:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"

    lines = [
        f"records: {card['records']}, exams written: {card['exams']} ({listed(card['written_by'])})",
        f"skipped: {listed(card['skipped'])}",
        f"questions of stage 2: {listed(card['questions'])}",
        f"refused answers: {listed(card['refused'])}",
        f"written to {out}",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llava-ultra instruct", description="Stage 1 and stage 2 instruction data from exams with reports."
    )
    add = parser.add_argument
    add("manifest", metavar="MANIFEST.json", help="a JSON list of exams with image, findings, diagnosis, site")
    add("--out", required=True, help="folder to write")
    add("--writer", choices=("template", "chat"), default="template", help="who words them (template, offline)")
    add("--site-cue", choices=("with", "without", "both"), default="with", help="the site in questions, or in answers")
    add("--seed", type=int, default=0, help="of the phrasings (0)")
    add("--modality", default="ultrasound", help="of records that do not say theirs (ultrasound)")
    add("--sites", help="YAML with further sites and words")
    chat = parser.add_argument_group("a chat model", f"its key, where it needs one, is read from ${KEY_VARIABLE}")
    add = chat.add_argument
    add("--base-url", help="OpenAI-compatible address, http://127.0.0.1:8000/v1")
    add("--remote", action="store_true", help="allow an address that is not this machine's: reports are sent there")
    add("--model", help="its name there")
    add("--cache", help="file of its answers (OUT/answers.sqlite)")
    add("--workers", type=int, default=4, help="exams asked about at the same time (4)")
    add("--requests-per-minute", type=float, default=0.0, help="at most; 0: no limit (0)")
    add("--token-budget", type=int, default=0, help="tokens of all answers in the cache; 0: no limit (0)")
    add("--temperature", type=float, default=0.0, help="of its sampling (0)")
    add("--max-tokens", type=int, default=1500, help="of an answer (1500)")
    add(
        "--response-format", choices=("json_object", "json_schema", "text"), default="json_object", help="(json_object)"
    )
    add("--timeout-s", type=float, default=120.0, help="seconds without a byte from the server (120)")
    add("--attempts", type=int, default=6, help="of a request (6)")
    add("--first-wait-s", type=float, default=1.0, help="seconds before a second attempt; they double (1)")
    return parser
