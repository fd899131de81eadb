"""Carries out what the rules say: event -> row -> effects, one event of a unit at a time.

Rules of the file:
- It owns no rule and no I/O: `core` decides, ports act (`effects.py`). Only `_step` changes a unit's state.
- Events of one unit are serial (a lock); units are independent. What takes long (loading, measuring, draining) is
  never done under the lock, so that a death is dealt with at once.
- A `must` effect that fails undoes the event (`io`) or is fed back; any other failed write is remembered and tried
  again with the next event, a second later at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from interlock_agent.host import core, states
from interlock_agent.host.effects import Effects
from interlock_agent.host.messages import CODES, Load, Loaded, Look, Looked, Probe, Promoted, Reverted, Samples
from interlock_agent.host.ports import Clock, Events, Fronts, Hooks, Store, Workers
from interlock_agent.host.ports import WorkerError as Refused
from interlock_agent.host.seat import Seat

log = logging.getLogger("interlock.host")

LOOK_S = 1.0  # how often a lease is looked at: the loop's clock stands still in suspend
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
        self._configuring = asyncio.Lock()
        world = (store, workers, fronts, clock, events, hooks)
        self._effects = Effects(world, self._spawn, self._run_own, self._event)
        self._following = self._effects.following

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
            if seat is None or seat.options != options:
                await self._fronts.check(name, options)
            if seat is None:
                seat = await self._open(name, listen, options, await self._read(name))
            if (seat.listen, seat.options) != (listen, options):
                async with seat.lock:
                    if seat.listen != listen:
                        seat.address = await self._fronts.move(name, listen, options.get("access") or {})
                    await self._fronts.limit(name, options)
                    seat.listen, seat.options = listen, options
                    failure = await self._effects.do(seat, states.Record(must=False))
                seat.wake.set()
                if failure:
                    raise failure
                await self._event(seat, seat.configured)
                self._following.catch_up(seat)
            return seat.address

    async def _open(self, name: str, listen: str, options: dict[str, Any], document: dict[str, Any] | None) -> Seat:
        confirmed, live = await self._store.links(name)
        release = await self._store.seal(name, confirmed) if confirmed else None
        seals = [await self._store.seal(name, slot) for slot in states.SLOTS]
        floor = max((seal.generation for seal in seals if seal), default=0)
        unit, effects = core.resume(name, document, (confirmed, release), live, floor, self._clock.utc())
        # A port of 0 is chosen once and stays, as long as nobody else has taken it.
        known = str((document or {}).get("address") or "")
        chosen = listen.endswith(":0") and known.rpartition(":")[0] == listen.rpartition(":")[0]
        try:
            address = await self._fronts.open(name, known if chosen else listen, options)
        except OSError:
            if not chosen:
                raise
            address = await self._fronts.open(name, listen, options)
        seat = Seat(unit, listen, address, options, hooked=str((document or {}).get("hooked") or ""))
        self.seats[name] = seat
        async with seat.lock:
            if (document or {}).get("address") != address:
                await self._effects.do(seat, states.Record(must=False))
            for effect in effects:
                await self._effects.do(seat, effect)
            await self._step(seat, seat.configured)
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
            failure = await self._effects.do(seat, effect)
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

    async def _run_own(self, seat: Seat, worker: str, slot: str) -> None:
        known = seat.unit.workers.get(worker)
        if known is None:
            return
        folder = self._store.slot_folder(seat.unit.name, slot)
        await self._effects.gone(seat)
        if worker not in seat.unit.workers:  # ended meanwhile: what makes room for another is not loaded
            return
        try:
            loaded = await self._workers.start(worker, seat.unit.name, folder, known.generation, seat.options)
        except (Refused, OSError, ValueError) as failed:
            seat.trouble = str(failed)
            log.error("unit=%s worker=%s does not load: %s", seat.unit.name, worker, failed)
            await self._event(seat, states.Died(worker, str(failed)))
            return
        seat.trouble = ""
        await self._event(seat, states.Ready(worker, loaded.start_s or loaded.load_s))

    # --- orders -------------------------------------------------------------------------------------------------

    def _seat(self, unit: str) -> Seat:
        try:
            return self.seats[unit]
        except KeyError:
            raise Refused("bad_request", f"unit {unit!r} is not configured") from None

    def _owner(self, worker: str) -> Seat | None:
        return next((seat for seat in self.seats.values() if worker in seat.unit.workers), None)

    async def load(self, order: Load) -> Loaded:
        """Start a worker on a sealed folder. Raises Refused."""
        unit, generation, folder = order.unit, order.generation, order.folder
        seat = self._seat(unit)
        release = await self._store.seal_of(folder)
        if release is None:
            raise Refused("corrupt", f"{folder}: no readable seal")
        if release.model != unit:
            raise Refused("bad_request", f"{folder} holds {release.name}, not a release of {unit}")
        self._numbers += 1
        worker = f"{unit}-{generation}-{self._token}{self._numbers}"
        await self._event(seat, states.Load(generation, worker, order.role, release, alone=order.gap_s > 0))

        async def room() -> None:
            room = (order.gap_s, order.expected_s, order.drain_max_s)
            await self._event(seat, states.MakeRoom(generation, worker, *room))
            await self._effects.gone(seat)

        options = {**seat.options, **order.options, "role": order.role}
        try:
            alone = room if order.gap_s > 0 else None
            loaded = await self._workers.start(worker, unit, folder, generation, options, alone)
        except (Refused, OSError, ValueError) as failed:
            await self._event(seat, states.Died(worker, str(failed)))
            raise self._better(worker, failed) if isinstance(failed, Refused) else failed from None
        await self._event(seat, states.Ready(worker, loaded.start_s or loaded.load_s))
        if worker not in seat.unit.workers:
            raise self._better(worker, Refused("unknown_worker", f"{worker} was superseded while it loaded"))
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
        seat.promoted = (worker, replace(figures, gap_s=round(seat.gap_s, 6)))
        return seat.promoted[1]

    async def renew(self, unit: str, generation: int) -> dict[str, Any]:
        """Extend the lease. Raises Refused."""
        return await self._event(self._seat(unit), states.Renew(generation))

    async def confirm(self, unit: str, generation: int) -> dict[str, Any]:
        """The commit point. Raises Refused."""
        seat = self._seat(unit)
        await self._fronts.settle(unit)  # a death that the front has seen comes before the commit
        return await self._event(seat, states.Confirm(generation))

    async def revert(self, unit: str, generation: int, reason: str) -> Reverted:
        """End the trial. Answered when somebody serves again, or the confirmed release cannot. Raises Refused."""
        seat = self._seat(unit)
        before = seat.unit.trial
        await self._event(seat, states.Revert(generation, reason))
        swap_ms = 0.0
        if before and before.generation == generation and seat.drained:
            swap_ms = (await asyncio.ensure_future(seat.drained)).swap_ms
        while seat.unit.phase is states.Phase.STARTING and not seat.unit.retry_at:
            answered = asyncio.ensure_future(seat.answered.wait())
            await asyncio.wait({answered}, timeout=LOOK_S)
            answered.cancel()
        return Reverted(seat.release(seat.unit.live), swap_ms, round(seat.gap_s, 6) if seat.unit.live else 0.0)

    async def retire(self, worker: str, generation: int) -> None:
        """End a worker that serves nobody. Raises Refused."""
        seat = self._owner(worker)
        if seat:
            await self._event(seat, states.Retire(generation, worker))

    def measured(self, worker: str, generation: int) -> str:
        """Fence an order to measure; the worker's id. Raises Refused."""
        seat = self._owner(worker)
        if worker in self._effects.lost:  # it ended between two orders
            raise self._better(worker, Refused("unknown_worker", ""))
        if seat is None or not seat.unit.workers[worker].ready:
            raise Refused("unknown_worker", f"no worker {worker}: it may have died")
        if generation < seat.unit.generation:
            raise Refused("stale_generation", f"generation {generation} is older than {seat.unit.generation}")
        return worker

    def _better(self, worker: str, refused: Refused) -> Refused:
        """What is known of a worker's end says more than that it is not there."""
        known = self._effects.lost.get(worker)
        if known is None or refused.code != "unknown_worker":
            return refused
        code = known.partition(":")[0]
        return Refused(code if code in CODES else "worker_died", known)

    async def probe(self, order: Probe) -> Samples:
        """Measure latency. Raises Refused."""
        self.measured(order.worker, order.generation)
        try:
            return await self._workers.probe(order)
        except Refused as refused:
            raise self._better(order.worker, refused) from None

    async def evaluate(self, worker: str, generation: int, timeout_s: float, answers: str = "", items: int = 0) -> Any:
        """Run the golden set. Raises Refused."""
        try:
            return await self._workers.evaluate(self.measured(worker, generation), timeout_s, answers, items)
        except Refused as refused:
            raise self._better(worker, refused) from None

    async def look_at(self, order: Look) -> Looked:
        """What a worker has found in its answers. Raises Refused."""
        return await self._workers.look(self.measured(order.worker, order.generation), order.timeout_s)

    # --- what the world reports -----------------------------------------------------------------------------------

    async def worker_died(self, worker: str, reason: str) -> None:
        """Its process ended, it hangs, or the front has lost it."""
        seat = self._owner(worker)
        if seat:
            self._effects.remember(worker, reason)
            await self._event(seat, states.Died(worker, reason))

    def counted(self, unit: str, worker: str, counters: dict[str, Any]) -> None:
        """Figures of the live worker, from the front."""
        seat = self.seats.get(unit)
        known = seat.unit.workers.get(worker) if seat else None
        if seat is None or known is None:
            return
        if worker == seat.unit.live:  # not those of the former one, which the front sent before it was told
            seat.counters = {"worker": worker, **counters}
        fields = {"unit": unit, "generation": known.generation, "worker": worker, "counters": counters}
        self._events.push({"event": "counters", **fields})

    # --- status -------------------------------------------------------------------------------------------------

    async def look(self) -> list[dict[str, Any]]:
        """`status`, of each unit when no event of it is being carried out: what is told is durable, and done."""
        found = []
        for _, seat in sorted(self.seats.items()):
            async with seat.lock:
                found.append(seat.status(self._workers, self._clock.now()))
        return found

    def status(self) -> list[dict[str, Any]]:
        """`UnitStatus` of every unit, as documents, as it is decided now."""
        return [seat.status(self._workers, self._clock.now()) for _, seat in sorted(self.seats.items())]
