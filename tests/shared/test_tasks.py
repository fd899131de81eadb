"""A task that swallows a cancellation ends all the same."""

from __future__ import annotations

import asyncio

import pytest

from interlock_shared import tasks


async def test_what_swallows_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_S", 0.01)
    seen: list[str] = []

    async def deaf() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append("cancelled")
                if len(seen) == 2:
                    raise

    async def failing() -> None:
        raise ValueError("nobody's business")

    mine = [asyncio.create_task(deaf()), asyncio.create_task(failing())]
    await asyncio.sleep(0)
    await tasks.ended(mine)
    assert all(task.done() for task in mine)
    assert seen == ["cancelled"] * 2
    await tasks.ended([])
