"""Exams of a hospital: a training list (LLaVA's, with our optional keys) becomes training, question and gold files.

A record has ``conversations``, or ``findings`` (超声所见) and ``diagnosis``, from which a question each is built.

Our choice: each question and its answer is a sample of its own, since an evaluation asks each alone. A question is
about the pictures that its turn shows, or about all shown before where it shows none.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_ultra_ext.data.exam import IMAGE_RUN, IMAGE_TOKEN, Exam
from llava_ultra_ext.data.languages import at_home, has_chinese
from llava_ultra_ext.data.sources.site_cue import BARE_QUESTIONS, drop_site, name_site
from llava_ultra_ext.data.sources.source import (
    ANSWER_TYPES,
    LANGUAGES,
    SPLITS,
    Item,
    Reading,
    Skipped,
    add_lang_argument,
    add_split_arguments,
    choice_field,
    image_folder,
    read_json,
    record_list,
    text_field,
    wanted_languages,
)

SUMMARY = "exams of a hospital: a training list with pictures, findings, diagnoses"

YES_NO = frozenset(
    (
        *("是", "是的", "不是", "否", "有", "没有", "无", "对", "不对", "正确", "不正确", "错误", "包含", "不包含"),
        *("存在", "不存在", "正常", "不正常", "异常", "可以", "不可以", "能", "不能", "会", "不会"),
        *("yes", "no", "true", "false", "normal", "abnormal"),
    )
)
"""Answers that make a question closed, where its record does not say; frozen, so that old and new imports agree."""

BUILT = {
    "zh": ("请描述该{site}{modality}图像的所见。", "请给出该{site}{modality}图像的诊断。"),
    "en": ("Describe the findings of this {site}{modality}image.", "Give the diagnosis of this {site}{modality}image."),
}
"""Language -> the findings question and the diagnosis question."""

LISTED = 10
"""How many bad records an error shows."""

MODALITY_WORDS = {"ultrasound": "超声", "x-ray": "X光", "ct": "CT", "mri": "磁共振"}
"""Modality -> its name in a Chinese question; any other is left out of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The source's flags."""
    parser.add_argument("manifest", metavar="MANIFEST.json", help="a JSON list of exams")
    parser.add_argument("--image-folder", help="where picture names start (the manifest's folder)")
    parser.add_argument(
        "--site-cue",
        choices=("with", "without", "both"),
        default="with",
        help="the examined site in every question; in the answers instead; or each in a folder of its own (with)",
    )
    parser.add_argument("--modality", default="ultrasound", help="of records that do not say theirs (ultrasound)")
    add_lang_argument(parser)
    add_split_arguments(parser)


def read(options: argparse.Namespace) -> Reading:
    """Read the manifest.

    Raises:
        ValueError: no such file, bad records (the first are listed), or a split that only some records say.
    """
    path = Path(options.manifest).expanduser()
    records = record_list(read_json(path, "MANIFEST"), f"MANIFEST {options.manifest}")
    official = _official(records)
    reading = Reading({}, image_folder(options.image_folder, path.parent), len(records), 0, official_split=official)
    items: list[Item] = []
    faults: list[str] = []
    first: dict[str, int] = {}
    for position, record in enumerate(_with_ids(records)):
        try:
            exam, found = _record(record, position, options.modality)
            if exam is not None and exam.id in first:
                raise ValueError(f"sample {exam.id}: the `id` stands at #{first[exam.id]} already. Ids are unique.")
        except ValueError as fault:
            faults.append(f"#{position}: {fault}")
            continue
        if exam is None:
            reading.skipped.append(Skipped(f"#{position}", record.get("id", position), "no_text"))
            continue
        first[exam.id] = position
        _file(found, items, reading, wanted_languages(options.lang))
    if faults:
        more = [f"… and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        lines = [f"MANIFEST {options.manifest}: {len(faults)} bad records:", *faults[:LISTED], *more]
        raise ValueError("\n".join([*lines, "Repair them, or take them out of the list."]))
    _add_versions(items, options.site_cue, reading)
    return reading


def _with_ids(records: list[Any]) -> Iterator[Any]:
    """Records without `id` are named by their exam, the second one of an exam with a number, so that new exams in the
    list rename no old question."""
    seen: Counter[str] = Counter()
    for record in records:
        exam = record.get("exam_id") if isinstance(record, Mapping) and record.get("id") is None else None
        if isinstance(exam, str) and exam:
            seen[exam] += 1
            record = {**record, "id": exam if seen[exam] == 1 else f"{exam}-{seen[exam]}"}
        yield record


def is_closed(answer: str) -> bool:
    """Whether an answer is nothing but one of `YES_NO`."""
    return answer.strip().rstrip("。.！!").strip().lower() in YES_NO


def language(text: str) -> str:
    """Chinese where any Chinese character stands."""
    return "zh" if has_chinese(text) else "en"


def _add_versions(items: list[Item], site_cue: str, reading: Reading) -> None:
    for cue, change in (("with", name_site), ("without", drop_site)):
        if site_cue in (cue, "both"):
            changed, counts = change(items)
            reading.versions["" if site_cue == cue else f"{cue}_site"] = changed
            reading.notes |= counts


def _official(records: list[Any]) -> bool:
    """Whether every record says its split.

    Raises:
        ValueError: some do and some don't.
    """
    says = [isinstance(record, Mapping) and record.get("split") is not None for record in records]
    if any(says) and not all(says):
        position = says.index(False)
        given = records[position].get("id") if isinstance(records[position], Mapping) else None
        name = f"#{position}" if given is None else f"sample {given}"
        raise ValueError(
            f"{name} has no `split`, {sum(says)} of {len(says)} records have one. Give it to every record, or to none."
        )
    return all(says)


def _file(found: list[Item], items: list[Item], reading: Reading, languages: tuple[str, ...]) -> None:
    kept = [item for item in found if item.lang in languages]
    for item in found:
        if item.lang not in languages:
            key = f"questions_left_out_lang_{item.lang}"
            reading.notes[key] = reading.notes.get(key, 0) + 1
    items += kept
    if kept:
        reading.used += 1
    else:
        reading.left_out[f"lang_{found[0].lang}"] += 1
    if len(found) > 1:
        reading.notes["records_with_several_questions"] = reading.notes.get("records_with_several_questions", 0) + 1


def _record(record: Any, position: int, modality: str) -> tuple[Exam | None, list[Item]]:
    """A record's exam and questions; no exam where it has no text.

    Raises:
        ValueError: the first fault found.
    """
    place = f"sample {record.get('id', f'#{position}')}" if isinstance(record, Mapping) else f"#{position}"
    texts = [text_field(record, key, place, default="") for key in ("findings", "diagnosis")]
    split = choice_field(record, "split", place, SPLITS, default="")
    lang = choice_field(record, "lang", place, LANGUAGES, default="")
    answer_type = choice_field(record, "answer_type", place, ANSWER_TYPES, default="")
    site = text_field(record, "site", place, default="")
    modality = text_field(record, "modality", place, default="") or modality
    built = not record.get("conversations")
    if built:
        if not any(texts):
            return None, []
        record = {**record, "conversations": _built(record, texts, lang, site, modality)}
    exam = Exam.from_record(record, position)
    items = []
    for number, (images, question, answer) in enumerate(_pairs(exam), start=1):
        items.append(
            Item(
                id=f"{exam.id}-q{number}",
                study=exam.exam_id or exam.id,
                images=tuple(exam.images[index] for index in images),
                question=question,
                answer=answer,
                lang=lang or language(question + answer),
                answer_type=answer_type or ("CLOSED" if is_closed(answer) and not built else "OPEN"),
                split=split,
                modality=modality,
                content_type=text_field(record, "content_type", place, default=""),
                site=site,
                findings=exam.findings,
                valid_frames=_inside(exam.valid_frames, images),
            )
        )
    return exam, items


def _built(record: Mapping[str, Any], texts: list[str], lang: str, site: str, modality: str) -> list[dict[str, str]]:
    """Turns with a question for the findings and one for the diagnosis, where the record has them."""
    tokens = IMAGE_TOKEN * (1 if isinstance(record.get("image"), str) else len(record.get("image") or ()))
    turns = []
    for number, text in enumerate(texts):
        if text:
            spoken = lang or language(text)
            named = site if at_home(site, spoken) else ""  # counted by `name_site`
            shown = modality if at_home(modality, "en") else ""
            words = (named, MODALITY_WORDS.get(modality.lower(), ""))
            if spoken == "en":
                words = (f"{named} " if named else "", f"{shown} " if shown else "")
            question = BUILT[spoken][number].format(site=words[0], modality=words[1])
            turns.append({"from": "human", "value": f"{tokens}\n{question}" if tokens else question})
            turns.append({"from": "gpt", "value": text})
            tokens = ""
    return turns


def _pairs(exam: Exam) -> Iterator[tuple[range, str, str]]:
    """The pictures, the question and the answer of each pair of turns.

    Raises:
        ValueError: the last question has no answer.
    """
    if len(exam.conversations) % 2:
        raise ValueError(f"sample {exam.id}: ends with a question that has no answer. Add the answer, or remove it.")
    shown = 0
    for human, gpt in zip(exam.conversations[::2], exam.conversations[1::2], strict=True):
        count = human.text.count(IMAGE_TOKEN)
        images = range(shown, shown + count) if count else range(shown)
        shown += count
        answer = gpt.text.strip()
        yield images, _without_tokens(human.text.strip()) or BARE_QUESTIONS[language(answer)], answer


def _without_tokens(text: str) -> str:
    """A question whose pictures stand in front, or behind, without its tokens: question files put them in front.

    A question that speaks between its pictures keeps them where they are.
    """
    runs = IMAGE_RUN.findall(text)
    if len(runs) == 1 and (text.startswith(IMAGE_TOKEN) or text.endswith(IMAGE_TOKEN) or runs[0] == IMAGE_TOKEN):
        return IMAGE_RUN.sub("", text).strip()
    return text


def _inside(valid: tuple[int, ...] | None, images: range) -> tuple[int, ...] | None:
    return None if valid is None else tuple(index - images.start for index in valid if index in images)
