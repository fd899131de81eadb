"""One run of the gate: who is judged against whom, the way to their processes, and what was measured so far."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from interlock_agent.config import Unit
from interlock_agent.core.gate import checks
from interlock_agent.core.gate import limits as limiting
from interlock_agent.core.gate.gap import Plan
from interlock_agent.core.gate.guest import Guest
from interlock_agent.core.gate.recorded import fits
from interlock_agent.host import messages
from interlock_agent.ports import Clock, Hardware, Host
from interlock_agent.steps.gate.command import ByCommand
from interlock_agent.steps.gate.costs import Costs
from interlock_agent.steps.gate.gap import NO_GAP, Gap, held_by_live
from interlock_shared.documents import StageResult
from interlock_shared.errors import Later, Refused
from interlock_shared.manifest import Manifest, Variant

SERVES_S = 1.0  # one look whether the confirmed release serves again
PROBE_S = 60.0  # for a block of inferences one after the other, which takes milliseconds, or a single one

Samples = dict[str, list[int]]
Record = tuple[dict[str, Any], dict[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Baseline:
    """The incumbent: what the candidate is compared with. `folder`: its sealed folder; `items`: the golden data that it
    was judged on, by segments; `record`: the newest verdict that accepted it under a fingerprint, with its samples."""

    version: str
    payload_sha256: str
    folder: str
    items: tuple[str, ...] = ()
    record: Callable[[dict[str, Any]], Awaitable[Record | None]] | None = None


class TwinTooLarge(Later):
    """The incumbent's twin was refused memory, and the owner's policy knows what to do then."""


@dataclass(frozen=True)
class Place:
    """Where a run happens: the unit, its settings, and the device around it."""

    unit: str
    generation: int
    settings: Unit
    listen: str
    fingerprint: dict[str, Any]
    host: Host
    clock: Clock
    hardware: Hardware
    tell: Callable[..., None]  # progress for people
    options: dict[str, Any] | None = None  # of the unit, as the host knows them; None: what the settings say
    command: ByCommand | None = None  # then it is the host too: what is measured is asked of the owner's command


@dataclass
class Tried:
    """One variant of the candidate, in its own worker."""

    variant: Variant
    folder: str = ""
    worker: str = ""
    loaded: dict[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    stages: list[StageResult] = field(default_factory=list)
    peak_bytes: int = 0
    costs: Costs = field(default_factory=Costs)

    @property
    def outcome(self) -> str:
        """accept, reject or inconclusive, once its stages are there."""
        return checks.conclude(self.stages)[0]


@dataclass
class Run:
    """What is judged. `prepare(variant)` seals the candidate's folder for a variant and gives its path; `variants`: of
    the manifest, those that are asked here. `serving`: it is what serves, in a slot that is sealed for one variant and
    not written to: no other form of it can be opened there."""

    place: Place
    manifest: Manifest
    payload_sha256: str
    prepare: Callable[[str], Awaitable[str]]
    contract: dict[str, Any] | None
    incumbent: Baseline | None
    variants: tuple[Variant, ...]
    serving: bool = False
    plan: Plan = NO_GAP
    sealed: tuple[str, str] = ("", "")  # variant and folder
    answers_kept: bool = False  # the reference's, in the folder, for what nothing is expected of
    twin: str = ""
    alone: bool = False  # no twin: it does not fit beside the candidate, or the owner does not want one
    started: float = 0.0
    before: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    guest: Guest = field(default_factory=Guest)
    candidate_s: float = 0.0  # of the stage, spent on orders about the candidate
    gap: Gap = field(default_factory=Gap)
    cramped: bool = False  # it was refused memory beside what serves, and the owner's policy knows what to do then
    roomy: bool = False  # the host can unload what serves
    will_be_free: dict[str, int] = field(default_factory=dict)  # bytes, where what serves makes room

    async def begin(self) -> None:
        """Take down when it began, what the device and its applications were like, and which limits hold."""
        self.started = self.place.clock.now()
        self.before = await self.place.hardware.environment()
        self.limits = limiting.effective_limits(self.manifest, self.place.settings.gate.limits())
        units = (await self.request(messages.Status()))["units"]
        self.guest = Guest(self.place.settings.gate.live_slowdown_max, Guest.p99s(units))
        mine = self._mine(units)
        self.roomy = mine is not None and mine.get("gap") is not None
        if self.plan.makes_room:
            self.alone = True
            self.will_be_free = held_by_live(mine, self.place.hardware)

    def _mine(self, units: list[dict[str, Any]]) -> dict[str, Any] | None:
        return next((unit for unit in units if unit.get("unit") == self.place.unit), None)

    def free(self) -> dict[str, int]:
        """Bytes that are free now, or will be when what serves has made room."""
        now = self.place.hardware.free()
        return {what: size + self.will_be_free.get(what, 0) for what, size in now.items()}

    @property
    def may_make_room(self) -> bool:
        """Whether what serves could still be unloaded for the candidate, and that would help."""
        settings = self.place.settings
        limited = settings.memory_limit_bytes or settings.gate.candidate_memory_bytes
        wanted = settings.policy == "auto" and settings.gate.baseline != "twin"
        return self.roomy and wanted and not limited and not self.plan.makes_room

    @property
    def measurable(self) -> bool:
        """Whether there is something to run: golden items, or a command that has its own."""
        return self.manifest.golden is not None or self.place.command is not None

    @property
    def runs_with(self) -> dict[str, Any]:
        """What of the owner's settings speed depends on."""
        settings = self.place.settings
        return {"providers": list(settings.providers), "threads": settings.threads}

    async def end(self) -> None:
        """Nothing that was only measured is left."""
        await self.retire(self.twin)
        if self.place.command is not None:
            await self.place.command.end()

    async def step_back(self) -> None:
        """Between two blocks: wait, where applications feel the gate."""
        if not self.guest.before:
            return
        pause = self.guest.turn((await self.request(messages.Status()))["units"])
        if pause > 0:
            await self.place.clock.sleep(pause)

    def budget(self) -> Callable[[], bool]:
        """Begins now: whether the time for measuring is up. Stepping back does not count."""
        clock, guest, allowed = self.place.clock, self.guest, self.place.settings.gate.budget_s
        began = clock.monotonic() - guest.yielded_s
        return lambda: clock.monotonic() - guest.yielded_s - began >= allowed or self.gap.left_s(clock) <= 0

    async def steady(self, measuring: Awaitable[T]) -> T | None:
        """What is measured; None where the device changed its pace meanwhile: that says nothing."""
        before = self.place.hardware.pace()
        measured = await measuring
        return measured if self.place.hardware.pace() == before else None

    async def request(self, order: Any) -> dict[str, Any]:
        """An order to the host. What is the candidate's own fault is Refused; the host being away is Later, and so is
        the incumbent's twin failing: that is not the candidate's fault."""
        worker, began = getattr(order, "worker", ""), self.place.clock.monotonic()
        try:
            return await self.place.host.request(order)
        except Refused as error:
            if self.twin and worker == self.twin:
                raise self._of_twin(error) from None
            raise
        finally:
            if getattr(order, "role", "") == "candidate" or worker not in ("", self.twin):
                self.candidate_s += self.place.clock.monotonic() - began

    async def seal(self, variant: str) -> str:
        """Seal the candidate's folder for a variant, where it is not yet; its path."""
        if self.sealed[0] != variant:
            self.sealed = (variant, await self.prepare(variant))
        return self.sealed[1]

    async def load(self, folder: str, role: str, golden: str | None = None) -> dict[str, Any]:
        """Start a worker on a sealed folder, and nicer where anybody is served; `golden`: the folder whose golden data
        it is measured on."""
        options = self.place.settings.options()
        if golden is not None:
            options["golden_folder"] = golden
        order = messages.Load(self.place.unit, self.place.generation, folder, role, options)
        if self.plan.makes_room and role == "candidate":
            return await self._load_alone(order)
        nice = self.guest.nice if self.limits.get("load_s_max") is None else 0  # a limit holds for what will serve
        if nice:
            try:
                return await self.request(replace(order, options={**options, "nice": nice}))
            except Refused as error:
                if error.code != "worker_hung":  # it may have given way to others for too long
                    raise
        return await self.request(order)

    async def _load_alone(self, order: messages.Load) -> dict[str, Any]:
        """In the place of what serves; it has to serve before, so that two gaps are not one."""
        place, settings = self.place, self.place.settings
        until = place.clock.monotonic() + settings.load_timeout_s
        while place.clock.monotonic() < until:
            mine = self._mine((await self.request(messages.Status()))["units"])
            if mine is None or mine.get("ready") or not mine.get("confirmed"):
                break
            await place.host.event(place.unit, SERVES_S)
        place.tell(doing="gate", stage="loads", gap=self.plan.document())
        drain_max_s = min(settings.trial.drain_max_s, self.plan.at_most_s / 2)
        gap_s, expected_s = self.plan.at_most_s, self.plan.expected_s
        order = replace(order, gap_s=gap_s, expected_s=expected_s, drain_max_s=drain_max_s)
        loaded = await self.request(order)
        mine = self._mine((await self.request(messages.Status()))["units"])
        self.gap.opened(mine, place.clock, self.plan.at_most_s)
        return loaded

    def _of_twin(self, error: Refused) -> Later:
        """The incumbent's trouble is not the candidate's fault."""
        auto = self.place.settings.gate.baseline == "auto"
        kind = TwinTooLarge if auto and error.code == "out_of_memory" else Later
        return kind(f"the incumbent's twin: {error.message}", code="twin_failed")

    async def load_twin(self, tried: Tried) -> None:
        """The incumbent in a process of its own, on the candidate's golden data; once a run. Not where the owner does
        not want one, nor where it does not fit: then `alone`."""
        if self.incumbent is None or self.twin or self.alone:
            return
        policy = self.place.settings.gate.baseline
        if policy == "recorded" or (policy == "auto" and not await self._twin_fits()):
            self.alone = True
            return
        try:
            self.twin = str((await self.load(self.incumbent.folder, "twin", tried.folder))["worker"])
        except Refused as error:
            trouble = self._of_twin(error)
            if not isinstance(trouble, TwinTooLarge):
                raise trouble from None
            self.alone = True

    async def _twin_fits(self) -> bool:
        """Whether it is not known to need more memory than is free: what serves must not be driven out by trying."""
        found = await self.record()
        return found is None or fits(found[0], self.place.hardware.free())

    async def without_twin(self) -> None:
        """It was too large after all."""
        await self.retire(self.twin)
        self.twin, self.alone = "", True

    async def record(self) -> Record | None:
        """What is recorded of the incumbent."""
        if self.incumbent is None or self.incumbent.record is None:
            return None
        return await self.incumbent.record(self.place.fingerprint)

    async def retire(self, worker: str) -> None:
        """End a worker; one that is gone is as good."""
        if worker:
            try:
                await self.request(messages.Retire(worker, self.place.generation))
            except (Later, Refused):
                return

    async def probe(
        self, worker: str, first: int, runs: int, concurrency: int = 1, nice: int = 0, timeout_s: float = PROBE_S
    ) -> dict[str, Any]:
        """One block of inferences, so many at a time: `messages.Samples`."""
        return await self.request(
            messages.Probe(worker, self.place.generation, first, runs, timeout_s, concurrency=concurrency, nice=nice)
        )

    async def evaluate(self, worker: str, answers: str = "") -> dict[str, Any]:
        """One pass over the golden set: `messages.Evaluation`; `answers`: as in `messages.Evaluate`."""
        return await self.request(messages.Evaluate(worker, self.place.generation, answers=answers))
