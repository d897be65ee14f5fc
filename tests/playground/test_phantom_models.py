"""The small foundation models: masks follow the anatomy, texts are cut as CLIP reads them, training learns."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import CLIPModel, LlamaTokenizer, SamModel

import make
import pretraining_frames
import reading
import tiny_models
import train_clip
import train_sam
from llava_ultra_ext.data.sources.phantom.cases import PhantomSettings, draw_case
from llava_ultra_ext.data.sources.phantom.probe import probe_of


def cyst_case():
    settings = PhantomSettings(size=128, normal=0.0, two_lesions=0.0, sites=("breast",))
    cases = (draw_case(f"C-{seed}", seed, settings) for seed in range(200))
    return next(case for case in cases if case.lesions[0].kind == "cyst")


def test_a_cyst_is_a_mask_of_emptiness_where_it_lies():
    case = cyst_case()
    frame = case.valid_frames(0.5)[0]
    masks = pretraining_frames.masks_of(case, frame, 128)
    assert masks.shape == (len(pretraining_frames.KINDS), 128, 128)
    points = probe_of("breast", 128).points
    lesion = case.lesions[0]
    distance = np.hypot(points.x - lesion.centre[0], points.y - lesion.centre[1])
    ring = (distance < 0.5 * min(lesion.radii[:2])).astype(np.float32)
    inside = (probe_of("breast", 128).scan @ ring.ravel()).reshape(128, 128) > 0.9
    shown = dict(zip(pretraining_frames.KINDS, masks, strict=True))
    assert inside.sum() > 20 and shown["empty"][inside].mean() > 0.95 and shown["object"][inside].mean() > 0.95
    for kind in ("outline", "dark", "bright", "reflecting"):
        assert shown[kind][inside].mean() < 0.05, kind
    edge = pretraining_frames.OUTLINE_PX
    around = shown["object"][edge:] & ~shown["object"][:-edge]  # the upper rim
    assert around.sum() > 10 and shown["outline"][edge:][around].all()


def test_a_vessel_that_no_report_names_is_an_object_too():
    settings = PhantomSettings(size=128, normal=1.0, distractor_exams=1.0, sites=("liver",))
    found = []
    for seed in range(40):
        case = draw_case(f"V-{seed}", seed, settings)
        for place, plan in enumerate(case.frames):
            objects = pretraining_frames.masks_of(case, place, 128)[0]
            assert objects.any() == ("vessel" in plan.distractors)
            found.append(objects.any())
        if sum(found) > 5 and not all(found):
            return
    raise AssertionError("the seeds draw too few vessels")


def test_keywords_tell_every_word_of_an_exam_in_a_few_places():
    own, background = list(range(10, 24)), [1, 2]
    for seed in range(50):
        places = reading.keywords(own, background, 36, random.Random(seed))
        told = [words for words in places if set(words) & set(own)]
        assert len(places) == 36 and 4 <= len(told) <= 18  # 0.12 to 0.5 of 36
        assert all(set(words) <= set(own) for words in told) and max(map(len, places)) <= 4
        counts = Counter(word for words in told for word in words)
        if sum(counts.values()) >= len(own):
            assert set(counts) == set(own) and max(counts.values()) - min(counts.values()) <= 1


def test_words_of_a_lesion_are_those_that_a_normal_caption_does_not_have(tiny_llama):
    tokenizer = LlamaTokenizer.from_pretrained(tiny_llama, legacy=True)
    shown = [("甲状腺低回声结节。", "甲状腺未见病灶。"), ("肝脏未见病灶。", "肝脏未见病灶。")]
    own, background = reading._words([[], []], shown, tokenizer)
    assert tokenizer.decode(own[0]).startswith("低回声") and "甲状腺" not in tokenizer.decode(own[0])
    assert own[1] == background[1] and tokenizer.decode(background[0]).strip() == "甲状腺未见病灶。"


def test_windows_end_with_the_last_word_and_start_anywhere():
    config = SimpleNamespace(max_position_embeddings=4, eos_token_id=99)
    generator = np.random.default_rng(0)
    rows = {tuple(train_clip.windows([[1, 2, 3, 4, 5]], config, generator)[0].tolist()) for _ in range(50)}
    assert rows == {(1, 2, 3, 99), (2, 3, 4, 99), (3, 4, 5, 99)}
    assert train_clip.windows([[7]], config, generator).tolist() == [[7, 99, 99, 99]]


def test_clip_learns_which_text_belongs_to_which_frame(tmp_path, tiny_llama):
    tokenizer = LlamaTokenizer.from_pretrained(tiny_llama, legacy=True)
    folder = tiny_models.make_clip(tmp_path / "clip", words=len(tokenizer) + 1, positions=8)
    shades = np.linspace(0, 255, 8).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (8, 32, 32, 3)).copy()
    frames[::2, 16:] = 255 - frames[::2, 16:]
    texts = ["甲状腺", "肝脏", "囊肿", "结节", "血流", "是的", "右叶", "边界"]
    found = train_clip.train_clip(folder, (frames, texts), tokenizer, steps=60, batch=8)
    assert found > 0.7  # by chance 0.125
    assert CLIPModel.from_pretrained(folder).config.text_config.vocab_size == len(tokenizer) + 1


def test_sam_learns_masks_and_keeps_its_format(tmp_path):
    folder = tiny_models.make_sam(tmp_path / "sam", image_size=64, window=2, out_channels=16)
    generator = np.random.default_rng(0)
    frames = np.zeros((16, 64, 64, 3), np.uint8)
    masks = np.zeros((16, 1, 64, 64), bool)
    for number in range(16):
        x, y = generator.integers(0, 44, 2)
        masks[number, 0, y : y + 20, x : x + 20] = True
        frames[number][masks[number, 0]] = 220
    before = train_sam.train_sam(folder, (frames, masks), steps=1)["0"]
    after = train_sam.train_sam(folder, (frames, masks), steps=150)["0"]
    assert before < 0.3 and after > 0.5
    assert SamModel.from_pretrained(folder).vision_encoder.config.image_size == 64


def test_a_folder_of_other_settings_is_refused(tmp_path):
    (tmp_path / "made.json").write_text('{"settings": {"exams": 5}, "models": {}}')
    assert make._made(tmp_path, {"exams": 5})["models"] == {}
    with pytest.raises(SystemExit, match=r"other settings \{'exams': \(5, 6\)\}. Give another --out"):
        make._made(tmp_path, {"exams": 6})
