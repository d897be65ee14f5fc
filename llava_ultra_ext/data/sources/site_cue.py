"""The examined site in a question, or in its answer: the paper's two versions of the exam data (4.2, 4.4).

``with``: every question names the site. ``without``: no question does, and the answer states it. Our choice for what
the paper leaves open: a question that does not name the site gets a sentence in front, 检查部位：甲状腺。; so does an
answer. A closed answer stays as it is in both versions: 是 with a sentence in front is no closed answer any more.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

from llava_ultra_ext.data.exam import IMAGE_TOKEN
from llava_ultra_ext.data.sources.source import Item

CUES = {"zh": "检查部位：{}。", "en": "Examined site: {}. "}
"""Language -> the sentence that names a site."""

BARE_QUESTIONS = {"zh": "请描述该图像。", "en": "Describe this image."}
"""Asked where a question was nothing but the site's name."""


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
            done["questions_with_site_put_in_front"] += 1
            item = dataclasses.replace(item, question=CUES[item.lang].format(item.site) + item.question)
        named.append(item)
    return named, dict(done)


def drop_site(items: Sequence[Item]) -> tuple[list[Item], dict[str, int]]:
    """The version without the site in any question; open answers state it.

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
                done["answers_with_site_put_in_front"] += 1
                answer = CUES[item.lang].format(item.site) + answer
            done["questions_with_site_removed"] += question != item.question
            item = dataclasses.replace(item, question=question, answer=answer)
        dropped.append(item)
    return dropped, dict(done)


def _pattern(site: str) -> re.Pattern[str]:
    """A site's name, as a word of its own where it is written in Latin letters, in either case."""
    return re.compile(rf"(?<![A-Za-z]){re.escape(site)}(?![A-Za-z])" if site.isascii() else re.escape(site), re.I)


def _names(text: str, site: str) -> bool:
    return _pattern(site).search(text) is not None


def _without(question: str, site: str, lang: str) -> str:
    name = _pattern(site)
    rest = re.sub(rf"(?:检查部位[:：]\s*|Examined site:\s*){name.pattern}[。.；;，,]?\s*", "", question, flags=re.I)
    rest = re.sub(r"(?<=\S) {2,}", " ", name.sub("", rest)).strip()
    if re.search(r"\w", rest.replace(IMAGE_TOKEN, "")):
        return rest
    return "".join(f"{IMAGE_TOKEN}\n" for _ in range(rest.count(IMAGE_TOKEN))) + BARE_QUESTIONS[lang]
