"""The Journal port: the same tests on the fake and on the real one; then what only a real file can suffer."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.adapters.journal import SqliteJournal
from interlock_agent.core import ledger
from interlock_agent.core.records import Quarantined, Transition
from interlock_agent.core.states import Phase
from interlock_shared.errors import Later
from tests.agent.material import NEW, OTHER, UNIT, record, wish
from tests.fakes.journal import FakeJournal, Memory

AT = "2026-01-01T00:00:00Z"
DEVICE = "press-7"
KEY = ("try", f"{UNIT}:{OTHER}:w1")
FAILED = Quarantined(f"owner:{OTHER}", OTHER, "rolled_back", "1.0.0", AT)


def transition(phase: Phase = Phase.STAGED, **more: Any) -> Transition:
    unit = record(phase, wish())
    return Transition(unit, "fetching", "fetched", AT, **more)


def told(*kinds: str) -> tuple[dict[str, Any], ...]:
    return tuple({"kind": kind, "at": AT} for kind in kinds)


@dataclass
class Place:
    """A journal that can be closed and opened again."""

    make: Callable[[], Any]
    journal: Any = None

    async def opened(self) -> Any:
        if self.journal is not None:
            await self.journal.close()
        self.journal = self.make()
        return self.journal


@pytest.fixture(params=["fake", "real"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    memory = Memory()
    one = Place(
        (lambda: FakeJournal(memory, DEVICE)) if request.param == "fake" else lambda: SqliteJournal(tmp_path, DEVICE)
    )
    yield one
    await one.journal.close()


async def test_what_was_committed_is_there_after_a_restart(place: Place) -> None:
    journal = await place.opened()
    done = transition(outbox=told("staged"), spend=KEY, quarantine=(FAILED,), detail={"bytes": 7})
    await journal.commit(done)
    journal = await place.opened()
    stored = await journal.load()
    assert stored.units == {UNIT: done.record}
    assert stored.spent == {":".join(KEY): 1}
    assert stored.quarantine == [FAILED]
    assert stored.notes == []
    (row,) = await journal.history(UNIT, 10)
    assert (row["before"], row["event"], row["after"], row["detail"]) == ("fetching", "fetched", "staged", {"bytes": 7})
    assert [event["kind"] for event in await journal.pending(0, 10)] == ["staged"]


async def test_numbers_of_the_outbox_have_no_gaps(place: Place) -> None:
    journal = await place.opened()
    await journal.commit(transition(outbox=told("accepted", "staged")))
    await journal.put_meta({"a": 1}, told("refused"))
    epoch, low, following = await journal.outbox()
    assert (low, following) == (1, 4)
    events = await journal.pending(0, 10)
    assert [event["number"] for event in events] == [1, 2, 3]
    assert {(event["device"], event["epoch"]) for event in events} == {(DEVICE, epoch)}
    assert [event["number"] for event in await journal.pending(1, 1)] == [2]
    await journal.acknowledge("another-epoch", 3)
    assert (await journal.outbox())[1] == 1
    await journal.acknowledge(epoch, 2)
    assert (await journal.outbox())[1:] == (3, 4)
    await journal.acknowledge(epoch, 3)
    journal = await place.opened()
    assert await journal.outbox() == (epoch, 4, 4), "an empty outbox goes on where it was"
    await journal.put_meta({}, told("refused"))
    assert [event["number"] for event in await journal.pending(0, 10)] == [4]


async def test_a_commit_that_fails_has_changed_nothing_else(place: Place) -> None:
    journal = await place.opened()
    await journal.commit(transition(Phase.FETCHING, outbox=told("accepted")))
    with pytest.raises(TypeError):
        await journal.commit(transition(Phase.REJECTED, outbox=({"kind": object()},), detail={"x": 1}))
    journal = await place.opened()
    assert (await journal.load()).units[UNIT].phase == "fetching"
    assert len(await journal.history(None, 10)) == 1
    assert len(await journal.pending(0, 10)) == 1


async def test_spends_are_counted_and_forgiven(place: Place) -> None:
    journal = await place.opened()
    for _ in range(3):
        await journal.commit(transition(spend=KEY))
    await journal.commit(transition(quarantine=(FAILED,), spend=("interruption", KEY[1])))
    assert (await journal.load()).spent == {":".join(KEY): 3, f"interruption:{KEY[1]}": 1}
    assert await journal.forgive(NEW) == 0
    assert await journal.forgive(OTHER) == 1
    stored = await (await place.opened()).load()
    assert (stored.spent, stored.quarantine) == ({}, [])


async def test_facts_are_merged_and_removed(place: Place) -> None:
    journal = await place.opened()
    await journal.put_meta({"floors": {"root": 1}, "a": [1, 2], "b": "x"})
    await journal.put_meta({"a": None, "b": "y"})
    meta = (await (await place.opened()).load()).meta
    assert (meta["floors"], meta["b"]) == ({"root": 1}, "y")
    assert "a" not in meta


async def test_history_is_newest_first_and_of_one_unit(place: Place) -> None:
    journal = await place.opened()
    for phase in (Phase.ACCEPTED, Phase.FETCHING, Phase.STAGED):
        await journal.commit(transition(phase))
    assert [row["after"] for row in await journal.history(UNIT, 2)] == ["staged", "fetching"]
    assert await journal.history("another", 9) == []
    assert len(await journal.history(None, 9)) == 3


# --- the real file --------------------------------------------------------------------------------------------------


async def filled(folder: Path) -> None:
    journal = SqliteJournal(folder, DEVICE)
    await journal.put_meta({"floors": {"root": 3}, "director": {"epoch": 2}, "report": 9})
    for _ in range(2):
        await journal.commit(transition(spend=KEY, outbox=told("staged")))
    await journal.commit(transition(quarantine=(FAILED,)))
    await journal.close()


def _garble(path: Path) -> None:
    path.write_bytes(b"\xa5" * path.stat().st_size)


def _rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()


def _foreign_record(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE unit SET document = '{}'")
    db.close()


BROKEN: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "garbled": _garble,
    "rotten behind its first page": _rot,
    "of a newer agent": _newer,
    "records that are none": _foreign_record,
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_broken_database_is_set_aside_and_filled_from_the_ledger(tmp_path: Path, how: str) -> None:
    await filled(tmp_path)
    before = SqliteJournal(tmp_path, DEVICE)
    epoch = (await before.outbox())[0]
    await before.close()
    await asyncio.to_thread(BROKEN[how], tmp_path / "journal.db")
    journal = SqliteJournal(tmp_path, DEVICE)
    stored = await journal.load()
    assert (stored.units, stored.spent, stored.quarantine) == ({}, {":".join(KEY): 2}, [FAILED])
    assert (stored.meta["floors"], stored.meta["director"]) == ({"root": 3}, {"epoch": 2})
    assert len(stored.notes) == 1
    assert stored.notes[0].startswith("state_lost")
    assert (tmp_path / "journal.db.broken-1").exists()
    assert (await journal.outbox())[0] != epoch, "numbers begin again: the server must not take them for old ones"
    await journal.commit(transition(spend=KEY))
    assert (await journal.load()).spent == {":".join(KEY): 3}
    await journal.close()


async def test_a_broken_ledger_is_set_aside_too(tmp_path: Path) -> None:
    await filled(tmp_path)
    for name in ("journal.db", "ledger.json"):
        await asyncio.to_thread((tmp_path / name).write_bytes, b"\xa5" * 9000)
    journal = SqliteJournal(tmp_path, DEVICE)
    stored = await journal.load()
    assert (stored.spent, stored.quarantine, len(stored.notes)) == ({}, [], 2)
    assert [path.name for path in tmp_path.glob("ledger.json.broken-*")]
    await journal.close()


def _ledger(**other: Any) -> bytes:
    return json.dumps({"schema": "interlock.ledger/1", "spent": {}, "quarantine": [], "facts": {}} | other).encode()


FACTS: dict[str, tuple[Any, ...]] = {
    "floors": (7, None, [], {"root": "x"}, {"root": -1}, {"root_sha256": 4}, {"delegated": {"a": 1}}),
    "director": (7, {}, {"epoch": "x"}, {"epoch": 1, "keys": []}),
    "desired_at": (7, [1], ["a", "b"], {"epoch": 1}),
    "clock_floor": (7, "2026-01-01T00:00:00Z", [0, "soon"], [0]),
    "revoked": (7, [], {"detector": []}, {"detector": {"x": 1}}),
}
MISSHAPEN = {
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "nothing in it": b"{}",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "another schema": _ledger(schema="interlock.ledger/9"),
    "spent is a list": _ledger(spent=[1]),
    "spent is no number": _ledger(spent={"try:x": "2"}),
    "spent is larger than a database's number": _ledger(spent={"try:x": 2**80}),
    "quarantine is an object": _ledger(quarantine={"a": 1}),
    "an entry of the quarantine is none": _ledger(quarantine=[7]),
    "an entry with another field": _ledger(quarantine=[{**asdict(FAILED), "colour": "red"}]),
    "an entry without a field": _ledger(quarantine=[{"key": "x"}]),
    "facts are a list": _ledger(facts=[]),
    **{f"{name} is {value!r}": _ledger(facts={name: value}) for name, values in FACTS.items() for value in values},
}


@pytest.mark.parametrize("how", [how for how in MISSHAPEN if how not in ("null", "deep")])
def test_what_is_no_ledger_is_told_by_its_field(how: str) -> None:
    with pytest.raises(
        ValueError, match=r"^(no document|spent|quarantine|facts|floors|director|desired|clock|revoked)"
    ):
        ledger.of_document(json.loads(MISSHAPEN[how]))


@pytest.mark.parametrize("how", ["a list", "deep", "spent is a list", "floors is {'root': 'x'}"])
@pytest.mark.parametrize("lost", [False, True], ids=["journal", "no journal"])
async def test_a_ledger_of_another_shape_is_as_good_as_a_torn_one(tmp_path: Path, how: str, lost: bool) -> None:
    await filled(tmp_path)
    if lost:
        await asyncio.to_thread((tmp_path / "journal.db").unlink)
    await asyncio.to_thread((tmp_path / "ledger.json").write_bytes, MISSHAPEN[how])
    journal = SqliteJournal(tmp_path, DEVICE)
    stored = await journal.load()
    assert [note for note in stored.notes if "ledger" in note and "state_lost" in note]
    assert [path.name for path in tmp_path.glob("ledger.json.broken-*")]
    if not lost:
        assert (stored.meta["floors"], stored.meta["director"]) == ({"root": 3}, {"epoch": 2}), "they are the journal's"
    await journal.put_meta({"floors": {"root": 4}})
    await journal.close()
    again = SqliteJournal(tmp_path, DEVICE)
    assert (await again.load()).notes == [], "and the next one is whole"
    await again.close()


class Failing(sqlite3.Connection):
    """A database whose disk refuses the commit."""

    broken = True

    def commit(self) -> None:
        if Failing.broken:
            raise sqlite3.OperationalError("disk I/O error")
        super().commit()


async def test_a_try_is_counted_also_when_the_database_could_not_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = SqliteJournal(tmp_path, DEVICE)
    await journal.commit(transition(Phase.FETCHING))
    await journal.close()
    connect = sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "factory": Failing}))
        Failing.broken = False
        journal = SqliteJournal(tmp_path, DEVICE)
        await journal.load()
        Failing.broken = True
        with pytest.raises(Later):
            await journal.commit(transition(Phase.GATING, spend=KEY))
        Failing.broken = False
        assert (await journal.load()).units[UNIT].phase == "fetching"
        await journal.close()
    ledger = json.loads(await asyncio.to_thread((tmp_path / "ledger.json").read_bytes))
    assert ledger["spent"] == {":".join(KEY): 1}, "the ledger comes first"


async def test_a_journal_that_is_gone_or_older_is_lifted_to_the_floors_of_the_ledger(tmp_path: Path) -> None:
    async def opened() -> tuple[SqliteJournal, dict[str, Any], list[str]]:
        one = SqliteJournal(tmp_path, DEVICE)
        stored = await one.load()
        return one, stored.meta, stored.notes

    one, _, _ = await opened()
    old = {"floors": {"root": 1, "targets": 3}, "director": {"epoch": 1, "keys": {}}, "desired_at": [1, 7]}
    new = {"floors": {"root": 2, "targets": 1}, "director": {"epoch": 2, "keys": {}}, "desired_at": [2, 1]}
    await one.put_meta({**old, "clock_floor": [0, "2026-01-01T00:00:00.000000Z"]})
    await one.close()
    image = (tmp_path / "journal.db").read_bytes()
    one, _, _ = await opened()
    await one.put_meta({**new, "clock_floor": [0, "2026-02-01T00:00:00.000000Z"]})
    await one.commit(transition(spend=KEY))
    await one.close()
    for how in ("older", "gone"):
        if how == "older":
            (tmp_path / "journal.db").write_bytes(image)  # an image of the disk that was put back
        else:
            (tmp_path / "journal.db").unlink()
        one, meta, notes = await opened()
        assert {name: meta[name] for name in new} == new, how
        assert meta["clock_floor"][1].startswith("2026-02")
        assert bool(notes) is (how == "gone"), "and it is told"
        await one.close()
