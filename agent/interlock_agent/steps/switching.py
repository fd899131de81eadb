"""From a passed gate to a confirmed release, and back: fill the slot, promote, confirm, revert. (The trial itself is
watching.py's.)

The host may be away at any moment (it is another process); each step then waits for it and asks what became of the
generation. What the host says is the truth about who serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interlock_agent.core.gate.gap import Plan
from interlock_agent.core.gate.right import parity
from interlock_agent.core.readings import ENOUGH_REQUESTS
from interlock_agent.core.revoked import REVOKED
from interlock_agent.core.states import Event, Phase
from interlock_agent.host import messages
from interlock_agent.steps.base import Happened, Step
from interlock_agent.steps.gate.gap import NO_GAP, plan
from interlock_agent.steps.waiting import unjudged
from interlock_shared import manifest as manifests
from interlock_shared.errors import Later, Never, Refused, Unreachable
from interlock_shared.manifest import Manifest, Variant

HOST_AWAY_S = 1.0  # how long one look for the host's return lasts
GOLDEN_S = 300.0  # for the golden items of a release that is to come back
# Refusals that say nothing about the release that is to come back: it stays the one to go back to.
NOT_ITS_FAULT = frozenset("io hook_away stale_generation gap_over unknown_worker bad_request protocol".split())


async def persistently(step: Step, order: Any) -> dict[str, Any]:
    """An order that is sent again until the host answers. Raises Refused with the host's code."""
    while True:
        try:
            return await step.ports.host.request(order)
        except Unreachable:
            await step.ports.host.event(step.name, HOST_AWAY_S)


async def unit_status(step: Step) -> dict[str, Any] | None:
    """The host's status of this unit; None when it does not know the unit."""
    answer = await persistently(step, messages.Status())
    return next((unit for unit in answer["units"] if unit["unit"] == step.name), None)


def read_status(step: Step, status: dict[str, Any] | None) -> Happened:
    """What became of this generation, as an event."""
    generation = step.record.generation
    if status is None:
        return Happened(Event.GONE, reason="host_forgot")
    outcome = status.get("outcome") or {}
    if outcome.get("generation") == generation:
        return from_outcome(str(outcome["outcome"]), str(outcome.get("reason", "")), dict(outcome))
    if status.get("trial") == generation:
        return Happened(Event.PROMOTED)
    mine = [w for w in status.get("workers", []) if w["worker"] == step.attempt.worker and w["role"] == "candidate"]
    if mine and step.attempt.worker:
        return Happened(Event.CANDIDATE_HERE)
    return Happened(Event.GONE, reason="candidate_gone")


def from_outcome(outcome: str, reason: str, data: dict[str, Any]) -> Happened:
    """The event of a trial's outcome in the host."""
    if outcome == "confirmed":
        return Happened(Event.YES)
    if outcome == "reverted":
        return Happened(Event.HOST_REVERTED, reason=reason, data=data)
    return Happened(Event.LAPSED, reason=reason, data=data)


async def ask_host(step: Step) -> Happened:
    """After a restart: what became of this generation. An event that the phase cannot have is `gone`."""
    happened = read_status(step, await unit_status(step))
    if happened.event is Event.CANDIDATE_HERE and step.record.phase == Phase.TRIAL.value:
        return Happened(Event.GONE, reason="candidate_gone")
    if step.record.phase == Phase.PASSED.value and happened.event is not Event.CANDIDATE_HERE:
        return Happened(Event.GONE, reason="candidate_gone")
    return happened


async def fill_slot(step: Step) -> Happened:
    """Replace the spare slot by the folder that passed; the worker keeps its open files. A disk that is full, or fails,
    is no fault of the release."""
    try:
        slot = await step.ports.slots.spare(step.name)
        await step.ports.slots.fill(step.name, step.attempt.wish.manifest_sha256, slot, step.record.generation)
    except Later as error:
        return unjudged(step, error)
    return Happened(Event.SLOT_FILLED, changes={"slot": slot})


async def promote(step: Step) -> Happened:
    """The switch. The lease begins in the host."""
    if step.shared.revocation(step.name, step.attempt.wish.manifest_sha256) is not None:
        return Happened(Event.GONE, reason=REVOKED)  # and it is not fetched again
    settings = step.unit.trial
    felt = _felt(await unit_status(step))
    step.shared.words.pop(step.name, None)  # what was said was said of the one before
    step.ports.host.drop_events(step.name)
    order = messages.Promote(
        unit=step.name,
        generation=step.record.generation,
        worker=step.attempt.worker,
        slot=step.attempt.slot,
        lease_s=settings.lease_s,
        drain_max_s=settings.drain_max_s,
    )
    try:
        answer = await step.ports.host.request(order)
    except Unreachable:
        happened = read_status(step, await unit_status(step))
        return happened if happened.event is not Event.CANDIDATE_HERE else await promote(step)
    except Refused as error:
        happened = read_status(step, await unit_status(step))
        if happened.event is not Event.CANDIDATE_HERE:
            return happened
        if error.code not in ("io", "hook_away"):
            return Happened(Event.GONE, reason=error.code)
        # Its disk refused the record, or Triton is down: no fault of the release, no try spent.
        await step.ports.clock.sleep(HOST_AWAY_S)
        return await promote(step)
    return Happened(Event.PROMOTED, changes={"felt": felt}, data=_figures(answer, "swap_ms", "cut"))


def _figures(answer: dict[str, Any], *names: str) -> dict[str, Any]:
    """Of a switch; with the gap in which nobody answered, where there was one."""
    gap_s = float(answer.get("gap_s", 0.0))
    return {name: answer[name] for name in names} | ({"gap_s": gap_s} if gap_s else {})


def _felt(status: dict[str, Any] | None) -> dict[str, float]:
    """How long applications waited in the seconds before the switch, ms by quantile; empty without enough traffic."""
    recent = dict(((status or {}).get("counters") or {}).get("recent") or {})
    count = int(recent.pop("count", 0))
    return {name: float(value) for name, value in recent.items()} if count >= ENOUGH_REQUESTS else {}


async def confirm(step: Step) -> Happened:
    """The commit point is the host's; asked again, it answers the same."""
    while True:
        try:
            answer = await persistently(step, messages.Confirm(step.name, step.record.generation))
        except Refused:
            happened = read_status(step, await unit_status(step))
            if happened.event is Event.PROMOTED:
                await _a_moment(step)
                continue
            if happened.event in (Event.YES, Event.HOST_REVERTED, Event.LAPSED):
                return happened
            return Happened(Event.LAPSED, reason="host_forgot")
        if not answer.get("confirmed"):
            return from_outcome(str(answer.get("outcome", "interrupted")), str(answer.get("reason", "")), dict(answer))
        return Happened(Event.YES, data=dict(step.attempt.seen) if step.attempt.wish.origin != "late" else {})


async def _a_moment(step: Step) -> None:
    """The host refused and its trial goes on: it could not write. It is asked again; the lease, which nobody renews
    any more, says for how long at most."""
    await step.ports.clock.sleep(HOST_AWAY_S)


async def revert(step: Step) -> Happened:
    """Ask the host to go back; it may have gone already. Reverted is what it says, never what was asked of it."""
    attempt = step.attempt
    reason = attempt.failed_check or step.record.reason or "reverted"
    while True:
        try:
            answer = await persistently(step, messages.Revert(step.name, step.record.generation, reason))
        except Refused:
            happened = read_status(step, await unit_status(step))
            if happened.event is Event.PROMOTED:
                await _a_moment(step)
                continue
            if happened.event is Event.LAPSED:
                return Happened(Event.LAPSED, reason=happened.reason, data={**happened.data, **attempt.seen})
            return Happened(Event.HOST_REVERTED, reason=reason, data=attempt.seen)
        data = {**attempt.seen, "serves": answer["release"], **_figures(answer, "swap_ms")}
        if attempt.failed_at:
            data["back_after_s"] = round(step.ports.clock.monotonic() - attempt.failed_at, 4)
        return Happened(Event.HOST_REVERTED, reason=reason, data=data)


async def retire(step: Step) -> None:
    """End what was started to be judged and serves nobody. The host knows best what that is: an agent that was killed,
    or an attempt that was cancelled, has not heard the names. A host that stays away has no workers."""
    step.shared.release_gate(step.name)
    for _ in range(2):
        try:
            answer = await step.ports.host.request(messages.Status())
            for unit in answer["units"]:
                if unit["unit"] == step.name:
                    await _retire_idle(step, unit)
            return
        except Unreachable:
            await step.ports.host.event(step.name, HOST_AWAY_S)


async def _retire_idle(step: Step, status: dict[str, Any]) -> None:
    for worker in status.get("workers", []):
        if worker["role"] in ("candidate", "twin"):
            try:
                order = messages.Retire(str(worker["worker"]), max(step.record.generation, int(status["generation"])))
                await step.ports.host.request(order)
            except Refused:
                continue


async def plan_of(step: Step, manifest: Manifest, variants: Sequence[Variant], *, cramped: bool = False) -> Plan:
    """Whether what serves is unloaded for that release. Raises Later, Unreachable."""
    confirmed = step.record.confirmed
    if confirmed is None:
        return NO_GAP
    found = await step.ports.slots.recorded(
        step.name, confirmed.slot, confirmed.payload_sha256, step.shared.fingerprint
    )
    verdict = found[0] if found else None
    status, hardware = await unit_status(step), step.ports.hardware
    return plan(step.unit, status, hardware, verdict, manifest, variants, cramped=cramped)


async def restore(step: Step) -> Happened:
    """Load the previous confirmed release from the spare slot, to be promoted; alone, where it is refused memory beside
    what serves and the owner's policy allows it."""
    step.refuse_revoked()
    slot = step.attempt.slot
    seal = await step.ports.slots.seal_of(step.name, slot)
    if seal is None or seal.get("manifest_sha256") != step.attempt.wish.manifest_sha256:
        raise Never(f"{step.name}: the spare slot no longer holds {step.attempt.wish.version}", code="rollback_lost")
    manifest = manifests.parse(await step.ports.slots.manifest_of(step.name, slot))
    variants = [one for one in manifest.variants if one.name == seal.get("variant", manifest.reference.name)]
    payload, cramped = step.attempt.payload_sha256, step.shared.cramped
    gap = await plan_of(step, manifest, variants, cramped=payload in cramped)
    step.tell(doing="restore", gap=gap.document())
    order = messages.Load(
        unit=step.name,
        generation=step.record.generation,
        folder=await step.ports.slots.folder(step.name, slot),
        role="candidate",
        options=step.unit.options(),
        gap_s=gap.at_most_s,
        expected_s=gap.expected_s,
        drain_max_s=min(step.unit.trial.drain_max_s, gap.at_most_s / 2),
    )
    try:
        worker = str((await step.ports.host.request(order))["worker"])
        if step.attempt.wish.origin == "late":
            await _must_be_right(step, worker)
    except Refused as error:
        if error.code == "out_of_memory" and payload not in cramped:
            cramped.add(payload)
            return await restore(step)
        if error.code in NOT_ITS_FAULT:
            return Happened(Event.LATER, reason=error.code, data=error.document())
        raise Never(error.message, code=error.code) from None
    except Later:
        return Happened(Event.LATER, reason="unreachable")
    return Happened(Event.LOADED, changes={"worker": worker})


async def _must_be_right(step: Step, worker: str) -> None:
    """Nobody has asked for it: before it serves again its golden answers are what they were. Raises Never, Refused."""
    manifest = manifests.parse(await step.ports.slots.manifest_of(step.name, step.attempt.slot))
    if manifest.golden is None:
        return
    answer = await step.ports.host.request(messages.Evaluate(worker, step.record.generation, GOLDEN_S))
    variant = str((await step.ports.slots.seal_of(step.name, step.attempt.slot) or {}).get("variant", ""))
    own = next((one.parity for one in manifest.variants if one.name == variant), {})
    bad = [row for row in parity(answer["outputs"], manifest.golden, own) if row.outcome == "fail"]
    if bad:
        raise Never(f"{manifest.release}: {bad[0].detail.get('output')}: {bad[0].reason}", code=bad[0].reason)
