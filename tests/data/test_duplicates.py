"""Equal pictures by their decoded pixels; missing and broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from import_case import picture
from PIL import Image

from llava_ultra_ext.data.duplicates import find_duplicates, look_at, near_duplicates
from llava_ultra_ext.data.sources.source import Item


def test_content_is_what_a_picture_shows(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 70)
    picture(tmp_path / "resaved.png", 70, compress_level=0)
    Image.new("RGBA", (8, 6), (70, 70, 70, 255)).save(tmp_path / "alpha.png")
    Image.new("L", (6, 8), 70).save(tmp_path / "turned.png")
    picture(tmp_path / "other.png", 71)
    found = look_at(tmp_path, ["a.png", "resaved.png", "alpha.png", "turned.png", "other.png"])
    assert found["a.png"] == found["resaved.png"] == found["alpha.png"]
    assert len({known.content for known in found.values()}) == 3


def test_16_bit_pictures_are_not_cut_off(tmp_path: Path) -> None:
    for name, shade in (("a.png", 1000), ("b.png", 2000)):
        Image.fromarray(np.full((6, 8), shade, np.uint16)).save(tmp_path / name)
    found = look_at(tmp_path, ["a.png", "b.png"])
    assert found["a.png"].content != found["b.png"].content


def test_faults(tmp_path: Path) -> None:
    Image.effect_noise((40, 30), 50).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:700])
    middle = bytearray(whole)
    middle[700] ^= 255
    (tmp_path / "damaged.png").write_bytes(middle)  # its end marker is in place
    found = look_at(tmp_path, ["cut.png", "damaged.png", "no.png", "../x.png", "whole.png"])
    reasons = {name: known.fault.reason if known.fault else "" for name, known in found.items()}
    assert reasons == {
        "cut.png": "truncated_picture", "damaged.png": "truncated_picture", "no.png": "missing_picture",
        "../x.png": "outside_folder", "whole.png": "",
    }  # fmt: skip


def test_equal_names_and_equal_contents(tmp_path: Path) -> None:
    for name, shade in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        picture(tmp_path / name, shade)
    items = [
        Item(1, "one", ("a.png",), "问", "答", "zh", "OPEN", split="train"),
        Item(2, "two", ("b.png", "c.png"), "问", "答", "zh", "OPEN", split="test"),
        Item(3, "three", ("c.png",), "问", "答", "zh", "OPEN", split="validate"),
    ]
    found = find_duplicates(items, {}, look_at(tmp_path, ["a.png", "b.png", "c.png"]))
    assert [(row["match"], row["splits"], row["studies"]) for row in found.rows] == [
        ("content", ["test", "train"], ["one", "two"]),
        ("name", ["test", "validate"], ["three", "two"]),
    ]
    assert (found.across_splits, found.conflicts) == (2, 0)


def test_near_duplicates_are_marked_by_the_first_of_them() -> None:
    pytest.importorskip("imagehash", reason="llava_ultra_ext[hospital] is not installed")
    import io

    def drawn(seed: int) -> Image.Image:
        shades = np.random.default_rng(seed).integers(0, 256, (6, 8), np.uint8)
        return Image.fromarray(shades).resize((320, 240), Image.Resampling.BICUBIC)

    def again(picture: Image.Image, quality: int) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    one, two = drawn(1), drawn(2)
    assert near_duplicates([one, again(one, 40), two, again(two, 30), one.resize((160, 120)), drawn(3)]) == [
        None, 0, None, 2, 0, None,
    ]  # fmt: skip
    assert near_duplicates([]) == []
