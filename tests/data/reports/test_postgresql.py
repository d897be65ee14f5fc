"""Reports from a real PostgreSQL: a table in a schema, a query, order, resumption, a server that goes away."""

from __future__ import annotations

import pytest
from report_case import FINDINGS, mapping, read
from sqlalchemy import text

from llava_ultra_ext.data.reports import read_reports
from llava_ultra_ext.data.reports.sql import connect


@pytest.fixture(scope="module")
def filled(postgresql: str) -> str:
    engine = connect(postgresql)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA pacs"))
        connection.execute(
            text(
                'CREATE TABLE pacs."US" ("检查号" varchar(32), "超声所见" text, "超声提示" text, "修改时间" timestamp)'
            )
        )
        rows = [(f"{'aB_'[n % 3]}{n:04}", f"{FINDINGS}{n}", "", "2024-01-01") for n in range(600)]
        rows += [("aB1", "旧", "", "2024-01-01"), ("aB1 ", "新", "", "2024-01-02"), (None, "无号", "", None)]
        connection.execute(
            text('INSERT INTO pacs."US" VALUES (:a, :b, :c, cast(:d as timestamp))'),
            [dict(zip("abcd", row, strict=True)) for row in rows],
        )
    engine.dispose()
    return postgresql


def test_a_table_in_a_schema(filled: str) -> None:
    used, refused = read(filled, mapping(table="pacs.US"), batch=50)
    assert list(used) == sorted(used) and len(used) == 601
    assert used["aB1"].findings == "新" and used["aB1"].version == "2024-01-02T00:00:00"
    assert sorted(reason for _, reason in refused) == ["no_accession_number", "superseded"]


def test_a_query_goes_on_behind_a_number(filled: str) -> None:
    query = """SELECT "检查号", "超声所见", "超声提示", "修改时间" FROM pacs."US" WHERE "检查号" LIKE 'a%' AND
    '2024-01-01'::date < now()"""
    whole = list(read(filled, mapping(query=query))[0])
    assert list(read(filled, mapping(query=query), after=whole[99])[0]) == whole[100:]


def test_numbers_as_accession_numbers(filled: str) -> None:
    query = """SELECT n AS "检查号", '见结节。' AS "超声所见", null AS "超声提示", 1 AS "修改时间"
    FROM generate_series(8, 12) n"""
    assert list(read(filled, mapping(query=query))[0]) == ["10", "11", "12", "8", "9"]


def test_a_server_that_goes_away(filled: str) -> None:
    rows = read_reports(filled, mapping(query='SELECT *, pg_sleep(0.001) FROM pacs."US"'), batch=5)
    next(rows)
    engine = connect(filled)
    with engine.connect() as connection:
        others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = current_user"
        connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))
    engine.dispose()
    with pytest.raises(ValueError, match="the database broke off") as caught:
        list(rows)
    assert FINDINGS not in str(caught.value)
