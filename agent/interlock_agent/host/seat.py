"""One unit while the host runs: its state, and what the rules need not know.

Rules of the file:
- Only the engine changes a seat. No I/O and no clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import asdict, dataclass, field
from typing import Any

from interlock_agent.host.messages import Counters, Promoted
from interlock_agent.host.ports import WorkerError, Workers
from interlock_agent.host.states import Configured, Release, Unit


@dataclass
class Seat:
    """A unit's place in the host."""

    unit: Unit
    listen: str = ""
    address: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: dict[str, asyncio.Task[None] | None] = field(default_factory=dict)  # workers that are being ended
    drained: Awaitable[Promoted] | None = None
    promoted: tuple[str, Promoted] | None = None  # worker and the figures of its switch, to be told again
    counters: dict[str, Any] = field(default_factory=dict)
    hooked: str = ""  # slot and generation that the owner's hook has told of last, durably; "?": it was begun
    following: asyncio.Task[str] | None = None  # the run of the hook after the newest move of `live`
    hook_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    hook_trouble: str = ""
    watching: asyncio.Task[str] | None = None  # looks whether what was told still holds
    hook_again: asyncio.Task[str] | None = None  # waits to try it again
    trouble: str = ""  # what kept the confirmed release from starting
    nobody_since: float = 0.0  # when the last one that answered was taken away; 0: somebody answers, or nobody ever has
    answers: str = ""  # worker
    gap_s: float = 0.0  # for how long nobody had answered before that one did
    answered: asyncio.Event = field(default_factory=asyncio.Event)  # somebody answers

    def nobody(self, now: float) -> None:
        """Nobody answers from now on."""
        if self.answers:
            self.nobody_since = now
        self.answers = ""
        self.answered.clear()

    def somebody(self, worker: str, now: float) -> None:
        """That one does."""
        if worker != self.answers:
            self.gap_s = now - self.nobody_since if self.nobody_since else 0.0
        self.answers, self.nobody_since = worker, 0.0
        self.answered.set()

    def release(self, worker: str) -> str:
        """The release of a worker, "" when there is no such worker."""
        known = self.unit.workers.get(worker)
        return known.release.name if known else ""

    def must_serve(self, worker: str, generation: int) -> None:
        """The trial of that worker is on, or was confirmed. Raises WorkerError with why it is not."""
        if self.unit.live != worker:
            past = self.unit.outcome
            reason = past.reason if past and past.generation == generation else ""
            code = reason if reason in ("lease_lapsed", "hook_failed") else "worker_died"
            raise WorkerError(code, f"the trial of {worker} is over already")

    def document(self) -> dict[str, Any]:
        """What is durable."""
        settings = {"listen": self.listen, "address": self.address, "options": self.options}
        return {**self.unit.document(), **settings, "hooked": self.hooked}

    @property
    def hook(self) -> dict[str, Any]:
        """The owner's, empty where he has none."""
        return dict(self.options.get("hook") or {})

    @property
    def configured(self) -> Configured:
        """What of the owner's word the rules have to know."""
        return Configured(spare=self.options.get("spare") == "always")

    @property
    def served(self) -> tuple[str, Release | None]:
        """Slot and release that `live` stands for; "" and None when nothing does."""
        if self.unit.trial:
            return self.unit.trial.slot, self.unit.trial.release
        return self.unit.confirmed_slot, self.unit.confirmed

    @property
    def hooked_now(self) -> str:
        """What `hooked` is when the hook has told of `live` as it is."""
        slot, release = self.served
        return f"{slot}:{release.generation}" if release else ""

    def status(self, workers: Workers, now: float) -> dict[str, Any]:
        """`messages.UnitStatus`, with `crashes` and `trouble` (why the confirmed release does not start)."""
        unit, trial = self.unit, self.unit.trial
        live_slot = trial.slot if trial else unit.confirmed_slot if unit.live else ""
        counters = {k: v for k, v in self.counters.items() if k != "worker"} or asdict(Counters())
        return {
            "unit": unit.name,
            "address": self.address,
            "generation": unit.generation,
            "confirmed": unit.confirmed.name if unit.confirmed else "",
            "confirmed_slot": unit.confirmed_slot,
            "live": self.release(unit.live),
            "live_slot": live_slot,
            "live_worker": unit.live,
            "standby": self.release(unit.standby),
            "ready": bool(unit.live),
            "trial": trial.generation if trial else 0,
            "lease_left_s": max(0.0, trial.deadline - now) if trial else 0.0,
            "outcome": unit.outcome.document() if unit.outcome else {},
            "counters": counters,
            "workers": [
                {
                    "worker": worker.id,
                    "pid": workers.pid(worker.id),
                    "said": workers.said(worker.id),
                    "role": "live"
                    if worker.id == unit.live
                    else "standby"
                    if worker.id == unit.standby
                    else worker.role,
                    "release": worker.release.name,
                    "generation": worker.generation,
                }
                for worker in unit.workers.values()
            ],
            "gap": self._gap(now),
            "crashes": unit.crashes,
            "trouble": self.trouble,
            "hook_trouble": self.hook_trouble,
        }

    def _gap(self, now: float) -> dict[str, Any]:
        """`messages.UnitStatus.gap`."""
        gap = self.unit.gap
        told = {"last_s": round(self.gap_s, 6)}
        if gap is None:
            return told
        return {**told, "generation": gap.generation, "expected_s": gap.expected_s, "left_s": gap.deadline - now}
