"""Files that are written whole, or not at all, and never in place of what they are made from."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llava_ultra_ext.data.whole_file import check_output, write_all_whole, write_whole


def fails_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full when a file of this name is written."""
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if name in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at("a.json", monkeypatch)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a\.json'"):
        write_whole(tmp_path / "a.json", "x")
    assert os.listdir(tmp_path) == []


def test_of_files_that_belong_together_all_change_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {tmp_path / name: name for name in ("a", "b", "c")}
    write_all_whole(dict.fromkeys(paths, "before"))
    with monkeypatch.context() as patch:
        fails_at(".b.", patch)
        with pytest.raises(OSError, match="/b'"):
            write_all_whole(paths)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys("abc", "before")
    write_all_whole(paths)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b", "c": "c"}


def test_an_output_that_is_an_input_is_refused_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g.jsonl").write_text("x")
    (tmp_path / "link.jsonl").symlink_to("g.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "g.jsonl")
    monkeypatch.chdir(tmp_path)
    inputs = {"--gold": [str(tmp_path / "g.jsonl")], "--pred": ["a.jsonl"]}
    for given in ("g.jsonl", "./x/../g.jsonl", "link.jsonl", "hard.jsonl"):
        with pytest.raises(ValueError, match=r"is the file that --gold reads\. Give another name"):
            check_output(given, "--json", inputs)
    with pytest.raises(ValueError, match="is the file that --pred reads"):
        check_output(tmp_path / "a.jsonl", "--json", inputs)
    with pytest.raises(ValueError, match=r"--json \.: is a folder"):
        check_output(".", "--json", inputs)
    check_output("new.json", "--json", inputs)
