"""When a gate may begin: windows by the device's own clock on the wall, e.g. `01:00-05:00`.

A window may span midnight (`22:00-04:00`). What the clock shows decides: in the night in which it is set back, a window
is an hour longer, and in the one in which it is set forward, shorter, or not there at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, time, timedelta, tzinfo
from typing import NamedTuple

_WINDOW = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-(?:([01][0-9]|2[0-3]):([0-5][0-9])|(24):(00))")
DAYS = 3  # looked at: a window that the clock leaps over today is there tomorrow


class Window(NamedTuple):
    """From `begin` to before `end`, in minutes of the day; it spans midnight where `end` comes first."""

    begin: int
    end: int

    def holds(self, minute: int) -> bool:
        """Whether that minute of the day is inside."""
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end


def parse(text: str) -> Window:
    """`HH:MM-HH:MM`. Raises ValueError."""
    found = _WINDOW.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no window: write it as 01:00-05:00")
    hour, minute, to_hour, to_minute = (int(part) for part in found.groups() if part is not None)
    window = Window(60 * hour + minute, 60 * to_hour + to_minute)
    if window.begin == window.end:
        raise ValueError(f"{text!r} ends where it begins; for the whole day, leave it out")
    return window


def next_opening(windows: Sequence[str], now: float, zone: tzinfo | None = None) -> float:
    """`now` where a window is open, or where there is none; else when the next one opens. Seconds since the epoch;
    `zone` None is the device's own."""
    opened = [parse(text) for text in windows]
    if not opened or _open(opened, now, zone):
        return now
    today = datetime.fromtimestamp(now, zone).date()
    begins = {
        datetime.combine(
            today + timedelta(days=day), time(*divmod(window.begin, 60), tzinfo=zone, fold=fold)
        ).timestamp()
        for window in opened
        for day in range(DAYS)
        for fold in (0, 1)  # where the clock shows that time twice
    }
    return min(begin for begin in begins if begin > now and _open(opened, begin, zone))


def _open(windows: Sequence[Window], at: float, zone: tzinfo | None) -> bool:
    local = datetime.fromtimestamp(at, zone)
    return any(window.holds(60 * local.hour + local.minute) for window in windows)
