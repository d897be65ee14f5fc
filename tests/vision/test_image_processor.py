"""Any picture becomes a uint8 square that shows all of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import picture

from llava_ultra_ext.vision.image_processor import SquareImageProcessor, to_rgb

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILL = [122, 116, 104]  # int(mean * 255)


@pytest.fixture
def processor() -> SquareImageProcessor:
    return SquareImageProcessor(32, MEAN, STD)


def test_llavas_contract(processor):
    assert processor.crop_size == {"height": 32, "width": 32} and processor.size == {"shortest_edge": 32}
    assert (processor.image_mean, processor.image_std) == (list(MEAN), list(STD))
    one = processor.preprocess(picture(32, 32), return_tensors="pt")["pixel_values"]
    assert one.shape == (1, 3, 32, 32) and one.dtype == torch.uint8 and one[0].is_contiguous()
    assert torch.equal(processor(picture(32, 32), return_tensors="pt").pixel_values, one)
    assert processor([picture(9, 5), np.zeros((4, 4), np.uint8)])["pixel_values"].shape == (2, 3, 32, 32)
    assert processor(np.zeros((2, 8, 8, 3), np.uint8))["pixel_values"].shape == (2, 3, 32, 32)


def test_a_square_of_the_right_size_keeps_every_value(processor):
    image = picture(32, 32)
    got = processor(image)["pixel_values"][0]
    assert np.array_equal(got.permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize("size, box", [((64, 32), (0, 8, 32, 24)), ((32, 64), (8, 0, 24, 32))])
def test_padding_keeps_the_whole_picture_in_the_middle(processor, size, box):
    got = processor(Image.new("RGB", size, (200, 10, 60)))["pixel_values"][0].permute(1, 2, 0).numpy()
    left, top, right, bottom = box
    assert (got[top + 2 : bottom - 2, left + 2 : right - 2] == [200, 10, 60]).all()
    outside = np.ones((32, 32), bool)
    outside[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = False
    assert outside.sum() == 2 * 6 * 32 and (got[outside] == FILL).all()


def test_padding_equals_llavas(processor):
    mm_utils = pytest.importorskip("llava.mm_utils", reason="LLaVA is not installed")
    for size in ((50, 31), (31, 50), (7, 90)):
        padded = mm_utils.expand2square(picture(*size), tuple(FILL))
        want = np.asarray(padded.resize((32, 32), Image.Resampling.BICUBIC))
        got = processor(picture(*size))["pixel_values"][0].permute(1, 2, 0).numpy()
        assert np.array_equal(got, want)


def test_every_mode_shows_the_same_grey(processor):
    grey = Image.new("L", (32, 32), 120)
    for mode in ("RGB", "RGBA", "LA", "P", "CMYK", "YCbCr", "I", "F"):
        got = processor(grey.convert(mode))["pixel_values"].float()
        assert (got - 120).abs().max() <= 2, mode
    assert processor(Image.new("1", (32, 32), 1))["pixel_values"].min() == 255


def test_see_through_pixels_lie_on_black():
    image = Image.new("RGBA", (2, 1), (250, 100, 50, 255))
    image.putpixel((1, 0), (250, 100, 50, 0))
    assert np.asarray(to_rgb(image)).tolist() == [[[250, 100, 50], [0, 0, 0]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 200, 200])
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 1
    assert np.asarray(to_rgb(palette)).tolist() == [[[10, 20, 30], [0, 0, 0]]]


@pytest.mark.parametrize(
    "values, want",
    [
        (np.array([[0, 255]], np.uint16), [0, 255]),
        (np.array([[0, 2048, 4095]], np.uint16), [0, 128, 255]),  # 12 bits in 16
        (np.array([[0, 65535]], np.uint16), [0, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float64), [0, 128, 255]),
        (np.array([[0.0, 100.0]], np.float32), [0, 100]),
        (np.array([[False, True]]), [0, 255]),
    ],
)
def test_deep_greyscale(values, want):
    assert np.asarray(to_rgb(values))[0, :, 0].tolist() == want


def test_sixteen_bit_files(tmp_path, processor):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert image.mode.startswith("I")
        got = processor(image)["pixel_values"][0, 0].numpy()
    assert np.abs(got - ramp / 257).max() <= 0.5


def test_odd_sizes(processor):
    assert (processor(Image.new("L", (1, 1), 77))["pixel_values"] == 77).all()
    assert processor(Image.new("RGB", (1, 300)))["pixel_values"].shape == (1, 3, 32, 32)
    assert processor(np.full((5, 5, 1), 9, np.uint8))["pixel_values"].unique().tolist() == [9]


def test_what_is_no_picture_is_refused(processor):
    with pytest.raises(ValueError, match="return_tensors='np': this processor makes torch tensors only"):
        processor(picture(8, 8), return_tensors="np")
    with pytest.raises(ValueError, match="No pictures were given"):
        processor([])
    with pytest.raises(ValueError, match="type str was given; allowed are PIL pictures and numpy arrays"):
        processor(["a.png"])
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\) was given; allowed are"):
        processor(np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"values -1000 to 3 was given; .*Apply the window"):
        processor(np.array([[-1000, 3]], np.int16))
    with pytest.raises(ValueError, match="values nan to nan"):
        processor(np.array([[np.nan, 3]], np.float32))
