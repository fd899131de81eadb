"""Keeps the owner's application on `live`: each move is told by the owner's hook, one at a time, the newest last.

Rules of the file:
- A hook takes long and is never run under a unit's lock: a death is dealt with meanwhile.
- What was told last is durable: a host that ended between a move and its hook tells it at the next start. So is that a
  hook was begun: until one has gone well, nobody knows which release the application uses.
- A hook that fails in a switch ends the switch (the engine's matter). One that fails after a revert, or at a start,
  has nowhere to go back to: that stands in the status, and it is tried again.
- What loads by itself (Triton) is looked at now and then: what it was told may no longer hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from interlock_agent.host import states
from interlock_agent.host.ports import Clock, Hooks, Store, WorkerError
from interlock_agent.host.seat import Seat

log = logging.getLogger("interlock.host")

RETRY_HOOK_S = 10.0
WATCH_S = 5.0  # how soon a server that has forgotten its model is told again
UNSURE = "?"  # `hooked` from a hook's beginning to its good end

Spawn = Callable[[Coroutine[Any, Any, str]], "asyncio.Task[str]"]


class Following:
    """`record` writes a seat's document, and remembers when it could not. `event` steps the unit."""

    def __init__(
        self,
        hooks: Hooks,
        store: Store,
        clock: Clock,
        spawn: Spawn,
        record: Callable[[Seat], Awaitable[Any]],
        event: Callable[[Seat, states.Event], Awaitable[Any]],
    ) -> None:
        self._hooks, self._store, self._clock, self._spawn, self._record = hooks, store, clock, spawn, record
        self._event = event

    def moved(self, seat: Seat) -> None:
        """`live` has moved."""
        seat.following = self._spawn(self._tell(seat)) if seat.hook else None

    def catch_up(self, seat: Seat) -> None:
        """Tell of `live` where it was not: the hook is new, or this host's predecessor ended before it had."""
        if seat.hook.get("triton") and (seat.watching is None or seat.watching.done()):
            seat.watching = self._spawn(self._watch(seat))
        if not seat.hook:
            seat.hook_trouble = ""
        elif seat.hooked != seat.hooked_now and (seat.following is None or seat.following.done()):
            self.moved(seat)

    async def told(self, seat: Seat) -> str:
        """Wait until the newest move has been told; what is wrong, or ""."""
        return await asyncio.shield(seat.following) if seat.following else ""

    async def reachable(self, seat: Seat) -> None:
        """Before a switch. Raises WorkerError `hook_away`: it is not begun, and may be asked for again."""
        wrong = await self._hooks.away(seat.hook) if seat.hook and not seat.unit.trial else ""
        if wrong:
            seat.hook_trouble = wrong
            raise WorkerError("hook_away", wrong)

    def _facts(self, seat: Seat) -> dict[str, str]:
        slot, release = seat.served
        return {
            "UNIT": seat.unit.name,
            "LIVE": self._store.slot_folder(seat.unit.name, "live"),
            "FOLDER": self._store.slot_folder(seat.unit.name, slot) if release else "",
            "RELEASE": release.name if release else "",
            "REASON": "trial" if seat.unit.trial else "confirmed" if release else "nothing",
        }

    async def _watch(self, seat: Seat) -> str:
        """A server that was told to load a release may be restarted, and has forgotten it then. In a trial the release
        is the first suspect."""
        while seat.hook.get("triton"):
            await self._clock.sleep(WATCH_S)
            hook, now = seat.hook, seat.hooked_now
            if not hook or seat.hooked != now or not now:
                continue  # not told yet: others see to that
            wrong = await self._hooks.lost(hook, self._facts(seat))
            if not wrong or (seat.hook, seat.hooked, seat.hooked_now) != (hook, now, now):
                continue
            log.error("unit=%s hook lost: %s", seat.unit.name, wrong)
            if seat.unit.trial:
                await self._event(seat, states.Broke("hook_lost"))
            else:
                self.moved(seat)
        return ""

    async def _tell(self, seat: Seat) -> str:
        async with seat.hook_lock:
            async with seat.lock:
                hook, now = seat.hook, seat.hooked_now
                if not hook:  # taken away while this one waited
                    return ""
                if seat.hooked != UNSURE:
                    seat.hooked = UNSURE
                    await self._record(seat)
                facts = self._facts(seat)
            trouble = seat.hook_trouble = await self._hooks.run(hook, facts)
            if not trouble:
                async with seat.lock:
                    seat.hooked = now
                    await self._record(seat)
                return ""
        log.error("unit=%s hook failed release=%s: %s", seat.unit.name, facts["RELEASE"], trouble)
        if seat.hook_again is None or seat.hook_again.done():
            seat.hook_again = self._spawn(self._again(seat))
        return trouble

    async def _again(self, seat: Seat) -> str:
        await self._clock.sleep(RETRY_HOOK_S)
        while seat.unit.trial:  # the switch's own hook has decided that; what it left is looked at afterwards
            await self._clock.sleep(RETRY_HOOK_S)
        self.catch_up(seat)
        return ""
