"""Times as documents and the database write them: RFC 3339 in UTC, always with microseconds, so that text sorts as
time does. Nothing here reads a clock.
"""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(moment: datetime) -> str:
    """`2025-01-31T12:00:00.000000Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(text: str) -> datetime:
    """The moment that `stamp` wrote, or any RFC 3339 time in UTC. Raises ValueError."""
    return datetime.fromisoformat(text)
