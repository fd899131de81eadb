"""Event -> row -> journal -> effect -> event. It owns no rule and no I/O.

Rules of the file:
- A phase changes in `_apply` alone, by a row of core.states, and only after the journal has it.
- One runner a unit carries its effects out, one after the other; an order from outside (wish, cancel, rollback)
  first ends the runner, then applies its row, then starts a new one.
- An effect is a function of `steps`: it gets a Step and returns what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from interlock_agent.config import Config
from interlock_agent.core import sideloads, wishes
from interlock_agent.core.records import Attempt, Transition, UnitRecord, Wish
from interlock_agent.core.reports import reports
from interlock_agent.core.states import RESTING, ROWS, SERVING_TRIAL, Effect, Event, Phase, resume
from interlock_agent.core.times import rfc3339
from interlock_agent.host import messages
from interlock_agent.ports import Ports, Source, Stored
from interlock_agent.steps.base import Happened, Shared, Step
from interlock_agent.steps.table import EFFECTS
from interlock_shared import tasks
from interlock_shared.documents import Assignment
from interlock_shared.errors import Busy, InterlockError, Later, Never, NotFound

log = logging.getLogger("interlock.engine")

LATER_S = 10.0  # about so long until a step that could not be done is tried again
AGAIN_S = 1.0  # until a step that no row waits for is done again
JOURNAL_AGAIN_S = 1.0  # until a transition that the disk refused is written again
_TRIALS = frozenset(phase.value for phase in SERVING_TRIAL)
TIDYING = (Effect.RETIRE, Effect.DROP)  # what they leave behind is found again by the next attempt, or by a start


def _tell_fault(unit: str, fault: Exception) -> None:
    log.error("fault", exc_info=fault, extra={"unit": unit})


class Engine:
    """All units of the device. `on_change(unit)` is called after each transition (the link reports it)."""

    def __init__(self, ports: Ports, config: Config, device: str) -> None:
        self.ports = ports
        self.config = config
        self.device = device
        self.stored = Stored()
        self.shared = Shared(ports=ports, config=config, device=device, stored=self.stored)
        self.on_change: Callable[[str], None] = lambda unit: None
        self.on_fault: Callable[[str, Exception], None] = _tell_fault
        self._runners: dict[str, asyncio.Task[None]] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._floors: dict[str, int] = {}
        self._changed = asyncio.Condition()

    # --- life ---------------------------------------------------------------------------------------------------

    async def load(self) -> Stored:
        """Read the journal. A unit with a confirmed slot and no record (a factory bundle, a journal that was lost) gets
        one from its seal."""
        self.stored = self.shared.stored = await self.ports.journal.load()
        for unit in await self.ports.slots.units():
            if unit not in self.stored.units:
                record = wishes.from_seals(unit, await self._seals(unit), await self.ports.slots.confirmed_slot(unit))
                if record is not None:
                    at = rfc3339(self.ports.clock.now())
                    lost = bool(self.stored.notes)
                    told = ({"kind": "state_lost", "at": at, "unit": unit, "reason": "rebuilt"},) if lost else ()
                    await self._commit(Transition(record, "", "rebuilt", at, outbox=told))
        return self.stored

    async def _seals(self, unit: str) -> dict[str, dict[str, Any]]:
        found = {slot: await self.ports.slots.seal_of(unit, slot) for slot in ("a", "b")}
        return {slot: seal for slot, seal in found.items() if seal is not None}

    async def start(self) -> None:
        """Resume every unit from its phase; `load` came before."""
        for unit in sorted(self.stored.units):
            record = self.stored.units[unit]
            effects = await self._back(unit)
            log.info("resumed", extra={"unit": unit, "generation": record.generation, "phase": record.phase})
            self._run(unit, effects)

    async def stop(self) -> None:
        """End every runner; the journal says where each unit stands."""
        await tasks.ended([*self._runners.values(), *self._asking])
        self._runners.clear()

    def record(self, unit: str) -> UnitRecord:
        """The unit's record; a fresh one when nothing was ever wanted there."""
        return self.stored.units.get(unit) or UnitRecord(unit=unit)

    async def wait(self, unit: str, done: Callable[[UnitRecord], bool]) -> UnitRecord:
        """Wait until the record satisfies `done`."""
        async with self._changed:
            await self._changed.wait_for(lambda: done(self.record(unit)))
            return self.record(unit)

    # --- orders from outside ------------------------------------------------------------------------------------

    async def desire(self, wanted: dict[str, Assignment], spread_s: float) -> None:
        """The server's newest wish for each unit, already believed and journaled."""
        self.shared.desired = dict(wanted)
        self.shared.spread_s = spread_s
        for unit in sorted(set(wanted) | set(self.stored.units)):
            try:
                await self.reconsider(unit)
            except Later:  # the journal's disk refused: this unit is asked again, the others now
                self._ask_again(unit)

    async def reconsider(self, unit: str) -> None:
        """Compare what is wanted with where the unit stands, and act by the answer. A unit that got past its switch
        meanwhile is asked again when it rests."""
        with contextlib.suppress(Busy):
            await self._reconsider(unit)

    async def _reconsider(self, unit: str) -> None:
        async with self._lock(unit):
            wanted, policy = self.shared.desired.get(unit), self.shared.sideload_policy()
            choice = wishes.choose(self.record(unit), wanted, self.shared.spread_s, policy)
            if choice is None:
                return
            if choice.event is Event.SUPERSEDE:
                await self._order(unit, Event.SUPERSEDE, reason="superseded")
                await self._order(unit, Event.WISH, wish=choice.wish)
            elif choice.event is Event.CANCEL:
                await self._order(unit, Event.CANCEL, reason="no_longer_wanted")
            else:
                await self._order(unit, Event.WISH, wish=choice.wish)

    async def sideload(self, unit: str, wish: Wish, source: Source) -> UnitRecord:
        """Take up a release from a file whose manifest was read. Raises Busy when the unit is past its switch."""
        async with self._lock(unit):
            record = self.record(unit)
            if (Phase(record.phase), Event.SUPERSEDE) in ROWS:
                await self._order(unit, Event.SUPERSEDE, reason="superseded")
            self.shared.sources[wish.assignment] = source
            try:
                await self._order(unit, Event.WISH, wish=wish)
            except InterlockError:
                del self.shared.sources[wish.assignment]  # an inbox asks every minute
                raise
            return self.record(unit)

    async def unpin(self, unit: str) -> UnitRecord:
        """What a file brought may be replaced by what the server wants. Raises NotFound (`not_sideloaded`), Busy."""
        async with self._lock(unit):
            after = sideloads.unpinned(self.record(unit))
            if Phase(after.phase) not in RESTING:  # nobody else is about to change the record
                raise Busy(f"{unit}: {after.phase}: not now", code="busy", phase=after.phase)
            await self._commit(Transition(after, after.phase, "unpinned", rfc3339(self.ports.clock.now())))
        self._ask_again(unit)
        return after

    async def rollback(self, unit: str) -> UnitRecord:
        """Go back: out of a trial at once, else to the previous confirmed release. Raises NotFound, Busy."""
        async with self._lock(unit):
            await self._order(unit, Event.ROLLBACK, reason="rolled_back")
            return self.record(unit)

    async def order(self, unit: str, event: Event, reason: str, seen: dict[str, Any] | None = None) -> None:
        """Who watches beside the units' runners has decided. Raises NotFound, Busy, Later."""
        async with self._lock(unit):
            await self._order(unit, event, reason=reason, data=seen)

    async def again(self, payload_sha256: str) -> list[str]:
        """A person has decided: the units that waited for one over this payload go on. Their names."""
        woken = []
        for unit, record in sorted(self.stored.units.items()):
            attempt = record.attempt
            if attempt is None or attempt.until >= 0 or attempt.payload_sha256 != payload_sha256:
                continue
            async with self._lock(unit):
                if (Phase(self.record(unit).phase), Event.DUE) in ROWS:
                    await self._order(unit, Event.DUE, reason="forgiven")
                    woken.append(unit)
        return woken

    async def judge_changed(self) -> None:
        """Judge again what was confirmed under another fingerprint than the device has now; what was put off (a window)
        when this is called again, what nothing could be said of when the agent starts again. Raises Later."""
        now = self.shared.fingerprint_sha256
        for unit, record in list(self.stored.units.items()):
            if not record.fingerprint or record.fingerprint == now or unit in self.shared.judged_again:
                continue
            async with self._lock(unit):
                if (Phase(self.record(unit).phase), Event.CHANGED) in ROWS:
                    await self._order(unit, Event.CHANGED, reason="fingerprint")

    # --- the host -----------------------------------------------------------------------------------------------

    def saw_generation(self, unit: str, generation: int) -> None:
        """The host knows generations up to this one: ours go on above it, also after a lost journal."""
        self._floors[unit] = max(self._floors.get(unit, 0), generation)

    async def configure(self, unit: str) -> None:
        """Make sure that the host has the unit's socket and front. Raises Unreachable, Refused."""
        await self.ports.host.request(messages.Configure(unit, self.config.listen(unit), self.shared.options(unit)))

    # --- the machine --------------------------------------------------------------------------------------------

    def _lock(self, unit: str) -> asyncio.Lock:
        return self._locks.setdefault(unit, asyncio.Lock())

    async def _order(
        self,
        unit: str,
        event: Event,
        *,
        wish: Wish | None = None,
        reason: str = "",
        data: dict[str, Any] | None = None,
    ) -> None:
        self._refuse(unit, event)
        await self._halt(unit)
        try:
            self._refuse(unit, event)  # the runner may have got one step further while it ended
            self._run(unit, await self._apply(unit, Happened(event, reason=reason, data=data or {}), wish))
        except (Later, NotFound):  # nothing has happened: what was under way goes on
            self._runners[unit] = asyncio.create_task(self._go_on(unit), name=f"unit {unit}")
            raise

    def _refuse(self, unit: str, event: Event) -> None:
        record = self.record(unit)
        row = ROWS.get((Phase(record.phase), event))
        if row is None:
            raise Busy(f"{unit}: {record.phase}: not now", code="busy", phase=record.phase)
        if row.next is Phase.RESTORING and record.previous is None:
            raise NotFound(f"{unit}: no previous release is in the spare slot", code="no_previous")
        if row.next is Phase.RESTORING and record.previous and self.shared.revoked(unit, record.previous):
            raise NotFound(f"{unit}: {record.previous.version} was revoked; nobody goes back to it", code="revoked")

    async def _go_on(self, unit: str) -> None:
        while True:
            try:
                effects = await self._whole(self._back(unit))
                break
            except Later as error:
                log.error("journal: %s", error.message, extra={"unit": unit})
                await self.ports.clock.sleep(JOURNAL_AGAIN_S)
        await self._runner(unit, effects)

    async def _back(self, unit: str) -> tuple[Effect, ...]:
        """To where a unit in this phase goes on from, as after a start."""
        record = self.record(unit)
        again = resume(record.phase)
        if again.phase.value != record.phase:
            at = rfc3339(self.ports.clock.now())
            await self._commit(Transition(replace(record, phase=again.phase.value), record.phase, "resume", at))
        return again.effects

    async def _halt(self, unit: str) -> None:
        runner = self._runners.pop(unit, None)
        if runner is not None and runner is not asyncio.current_task():
            await tasks.ended([runner])
        self.shared.release_gate(unit)  # whoever held it for this unit has ended

    def _run(self, unit: str, effects: tuple[Effect, ...]) -> None:
        if effects:
            self._runners[unit] = asyncio.create_task(self._runner(unit, effects), name=f"unit {unit}")

    async def _runner(self, unit: str, effects: tuple[Effect, ...]) -> None:
        waiting = list(effects)
        while waiting:
            effect = waiting.pop(0)
            if effect is Effect.SETTLE:
                # In a task of its own: it may start a runner for this unit, and this is the unit's runner.
                self.shared.settled(unit)
                self._runners.pop(unit, None)
                self._ask_again(unit)
                continue
            happened = await self._carry_out(unit, effect)
            if happened is None:
                continue
            phase = Phase(self.record(unit).phase)
            if (phase, happened.event) in ROWS:
                waiting = list(await self._journaled(unit, happened))
            elif happened.event in (Event.LATER, Event.REFUSED) and effect not in TIDYING:
                # No row waits here (a trial, say): the step itself is done again. The host's lease bounds it.
                log.warning("again: %s", happened.data.get("message"), extra={"unit": unit, "phase": phase.value})
                await self.ports.clock.sleep(AGAIN_S)
                waiting.insert(0, effect)
            else:
                log.warning("stale", extra={"unit": unit, "phase": phase.value, "event": happened.event.value})

    async def _journaled(self, unit: str, happened: Happened) -> tuple[Effect, ...]:
        """A disk that is full, or fails, is waited for: what has happened is not lost, and nothing goes on before it is
        durable. Leases run meanwhile, and the host goes back by itself."""
        while True:
            try:
                return await self._whole(self._apply(unit, happened, None))
            except Later as error:
                log.error("journal: %s", error.message, extra={"unit": unit})
                await self.ports.clock.sleep(JOURNAL_AGAIN_S)

    async def _whole(self, transition: Coroutine[Any, Any, tuple[Effect, ...]]) -> tuple[Effect, ...]:
        """A transition is carried out to its end even when its runner is ended: journal and memory stay equal."""
        task = asyncio.ensure_future(transition)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    def _ask_again(self, unit: str) -> None:
        task = asyncio.create_task(self._until_reconsidered(unit), name=f"settle {unit}")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _until_reconsidered(self, unit: str) -> None:
        while True:
            try:
                await self.reconsider(unit)
                return
            except Later as error:
                log.error("journal: %s", error.message, extra={"unit": unit})
                await self.ports.clock.sleep(JOURNAL_AGAIN_S)

    async def _carry_out(self, unit: str, effect: Effect) -> Happened | None:
        step = Step(self.shared, self.record(unit), self.config.unit(unit))
        try:
            return await EFFECTS[effect](step)
        except Never as error:
            return Happened(Event.REFUSED, reason=error.code, data=error.document())
        except Exception as fault:  # noqa: BLE001  # a fault of ours must not strand a unit: told, and tried again
            if not isinstance(fault, Later):
                self.on_fault(unit, fault)
            known = fault if isinstance(fault, InterlockError) else Later(repr(fault), code="fault")
            until = self.ports.clock.now() + LATER_S * (0.5 + self.ports.clock.dice())
            return Happened(Event.LATER, changes={"until": until}, reason=known.code, data=known.document())

    async def _apply(self, unit: str, happened: Happened, wish: Wish | None) -> tuple[Effect, ...]:
        before = self.record(unit)
        row = ROWS[(Phase(before.phase), happened.event)]
        after = self._next(before, happened, row.next, wish)
        at = rfc3339(self.ports.clock.now())
        await self._commit(
            Transition(
                record=after,
                before=before.phase,
                event=happened.event.value,
                at=at,
                outbox=reports(before, after, happened, at),
                spend=wishes.budget_key(after, row.spends) if row.spends else None,
                quarantine=self.shared.to_remember(before, after, happened, at) if row.remembers else (),
                detail={key: value for key, value in happened.data.items() if key != "envelope"},
            )
        )
        if before.phase in _TRIALS and row.next not in (*SERVING_TRIAL, Phase.CONFIRMED):
            self.shared.words.pop(before.unit, None)  # what was said was said of what has just been taken back
        if before.phase == Phase.REGATING.value and happened.event is not Event.LATER:
            self.shared.judged_again.add(before.unit)
        return row.effects

    def _next(self, before: UnitRecord, happened: Happened, phase: Phase, wish: Wish | None) -> UnitRecord:
        after = replace(before, phase=phase.value, reason=happened.reason)
        following = max(before.generation, self._floors.get(before.unit, 0)) + 1
        if wish is not None:
            after = replace(after, attempt=Attempt(wish), generation=following)
        elif happened.event in (Event.ROLLBACK, Event.TURNED_BAD) and phase is Phase.RESTORING:
            seen = happened.data if happened.event is Event.TURNED_BAD else None
            after = wishes.restoring(after, following, seen)
        elif before.phase == Phase.RESTORING.value and happened.event is Event.REFUSED:
            after = replace(after, previous=None)  # what cannot be restored is no fallback
        elif after.attempt is not None and phase is Phase.ACCEPTED:
            after = replace(after, generation=following)  # tried again: a new generation
        if happened.changes and after.attempt is not None:
            after = after.having(**happened.changes)
        if happened.event is Event.SLOT_FILLED:
            after = replace(after, previous=None)  # the spare slot holds the candidate now
        if phase is Phase.CONFIRMED and happened.event is Event.YES:
            known, at = self.shared.desired.get(after.unit), rfc3339(self.ports.clock.now())
            after = wishes.confirmed(after, self.shared.fingerprint_sha256, at, known)
            self.shared.judged_again.discard(after.unit)
        if before.phase == Phase.REGATING.value and happened.event in (Event.ACCEPT, Event.REJECT):
            after = replace(after, fingerprint=self.shared.fingerprint_sha256)  # judged, and told: once is enough
        if phase in RESTING:
            after = wishes.ended(after)
        return after

    async def _commit(self, transition: Transition) -> None:
        await self.ports.journal.commit(transition)
        after = transition.record
        self.stored.units[after.unit] = after
        if transition.spend:
            key = ":".join(transition.spend)
            self.stored.spent[key] = self.stored.spent.get(key, 0) + 1
        self.stored.quarantine.extend(transition.quarantine)
        facts = {"unit": after.unit, "generation": after.generation, "event": transition.event, "reason": after.reason}
        log.info("%s -> %s", transition.before, after.phase, extra=facts)
        async with self._changed:
            self._changed.notify_all()
        self.on_change(after.unit)
