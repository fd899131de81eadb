"""Waits: the place inside a spread, a backoff, a person."""

from __future__ import annotations

from interlock_agent.core.retry import backoff, spread
from interlock_agent.core.states import Event
from interlock_agent.core.wishes import budget_key
from interlock_agent.steps.base import Happened, Step
from interlock_shared.errors import Later
from interlock_shared.limits import INTERRUPTIONS_MAX, UNJUDGED_MAX

LOOK_S = 900.0  # the clock may be set while it is slept by: it is looked at so often
WAIT_MAX_S = 31 * 86_400.0  # nothing waits longer: whoever named a later time had another clock


def count(step: Step, budget: str) -> int:
    """What this attempt has spent of a budget."""
    key = budget_key(step.record, budget)
    return step.shared.stored.spent.get(":".join(key), 0) if key else 0


def tries(step: Step) -> int:
    """Tries of this attempt so far; one whose trial was interrupted counts there, in a budget of its own, and one that
    ended in order without a judgement does not count."""
    return count(step, "try") - count(step, "interruption") - count(step, "unjudged")


def unjudged(step: Step, error: Later) -> Happened:
    """The try is given back, and made again later; a person decides when that has been so too often."""
    given_back = count(step, "unjudged")
    left = given_back + 1 < UNJUDGED_MAX
    until = step.ports.clock.now() + backoff(tries(step) + given_back, step.ports.clock.dice())
    changes, reason = {"until": until if left else -1.0}, error.code if left else "operator"
    return Happened(Event.UNJUDGED, changes=changes, reason=reason, data=error.document())


async def spread_wait(step: Step) -> Happened:
    """Wait for the place inside the spread. What is already confirmed and runs needs no second proof; what is complete
    here, and is tried again, asks nothing of the server that the spread is to spare."""
    confirmed = step.record.confirmed
    if confirmed is not None and confirmed.manifest_sha256 == step.attempt.wish.manifest_sha256:
        source = step.shared.sources.pop(step.attempt.wish.assignment, None)
        if source is not None:
            await source.abandon()
        return Happened(Event.ALREADY, reason="already_confirmed")
    seconds = spread(step.shared.device, step.attempt.wish.assignment, step.attempt.wish.spread_s)
    if seconds > 0 and await step.ports.slots.staged(step.name, step.attempt.wish.manifest_sha256) is None:
        await step.ports.clock.sleep(seconds)
    return Happened(Event.BEGIN)


async def wake(step: Step) -> Happened | None:
    """Sleep until the time that the attempt names; for a person, for ever. A clock that was years ahead when the time
    was named, and is right again, holds nobody up."""
    until, clock = step.attempt.until, step.ports.clock
    if until < 0:
        return None
    left = until - clock.now()
    end = clock.monotonic() + (left if left <= WAIT_MAX_S else 0.0)
    while (left := min(until - clock.now(), end - clock.monotonic())) > 0:
        await clock.sleep(min(left, LOOK_S))
    return Happened(Event.DUE, changes={"until": 0.0})


async def retry(step: Step) -> Happened:
    """After an interruption: again after a backoff, within its own budget; then a person decides."""
    spent = count(step, "interruption")
    if spent >= INTERRUPTIONS_MAX:
        return Happened(Event.EXHAUSTED, changes={"until": -1.0}, reason="operator", data={"interruptions": spent})
    await step.ports.clock.sleep(backoff(spent, step.ports.clock.dice()))
    return Happened(Event.DUE)
