"""A device that was given another root is of another fleet: what the former one's keys had said binds nobody there.

Floors, director, wishes and the time floor are remembered for the root from which they were believed. With another one
embedded (`interlock-agent enrol --again`, by whoever owns the device) they begin anew; slots, outbox, quarantine and
what is known to be revoked stay.
"""

from __future__ import annotations

import logging
from typing import Any

from interlock_agent.ports import Journal, Stored
from interlock_shared.errors import Later

log = logging.getLogger("interlock.anchor")

ANCHOR = "embedded_root"
OF_A_FLEET = ("floors", "director", "signed_until", "desired_at", "desired", "spread_s", "sideload", "clock_floor")


async def settle(stored: Stored, journal: Journal, root_sha256: str) -> None:
    """Before anything is believed after a start; "": the root cannot be read, and nothing will be believed."""
    known = stored.meta.get(ANCHOR)
    if root_sha256 in (known, ""):
        return
    facts: dict[str, Any] = {ANCHOR: root_sha256}
    if known is not None:
        log.warning("another root is embedded: what the former fleet had said is forgotten")
        facts |= dict.fromkeys(OF_A_FLEET)
    for name, value in facts.items():
        stored.meta.pop(name, None) if value is None else stored.meta.update({name: value})
    try:
        await journal.put_meta(facts)
    except Later as error:  # a full disk: once more at the next start
        log.error("journal: %s", error.message)
