"""Samples and batches: values, not only shapes."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from llava_ultra_ext.data.exam import BadSample, Exam
from llava_ultra_ext.data.exam_dataset import ExamCollator, ExamDataset, limit_frames, single_frames, text_length
from llava_ultra_ext.data.tokenize import IGNORE_INDEX, IMAGE_TOKEN_INDEX

BATCH_KEYS = {
    "input_ids",
    "labels",
    "attention_mask",
    "images",
    "findings_ids",
    "findings_mask",
    "frame_scores",
    "valid_frames",
}


def exam(shades, *, id="x", question="问", answer="答", **extra):
    """An exam of `<shade>.png` pictures."""
    human = "<image>\n" * len(shades) + question
    record = {"id": id, "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": answer}], **extra}
    return Exam.from_record(record | ({"image": [f"{shade}.png" for shade in shades]} if shades else {}))


@pytest.fixture
def build(tokenizers, templates, processor, pictures):
    def make(exams, **options):
        settings = {
            "tokenizer": tokenizers["legacy"],
            "template": templates["ultra_v1_zh"],
            "image_folder": str(pictures),
            "image_processor": processor,
            "frame_tokens": 16,
            "strategy": "likelihood",
        }
        return ExamDataset(exams, **{**settings, **options})

    return make


def shades_of(sample):
    return [int(image[0, 0, 0]) // 20 for image in sample["images"]]


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("甲状腺右叶", 5),
        ("yes", 1),
        ("two words", 2),
        ("BI-RADS 4a 类。", 4),
        ("回声12mm×8mm均匀", 5),
        ("<image>\n<image>\n问", 1),
        ("", 0),
        ("𠮷", 1),
    ],
)
def test_text_length(text, length):
    assert text_length(text) == length


def test_lengths(build):
    exams = [
        exam([1, 2, 3], question="请描述", answer="甲状腺结节"),
        exam([1], question="what is it", answer="a cyst"),
        exam([], question="是什么", answer="囊肿"),
    ]
    assert build(exams).lengths == [8 + 16, 5 + 16, 5]
    assert build(exams).modality_lengths == [24, 21, -5]
    assert build(exams, strategy="likelihood", top_k=2).lengths == [8 + 32, 21, 5]
    assert build(exams, strategy="all", top_k=1).lengths == [8 + 48, 21, 5]
    assert build(exams, strategy="none").lengths == [24, 24, 24, 21, 5]


def test_length_is_never_zero(build):
    data = build([exam([], question=".", answer="\u3000.\u3000")], frame_tokens=0)
    assert data.lengths[0] > 0 and data.modality_lengths[0] < 0


def test_a_sample(build, tokenizers):
    scores = {"E": {"2.png": -1.5, "9.png": -3.0}}
    item = exam([5, 2, 9], exam_id="E", findings="低回声结节", valid_frames=[2])
    sample = build([item], frame_scores=scores)[0]
    assert sample["images"].dtype == torch.uint8 and sample["images"].shape == (3, 3, 8, 8)
    assert shades_of(sample) == [5, 2, 9]
    assert sample["valid_frames"].tolist() == [False, False, True]
    assert math.isnan(sample["frame_scores"][0]) and sample["frame_scores"][1:].tolist() == [-1.5, -3.0]
    assert sample["input_ids"].tolist().count(IMAGE_TOKEN_INDEX) == 3
    assert sample["findings_ids"].tolist() == tokenizers["legacy"]("低回声结节", add_special_tokens=False).input_ids


def test_findings_go_to_the_teacher_only(build):
    with_findings = build([exam([1, 2], findings="后方回声增强")])[0]
    without = build([exam([1, 2])])[0]
    for key in ("input_ids", "labels"):
        assert with_findings[key].tolist() == without[key].tolist()
    assert len(with_findings["findings_ids"]) > 0 and len(without["findings_ids"]) == 0
    assert len(build([exam([1], findings="后方回声增强")], findings_max_length=3)[0]["findings_ids"]) == 3


def test_text_only_sample_has_one_black_picture(build):
    sample = build([exam([])])[0]
    assert sample["images"].shape == (1, 3, 8, 8) and sample["images"].sum() == 0
    assert sample["images"].dtype == torch.uint8
    assert IMAGE_TOKEN_INDEX not in sample["input_ids"]
    assert math.isnan(sample["frame_scores"][0]) and sample["valid_frames"].tolist() == [False]


def test_strategy_none_gives_each_frame_the_text(build):
    data = build([exam([4, 5, 6], valid_frames=[1]), exam([7]), exam([])], strategy="none")
    samples = [data[index] for index in range(len(data))]
    assert [shades_of(sample) for sample in samples] == [[4], [5], [6], [7], [0]]
    assert [sample["valid_frames"].tolist() for sample in samples[:3]] == [[False], [True], [False]]
    alone = build([exam([4])])[0]["input_ids"].tolist()
    assert all(sample["input_ids"].tolist() == alone for sample in samples[:4])


def test_single_frames_of_two_groups():
    talk = ["<image><image>左", "a", "<image>右", "b"]
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(talk)]
    both = Exam.from_record({"id": "x", "image": ["0", "1", "2"], "conversations": turns})
    assert [item.images for item in single_frames(both)] == [("0", "2"), ("1", "2")]


def test_max_frames_is_a_seeded_ordered_subset(build):
    item = exam(range(10), exam_id="E", valid_frames=[0, 3, 4, 8])
    kept = limit_frames(item, 4, seed=0)
    assert len(kept.images) == 4 and list(kept.images) == sorted(kept.images)
    assert kept == limit_frames(item, 4, seed=0)
    assert len({limit_frames(item, 4, seed=seed).images for seed in range(20)}) > 10
    other = exam(range(10), id="another question", exam_id="E", question="再问")
    assert limit_frames(other, 4, seed=0).images == kept.images
    assert limit_frames(item, 10, seed=0) is item and limit_frames(item, None, seed=0) is item

    scores = {"E": {f"{shade}.png": float(shade) for shade in range(10)}}
    sample = build([item], max_frames=4, frame_scores=scores)[0]
    shades = shades_of(sample)
    assert [f"{shade}.png" for shade in shades] == list(kept.images)
    assert sample["frame_scores"].tolist() == shades
    assert sample["valid_frames"].tolist() == [shade in (0, 3, 4, 8) for shade in shades]
    assert sample["input_ids"].tolist() == build([exam(range(4))])[0]["input_ids"].tolist()


def test_max_frames_is_uniform():
    counts = torch.zeros(5)
    for number in range(2000):
        for name in limit_frames(exam(range(5), id=f"e{number}"), 2, seed=1).images:
            counts[int(name[0])] += 1
    assert (counts / 2000 - 0.4).abs().max() < 0.05


def test_max_frames_leaves_no_group_empty():
    talk = ["<image><image><image>左", "a", "<image>右", "b"]
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(talk)]
    both = Exam.from_record({"id": "x", "image": list("abcd"), "conversations": turns})
    for seed in range(20):
        assert [len(group) for group in limit_frames(both, 2, seed).groups] == [1, 1]
        assert [len(group) for group in limit_frames(both, 1, seed).groups] == [1, 1]
        assert [len(group) for group in limit_frames(both, 3, seed).groups] == [2, 1]


def test_damaged_picture(build, pictures, caplog):
    (pictures / "4.png").write_bytes((pictures / "4.png").read_bytes()[:-30])
    exams = [exam([1], id="a"), exam([3, 4], id="b"), exam([4], id="c"), exam([7], id="d")]
    with pytest.raises(BadSample, match=r"sample b: picture 2 of 2 cannot be decoded .*Export it again") as caught:
        build(exams)[1]
    assert "4.png" not in str(caught.value)
    data = build(exams, on_bad_sample="skip")
    assert [shades_of(data[index]) for index in (0, 1, 2, 3)] == [[1], [7], [7], [7]]
    assert data.replaced == {"b": "undecodable_picture", "c": "undecodable_picture"}
    assert "sample b: picture 2 of 2" in caplog.text and "replaced by the next sample (1 so far)" in caplog.text
    assert shades_of(build([exams[2], exams[0]], on_bad_sample="skip")[-2]) == [1]
    with pytest.raises(BadSample):
        build([exams[1], exams[2]], on_bad_sample="skip")[0]
    with pytest.raises(IndexError):
        data[4]


def test_a_sample_longer_than_the_model(build, tokenizers, caplog):
    tokenizer = pickle.loads(pickle.dumps(tokenizers["legacy"]))
    item = exam([1, 2, 3], answer="甲状腺右叶结节" * 4)
    whole = build([item])[0]
    # 16 tokens of one frame in the place of three pictures and the two line breaks between them (`▁` and `\n` each)
    tokenizer.model_max_length = len(whole["input_ids"]) - 7 + 16
    assert build([item], tokenizer=tokenizer)[0]["input_ids"].equal(whole["input_ids"])
    tokenizer.model_max_length -= 5
    caplog.clear()
    cut = build([item], tokenizer=tokenizer)[0]
    assert cut["input_ids"].equal(whole["input_ids"][:-5]) and cut["labels"].equal(whole["labels"][:-5])
    assert "sample x is longer than --model_max_length" in caplog.text
    tokenizer.model_max_length = 20
    with pytest.raises(BadSample, match=r"sample x: needs .* tokens, --model_max_length allows 20") as caught:
        build([item], tokenizer=tokenizer)[0]
    assert caught.value.reason == "too_long_images"


def test_unfit_samples_are_known_before_training(build, tokenizers, templates):
    tokenizer = pickle.loads(pickle.dumps(tokenizers["legacy"]))
    exams = [exam([1], id="short"), exam([1, 2], id="long", question="甲状腺" * 60), exam([], id="text")]
    lengths = [len(sample["input_ids"]) + 15 for sample in map(build(exams).__getitem__, (0, 1))]
    tokenizer.model_max_length = lengths[1] - 40
    assert lengths[0] < tokenizer.model_max_length
    faults = build(exams, tokenizer=tokenizer).unfit()
    assert [(fault.sample_id, fault.reason) for fault in faults] == [("long", "too_long_labels")]
    faults = build(exams, tokenizer=tokenizer, strategy="none").unfit()
    assert [fault.sample_id for fault in faults] == ["long"]
    faults = build(exams, template=templates["ultra_plain_zh"]).unfit()
    assert [(fault.sample_id, fault.reason) for fault in faults] == [("text", "plain_needs_caption")]


def test_templates_that_do_not_fit(build, templates, caplog):
    with pytest.raises(ValueError, match=r"--version v1_mmtag: templates that put <image> into tags"):
        build([exam([1])], template=templates["v1_mmtag"])
    build([exam([1])])
    assert caplog.text == ""
    build([exam([1])], template=templates["ultra_chatml_zh"])
    assert "splits the end marker <|im_end|> into several tokens" in caplog.text


def test_batch(build, tokenizers):
    exams = [
        exam([1, 2], exam_id="E", findings="低回声", answer="甲状腺右叶结节", valid_frames=[0]),
        exam([]),
        exam([3], findings="后方回声增强"),
    ]
    data = build(exams, frame_scores={"E": {"1.png": 0.5, "2.png": -0.5}})
    samples = [data[index] for index in range(3)]
    pad = tokenizers["legacy"].pad_token_id
    batch = ExamCollator(pad)(samples)
    assert set(batch) == BATCH_KEYS
    for row, sample in enumerate(samples):
        length = len(sample["input_ids"])
        assert batch["attention_mask"][row].tolist() == [True] * length + [False] * (
            batch["input_ids"].shape[1] - length
        )
        assert batch["input_ids"][row, :length].equal(sample["input_ids"])
        assert (batch["input_ids"][row, length:] == pad).all()
        assert batch["labels"][row, :length].equal(sample["labels"])
        assert (batch["labels"][row, length:] == IGNORE_INDEX).all()
        findings = sample["findings_ids"]
        assert batch["findings_ids"][row, : len(findings)].equal(findings)
        assert batch["findings_mask"][row].sum() == len(findings) and batch["findings_mask"][row, : len(findings)].all()
    assert shades_of(batch) == [1, 2, 0, 3] and batch["images"].dtype == torch.uint8
    assert batch["valid_frames"].tolist() == [True, False, False, False]
    assert batch["frame_scores"][:2].tolist() == [0.5, -0.5] and batch["frame_scores"][2:].isnan().all()
    assert batch["attention_mask"].dtype == batch["findings_mask"].dtype == torch.bool


def test_an_unknown_character_is_attended_to():
    """LLaVA pads with <unk> and masks by `!= pad`: an <unk> in the text would vanish."""
    row = {
        "input_ids": torch.tensor([1, 0, 5]),
        "labels": torch.tensor([-100, 0, 5]),
        "images": torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
        "findings_ids": torch.tensor([], dtype=torch.long),
        "frame_scores": torch.zeros(1),
        "valid_frames": torch.zeros(1, dtype=torch.bool),
    }
    batch = ExamCollator(0)([row])
    assert batch["attention_mask"].tolist() == [[True, True, True]]
    assert batch["findings_ids"].tolist() == [[0]] and batch["findings_mask"].tolist() == [[False]]


def test_data_loader_with_workers(build, pictures):
    data = build([exam([shade]) for shade in range(4)])
    batches = list(DataLoader(data, batch_size=2, num_workers=1, collate_fn=ExamCollator(0)))
    assert [shades_of(batch) for batch in batches] == [[0, 1], [2, 3]]
    (pictures / "3.png").write_bytes(b"?")
    with pytest.raises(RuntimeError, match=r"BadSample: sample x: picture 1 of 1 cannot be decoded"):
        list(DataLoader(data, batch_size=2, num_workers=1, collate_fn=ExamCollator(0)))
