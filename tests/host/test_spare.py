"""A second worker of what is confirmed: it takes over at once, is replaced, and steps aside for a trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlock_agent.host import messages
from tests.host import clients
from tests.host.rig import UNIT, Rig, running

pytestmark = pytest.mark.e2e

MAGIC = 666.0


async def _spared(rig: Rig) -> str:
    """When a spare stands by, its worker."""
    while True:
        status = await rig.agent.status()
        if status["standby"] and not status["trial"]:
            return str(next(w["worker"] for w in status["workers"] if w["role"] == "standby"))


async def test_a_spare_takes_over_is_replaced_and_makes_way_for_a_trial(short_path: Path) -> None:
    async with running(short_path, no_worker_s=0.2) as rig:
        await rig.configure(spare="always")
        await rig.confirmed(1, nan_on=MAGIC)
        spare = await _spared(rig)
        async with clients.Connection(rig.address) as connection:  # the same model: the same answer, and no third
            assert (await connection.infer([MAGIC, 1.0, 1.0, 1.0])).json()["code"] == "non_finite_output"
        counters = (await rig.agent.event("counters"))["counters"]
        assert (counters["non_finite"], counters["replayed"]) == (1, 1)
        async with clients.Load(rig.address) as load:
            await load.served()
            rig.kill(await rig.live_pid())
            event = await rig.agent.event("worker_died", role="candidate")
            assert event["release"] == "filetype/1.1.0"
            status = await rig.agent.status()
            assert (status["live_worker"], status["gap"]) == (spare, {"last_s": 0.0})
            assert await _spared(rig) != spare
            await rig.promote(2)
            status = await rig.agent.status()
            assert (status["live"], status["standby"]) == ("filetype/1.2.0", "filetype/1.1.0")
            assert len(status["workers"]) == 2
            await rig.agent.order(messages.Confirm(UNIT, 2))
            await _spared(rig)
            assert (await rig.agent.status())["standby"] == "filetype/1.2.0"
            await rig.configure(spare="trial")
            assert [w["role"] for w in (await rig.agent.status())["workers"]] == ["live"]
            await load.served()
        assert load.failures == []
