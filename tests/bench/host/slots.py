"""The two releases of the crowd in the two slots."""

from __future__ import annotations

import asyncio

from interlock_agent.host import messages
from tests.bench.host.crowd import SCALES
from tests.host import models
from tests.host.rig import UNIT, Rig

VERSIONS = tuple(SCALES)


async def serve(rig: Rig) -> None:
    """Fill both slots; the first is confirmed, and serves as generation 1."""
    for slot, version in zip("ab", VERSIONS, strict=True):
        await asyncio.to_thread(models.make_slot, rig.slots / slot, UNIT, version, 1, scale=SCALES[version])
    loaded = await rig.agent.order(messages.Load(UNIT, 1, str(rig.slots / "a"), "candidate", {}))
    await rig.agent.order(messages.Promote(UNIT, 1, loaded["worker"], "a"))
    await rig.agent.order(messages.Confirm(UNIT, 1))
