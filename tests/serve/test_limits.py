"""What a request may hold: refused by its code, and before a picture is decoded."""

from __future__ import annotations

import base64
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from llava_ultra_ext.serve.errors import CODES, ServeError
from llava_ultra_ext.serve.limits import Limits, check_picture, check_request, decode

LIMITS = Limits()
SMALL = replace(LIMITS, frames=3, picture_pixels=1000, picture_bytes=3000, request_pixels=1500, request_bytes=5000)


def picture(kind: str = "PNG", size: tuple[int, int] = (20, 10), mode: str = "L", **options: Any) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0]), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A whole PNG file of these pixels, a few dozen bytes long; its data ends at once."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def webp_header(width: int, height: int) -> bytes:
    """A small WebP file whose header says that it has these pixels."""
    data = bytearray(picture("WEBP", lossless=True))
    start = data.index(b"VP8L") + 9  # behind the chunk's name, its length and a signature
    sides = width - 1 | height - 1 << 14 | int.from_bytes(data[start : start + 4], "little") >> 28 << 28
    data[start : start + 4] = sides.to_bytes(4, "little")
    return bytes(data)


def gif_header(width: int, height: int) -> bytes:
    frame = b"\x2c" + struct.pack("<HHHH", 0, 0, width, height) + b"\0\x02\0;"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\xf0\0\0" + bytes(6) + frame


def request(*pictures: bytes, **changes: Any) -> dict[str, Any]:
    images = [base64.b64encode(data).decode() for data in pictures]
    return {"prompt": "<image>\n" * len(images) + "请描述。", "images": images, **changes}


def code_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ServeError) as caught:
        call()
    assert caught.value.status == CODES[caught.value.code]
    assert str(caught.value).endswith(".")
    return caught.value.code


class TestPicture:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
    def test_the_usual_formats_come_out_decoded(self, kind: str) -> None:
        found = check_picture(picture(kind), LIMITS)
        assert found.size == (20, 10)
        if kind in ("PNG", "BMP", "TIFF"):
            assert np.array_equal(np.asarray(found), np.asarray(Image.open(io.BytesIO(picture()))))

    def test_an_animation_is_its_first_picture(self) -> None:
        first, second = Image.new("L", (8, 8), 10), Image.new("L", (8, 8), 200)
        file = io.BytesIO()
        first.save(file, "GIF", save_all=True, append_images=[second] * 200)
        found = check_picture(file.getvalue(), LIMITS)
        assert np.asarray(found.convert("L")).max() == 10

    @pytest.mark.parametrize(
        "data",
        [
            *(png_header(30_000, 30_000), png_header(4097, 4096), webp_header(16_383, 16_383)),
            *(gif_header(40_000, 40_000), gif_header(5000, 5000)),
        ],
        ids=["png", "png-just-above", "webp", "gif", "gif-5000"],
    )
    def test_a_bomb_is_refused_by_its_header(self, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
        tracemalloc.start()
        try:
            assert code_of(lambda: check_picture(data, LIMITS)) == "picture_too_large"
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()

    def test_the_message_has_both_sizes(self) -> None:
        with pytest.raises(ServeError, match=r"has 50 x 40 pixels, allowed are 1,000 pixels"):
            check_picture(picture(size=(50, 40)), SMALL)

    def test_a_picture_of_just_the_limit_is_read(self) -> None:
        assert check_picture(picture(size=(50, 20)), SMALL).size == (50, 20)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
    def test_a_cut_picture_is_a_bad_one(self, kind: str) -> None:
        data = picture(kind, (64, 64))
        assert code_of(lambda: check_picture(data[: len(data) * 2 // 3], LIMITS)) == "bad_picture"

    @pytest.mark.parametrize("data", [b"", b"not a picture", b"%PDF-1.4", b"<svg/>".ljust(200)])
    def test_no_picture(self, data: bytes) -> None:
        assert code_of(lambda: check_picture(data, LIMITS)) == "bad_picture"

    def test_a_format_that_is_not_listed(self) -> None:
        """Pillow would call Ghostscript for this one."""
        data = picture("EPS", mode="L")
        Image.open(io.BytesIO(data))
        assert code_of(lambda: check_picture(data, LIMITS)) == "bad_picture"

    def test_dicom_is_named(self) -> None:
        with pytest.raises(ServeError, match="is a DICOM file"):
            check_picture(bytes(128) + b"DICM" + bytes(100), LIMITS)

    def test_a_text_bomb_in_a_png(self) -> None:
        data = png_header(10, 10)
        text = b"note\0\0" + zlib.compress(bytes(50_000_000))
        chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
        assert code_of(lambda: check_picture(data[:33] + chunk + data[33:], LIMITS)) == "bad_picture"

    def test_too_many_bytes(self) -> None:
        assert code_of(lambda: check_picture(bytes(3001), SMALL)) == "request_too_large"

    def test_no_room_for_its_pixels_is_no_fault_of_the_picture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load(self: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(ImageFile.ImageFile, "load", load)
        with pytest.raises(MemoryError):
            check_picture(picture(), LIMITS)


class TestRequest:
    def test_what_is_allowed(self) -> None:
        settings = {"model": "m", "temperature": 0, "top_p": 0.7, "max_new_tokens": 8, "stop": "</s>", "heat": True}
        found = check_request(request(picture(), picture("JPEG"), **settings), LIMITS)
        assert [image.format for image in found] == ["PNG", "JPEG"]
        assert decode(found[0]).size == (20, 10)
        assert check_request({"prompt": "Text?", "images": None, "temperature": None}, LIMITS) == []

    def test_pictures_are_not_decoded_yet(self) -> None:
        cut = picture(size=(64, 64))[:2000]
        [found] = check_request(request(cut), LIMITS)
        assert code_of(lambda: decode(found)) == "bad_picture"

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"prompt": None}, "bad_request"),
            ({"prompt": 7}, "bad_request"),
            ({"prompt": " \n"}, "bad_request"),
            ({"prompt": "<image>\n\ud800"}, "bad_request"),
            ({"prompt": "<image>" + "字" * 32_768}, "context_too_long"),
            ({"prompt": "<image><image> two"}, "frames_mismatch"),
            ({"prompt": "none"}, "frames_mismatch"),
            ({"images": "iVBOR"}, "bad_request"),
            ({"images": [7]}, "bad_request"),
            ({"images": {}}, "bad_request"),
            ({"images": ["%%%%"]}, "bad_picture"),
            ({"images": ["iVBOR"]}, "bad_picture"),
            ({"images": ["图像"]}, "bad_picture"),
            ({"images": ["data:image/png;base64,iVBORw0KGgo="]}, "bad_picture"),
            ({"images": [""]}, "bad_picture"),
            ({"temperature": "0.2"}, "bad_request"),
            ({"temperature": -0.1}, "bad_request"),
            ({"temperature": float("nan")}, "bad_request"),
            ({"temperature": float("inf")}, "bad_request"),
            ({"temperature": True}, "bad_request"),
            ({"top_p": 1.5}, "bad_request"),
            ({"max_new_tokens": 0}, "bad_request"),
            ({"max_new_tokens": 2.5}, "bad_request"),
            ({"max_new_tokens": True}, "bad_request"),
            ({"stop": ["</s>"]}, "bad_request"),
            ({"model": 1}, "bad_request"),
            ({"heat": "yes"}, "bad_request"),
        ],
    )
    def test_what_is_not(self, changes: dict[str, Any], code: str) -> None:
        assert code_of(lambda: check_request(request(picture(), **changes), LIMITS)) == code

    @pytest.mark.parametrize("params", [[], None, "text", 7])
    def test_no_object(self, params: Any) -> None:
        assert code_of(lambda: check_request(params, LIMITS)) == "bad_request"

    def test_too_many_frames(self) -> None:
        check_request(request(*[picture()] * 3), SMALL)
        with pytest.raises(ServeError, match="4 frames were sent, 3 are allowed") as caught:
            check_request(request(*[b"never looked at"] * 4), SMALL)
        assert caught.value.code == "too_many_frames"

    def test_which_picture_is_wrong(self) -> None:
        with pytest.raises(ServeError, match=r"^Picture 2 is not a picture"):
            check_request(request(picture(), b"text"), LIMITS)

    def test_pixels_of_all_together(self) -> None:
        check_request(request(picture(size=(50, 15)), picture(size=(50, 15))), SMALL)
        with pytest.raises(ServeError, match="more than 1,500 pixels together") as caught:
            check_request(request(picture(size=(50, 15)), picture(size=(51, 15))), SMALL)
        assert caught.value.code == "picture_too_large"

    @pytest.mark.parametrize("sizes", [(3001,), (2000, 2000, 1001)])
    def test_bytes_are_counted_before_base64_is_read(
        self, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = request(*map(bytes, sizes))
        monkeypatch.setattr(base64, "b64decode", lambda *args, **kwargs: pytest.fail("it was read"))
        assert code_of(lambda: check_request(given, SMALL)) == "request_too_large"

    def test_no_message_quotes_the_request(self) -> None:
        secret = "张三"
        for changes in ({"images": [secret]}, {"stop": [secret]}, {"model": [secret]}, {"temperature": secret}):
            with pytest.raises(ServeError) as caught:
                check_request(request(picture(), **changes), LIMITS)
            assert secret not in str(caught.value)


class TestSettings:
    def test_variables_change_the_limits(self) -> None:
        found = Limits.from_environment({"ULTRA_SERVE_FRAMES": "12", "ULTRA_SERVE_PICTURE_PIXELS": " 99 "})
        assert found == replace(LIMITS, frames=12, picture_pixels=99)
        assert Limits.from_environment({"ULTRA_SERVE_FRAMES": ""}) == LIMITS

    @pytest.mark.parametrize("text", ["0", "-3", "many", "1.5", "²"])
    def test_a_wrong_number_is_named(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"ULTRA_SERVE_FRAMES is .*: give a whole number of 1 or more"):
            Limits.from_environment({"ULTRA_SERVE_FRAMES": text})


def test_an_unknown_code_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        ServeError("no_such_code", "text")
