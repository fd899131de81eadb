"""What is remembered of a unit: plain, frozen values that go into the journal and come back equal."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from interlock_agent.core.states import Phase

ORIGINS = ("rollout", "sideload", "rollback", "late")
GOES_BACK = ("rollback", "late")  # to the previous confirmed release: the owner wants it, or the newer one turned bad


@dataclass(frozen=True)
class Wish:
    """A release that somebody wants here. `assignment` names the wish: the same wish repeated has the same one."""

    version: str
    manifest_sha256: str
    assignment: str
    rollout: str = ""
    origin: str = "rollout"
    spread_s: float = 0.0


@dataclass(frozen=True)
class Installed:
    """A release in a slot."""

    version: str
    manifest_sha256: str
    payload_sha256: str
    slot: str
    fingerprint: str = ""  # under which it was confirmed here
    assignment: str = ""  # the server's wish that brought it; "" when it was none of the server's
    felt: dict[str, float] = field(default_factory=dict)  # latency of the release before it, in ms by quantile
    sideload: dict[str, str] = field(default_factory=dict)  # where a file brought it: `assignment`, `at`, `knew`


@dataclass(frozen=True)
class Attempt:
    """One attempt to switch a unit; its generation is in the record."""

    wish: Wish
    payload_sha256: str = ""
    variant: str = ""
    slot: str = ""  # where the spare is or will be
    worker: str = ""  # the host's name for the candidate
    fetch_failures: int = 0  # in a row; sets the backoff
    judgements: int = 0  # inconclusive ones so far
    until: float = 0.0  # seconds since the epoch; 0: not waiting, -1: waits for a person
    failed_check: str = ""  # why it was rejected or reverted, as the quarantine needs it
    failed_at: float = 0.0  # when a check of the trial failed: CLOCK_BOOTTIME, for the time until the device was back
    seen: dict[str, Any] = field(default_factory=dict)  # what was seen then; journaled before the revert
    felt: dict[str, float] = field(default_factory=dict)  # latency that was felt before the switch: ms by quantile


@dataclass(frozen=True)
class UnitRecord:
    """A unit as the journal holds it. `done`: the server's wishes that have ended, so that repeating one is a
    no-op, also after somebody installed something else by hand, or after the server took a newer one back."""

    unit: str
    phase: str = Phase.IDLE.value
    generation: int = 0
    attempt: Attempt | None = None
    confirmed: Installed | None = None
    previous: Installed | None = None  # in the spare slot, confirmed here before; what a rollback goes to
    done: tuple[str, ...] = ()  # assignments, oldest first
    reason: str = ""
    fingerprint: str = ""  # under which the confirmed release was judged

    def having(self, **changes: Any) -> UnitRecord:
        """A copy with the attempt's fields changed."""
        if self.attempt is None:
            raise ValueError(f"{self.unit}: no attempt")
        return replace(self, attempt=replace(self.attempt, **changes))


def to_document(record: UnitRecord) -> dict[str, Any]:
    """JSON-able form."""
    return asdict(record)


def _build(kind: Any, document: dict[str, Any]) -> Any:
    names = {f.name for f in fields(kind)}
    return kind(**{k: v for k, v in document.items() if k in names})


def from_document(document: dict[str, Any]) -> UnitRecord:
    """The record of a document; fields that this version does not know are dropped. Raises TypeError, ValueError."""
    data = dict(document)
    if data.get("attempt") is not None:
        attempt = dict(data["attempt"])
        attempt["wish"] = _build(Wish, attempt["wish"])
        data["attempt"] = _build(Attempt, attempt)
    for name in ("confirmed", "previous"):
        if data.get(name) is not None:
            data[name] = _build(Installed, data[name])
    data["done"] = tuple(data.get("done") or ())
    record = _build(UnitRecord, data)
    assert isinstance(record, UnitRecord)
    return record


@dataclass(frozen=True)
class Quarantined:
    """What failed here and is not tried again until told to. `key` says for what it holds (see quarantine.py)."""

    key: str
    payload_sha256: str
    reason: str
    version: str
    at: str


@dataclass(frozen=True)
class Transition:
    """All that changes durably in one step: written whole or not at all."""

    record: UnitRecord
    before: str
    event: str
    at: str
    outbox: tuple[dict[str, Any], ...] = ()  # events without device, epoch and number: the journal adds them
    spend: tuple[str, str] | None = None  # (budget, key)
    quarantine: tuple[Quarantined, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)
