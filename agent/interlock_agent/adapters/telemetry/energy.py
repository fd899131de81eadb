"""Counters of energy in joules, of what the kernel tells: RAPL's packages, and the rails of a Jetson's power monitors.

Each is monotone from its first reading on; a reading that fails is None, and the next goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from interlock_agent.adapters.telemetry.sysfs import Tree

MONITORS = ("ina3221", "ina238")
WHOLE = "VDD_IN"  # the rail before all others, where a board has one


class Rapl:
    """Intel's and AMD's running average power limit: energy of the CPU packages (Linux, power/powercap). Only root may
    read it on most devices. The counters wrap around, each at its own `max_energy_range_uj`."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._zones = [
            zone.removesuffix("/name")
            for zone in tree.names("sys/class/powercap/intel-rapl:[0-9]*/name")
            if tree.text(zone).startswith("package")
        ]
        self._last: dict[str, int] = {}
        self._total_uj = 0

    def __call__(self) -> float | None:
        """Joules since the first reading; None where nothing is told."""
        read = {zone: self._tree.number(f"{zone}/energy_uj") for zone in self._zones}
        if not read or None in read.values():
            return None
        for zone, now in read.items():
            assert now is not None
            before = self._last.get(zone, now)
            around = self._tree.number(f"{zone}/max_energy_range_uj") or 0 if now < before else 0
            self._total_uj += max(0, now + around - before)
            self._last[zone] = now
        return self._total_uj / 1e6


class Rails:
    """Power monitors on a Jetson's supply rails (Linux, hwmon/ina3221): power now, summed up over time by the trapezoid
    rule between two readings. The whole board's rail where there is one, else all of them."""

    def __init__(self, tree: Tree, monotonic: Callable[[], float]) -> None:
        self._tree, self._monotonic = tree, monotonic
        rails: dict[str, tuple[str, str]] = {}
        for name in tree.names("sys/class/hwmon/hwmon[0-9]*/name"):
            folder = name.removesuffix("/name")
            for label in tree.names(f"{folder}/in[0-9]*_label") if tree.text(name) in MONITORS else ():
                said, stem = tree.text(label), label.removesuffix("_label")
                current = f"{folder}/curr{stem.rpartition('/in')[2]}_input"
                # not the sum of shunts, not unconnected
                if said not in ("", "NC") and tree.number(current) is not None:
                    rails[said] = (f"{stem}_input", current)
        self._rails = [rails[WHOLE]] if WHOLE in rails else list(rails.values())
        self._last: tuple[float, float] | None = None
        self._total_j = 0.0

    def watts(self) -> float | None:
        """Now: millivolts times milliamperes, over the rails."""
        read = [(self._tree.number(volts), self._tree.number(amperes)) for volts, amperes in self._rails]
        if not read or any(None in one for one in read):
            return None
        return sum((volts or 0) * (amperes or 0) for volts, amperes in read) / 1e6

    def __call__(self) -> float | None:
        """Joules since the first reading; None where nothing is told."""
        watts, now = self.watts(), self._monotonic()
        if watts is None:
            return None
        if self._last is not None:
            then, before = self._last
            self._total_j += (now - then) * (watts + before) / 2
        self._last = (now, watts)
        return self._total_j


class Meter:
    """The sum of those counters that this device has, found out at the first reading."""

    def __init__(self, **counters: Callable[[], float | None]) -> None:
        self._counters = counters
        self._told: dict[str, Callable[[], float | None]] | None = None

    @property
    def names(self) -> list[str]:
        """Which they are."""
        if self._told is None:
            self._told = {name: counter for name, counter in self._counters.items() if counter() is not None}
        return sorted(self._told)

    def read_j(self) -> float | None:
        """Joules; None where no counter is there, or one of them could not be read this time."""
        read = [(self._told or {})[name]() for name in self.names]
        return None if not read or None in read else sum(one for one in read if one is not None)
