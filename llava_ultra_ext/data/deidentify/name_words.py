"""The words by which names are found: those that go with names, surnames, and characters of no given name."""

from __future__ import annotations

import importlib.resources

_HERE = "llava_ultra_ext.data.deidentify"
PLACEHOLDER_WORDS = ("姓名", "日期", "电话", "编号", "床号", "地址", "机构", "邮箱", "网址", "证件号")
"""Stand in brackets where something was removed."""


def _lines(package: str, name: str) -> list[str]:
    text = importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _cues() -> dict[str, tuple[str, ...]]:
    sections: dict[str, tuple[str, ...]] = {}
    for line in _lines(_HERE, "name_cues.txt"):
        if line.isascii():
            section = line
        else:
            sections[section] = (*sections.get(section, ()), *line.split())
    return sections


_CUES = _cues()
TITLES = _CUES["TITLES"]
"""Follow a surname or a name."""
FOLLOWERS = (*TITLES, *_CUES["FOLLOWERS"])
"""Follow a whole name too."""
PERSONS = _CUES["PERSONS"]
"""Come before a name: strong evidence."""
HELPERS = _CUES["HELPERS"]
"""Come before a name, and before other words."""
LINKS = _CUES["LINKS"]
"""Come before anything, a name at times."""
ACTS = _CUES["ACTS"]
"""What people do: strong evidence for a name before it."""
DEEDS = _CUES["DEEDS"]
"""What others do too: weak evidence."""
STRUCTURES = _CUES["STRUCTURES"]
"""In clauses that describe a body, beside the characters of `BODY`."""
BODY = "肝胆胰脾肾肺胃肠膀胱脉腺瘤囊肿癌腔膜乳颈腹胸臂腿腰骨膈疝痰疮疹肋肌髓颅"
"""Characters that only describe bodies."""
_PARTICLES = "的了着过吗呢吧啊们是系未已曾均皆某等仍再此其该及与和也就还很您你我他她都能会说要让把由"
_TERMS = "氏痒沫查样侧症痛肿病炎诊诉述孕产嘱返推抱吃喝做处"
NEVER_GIVEN = frozenset(BODY + _PARTICLES + _TERMS)
"""Nobody is called so."""
PERSON_ENDS = "者员人师生士友妈爸爷奶婆姐妹哥弟兄姑姨舅叔伯侄甥婿媳夫妻嫂娘孙子"
"""Last characters of words for persons (志愿者, 大学生)."""


def read_surnames() -> tuple[list[str], list[str]]:
    """Single and compound surnames."""
    singles: list[str] = []
    compounds: list[str] = []
    for line in _lines(_HERE, "surnames.txt"):
        if " " in line:
            compounds += line.split()
        else:
            singles += list(line)
    return singles, compounds


def clinical_words() -> frozenset[str]:
    """Those of reports and histories."""
    words = _lines("llava_ultra_ext.eval", "ultrasound_terms.txt")
    return frozenset(words + [word for line in _lines(_HERE, "clinical_words.txt") for word in line.split()])


def cue_words() -> frozenset[str]:
    """Words that go with names; they stay."""
    return frozenset(cue for cues in _CUES.values() for cue in cues if len(cue) > 1)
