"""A task that swallows a cancellation ends all the same."""

from __future__ import annotations

import asyncio
from types import ModuleType

import pytest

import interlock_agent.tasks
import interlock_server.tasks


@pytest.mark.parametrize("module", [interlock_agent.tasks, interlock_server.tasks], ids=["agent", "server"])
async def test_what_swallows_a_cancellation_is_cancelled_again(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.01)
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

    tasks = [asyncio.create_task(deaf()), asyncio.create_task(failing())]
    await asyncio.sleep(0)
    await module.ended(tasks)
    assert all(task.done() for task in tasks)
    assert seen == ["cancelled"] * 2
    await module.ended([])
