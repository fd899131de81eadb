"""Times as documents write them: RFC 3339 in UTC. The time itself is an argument."""

from __future__ import annotations

from datetime import datetime, timezone


def rfc3339(seconds: float) -> str:
    """`2026-01-31T12:00:00.123456Z` of seconds since the epoch."""
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds(text: str) -> float:
    """Seconds since the epoch of what a document says (`Timestamp`). Raises ValueError."""
    whole, _, part = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{part.ljust(6, '0')}+00:00").timestamp()  # Python 3.10 wants six digits
