"""Carries out what the rules say: event -> row -> effects, one event of a unit at a time.

Rules of the file:
- It owns no rule and no I/O: `core` decides, ports act. Only `_step` changes a unit's state.
- Events of one unit are serial (a lock); units are independent. What takes long (loading, measuring, draining) is
  never done under the lock, so that a death is dealt with at once.
- A `must` effect that fails undoes the event (`io`) or is fed back; any other failed write is remembered and tried
  again with the next event, a second later at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, ClassVar

from interlock_agent.host import core, states
from interlock_agent.host.following import Following
from interlock_agent.host.messages import CODES, Loaded, Probe, Promoted, Samples
from interlock_agent.host.ports import Clock, Events, Fronts, Hooks, Store, Upstream, Workers
from interlock_agent.host.ports import WorkerError as Refused
from interlock_agent.host.seat import Seat
from interlock_agent.host.states import Effect

log = logging.getLogger("interlock.host")

LOOK_S = 1.0  # how often a lease is looked at: the loop's clock stands still in suspend
LOST_MAX = 64  # dead workers that are remembered
RETRY_WRITE_S = 1.0  # how soon a record that the disk refused is tried again


class Engine:
    """The host's orders and events; see `messages.py` for what each means."""

    def __init__(
        self, store: Store, workers: Workers, fronts: Fronts, clock: Clock, events: Events, token: str, hooks: Hooks
    ) -> None:
        self._store, self._workers, self._fronts = store, workers, fronts
        self._clock, self._events = clock, events
        self._token = token  # makes worker ids of this host's life distinct from its predecessor's
        self._numbers = 0
        self.seats: dict[str, Seat] = {}
        self.broken: list[str] = []  # state files that were set aside
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lost: dict[str, str] = {}  # why workers died, for an order that comes too late
        self._configuring = asyncio.Lock()
        record = states.Record(must=False)
        self._following = Following(hooks, store, clock, self._spawn, lambda seat: self._try(seat, record), self._event)

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Cold start: every unit that was configured listens and serves its confirmed release."""
        for name in await self._store.units():
            document = await self._read(name)
            if document and document.get("listen"):
                try:
                    await self._open(name, document["listen"], document.get("options") or {}, document)
                except (OSError, ValueError) as failure:  # the others serve; the agent will configure this one
                    log.error("unit=%s cannot listen: %s", name, failure)

    async def close(self) -> None:
        """Stop timers and loads; the adapters end the processes."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return await self._store.read(name)
        except ValueError as broken:
            self.broken.append(str(broken))
            log.error("unit=%s state file set aside: %s", name, broken)
            return None

    async def configure(self, name: str, listen: str, options: dict[str, Any]) -> str:
        """Make sure that a unit is there; its address."""
        if not states.UNIT_NAME.fullmatch(name):
            raise Refused("bad_request", f"{name!r} cannot be the name of a unit")
        async with self._configuring:
            seat = self.seats.get(name)
            if seat is None:
                seat = await self._open(name, listen, options, await self._read(name))
            if (seat.listen, seat.options) != (listen, options):
                async with seat.lock:
                    seat.listen, seat.options = listen, options
                    await self._store.write(name, seat.document())
                self._following.catch_up(seat)
            return seat.address

    async def _open(self, name: str, listen: str, options: dict[str, Any], document: dict[str, Any] | None) -> Seat:
        confirmed, live = await self._store.links(name)
        release = await self._store.seal(name, confirmed) if confirmed else None
        seals = [await self._store.seal(name, slot) for slot in states.SLOTS]
        floor = max((seal.generation for seal in seals if seal), default=0)
        unit, effects = core.resume(name, document, (confirmed, release), live, floor, self._clock.utc())
        # A port of 0 is chosen once and stays, as long as nobody else has taken it.
        known = (document or {}).get("address") or ""
        try:
            address = await self._fronts.open(name, known if known and listen.endswith(":0") else listen)
        except OSError:
            if not known or not listen.endswith(":0"):
                raise
            address = await self._fronts.open(name, listen)
        seat = Seat(unit, listen, address, options, hooked=str((document or {}).get("hooked") or ""))
        self.seats[name] = seat
        async with seat.lock:
            if (document or {}).get("address") != address:
                await self._try(seat, states.Record(must=False))
            for effect in effects:
                await self._try(seat, effect)
        self._following.catch_up(seat)
        self._spawn(self._timer(seat))
        return seat

    async def _timer(self, seat: Seat) -> None:
        while True:
            seat.wake.clear()
            at = core.wake_at(seat.unit)
            wait = None if at is None else min(LOOK_S, max(0.0, at - self._clock.now()))
            if seat.unit.unrecorded or seat.unit.adrift or seat.unit.doubtful:
                wait = min(wait if wait is not None else RETRY_WRITE_S, RETRY_WRITE_S)
            woken = asyncio.ensure_future(seat.wake.wait())
            waits: list[asyncio.Future[Any]] = [woken]
            if wait is not None:
                waits.append(asyncio.ensure_future(self._clock.sleep(wait)))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
            if not woken.done() or woken.cancelled():
                await self._event(seat, states.Tick())

    # --- the one place where a unit's state changes ---------------------------------------------------------------

    async def _event(self, seat: Seat, event: states.Event) -> dict[str, Any]:
        """Step one event and carry it out; the answer of an order. Raises Refused."""
        async with seat.lock:
            before = core.first(seat.unit, event, self._clock.now())
            if before:
                await self._step(seat, before)
            return await self._step(seat, event)

    async def _step(self, seat: Seat, event: states.Event) -> dict[str, Any]:
        old = seat.unit
        seat.unit, effects = core.step(old, event, self._clock.now(), self._clock.utc())
        answer: dict[str, Any] = {}
        for effect in effects:
            if isinstance(effect, states.Refuse):
                raise Refused(effect.code, effect.message)
            if isinstance(effect, states.Answer):
                answer = effect.ok
                continue
            failure = await self._try(seat, effect)
            if failure is None or not getattr(effect, "must", False):
                continue
            if isinstance(effect, states.LinkLive):
                await self._step(seat, states.Broke(f"io: {failure}"))
            else:
                seat.unit = replace(old, doubtful=old.doubtful or isinstance(effect, states.LinkConfirmed))
            seat.wake.set()
            raise Refused("io", str(failure))
        if seat.unit is not old:
            log.info(
                "unit=%s generation=%d event=%s phase=%s live=%s standby=%s worker=%s",
                old.name,
                seat.unit.generation,
                type(event).__name__,
                seat.unit.phase.value,
                seat.unit.live or "-",
                seat.unit.standby or "-",
                getattr(event, "worker", "-"),
            )
        seat.wake.set()
        return answer

    async def _try(self, seat: Seat, effect: Effect) -> OSError | None:
        try:
            await self._EFFECTS[type(effect)](self, seat, effect)
        except OSError as failure:
            log.error("unit=%s effect=%s failed: %s", seat.unit.name, effect, failure)
            if isinstance(effect, states.Record) and not effect.must:
                seat.unit = replace(seat.unit, unrecorded=True)
            if isinstance(effect, states.LinkLive) and not effect.must:
                seat.unit = replace(seat.unit, adrift=True)
            if isinstance(effect, states.LinkConfirmed) and not effect.must:
                seat.unit = replace(seat.unit, doubtful=True)
            return failure
        return None

    async def _record(self, seat: Seat, effect: Any) -> None:
        if seat.unit.doubtful and not seat.unit.trial:
            raise OSError("the link `confirmed` has to be put right first")
        await self._store.write(seat.unit.name, seat.document())
        seat.unit = replace(seat.unit, unrecorded=False)

    async def _link_live(self, seat: Seat, effect: Any) -> None:
        await self._store.link(seat.unit.name, "live", effect.slot)
        seat.unit = replace(seat.unit, adrift=False)
        self._following.moved(seat)

    async def _link_confirmed(self, seat: Seat, effect: Any) -> None:
        await self._store.link(seat.unit.name, "confirmed", effect.slot)
        seat.unit = replace(seat.unit, doubtful=False)

    async def _serve(self, seat: Seat, effect: Any) -> None:
        def upstream(name: str) -> Upstream | None:
            worker = seat.unit.workers.get(name)
            return Upstream(name, worker.release.name, worker.generation) if worker else None

        await self._workers.serves(effect.live)
        seat.counters = {} if seat.counters.get("worker") != effect.live else seat.counters
        seat.drained = await self._fronts.serve(
            seat.unit.name, upstream(effect.live), upstream(effect.standby), effect.drain_s
        )

    async def _start_worker(self, seat: Seat, effect: Any) -> None:
        if effect.slot:  # the host's own; one that an order has started is awaited by the order
            self._spawn(self._run_own(seat, effect.worker, effect.slot))

    async def _end_worker(self, seat: Seat, effect: Any) -> None:
        seat.folders.pop(effect.worker, None)
        await self._workers.end(effect.worker)

    async def _push(self, seat: Seat, effect: Any) -> None:
        self._events.push(effect.event)

    async def _run_own(self, seat: Seat, worker: str, slot: str) -> None:
        known = seat.unit.workers.get(worker)
        if known is None:
            return
        folder = self._store.slot_folder(seat.unit.name, slot)
        try:
            await self._workers.start(worker, seat.unit.name, folder, known.generation, seat.options)
        except Refused as failed:
            seat.trouble = str(failed)
            log.error("unit=%s worker=%s does not load: %s", seat.unit.name, worker, failed)
            await self._event(seat, states.Died(worker, str(failed)))
            return
        seat.trouble = ""
        await self._event(seat, states.Ready(worker))

    # --- orders -------------------------------------------------------------------------------------------------

    def _seat(self, unit: str) -> Seat:
        try:
            return self.seats[unit]
        except KeyError:
            raise Refused("bad_request", f"unit {unit!r} is not configured") from None

    def _owner(self, worker: str) -> Seat | None:
        return next((seat for seat in self.seats.values() if worker in seat.unit.workers), None)

    async def load(self, unit: str, generation: int, folder: str, role: str, options: dict[str, Any]) -> Loaded:
        """Start a worker on a sealed folder. Raises Refused."""
        seat = self._seat(unit)
        release = await self._store.seal_of(folder)
        if release is None:
            raise Refused("corrupt", f"{folder}: no readable seal")
        if release.model != unit:
            raise Refused("bad_request", f"{folder} holds {release.name}, not a release of {unit}")
        self._numbers += 1
        worker = f"{unit}-{generation}-{self._token}{self._numbers}"
        await self._event(seat, states.Load(generation, worker, role, release))
        try:
            loaded = await self._workers.start(
                worker, unit, folder, generation, {**seat.options, **options, "role": role}
            )
        except Refused as failed:
            await self._event(seat, states.Died(worker, str(failed)))
            raise
        await self._event(seat, states.Ready(worker))
        if worker not in seat.unit.workers:
            raise Refused("unknown_worker", f"{worker} was superseded while it loaded")
        return loaded

    async def promote(
        self, unit: str, generation: int, worker: str, slot: str, lease_s: float, drain_max_s: float
    ) -> Promoted:
        """Begin a trial; returns when the former worker's requests have ended. Raises Refused."""
        seat = self._seat(unit)
        found = await self._store.seal(unit, slot) if slot in states.SLOTS else None
        await self._following.reachable(seat)
        await self._event(seat, states.Promote(generation, worker, slot, found, lease_s, drain_max_s))
        if seat.promoted and seat.promoted[0] == worker:
            return seat.promoted[1]
        drained = seat.drained
        figures = await asyncio.shield(asyncio.ensure_future(drained)) if drained else Promoted(0, 0, 0.0)
        await self._fronts.settle(unit)
        seat.must_serve(worker, generation)
        trouble = await self._following.told(seat)
        if trouble and seat.unit.live == worker:
            await self._event(seat, states.Revert(generation, "hook_failed"))
            raise Refused("hook_failed", trouble)
        seat.must_serve(worker, generation)  # a hook takes long
        seat.promoted = (worker, figures)
        return figures

    async def renew(self, unit: str, generation: int) -> dict[str, Any]:
        """Extend the lease. Raises Refused."""
        return await self._event(self._seat(unit), states.Renew(generation))

    async def confirm(self, unit: str, generation: int) -> dict[str, Any]:
        """The commit point. Raises Refused."""
        seat = self._seat(unit)
        await self._fronts.settle(unit)  # a death that the front has seen comes before the commit
        return await self._event(seat, states.Confirm(generation))

    async def revert(self, unit: str, generation: int, reason: str) -> tuple[str, float]:
        """End the trial; the release that serves now, and how long the switch took in ms. Raises Refused."""
        seat = self._seat(unit)
        before = seat.unit.trial
        await self._event(seat, states.Revert(generation, reason))
        swap_ms = 0.0
        if before and before.generation == generation and seat.drained:
            swap_ms = (await asyncio.ensure_future(seat.drained)).swap_ms
        return seat.release(seat.unit.live), swap_ms

    async def retire(self, worker: str, generation: int) -> None:
        """End a worker that serves nobody. Raises Refused."""
        seat = self._owner(worker)
        if seat:
            await self._event(seat, states.Retire(generation, worker))

    def measured(self, worker: str, generation: int) -> str:
        """Fence an order to measure; the worker's id. Raises Refused."""
        seat = self._owner(worker)
        if worker in self._lost:  # it died between two orders
            code = self._lost[worker].partition(":")[0]
            raise Refused(code if code in CODES else "worker_died", self._lost[worker])
        if seat is None or not seat.unit.workers[worker].ready:
            raise Refused("unknown_worker", f"no worker {worker}: it may have died")
        if generation < seat.unit.generation:
            raise Refused("stale_generation", f"generation {generation} is older than {seat.unit.generation}")
        return worker

    async def probe(self, order: Probe) -> Samples:
        """Measure latency. Raises Refused."""
        self.measured(order.worker, order.generation)
        return await self._workers.probe(order)

    async def evaluate(self, worker: str, generation: int, timeout_s: float, answers: str = "") -> Any:
        """Run the golden set. Raises Refused."""
        return await self._workers.evaluate(self.measured(worker, generation), timeout_s, answers)

    # --- what the world reports -----------------------------------------------------------------------------------

    async def worker_died(self, worker: str, reason: str) -> None:
        """Its process ended, it hangs, or the front has lost it."""
        seat = self._owner(worker)
        if seat:
            self._lost[worker] = reason
            while len(self._lost) > LOST_MAX:
                del self._lost[next(iter(self._lost))]
            await self._event(seat, states.Died(worker, reason))

    def counted(self, unit: str, worker: str, counters: dict[str, Any]) -> None:
        """Figures of the live worker, from the front."""
        seat = self.seats.get(unit)
        known = seat.unit.workers.get(worker) if seat else None
        if seat is None or known is None:
            return
        seat.counters = {"worker": worker, **counters}
        fields = {"unit": unit, "generation": known.generation, "worker": worker, "counters": counters}
        self._events.push({"event": "counters", **fields})

    # --- status -------------------------------------------------------------------------------------------------

    async def look(self) -> list[dict[str, Any]]:
        """`status`, of each unit when no event of it is being carried out: what is told is durable, and done."""
        found = []
        for _, seat in sorted(self.seats.items()):
            async with seat.lock:
                found.append(seat.status(self._workers.pid, self._clock.now()))
        return found

    def status(self) -> list[dict[str, Any]]:
        """`UnitStatus` of every unit, as documents, as it is decided now."""
        return [seat.status(self._workers.pid, self._clock.now()) for _, seat in sorted(self.seats.items())]

    _EFFECTS: ClassVar[dict[type[Effect], Callable[[Engine, Seat, Any], Awaitable[None]]]] = {
        states.Record: _record,
        states.LinkLive: _link_live,
        states.LinkConfirmed: _link_confirmed,
        states.Serve: _serve,
        states.StartWorker: _start_worker,
        states.EndWorker: _end_worker,
        states.Push: _push,
    }
