"""Documents between server and device that are not TUF's own: desired, permit, verdict, reported, event, ack.

Signed documents travel as DSSE envelopes (see trust.py) and refuse unknown fields; reports keep and ignore them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from interlock_shared.base import Finite, Name, Report, Sha256, Signed, Timestamp, Version
from interlock_shared.classes import SELECTORS_MAX
from interlock_shared.classes import check as check_class
from interlock_shared.errors import Invalid
from interlock_shared.gates import Stage

DESIRED_SCHEMA = "interlock.desired/1"
PERMIT_SCHEMA = "interlock.permit/1"
VERDICT_SCHEMA = "interlock.verdict/1"
REPORTED_SCHEMA = "interlock.reported/1"
EVENT_SCHEMA = "interlock.event/1"
ACK_SCHEMA = "interlock.ack/1"
PRESENCE_SCHEMA = "interlock.presence/1"
DIRECTOR_SCHEMA = "interlock.director/1"


def _a_class(facts: dict[str, str]) -> dict[str, str]:
    try:
        return check_class(facts)
    except Invalid as bad:
        raise ValueError(bad.message) from None


Selector = Annotated[dict[str, str], AfterValidator(_a_class)]
"""Facts of a device that must all hold."""

# --- server -> device, signed by the director ---------------------------------------------------------------------


SideloadPolicy = Literal["forbid", "once", "pin"]


class Assignment(Signed):
    """What is wanted of one unit. `assignment` is the same for every document that repeats the same wish. `over`: the
    release from a file that this wish knows of, and replaces; `unpinned`: a person said so."""

    version: Version
    manifest_sha256: Sha256
    assignment: Name
    rollout: Name
    over: Name | None = None
    unpinned: bool = False


class Desired(Signed):
    """All that the server wants of one device. Ordered by (epoch, counter). A unit that is not named is left alone.
    `sideload`: what a file may do on it, unless its owner says more."""

    schema_: Literal["interlock.desired/1"] = Field(alias="schema", default="interlock.desired/1")
    min_agent: Version = "0.1.0"
    device: Name
    epoch: int = Field(ge=1, lt=2**53)
    counter: int = Field(ge=1, lt=2**53)
    issued_at: Timestamp
    expires_at: Timestamp
    start_spread_s: Finite = Field(default=0.0, ge=0, le=86_400)
    sideload: SideloadPolicy | None = None
    units: dict[Name, Assignment]


class Permit(Signed):
    """Allows a bundle to be installed from a file: on these devices, or on those of these classes (see classes.py);
    with both None on any device of this fleet."""

    schema_: Literal["interlock.permit/1"] = Field(alias="schema", default="interlock.permit/1")
    min_agent: Version = "0.1.0"
    model: Name
    version: Version
    manifest_sha256: Sha256
    devices: tuple[Name, ...] | None = Field(default=None, min_length=1)
    classes: tuple[Selector, ...] | None = Field(default=None, min_length=1, max_length=SELECTORS_MAX)
    issued_at: Timestamp
    expires_at: Timestamp


class Director(Signed):
    """The TUF target `director.json`: who may sign desired documents and permits, and under which epoch."""

    schema_: Literal["interlock.director/1"] = Field(alias="schema", default="interlock.director/1")
    epoch: int = Field(ge=1, lt=2**53)
    keys: dict[str, dict[str, Any]]  # key id -> key, in securesystemslib's form


# --- device -> server ---------------------------------------------------------------------------------------------

Outcome = Literal["pass", "fail", "inconclusive", "not_applicable", "not_run"]


class CheckResult(Signed):
    """One check of the gate. `low`, `high`: the interval of `measured`; `limit` and figures in `unit`."""

    check: str
    outcome: Outcome
    unit: str = ""
    limit: Finite | str | None = None
    measured: Finite | str | None = None
    low: Finite | None = None
    high: Finite | None = None
    incumbent: Finite | str | None = None  # the same figure of the incumbent, where it was measured
    reason: str = ""
    detail: dict[str, Any] = Field(default_factory=dict)


class StageResult(Signed):
    """One stage of the gate, in the order in which they run."""

    stage: Stage
    outcome: Outcome
    seconds: Finite
    checks: tuple[CheckResult, ...] = ()


class Incumbent(Signed):
    """What the candidate was compared with."""

    version: Version
    payload_sha256: Sha256
    baseline: Literal["twin", "recorded"]


class Sketch(Signed):
    """A distribution by its quantiles: `quantiles_ms[k]` is the k % quantile of wall time, the first of them the
    fastest and the last the slowest of `samples` inferences."""

    samples: int = Field(ge=1)
    quantiles_ms: tuple[Finite, ...] = Field(min_length=101, max_length=101)


class Distributions(Signed):
    """Latencies as they were measured side by side; null where nothing was."""

    candidate: Sketch | None = None
    incumbent: Sketch | None = None


class VariantResult(Signed):
    """What the gate found of one of the variants that it tried."""

    variant: Name
    outcome: Literal["accept", "reject", "inconclusive"]
    reason: str
    message: str
    stages: tuple[StageResult, ...]
    distributions: Distributions


class Comparison(Signed):
    """Two variants that both passed, head to head: the rows judge `variant` ÷ `against` at 1."""

    variant: Name
    against: Name
    faster: bool  # whether `variant` took the place of `against`
    checks: tuple[CheckResult, ...]


class Verdict(Signed):
    """The gate's product: limits, figures, reasons. Signed by the device's key; raw samples lie beside it."""

    schema_: Literal["interlock.verdict/1"] = Field(alias="schema", default="interlock.verdict/1")
    device: str
    model: Name
    version: Version
    manifest_sha256: Sha256
    payload_sha256: Sha256
    variant: Name
    generation: int
    outcome: Literal["accept", "reject", "inconclusive"]
    reason: str  # machine-readable: "ok", or the first check that decided
    message: str  # for people
    started_at: Timestamp
    ended_at: Timestamp
    agent: str
    runtime: str
    fingerprint: dict[str, Any]
    fingerprint_sha256: Sha256
    limits: dict[str, Any]
    limits_sha256: Sha256
    incumbent: Incumbent | None
    stages: tuple[StageResult, ...]
    distributions: Distributions  # in short; the raw samples stay on the device
    others: tuple[VariantResult, ...] = ()  # the variants that were tried beside `variant`
    comparisons: tuple[Comparison, ...] = ()  # how the fastest of those that passed was found
    environment: dict[str, Any]  # before and after: load, clocks, temperature where the device tells
    samples_sha256: Sha256 | None  # of samples.json, kept beside the verdict on the device
    origin: Literal["rollout", "sideload", "dry-run"] = "rollout"


class Sideloaded(Report):
    """A confirmed release that a file brought, and that stands. `at`: when it was confirmed, by the device's clock;
    `knew`: which of the server's wishes the device knew of then; `policy` pin: a person has to unpin it."""

    assignment: Name
    version: str
    manifest_sha256: str
    at: str
    knew: str = ""
    policy: str = "once"


class UnitReport(Report):
    """The four facts that are never mixed up, and where the attempt stands."""

    phase: str
    generation: int
    offered: str | None  # version the server or a file offers
    installed: dict[str, str | None]  # slot -> version
    confirmed: str | None
    running: str | None
    address: str | None = None
    reason: str = ""
    assignment: str | None = None
    manifest_sha256: str | None = None
    sideload: Sideloaded | None = None
    fallback: str | None = None  # version in the spare slot, when it is intact
    alarm: str | None = (
        None  # the check that a confirmed release fails, when it stays for want of another, or by policy
    )


class Reported(Report):
    """What the device says of itself; `number` only grows within `outbox_epoch`."""

    schema_: str = Field(alias="schema", default=REPORTED_SCHEMA)
    device: Name
    number: int
    outbox_epoch: str
    outbox_floor: int  # the lowest event number the device still has, or next number when it has none
    agent: str
    host: str | None
    desired: tuple[int, int] | None  # (epoch, counter) of the newest accepted desired document
    fingerprint: dict[str, Any]
    fingerprint_sha256: str
    units: dict[Name, UnitReport]
    clock_floor: str | None = None
    refused: dict[Annotated[str, Field(max_length=80)], Annotated[int, Field(ge=0, lt=2**53)]] = Field(
        default_factory=dict, max_length=100
    )  # documents that the device has ignored since the agent's start, by `document:reason`
    instance: str = Field(default="", max_length=64)  # one start of the agent on one boot
    notes: tuple[str, ...] = ()  # what a person should know: state was lost, clock is behind, a document was refused


class Event(Report):
    """One outbox entry. `(epoch, number)` identifies it; numbers have no gaps."""

    schema_: str = Field(alias="schema", default=EVENT_SCHEMA)
    device: Name
    epoch: str = Field(min_length=8, max_length=64)
    number: int = Field(ge=1, lt=2**53)
    at: Timestamp
    kind: str = Field(max_length=64)
    unit: Name | None = None
    generation: int = 0
    version: str | None = None
    manifest_sha256: str | None = None
    assignment: str | None = None
    origin: str = "rollout"
    reason: str = ""
    data: dict[str, Any] = Field(default_factory=dict)


EVENT_KINDS = {
    "accepted": "an assignment or a file was taken up",
    "staged": "the payload is complete and verified beside the slots",
    "verdict": "the gate has spoken; data.envelope is the signed verdict",
    "gap": "what serves will be unloaded for a candidate; data says for how long nothing answers, at most",
    "switched": "the release answers requests, in its trial",
    "confirmed": "the trial passed and the host moved `confirmed`",
    "reverted": "the device went back to its confirmed release; data says what was seen",
    "interrupted": "a trial ended without a judgement (lease, host restart); it will be tried again within its budget",
    "failed": "terminal before the gate: untrusted, incompatible, malformed",
    "rejected": "terminal at the gate: a safe outcome",
    "waiting": "later, not never; reason says for what",
    "cancelled": "the server no longer wants it",
    "superseded": "a newer wish took its place",
    "quarantined": "this payload is not tried again here until told to",
    "rolled_back": "the owner went back to the previous confirmed release",
    "unhealthy": "a confirmed release turned bad; data says what was seen, data.action what follows: revert, or alarm",
    "revoked": "a confirmed release was taken back by its signers; data.action: what follows (revert, stop, alarm)",
    "recovered": "the alarm of a confirmed release is over",
    "state_lost": "the journal could not be read and was rebuilt from the seals",
    "refused": "a document was ignored: foreign, replayed, expired, unsigned",
}


class Ack(Signed):
    """Server to device: all events of the outbox `epoch` up to and including `upto` are in the database. Signed by the
    director, since the device forgets them.
    """

    schema_: Literal["interlock.ack/1"] = Field(alias="schema", default="interlock.ack/1")
    min_agent: Version = "0.1.0"
    device: Name
    epoch: str = Field(max_length=64)
    upto: int = Field(ge=0, lt=2**53)


class Presence(Report):
    """Retained; the last will says `online: false`."""

    schema_: str = Field(alias="schema", default=PRESENCE_SCHEMA)
    online: bool
