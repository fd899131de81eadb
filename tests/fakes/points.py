"""Where a simulation may cut: every fake says what it is about to do, and what it has done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Point = Callable[[str], Awaitable[None]]


async def nowhere(label: str) -> None:
    """For tests in which nothing is cut."""
    del label
