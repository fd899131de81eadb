"""Asks what is due of a release that serves, and keeps the standings: the same for a trial and for the time after it.

- What the front has counted is read; what has to be asked (golden items, the model's address, the owner's probes) is
  asked in tasks of their own, each bounded by its timeout: nothing here keeps a lease from being renewed.
- What nobody answered for want of a host is no result: it is asked again.
- In a trial, counters are looked at as a whole; after it, since the last look that told something.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from interlock_agent.config import Unit
from interlock_agent.core.gate.right import parity
from interlock_agent.core.probes import FAIL, PASS, UNAVAILABLE, Board, Probe, Reading
from interlock_agent.core.readings import READERS, Memory, Sight
from interlock_agent.host import messages
from interlock_agent.steps.base import Shared
from interlock_shared.errors import InterlockError, Refused, Unreachable
from interlock_shared.manifest import Manifest

HOST_S = 5.0  # for the host's answer to a look
HANGS_S = 60.0  # a worker that does not answer a few golden items in that time is ended by the host
MEMORY_KEPT = 64
WORKERS_FAULT = ("worker_died", "worker_hung", "inference_failed", "out_of_memory")
BY_COUNTERS = frozenset(READERS) - {"application", "gpu_faults"}  # they need the host


@dataclass(frozen=True)
class Watched:
    """The release that is watched. `generation`: of its trial; 0 after it."""

    unit: str
    version: str
    manifest: Manifest
    variant: str = ""
    generation: int = 0
    felt: dict[str, float] = field(default_factory=dict)  # latency before the switch

    @property
    def release(self) -> str:
        """As the host names it."""
        return f"{self.unit}/{self.version}"


class Watcher:
    """The probes of one release, from now on."""

    def __init__(self, shared: Shared, settings: Unit, watched: Watched, probes: Iterable[Probe]) -> None:
        self._shared, self._settings, self.watched = shared, settings, watched
        self._clock, self._host, self._hardware = shared.ports.clock, shared.ports.host, shared.ports.hardware
        self.board = Board(probes, self._clock.monotonic())
        self.status: dict[str, Any] = {}  # the host's last word about the unit
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._live = ""
        self._since: dict[str, dict[str, Any]] = {}
        self._before: dict[str, dict[str, Any]] = {}
        self._first: dict[str, Any] = {}
        self._crashes = -1
        self._memory: list[Memory] = []
        self._faults = self._hardware.gpu_faults()

    async def look(self) -> None:
        """Ask what is due. What is to be read is read at once; the rest comes when it comes."""
        due = [probe for probe in self.board.due(self._clock.monotonic()) if probe.name not in self._asking]
        if not due:
            return
        seen = await self._look_at_host() if any(probe.kind in NEEDS_HOST for probe in due) else False
        for probe in due:
            if probe.kind in NEEDS_HOST and not seen:
                continue
            asked = self._clock.monotonic()
            if probe.kind not in ASKERS:
                self._read(probe, asked)
            else:
                self._asking[probe.name] = asyncio.ensure_future(self._ask(probe, asked))

    async def close(self) -> None:
        """End what is being asked."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def rows(self) -> list[dict[str, Any]]:
        """Every probe with its last result."""
        return self.board.rows(self._clock.monotonic())

    def seen(self) -> dict[str, Any]:
        """What a person wants to know when a check has failed."""
        counters = self.status.get("counters") or {}
        live = [one for one in self.status.get("workers", ()) if one["worker"] == self.status.get("live_worker")]
        return {
            "checks": self.rows(),
            "counters": {name: value for name, value in counters.items() if name != "last_errors"},
            "last_errors": list(counters.get("last_errors") or ())[-5:],
            "last_words": [line for one in live for line in one.get("said") or ()],
        }

    # --- the host -------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """The host's word once more, where it was not asked yet."""
        await self._look_at_host()

    async def _look_at_host(self) -> bool:
        """Whether it tells of what is watched: not while it is away, or another release answers."""
        try:
            answer = await asyncio.wait_for(self._host.request(messages.Status()), HOST_S)
        except (InterlockError, asyncio.TimeoutError):
            return False
        unit = self.watched.unit
        status = next((one for one in answer["units"] if one["unit"] == unit), None)
        if status is None or int(status.get("trial", 0)) != self.watched.generation:
            return False
        room_made = "left_s" in (status.get("gap") or {})  # on purpose, for a candidate: nobody's fault
        if room_made or status.get("live") not in ("", self.watched.release):
            return False
        self.status = status
        counters, live = dict(status.get("counters") or {}), str(status.get("live_worker", ""))
        if live != self._live:
            after, self._live = not self._live and not self.watched.generation, live
            self._first = counters if after else {}  # what was counted before the watch began was judged in the trial
            self._since, self._before, self._memory = {}, {}, []
        self._crashes = int(status.get("crashes", 0)) if self._crashes < 0 else self._crashes
        return True

    def _read(self, probe: Probe, asked: float) -> None:
        counters = dict(self.status.get("counters") or {})
        crashes, faults = int(self.status.get("crashes", 0)), self._hardware.gpu_faults()
        if probe.kind == "memory_growth":
            self._sample(asked, counters)
        sight = Sight(
            counters=counters,
            since=self._since.get(probe.name, self._first),
            before=self._before.get(probe.name, self._first),
            live=str(self.status.get("live_worker", "")),
            crashes=crashes,
            crashes_before=max(self._crashes, 0),
            memory=self._memory,
            incumbent=self.watched.felt,
            gpu_faults=None if faults is None else faults - (self._faults or 0),
            word=self._shared.words.get(self.watched.unit),
        )
        reading = READERS[probe.kind](probe, sight)
        if reading is None:
            return
        self._before[probe.name] = counters
        if not self.watched.generation and reading.outcome != UNAVAILABLE:
            self._since[probe.name] = counters
        if probe.kind == "worker_alive":
            self._crashes = crashes
        self.board.take(probe.name, reading, asked, self._clock.monotonic())

    def _sample(self, now: float, counters: dict[str, Any]) -> None:
        live = self.status.get("live_worker")
        pids = [int(one["pid"]) for one in self.status.get("workers", ()) if one["worker"] == live and one.get("pid")]
        for pid in pids:
            size = self._hardware.process(pid).get("resident_bytes")
            if size is not None:
                self._memory.append(Memory(now, int(counters.get("requests", 0)), size))
        if len(self._memory) > MEMORY_KEPT:
            del self._memory[1::2]  # half of them, over the same time

    # --- what has to be asked ---------------------------------------------------------------------------------------

    async def _ask(self, probe: Probe, asked: float) -> None:
        reading: Reading | None
        try:
            reading = await asyncio.wait_for(ASKERS[probe.kind](self, probe), probe.timeout_s)
        except asyncio.TimeoutError:
            reading = Reading(FAIL, message=f"no answer within {probe.timeout_s:g} s")
        except Unreachable:
            reading = None
        except InterlockError as refused:
            reading = Reading(UNAVAILABLE, message=refused.message)
        finally:
            self._asking.pop(probe.name, None)
        if reading is not None:
            self.board.take(probe.name, reading, asked, self._clock.monotonic())

    async def sane(self, probe: Probe) -> Reading | None:
        """What the worker has found in a sample of its answers."""
        worker = str(self.status.get("live_worker", ""))
        if not worker:
            return Reading(FAIL, message="no worker of it answers")
        try:
            found = await self._host.request(messages.Look(worker, int(self.status["generation"])))
        except Refused as refused:
            return self._refused(refused)
        if not self.watched.generation:
            self._since.setdefault(probe.name, found)
        since = self._since.get(probe.name, {})
        reading = READERS[probe.kind](probe, Sight(counters=found, since=since))
        if not self.watched.generation and reading is not None and reading.outcome != UNAVAILABLE:
            self._since[probe.name] = found
        return reading

    @staticmethod
    def _refused(refused: Refused) -> Reading | None:
        """What the host says instead of an answer; None where another worker serves by now."""
        if refused.code in ("unknown_worker", "stale_generation"):
            return None
        outcome = FAIL if refused.code in WORKERS_FAULT else UNAVAILABLE
        return Reading(outcome, message=f"{refused.code}: {refused.message}")

    async def exec(self, probe: Probe) -> Reading:
        """A command of the owner's."""
        facts = {"UNIT": self.watched.unit, "RELEASE": self.watched.version}
        return _told(await self._shared.ports.probes.exec(probe.settings["target"], facts))

    async def http(self, probe: Probe) -> Reading:
        """An address of the owner's."""
        return _told(await self._shared.ports.probes.http(probe.settings["target"]))

    async def systemd(self, probe: Probe) -> Reading:
        """A unit of the system."""
        return _told(await self._shared.ports.probes.systemd(probe.settings["target"]))

    async def ready(self, probe: Probe) -> Reading:
        """The model's own address, as an application asks it."""
        address = str(self.status.get("address") or self._shared.config.listen(self.watched.unit))
        return _told(await self._shared.ports.probes.ready(address, self.watched.unit))

    async def golden(self, probe: Probe) -> Reading | None:
        """The first golden items, by the worker that serves, held against what is expected as the gate does."""
        golden, worker = self.watched.manifest.golden, str(self.status.get("live_worker", ""))
        if golden is None:
            return Reading(UNAVAILABLE, message="the release has no golden items")
        if not worker:
            return Reading(FAIL, message="no worker of it answers")
        items = int(probe.settings["items"])
        order = messages.Evaluate(worker, int(self.status["generation"]), HANGS_S, items=items)
        try:
            answer = await self._host.request(order)
        except Refused as refused:
            return self._refused(refused)
        own = next((one.parity for one in self.watched.manifest.variants if one.name == self.watched.variant), {})
        bad = [row for row in parity(answer["outputs"], golden, own) if row.outcome == "fail"]
        if not bad:
            return Reading(PASS, 0.0)
        first = bad[0]
        what = f"{first.detail.get('output')}: {first.reason}"
        return Reading(FAIL, float(len(bad)), 0.0, what if first.measured is None else f"{what}, {first.measured:g}")


def _told(trouble: str) -> Reading:
    return Reading(FAIL, message=trouble[:500]) if trouble else Reading(PASS)


ASKERS: dict[str, Callable[[Watcher, Probe], Awaitable[Reading | None]]] = {
    "ready": Watcher.ready,
    "golden": Watcher.golden,
    "constant_output": Watcher.sane,
    "out_of_range": Watcher.sane,
    "exec": Watcher.exec,
    "http": Watcher.http,
    "systemd": Watcher.systemd,
}
NEEDS_HOST = BY_COUNTERS | {"ready", "golden"}
