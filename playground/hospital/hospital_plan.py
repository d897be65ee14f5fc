"""A made-up hospital: patients, exams and reports, what must be found again, and what must never be.

Every person, number, telephone and date is invented; the pictures are the real ultrasound files of `pydicom-data`. What
a report says of its first file is measured in the pixels (`demo_texts`), the rest is planted to be removed.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

import demo_texts
from dicom_frames import Source

PEOPLE = (
    *(("张建国", "Zhang^Jianguo"), ("李秀英", "Li^Xiuying"), ("王丽华", "Wang^Lihua"), ("刘德福", "Liu^Defu")),
    *(("陈桂兰", "Chen^Guilan"), ("杨志明", "Yang^Zhiming"), ("赵玉梅", "Zhao^Yumei"), ("黄文斌", "Huang^Wenbin")),
    *(("周淑珍", "Zhou^Shuzhen"), ("吴国栋", "Wu^Guodong"), ("徐海燕", "Xu^Haiyan"), ("孙振华", "Sun^Zhenhua")),
    *(("马晓东", "Ma^Xiaodong"), ("朱雅琴", "Zhu^Yaqin"), ("胡俊杰", "Hu^Junjie"), ("郭凤霞", "Guo^Fengxia")),
    *(("何永强", "He^Yongqiang"), ("林慧敏", "Lin^Huimin"), ("罗成刚", "Luo^Chenggang"), ("梁美娟", "Liang^Meijuan")),
)
DOCTORS = (("陈志强", "Chen^Zhiqiang"), ("刘晓梅", "Liu^Xiaomei"), ("赵文博", "Zhao^Wenbo"))

FILES = {
    "US1_UNCR.dcm": "颈部淋巴结",
    "examples_ybr_color.dcm": "超声心动图",
    "gdcm-US-ALOKA-16.dcm": "盆腔",
    "color-pl.dcm": "颈部血管",
    "OBXXXX1A_rle_2frame.dcm": "产科",
    "JPGLosslessP14SV1_1s_1f_8b.dcm": "心超",
}
"""File -> the site that its reports name, in words of the hospital."""
BURNED = "US1_UNCR.dcm"
"""Every other copy of this file gets a name burned in above its scan: the cleaned pictures must not differ."""
UNCLEAN, ICON, OTHER = "examples_palette.dcm", "ExplVR_BigEnd.dcm", "CT_small.dcm"
"""Without a scan region that is found; smaller than a picture; no ultrasound."""

EXAMS, WITHOUT_PICTURES, WITHOUT_REPORT = 24, 3, 2
FRAMES_PER_CINE = 8

COLUMNS = {
    "accession_number": "检查号",
    "patient_name": "姓名",
    "patient_id": "病人号",
    "site": "检查部位",
    "history": "病史",
    "findings": "超声所见",
    "diagnosis": "超声提示",
    "exam_date": "检查时间",
}
"""The mapping of `llava-ultra ingest`: field -> column of the hospital's table."""
TABLE = "超声报告"
YEAR = (date(2024, 1, 1), date(2024, 12, 31))


@dataclass(frozen=True)
class Person:
    """A made-up patient."""

    name: str
    spelled: str
    number: str
    telephone: str
    identity: str


@dataclass(frozen=True)
class Study:
    """One study of the archive: `files` are names of real files, each becomes an instance of its own series."""

    accession: str
    person: Person
    doctor: str
    day: date
    files: tuple[str, ...]
    burned: bool = False

    def uid(self, *parts: int) -> str:
        """A UID of the study, or with numbers of a series and an instance of it."""
        name = "/".join(map(str, (self.accession, self.person.number, *parts)))
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


@dataclass
class Plan:
    """Everything that the hospital holds.

    Args:
        studies: of the archive.
        rows: of the table, column -> cell.
        identifiers: that must stand in no output.
        dates: accession number -> dates, as texts write them, that must not stand in that exam's record.
        planted: kind of the audit -> how often the usable exams' texts hold it.
        good: accession number -> study, of the exams that must come out.
    """

    studies: list[Study] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)
    identifiers: set[str] = field(default_factory=set)
    dates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    planted: dict[str, int] = field(default_factory=dict)
    good: dict[str, Study] = field(default_factory=dict)


def make_plan(sources: Mapping[str, Source]) -> Plan:
    """The same hospital every time.

    Args:
        sources: file name -> its frames, of every key of `FILES`.
    """
    plan = Plan()
    for number in range(EXAMS):
        study = _study(number, _files(number))
        plan.good[study.accession] = study
        plan.studies.append(study)
        plan.rows.append(_row(plan, study, sources[study.files[0]]))
    plan.planted = {kind: count * EXAMS for kind, count in {"phone": 1, "id_number": 1, "number": 1, "date": 2}.items()}
    _add_faults(plan, sources["color-pl.dcm"])
    for study in plan.studies:
        plan.identifiers |= {study.accession, study.person.name, study.person.spelled, study.person.number}
        plan.identifiers |= {study.uid(), *(study.uid(*at) for n in range(len(study.files)) for at in ((n,), (n, 0)))}
    return plan


def _files(number: int) -> tuple[str, ...]:
    """The file that the report describes, and for every second exam another one; the last exam has a faulty one too."""
    names = list(FILES)
    first, beside = number % len(names), (number + 1 + number // len(names)) % len(names)
    files = (names[first], names[beside]) if number % 2 else (names[first],)
    if number == 0:
        return (*files, OTHER)
    return (*files, UNCLEAN) if number == EXAMS - 1 else files


def _study(number: int, files: tuple[str, ...], person: int | None = None) -> Study:
    at = number if person is None else person
    name, spelled = PEOPLE[at % len(PEOPLE)]
    index = at % len(PEOPLE)
    identity = f"110105{1950 + 2 * index}{index % 12 + 1:02}{index + 8:02}{index + 101}{index % 10}"
    patient = Person(name, spelled, f"BR{7301450 + 37 * index}", f"138{20417733 + 1001 * index}", identity)
    day = YEAR[0] + timedelta(days=7 + 9 * number)
    return Study(f"US24{601000 + 13 * number}", patient, DOCTORS[number % 3][0], day, files, number % 4 < 2)


def _row(plan: Plan, study: Study, source: Source) -> dict[str, str]:
    """A report that holds a name, a telephone, an ID number, a number of the ward and two dates beside its findings."""
    person, day = study.person, study.day
    earlier, inpatient = date(2019, day.month, day.day), f"ZY{study.accession[4:]}88"
    said = demo_texts.findings(source, source.frames[:FRAMES_PER_CINE])
    hint = "彩色多普勒超声检查" if "彩色多普勒" in said else "灰阶超声检查"
    plan.identifiers |= {person.telephone, person.identity, inpatient, study.doctor, person.name, study.accession}
    plan.dates[study.accession] = (_written(earlier), _written(day))
    return {
        "检查号": study.accession,
        "姓名": person.name,
        "病人号": person.number,
        "检查部位": FILES[study.files[0]],
        "病史": f"患者{person.name}，联系电话：{person.telephone}，身份证号：{person.identity}，"
        f"{_written(earlier)}外院超声检查。",
        "超声所见": f"{said}患者{person.name}{_written(day)}来院检查，配合良好。",
        "超声提示": f"{hint}，请结合临床。检查医师：{study.doctor}，住院号：{inpatient}。",
        "检查时间": f"{day.isoformat()} 09:30:00",
    }


def _add_faults(plan: Plan, source: Source) -> None:
    """Two exams of which nothing may come out, reports without pictures, an empty report, studies without a report."""
    numbers = iter(range(EXAMS, EXAMS + 10))
    icon, mixed = _study(next(numbers), ("color-pl.dcm",)), _study(next(numbers), ("color-pl.dcm",))
    icon = Study(icon.accession, icon.person, icon.doctor, icon.day, (ICON,))
    stranger = Study(mixed.accession, _study(3, ()).person, mixed.doctor, mixed.day, ("color-pl.dcm",))
    plan.studies += [icon, mixed, stranger]
    for study in (icon, mixed):
        plan.rows.append(
            _row(plan, Study(study.accession, study.person, study.doctor, study.day, ("color-pl.dcm",)), source)
        )
    for _ in range(WITHOUT_PICTURES):
        plan.rows.append(_row(plan, _study(next(numbers), ("color-pl.dcm",)), source))
    empty = _study(next(numbers), ("color-pl.dcm",))
    plan.rows.append({**_row(plan, empty, source), "超声所见": "——"})
    plan.studies += [empty, *(_study(next(numbers), ("gdcm-US-ALOKA-16.dcm",)) for _ in range(WITHOUT_REPORT))]


def _written(day: date) -> str:
    return f"{day.year}年{day.month}月{day.day}日"
