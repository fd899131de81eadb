"""The words of the host's rules: the phases of a unit, what can happen to it, what is done about it.

Rules of the file:
- Plain frozen data; no rule and no I/O. `core.py` says which event leads where.
- Times are seconds: `now` and deadlines on CLOCK_BOOTTIME, `at` in UTC since 1970.
- `Unit.document()` is what is durable (schema `interlock.host/1`); all else is gone with the process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

SCHEMA = "interlock.host/1"
SLOTS = ("a", "b")
UNIT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")  # it becomes a file name and part of a path


class Phase(str, Enum):
    """Where a unit stands."""

    EMPTY = "empty"  # nothing is confirmed, nothing serves
    STARTING = "starting"  # a release is confirmed, its worker is being loaded (again); requests wait
    SERVING = "serving"  # the confirmed release serves
    GAP = "gap"  # it has made room for a candidate that is loaded and judged: nothing serves, requests wait
    TRIAL = "trial"  # a candidate serves and is watched; the confirmed release stands by, if there is one


@dataclass(frozen=True)
class Release:
    """What a sealed folder holds."""

    model: str
    version: str
    manifest: str  # SHA-256 of the manifest, hex
    generation: int  # that the seal names
    variant: str = ""

    @property
    def name(self) -> str:
        """As it stands in answers: `filetype/1.1.0`."""
        return f"{self.model}/{self.version}"


@dataclass(frozen=True)
class Worker:
    """A process with one loaded model. `role`: candidate, twin, or own (the host's: the confirmed release)."""

    id: str
    role: str
    generation: int
    release: Release
    ready: bool = False
    since: float = 0.0  # when it was ready
    load_s: float = 0.0  # how long it took to be


@dataclass(frozen=True)
class Gap:
    """While nothing serves, since the confirmed release and `worker` do not fit beside each other. It ends at
    `deadline` at the latest, with the confirmed release, whatever becomes of the agent; it is never made longer."""

    generation: int
    worker: str
    began: float
    deadline: float
    expected_s: float  # as it was told beforehand


@dataclass(frozen=True)
class Trial:
    """A switch that is not confirmed. `deadline` is 0 in the durable form: no lease outlives the process."""

    generation: int
    slot: str
    worker: str
    release: Release
    lease_s: float
    deadline: float


@dataclass(frozen=True)
class Outcome:
    """How the last trial ended: confirmed, reverted or interrupted."""

    generation: int
    outcome: str
    reason: str
    at: float

    def document(self) -> dict[str, Any]:
        """As in messages and in the state file."""
        return {"generation": self.generation, "outcome": self.outcome, "reason": self.reason, "at": self.at}


@dataclass(frozen=True)
class Unit:
    """Everything the rules know about one model on this device."""

    name: str
    phase: Phase = Phase.EMPTY
    generation: int = 0  # the highest seen
    confirmed_slot: str = ""
    confirmed: Release | None = None
    live: str = ""  # worker ids; "" when there is none
    standby: str = ""
    trial: Trial | None = None
    gap: Gap | None = None
    outcome: Outcome | None = None
    spare: bool = False  # the owner wants a second worker of the confirmed release, warm
    load_s: float = 0.0  # how long the confirmed release's worker took to load
    workers: dict[str, Worker] = field(default_factory=dict)
    crashes: int = 0  # of the confirmed release's worker, one after the other
    live_since: float = 0.0
    retry_at: float = 0.0  # when the confirmed release's worker is started again; 0: not waiting
    started: int = 0  # workers the host started by itself; makes their ids
    unrecorded: bool = False  # the disk refused a record that could not wait: written at the next occasion
    adrift: bool = False  # the disk refused to move `live`: moved at the next occasion
    doubtful: bool = False  # the disk failed while `confirmed` was moved: put right when the trial ends

    def own(self) -> Worker | None:
        """The host's own worker of the confirmed release that is not (yet) live or standby."""
        used = (self.live, self.standby)
        return next((w for w in self.workers.values() if w.role == "own" and w.id not in used), None)

    def document(self) -> dict[str, Any]:
        """The durable part; the engine adds the configuration."""
        trial = None
        if self.trial:
            trial = {"generation": self.trial.generation, "slot": self.trial.slot, "lease_s": self.trial.lease_s}
        return {
            "schema": SCHEMA,
            "unit": self.name,
            "generation": self.generation,
            "trial": trial,
            "outcome": self.outcome.document() if self.outcome else None,
        }


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something happened."""


@dataclass(frozen=True)
class Order(Event):
    """The agent asks; fenced by its generation."""

    generation: int


@dataclass(frozen=True)
class Load(Order):
    """Start `worker` on a folder; the engine has read its seal. `alone`: `MakeRoom` follows before it is opened."""

    worker: str
    role: str
    release: Release
    alone: bool = False


@dataclass(frozen=True)
class MakeRoom(Order):
    """`worker` is verified and about to be opened: end what serves first, for `gap_s` at the most. Requests inside it
    may end within `drain_max_s`, which is part of that."""

    worker: str
    gap_s: float
    expected_s: float
    drain_max_s: float


@dataclass(frozen=True)
class Promote(Order):
    """Make `worker` live and begin a trial. `found` is the release that lies in `slot` now (None: none)."""

    worker: str
    slot: str
    found: Release | None
    lease_s: float
    drain_max_s: float


@dataclass(frozen=True)
class Renew(Order):
    """Extend the lease."""


@dataclass(frozen=True)
class Confirm(Order):
    """The commit point."""


@dataclass(frozen=True)
class Revert(Order):
    """End the trial in favour of the confirmed release."""

    reason: str


@dataclass(frozen=True)
class Retire(Order):
    """End a worker that serves nobody."""

    worker: str


@dataclass(frozen=True)
class Ready(Event):
    """A worker has loaded its model, in `load_s`."""

    worker: str
    load_s: float = 0.0


@dataclass(frozen=True)
class Died(Event):
    """A worker ended, hangs, or the front has lost it. `reason` is for people."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Broke(Event):
    """The disk refused an effect of a `Promote` after the trial was recorded, or what the hook told no longer holds."""

    reason: str


@dataclass(frozen=True)
class Lapsed(Event):
    """The lease of the trial has lapsed, or the time of the gap is up."""


@dataclass(frozen=True)
class Configured(Event):
    """The owner's word on how the unit is served."""

    spare: bool


@dataclass(frozen=True)
class Tick(Event):
    """Time has passed."""


EVENTS: tuple[type[Event], ...] = (
    *(Load, MakeRoom, Promote, Renew, Confirm, Revert, Retire),
    *(Ready, Died, Broke, Lapsed, Configured, Tick),
)

# --- effects ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """Something is to be done."""


@dataclass(frozen=True)
class Record(Effect):
    """Write the unit's document durably. `must`: on failure the event is as if it had not been (code `io`);
    otherwise go on, and write it at the next occasion."""

    must: bool


@dataclass(frozen=True)
class LinkLive(Effect):
    """Point `live` to a slot durably; "" removes it. `must`: a failure is fed back as `Broke`."""

    slot: str
    must: bool = False


@dataclass(frozen=True)
class LinkConfirmed(Effect):
    """Point `confirmed` to a slot durably. `must`: a failure refuses the order with `io`."""

    slot: str
    must: bool = False


@dataclass(frozen=True)
class Serve(Effect):
    """Tell the front who is live and who stands by. `drain_s`: requests inside the former live worker may end
    within that time; 0: they are taken from it at once and given to the new one. With nobody live requests wait for
    `wait_s` at the least; those that cannot are told to come again in `expected_s`."""

    live: str
    standby: str
    drain_s: float = 0.0
    wait_s: float = 0.0
    expected_s: float = 0.0


@dataclass(frozen=True)
class StartWorker(Effect):
    """Start a worker: of an order (`slot` is "") or of the confirmed slot."""

    worker: str
    slot: str


@dataclass(frozen=True)
class EndWorker(Effect):
    """End a worker's process; one that has gone is no error. `drained`: when the requests inside it have ended, as the
    `Serve` before says. `why`: for orders about it that come later, `code: words`."""

    worker: str
    drained: bool = False
    why: str = ""


@dataclass(frozen=True)
class Push(Effect):
    """Send an event to every connected agent."""

    event: dict[str, Any]


@dataclass(frozen=True)
class Answer(Effect):
    """Answer the order."""

    ok: dict[str, Any]


@dataclass(frozen=True)
class Refuse(Effect):
    """Refuse the order."""

    code: str
    message: str
