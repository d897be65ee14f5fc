"""The examined site in a question, or in its answer: the paper's two versions of the exam data (4.2, 4.4).

``with``: every question names the site. ``without``: no question does, and the answer states it. Our choice for what
the paper leaves open: a question that does not name the site gets a sentence in front, 检查部位：甲状腺。; so does an
answer. A closed answer stays as it is in both versions: 是 with a sentence in front is no closed answer any more. No
sentence goes in front of a text in another language than the site's name: an English question with 甲状腺 in it is
neither English nor Chinese to a tokenizer. What therefore stays without its site, or with it, is counted.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

from llava_ultra_ext.data.exam import IMAGE_TOKEN
from llava_ultra_ext.data.languages import CJK, at_home, has_chinese
from llava_ultra_ext.data.sources.source import Item

CUES = {"zh": "检查部位：{}。", "en": "Examined site: {}. "}
"""Language -> the sentence that names a site."""

BARE_QUESTIONS = {"zh": "请描述该图像。", "en": "Describe this image."}
"""Asked where a question was nothing but the site's name."""

AFTER = (
    *(
        "的",
        "吗",
        "呢",
        "是",
        "有",
        "在",
        "见",
        "可见",
        "未见",
        "呈",
        "如何",
        "怎",
        "正常",
        "异常",
        "大小",
        "形态",
        "左",
        "右",
    ),
    *(
        "结节",
        "回声",
        "肿块",
        "占位",
        "病变",
        "囊肿",
        "部位",
        "检查",
        "超声",
        "彩超",
        "彩色",
        "多普勒",
        "图像",
        "图片",
        "影像",
        "切面",
        "扫查",
        "声像图",
    ),
)
"""What may follow a Chinese site that is removed, besides anything that is no Chinese character.

Our choice: a text without spaces does not show where a word ends. 肝 in 肝硬化, 肝脏 and 肝内胆管 is a part of a longer
word, of which a removal would leave 硬化, 脏 and 内胆管; such a site stays, and the question is counted.
"""

BEFORE = "该此这本的是为对查示述"
"""What may stand before a site of one character, likewise: 肝 in 脂肪肝 is a part of a longer word too."""


def name_site(items: Sequence[Item]) -> tuple[list[Item], dict[str, int]]:
    """The version with the site in every question.

    Returns:
        The items in their order, and counts of what was done.
    """
    done: Counter[str] = Counter()
    named = []
    for item in items:
        if not item.site:
            done["questions_without_site"] += 1
        elif not _names(item.question, item.site):
            if at_home(item.site, item.lang):
                done["questions_with_site_put_in_front"] += 1
                item = dataclasses.replace(item, question=CUES[item.lang].format(item.site) + item.question)
            else:
                done["questions_left_without_site_in_another_language"] += 1
        named.append(item)
    return named, dict(done)


def drop_site(items: Sequence[Item]) -> tuple[list[Item], dict[str, int]]:
    """The version without the site in any question that can do without; open answers state it.

    Returns:
        The items in their order, and counts of what was done.
    """
    done: Counter[str] = Counter()
    dropped = []
    for item in items:
        if not item.site:
            done["questions_without_site"] += 1
        else:
            question, answer = _without(item.question, item.site, item.lang), item.answer
            if item.answer_type == "CLOSED":
                done["closed_answers_left_without_site"] += 1
            elif not _names(answer, item.site):
                if at_home(item.site, item.lang):
                    done["answers_with_site_put_in_front"] += 1
                    answer = CUES[item.lang].format(item.site) + answer
                else:
                    done["answers_left_without_site_in_another_language"] += 1
            done["questions_with_site_removed"] += question != item.question
            done["questions_that_still_name_the_site"] += _names(question, item.site)
            item = dataclasses.replace(item, question=question, answer=answer)
        dropped.append(item)
    return dropped, dict(done)


def _pattern(site: str) -> re.Pattern[str]:
    """A site's name, as a word of its own where it is written in Latin letters, in either case."""
    return re.compile(rf"(?<![A-Za-z]){re.escape(site)}(?![A-Za-z])" if site.isascii() else re.escape(site), re.I)


def _names(text: str, site: str) -> bool:
    return _pattern(site).search(text) is not None


def _removable(site: str) -> re.Pattern[str]:
    """A site's name where a question can do without it."""
    if not has_chinese(site):
        return _pattern(site)
    before = rf"(?<![{CJK}])|(?<=[{BEFORE}])" if len(site) == 1 else ""
    return re.compile(rf"(?:{before}){re.escape(site)}(?=[^{CJK}]|$|{'|'.join(AFTER)})", re.I)


def _without(question: str, site: str, lang: str) -> str:
    name = _pattern(site).pattern + (f"(?![{CJK}])" if has_chinese(site) else "")
    rest = re.sub(rf"(?:检查部位[:：]\s*|Examined site:\s*){name}[。.；;，,]?\s*", "", question, flags=re.I)
    rest = re.sub(r"(?<=\S) {2,}", " ", _removable(site).sub("", rest)).strip()
    if re.search(r"\w", rest.replace(IMAGE_TOKEN, "")):
        return rest
    return "".join(f"{IMAGE_TOKEN}\n" for _ in range(rest.count(IMAGE_TOKEN))) + BARE_QUESTIONS[lang]
