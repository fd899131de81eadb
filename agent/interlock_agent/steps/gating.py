"""The gate of a unit: its turn, the run on what is staged, and what the verdict means for the attempt.

The measuring itself is steps.gate's, the judging core.gate's. Whatever the candidate does happens in its own process.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from interlock_agent.core import contract as contracts
from interlock_agent.core.gate.gap import Plan
from interlock_agent.core.gate.recorded import items_of
from interlock_agent.core.gate.window import next_opening
from interlock_agent.core.retry import backoff
from interlock_agent.core.states import Event
from interlock_agent.core.times import rfc3339
from interlock_agent.host import messages
from interlock_agent.steps.base import Happened, Step
from interlock_agent.steps.gate.command import ByCommand
from interlock_agent.steps.gate.gap import NO_GAP
from interlock_agent.steps.gate.run import Baseline, Place, Run
from interlock_agent.steps.gate.variants import in_order, judge
from interlock_agent.steps.gate.verdict import samples_document, verdict
from interlock_agent.steps.switching import persistently, plan_of
from interlock_agent.steps.waiting import tries, unjudged
from interlock_shared import canonical
from interlock_shared import manifest as manifests
from interlock_shared.errors import Later, Unreachable
from interlock_shared.limits import ATTEMPTS_MAX

NO_COMMAND_S = 900.0  # between two looks for the owner's command


async def await_gate(step: Step) -> Happened:
    """One gate at a time on a device, over all units; then, is a try left? It is spent with the transition, so there
    must be a host to begin it with: while it is away, nothing is tried. What is due when the owner's window is closed
    waits for it: looked at before the turn, and again when it has come. So does what the owner's command would measure,
    until there is such a program: neither spends a try."""
    spent = tries(step)
    if spent >= ATTEMPTS_MAX:
        return Happened(Event.EXHAUSTED, reason="exhausted", data={"tries": spent})
    closed = _closed(step) or await _unmeasured(step)
    if closed is None:
        await persistently(step, messages.Status())
        await step.shared.gate_lock.acquire()
        step.shared.gate_owner = step.name
        closed = _closed(step)
    if closed is not None:
        step.shared.release_gate(step.name)
        return closed
    try:
        told = (await _plan(step)).document()
    except Later as error:
        step.shared.release_gate(step.name)
        until = step.ports.clock.now() + NO_COMMAND_S
        return Happened(Event.LATER, changes={"until": until}, reason=error.code, data=error.document())
    return Happened(Event.GATE_FREE, data={"gap": told} if told else {})


async def _plan(step: Step) -> Plan:
    """Whether what serves is unloaded for the staged release, and for how long: decided here, and told before it is
    done. Raises Later where this host is too old for it."""
    staged = await step.ports.slots.staged(step.name, step.attempt.wish.manifest_sha256)
    plan = NO_GAP
    if staged is not None:
        manifest = manifests.parse(staged.manifest)
        variants = in_order(manifest.variants, step.unit.gate.variants)
        cramped = staged.payload_sha256 in step.shared.cramped
        plan = await plan_of(step, manifest, variants, cramped=cramped)
    step.shared.gaps[step.name] = plan
    return plan


def _closed(step: Step) -> Happened | None:
    """Until when the owner's windows are closed; None where one is open, or there is none."""
    now = step.ports.clock.now()
    until = next_opening(step.unit.gate.window, now)
    if until <= now:
        return None
    return Happened(Event.LATER, changes={"until": until}, reason="window", data={"until": rfc3339(until)})


async def _unmeasured(step: Step) -> Happened | None:
    """Later, where the owner's command is not there."""
    command = step.unit.gate.command
    if not command or await step.ports.programs.there(command):
        return None
    missing = Later(f"gate.command: {command[0]}: no program that can be started", code="no_command")
    until = step.ports.clock.now() + NO_COMMAND_S
    return Happened(Event.LATER, changes={"until": until}, reason=missing.code, data=missing.document())


async def gate(step: Step) -> Happened:
    """Judge the staged release. The candidate's worker is kept when it is accepted: it is what will serve."""
    digest = step.attempt.wish.manifest_sha256
    try:
        staged = await step.ports.slots.staged(step.name, digest)
        if staged is None:
            raise Later(f"{step.name}: the staged folder is gone", code="staging_lost")
        manifest = manifests.parse(staged.manifest)
        step.shared.manifests[step.name] = manifest

        async def prepare(variant: str) -> str:
            return await step.ports.slots.prepare(step.name, digest, variant, step.record.generation)

        run = Run(
            place=_place(step),
            manifest=manifest,
            payload_sha256=staged.payload_sha256,
            prepare=prepare,
            contract=await _contract(step),
            incumbent=await _incumbent(step),
            variants=manifest.variants,
            plan=step.shared.gaps.get(step.name, NO_GAP),
        )
        return await _run(step, run)
    except Later as error:
        if not isinstance(error, Unreachable):
            return unjudged(step, error)
        # A host that went away may have gone of this very candidate: that try is spent.
        until = step.ports.clock.now() + backoff(tries(step), step.ports.clock.dice())
        return Happened(Event.LATER, changes={"until": until}, reason=error.code, data=error.document())
    finally:
        step.shared.release_gate(step.name)


async def regate(step: Step) -> Happened:
    """Judge the confirmed release again, on a device that has changed. It serves on, whatever the verdict."""
    confirmed = step.record.confirmed
    if confirmed is None:
        raise Later(f"{step.name}: nothing is confirmed", code="nothing_confirmed")
    slots = step.ports.slots
    async with step.shared.gate_lock:
        manifest = manifests.parse(await slots.manifest_of(step.name, confirmed.slot))
        served = (await slots.seal_of(step.name, confirmed.slot) or {}).get("variant", manifest.reference.name)

        variants = tuple(variant for variant in manifest.variants if variant.name == served)
        plan = await plan_of(step, manifest, variants, cramped=confirmed.payload_sha256 in step.shared.cramped)
        closed = _closed(step) if plan.makes_room else None
        if closed is not None:  # it serves on as it is; what is not urgent does not cost applications anything by day
            return Happened(Event.LATER, reason=closed.reason, data=closed.data)

        async def prepare(variant: str) -> str:
            del variant
            return await slots.folder(step.name, confirmed.slot)

        return await _run(
            step,
            Run(
                place=_place(step),
                manifest=manifest,
                payload_sha256=confirmed.payload_sha256,
                prepare=prepare,
                contract=await _contract(step),
                incumbent=None,
                variants=variants,
                serving=True,
                plan=plan,
            ),
        )


def _place(step: Step) -> Place:
    shared, ports = step.shared, step.ports
    command = ByCommand.where_wanted(step.unit, ports.host, ports.programs, ports.hardware, ports.clock)
    return Place(
        unit=step.name,
        generation=step.record.generation,
        settings=step.unit,
        options=step.shared.options(step.name),
        listen=shared.config.listen(step.name),
        fingerprint=shared.fingerprint,
        host=command or ports.host,
        clock=ports.clock,
        hardware=ports.hardware,
        tell=step.tell,
        command=command,
    )


async def _contract(step: Step) -> dict[str, Any] | None:
    """The device's contract; the first confirmed release makes it."""
    slots, confirmed = step.ports.slots, step.record.confirmed
    contract = await slots.contract(step.name)
    if contract is None and confirmed is not None:
        first = manifests.parse(await slots.manifest_of(step.name, confirmed.slot))
        contract = contracts.contract_of(first.signature)
        await slots.set_contract(step.name, contract)
    return contract


async def _incumbent(step: Step) -> Baseline | None:
    confirmed = step.record.confirmed
    if confirmed is None:
        return None
    slots = step.ports.slots
    return Baseline(
        confirmed.version,
        confirmed.payload_sha256,
        await slots.folder(step.name, confirmed.slot),
        items_of(await slots.seal_of(step.name, confirmed.slot)),
        partial(slots.recorded, step.name, confirmed.slot, confirmed.payload_sha256),
    )


async def _run(step: Step, run: Run) -> Happened:
    """Write and sign the verdict, keep it with its samples, and say what it means for the attempt."""
    await run.begin()
    try:
        judged = await judge(run)
    finally:
        await run.end()
        if run.cramped:
            step.shared.cramped.add(run.payload_sha256)  # the next time it is judged alone
    origin = step.record.attempt.wish.origin if step.record.attempt else "rollout"
    made = await verdict(
        run,
        judged,
        device=step.shared.device,
        fingerprint_sha256=step.shared.fingerprint_sha256,
        origin="sideload" if origin == "sideload" else "rollout",
    )
    if made.reason == "too_little_free" and run.may_make_room:
        step.shared.cramped.add(run.payload_sha256)
    envelope = await step.ports.signer.sign_verdict(made)
    document = canonical.encode(made.model_dump(mode="json", by_alias=True))
    await step.ports.slots.keep_verdict(step.name, step.record.generation, document, samples_document(judged))
    data = {"envelope": json.loads(envelope), "message": made.message, "outcome": made.outcome}
    changes: dict[str, Any] = {
        "payload_sha256": run.payload_sha256,
        "variant": made.variant,
        "worker": judged.chosen.worker,
    }
    if made.outcome == "accept":
        return Happened(Event.ACCEPT, changes=changes, reason="ok", data=data)
    if made.outcome == "reject":
        return Happened(Event.REJECT, changes={**changes, "failed_check": made.reason}, reason=made.reason, data=data)
    return _again(step, changes, made.reason, data)


def _again(step: Step, changes: dict[str, Any], reason: str, data: dict[str, Any]) -> Happened:
    """Inconclusive: later, not never; after the owner's number of judgements a person decides."""
    judgements = step.attempt.judgements + 1 if step.record.attempt else 1
    settings = step.unit.gate
    wait = settings.inconclusive_wait_s * (1 + backoff(judgements, step.ports.clock.dice()) / 60)
    until = step.ports.clock.now() + wait if judgements < settings.inconclusive_max else -1.0
    changes = {**changes, "judgements": judgements, "until": until}
    return Happened(Event.INCONCLUSIVE, changes=changes, reason=reason if until >= 0 else "operator", data=data)
