"""A device whose key is in a TPM or in a token, and a real server: joining, renewing, and what goes wrong.

The device's part is done by its fetcher, a process of its own: see tests/rig/tokens.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interlock_agent.adapters import identity
from interlock_agent.adapters.clock import SystemClock as Clock
from interlock_agent.adapters.fetch_client import FetcherProcess
from interlock_agent.adapters.identity import Identity
from interlock_agent.fetcher import credentials
from interlock_agent.fetcher.messages import Job
from interlock_agent.ports import Stored
from interlock_shared import topics
from interlock_shared.errors import InterlockError, Unreachable
from tests.e2e.world import temporary
from tests.rig import tokens
from tests.server.fleet_fixture import Fleet, running

DEVICE = "edge-1"
off = asyncio.to_thread  # files are read and written elsewhere than in the loop


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running(tmp_path / "server") as one:
        yield one


def reached(keeper: tokens.Keeper, patch: pytest.MonkeyPatch) -> None:
    """By the children of this process."""
    for name, value in keeper.environment.items():
        patch.setenv(name, value)


@pytest.fixture
def tpm(monkeypatch: pytest.MonkeyPatch) -> Iterator[tokens.Tpm]:
    with temporary() as folder, tokens.tpm(folder) as made:
        reached(made, monkeypatch)
        yield made


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Iterator[tokens.Token]:
    with temporary() as folder, tokens.token(folder) as made:
        reached(made, monkeypatch)
        yield made


async def invited(fleet: Fleet, state: Path, key: str, **more: Any) -> Job:
    made = await fleet.admin.post(topics.DEVICE_TOKENS, more)
    job = Job("enrol", DEVICE, str(state), 0.0, "", server=fleet.admin.url, name=DEVICE, key=key)
    return replace(job, token=made["token"], root_sha256=made["root_sha256"])


async def refusal(job: Job) -> str:
    """Why a device does not join; nothing was kept, and the token is unused."""
    with pytest.raises(InterlockError) as refused:
        await off(identity.enrol, Path(job.state_dir), job)
    assert not list((Path(job.state_dir) / "identity").glob("*"))
    return refused.value.code


class Joined:
    """A device, by the processes that it consists of."""

    def __init__(self, state: Path) -> None:
        self.state, self.identity = state, Identity(state)
        self.fetcher = FetcherProcess(state, DEVICE, self.identity.facts, Clock(), Stored())

    def key(self) -> object:
        return credentials.load_key(credentials.pair_file(self.state)).public_key()


async def joined(fleet: Fleet, state: Path, key: str) -> Joined:
    await off(identity.enrol, state, await invited(fleet, state, key))
    return await off(Joined, state)


async def test_a_tpm_s_key_is_renewed_in_the_tpm_and_of_use_to_no_other(
    fleet: Fleet, tpm: tokens.Tpm, tmp_path: Path
) -> None:
    device = await joined(fleet, tmp_path / "state", tpm.uri)
    assert await device.fetcher.poll() is None
    before = await off(device.key)
    await device.fetcher.renew()
    assert await off(device.key) != before
    assert b"TSS2 PRIVATE KEY" in await off(credentials.pair_file(device.state).read_bytes)
    assert await device.fetcher.poll() is None
    await off(tpm.stop)
    with pytest.raises(Unreachable, match="tpm:") as refused:
        await device.fetcher.poll()
    assert refused.value.code == "key_away"
    await off((tpm.folder / "tpm").rename, tpm.folder / "another")  # the disk is in another machine now
    await off(tpm.start)
    with pytest.raises(Unreachable, match="tpm:") as refused:
        await device.fetcher.poll()
    assert refused.value.code == "key_away"


async def test_a_token_s_key_stays_and_its_certificate_is_renewed(
    fleet: Fleet, token: tokens.Token, tmp_path: Path
) -> None:
    device = await joined(fleet, tmp_path / "state", token.uri)
    assert await device.fetcher.poll() is None
    before, serial = await off(device.key), device.identity.serial
    await device.fetcher.renew()
    await off(device.identity.reload)
    assert (await off(device.key) == before, device.identity.serial != serial) == (True, True)
    assert await device.fetcher.poll() is None
    await off(token.stop)
    with pytest.raises(Unreachable, match="pkcs11:") as refused:
        await device.fetcher.poll()
    assert refused.value.code == "key_away"


async def test_a_token_that_does_not_have_the_key(fleet: Fleet, token: tokens.Token, tmp_path: Path) -> None:
    job = await invited(fleet, tmp_path / "state", token.uri.replace("secp256r1", "none"))
    assert await refusal(job) == "key_away"
    assert await refusal(replace(job, key=token.other)) == "bad_key_type"
    await off((token.folder / "pin").write_text, "000000")
    assert await refusal(replace(job, key=token.uri)) == "key_away"
    await off((token.folder / "pin").write_text, tokens.PIN)
    assert (await off(identity.enrol, tmp_path / "state", replace(job, key=token.uri)))["status"] == "enrolled"


async def test_a_key_that_cannot_be_had_leaves_nothing(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another place may be asked for with the same token."""
    job = await invited(fleet, tmp_path / "state", "tpm:")
    assert await refusal(replace(job, key="moon:")) == "bad_key_uri"
    assert await refusal(replace(job, key_type="ed25519")) == "bad_key_uri"
    monkeypatch.setenv("OPENSSL_MODULES", str(tmp_path))
    assert await refusal(job) == "no_key_provider"
    facts = await off(identity.enrol, tmp_path / "state", replace(job, key="file"))
    assert facts["status"] == "enrolled"
