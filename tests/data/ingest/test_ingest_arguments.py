"""What cannot be done is said before anything is written: what was given, what is allowed, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingest_case import Hospital

from llava_ultra_ext.data.ingest.command import REPORTS, main


@pytest.mark.parametrize(
    ("more", "instead", "words"),
    [
        ((), {"secret": ""}, ("no secret", "name a file", "LLAVA_ULTRA_SECRET", "llava-ultra secret FILE")),
        ((), {"secret": "{folder}/none"}, ("none", "cannot be read", "Check its name")),
        ((), {"images": "ftp://user:word@pacs/x"}, ("--images ftp://…", "unknown kind", "https://", "dimse://TITLE@")),
        ((), {"images": "{folder}/none"}, ("--images", "none", "no such folder", "dimse://TITLE@host:port")),
        ((), {"images": "dimse://pacs:104"}, ("--images dimse://", "give dimse://TITLE@host:port")),
        (("--dates", "2024-02-01", "2024-01-31"), {}, ("--dates 2024-02-01 2024-01-31", "not be later", "Swap them")),
        (("--dates", "2024-02-30", "2024-03-31"), {}, ("--dates 2024-02-30 2024-03-31", "give two dates as")),
        ((), {"mapping": "{folder}/none.yaml"}, ("--mapping", "none.yaml")),
        ((), {"spool": "{out}/spool"}, ("--spool", "out/spool", "lies in --out", "Give another folder")),
        ((), {"spool": "{out}"}, ("--spool", "lies in --out")),
        ((), {"frames_per_cine": "0"}, ("--frames-per-cine 0", "at least 1")),
        ((), {"workers": "0"}, ("--workers 0", "at least 1")),
        ((), {"ocr": "require"}, ("--ocr require", "pip install 'llava_ultra_ext[ocr]'")),
        ((), {"reports": ""}, ("--reports", "name a file or a database's URL", REPORTS)),
        ((), {"reports": "{folder}/none.csv"}, ("none.csv",)),
        ((), {"reports": "{folder}/other.csv"}, ("no column for", "检查号", "It has: a, b")),
        ((), {"sites": "{folder}/none.yaml"}, ("none.yaml",)),
        ((), {"out": "{folder}/images/out"}, ("--out", "lies in --images", "Give another")),
    ],
)
def test_a_flag_that_cannot_be(
    hospital: Hospital,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    instead: dict[str, str],
    words: tuple[str, ...],
) -> None:
    if instead.get("ocr"):
        monkeypatch.setattr("llava_ultra_ext.data.ingest.command.rapid_reader", lambda: None)
    for name in ("LLAVA_ULTRA_SECRET", REPORTS):
        monkeypatch.delenv(name, raising=False)
    hospital.save()
    (hospital.folder / "other.csv").write_text("a,b\n1,2\n")
    before = sorted(tmp_path.rglob("*"))
    places = {"folder": hospital.folder, "out": tmp_path / "out"}
    given = {name: value.format(**places) for name, value in instead.items()}
    with pytest.raises(ValueError) as caught:
        main(hospital.arguments(tmp_path / "out", *more, **given))
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "word" not in message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hospital_without_anything_gives_empty_lists(hospital: Hospital, tmp_path: Path) -> None:
    found = hospital.ingest(tmp_path / "out")
    assert found.exams == {} and found.lines("unmatched") == [] and found.card["folder"] == {}
    assert found.card["reports"] == {"rows": 0, "usable": 0, "refused": {}}
