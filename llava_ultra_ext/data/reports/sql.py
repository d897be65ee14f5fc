"""Cells of a database's rows, streamed in the order of their accession numbers.

The order is binary in every database (`BINARY_ORDER`): rows of one accession number stand together, and a run that was
stopped goes on behind the last one. The connection is read, never written to, and no statement, value or password
stands in an error.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from llava_ultra_ext.data.reports.mapping import ReportMapping
from llava_ultra_ext.data.reports.row import KEY, PLACE, decode

try:
    import sqlalchemy as sa
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
except ImportError:
    raise ImportError("reports need SQLAlchemy: pip install 'llava_ultra_ext[hospital]'") from None

BINARY_ORDER = {
    "postgresql": "C",
    "mysql": "utf8mb4_bin",
    "mariadb": "utf8mb4_bin",
    "oracle": "BINARY",
    "mssql": "Latin1_General_100_BIN2_UTF8",
    "sqlite": "BINARY",
}
"""Database -> its collation that orders texts by their code points, as Python does."""

_KEY_LENGTH = 255  # Oracle asks for one; longer accession numbers are refused by `make_row`, cut or not


def connect(url: str) -> sa.Engine:
    """An engine for any SQLAlchemy URL.

    Raises:
        ValueError: no URL, or of a database whose driver is not installed.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.drivername == "postgresql":  # SQLAlchemy's default driver is psycopg2, the extra brings psycopg 3
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = sa.create_engine(parsed, hide_parameters=True)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise ValueError(
            "the database's address is no URL that SQLAlchemy knows. "
            "Give sqlite:///reports.db, postgresql://user@host/db, mysql+pymysql://… or oracle+oracledb://…"
        ) from None
    except ImportError as error:
        raise ValueError(
            f"no driver for this database ({error.name} is not installed). "
            "PostgreSQL: pip install 'llava_ultra_ext[hospital]'; MySQL: pip install pymysql; "
            "Oracle: pip install oracledb"
        ) from None
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _read_gb18030)
    return engine


def _read_gb18030(connection: Any, _: Any) -> None:
    connection.text_factory = decode


class SqlReports:
    """The rows of a table, a view or a query.

    Args:
        engine: of the database.
        mapping: names columns, and table or query.
        batch: rows that are held at a time.

    Raises:
        ValueError: the database, the table or a column is not there.
    """

    def __init__(self, engine: sa.Engine, mapping: ReportMapping, batch: int = 1000) -> None:
        if not (mapping.table or mapping.query):
            raise ValueError("--mapping: a database needs `table` or `query`.")
        self.engine, self.mapping, self.batch = engine, mapping, batch
        with _plain_errors("cannot be reached, or refuses the table or query. Check address, rights and names"):
            self._check_table()
            present = self._columns()
        mapping.check_columns(present, "the table" if mapping.table else "the query")
        self._has_place = PLACE in present

    def rows(self, after: str = "") -> Generator[dict[str, Any], None, None]:
        """Cells by field, with `row.KEY` and `row.PLACE`, in the order of the keys; rows without any come first.

        Args:
            after: an accession number; only rows behind it are read, and those without any.

        Raises:
            ValueError: the database broke off, or does not order as it is asked to.
        """
        names = list(self.mapping.columns)
        last = ""
        with _plain_errors("broke off. Run again; it goes on where it stopped"), self.engine.connect() as connection:
            options = {"stream_results": True, "max_row_buffer": self.batch}
            answer = connection.execution_options(**options).execute(self.statement(after))
            for number, row in enumerate(answer.yield_per(self.batch), start=1):
                values = row._mapping
                key = values[KEY] or ""
                # SQLite orders bytes; those of GB18030, which it does not know, are in another order as texts.
                if key < last and self.engine.dialect.name != "sqlite":
                    raise ValueError(f"the database does not order texts binary (row {number}). Give `query` a copy.")
                last = key
                place = values[PLACE] if self._has_place else f"row {number}"
                yield {**{name: values[f"field_{name}"] for name in names}, KEY: key, PLACE: place}

    def statement(self, after: str = "") -> sa.Select[Any]:
        """The SELECT statement of `rows`."""
        source = self._source()
        columns = {name: source.c[column] for name, column in self.mapping.columns.items()}
        text = sa.func.trim(sa.cast(columns["accession_number"], sa.String(_KEY_LENGTH)))
        key = sa.collate(sa.func.coalesce(text, ""), BINARY_ORDER[self.engine.dialect.name])
        chosen = [column.label(f"field_{name}") for name, column in columns.items()]
        if self._has_place:
            chosen.append(source.c[PLACE].label(PLACE))
        found = sa.select(key.label(KEY), *chosen).order_by(key)
        return found.where(sa.or_(key > after, key == "", key.is_(None))) if after else found

    def _source(self) -> Any:
        names = list(dict.fromkeys([*self.mapping.columns.values(), *([PLACE] if self._has_place else [])]))
        columns: list[Any] = [sa.column(name) for name in names]
        if self.mapping.table:
            schema, _, table = self.mapping.table.rpartition(".")
            return sa.table(table, *columns, schema=schema or None)
        return sa.text(_escaped(self.mapping.query)).columns(*columns).subquery("reports")

    def _check_table(self) -> None:
        if self.engine.dialect.name not in BINARY_ORDER:
            known = ", ".join(BINARY_ORDER)
            raise ValueError(f"{self.engine.dialect.name} is a database that was not provided for. Known: {known}.")
        if not self.mapping.table:
            return
        schema, _, table = self.mapping.table.rpartition(".")
        found = sa.inspect(self.engine)
        present = [*found.get_table_names(schema or None), *found.get_view_names(schema or None)]
        if table not in present:
            raise ValueError(f"the database has no table {self.mapping.table}. It has: {', '.join(present) or 'none'}.")

    def _columns(self) -> list[str]:
        if self.mapping.table:
            schema, _, table = self.mapping.table.rpartition(".")
            return [column["name"] for column in sa.inspect(self.engine).get_columns(table, schema or None)]
        with self.engine.connect() as connection:
            statement = sa.text(f"SELECT * FROM ({_escaped(self.mapping.query)}) reports WHERE 1=0")
            return list(connection.execute(statement).keys())


def _escaped(query: str) -> str:
    """A query without its semicolon, whose colons SQLAlchemy takes for colons."""
    return query.strip().rstrip(";").replace(":", r"\:")


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """A driver's error without statement, values, host and user; its kind is enough to look it up."""
    try:
        yield
    except SQLAlchemyError as error:
        original = getattr(error, "orig", None)
        kind = type(original if original is not None else error).__name__
        code = getattr(original, "sqlstate", None)
        raise ValueError(f"the database {what} ({kind}{f', SQLSTATE {code}' if code else ''}).") from None
