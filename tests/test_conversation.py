"""The Chinese templates: what LLaVA's own code does with them, letter by letter."""

from __future__ import annotations

from typing import Any

import pytest

from llava_ultra_ext.conversation import SYSTEM, TEMPLATE_NAMES, register, templates

CONV = pytest.importorskip("llava.conversation")


@pytest.fixture
def ours() -> dict[str, Any]:
    return templates(CONV.Conversation, CONV.SeparatorStyle)


def ask(template: Any, *texts: str | None) -> str:
    conversation = template.copy()
    for index, text in enumerate(texts):
        conversation.append_message(conversation.roles[index % 2], text)
    return conversation.get_prompt()


def test_prompts_letter_by_letter(ours):
    v1 = f"{SYSTEM} 用户: <image>\n问 助手:"
    assert ask(ours["ultra_v1_zh"], "<image>\n问", None) == v1
    assert ask(ours["ultra_v1_zh"], "<image>\n问", "答", "再问", None) == f"{v1} 答</s>用户: 再问 助手:"
    llama2 = f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n问 [/INST]"
    assert ask(ours["ultra_llama2_zh"], "问", None) == llama2
    assert ask(ours["ultra_llama2_zh"], "问", "答", "再问", None) == f"{llama2} 答 </s><s>[INST] 再问 [/INST]"
    chatml = f"<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n问<|im_end|><|im_start|>assistant\n"
    assert ask(ours["ultra_chatml_zh"], "问", None) == chatml
    assert ask(ours["ultra_chatml_zh"], "问", "答") == f"{chatml}答<|im_end|>"
    assert ask(ours["ultra_plain_zh"], "<image>", None) == "<image>"
    assert ask(ours["ultra_plain_zh"], "<image>", "答") == "<image>答</s>"


def test_llava_dispatches_on_version_and_style(ours):
    """LLaVA's preprocess(): PLAIN and LLAMA_2 by style, `v1…` by prefix, `mpt` by equality; mmtag would wrap images."""
    styles = [ours[name].sep_style.name for name in TEMPLATE_NAMES]
    assert styles == ["TWO", "LLAMA_2", "MPT", "PLAIN"]
    assert ours["ultra_v1_zh"].version.startswith("v1")
    assert ours["ultra_chatml_zh"].version == "mpt"
    assert not any("mmtag" in template.version for template in ours.values())


def test_system_text_holds_no_separator_and_no_role(ours):
    for template in ours.values():
        for mark in ("</s>", "<s>", "[INST]", "<image>", "###", *(f"{role}:" for role in template.roles if role)):
            assert mark not in template.system
    assert "|im_end|" not in ours["ultra_chatml_zh"].system


def test_copies_do_not_share_messages(ours):
    ask(ours["ultra_v1_zh"], "问")
    assert len(ours["ultra_v1_zh"].messages) == 0


def test_register_adds_to_llavas_table():
    # The environment may have the package enabled: LLaVA's table then holds ours already.
    before = {name: template for name, template in CONV.conv_templates.items() if name not in TEMPLATE_NAMES}
    table = dict(before)
    assert register(table, CONV.Conversation, CONV.SeparatorStyle) is table
    assert set(table) - set(before) == set(TEMPLATE_NAMES)
    assert table["v1"] is CONV.conv_templates["v1"]


def test_register_refuses_to_overwrite_and_changes_nothing():
    table = {"ultra_plain_zh": "somebody else's"}
    with pytest.raises(ValueError, match=r"ultra_plain_zh exist already.*rename the other"):
        register(table, CONV.Conversation, CONV.SeparatorStyle)
    assert table == {"ultra_plain_zh": "somebody else's"}
