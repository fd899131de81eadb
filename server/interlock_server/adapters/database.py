"""The database: SQLite by default, one file, in write-ahead-log mode with `synchronous=FULL`.

Rules of the file:
- What `writing` has left is on disk: answers and acknowledgements follow it.
- One writer at a time; it begins with the write lock (`BEGIN IMMEDIATE`), so that no transaction fails half-way because
  another one came between.
- The schema is brought up to date when the database is opened.
- Blocking calls run on aiosqlite's own threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from interlock_server.adapters.migrations.tables import metadata
from interlock_server.ports import Row

BUSY_MS = 10_000  # a backup that reads the file may hold the lock for a moment

OPERATORS = {"<": sa.Column.__lt__, ">": sa.Column.__gt__, "in": sa.Column.in_}


def _conditions(table: sa.Table, where: Mapping[str, Any]) -> list[Any]:
    found = []
    for name, value in where.items():
        column = table.c[name]
        if isinstance(value, tuple):
            found.append(OPERATORS[value[0]](column, value[1]))
        else:
            found.append(column.is_(None) if value is None else column == value)
    return found


class SqlRows:
    """One transaction on a connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, table: str, **where: Any) -> Row | None:
        rows = await self.list(table, limit=1, **where)
        return rows[0] if rows else None

    async def list(
        self, table: str, *, order: str = "", newest: bool = False, limit: int | None = None, **where: Any
    ) -> list[Row]:
        """Rows as dictionaries. `newest`: descending by `order`."""
        one = metadata.tables[table]
        query = sa.select(one).where(*_conditions(one, where)).limit(limit)
        if order:
            query = query.order_by(one.c[order].desc() if newest else one.c[order])
        return [dict(row) for row in (await self._connection.execute(query)).mappings()]

    async def insert(self, table: str, **values: Any) -> None:
        await self._connection.execute(sa.insert(metadata.tables[table]).values(**values))

    async def insert_new(self, table: str, **values: Any) -> bool:
        query = insert_or_ignore(metadata.tables[table]).values(**values).on_conflict_do_nothing()
        return bool((await self._connection.execute(query)).rowcount)

    async def remove(self, table: str, **where: Any) -> int:
        one = metadata.tables[table]
        query = sa.delete(one).where(*_conditions(one, where))
        return int((await self._connection.execute(query)).rowcount)

    async def change(self, table: str, where: Mapping[str, Any], **values: Any) -> int:
        one = metadata.tables[table]
        query = sa.update(one).where(*_conditions(one, where)).values(**values)
        return int((await self._connection.execute(query)).rowcount)

    async def count(self, table: str, by: str) -> dict[str, int]:
        column = metadata.tables[table].c[by]
        rows = await self._connection.execute(sa.select(column, sa.func.count()).group_by(column))
        return {str(value): int(number) for value, number in rows}


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: we say when, and how
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_MS}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _engine(path: Path, begin: str) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=1 if begin != "BEGIN" else 4, max_overflow=0)
    sa.event.listen(engine.sync_engine, "connect", _prepare)
    sa.event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def migrations_config() -> Config:
    """Alembic's settings; nothing is read from an `alembic.ini`."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _upgrade(connection: sa.Connection) -> None:
    config = migrations_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


class Database:
    """Open it with `open`; close it, or its threads stay."""

    def __init__(self, path: Path) -> None:
        self._readers = _engine(path, "BEGIN")
        self._writer = _engine(path, "BEGIN IMMEDIATE")
        self._writing = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path) -> Database:
        """The database in that file, made or brought up to date."""
        database = cls(path)
        async with database._writer.begin() as connection:
            await connection.run_sync(_upgrade)
        return database

    async def close(self) -> None:
        """Ends its threads; what was written is on disk already."""
        await self._readers.dispose()
        await self._writer.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[SqlRows]:
        """A consistent view."""
        async with self._readers.begin() as connection:
            yield SqlRows(connection)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[SqlRows]:
        """All or nothing; durable when it has been left without an error."""
        async with self._writing, self._writer.begin() as connection:
            yield SqlRows(connection)
