"""Chinese prompt templates, in the styles that LLaVA's own ``Conversation`` knows (LLaVA ``conversation.py``).

LLaVA's classes are handed in, so that importing this file imports no LLaVA. Facts of the host that shape the templates:

* LLaVA writes an ASCII ``": "`` after a role of style TWO, and masks labels by looking for it. The roles are therefore
  bare words: a full-width colon in a role would leave the whole sample without labels.
* LLaVA chooses its own label masking by ``version``: style TWO needs one that starts with ``v1``, style MPT ``mpt``.
* No system text may hold a separator or a role followed by ``":"``: LLaVA cuts prompts at these.
* Style LLAMA_2 wraps the system text into the first question (``<<SYS>>``), and starts later turns with ``sep``.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

SYSTEM = "以下是用户与超声影像助手的对话。助手能看懂超声图像，根据图像内容，用准确、规范的医学中文回答用户的问题。"
"""Who speaks and how. Our choice: the paper prints no system text; this one makes no diagnosis promise."""

TEMPLATE_NAMES = ("ultra_v1_zh", "ultra_llama2_zh", "ultra_chatml_zh", "ultra_plain_zh")
"""Names for ``--version`` and ``--conv-mode``."""


def templates(conversation: Callable[..., Any], separator_style: Any) -> dict[str, Any]:
    """The Chinese templates, built from LLaVA's classes.

    Args:
        conversation: LLaVA's ``conversation.Conversation``.
        separator_style: LLaVA's ``conversation.SeparatorStyle``.

    Returns:
        Name -> conversation without messages, in the order of `TEMPLATE_NAMES`.
    """
    built = (
        conversation(
            system=SYSTEM,
            roles=("用户", "助手"),
            messages=(),
            offset=0,
            sep_style=separator_style.TWO,
            sep=" ",
            sep2="</s>",
            version="v1_ultra_zh",
        ),
        conversation(
            system=SYSTEM,
            roles=("USER", "ASSISTANT"),  # Style LLAMA_2 prints no roles: [INST] marks them.
            messages=(),
            offset=0,
            sep_style=separator_style.LLAMA_2,
            sep="<s>",
            sep2="</s>",
            version="llama_v2",
        ),
        conversation(
            system=f"<|im_start|>system\n{SYSTEM}",
            roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
            messages=(),
            offset=0,
            sep_style=separator_style.MPT,
            sep="<|im_end|>",
            version="mpt",
        ),
        # Our choice: stage-1 answers end with </s>, so that a projector-only model stops by itself (LLaVA's `plain`
        # ends them with a newline, which no generation loop stops at). `sep` is empty: a caption then follows the
        # pictures directly, at inference as in training. LLaVA's own `preprocess_plain` ends answers with `sep`, here
        # with nothing: train this template with `ExamDataset`.
        conversation(
            system="",
            roles=("", ""),
            messages=(),
            offset=0,
            sep_style=separator_style.PLAIN,
            sep="",
            sep2="</s>",
            version="plain",
        ),
    )
    return dict(zip(TEMPLATE_NAMES, built, strict=True))


def register(
    conv_templates: MutableMapping[str, Any], conversation: Callable[..., Any], separator_style: Any
) -> MutableMapping[str, Any]:
    """Add the Chinese templates to LLaVA's table, all or none, and return that table.

    Args:
        conv_templates: LLaVA's ``conversation.conv_templates``, or a copy of it.
        conversation: LLaVA's ``conversation.Conversation``.
        separator_style: LLaVA's ``conversation.SeparatorStyle``.

    Raises:
        ValueError: a name is taken; the table is left as it was.
    """
    ours = templates(conversation, separator_style)
    taken = [name for name in ours if name in conv_templates]
    if taken:
        raise ValueError(
            f"Conversation templates {', '.join(taken)} exist already. Each name may be registered once: "
            "rename the other template, or remove the second call of register()."
        )
    conv_templates.update(ours)
    return conv_templates
