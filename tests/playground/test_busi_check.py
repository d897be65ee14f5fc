"""BUSI as a check on real pictures: what the exams are made of. The trainings themselves are the ablation's."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from busi import check, exams, saliency, texts

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "busi"


def picture(path: Path, shade: int, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6), shade).save(path, **options)


def sides_of(folder: Path) -> dict[str, list[exams.Picture]]:
    found = exams.read_pictures(folder)
    return exams.split(found, exams.twins(folder, found), 0.4, 0)


def contents(folder: Path) -> dict[str, str]:
    """Content -> side."""
    return {one.content: name for name, side in sides_of(folder).items() for one in side}


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """12 benign, 6 malignant, 20 normal pictures; a mask, an equal pair, and a picture that stands in two classes."""
    for label, first, count in (("benign", 10, 12), ("malignant", 40, 6), ("normal", 60, 20)):
        for number in range(count):
            picture(tmp_path / label / f"{number}.png", first + number)
    picture(tmp_path / "benign" / "0_mask.png", 255)
    picture(tmp_path / "benign" / "again.png", 10, compress_level=0)  # other bytes, the pixels of 0.png
    picture(tmp_path / "normal" / "other.png", 40)  # the pixels of malignant/0.png
    return tmp_path


@pytest.fixture(scope="module")
def sides() -> dict[str, list[exams.Picture]]:
    if not REAL.is_dir():
        pytest.skip("real data not at hand: shared/data/busi")
    return sides_of(REAL)


def test_no_real_picture_stands_on_both_sides(sides: dict[str, list[exams.Picture]]) -> None:
    train, test = sides["train"], sides["test"]
    assert Counter(one.label for one in train + test) == {"benign": 292, "malignant": 140, "normal": 89}
    assert (len(train), len(test)) == (312, 209)
    assert not {one.content for one in train} & {one.content for one in test}
    twins = exams.twins(REAL, train + test)
    assert len(twins) == 99 and not any((one in train) != (other in train) for one, other in twins)
    used = [{one.name for exam in exams.make_exams(side, 4, 0) for one in exam.pictures} for side in (train, test)]
    assert not used[0] & used[1]


def test_a_real_exam_has_one_lesion_at_a_random_place(sides: dict[str, list[exams.Picture]]) -> None:
    made = exams.make_exams(sides["test"], 4, 0)
    lesion = [exam for exam in made if exam.label != "normal"]
    normal = [exam for exam in made if exam.label == "normal"]
    assert (len(lesion), len(normal)) == (172, 172)  # every held-out lesion picture once, and as many normal exams
    for exam in lesion:
        assert len({one.content for one in exam.pictures}) == 4
        assert exam.valid == tuple(place for place, one in enumerate(exam.pictures) if one.label != "normal")
        assert len(exam.valid) == 1 and exam.pictures[exam.valid[0]].label == exam.label
    assert all(one.label == "normal" for exam in normal for one in exam.pictures)
    places = Counter(exam.valid[0] for exam in lesion)
    assert places == {0: 43, 1: 43, 2: 43, 3: 43}  # any place that is always chosen is right by chance, 1/4
    runs = sum(one.valid != other.valid for one, other in pairwise(lesion))
    assert 110 < runs < 150  # at random 3/4 of 171, that is 128
    assert made == exams.make_exams(sides["test"], 4, 0) != exams.make_exams(sides["test"], 4, 1)


def test_equal_pictures_count_once_and_contradictions_not_at_all(made_up: Path) -> None:
    found = exams.read_pictures(made_up)
    assert Counter(one.label for one in found) == {"benign": 12, "malignant": 5, "normal": 20}
    names = {one.name for one in found}
    assert not names & {"benign/0_mask.png", "malignant/0.png", "normal/other.png"}
    assert len(names & {"benign/0.png", "benign/again.png"}) == 1


def test_the_content_decides_on_the_side(made_up: Path) -> None:
    before = contents(made_up)
    for path in sorted((made_up / "normal").iterdir()):
        path.rename(path.with_name(f"z{path.name}"))
    picture(made_up / "malignant" / "new.png", 200)
    after = contents(made_up)
    assert len(after) == len(before) + 1 and before.items() <= after.items()


def test_twins_stand_on_one_side(made_up: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        scene = rng.integers(0, 230, (32, 32))
        marked = scene.copy()
        marked[4:5, 4:9] = 255  # calipers
        for name, pixels in (("benign/scene", scene), ("benign/marked", marked)):
            Image.fromarray(pixels.astype(np.uint8)).resize((96, 96)).save(made_up / f"{name}{number}.png")
    found = exams.read_pictures(made_up)
    pairs = {frozenset((one.name, other.name)) for one, other in exams.twins(made_up, found)}
    assert pairs == {frozenset((f"benign/scene{number}.png", f"benign/marked{number}.png")) for number in range(20)}
    side = {one.name: name for name, pictures in sides_of(made_up).items() for one in pictures}
    assert all(side[f"benign/scene{number}.png"] == side[f"benign/marked{number}.png"] for number in range(20))
    assert {side[f"benign/scene{number}.png"] for number in range(20)} == {"train", "test"}


def test_too_few_normal_pictures_are_refused(made_up: Path) -> None:
    found = exams.read_pictures(made_up)
    with pytest.raises(ValueError, match=r"--k 21 with 17 lesion and 20 normal pictures.*Give a smaller --k"):
        exams.make_exams(found, 21, 0)
    with pytest.raises(ValueError, match="--k 1 with"):
        exams.make_exams(found, 1, 0)


def test_records_say_the_class_and_which_picture_shows_it(made_up: Path) -> None:
    made = exams.make_exams(exams.read_pictures(made_up), 4, 0)
    sick = next(exam for exam in made if exam.label == "malignant")
    keys = ("findings", "diagnosis", "lesion_seen")
    findings, diagnosis, seen = exams.records(sick, 0, keys)
    assert findings["valid_frames"] == list(sick.valid) and findings["image"] == [one.name for one in sick.pictures]
    assert findings["conversations"][1]["value"] == findings["findings"] == seen["findings"]
    assert "恶性" in findings["findings"] and "恶性" in diagnosis["conversations"][1]["value"]
    assert seen["conversations"][0]["value"].startswith("<image>\n" * 4) and "乳腺" in seen["conversations"][0]["value"]
    assert seen["conversations"][1]["value"] in ("是", "有") and seen["answer_type"] == "CLOSED"
    well = next(exam for exam in made if exam.label == "normal")
    (answer,) = exams.records(well, 0, ["lesion_seen"])
    assert answer["conversations"][1]["value"] in ("否", "没有") and answer["valid_frames"] == [0, 1, 2, 3]


def test_single_pictures_are_lesions_and_as_many_normal_ones(made_up: Path) -> None:
    pictures = [one for one in exams.read_pictures(made_up) if one.label != "normal" or one.name < "normal/13"]
    made = exams.single_pictures(pictures, 0)
    labels = Counter(sample["image"][0].split("/")[0] for sample in made)
    assert labels["normal"] == labels["benign"] + labels["malignant"] == 17
    assert len({sample["id"] for sample in made}) == 34
    for sample in made:
        assert sample["conversations"][0]["value"].count("<image>") == 1
        said = sample["conversations"][1]["value"]
        assert {"benign": "良性", "malignant": "恶性", "normal": "腺"}[sample["image"][0].split("/")[0]] in said


def test_texts_say_no_more_than_the_class() -> None:
    said = {label: {texts.findings(label, random.Random(n)) for n in range(300)} for label in exams.source.CLASSES}
    assert all(len(found) >= 9 for found in said.values()) and len(said["benign"]) > 100
    for label, word, other in (("benign", "良性", "恶性"), ("malignant", "恶性", "良性")):
        assert all(word in text and other not in text for text in said[label])
    everything = "".join(text for found in said.values() for text in found)
    assert not any(letter.isdigit() for letter in everything)
    assert not any(word in everything for word in ("回声结节", "回声肿块", "mm", "cm", "左", "右", "血流", "一枚"))
    for signs in (texts.MARGINS, texts.SHAPES, texts.CONCLUSIONS):
        assert not any(one in other or other in one for one in signs["benign"] for other in signs["malignant"])


def test_saliency_chooses_the_picture_unlike_the_others() -> None:
    group = [exams.Picture(f"{n}.png", "normal", str(n)) for n in range(3)]
    features = {"0.png": np.array([0.0, 1.0]), "1.png": np.array([5.0, 1.0]), "2.png": np.array([0.0, 1.5])}
    assert saliency.farthest(np.stack(list(features.values()))) == 1
    asked = [exams.Exam("a", "benign", tuple(group), (1,)), exams.Exam("b", "benign", tuple(group), (0,))]
    assert saliency.hits(asked, features) == [1.0, 0.0]


def test_interval_resamples_exams() -> None:
    assert check.interval(np.ones(50)) == {"mean": 100.0, "low": 100.0, "high": 100.0}
    found = check.interval(np.array([1.0] * 40 + [0.0] * 60))
    # Normal approximation: 1.96 * sqrt(.4 * .6 / 100) = 9.6.
    assert found["mean"] == 40.0 and abs(found["low"] - 30.4) < 1.5 and abs(found["high"] - 49.6) < 1.5


def test_a_missing_model_is_named_before_anything_is_written(made_up: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "models" / "clip").mkdir(parents=True)
    given = ["--busi", str(made_up), "--models", str(tmp_path / "models"), "--out", str(tmp_path / "out")]
    assert check.main(given) == 1
    assert "has no sam, llama, made.json. Make them: python playground/models/make.py" in capsys.readouterr().err
    assert check.main([*given, "--rows", "likelihood,best"]) == 1
    assert "no row best. Known: likelihood, first, swapped" in capsys.readouterr().err
    for name in ("sam", "llama"):
        (tmp_path / "models" / name).mkdir()
    (tmp_path / "models" / "made.json").write_text('{"settings": {}}')
    assert check.main([*given, "--k", "30"]) == 1
    assert "--k 30 with" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
