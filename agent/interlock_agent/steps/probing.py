"""Asks what is due of a release that serves, and keeps the standings: the same for a trial and for the time after it.

- What the front has counted is read; what has to be asked (golden items, the model's address, the owner's probes) is
  asked in tasks of their own, each bounded by its timeout: nothing here keeps a lease from being renewed.
- What nobody answered for want of a host is no result: it is asked again.
- In a trial, counters are looked at as a whole; after it, since the last look that told something.
- Nothing is judged while nothing serves by no fault of the release: the host is away, or, after the trial, makes room
  for a candidate or has just been started and loads it. An application that has no model then is not its fault.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from interlock_agent.config import Unit
from interlock_agent.core.gate.right import parity
from interlock_agent.core.probes import APPLICATION, FAIL, PASS, UNAVAILABLE, Board, Probe, Reading
from interlock_agent.core.readings import CRASHES_S, READERS, Memory, Sight
from interlock_agent.host import messages
from interlock_agent.steps.base import Shared
from interlock_shared.errors import InterlockError, Refused, Unreachable
from interlock_shared.manifest import Manifest

log = logging.getLogger("interlock.probing")

HOST_S = 5.0  # for the host's answer to a look
HANGS_S = 60.0  # a worker that does not answer a few golden items in that time is ended by the host
HELD_UP_S = 3.0  # so much after its time a probe is ended only where the agent itself was stopped, or starved
CLOSE_S = 5.0  # for what is being asked to end; a process in the kernel's hands may never
FAULTS_S = 3600.0  # after a trial, faults of a GPU are those of the last hour: an alarm ends some day
MEMORY_KEPT = 64
WORKERS_FAULT = ("worker_died", "worker_hung", "inference_failed", "out_of_memory")


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
        self._crashed: list[float] = []  # when
        self._memory: list[Memory] = []
        self._faults: list[tuple[float, int]] = []  # each count of the driver's, and when it was first seen
        self._faulted(self._clock.monotonic())

    async def look(self) -> None:
        """Ask what is due. What is to be read is read at once; the rest comes when it comes."""
        due = [probe for probe in self.board.due(self._clock.monotonic()) if probe.name not in self._asking]
        if not due:
            return
        seen = await self._look_at_host() if any(map(self._needs_host, due)) else False
        for probe in due:
            if self._needs_host(probe) and not seen:
                continue
            asked = self._clock.monotonic()
            if probe.kind not in ASKERS:
                self._read(probe, asked)
            else:
                self._asking[probe.name] = asyncio.ensure_future(self._ask(probe, asked))

    def _needs_host(self, probe: Probe) -> bool:
        """Whether its result says something only while the host tells that the release serves."""
        word = self._shared.words.get(self.watched.unit)
        return probe.kind != APPLICATION or (word is not None and not word.healthy)

    async def close(self) -> None:
        """End what is being asked."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking, timeout=CLOSE_S)

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
            return self._not_its_fault(room_made)
        if self._loads(status):
            return self._not_its_fault(True)
        self.status = status
        counters, live = dict(status.get("counters") or {}), str(status.get("live_worker", ""))
        if live != self._live:
            after, self._live = not self._live and not self.watched.generation, live
            self._first = counters if after else {}  # what was counted before the watch began was judged in the trial
            self._since, self._before, self._memory = {}, {}, []
        self._crashes = int(status.get("crashes", 0)) if self._crashes < 0 else self._crashes
        return True

    def _loads(self, status: dict[str, Any]) -> bool:
        """After a trial: it is being loaded, and not because it has crashed."""
        if self.watched.generation or status.get("live_worker") or status.get("trouble"):
            return False
        return self._crashes < 0 or int(status.get("crashes", 0)) <= self._crashes

    def _not_its_fault(self, nobody_serves: bool) -> bool:
        """It is not looked at. What the application says while nothing serves is said of no release."""
        if nobody_serves and not self.watched.generation:
            self._shared.words.pop(self.watched.unit, None)
        return False

    def _faulted(self, now: float) -> int | None:
        """Faults of the GPU in a trial, or in the last hour after it; None where the device does not tell."""
        count, marks = self._hardware.gpu_faults(), self._faults
        if count is None:
            return None
        if not marks or marks[-1][1] != count:
            marks.append((now, count))
        while not self.watched.generation and len(marks) > 1 and marks[1][0] <= now - FAULTS_S:
            del marks[0]
        return count - marks[0][1]

    def _read(self, probe: Probe, asked: float) -> None:
        counters, crashes = dict(self.status.get("counters") or {}), int(self.status.get("crashes", 0))
        if probe.kind == "memory_growth":
            self._sample(asked, counters)
        if probe.kind == "worker_alive":
            self._crashed += [asked] * (crashes - max(self._crashes, 0))
            self._crashed = [at for at in self._crashed if at > asked - CRASHES_S]
        sight = Sight(
            counters=counters,
            since=self._since.get(probe.name, self._first),
            before=self._before.get(probe.name, self._first),
            live=str(self.status.get("live_worker", "")),
            crashes=crashes,
            crashes_before=max(self._crashes, 0),
            crashes_lately=len(self._crashed),
            memory=self._memory,
            incumbent=self.watched.felt,
            gpu_faults=self._faulted(asked) if probe.kind == "gpu_faults" else None,
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
            held_up = self._clock.monotonic() - asked > probe.timeout_s + HELD_UP_S
            # A worker that is too busy to tell of its answers has not answered nonsense.
            outcome = UNAVAILABLE if probe.kind in READERS else FAIL
            reading = None if held_up else Reading(outcome, message=f"no answer within {probe.timeout_s:g} s")
        except Unreachable:
            reading = None
        except InterlockError as refused:
            reading = Reading(UNAVAILABLE, message=refused.message)
        except Exception as fault:  # no descriptors left, a fault of ours: told, and never silence
            log.exception("not asked: %s", probe.name, extra={"unit": self.watched.unit})
            reading = Reading(UNAVAILABLE, message=f"it could not be asked: {fault!r}"[:500])
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
