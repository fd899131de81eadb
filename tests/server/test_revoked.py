"""A revoked device gets through nowhere: neither by a renewal that was under way, nor by a broker that serves it on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from interlock_server.adapters.database import Database
from interlock_server.adapters.device_ca import DeviceCA
from interlock_server.adapters.mosquitto import Mosquitto, Place
from interlock_server.core.access import Actor
from interlock_server.identities import Identities
from interlock_server.intake import Intake, Message
from interlock_server.invitations import Invitations
from interlock_shared.errors import Forbidden
from tests.server.fleet_fixture import csr

ADA = Actor("ada", "operator")


def now() -> datetime:
    return datetime.now(UTC)


def request() -> str:
    return csr(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    one = await Database.open(tmp_path / "server.db")
    yield one
    await one.close()


@pytest.fixture
async def identities(database: Database, tmp_path: Path) -> Identities:
    """With one device, edge-1."""
    authorities = await asyncio.to_thread(DeviceCA.open, tmp_path / "keys")
    made = Identities(database, authorities, now, timedelta(days=30))
    token = await Invitations(database, now).create(ADA, {}, "edge-1", 1.0, 1)
    await made.enrol(token["token"], request(), None, "0.1.0", "")
    return made


async def test_a_renewal_that_was_under_way_gives_nothing(identities: Identities) -> None:
    await identities.renew("edge-1", request(), "")
    await identities.revoke(ADA, "edge-1", "stolen")
    with pytest.raises(Forbidden) as refused:
        await identities.renew("edge-1", request(), "")
    assert refused.value.code == "device_revoked"
    assert len(await identities.revoked()) == 2


async def test_what_a_broker_still_brings_is_counted_and_not_believed(
    identities: Identities, database: Database
) -> None:
    intake, online = Intake(database, now), Message("edge-1", "presence", b'{"online":true}')

    async def shown() -> bool:
        async with database.reading() as rows:
            row = await rows.find("devices", id="edge-1")
        return bool(row and row["online"])

    await intake.take([online])
    assert await shown()
    await identities.revoke(ADA, "edge-1", "stolen")
    result = await intake.take([online, Message("edge-1", "event", b"{}")])
    assert (await shown(), result.acks, result.touched, intake.figures["refused"]) == (False, {}, set(), 2)


async def test_a_list_that_could_not_be_kept_is_tried_again(tmp_path: Path) -> None:
    """Whatever went wrong, the server goes on."""
    tries = 0

    async def revoked() -> dict[str, datetime]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("the database is locked")
        return {}

    async def sleep(_: float) -> None:
        if tries == 2:
            raise asyncio.CancelledError

    authorities = await asyncio.to_thread(DeviceCA.open, tmp_path / "keys")
    keeper = Mosquitto(Place("localhost", 1, tmp_path / "crl.pem", None), authorities, revoked, sleep)
    with pytest.raises(asyncio.CancelledError):
        await keeper.run()
    assert (await asyncio.to_thread((tmp_path / "crl.pem").read_text)).startswith("-----BEGIN X509 CRL-----")
