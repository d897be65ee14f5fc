"""Old single-image files: the same ids and labels as LLaVA's own dataset, with LLaVA's own templates.

LLaVA counts the tokens of pieces of a prompt. Where its count is off it trains on less than the answers, or on nothing:
those cases are pinned here too, as what this package does differently, on purpose.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from llava_ultra_ext.data.exam import Exam
from llava_ultra_ext.data.exam_dataset import ExamDataset

TRAIN = pytest.importorskip("llava.train.train")

RECORDS: list[dict[str, Any]] = [
    {
        "id": "one turn",
        "image": "3.png",
        "conversations": [
            {"from": "human", "value": "Is there a nodule?\n<image>"},
            {"from": "gpt", "value": "Yes, a hypoechoic nodule of 12.5 mm."},
        ],
    },
    {
        "id": "three turns",
        "image": "4.png",
        "conversations": [
            {"from": "human", "value": "<image>\nDescribe the ultrasound images."},
            {"from": "gpt", "value": "The thyroid gland shows clear margins."},
            {"from": "human", "value": "Is it a colour Doppler picture?"},
            {"from": "gpt", "value": "No."},
            {"from": "human", "value": "What is the BI-RADS category?"},
            {"from": "gpt", "value": "(BI-RADS 4a)"},
        ],
    },
    {
        "id": "opening answer",
        "image": "5.png",
        "conversations": [
            {"from": "gpt", "value": "Hello."},
            {"from": "human", "value": "What is it? <image>"},
            {"from": "gpt", "value": "A cyst."},
        ],
    },
    {
        "id": "text only",
        "conversations": [
            {"from": "human", "value": "What is TI-RADS?"},
            {"from": "gpt", "value": "A score. It grades nodules."},
        ],
    },
    {
        "id": "chinese",
        "image": "6.png",
        "conversations": [
            {"from": "human", "value": "<image>\n请描述这组超声图像。"},
            {"from": "gpt", "value": "甲状腺右叶中部见一低回声结节。"},
            {"from": "human", "value": "是静态图?"},
            {"from": "gpt", "value": "是的。"},
        ],
    },
]
CAPTIONS = [record for record in RECORDS if record["id"] == "one turn"]


@pytest.fixture
def both(tokenizers, templates, processor, pictures, tmp_path, monkeypatch):
    """For records, a template and a tokenizer: LLaVA's samples and ours, pairwise."""

    def samples(records, name, kind):
        monkeypatch.setattr(TRAIN.conversation_lib, "default_conversation", templates[name])
        path = tmp_path / "train.json"
        path.write_text(json.dumps(records), encoding="utf-8")
        args = SimpleNamespace(
            is_multimodal=True,
            image_folder=str(pictures),
            image_processor=processor,
            image_aspect_ratio="square",
            mm_use_im_start_end=False,
        )
        theirs = TRAIN.LazySupervisedDataset(str(path), tokenizers[kind], args)
        ours = ExamDataset(
            [Exam.from_record(record) for record in records],
            tokenizer=tokenizers[kind],
            template=templates[name],
            image_folder=str(pictures),
            image_processor=processor,
            frame_tokens=16,
        )
        assert len(theirs) == len(ours) == len(records)
        return [(theirs[index], ours[index]) for index in range(len(records))]

    return samples


@pytest.mark.parametrize("name", ["v1", "ultra_v1_zh"])
def test_v1_ids_labels_and_pixels(both, name):
    for theirs, ours in both(RECORDS, name, "legacy"):
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        assert (ours["labels"] != -100).sum() > 2
        assert ours["images"][0].float().equal(theirs["image"].float())


@pytest.mark.parametrize("name", ["v1", "ultra_v1_zh"])
def test_v1_with_a_new_tokenizer(both, name):
    """LLaVA takes one token off each later round, which fits `USER` in LLaMA's own vocabulary (two pieces behind a
    space, one behind </s>). With other vocabularies or roles it blanks every conversation of several rounds."""
    blanked = []
    for record, (theirs, ours) in zip(RECORDS, both(RECORDS, name, "new"), strict=True):
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        if (theirs["labels"] == -100).all():
            blanked.append(record["id"])
            assert (ours["labels"] != -100).sum() > 2
        else:
            assert ours["labels"].tolist() == theirs["labels"].tolist()
    assert blanked == ["three turns", "chinese"]


@pytest.mark.parametrize("kind", ["legacy", "new"])
def test_plain_ids_and_labels(both, kind):
    for theirs, ours in both(CAPTIONS, "plain", kind):
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        assert ours["labels"].tolist() == theirs["labels"].tolist()


@pytest.mark.parametrize("name", ["llava_llama_2", "ultra_llama2_zh"])
@pytest.mark.parametrize("kind", ["legacy", "new"])
def test_llama_2_ids_and_labels(both, name, kind):
    for theirs, ours in both(RECORDS, name, kind):
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        assert ours["labels"].tolist() == theirs["labels"].tolist()


@pytest.mark.parametrize("name", ["mpt", "ultra_chatml_zh"])
def test_mpt_ids(both, name):
    """LLaVA's `preprocess_mpt` counts for GPT-NeoX tokenizers, which write no BOS: with LLaMA's it blanks the samples.
    Ours labels the answers (test_tokenize.py)."""
    for theirs, ours in both(RECORDS[:3], name, "tags"):
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
        assert (theirs["labels"] == -100).all()
        assert (ours["labels"] != -100).sum() > 2
