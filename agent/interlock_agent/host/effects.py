"""Carries out one effect: what the rules want done to the disk, the front and the processes, through the ports.

Rules of the file:
- No rule. Called under the unit's lock, so nothing here waits for a worker or a client.
- A disk that refuses is an `OSError`: what could not be done is marked in the unit, and done at the next occasion.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, ClassVar

from interlock_agent.host import states
from interlock_agent.host.following import Following
from interlock_agent.host.ports import Clock, Events, Fronts, Hooks, Store, Upstream, Workers
from interlock_agent.host.seat import Seat
from interlock_agent.host.states import Effect

log = logging.getLogger("interlock.host")

GONE_S = 10.0  # for a worker that was killed; one that hangs in a driver must not keep the next from serving
LOST_MAX = 64  # ended workers of which is remembered why


class Effects:
    """`spawn` starts a task that ends with the engine; `run_own` starts the host's own worker on a slot."""

    def __init__(
        self,
        world: tuple[Store, Workers, Fronts, Clock, Events, Hooks],
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
        run_own: Callable[[Seat, str, str], Coroutine[Any, Any, None]],
        event: Callable[[Seat, states.Event], Awaitable[Any]],
    ) -> None:
        self._store, self._workers, self._fronts, self._clock, self._events, hooks = world
        self._spawn, self._run_own = spawn, run_own
        self.lost: dict[str, str] = {}  # why workers ended, for an order that comes too late
        record = states.Record(must=False)
        self.following = Following(hooks, self._store, self._clock, spawn, lambda seat: self.do(seat, record), event)

    def remember(self, worker: str, why: str) -> None:
        """Why it ended: `code: words`, or words."""
        self.lost[worker] = why
        while len(self.lost) > LOST_MAX:
            del self.lost[next(iter(self.lost))]

    async def do(self, seat: Seat, effect: Effect) -> OSError | None:
        """Carry it out; what the disk says against it."""
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
        self.following.moved(seat)

    async def _link_confirmed(self, seat: Seat, effect: Any) -> None:
        await self._store.link(seat.unit.name, "confirmed", effect.slot)
        seat.unit = replace(seat.unit, doubtful=False)

    async def _serve(self, seat: Seat, effect: Any) -> None:
        def upstream(name: str) -> Upstream | None:
            worker = seat.unit.workers.get(name)
            return Upstream(name, worker.release.name, worker.generation) if worker else None

        live = upstream(effect.live)
        await self._workers.serves(effect.live)
        seat.counters = {} if seat.counters.get("worker") != effect.live else seat.counters
        if live is None:
            seat.nobody(self._clock.now())
        wait = {"wait_s": effect.wait_s, "expected_s": effect.expected_s} if live is None else {}
        standby = upstream(effect.standby)
        seat.drained = await self._fronts.serve(seat.unit.name, live, standby, effect.drain_s, **wait)
        if live is not None:
            seat.somebody(live.worker, self._clock.now())

    async def _start_worker(self, seat: Seat, effect: Any) -> None:
        if effect.slot:  # the host's own; one that an order has started is awaited by the order
            self._spawn(self._run_own(seat, effect.worker, effect.slot))

    async def _end_worker(self, seat: Seat, effect: Any) -> None:
        seat.leaving = {name: end for name, end in seat.leaving.items() if end or self._workers.pid(name)}
        seat.leaving[effect.worker] = None
        if effect.why:
            self.remember(effect.worker, effect.why)
        if effect.drained and seat.drained:
            seat.leaving[effect.worker] = self._spawn(self._end_drained(effect.worker, seat.drained))
        else:
            await self._workers.end(effect.worker)

    async def _end_drained(self, worker: str, drained: Awaitable[Any]) -> None:
        await asyncio.shield(asyncio.ensure_future(drained))
        await self._workers.end(worker)

    async def gone(self, seat: Seat) -> None:
        """Wait until every worker that was to end has ended: only then is its memory free. Bounded for each."""
        while seat.leaving:
            worker, ending = next(iter(seat.leaving.items()))
            if ending is not None:
                await asyncio.wait({ending})
            gone = asyncio.ensure_future(self._workers.gone(worker))
            await asyncio.wait({gone}, timeout=GONE_S)
            if not gone.done():
                gone.cancel()
                log.error("unit=%s worker=%s was killed and does not end; not waited for", seat.unit.name, worker)
            seat.leaving.pop(worker, None)

    async def _push(self, seat: Seat, effect: Any) -> None:
        event = effect.event
        if event.get("event") == "serving" and event["release"]:
            event = {**event, "gap_s": round(seat.gap_s, 6)}
        self._events.push(event)

    _EFFECTS: ClassVar[dict[type[Effect], Callable[[Effects, Seat, Any], Awaitable[None]]]] = {
        states.Record: _record,
        states.LinkLive: _link_live,
        states.LinkConfirmed: _link_confirmed,
        states.Serve: _serve,
        states.StartWorker: _start_worker,
        states.EndWorker: _end_worker,
        states.Push: _push,
    }
