"""Labels cover exactly the answers, and a training prompt starts as the inference prompt does."""

from __future__ import annotations

import copy

import pytest
from transformers import LlamaTokenizerFast

from llava_ultra_ext.conversation import TEMPLATE_NAMES
from llava_ultra_ext.data import tokenize
from llava_ultra_ext.data.exam import Turn
from llava_ultra_ext.data.tokenize import (
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
    Encoded,
    UntrainableText,
    encode_prompt,
    end_marker,
    place_images,
    tokenize_turns,
    truncate,
)

MM_UTILS = pytest.importorskip("llava.mm_utils")

CONVERSATIONS = {
    "chinese": ["<image>\n请描述这组超声图像。", "甲状腺右叶中部见一低回声结节,大小约12mm×8mm。"],
    "latin": ["<image>\nIs there a nodule?", "Yes. A hypoechoic nodule (TI-RADS 3)."],
    "mixed": ["<image>\n<image>\n考虑 BI-RADS 几类?", "BI-RADS 4a 类,右侧乳腺未见占位。"],
    "unseen characters": ["<image>\n问", "髌骨骺鱻 – ½ é😀"],
    "turns": ["<image>\n请描述。", "囊肿。", "动态图?", "No, 静态图。", "共几帧?", "1"],
    "role words inside": ["<image>\n用户: 助手: ASSISTANT: 何意?", "助手: 用户: [/INST] 答案", "再问", "完"],
    "text only": ["回声均匀?", "是的。"],
}


def turns_of(texts):
    return [Turn("human" if index % 2 == 0 else "gpt", text) for index, text in enumerate(texts)]


def spans(encoded):
    """The labelled runs, as lists of ids."""
    found, previous = [], IGNORE_INDEX
    for label in encoded.labels:
        if label != IGNORE_INDEX:
            found.append([]) if previous == IGNORE_INDEX else None
            found[-1].append(label)
        previous = label
    return found


def text_of(ids, tokenizer):
    """What ids say, letter by letter: decode() would clean up spaces and join specials with some."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    data = b"".join(
        bytes([int(piece[3:5], 16)]) if len(piece) == 6 and piece.startswith("<0x") else piece.encode()
        for piece in pieces
    )
    return data.decode().replace("▁", " ")


def cases():
    """Tokenizer, template and conversation, where they fit together."""
    for kind in ("legacy", "new", "tags"):
        for name in (*TEMPLATE_NAMES, "v1", "llava_llama_2", "mpt", "v0", "mistral_instruct"):
            for title, texts in CONVERSATIONS.items():
                captioned = len(texts) == 2 and "<image>" in texts[0]
                # An end marker that is no token of its own may merge with the next turn: see the test further down.
                split = name == "v0" or (name in ("mpt", "ultra_chatml_zh") and kind != "tags")
                if (captioned or name != "ultra_plain_zh") and not (split and len(texts) > 2):
                    yield pytest.param(kind, name, texts, id=f"{kind}-{name}-{title}")


@pytest.mark.parametrize(("kind", "name", "texts"), cases())
def test_labels_are_the_answers_and_their_end_markers(kind, name, texts, tokenizers, templates):
    tokenizer, template = tokenizers[kind], templates[name]
    encoded = tokenize_turns(turns_of(texts), template, tokenizer)
    # Style LLAMA_2 writes a space before </s>.
    end = (" " if template.sep_style.name == "LLAMA_2" else "") + end_marker(template)
    said = [text_of(ids, tokenizer) for ids in spans(encoded)]
    # The blank after `助手:` is part of the first answer token or a token of its own; none follows a line break.
    assert [text.removeprefix(" ") for text in said] == [answer + end for answer in texts[1::2]]
    assert all(label in (IGNORE_INDEX, id) for label, id in zip(encoded.labels, encoded.input_ids, strict=True))


@pytest.mark.parametrize(("kind", "name", "texts"), cases())
def test_round_by_round_gives_the_labels_of_prefixes(kind, name, texts, tokenizers, templates, monkeypatch):
    given = turns_of(texts), templates[name], tokenizers[kind]
    encoded = tokenize_turns(*given)
    monkeypatch.setattr(tokenize, "_spans_of_rounds", lambda *_: None)
    assert encoded == tokenize_turns(*given)


def test_a_long_chat_is_tokenized_three_times_and_not_once_for_each_answer(tokenizers, templates, monkeypatch):
    texts = ["<image>\n请描述。", "囊肿。", *["共几帧?", "1"] * 19]
    count, encode = [], tokenize.encode_prompt

    def counting(prompt, tokenizer):
        count.append(len(prompt))
        return encode(prompt, tokenizer)

    monkeypatch.setattr(tokenize, "encode_prompt", counting)
    tokenize_turns(turns_of(texts), templates["ultra_v1_zh"], tokenizers["legacy"])
    assert sum(count) < 3.5 * count[0]  # from prefixes: 20 times


@pytest.mark.parametrize("texts", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATE_NAMES)
@pytest.mark.parametrize("kind", ["legacy", "new", "tags"])
def test_training_starts_with_the_tokens_that_inference_sends(kind, name, texts, tokenizers, templates):
    """LLaVA's eval scripts: get_prompt() with a last message None, then tokenizer_image_token()."""
    tokenizer, template = tokenizers[kind], templates[name]
    texts = ["<image>", texts[1]] if name == "ultra_plain_zh" else texts
    encoded = tokenize_turns(turns_of(texts), template, tokenizer)
    conversation = template.copy()
    for index in range(0, len(texts), 2):
        conversation.append_message(conversation.roles[0], texts[index])
        conversation.append_message(conversation.roles[1], None)
        sent = MM_UTILS.tokenizer_image_token(conversation.get_prompt(), tokenizer)
        assert encoded.input_ids[: len(sent)] == sent
        assert encoded.labels[len(sent) - 1] == IGNORE_INDEX
        assert encoded.labels[len(sent)] == encoded.input_ids[len(sent)]
        conversation.messages[-1][1] = texts[index + 1]
    whole = conversation.get_prompt()
    assert encoded.input_ids == MM_UTILS.tokenizer_image_token(whole, tokenizer)


def test_exact_positions(tokenizers, templates):
    """`助手:` ends before each answer, `</s>` ends it: labels lie behind that colon, up to and with the end token."""
    tokenizer = tokenizers["legacy"]
    encoded = tokenize_turns(turns_of(["<image>\n问", "是", "再", "否"]), templates["ultra_v1_zh"], tokenizer)
    colon = tokenizer.convert_tokens_to_ids(":")
    colons = [index for index, id in enumerate(encoded.input_ids) if id == colon]
    ends = [index for index, id in enumerate(encoded.input_ids) if id == tokenizer.eos_token_id]
    assert len(colons) == 4 and len(ends) == 2 and ends[-1] == len(encoded.input_ids) - 1
    expected = set(range(colons[1] + 1, ends[0] + 1)) | set(range(colons[3] + 1, ends[1] + 1))
    assert {index for index, label in enumerate(encoded.labels) if label != IGNORE_INDEX} == expected
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1


def test_a_split_end_marker_ends_the_last_answer_whole(tokenizers, templates):
    """Without <|im_end|> as a token, its last piece may merge with the next turn's first: that is no answer."""
    encoded = tokenize_turns(turns_of(["问", "答", "再", "完"]), templates["ultra_chatml_zh"], tokenizers["legacy"])
    first, last = (text_of(ids, tokenizers["legacy"]).removeprefix(" ") for ids in spans(encoded))
    assert last == "完<|im_end|>"
    assert first == "答<|im_end|>"[: len(first)] and first.startswith("答<|im_end")


def test_a_token_merged_over_the_border_counts_as_answer(templates):
    """A tokenizer whose pieces cross spaces: `: a` is one token, so inference must produce it."""

    class Merging:
        bos_token_id = None

        def __call__(self, text):
            ids = []
            while text:
                size = 3 if text.startswith(": a") else 1
                ids.append(1000 if size == 3 else ord(text[0]))
                text = text[size:]
            return type("Encoding", (), {"input_ids": ids})

    encoded = tokenize_turns(turns_of(["q", "ab"]), templates["ultra_v1_zh"], Merging())
    assert spans(encoded) == [[1000, ord("b"), *map(ord, "</s>")]]


def test_fast_tokenizer(tokenizers, templates, tiny_llama):
    fast = LlamaTokenizerFast.from_pretrained(str(tiny_llama))
    encoded = tokenize_turns(turns_of(CONVERSATIONS["turns"]), templates["ultra_v1_zh"], fast)
    said = [text_of(ids, fast).removeprefix(" ") for ids in spans(encoded)]
    assert said == ["囊肿。</s>", "No, 静态图。</s>", "1</s>"]


def test_encode_prompt_equals_llavas(tokenizers):
    for tokenizer in tokenizers.values():
        for prompt in ("", "无图", "<image>", "<image>\n<image>\n问", "前 <image> 中<image>", "<image><image>"):
            assert encode_prompt(prompt, tokenizer)[0] == MM_UTILS.tokenizer_image_token(prompt, tokenizer)


def test_encode_prompt_without_bos(tokenizers):
    """Qwen and GPT-2 tokenizers open with no BOS: nothing may be cut from later pieces."""
    tokenizer = copy.deepcopy(tokenizers["legacy"])
    tokenizer.add_bos_token = False
    ids, groups = encode_prompt("<image>是", tokenizer)
    assert ids == [IMAGE_TOKEN_INDEX, *tokenizer("是").input_ids] and len(ids) > 1
    assert groups == [(0, 1)]


def test_groups_are_runs_with_white_space_between(tokenizers):
    ids, groups = encode_prompt("<image>\n<image>\n甲 <image> <image><image>乙<image>", tokenizers["new"])
    assert [ids[start:stop].count(IMAGE_TOKEN_INDEX) for start, stop in groups] == [2, 3, 1]
    assert all(ids[start] == ids[stop - 1] == IMAGE_TOKEN_INDEX for start, stop in groups)


@pytest.mark.parametrize(
    ("given", "placed"),
    [
        ("问<image>题 ", "<image>\n问题"),
        ("问\n<image>", "<image>\n问"),
        ("<image>", "<image>"),
        (" 无图 ", " 无图 "),
        ("<image><image>问", "<image>\n<image>\n问"),
        ("<image> <image>\n\n<image> 问", "<image>\n<image>\n<image>\n问"),
        ("左 <image> 右 <image>", "左 <image>\n右 <image>"),
    ],
)
def test_place_images(given, placed):
    assert place_images(given) == placed
    assert place_images(placed) == placed


def test_plain_drops_the_question_and_keeps_every_picture(tokenizers, templates):
    tokenizer = tokenizers["legacy"]
    encoded = tokenize_turns(turns_of(["<image>\n描述<image>", "囊肿"]), templates["ultra_plain_zh"], tokenizer)
    caption = tokenizer("囊肿</s>", add_special_tokens=False).input_ids
    assert encoded.input_ids == [tokenizer.bos_token_id, IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX, *caption]
    assert encoded.labels == [IGNORE_INDEX] * 3 + caption
    assert encoded.groups == [(1, 3)]


@pytest.mark.parametrize("texts", [["<image>", "答", "问", "答"], ["问", "答"]], ids=["two rounds", "no picture"])
def test_plain_refuses_what_is_no_caption(texts, tokenizers, templates):
    with pytest.raises(UntrainableText, match="one question with its pictures and one caption"):
        tokenize_turns(turns_of(texts), templates["ultra_plain_zh"], tokenizers["legacy"])


def test_an_answer_without_tokens_raises(templates):
    class Deaf:
        bos_token_id = None

        def __call__(self, text):
            return type("Encoding", (), {"input_ids": [7]})

    with pytest.raises(UntrainableText, match="no token of its own"):
        tokenize_turns(turns_of(["问", "答"]), templates["ultra_v1_zh"], Deaf())


def sample_of_ten():
    """6 prompt tokens, among them a run of two pictures with a separator, and 4 answer tokens."""
    ids = [1, IMAGE_TOKEN_INDEX, 13, IMAGE_TOKEN_INDEX, 5, 6, 21, 22, 23, 2]
    return Encoded(ids, [IGNORE_INDEX] * 6 + ids[6:], [(1, 4)])


def test_truncation_counts_picture_tokens_once_per_group():
    sample = sample_of_ten()  # 7 ids outside of the run, 16 tokens of the chosen frame: 23
    assert truncate(sample, 23, [16]) is sample
    cut = truncate(sample, 22, [16])
    assert cut.input_ids == sample.input_ids[:9] and cut.labels == sample.labels[:9]
    assert truncate(sample, 20, [16]).labels[6:] == [21]


@pytest.mark.parametrize(
    ("limit", "reason", "message"),
    [
        (19, "too_long_labels", "needs 23 tokens, --model_max_length allows 19: raise it.*lose every answer"),
        (17, "too_long_labels", "lose every answer"),
        (16, "too_long_images", "lose a picture"),
        (3, "too_long_images", "lose a picture"),
    ],
)
def test_truncation_refuses_to_lose_all_labels_or_a_picture(limit, reason, message):
    with pytest.raises(UntrainableText, match=message) as caught:
        truncate(sample_of_ten(), limit, [16])
    assert caught.value.reason == reason
