"""Frames of an exam from a feature cache: in order, by what the files hold now, and all of them or an error."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from llava_ultra_ext.data.cached_frames import NotCached, check_all_cached, open_cache, picture_keys, read_frames
from llava_ultra_ext.vision.feature_cache import HEADER, CacheHeader, FeatureCache, ShardWriter, picture_key
from llava_ultra_ext.vision.tower import FusedVisionTower

NAMES = [f"{number}.png" for number in range(6)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(f"picture {number}".encode())
    return folder


@pytest.fixture
def cache(images: Path, tmp_path: Path) -> FeatureCache:
    """Of all pictures but the last; picture n has a record of n's."""
    folder = tmp_path / "features"
    folder.mkdir()
    (folder / HEADER).write_text(CacheHeader({"clip": {}}, {"clip": (2, 3)}, "float16", "float32").as_json())
    with ShardWriter(folder, shard_bytes=1) as writer:
        for number, name in enumerate(NAMES[:-1]):
            writer.add([picture_key(images / name)], torch.full((1, 6), float(number), dtype=torch.float16))
    return FeatureCache(folder)


def test_records_come_in_the_exams_order(cache: FeatureCache, images: Path) -> None:
    found = read_frames(cache, "sample 1", ["3.png", "0.png", "3.png"], str(images))
    assert found.dtype == torch.float16 and found.tolist() == [[3.0] * 6, [0.0] * 6, [3.0] * 6]


def test_a_text_only_sample_has_one_record_of_zeros(cache: FeatureCache, images: Path) -> None:
    found = read_frames(cache, "sample 1", [], str(images))
    assert found.dtype == torch.float16 and found.tolist() == [[0.0] * 6]


def test_a_picture_that_is_not_in_it_is_named_by_its_place(cache: FeatureCache, images: Path) -> None:
    added = r"sample US-1: picture 2 of 3 is not in .*features, it was added or changed after the cache was built"
    with pytest.raises(NotCached, match=added) as error:
        read_frames(cache, "sample US-1", ["0.png", "5.png", "1.png"], str(images))
    assert "5.png" not in str(error.value), "a file name may be a patient's"
    (images / "1.png").unlink()
    with pytest.raises(NotCached, match=r"question 7: picture 1 of 1 is not in .*, it cannot be read"):
        read_frames(cache, "question 7", ["1.png"], str(images))


def test_two_pictures_that_changed_places_change_their_features(cache: FeatureCache, images: Path) -> None:
    one, two = (images / "1.png").read_bytes(), (images / "2.png").read_bytes()
    (images / "1.png").write_bytes(two)
    (images / "2.png").write_bytes(one)
    assert read_frames(cache, "", ["1.png", "2.png"], str(images))[:, 0].tolist() == [2, 1]


def test_a_run_is_refused_that_lacks_a_picture(
    cache: FeatureCache, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_all_cached(cache, NAMES[:-1], str(images))
    (images / "0.png").unlink()
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match=r"features: 2 of 6 pictures are not in it"):
        check_all_cached(cache, [*NAMES, *NAMES], str(images))


def test_ranks_look_at_their_shares(cache: FeatureCache, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is looked at by one: the missing last one by rank 1 of 2."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    check_all_cached(cache, NAMES, str(images))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="1 of 3 pictures are not in it"):
        check_all_cached(cache, NAMES, str(images))


@pytest.mark.parametrize("workers", [1, 4])
def test_keys_in_order_and_none_for_what_cannot_be_read(images: Path, workers: int) -> None:
    paths = [str(images / name) for name in [*NAMES, "nowhere.png"]]
    assert list(picture_keys(paths, workers)) == [*(picture_key(path) for path in paths[:-1]), None]


def test_a_cache_is_opened_for_the_encoders_that_made_it(tiny_clip: Path, tiny_dinov2: Path, tmp_path: Path) -> None:
    tower = FusedVisionTower({"clip": str(tiny_clip)}, name="")
    (tmp_path / HEADER).write_text(CacheHeader(tower.identity(), tower.feature_shapes, "int8", "float32").as_json())
    assert open_cache(None, tower) is None
    found = open_cache(str(tmp_path), tower)
    assert found is not None and len(found) == 0
    other = FusedVisionTower({"clip": str(tiny_clip), "dinov2": str(tiny_dinov2)}, name="")
    with pytest.raises(
        ValueError, match=r"holds features of other encoders or settings \(.*dinov2: not in the cache\)"
    ):
        open_cache(str(tmp_path), other)
    assert not tower.is_loaded and not other.is_loaded
