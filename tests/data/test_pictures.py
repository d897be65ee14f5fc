"""Pictures that are whole, and every way in which they are not."""

from __future__ import annotations

import pytest
from PIL import Image

from llava_ultra_ext.data import pictures as module
from llava_ultra_ext.data.pictures import check_picture, check_pictures, inside_folder, open_picture


@pytest.fixture
def save(tmp_path):
    def make(name, **options):
        path = tmp_path / name
        Image.effect_noise((64, 48), 60).save(path, **options)
        return path

    return make


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.tif", "a.webp"])
def test_whole_pictures(save, name):
    path = save(name)
    assert check_picture(str(path)) is None
    assert open_picture(str(path)).size == (64, 48)


def test_bytes_behind_the_end_marker_are_no_fault(save):
    for name in ("a.png", "a.jpg"):
        for padding in (16, 5000):  # within the bytes looked at, and beyond them
            path = save(name)
            path.write_bytes(path.read_bytes() + b"\0" * padding)
            assert check_picture(str(path)) is None


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("cut", [2, 40, 1200])
def test_cut_off_pictures(save, name, cut):
    path = save(name)
    path.write_bytes(path.read_bytes()[:-cut])
    if name == "a.png" and cut == 2:
        return  # only a checksum is incomplete: IEND is there, and Pillow decodes every pixel
    assert check_picture(str(path)).reason == "truncated_picture"
    with pytest.raises(OSError, match="cannot be decoded"):
        open_picture(str(path))


def test_files_that_are_no_pictures(tmp_path):
    def reason(name, content):
        (tmp_path / name).write_bytes(content)
        return check_picture(str(tmp_path / name))

    assert reason("empty.png", b"").reason == "empty_picture"
    assert reason("text.png", b"hello").reason == "not_a_picture"
    dicom = reason("x.dcm", b"\0" * 128 + b"DICM" + b"\2\0")
    assert dicom.reason == "dicom_picture" and "Convert it to PNG" in dicom.message
    assert check_picture(str(tmp_path / "none.png")).reason == "missing_picture"
    assert check_picture(str(tmp_path)).reason == "missing_picture"


def test_messages_name_no_file(tmp_path):
    (tmp_path / "ZhangSan.png").write_bytes(b"?")
    assert "ZhangSan" not in check_picture(str(tmp_path / "ZhangSan.png")).message
    with pytest.raises(OSError) as caught:
        open_picture(str(tmp_path / "ZhangSan.png"))
    assert "ZhangSan" not in str(caught.value)


def test_many_pictures_show_progress(save, tmp_path, monkeypatch, capsys):
    paths = [str(save("a.png")), str(tmp_path / "none.png"), str(save("b.jpg"))]
    quiet = check_pictures(paths)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "PROGRESS_FROM", 2)
    assert check_pictures(paths) == quiet
    assert list(quiet) == paths and [fault and fault.reason for fault in quiet.values()] == [
        None,
        "missing_picture",
        None,
    ]
    assert "checking pictures" in capsys.readouterr().err


def test_inside_folder(tmp_path):
    folder = str(tmp_path / "images")
    assert inside_folder(folder, "a.png") and inside_folder(folder, "x/../a.png")
    assert inside_folder(folder, f"{folder}/a.png")
    for name in ("../a.png", "x/../../a.png", "/etc/hostname", "", ".", f"{folder}-other/a.png"):
        assert not inside_folder(folder, name)
