"""The states of a unit: what an attempt to switch it may go through. Nothing else changes a phase.

`ROWS` is the table: (phase, event) -> (next phase, effects). The engine looks a row up, journals the new phase
durably, and only then carries out the effects; each effect ends in an event. An event without a row in a phase
is stale (its sender did not know of a later change) and is dropped, with a log line.

`RESUME` is a second table over the same phases: what to do first when the agent starts and finds a unit in that
phase. It is total. A phase that this version does not know means: leave the confirmed slot alone and rest in IDLE.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(str, Enum):
    """Where the attempt stands. RESTING phases have no effect under way."""

    IDLE = "idle"  # nothing was ever wanted here
    ACCEPTED = "accepted"  # wanted; waits for its start inside the spread
    FETCHING = "fetching"  # metadata, manifest, segments come in, verified
    STAGED = "staged"  # complete beside the slots; waits for the gate to be free
    GATING = "gating"  # a worker is judged
    PASSED = "passed"  # accepted by the gate; the folder moves into the spare slot
    SWITCHING = "switching"  # the host was asked to promote
    TRIAL = "trial"  # serves, and is watched
    CONFIRMING = "confirming"  # the host was asked to confirm
    CONFIRMED = "confirmed"  # the confirmed slot holds it
    REGATING = "regating"  # the device changed under the confirmed release: judged again
    RESTORING = "restoring"  # the previous confirmed release is wanted back: it is being loaded
    REVERTING = "reverting"  # the trial failed; the host was asked to go back
    REVERTED = "reverted"  # the device went back
    INTERRUPTED = "interrupted"  # the trial ended without a judgement
    WAITING = "waiting"  # later, not never; the reason says for what
    REJECTED = "rejected"  # the gate said no
    FAILED = "failed"  # terminal before the gate
    CANCELLED = "cancelled"  # no longer wanted
    SUPERSEDED = "superseded"  # a newer wish took its place


class Event(str, Enum):
    """What may happen to a unit."""

    ALREADY = "already"  # what is wanted is what is confirmed and runs
    WISH = "wish"  # a release is wanted (desired document, or a file)
    ROLLBACK = "rollback"  # the owner wants the previous confirmed release
    TURNED_BAD = "turned-bad"  # a required check of the confirmed release failed: the previous one is wanted
    BEGIN = "begin"  # its start inside the spread has come
    FETCHED = "fetched"  # complete, verified, sealed beside the slots
    GATE_FREE = "gate-free"  # this unit's turn at the gate; spends one try
    EXHAUSTED = "exhausted"  # no try is left
    ACCEPT = "accept"  # verdict
    REJECT = "reject"  # verdict
    INCONCLUSIVE = "inconclusive"  # verdict; the try is given back
    UNJUDGED = "unjudged"  # no verdict, or no use of it, by no fault of the candidate: the try is given back
    SLOT_FILLED = "slot-filled"  # the spare slot holds the release
    CANDIDATE_HERE = "candidate-here"  # after a restart: the worker that passed still lives
    GONE = "gone"  # the worker that passed is gone
    LOADED = "loaded"  # the previous release is loaded again
    PROMOTED = "promoted"  # it serves
    HEALTHY = "healthy"  # the trial's conditions are met
    UNHEALTHY = "unhealthy"  # a required check failed
    YES = "yes"  # the host confirmed
    HOST_REVERTED = "host-reverted"  # the host is back on the confirmed release
    LAPSED = "lapsed"  # the host ended the trial without a judgement
    REFUSED = "refused"  # terminal: untrusted, incompatible, malformed, quarantined
    LATER = "later"  # network, space, host away
    DUE = "due"  # the wait is over
    CANCEL = "cancel"  # no longer wanted
    SUPERSEDE = "supersede"  # something newer is wanted
    CHANGED = "changed"  # the fingerprint of the device is another one


class Effect(str, Enum):
    """What the engine does after a row was journaled; in this order, one after the other."""

    SPREAD = "spread"  # wait inside the spread -> BEGIN, ALREADY
    FETCH = "fetch"  # -> FETCHED, REFUSED, LATER
    AWAIT_GATE = "await-gate"  # one gate at a time on a device, in the window -> GATE_FREE, EXHAUSTED, LATER
    GATE = "gate"  # -> ACCEPT, REJECT, INCONCLUSIVE, UNJUDGED, LATER
    REGATE = "regate"  # -> ACCEPT, REJECT, INCONCLUSIVE, LATER
    FILL_SLOT = "fill-slot"  # -> SLOT_FILLED, UNJUDGED, LATER
    ASK_HOST = (
        "ask-host"  # what became of this generation -> CANDIDATE_HERE, PROMOTED, HOST_REVERTED, LAPSED, YES, GONE
    )
    PROMOTE = "promote"  # -> PROMOTED, GONE, HOST_REVERTED, LAPSED
    WATCH = "watch"  # renew the lease, look at the checks -> HEALTHY, UNHEALTHY, HOST_REVERTED, LAPSED
    CONFIRM = "confirm"  # -> YES, HOST_REVERTED, LAPSED
    REVERT = "revert"  # -> HOST_REVERTED, LAPSED
    RESTORE = "restore"  # load the spare slot -> LOADED, REFUSED, LATER
    WAKE = "wake"  # -> DUE when the wait is over
    RETRY = "retry"  # -> DUE, EXHAUSTED
    RETIRE = "retire"  # end the candidate and the twin; no event
    DROP = "drop"  # remove what is beside the slots for this attempt; no event
    SETTLE = "settle"  # a resting phase was reached: is something else wanted by now; may lead to WISH


@dataclass(frozen=True)
class Row:
    """A transition. `spends` a budget and `remembers` the failure (quarantine), durably, with the transition itself."""

    next: Phase
    effects: tuple[Effect, ...] = ()
    spends: str = ""  # "", "try", "interruption", "unjudged": a try that is given back
    remembers: bool = False


_P, _E, _F = Phase, Event, Effect

BEFORE_SWITCH = (_P.ACCEPTED, _P.FETCHING, _P.STAGED, _P.GATING, _P.PASSED, _P.WAITING)
RESTING = (_P.IDLE, _P.CONFIRMED, _P.REVERTED, _P.REJECTED, _P.FAILED, _P.CANCELLED, _P.SUPERSEDED)
SERVING_TRIAL = (_P.SWITCHING, _P.TRIAL, _P.CONFIRMING, _P.REVERTING)

_END = (_F.RETIRE, _F.DROP, _F.SETTLE)
_GO_BACK = Row(_P.REVERTED, _END, remembers=True)
_NO_JUDGEMENT = Row(_P.INTERRUPTED, (_F.RETIRE, _F.RETRY), spends="interruption")
_AGAIN = Row(_P.ACCEPTED, (_F.SPREAD,))

ROWS: dict[tuple[Phase, Event], Row] = {
    (_P.ACCEPTED, _E.ALREADY): Row(_P.CONFIRMED, _END),
    (_P.ACCEPTED, _E.BEGIN): Row(_P.FETCHING, (_F.FETCH,)),
    (_P.FETCHING, _E.FETCHED): Row(_P.STAGED, (_F.AWAIT_GATE,)),
    (_P.FETCHING, _E.REFUSED): Row(_P.FAILED, _END),
    (_P.FETCHING, _E.LATER): Row(_P.WAITING, (_F.WAKE,)),
    (_P.STAGED, _E.GATE_FREE): Row(_P.GATING, (_F.GATE,), spends="try"),
    (_P.STAGED, _E.EXHAUSTED): Row(_P.FAILED, _END, remembers=True),
    (_P.STAGED, _E.LATER): Row(_P.WAITING, (_F.WAKE,)),
    (_P.GATING, _E.ACCEPT): Row(_P.PASSED, (_F.FILL_SLOT,)),
    (_P.GATING, _E.REJECT): Row(_P.REJECTED, _END, remembers=True),
    (_P.GATING, _E.INCONCLUSIVE): Row(_P.WAITING, (_F.RETIRE, _F.WAKE), spends="unjudged"),
    (_P.GATING, _E.UNJUDGED): Row(_P.WAITING, (_F.RETIRE, _F.WAKE), spends="unjudged"),
    (_P.GATING, _E.REFUSED): Row(_P.FAILED, _END, remembers=True),
    (_P.GATING, _E.LATER): Row(_P.WAITING, (_F.RETIRE, _F.WAKE)),
    (_P.PASSED, _E.CANDIDATE_HERE): Row(_P.PASSED, (_F.FILL_SLOT,)),
    (_P.PASSED, _E.SLOT_FILLED): Row(_P.SWITCHING, (_F.PROMOTE,)),
    (_P.PASSED, _E.GONE): _AGAIN,
    (_P.PASSED, _E.UNJUDGED): Row(_P.WAITING, (_F.RETIRE, _F.WAKE), spends="unjudged"),  # the disk is full, or failed
    (_P.PASSED, _E.LATER): Row(_P.WAITING, (_F.RETIRE, _F.WAKE)),
    (_P.SWITCHING, _E.CANDIDATE_HERE): Row(_P.SWITCHING, (_F.PROMOTE,)),
    (_P.SWITCHING, _E.PROMOTED): Row(_P.TRIAL, (_F.WATCH,)),
    (_P.SWITCHING, _E.GONE): _AGAIN,
    (_P.SWITCHING, _E.LATER): Row(_P.SWITCHING, (_F.ASK_HOST,)),
    (_P.SWITCHING, _E.HOST_REVERTED): _GO_BACK,
    (_P.SWITCHING, _E.LAPSED): _NO_JUDGEMENT,
    (_P.SWITCHING, _E.YES): Row(_P.CONFIRMED, (_F.DROP, _F.SETTLE)),
    (_P.TRIAL, _E.PROMOTED): Row(_P.TRIAL, (_F.WATCH,)),
    (_P.TRIAL, _E.HEALTHY): Row(_P.CONFIRMING, (_F.CONFIRM,)),
    (_P.TRIAL, _E.UNHEALTHY): Row(_P.REVERTING, (_F.REVERT,)),
    (_P.TRIAL, _E.ROLLBACK): Row(_P.REVERTING, (_F.REVERT,)),
    (_P.TRIAL, _E.HOST_REVERTED): _GO_BACK,
    (_P.TRIAL, _E.LAPSED): _NO_JUDGEMENT,
    (_P.TRIAL, _E.GONE): _NO_JUDGEMENT,
    (_P.TRIAL, _E.YES): Row(_P.CONFIRMED, (_F.DROP, _F.SETTLE)),
    (_P.CONFIRMING, _E.YES): Row(_P.CONFIRMED, (_F.DROP, _F.SETTLE)),
    (_P.CONFIRMING, _E.HOST_REVERTED): _GO_BACK,
    (_P.CONFIRMING, _E.LAPSED): _NO_JUDGEMENT,
    (_P.REVERTING, _E.HOST_REVERTED): _GO_BACK,
    (_P.REVERTING, _E.LAPSED): _GO_BACK,  # it was unhealthy before the lease ran out: a judgement it is
    (_P.INTERRUPTED, _E.DUE): _AGAIN,
    (_P.INTERRUPTED, _E.EXHAUSTED): Row(_P.WAITING, (_F.RETIRE,)),  # for a person
    (_P.WAITING, _E.DUE): _AGAIN,
    (_P.CONFIRMED, _E.CHANGED): Row(_P.REGATING, (_F.REGATE,)),
    (_P.REGATING, _E.ACCEPT): Row(_P.CONFIRMED, (_F.RETIRE, _F.SETTLE)),
    (_P.REGATING, _E.REJECT): Row(_P.CONFIRMED, (_F.RETIRE, _F.SETTLE)),  # it stays, and the verdict is reported
    (_P.REGATING, _E.INCONCLUSIVE): Row(_P.CONFIRMED, (_F.RETIRE, _F.SETTLE)),
    (_P.REGATING, _E.LATER): Row(_P.CONFIRMED, (_F.RETIRE, _F.SETTLE)),
    (_P.RESTORING, _E.LOADED): Row(_P.SWITCHING, (_F.PROMOTE,)),
    (_P.RESTORING, _E.REFUSED): Row(_P.FAILED, (_F.RETIRE, _F.SETTLE)),
    (_P.RESTORING, _E.LATER): Row(_P.FAILED, (_F.RETIRE, _F.SETTLE)),
}
for _phase in (*RESTING, _P.INTERRUPTED):
    ROWS[(_phase, _E.WISH)] = Row(_P.ACCEPTED, (_F.SPREAD,))
    ROWS[(_phase, _E.ROLLBACK)] = Row(_P.RESTORING, (_F.RESTORE,), remembers=True)
# One that turns bad is not kept for what may come next: only a release that has passed is left to take its place.
for _phase in (*RESTING, _P.INTERRUPTED, *(phase for phase in BEFORE_SWITCH if phase is not _P.PASSED)):
    ROWS[(_phase, _E.TURNED_BAD)] = Row(_P.RESTORING, (_F.RETIRE, _F.RESTORE), remembers=True)
for _phase in (*BEFORE_SWITCH, _P.INTERRUPTED):
    ROWS[(_phase, _E.CANCEL)] = Row(_P.CANCELLED, _END)
    ROWS[(_phase, _E.SUPERSEDE)] = Row(_P.SUPERSEDED, _END)


@dataclass(frozen=True)
class Resumption:
    """What a starting agent does with a unit found in a phase: the phase it continues from, and the first effects."""

    phase: Phase
    effects: tuple[Effect, ...] = ()


RESUME: dict[Phase, Resumption] = {
    _P.IDLE: Resumption(_P.IDLE, _END),  # the end of a resting phase's row may not have been reached
    _P.ACCEPTED: Resumption(_P.ACCEPTED, (_F.SPREAD,)),
    _P.FETCHING: Resumption(_P.FETCHING, (_F.FETCH,)),
    _P.STAGED: Resumption(_P.STAGED, (_F.RETIRE, _F.AWAIT_GATE)),
    _P.GATING: Resumption(_P.STAGED, (_F.RETIRE, _F.AWAIT_GATE)),  # judged anew: half a measurement is none
    _P.PASSED: Resumption(_P.PASSED, (_F.ASK_HOST,)),
    _P.SWITCHING: Resumption(_P.SWITCHING, (_F.ASK_HOST,)),
    _P.TRIAL: Resumption(_P.TRIAL, (_F.ASK_HOST,)),
    _P.CONFIRMING: Resumption(_P.CONFIRMING, (_F.CONFIRM,)),
    _P.CONFIRMED: Resumption(_P.CONFIRMED, _END),
    _P.REGATING: Resumption(_P.CONFIRMED, _END),
    _P.RESTORING: Resumption(_P.RESTORING, (_F.RETIRE, _F.RESTORE)),
    _P.REVERTING: Resumption(_P.REVERTING, (_F.REVERT,)),
    _P.REVERTED: Resumption(_P.REVERTED, _END),
    _P.INTERRUPTED: Resumption(_P.INTERRUPTED, (_F.RETIRE, _F.RETRY)),
    _P.WAITING: Resumption(_P.WAITING, (_F.RETIRE, _F.WAKE)),
    _P.REJECTED: Resumption(_P.REJECTED, _END),
    _P.FAILED: Resumption(_P.FAILED, _END),
    _P.CANCELLED: Resumption(_P.CANCELLED, _END),
    _P.SUPERSEDED: Resumption(_P.SUPERSEDED, _END),
}


# What an effect may end in. A test holds that every row and resumption leads only to effects whose every event has
# a row in that phase: no effect's end can leave a unit stuck.
EMITS: dict[Effect, tuple[Event, ...]] = {
    _F.SPREAD: (_E.BEGIN, _E.ALREADY),
    _F.FETCH: (_E.FETCHED, _E.REFUSED, _E.LATER),
    _F.AWAIT_GATE: (_E.GATE_FREE, _E.EXHAUSTED, _E.LATER),
    _F.GATE: (_E.ACCEPT, _E.REJECT, _E.INCONCLUSIVE, _E.UNJUDGED, _E.REFUSED, _E.LATER),
    _F.REGATE: (_E.ACCEPT, _E.REJECT, _E.INCONCLUSIVE, _E.LATER),
    _F.FILL_SLOT: (_E.SLOT_FILLED, _E.UNJUDGED, _E.LATER),
    _F.ASK_HOST: (),  # depends on the phase: see ASKED
    _F.PROMOTE: (_E.PROMOTED, _E.GONE, _E.HOST_REVERTED, _E.LAPSED, _E.YES),
    _F.WATCH: (_E.HEALTHY, _E.UNHEALTHY, _E.HOST_REVERTED, _E.LAPSED, _E.GONE, _E.YES),
    _F.CONFIRM: (_E.YES, _E.HOST_REVERTED, _E.LAPSED),
    _F.REVERT: (_E.HOST_REVERTED, _E.LAPSED),
    _F.RESTORE: (_E.LOADED, _E.REFUSED, _E.LATER),
    _F.WAKE: (_E.DUE,),
    _F.RETRY: (_E.DUE, _E.EXHAUSTED),
    _F.RETIRE: (),
    _F.DROP: (),
    _F.SETTLE: (),
}

ASKED: dict[Phase, tuple[Event, ...]] = {
    _P.PASSED: (_E.CANDIDATE_HERE, _E.GONE),
    _P.SWITCHING: (_E.CANDIDATE_HERE, _E.PROMOTED, _E.HOST_REVERTED, _E.LAPSED, _E.YES, _E.GONE),
    _P.TRIAL: (_E.PROMOTED, _E.HOST_REVERTED, _E.LAPSED, _E.YES, _E.GONE),
}


def resume(stored: str) -> Resumption:
    """The resumption of a stored phase; an unknown one rests: the confirmed slot serves, nothing is tried."""
    try:
        return RESUME[Phase(stored)]
    except ValueError:
        return Resumption(_P.IDLE, _END)


def mermaid() -> str:
    """The table as a Mermaid state diagram; docs/reference/states.md is printed by it."""
    lines = ["stateDiagram-v2", "    [*] --> idle"]
    merged: dict[tuple[str, str], list[str]] = {}
    for (phase, event), row in ROWS.items():
        merged.setdefault((phase.value, row.next.value), []).append(event.value)
    lines += [f"    {one} --> {two}: {', '.join(events)}" for (one, two), events in merged.items() if one != two]
    return "\n".join(lines)
