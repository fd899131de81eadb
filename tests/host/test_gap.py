"""A candidate that does not fit beside what serves: the gap is told beforehand, requests wait, and none is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from interlock_agent.host import messages
from tests.host import clients, models
from tests.host.rig import UNIT, OrderError, Rig, running

pytestmark = pytest.mark.e2e

GAP_S = 25.0  # more than a busy machine needs to load a tiny model


@pytest.fixture
async def rig(short_path: Path) -> AsyncIterator[Rig]:
    async with running(short_path, no_worker_s=1.0) as rig:  # in a gap requests wait longer than that
        await rig.confirmed(1)
        yield rig


def _roles(status: dict[str, object]) -> list[tuple[str, str]]:
    workers = status["workers"]
    assert isinstance(workers, list)
    return [(worker["role"], worker["release"]) for worker in workers]


async def test_a_switch_and_a_revert_by_way_of_a_gap_lose_nothing(rig: Rig) -> None:
    async with clients.Load(rig.address) as load:
        await load.served()
        former = await rig.live_pid()
        candidate = await rig.load(2, gap_s=GAP_S, expected_s=2.0)
        told = await rig.agent.event("gap", generation=2)
        assert (told["expected_s"], told["at_most_s"]) == (2.0, GAP_S)
        status = await rig.agent.status()
        assert _roles(status) == [("candidate", "filetype/1.2.0")]
        assert former not in rig.children()
        assert (status["live"], status["ready"], status["gap"]["generation"]) == ("", False, 2)
        assert 0 < status["gap"]["left_s"] < GAP_S
        rig.place(rig.state / "incoming" / "2-1.2.0", "b")
        begun = await rig.agent.order(messages.Promote(UNIT, 2, candidate["worker"], "b"))
        assert 0 < begun["gap_s"] < GAP_S
        await load.served()
        status = await rig.agent.status()
        assert _roles(status) == [("live", "filetype/1.2.0")]
        assert status["gap"] == {"last_s": begun["gap_s"]}
        reverted = await rig.agent.order(messages.Revert(UNIT, 2, "p95"))
        returned = time.monotonic()
        assert (reverted["release"], reverted["gap_s"] > 0) == ("filetype/1.1.0", True)
        await rig.agent.event("serving", release="filetype/1.1.0", gap_s=reverted["gap_s"])
        await load.served()
        assert load.answered_after(returned, "filetype/1.2.0") == 0
    assert load.failures == []
    assert set(load.answers) == {"filetype/1.1.0", "filetype/1.2.0"}


async def test_the_death_of_a_trial_that_has_no_standby_loads_the_confirmed_release(rig: Rig) -> None:
    async with clients.Load(rig.address) as load:
        await load.served()
        await rig.promote(2, gap_s=GAP_S)
        await load.served()
        rig.kill(await rig.live_pid())
        assert (await rig.agent.event("outcome", generation=2))["reason"] == "worker_died"
        await rig.agent.event("serving", release="filetype/1.1.0")
        await load.served()
    assert load.failures == []
    assert (await rig.agent.status())["gap"]["last_s"] > 0


async def test_a_gap_that_leads_to_nothing_ends_with_the_confirmed_release(rig: Rig) -> None:
    async def retired(worker: str) -> None:
        await rig.agent.order(messages.Retire(worker, 2))

    async def died(worker: str) -> None:
        rig.kill((await rig.agent.status())["workers"][0]["pid"])

    async def another(worker: str) -> None:
        await rig.load(3)

    async def time_is_up(worker: str) -> None:
        await rig.agent.event("serving", release="filetype/1.1.0")
        with pytest.raises(OrderError, match="gap_over"):
            await rig.agent.order(messages.Probe(worker, 3, 0, 1))
        with pytest.raises(OrderError, match="unknown_worker"):
            await rig.agent.order(messages.Promote(UNIT, 3, worker, "b"))

    async with clients.Connection(rig.address) as connection:
        for generation, how in ((2, retired), (2, died), (2, another), (3, time_is_up)):
            rig.agent.events.clear()
            gap_s = 0.5 if how is time_is_up else GAP_S
            candidate = await rig.load(generation, version=f"1.2.0-{how.__name__.replace('_', '-')}", gap_s=gap_s)
            await how(candidate["worker"])
            answer = await connection.infer([1.0, 2.0, 3.0, 4.0])
            assert (answer.status, answer.release) == (200, "filetype/1.1.0")
            status = await rig.agent.status()
            assert (status["confirmed"], status["trial"], status["outcome"]["generation"]) == ("filetype/1.1.0", 0, 1)
    await rig.load(3, version="1.2.0-host", gap_s=GAP_S)
    await rig.kill_host()
    await rig.start()
    while not (await rig.agent.status())["live"]:  # noqa: ASYNC110 - a condition; the client's deadline is the test's
        await asyncio.sleep(0.01)
    assert (await clients.infer(rig.address)).release == "filetype/1.1.0"


async def test_a_gap_whose_time_is_up_while_the_model_is_opened_says_so(rig: Rig) -> None:
    async with clients.Connection(rig.address) as connection:
        loading = asyncio.ensure_future(rig.load(2, gap_s=0.001))
        with pytest.raises(OrderError, match="gap_over"):
            await loading
        assert (await connection.infer([1.0, 2.0, 3.0, 4.0])).release == "filetype/1.1.0"


async def test_what_cannot_wait_is_told_when_to_come_back(rig: Rig) -> None:
    await rig.load(2, gap_s=GAP_S, expected_s=7.0)
    async with clients.Connection(rig.address) as connection:
        for path in ("/v2/health/ready", f"/v2/models/{UNIT}/ready"):
            told = await connection.ask(clients.request(path, method="GET"))
            assert (told.status, told.headers["retry-after"] in ("6", "7")) == (503, True)


async def test_a_candidate_that_is_refused_before_it_is_opened_costs_no_gap(rig: Rig) -> None:
    def damage() -> None:
        file = rig.state / "incoming" / "9-1.9.0" / "model.onnx"
        file.write_bytes(file.read_bytes()[:-1] + b"!")

    folder = rig.state / "incoming" / "9-1.9.0"
    await asyncio.to_thread(models.make_slot, folder, UNIT, "1.9.0", 9, scale=9.0)
    await asyncio.to_thread(damage)
    with pytest.raises(OrderError, match="corrupt"):
        await rig.agent.order(messages.Load(UNIT, 9, str(folder), "candidate", {}, GAP_S))
    assert (await rig.agent.status())["live"] == "filetype/1.1.0"
    assert not any(event["event"] == "gap" for event in rig.agent.events)
