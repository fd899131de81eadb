"""What fetchers believed is journaled: whichever ends first, whoever stops waiting, and in another fleet anew."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from interlock_agent import anchor
from interlock_agent.__main__ import Agent
from interlock_agent.adapters.clock import SystemClock
from interlock_agent.adapters.journal import SqliteJournal
from interlock_agent.config import Config
from interlock_agent.core import time_floor
from interlock_agent.ports import Stored
from interlock_agent.steps.base import Shared
from interlock_shared.errors import NoSpace


def trust(timestamp: int, epoch: int) -> dict[str, Any]:
    return {"floors": {"root": 1, "timestamp": timestamp}, "director": {"epoch": epoch, "keys": {}}}


class SlowJournal:
    """A disk that takes its time: the first write waits for `go`."""

    def __init__(self) -> None:
        self.meta: dict[str, Any] = {}
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def put_meta(self, values: dict[str, Any], outbox: tuple[dict[str, Any], ...] = ()) -> None:
        del outbox
        self.meta.update(values)
        self.asked.set()
        await self.go.wait()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_no_floor_falls_while_another_s_word_is_written(cancelled: bool) -> None:
    journal = SlowJournal()
    shared = Shared(cast("Any", SimpleNamespace(journal=journal)), Config(), "press-7", Stored())
    newer = asyncio.create_task(shared.trust_moved(trust(10, 2)))
    await asyncio.wait_for(journal.asked.wait(), 20)
    if cancelled:  # its release is superseded, say
        newer.cancel()
        await asyncio.wait([newer])
    older = asyncio.create_task(shared.trust_moved(trust(9, 1)))
    await asyncio.sleep(0)
    journal.go.set()
    await asyncio.wait_for(older, 20)
    for facts in (journal.meta, shared.stored.meta):
        assert facts["floors"]["timestamp"] == 10
        assert facts["director"]["epoch"] == 2


async def test_a_device_of_another_fleet_begins_anew(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path, "press-7")
    stored = await journal.load()
    facts = {**trust(2**31, 3), "desired_at": [3, 77], "desired": {}, "clock_floor": [0, "2090-01-01T00:00:00Z"]}
    await journal.put_meta({**facts, "report": 5})
    stored.meta.update(facts)
    for root in ("a" * 64, "a" * 64, ""):
        await anchor.settle(stored, journal, root)
        assert stored.meta["desired_at"] == [3, 77], "the same fleet, or a root that cannot be read"
    await anchor.settle(stored, journal, "b" * 64)
    await journal.close()
    again = SqliteJournal(tmp_path, "press-7")
    for meta in (stored.meta, (await again.load()).meta):
        assert not set(anchor.OF_A_FLEET) & set(meta)
        assert meta[anchor.ANCHOR] == "b" * 64
    await again.close()
    for path in tmp_path.glob("journal.db*"):
        path.unlink()
    lost = SqliteJournal(tmp_path, "press-7")
    assert not set(anchor.OF_A_FLEET) & set((await lost.load()).meta), "nor does the second file know them"
    await lost.close()


@pytest.mark.parametrize("lost", [False, True])
async def test_a_time_floor_goes_with_the_keys_that_said_it(tmp_path: Path, lost: bool) -> None:
    journal, clock = SqliteJournal(tmp_path, "press-7"), SystemClock(lambda: 1_700_000_000.0)
    stored = await journal.load()
    shared = Shared(cast("Any", SimpleNamespace(journal=journal, clock=clock)), Config(), "press-7", stored)
    clock.raise_floor(4_000_000_000.0)
    said = time_floor.fact(stored.meta, clock.floor())
    await journal.put_meta(said)
    stored.meta.update(said)
    await shared.trust_moved({"floors": {"root": 2, "timestamp": 1}})
    assert clock.behind() > 0
    assert time_floor.of(stored.meta) > 3_900_000_000
    await shared.trust_moved({"floors": {"root": 3, "timestamp": 1, "clock_root": 3}})
    assert clock.now() == 1_700_000_000.0
    await shared.trust_moved({"floors": {"root": 3, "timestamp": 2, "clock_root": 3}})
    await journal.close()
    if lost:
        for path in tmp_path.glob("journal.db*"):
            path.unlink()
    again = SqliteJournal(tmp_path, "press-7")
    meta = (await again.load()).meta
    assert (time_floor.told(meta), time_floor.of(meta)) == (None, 0.0), "nor after a start, whatever is still written"
    await again.put_meta(time_floor.fact(meta, 1_700_000_000.0))
    assert time_floor.of((await again.load()).meta) == 1_700_000_000.0
    await again.close()


async def test_a_full_disk_does_not_end_the_agent_for_its_time_floor() -> None:
    asked: list[float] = []

    async def sleep(seconds: float) -> None:
        asked.append(seconds)
        if len(asked) > 2:
            raise asyncio.CancelledError

    async def full(values: dict[str, Any]) -> None:
        raise NoSpace(f"journal: {sorted(values)}")

    agent: Any = SimpleNamespace(
        clock=SimpleNamespace(sleep=sleep, floor=lambda: 1.0),
        journal=SimpleNamespace(put_meta=full),
        engine=SimpleNamespace(stored=Stored()),
    )
    with pytest.raises(asyncio.CancelledError):
        await Agent._keep_floor(agent)
