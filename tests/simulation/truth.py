"""What must be true, at every instant and at rest. It knows what really happened, and trusts no record but the disk's.

Rules of the file:
- `instant` looks at what a power cut right now would leave, at every point of every run.
- The hooks (`linked`, `switched`, `started`, `committed`) look at single deeds, at the moment they are done.
- Nothing here is computed by the tables under test.
- A broken rule is noted and raised by the world outside: processes must not be able to swallow it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from interlock_agent.core.records import Transition, UnitRecord
from interlock_agent.host.ports import Upstream
from interlock_agent.host.states import Phase, Release
from interlock_shared.limits import ATTEMPTS_MAX, INTERRUPTIONS_MAX
from tests.fakes.host_store import release_of
from tests.fakes.journal import Memory
from tests.simulation.releases import MIN_SECONDS, UNIT

if TYPE_CHECKING:
    from tests.simulation.host_life import HostLife
    from tests.simulation.machine import Machine

SLACK_S = 1.0  # between an order's arrival and the moment the host acts on it


class Broken(AssertionError):
    """A rule does not hold."""


class Truth:
    """The observer."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.notes: list[str] = []
        self.deadline: dict[int, float] = {}  # generation -> when its lease ends at the latest
        self.recorded = 0  # generation of the last trial that a record of the host named
        self.trials: list[int] = []  # generations, as they were switched to
        self.confirmed: list[tuple[int, str]] = []  # (generation, manifest) as the host committed them
        self.promised = ""  # manifest that an answer has said to be confirmed
        self.dead: set[str] = set()  # workers
        self.struck_down: set[str] = set()  # versions whose worker was killed, by themselves or by the story
        self.trial_worker: dict[int, str] = {}
        self.starts: dict[str, int] = {}  # budget key -> candidates started
        self.failed: set[str] = set()  # payloads that failed in a trial here
        self.generations = (0, 0)  # journal's and host's
        self.began: dict[int, float] = {}  # generation -> when its trial began
        self.orders: list[dict[str, Any]] = []  # every order that ever arrived at the host
        self.asks: dict[int, dict[str, Any]] = {}
        self.gap_since = -1.0  # when the gap that is open was first seen; below 0: none is

    # --- telling --------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A rule is broken."""
        self.notes.append(f"t={self.machine.loop.virtual:.3f} point {self.machine.count}: {text}")

    def raise_noted(self) -> None:
        """Raises Broken."""
        if self.notes:
            raise Broken("\n".join(self.notes[:5]))

    def _must(self, holds: object, text: str) -> None:
        if not holds:
            self.note(text)

    # --- what is durable --------------------------------------------------------------------------------------------

    def _slot(self, name: str, safe: bool = True) -> tuple[str, Release | None]:
        slot = self.machine.disk.link(f"slots/{UNIT}/{name}", safe)
        return slot, release_of(self.machine.disk, f"slots/{UNIT}/{slot}", safe) if slot else None

    def _host_record(self) -> dict[str, Any]:
        raw = self.machine.disk.read(f"host/{UNIT}.json", safe=True)
        return dict(json.loads(raw)) if raw else {}

    def _record(self) -> UnitRecord | None:
        record = self.machine.journal.record(UNIT)
        assert record is None or isinstance(record, UnitRecord)
        return record

    def _was(self, generation: int, *phases: str) -> bool:
        rows = self.machine.journal.history
        return any(row["generation"] == generation and row["after"] in phases for row in reversed(rows))

    # --- at every instant -------------------------------------------------------------------------------------------

    def instant(self) -> None:
        """What would a power cut leave?"""
        if self.notes:
            return
        slot, release = self._slot("confirmed")
        if slot:
            self._complete(slot, release)
        elif self.confirmed:
            self.note("`confirmed` would be gone")
        record = self._host_record()
        live, shown = self._slot("live")
        if live and live != slot:
            self._undone(record, live, shown)
        self._serving(release, record)
        self._ends()
        self._grow(record)

    def _complete(self, slot: str, release: Release | None) -> None:
        folder = f"slots/{UNIT}/{slot}"
        whole = all(self.machine.disk.read(f"{folder}/{name}", safe=True) for name in ("model.onnx", "golden.npz"))
        self._must(release and whole, f"the confirmed slot {slot} is not complete")
        known = [manifest for _, manifest in self.confirmed]
        if release and known:
            self._must(release.manifest in known[-2:], f"`confirmed` holds {release.name}, which was never confirmed")
            if self.promised:
                self._must(release.manifest in (self.promised, known[-1]), f"{release.name}: a promised commit is lost")
        elif release:
            self.note(f"`confirmed` holds {release.name} and nothing was confirmed")

    def _undone(self, record: dict[str, Any], live: str, shown: Release | None) -> None:
        trial, outcome = record.get("trial"), record.get("outcome")
        self.recorded = trial["generation"] if trial else self.recorded
        here = trial and trial["slot"] == live
        over = outcome and outcome["generation"] == self.recorded and outcome["outcome"] != "confirmed"
        committed = shown and self.confirmed and shown.manifest == self.confirmed[-1][1]
        self._must(here or over or committed, f"`live` points at {live}, which no record would undo")

    def _serving(self, confirmed: Release | None, record: dict[str, Any]) -> None:
        host = self.machine.host
        live = host.fronts.serving.get(UNIT) if host and host.alive else None
        if live is None or (confirmed and live.release == confirmed.name):
            return
        trial, outcome = record.get("trial") or {}, record.get("outcome") or {}
        ending = outcome.get("generation") == live.generation and outcome.get("outcome") != "confirmed"
        self._must(
            trial.get("generation") == live.generation or ending,
            f"{live.release} of generation {live.generation} serves, and the host's record would not undo it",
        )
        self._must(
            self._was(live.generation, "switching"),
            f"{live.release} of generation {live.generation} serves, and the agent's journal knows nothing of it",
        )

    def _ends(self) -> None:
        host = self.machine.host
        seat = host.engine.seats.get(UNIT) if host and host.alive else None
        if host is None or seat is None or seat.unit.phase is not Phase.GAP:
            self.gap_since = -1.0
            return
        now = self.machine.loop.virtual
        self.gap_since = now if self.gap_since < 0 else self.gap_since
        late = now > self.gap_since + self.machine.gap_s + SLACK_S
        self._must(not late, f"the gap of generation {seat.unit.generation} does not end")
        serving = host.fronts.serving.get(UNIT)
        self._must(serving is None or not seat.answers, f"{serving} answers in a gap")

    def _grow(self, record: dict[str, Any]) -> None:
        mine = self._record()
        now = (mine.generation if mine else 0, int(record.get("generation", 0)))
        for before, after, whose in zip(self.generations, now, ("journal's", "host's"), strict=True):
            self._must(after >= before, f"the {whose} generation fell from {before} to {after}")
        self.generations = now

    def after_cut(self) -> None:
        """The power is gone: what was under way in memory does not count."""
        self.asks.clear()

    # --- the host's deeds -------------------------------------------------------------------------------------------

    def asked(self, request: dict[str, Any]) -> None:
        """An order arrives at the host."""
        self.asks[request["id"]] = request
        self.orders.append(request)
        now, generation = self.machine.loop.virtual, int(request.get("generation", 0))
        if request["op"] == "promote" and generation not in self.deadline:
            self.deadline[generation] = now + request["lease_s"] + SLACK_S
        elif request["op"] == "renew" and now <= self.deadline.get(generation, 0.0):
            self.deadline[generation] = now + self.machine.lease_s + SLACK_S

    def answered(self, frame: dict[str, Any]) -> None:
        """The host answers, or tells an event."""
        request = self.asks.pop(frame.get("id", 0), None)
        if request is None or "ok" not in frame:
            return
        op, generation = request["op"], int(request.get("generation", 0))
        if op in ("load", "promote"):
            self._must(generation >= self.generations[1], f"{op} of generation {generation} was accepted, it is stale")
        if op == "confirm" and frame["ok"].get("confirmed"):
            known = dict(self.confirmed)
            self._must(generation in known, f"generation {generation} was said to be confirmed, and was not")
            self.promised = known.get(generation, "")
        if op == "revert":
            record = self._host_record()
            outcome = record.get("outcome") or {}
            durable = outcome.get("generation") == generation and record.get("trial") is None
            failing = self.machine.host is not None and self.machine.host.engine.seats[UNIT].unit.unrecorded
            self._must(durable or failing, f"the revert of generation {generation} was answered before it was durable")

    def linked(self, unit: str, name: str, slot: str) -> None:
        """A link is being moved."""
        before, _ = self._slot("confirmed", safe=False)
        if name != "confirmed" or slot == before:
            return
        release = release_of(self.machine.disk, f"slots/{unit}/{slot}")
        trial = self._host_record().get("trial") or {}
        generation = int(trial.get("generation", 0))
        now = self.machine.loop.virtual
        self._must(release is not None, f"`confirmed` is moved to {slot}, which is empty")
        self._must(trial.get("slot") == slot, f"`confirmed` is moved to {slot} without a recorded trial there")
        self._must(self._was(generation, "confirming"), "`confirmed` is moved before the agent journaled that it asks")
        late = now > self.deadline.get(generation, 0.0)
        self._must(not late, f"generation {generation} was confirmed after its lease had lapsed")
        self._must(self.trial_worker.get(generation) not in self.dead, "a trial was confirmed whose worker had died")
        record = self._record()
        tried = record is not None and record.attempt is not None and record.attempt.wish.origin != "rollback"
        short = tried and now < self.began.get(generation, now) + MIN_SECONDS
        self._must(not short, f"generation {generation} was confirmed before its trial's minimum of time")
        self.confirmed.append((generation, release.manifest if release else ""))

    def switched(self, unit: str, live: Upstream | None) -> None:
        """Another worker is about to answer."""
        _, confirmed = self._slot("confirmed")
        if live is None or (confirmed and live.release == confirmed.name):
            return
        if live.generation not in self.trials:
            later = [one for one in self.trials if one >= live.generation]
            self._must(not later, f"generation {live.generation} was switched to after {later}")
            self.trials.append(live.generation)
            self.trial_worker[live.generation] = live.worker
            self.began[live.generation] = self.machine.loop.virtual
        same = self.trial_worker[live.generation] == live.worker
        self._must(same, f"generation {live.generation} was switched to twice, by different workers")
        trial = self._host_record().get("trial") or {}
        self._must(trial.get("generation") == live.generation, f"{live.release} is switched to before it is recorded")
        self._must(self._was(live.generation, "switching"), f"{live.release} is switched to before it is journaled")
        target, _ = self._slot("live")
        self._must(target == trial.get("slot"), f"{live.release} is switched to before `live` points at it")

    def started(self, worker: str, version: str) -> None:
        """A worker's process is being started."""
        host, record = self.machine.host, self._record()
        known = host.engine.seats[UNIT].unit.workers.get(worker) if host else None
        if known is None or known.role != "candidate" or record is None:
            return
        if self._was(known.generation, "restoring", "regating"):
            return
        self._must(self._was(known.generation, "gating"), f"a candidate of {version} starts before it is journaled")
        attempt = record.attempt
        if attempt is None or record.generation != known.generation:
            return
        key = f"{UNIT}:{attempt.payload_sha256}:{attempt.wish.assignment}"
        self.starts[key] = self.starts.get(key, 0) + 1
        spent = self.machine.journal.spent.get(f"try:{key}", 0)
        self._must(self.starts[key] <= spent, f"start {self.starts[key]} of {version}, and {spent} tries were spent")
        self._must(attempt.payload_sha256 not in self.failed, f"{version} failed here before, and is gated again")

    def opened(self, worker: str) -> None:
        """A candidate is opened in the place of what served."""
        host = self.machine.host
        beside = host.workers.loaded() - {worker} if host else set()
        self._must(not beside, f"{worker} is opened, and {sorted(beside)} did not make room")

    def worker_died(self, worker: str, version: str) -> None:
        """It is gone."""
        self.dead.add(worker)
        self.struck_down.add(version)

    def host_gone(self, host: HostLife) -> None:
        """All its workers are."""
        self.dead |= set(host.workers.running)

    # --- the agent's deeds ------------------------------------------------------------------------------------------

    def committed(self, before: Memory, after: Memory, transition: Transition) -> None:
        """A transition becomes durable."""
        record = transition.record
        attempt = record.attempt
        if attempt is not None:
            key = f"{UNIT}:{attempt.payload_sha256}:{attempt.wish.assignment}"
            tries, cut = after.spent.get(f"try:{key}", 0), after.spent.get(f"interruption:{key}", 0)
            unjudged, formerly = (memory.spent.get(f"unjudged:{key}", 0) for memory in (after, before))
            self._must(tries - cut - unjudged <= ATTEMPTS_MAX, f"{tries} tries, {cut} interrupted, {unjudged} unjudged")
            in_order = transition.event in ("inconclusive", "unjudged")
            self._must(unjudged == formerly or in_order, f"a try is given back for {transition.event}")
            self._must(cut <= INTERRUPTIONS_MAX, f"{cut} interruptions")
            if transition.event == "host-reverted" and attempt.wish.origin != "rollback" and attempt.payload_sha256:
                self.failed.add(attempt.payload_sha256)
        self._blamed(transition)
        old: Any = before.record(UNIT)
        if old is not None and record.confirmed != old.confirmed and record.confirmed is not None:
            known = self.confirmed[-1][1] if self.confirmed else ""
            self._must(record.confirmed.manifest_sha256 == known, "the agent journals a confirmation that is none")
        for entry in transition.outbox:
            self._true(entry)

    def _blamed(self, transition: Transition) -> None:
        """For a check that failed, and not by the application's word: only what really is bad."""
        blamed = [one.version for one in transition.quarantine if one.key.startswith("check:")]
        blamed += [str(one["version"]) for one in transition.outbox if one["kind"] == "unhealthy"]
        for version in blamed if transition.record.reason != "application" else ():
            self._must(self._bad(version), f"{version} is blamed ({transition.record.reason}), and is well")

    def _bad(self, version: str) -> bool:
        if version in self.struck_down:  # nobody can tell whose fault it was
            return True
        conduct = self.machine.conducts[version]
        return max(conduct.bad_after, conduct.non_finite_after, conduct.dies_after) >= 0

    def _true(self, entry: dict[str, Any]) -> None:
        kind, generation = entry["kind"], int(entry["generation"])
        record = self._host_record()
        trial, outcome = record.get("trial") or {}, record.get("outcome") or {}
        if kind in ("confirmed", "rolled_back"):
            _, release = self._slot("confirmed")
            here = release is not None and release.manifest == entry["manifest_sha256"]
            self._must(here, f"{entry['version']} is told as {kind} before it is")
        elif kind == "switched":
            self._must(generation in self.trials, f"{entry['version']} is told as switched, and never served")
        elif kind in ("reverted", "interrupted") and generation in self.trials:
            failing = self.machine.host is not None and self.machine.host.alive and self._failing()
            over = trial.get("generation") != generation and outcome.get("generation", 0) >= generation
            self._must(over or failing, f"{entry['version']} is told as {kind} while its trial is on")

    def _failing(self) -> bool:
        host = self.machine.host
        seat = host.engine.seats.get(UNIT) if host else None
        return seat is not None and (seat.unit.unrecorded or seat.unit.doubtful)

    # --- at rest ------------------------------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Nothing is under way any more."""
        machine, record = self.machine, self._record()
        slot, release = self._slot("confirmed")
        live, _ = self._slot("live")
        host = machine.host
        assert host is not None
        seat = host.engine.seats.get(UNIT)
        self._must(live == slot, f"`live` is {live!r} at rest, `confirmed` {slot!r}")
        if seat is not None:
            self._must(seat.unit.confirmed_slot == slot and seat.unit.confirmed == release, "host and disk differ")
            serving = host.fronts.serving.get(UNIT)
            self._must((serving.release if serving else "") == (release.name if release else ""), f"{serving} serves")
            mine = {seat.unit.live, seat.unit.standby}
            spare = machine.spare == "always" and seat.unit.live
            self._must(bool(seat.unit.standby) == bool(spare), f"a spare: {seat.unit.standby!r}")
            self._must(set(seat.unit.workers) <= mine, f"workers left: {sorted(seat.unit.workers)}")
            self._must(set(host.workers.running) <= mine, f"processes left: {set(host.workers.running)}")
        said = record.confirmed if record else None
        self._must(
            (said.manifest_sha256 if said else None) == (release.manifest if release else None)
            and (said.slot if said else "") == slot,
            f"the agent says {said} is confirmed, the host {release} in {slot!r}",
        )
        if machine.server.online:
            told = sorted(machine.server.events)
            self._must(told == list(range(1, machine.journal.following)), f"the server knows {told} of the outbox")
        for alarm in (machine.journal.meta.get("alarms") or {}).values():
            self._must(self._bad(alarm["version"]), f"an alarm over {alarm['version']}, which is well")
        waits = record is not None and record.phase == "waiting"
        self._must(waits or not machine.disk.names(f"incoming/{UNIT}"), "something is left beside the slots")
        self.raise_noted()
