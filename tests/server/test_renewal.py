"""Snapshot and timestamp are signed again by the server itself before they expire: months of a simulated clock."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from tuf.api.metadata import Metadata

from interlock_agent.fetcher.trust import Trust
from interlock_server.adapters.keys import OnlineKeys
from interlock_server.adapters.tuf_repository import TufRepository
from interlock_server.catalogue import Catalogue
from interlock_server.engine import Engine
from tests.server.fleet_fixture import MODEL, Offline, the_manifest
from tests.server.test_rotation import Source

NONE = cast("Any", None)
MONTHS = 4 * 90  # looks of the engine: a quarter of a year
SLEEPS = {100: timedelta(days=8), 200: timedelta(days=45), 300: timedelta(days=100)}  # the server was off so long


class EnoughError(Exception):
    """The end of the test."""


class Time:
    """The server's clock, which its own sleeping moves; before each look a device asks."""

    def __init__(self, tuf: Path, device: Path) -> None:
        self.now, self.looks, self.tuf, self.device = datetime.now(UTC).replace(microsecond=0), 0, tuf, device
        self.floors: dict[str, Any] = {}
        self.seen: list[dict[str, int]] = []

    async def sleep(self, seconds: float) -> None:
        """The engine's: until the next look."""
        await asyncio.to_thread(self.look)
        self.looks += 1
        if self.looks == MONTHS:
            raise EnoughError
        asleep = SLEEPS.get(self.looks, timedelta())
        self.now += timedelta(seconds=seconds)
        if not asleep:
            await asyncio.to_thread(self.believed)  # what was signed at the last look holds until this one
        self.now += asleep

    def look(self) -> None:
        """What the engine has just left."""
        self.seen.append(self.versions())
        self.believed()

    def versions(self) -> dict[str, int]:
        """Of what lies there now."""
        timestamp = Metadata[Any].from_file(str(self.tuf / "timestamp.json")).signed
        snapshot = Metadata[Any].from_file(str(self.tuf / f"{timestamp.snapshot_meta.version}.snapshot.json")).signed
        return {
            "timestamp": timestamp.version,
            "snapshot": snapshot.version,
            **{n: m.version for n, m in snapshot.meta.items()},
        }

    def believed(self) -> None:
        """A device takes it, and its floors rise."""
        if self.looks % 12 and self.looks not in SLEEPS:
            return  # every third day, and after each sleep: a walk costs milliseconds
        source = Source(self.tuf)
        chain = Trust((self.tuf / "1.root.json").read_bytes(), self.device, source, self.now.timestamp())
        self.floors = chain.refresh(self.floors)


def published(folder: Path, start: datetime) -> TufRepository:
    """With one release."""
    keys = OnlineKeys.open(folder / "keys")
    repository, offline = TufRepository(folder / "tuf", keys), Offline()
    repository.accept_trust(offline.trust({**keys.public(), "tls_ca": "-----BEGIN CERTIFICATE-----"}), start)
    body = offline.next_release(the_manifest("1.0.0"))
    checked = repository.check_release(MODEL, body["metadata"], start)
    repository.add_release(MODEL, checked.data, start)
    return repository


async def test_for_months_and_after_sleeping_beyond_the_expiry(tmp_path: Path) -> None:
    repository = await asyncio.to_thread(published, tmp_path, datetime.now(UTC))
    time = Time(tmp_path / "tuf", tmp_path / "device")
    moved: list[int] = []
    catalogue = Catalogue(NONE, repository, NONE, NONE, lambda: time.now, lambda: moved.append(time.looks), NONE)
    with pytest.raises(EnoughError):
        await Engine(NONE, NONE, NONE, NONE, time.sleep)._renew(catalogue)
    first, last = time.seen[0], time.seen[-1]
    assert {name: number for name, number in last.items() if name.endswith(".json")} == {
        name: number for name, number in first.items() if name.endswith(".json")
    }  # targets and release roles are nobody's but their signers'
    signed = last["timestamp"] - first["timestamp"]
    assert signed == last["snapshot"] - first["snapshot"] == len(moved)  # each one is told in a notice
    assert 80 <= signed <= 100  # once a day, not once a look
    assert set(SLEEPS) <= set(moved)  # at once after each sleep
    assert last["timestamp"] - 4 < time.floors["timestamp"] <= last["timestamp"]  # a device followed all the way
