"""CSV, TSV and Excel exports: encodings, delimiters, quotes, broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_case import FINDINGS, HEADER, csv_file, mapping, read

ROWS = [("b", "见囊肿，\n大小约3mm。", "囊肿", ""), ("a", FINDINGS, "结节", "")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize(("name", "delimiter"), [("r.csv", ","), ("r.tsv", "\t"), ("r.txt", ";")])
def test_encodings_and_delimiters_are_found(tmp_path: Path, encoding: str, name: str, delimiter: str) -> None:
    used, refused = read(csv_file(tmp_path / name, ROWS, encoding, delimiter), mapping())
    assert list(used) == ["a", "b"] and refused == []
    assert used["b"].findings == "见囊肿，\n大小约3mm。"


def test_encoding_may_be_given_and_is_then_kept_to(tmp_path: Path) -> None:
    file = csv_file(tmp_path / "r.csv", ROWS, "gb18030")
    assert list(read(file, mapping(encoding="GB18030"))[0]) == ["a", "b"]
    with pytest.raises(ValueError, match="is not utf-8 behind line"):
        read(file, mapping(encoding="utf-8"))


def test_rows_that_do_not_fit_the_header_are_listed(tmp_path: Path) -> None:
    text = ",".join(HEADER) + "\na,见结节,大小,3mm,多\nb,见\n,,,\nc,见结节,,\n"
    (tmp_path / "r.csv").write_text(text, encoding="utf-8")
    used, refused = read(tmp_path / "r.csv", mapping())
    assert list(used) == ["c"]
    assert refused == [("line 2", "cell_count"), ("line 3", "cell_count"), ("line 4", "empty")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no header"),
        (b"a,b\n1,2\n", "has no column for accession_number: 检查号.*It has: a, b"),
        (b"\x81\x20\xff\xff\n", "neither UTF-8 nor GB18030"),
        ("检查号,超声所见,超声提示,修改时间,检查号\n".encode(), "has the column 检查号 2 times"),
        ('检查号,超声所见,超声提示,修改时间\na,见,,"\nb,见,,\n'.encode(), "a quote is not closed"),
        (("检查号,超声所见,超声提示,修改时间\na," + '"' + "字" * (1 << 21)).encode(), "a quote is not closed"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "r.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "r.csv", mapping())


def test_no_file_and_other_kinds(tmp_path: Path) -> None:
    for name, message in (("no.csv", "cannot be read"), ("r.doc", "no kind of file"), ("no.db", "does not exist")):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name, mapping(table="reports") if name == "no.db" else mapping())


def test_excel(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.append(["nothing"])
    sheet = book.create_sheet("报告")
    for row in (HEADER, (7.0, FINDINGS, None, None), (), ("b", "见囊肿。", "囊肿", "1"), (None, "见囊肿。")):
        sheet.append(row)
    book.save(tmp_path / "r.xlsx")
    used, refused = read(tmp_path / "r.xlsx", mapping(sheet="报告"))
    assert list(used) == ["7", "b"] and refused == [("row 3", "empty"), ("row 5", "no_accession_number")]
    with pytest.raises(ValueError, match=r"has no sheet x\. It has: Sheet, 报告"):
        read(tmp_path / "r.xlsx", mapping(sheet="x"))
    data = (tmp_path / "r.xlsx").read_bytes()
    for broken in (b"", b"PK", data[: len(data) // 2], data.replace(b"workbook", b"workbxxk")):
        (tmp_path / "broken.xlsx").write_bytes(broken)
        with pytest.raises(ValueError, match=r"broken\.xlsx: is"):
            read(tmp_path / "broken.xlsx", mapping())
