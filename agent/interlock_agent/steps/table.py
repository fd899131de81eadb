"""Effect → the step that carries it out. The engine looks them up here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from interlock_agent.core.states import Effect
from interlock_agent.steps import fetching, gating, switching, waiting, watching
from interlock_agent.steps.base import Happened, Step

EFFECTS: dict[Effect, Callable[[Step], Awaitable[Happened | None]]] = {
    Effect.SPREAD: waiting.spread_wait,
    Effect.FETCH: fetching.fetch,
    Effect.DROP: fetching.drop,
    Effect.AWAIT_GATE: gating.await_gate,
    Effect.GATE: gating.gate,
    Effect.REGATE: gating.regate,
    Effect.RETIRE: switching.retire,
    Effect.FILL_SLOT: switching.fill_slot,
    Effect.ASK_HOST: switching.ask_host,
    Effect.PROMOTE: switching.promote,
    Effect.WATCH: watching.watch,
    Effect.CONFIRM: switching.confirm,
    Effect.REVERT: switching.revert,
    Effect.RESTORE: switching.restore,
    Effect.WAKE: waiting.wake,
    Effect.RETRY: waiting.retry,
}
