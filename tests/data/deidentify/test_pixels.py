"""Banners: blanked by the header's regions, by change, by brightness; what cannot be made safe is kept back."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from llava_ultra_ext.data.deidentify.pixel_text import Found, rapid_reader
from llava_ultra_ext.data.deidentify.pixels import clean_frames, find_region, region_boxes
from llava_ultra_ext.data.deidentify.quarantine import Quarantine
from llava_ultra_ext.data.dicom.colours import as_rgb, grey_of, stacked

HEIGHT, WIDTH = 240, 320
BANNER = (slice(4, 20), slice(10, 200))


def scan(frames=1, seed=0):
    """Speckle in a fan below a banner of text."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    radius, angle = np.hypot(rows - 10, columns - 160), np.arctan2(columns - 160, rows - 10)
    fan = (radius > 40) & (radius < 210) & (np.abs(angle) < 0.6)
    grey = np.where(fan, random.integers(30, 220, (frames, HEIGHT, WIDTH)), 0).astype(np.uint8)
    picture = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(picture).text((10, 4), "ZHANG WEI 13812345678", fill=255)
    assert np.asarray(picture)[BANNER].any()
    return np.repeat(np.maximum(grey, np.asarray(picture))[..., None], 3, axis=-1), fan


def with_regions(*boxes, spatial=1, **more):
    dataset = Dataset()
    dataset.SequenceOfUltrasoundRegions = Sequence([Dataset() for _ in boxes])
    for item, box in zip(dataset.SequenceOfUltrasoundRegions, boxes, strict=True):
        for name, value in zip(("MinX0", "MinY0", "MaxX1", "MaxY1"), box, strict=True):
            setattr(item, f"RegionLocation{name}", value)
        item.RegionSpatialFormat = spatial
    for name, value in more.items():
        setattr(dataset, name, value)
    return dataset


def test_outside_the_regions_is_black_and_inside_untouched():
    frames, _ = scan()
    before = frames.copy()
    result = clean_frames(frames, with_regions((40, 40, 280, 230)))
    assert result.rule == "regions" and result.box == (40, 40, 281, 231) and not result.checked
    assert not result.frames[:, BANNER[0], BANNER[1]].any() and (frames == before).all()
    assert (result.frames[:, 40:231, 40:281] == frames[:, 40:231, 40:281]).all()
    assert result.removed["pixels_blanked"] > 100 and result.removed["text_unchecked"] == 1


def test_regions_of_another_size_and_graphics_are_not_trusted():
    assert region_boxes(with_regions((84, 31, 595, 414)), HEIGHT, WIDTH) == []
    assert region_boxes(with_regions((10, 10, 90, 90), spatial=5), HEIGHT, WIDTH) == []
    assert region_boxes(with_regions((90, 10, 10, 90)), HEIGHT, WIDTH) == []
    assert region_boxes(Dataset(), HEIGHT, WIDTH) == []
    assert region_boxes(with_regions((0, 0, WIDTH, HEIGHT)), HEIGHT, WIDTH) == [(0, 0, WIDTH, HEIGHT)]


@pytest.mark.parametrize(("frames", "rule"), [(1, "bright"), (8, "change")])
def test_the_fan_is_found_in_the_pixels_and_the_banner_is_not(frames, rule):
    pixels, fan = scan(frames)
    result = clean_frames(pixels, Dataset())
    assert result.rule == rule and not result.frames[:, BANNER[0], BANNER[1]].any()
    kept = (result.frames != 0).any(axis=(0, -1))
    assert kept[fan].mean() > 0.93 and not kept[~fan].any()


def test_a_banner_on_a_ground_of_its_own_is_no_scan():
    pixels, fan = scan()
    pixels[:, :40][~fan[None, :40]] = np.maximum(pixels[:, :40], np.array([38, 62, 97], np.uint8))[~fan[None, :40]]
    result = clean_frames(pixels, Dataset())
    assert not result.frames[:, BANNER[0], BANNER[1]].any() and (result.frames != 0).any(axis=(0, -1))[fan].mean() > 0.9
    pixels[:, 40:] = 0
    with pytest.raises(Quarantine, match="no_scan_region"):
        clean_frames(pixels, Dataset())


def test_what_cannot_be_made_safe_is_kept_back():
    pixels, _ = scan()
    for frames, dataset, reason in (
        (np.zeros((1, 60, 80, 3), np.uint8), Dataset(), "no_scan_region"),
        (pixels[0], Dataset(), "pixels_unreadable"),
        (pixels.astype(np.uint16), Dataset(), "pixels_unreadable"),
        (pixels, with_regions(BurnedInAnnotation="YES"), "burned_in_unchecked"),
    ):
        with pytest.raises(Quarantine) as caught:
            clean_frames(frames, dataset)
        assert caught.value.reason == reason
    assert find_region(np.zeros((4, 60, 80, 3), np.uint8)) is None


@pytest.mark.parametrize("frames", [1, 8])
@pytest.mark.parametrize("dataset", [Dataset(), with_regions((40, 40, 200, 230), (150, 40, 280, 200))])
def test_grey_that_was_never_copied_gives_what_its_copy_gives(frames, dataset):
    pixels, _ = scan(frames)
    view = stacked(as_rgb(grey) for grey in pixels[..., 0])
    of_view, of_copy = clean_frames(view, dataset), clean_frames(pixels, dataset)
    assert grey_of(of_view.frames) is not None and grey_of(of_copy.frames) is None
    assert (of_view.frames == of_copy.frames).all() and of_view.frames.any()
    assert (of_view.box, of_view.rule, of_view.removed) == (of_copy.box, of_copy.rule, of_copy.removed)


def test_text_is_blanked_in_grey_that_was_never_copied_too():
    pixels, _ = scan(1)
    found = Found((100, 100, 160, 112), "ZHANG WEI")
    result = clean_frames(
        as_rgb(pixels[..., 0]),
        with_regions((40, 40, 280, 230)),
        ["Zhang^Wei"],
        lambda picture: [found] if picture[103, 100:160].any() else [],
    )
    assert result.removed["text_blanked"] == 1 and not result.frames[:, 100:112, 100:160].any()


def test_text_that_identifies_is_blanked_and_other_text_stays():
    frames, _ = scan(3)
    identifying, plain = Found((100, 100, 160, 112), "ZHANG WEI"), Found((100, 150, 160, 162), "LK 7.5MHz")

    def reader(picture):
        return [found for found in (identifying, plain) if picture[found.box[1] + 3, found.box[0] : found.box[2]].any()]

    result = clean_frames(frames, with_regions((40, 40, 280, 230)), ["Zhang^Wei"], reader)
    assert result.checked and result.removed["text_blanked"] == 1
    assert not result.frames[:, 100:112, 100:160].any() and result.frames[:, 150:162, 100:160].any()
    with pytest.raises(Quarantine, match="burned_in_text"):
        clean_frames(frames, with_regions((40, 40, 280, 230)), ["Zhang^Wei"], lambda picture: [identifying])


@pytest.mark.skipif(rapid_reader() is None, reason="needs llava_ultra_ext[ocr]")
def test_rapidocr_reads_a_banner():
    picture = Image.new("RGB", (WIDTH, 80))
    ImageDraw.Draw(picture).text((10, 20), "13812345678", fill="white", font_size=28)
    reader = rapid_reader()
    found = reader(np.asarray(picture))
    assert [line.text for line in found] == ["13812345678"] and found[0].box[0] < 14 and found[0].box[1] < 30
