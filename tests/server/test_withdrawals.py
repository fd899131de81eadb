"""Who is moved when a release is withdrawn, on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from interlock_server.adapters.database import Database
from interlock_server.core import rollout
from interlock_server.core.access import Actor
from interlock_server.intake import Intake, Message
from interlock_server.rollouts import Rollouts, wish_of
from interlock_server.withdrawals import Withdrawals
from interlock_shared import canonical
from interlock_shared.errors import Conflict, NotFound
from tests.server.fleet_fixture import MODEL

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ADA = Actor("ada", "operator")
DIGESTS = {f"1.{minor}.0": str(minor) * 64 for minor in range(4)}


@dataclass
class Shop:
    """The services over one database, and devices that say what is put into their mouths."""

    store: Database
    told: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.intake = Intake(self.store, lambda: NOW)
        self.rollouts = Rollouts(self.store, lambda: NOW, self.told.extend)
        self.withdrawals = Withdrawals(self.store, lambda: NOW, self.told.extend)

    async def stock(self, *devices: str) -> None:
        """Releases, and devices."""
        async with self.store.writing() as rows:
            for version, digest in DIGESTS.items():
                signed = {"signatures": [], "revoked_by": [], "state": "published", "published_by": "ada"}
                about = {"manifest_sha256": digest, "payload_sha256": digest, "size": 1, "manifest": b"{}"}
                at = f"2026-01-0{version[2]}"
                await rows.insert("releases", model=MODEL, version=version, created_at=at, **about, **signed)
            for device in devices:
                none = {"labels": {}, "key": {}, "enrolled_at": "", "agent": "", "online": True, "instances": []}
                await rows.insert("devices", id=device, counter=0, epoch=1, refused=0, **none)

    async def says(self, device: str, rollout_id: str, *kinds: str) -> None:
        """Events about that rollout."""
        async with self.store.reading() as rows:
            wish = await rows.find("assignments", rollout=rollout_id, device=device)
        assert wish is not None
        batch = []
        for kind in kinds:
            self.numbers[device] = self.numbers.get(device, 0) + 1
            event: dict[str, Any] = {"schema": "interlock.event/1", "device": device, "epoch": "epoch-0001"}
            event |= {"number": self.numbers[device], "at": "2026-01-01T00:00:00Z", "kind": kind, "unit": MODEL}
            event |= {"assignment": wish["id"], "manifest_sha256": wish["manifest_sha256"]}
            batch.append(Message(device, "event", canonical.encode(event)))
        await self.intake.take(batch)

    async def reports(self, device: str, number: int, floor: int = 1, **unit: Any) -> list[str]:
        """A report; who is touched by it."""
        document: dict[str, Any] = {
            "schema": "interlock.reported/1",
            "device": device,
            "number": number,
            "agent": "0.1.0",
        }
        document |= {
            "outbox_epoch": "epoch-0001",
            "outbox_floor": floor,
            "host": None,
            "desired": None,
            "fingerprint": {},
        }
        facts = {
            "phase": "confirmed",
            "generation": 1,
            "offered": None,
            "installed": {},
            "confirmed": None,
            "running": None,
        }
        document |= {"fingerprint_sha256": "0" * 64, "units": {MODEL: {**facts, **unit}}}
        result = await self.intake.take([Message(device, "reported", canonical.encode(document))])
        return sorted(result.touched)

    async def to(self, version: str, *devices: str, confirmed: bool = True) -> str:
        """Roll out to each; the last rollout."""
        made = ""
        for device in devices:
            made = (await self.rollouts.start(ADA, MODEL, version, {"device": device}))["id"]
            if confirmed:
                await self.says(device, made, "accepted", "staged", "switched", "confirmed")
        return made

    async def wanted(self, device: str) -> str | None:
        """The version that the device's next document would name."""
        async with self.store.reading() as rows:
            found = rollout.wanted([wish_of(one) for one in await rows.list("assignments", device=device)])
        return found[MODEL].version if MODEL in found else None


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    store = await Database.open(tmp_path / "server.db")
    try:
        yield Shop(store)
    finally:
        await store.close()


async def test_a_revoked_device_is_asked_for_nothing(shop: Shop) -> None:
    await shop.stock("one", "stolen")
    for version in ("1.0.0", "1.1.0"):
        await shop.to(version, "one", "stolen")
    async with shop.store.writing() as rows:
        await rows.change("devices", {"id": "stolen"}, revoked_at="2026-02-01T00:00:00Z")
    assert await shop.withdrawals.withdraw(ADA, MODEL, "1.1.0", "misses pallets") == ["one"]
    assert await shop.wanted("stolen") == "1.0.0"  # what was wanted of it before


async def test_each_device_goes_where_it_has_been(shop: Shop) -> None:
    await shop.stock("old", "new", "before", "trial", "file", "rejects")
    await shop.to("1.0.0", "old", "before", "trial", "rejects")
    await shop.to("1.1.0", "old", "new")
    waiting = await shop.to("1.1.0", "before", confirmed=False)
    trial = await shop.to("1.1.0", "trial", confirmed=False)
    await shop.says("trial", trial, "accepted", "staged", "switched")
    no = await shop.to("1.1.0", "rejects", confirmed=False)
    await shop.says("rejects", no, "accepted", "staged", "rejected")
    await shop.reports("file", 1, confirmed="1.1.0", running="1.1.0", fallback="1.0.0")  # a file brought it

    moved = await shop.withdrawals.withdraw(ADA, MODEL, "1.1.0", "misses pallets")
    assert sorted(moved) == ["file", "old"]
    assert {device: await shop.wanted(device) for device in ("old", "file", "new", "before", "trial", "rejects")} == {
        "old": "1.0.0",
        "file": "1.0.0",
        "new": None,  # it knows no other: it stays, and is listed
        "before": "1.0.0",
        "trial": "1.0.0",
        "rejects": "1.0.0",
    }
    assert (await shop.rollouts.get(waiting))["counts"] == {"cancelled": 1}
    assert set(shop.told) >= {"old", "file", "new", "before", "trial"}
    ways = [one for one in await shop.rollouts.listing(100) if one["to"] == {"instead_of": "1.1.0"}]
    assert [(one["version"], one["created_by"], len(one["assignments"])) for one in ways] == [("1.0.0", "ada", 2)]

    await shop.says("trial", trial, "confirmed")  # its trial has ended: now it is moved
    moving = next(one for one in await shop.rollouts.listing(100) if one["to"] == {"instead_of": "1.1.0"})
    assert [one["device"] for one in moving["assignments"]] == ["file", "old", "trial"]
    assert await shop.reports("trial", 1, confirmed="1.1.0", running="1.1.0") == ["trial"]  # and once is enough
    assert len((await shop.rollouts.get(moving["id"]))["assignments"]) == 3


async def test_a_report_from_before_the_move_does_not_hide_where_the_device_has_been(shop: Shop) -> None:
    """The device forgot its acknowledged events, and says that it runs the release that is withdrawn: of course."""
    await shop.stock("one")
    await shop.to("1.0.0", "one")
    await shop.to("1.1.0", "one")
    await shop.reports("one", 1, floor=99, confirmed="1.1.0", running="1.1.0")
    assert await shop.withdrawals.withdraw(ADA, MODEL, "1.1.0", "slow") == ["one"]
    assert await shop.wanted("one") == "1.0.0"


async def test_what_is_wanted_later_counts_more(shop: Shop) -> None:
    await shop.stock("one")
    await shop.to("1.0.0", "one")
    await shop.to("1.1.0", "one")
    await shop.withdrawals.withdraw(ADA, MODEL, "1.1.0", "slow")
    later = await shop.to("1.2.0", "one", confirmed=False)
    await shop.says("one", later, "accepted", "staged", "rejected")
    await shop.reports("one", 1, confirmed="1.1.0", running="1.1.0")
    assert await shop.wanted("one") == "1.2.0"  # somebody knew better: nothing is pushed over it
    await shop.withdrawals.withdraw(ADA, MODEL, "1.0.0", "slow too")
    assert await shop.wanted("one") == "1.2.0"
    await shop.withdrawals.withdraw(ADA, MODEL, "1.2.0", "and this")
    assert await shop.wanted("one") is None  # there is no good one left: it serves what it has
    with pytest.raises(Conflict, match="withdrawn"):
        await shop.to("1.1.0", "one")


async def test_a_withdrawal_is_taken_back_and_moves_nobody_back(shop: Shop) -> None:
    await shop.stock("one")
    await shop.to("1.0.0", "one")
    await shop.to("1.1.0", "one")
    await shop.withdrawals.withdraw(ADA, MODEL, "1.1.0", "slow")
    await shop.withdrawals.restore(ADA, MODEL, "1.1.0")
    assert await shop.wanted("one") == "1.0.0"
    await shop.to("1.1.0", "one")
    assert await shop.wanted("one") == "1.1.0"
    with pytest.raises(NotFound):
        await shop.withdrawals.withdraw(ADA, MODEL, "9.9.9", "no such")
