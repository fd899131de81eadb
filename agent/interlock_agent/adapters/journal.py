"""The journal: one SQLite database, and the ledger beside it.

- `journal.db` (WAL, synchronous=FULL) holds units, every transition, the outbox, the quarantine, budgets and facts.
- `ledger.json` holds again what the seals of the slots cannot give back: spent tries, quarantine, floors. It is
  replaced *before* the database commits: a try that was counted twice is safe, one that was forgotten is not.
- A database that cannot be read is set aside as `journal.db.broken-N`, never reset silently: units are rebuilt from
  the seals by the caller, budgets and quarantine from the ledger, and `notes` says so. Its outbox gets a new epoch.
  So it is where the database is gone and the ledger is not.
- Facts that must never fall back are read from both, and the higher one holds: a database may be older (an image of
  the disk that was put back), or the power was cut between the two.
- All SQL runs on one thread of its own, so that a slow disk does not stop the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import json
import secrets
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from interlock_agent.core import ledger
from interlock_agent.core.records import Quarantined, Transition, from_document, to_document
from interlock_agent.ports import Stored
from interlock_shared import durable
from interlock_shared.documents import EVENT_SCHEMA
from interlock_shared.errors import Later, NoSpace

T = TypeVar("T")

SCHEMA = 1
HISTORY_MAX = 10_000  # transitions kept; the oldest go first
IN_LEDGER = tuple(ledger.FACTS)

_TABLES = """
CREATE TABLE IF NOT EXISTS unit (name TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS history (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, unit TEXT NOT NULL, generation INTEGER NOT NULL,
    before TEXT NOT NULL, event TEXT NOT NULL, after TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (number INTEGER PRIMARY KEY AUTOINCREMENT, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS quarantine (
    key TEXT NOT NULL, payload_sha256 TEXT NOT NULL, reason TEXT NOT NULL, version TEXT NOT NULL, at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (key TEXT PRIMARY KEY, count INTEGER NOT NULL);
"""


class SqliteJournal:
    """The Journal port on a folder of its own."""

    def __init__(self, folder: Path, device: str) -> None:
        self._path = folder / "journal.db"
        self._ledger_path = folder / "ledger.json"
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._db: sqlite3.Connection | None = None
        self._epoch = ""
        self._notes: list[str] = []

    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            db = self._db or self._open()
            try:
                return work(db)
            except (sqlite3.OperationalError, OSError) as error:
                db.rollback()
                if "full" in str(error) or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
                    raise NoSpace(f"journal: {error}") from None
                raise Later(f"journal: {error}", code="io") from None
            except BaseException:
                db.rollback()
                raise

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def close(self) -> None:
        """Close the database."""

        def run() -> None:
            if self._db is not None:
                self._db.close()
                self._db = None

        await asyncio.get_running_loop().run_in_executor(self._thread, run)
        self._thread.shutdown()

    # --- opening ------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        gone = not self._path.exists() and self._ledger_path.exists()
        try:
            db = self._connect()
            if gone:
                self._notes.append("state_lost: the journal is gone; tries, quarantine and floors are the ledger's")
                self._refill(db)
            self._raise_facts(db)
        except sqlite3.DatabaseError as broken:
            aside = self._set_aside()
            self._notes.append(f"state_lost: the journal could not be read ({broken}); it is kept as {aside}")
            db = self._connect()
            self._refill(db)
        self._db = db
        self._epoch = self._fact(db, "outbox_epoch") or ""
        if not self._epoch:
            self._epoch = secrets.token_hex(8)
            db.execute("INSERT INTO fact VALUES ('outbox_epoch', ?)", (json.dumps(self._epoch),))
            db.commit()
        return db

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check failed")
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version > SCHEMA:
                raise sqlite3.DatabaseError(f"schema {version} is newer than this agent's {SCHEMA}")
            db.executescript(_TABLES)
            db.execute(f"PRAGMA user_version={SCHEMA}")
            for (document,) in db.execute("SELECT document FROM unit"):
                from_document(json.loads(document))
            db.commit()
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as bad:
            db.close()
            raise sqlite3.DatabaseError(str(bad)) from bad
        return db

    def _set_aside(self) -> str:
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.broken-{number}")).exists():
            number += 1
        durable.rename_folder(self._path, aside)
        for suffix in ("-wal", "-shm"):
            beside = self._path.with_name(self._path.name + suffix)
            if beside.exists():
                durable.rename_folder(beside, aside.with_name(aside.name + suffix))
        return aside.name

    def _refill(self, db: sqlite3.Connection) -> None:
        found = self._read_ledger()
        db.executemany("INSERT OR REPLACE INTO spent VALUES (?, ?)", list(found.spent.items()))
        db.executemany(
            "INSERT INTO quarantine VALUES (?, ?, ?, ?, ?)",
            [(q.key, q.payload_sha256, q.reason, q.version, q.at) for q in found.quarantine],
        )
        facts = [(name, json.dumps(value)) for name, value in found.facts.items()]
        db.executemany("INSERT OR REPLACE INTO fact VALUES (?, ?)", facts)
        db.commit()

    def _raise_facts(self, db: sqlite3.Connection) -> None:
        for name, value in self._read_ledger().facts.items():
            known = self._fact(db, name)
            higher = value if known is None else ledger.higher(name, known, value)
            if higher != known:
                db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, json.dumps(higher)))
        db.commit()

    def _read_ledger(self) -> ledger.Ledger:
        try:
            return ledger.of_document(json.loads(self._ledger_path.read_bytes()))
        except FileNotFoundError:
            return ledger.EMPTY
        except (OSError, ValueError, RecursionError) as bad:
            aside = self._ledger_path.with_name(f"ledger.json.broken-{secrets.token_hex(2)}")
            durable.rename_folder(self._ledger_path, aside)
            self._notes.append(f"state_lost: the ledger could not be read ({bad}); it is kept as {aside.name}")
            return ledger.EMPTY

    def _write_ledger(
        self, db: sqlite3.Connection, facts: dict[str, Any], spend: str, quarantine: tuple[Quarantined, ...]
    ) -> None:
        spent = dict(db.execute("SELECT key, count FROM spent"))
        if spend:
            spent[spend] = spent.get(spend, 0) + 1
        entries = [asdict(entry) for entry in (*self._quarantine(db), *quarantine)]
        known = {name: self._fact(db, name) for name in IN_LEDGER} | facts
        document = {"schema": ledger.SCHEMA, "spent": spent, "quarantine": entries}
        document["facts"] = {name: value for name, value in known.items() if value is not None}
        durable.replace_file(self._ledger_path, json.dumps(document, sort_keys=True).encode())

    # --- reading ------------------------------------------------------------------------------------------------

    @staticmethod
    def _fact(db: sqlite3.Connection, name: str) -> Any:
        row = db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    @staticmethod
    def _quarantine(db: sqlite3.Connection) -> list[Quarantined]:
        return [
            Quarantined(*row) for row in db.execute("SELECT key, payload_sha256, reason, version, at FROM quarantine")
        ]

    async def load(self) -> Stored:
        """Everything, once, at the start."""

        def work(db: sqlite3.Connection) -> Stored:
            units = {
                name: from_document(json.loads(text)) for name, text in db.execute("SELECT name, document FROM unit")
            }
            meta = {name: json.loads(value) for name, value in db.execute("SELECT name, value FROM fact")}
            spent = dict(db.execute("SELECT key, count FROM spent"))
            return Stored(units, meta, self._quarantine(db), spent, list(self._notes))

        return await self._call(work)

    # --- writing ------------------------------------------------------------------------------------------------

    async def commit(self, transition: Transition) -> None:
        """Record, history, outbox, budget and quarantine of one transition, atomically."""

        def work(db: sqlite3.Connection) -> None:
            spend = ":".join(transition.spend) if transition.spend else ""
            if spend or transition.quarantine:
                self._write_ledger(db, {}, spend, transition.quarantine)
            record = transition.record
            db.execute("INSERT OR REPLACE INTO unit VALUES (?, ?)", (record.unit, json.dumps(to_document(record))))
            db.execute(
                "INSERT INTO history (at, unit, generation, before, event, after, reason, detail)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    transition.at,
                    record.unit,
                    record.generation,
                    transition.before,
                    transition.event,
                    record.phase,
                    record.reason,
                    json.dumps(transition.detail),
                ),
            )
            db.execute("DELETE FROM history WHERE id <= (SELECT MAX(id) FROM history) - ?", (HISTORY_MAX,))
            if spend:
                db.execute(
                    "INSERT INTO spent VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET count = count + 1", (spend,)
                )
            db.executemany(
                "INSERT INTO quarantine VALUES (?, ?, ?, ?, ?)",
                [(q.key, q.payload_sha256, q.reason, q.version, q.at) for q in transition.quarantine],
            )
            self._put_outbox(db, transition.outbox)
            db.commit()

        await self._call(work)

    @staticmethod
    def _put_outbox(db: sqlite3.Connection, entries: tuple[dict[str, Any], ...]) -> None:
        db.executemany("INSERT INTO outbox (document) VALUES (?)", [(json.dumps(entry),) for entry in entries])

    async def put_meta(self, values: dict[str, Any], outbox: tuple[dict[str, Any], ...] = ()) -> None:
        """Merge facts (None removes one), with events, atomically."""

        def work(db: sqlite3.Connection) -> None:
            if any(name in IN_LEDGER for name in values):
                self._write_ledger(db, {k: v for k, v in values.items() if k in IN_LEDGER}, "", ())
            for name, value in values.items():
                if value is None:
                    db.execute("DELETE FROM fact WHERE name = ?", (name,))
                else:
                    db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, json.dumps(value)))
            self._put_outbox(db, outbox)
            db.commit()

        await self._call(work)

    async def forgive(self, payload_sha256: str) -> int:
        """Remove the quarantine entries and budgets of a payload; how many entries there were."""

        def work(db: sqlite3.Connection) -> int:
            count = db.execute("DELETE FROM quarantine WHERE payload_sha256 = ?", (payload_sha256,)).rowcount
            db.execute("DELETE FROM spent WHERE key LIKE ?", (f"%:{payload_sha256}:%",))
            db.commit()
            self._write_ledger(db, {}, "", ())
            return count

        return await self._call(work)

    # --- outbox -------------------------------------------------------------------------------------------------

    async def pending(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Outbox entries above `after`, oldest first: complete events."""

        def work(db: sqlite3.Connection) -> list[dict[str, Any]]:
            rows = db.execute(
                "SELECT number, document FROM outbox WHERE number > ? ORDER BY number LIMIT ?", (after, limit)
            )
            head = {"schema": EVENT_SCHEMA, "device": self._device, "epoch": self._epoch}
            return [{**head, "number": number, **json.loads(document)} for number, document in rows]

        return await self._call(work)

    async def acknowledge(self, epoch: str, upto: int) -> None:
        """Forget entries up to and including `upto`; another epoch is ignored."""

        def work(db: sqlite3.Connection) -> None:
            if epoch == self._epoch:
                db.execute("DELETE FROM outbox WHERE number <= ?", (upto,))
                db.commit()

        await self._call(work)

    async def outbox(self) -> tuple[str, int, int]:
        """(epoch, lowest number still held or next, next number)."""

        def work(db: sqlite3.Connection) -> tuple[str, int, int]:
            row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
            following = (int(row[0]) if row else 0) + 1
            lowest = db.execute("SELECT MIN(number) FROM outbox").fetchone()[0]
            return self._epoch, int(lowest) if lowest is not None else following, following

        return await self._call(work)

    async def history(self, unit: str | None, limit: int) -> list[dict[str, Any]]:
        """Transitions, newest first."""

        def work(db: sqlite3.Connection) -> list[dict[str, Any]]:
            rows = db.execute(
                "SELECT at, unit, generation, before, event, after, reason, detail FROM history"
                " WHERE ?1 IS NULL OR unit = ?1 ORDER BY id DESC LIMIT ?2",
                (unit, limit),
            )
            names = ("at", "unit", "generation", "before", "event", "after", "reason")
            return [{**dict(zip(names, row[:7], strict=True)), "detail": json.loads(row[7])} for row in rows]

        return await self._call(work)
