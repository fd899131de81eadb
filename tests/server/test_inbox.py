"""What waits in memory between the broker and the database: bounded, and nobody takes the others' place."""

from __future__ import annotations

from typing import Any, cast

from interlock_server import engine
from interlock_server.engine import Engine
from interlock_shared import limits, topics


def event(device: str) -> str:
    return topics.device_topic("event", device)


def made() -> Engine:
    return Engine(*cast(Any, (None,) * 5))


async def test_one_that_floods_fills_its_own_place_alone() -> None:
    one = made()
    for _ in range(engine.OF_ONE_MAX + 44):
        one.received(event("edge-1"), b"{}")
    assert one.dropped == 44
    one.received(event("edge-2"), b"{}")
    one.received("interlock/v1/device/edge-2/desired", b"forged")  # no topic of a device: not even counted
    assert one.dropped == 44


async def test_what_waits_has_an_end_in_bytes_and_in_one() -> None:
    one = made()
    one.received(event("edge-1"), b"x" * (limits.DOCUMENT_MAX_BYTES + 1))
    assert one.dropped == 1
    large = b"x" * limits.DOCUMENT_MAX_BYTES
    for number in range(engine.WAITING_MAX_BYTES // len(large) + 3):
        one.received(event(f"edge-{number}"), large)
    assert one.dropped == 4
