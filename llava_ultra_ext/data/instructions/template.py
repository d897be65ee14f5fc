"""Instructions without a model: the doctor's own words as answers, questions in several phrasings, drawn by a seed.

Stage 1 asks for a description as LLaVA-Med's alignment does (brief where the findings are short), stage 2 is a
conversation about site, findings and diagnosis. Our choice of phrasings; the paper shows none. Every question but the
site's names the site (该甲状腺超声图像), so that ``site_cue`` makes the version without it by removing it.
"""

from __future__ import annotations

import random

from llava_ultra_ext.data.instructions.reported_exam import ReportedExam
from llava_ultra_ext.data.instructions.written import Asked, Written

SHORT = 60
"""Findings of at most so many characters are asked for with `BRIEF`. LLaVA-Med parts at 30 English words."""

BRIEF = (
    "请简要描述{this}。",
    "请用简短的语言说明{this}的内容。",
    "{this}显示了什么？请简要回答。",
    "请概括{this}的主要所见。",
    "简要说明{this}中的表现。",
    "请对{this}作一个简短的描述。",
)
DETAILED = (
    "请描述{this}。",
    "请详细描述{this}的内容。",
    "{this}显示了什么？",
    "请说明{this}中能看到的内容。",
    "请对{this}进行描述。",
    "请全面描述{this}所显示的内容。",
)
QUESTIONS = {
    "site": (
        "这组图像检查的是哪个部位？",
        "请判断图像的检查部位。",
        "这是哪个部位的超声图像？",
        "图像显示的是什么部位？",
        "该检查针对的是哪个部位？",
    ),
    "findings": (
        "请描述{this}的所见。",
        "请根据{this}写出超声所见。",
        "{this}有哪些表现？",
        "从{this}中可以观察到什么？",
        "请写出{this}的检查所见。",
        "{this}的超声表现是什么？",
        "作为超声医生，你会如何描述{this}？",
    ),
    "diagnosis": (
        "请给出{this}的诊断。",
        "根据{this}，诊断是什么？",
        "请根据{this}作出超声诊断。",
        "{this}提示什么？",
        "结合{this}，你的诊断意见是什么？",
        "对{this}，超声提示应如何书写？",
        "根据{this}的表现，应考虑什么诊断？",
    ),
    "report": (
        "请为{this}写一份超声报告。",
        "请描述{this}的所见并给出诊断。",
        "根据{this}，请写出超声所见和超声提示。",
        "请完成{this}的检查报告。",
    ),
}
"""Topic -> its phrasings; ``{this}`` is 该甲状腺超声图像 or its like."""

ANSWERS = {
    "site": ("{site}。", "检查部位为{site}。", "这是{site}的超声图像。", "图像显示的是{site}。"),
    "findings": ("{findings}", "超声所见：{findings}", "{findings}"),
    "diagnosis": ("{diagnosis}", "超声提示：{diagnosis}", "诊断意见：{diagnosis}"),
    "report": ("超声所见：{findings}\n超声提示：{diagnosis}", "{findings}\n诊断：{diagnosis}"),
}
"""Topic -> what stands around the doctor's words."""

PLANS = (
    ("site", "findings", "diagnosis"),
    ("findings", "diagnosis"),
    ("diagnosis", "findings"),
    ("site", "diagnosis", "findings"),
    ("report",),
    ("site", "report"),
)
"""Topics of a conversation, in their order; what an exam does not know is left out."""

_WORDS = {"ultrasound": "超声"}
_ONE = ("该{}图像", "这张{}图像", "此{}图像")
_SEVERAL = ("该组{}图像", "这组{}图像", "这些{}图像")


class TemplateWriter:
    """The offline default.

    Args:
        seed: an exam's phrasings depend on it and on the exam's id, so that new exams change no old one.
    """

    workers = 1

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def write(self, exam: ReportedExam) -> Written:
        """Phrasings, plan and answers of one exam."""
        choice = random.Random(f"{self.seed}/{exam.id}")
        simple = choice.choice(BRIEF if len(exam.findings) <= SHORT else DETAILED)
        plans = [plan for plan in (_known(plan, exam) for plan in PLANS) if plan]
        conversation = tuple(self._asked(topic, exam, choice) for topic in choice.choice(plans))
        return Written(
            Asked("findings", simple.format(this=_this(exam, choice)), exam.findings), conversation, "template"
        )

    def _asked(self, topic: str, exam: ReportedExam, choice: random.Random) -> Asked:
        question = choice.choice(QUESTIONS[topic]).format(this=_this(exam, choice))
        answer = choice.choice(ANSWERS[topic])
        known = {"site": exam.site, "findings": exam.findings, "diagnosis": exam.diagnosis}
        return Asked(topic, question, answer.format(**known))


def _known(plan: tuple[str, ...], exam: ReportedExam) -> tuple[str, ...]:
    """A plan without what the exam does not know; a report without diagnosis is its findings."""
    missing = {name for name in ("site", "diagnosis") if not getattr(exam, name)}
    topics = ["findings" if topic == "report" and "diagnosis" in missing else topic for topic in plan]
    return tuple(topic for topic in topics if topic not in missing)


def _this(exam: ReportedExam, choice: random.Random) -> str:
    what = exam.site + _WORDS.get(exam.modality.lower(), "")
    return choice.choice(_ONE if len(exam.images) == 1 else _SEVERAL).format(what)
