"""The prompts of the client are LLaVA's own, letter by letter."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llava_ultra_ext.conversation import templates
from llava_ultra_ext.serve.errors import ServeError
from llava_ultra_ext.serve.prompts import TEMPLATES, TemplateChoice, write_prompt

ONE = (("请描述该胆囊。", None),)
THREE = (("请描述该胆囊。", "壁厚。"), ("有结石吗?\n  在哪里", "没有。 "), ("确定吗？", None))
SILENT = (("请描述该胆囊。", ""), ("再说一遍。", None))


def _of_llava(name: str, turns: tuple[tuple[str, str | None], ...], images: int, images_turn: int) -> str:
    from llava.conversation import Conversation, SeparatorStyle, conv_templates

    conversation = {**conv_templates, **templates(Conversation, SeparatorStyle)}[name].copy()
    for turn, (text, answer) in enumerate(turns):
        marks = "<image>\n" * images if turn == images_turn else ""
        conversation.append_message(conversation.roles[0], marks + text)
        conversation.append_message(conversation.roles[1], answer)
    return str(conversation.get_prompt())


@pytest.mark.parametrize("turns", [ONE, THREE, SILENT], ids=["one", "three", "silent"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_what_llava_writes(name: str, turns: tuple[tuple[str, str | None], ...]) -> None:
    for images in (0, 1, 12):
        for images_turn in range(len(turns)):
            assert write_prompt(name, turns, images, images_turn) == _of_llava(name, turns, images, images_turn)


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_ends_where_llava_ends_it(name: str) -> None:
    from llava.conversation import Conversation, SeparatorStyle, conv_templates

    conversation = {**conv_templates, **templates(Conversation, SeparatorStyle)}[name]
    by_style = conversation.sep if conversation.sep_style == SeparatorStyle.MPT else conversation.sep2
    assert TEMPLATES[name].stop == by_style


@pytest.mark.parametrize(
    "turns",
    [
        (),
        (("问题", "答案"),),
        (("问题", None), ("问题", None)),
        (("一个 <image> 记号", None),),
        (("问题", "<image>"), ("问题", None)),
        ((" \n", None),),
        (("问题", "答案"), ("", None)),
    ],
)
def test_what_is_no_conversation_is_refused(turns: tuple[tuple[str, str | None], ...]) -> None:
    with pytest.raises(ServeError) as refused:
        write_prompt("ultra_v1_zh", turns, 0)
    assert refused.value.code == "bad_request"
    assert "问题" not in str(refused.value)


def test_pictures_may_stand_for_a_question() -> None:
    assert write_prompt("vicuna_v1", (("", None),), 2).endswith("USER: <image>\n<image>\n ASSISTANT:")


def test_conv_mode_names_a_template_for_all_models_or_for_one() -> None:
    choice = TemplateChoice.parse(["ultra_llama2_zh", "vicuna_v1=llava-13b", "llava_v1=a=b"])
    assert [choice.of(model) for model in ("other", "llava-13b", "a=b")] == ["ultra_llama2_zh", "vicuna_v1", "llava_v1"]
    assert TemplateChoice.parse(["vicuna_v1=m"]).of("other") == "ultra_v1_zh"
    for wrong in ("vicuna", "vicuna=m", ""):
        with pytest.raises(ValueError, match="ultra_chatml_zh"):
            TemplateChoice.parse([wrong])


def test_the_client_loads_neither_torch_nor_llava() -> None:
    code = (
        "import sys, llava_ultra_ext.serve.client; print(sorted({'torch', 'transformers', 'llava'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
