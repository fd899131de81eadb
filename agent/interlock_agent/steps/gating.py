"""The gate: measure a candidate on this device, beside the incumbent's twin, and write the verdict.

Stages run in order, the cheapest first; after a failed stage the rest is `not_run`. Judging is core.gate's; this
file loads, probes and keeps the raw samples. Whatever the candidate does happens in its own process.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from interlock_agent.core import contract as contracts
from interlock_agent.core import gate as judge
from interlock_agent.core.records import UnitRecord
from interlock_agent.core.retry import backoff
from interlock_agent.core.states import Event
from interlock_agent.core.statistics import median
from interlock_agent.core.times import rfc3339
from interlock_agent.core.wishes import budget_key
from interlock_agent.host import messages
from interlock_agent.steps.base import Happened, Step
from interlock_agent.steps.switching import persistently
from interlock_shared import __version__, canonical
from interlock_shared import manifest as manifests
from interlock_shared.documents import CheckResult, Incumbent, StageResult, Verdict
from interlock_shared.errors import Later, Never, Refused
from interlock_shared.limits import ATTEMPTS_MAX

STAGES = ("compatible", "loads", "right", "fast", "small")
WARM_UP_RUNS = 10  # the golden pass has warmed it up already; these settle the single-item path
ABSOLUTE_RUNS = 100  # inferences for the absolute limits where there is no incumbent
CRASHED = frozenset({"worker_died", "worker_hung", "load_failed"})  # the candidate's own fault


async def await_gate(step: Step) -> Happened:
    """One gate at a time on a device, over all units; then, is a try left? It is spent with the transition, so there
    must be a host to begin it with: while it is away, nothing is tried."""
    spent = _spent(step)
    if spent >= ATTEMPTS_MAX:
        return Happened(Event.EXHAUSTED, reason="exhausted", data={"tries": spent})
    await persistently(step, messages.Status())
    await step.shared.gate_lock.acquire()
    step.shared.gate_owner = step.name
    return Happened(Event.GATE_FREE)


def _spent(step: Step) -> int:
    """Tries of this attempt so far; one whose trial was interrupted counts there, in a budget of its own."""
    keys = [budget_key(step.record, budget) for budget in ("try", "interruption")]
    tries, interruptions = (step.shared.stored.spent.get(":".join(key), 0) if key else 0 for key in keys)
    return tries - interruptions


async def gate(step: Step) -> Happened:
    """Judge the staged release. The candidate's worker is kept when it is accepted: it is what will serve."""
    try:
        staged = await step.ports.slots.staged(step.name, step.attempt.wish.manifest_sha256)
        if staged is None:
            raise Later(f"{step.name}: the staged folder is gone", code="staging_lost")
        manifest = manifests.parse(staged.manifest)
        step.shared.manifests[step.name] = manifest
        folder = await step.ports.slots.prepare(
            step.name, step.attempt.wish.manifest_sha256, manifest.reference.name, step.record.generation
        )
        run = Run(step, manifest, folder, staged.payload_sha256)
        return await _conclude(run, await run.stages())
    except Later as error:
        until = step.ports.clock.now() + backoff(_spent(step), step.ports.clock.dice())
        return Happened(Event.LATER, changes={"until": until}, reason=error.code, data=error.document())
    finally:
        step.shared.release_gate(step.name)


async def regate(step: Step) -> Happened:
    """Judge the confirmed release again, on a device that has changed. It serves on, whatever the verdict."""
    confirmed = step.record.confirmed
    if confirmed is None:
        raise Later(f"{step.name}: nothing is confirmed", code="nothing_confirmed")
    async with step.shared.gate_lock:
        manifest = manifests.parse(await step.ports.slots.manifest_of(step.name, confirmed.slot))
        folder = await step.ports.slots.folder(step.name, confirmed.slot)
        run = Run(step, manifest, folder, confirmed.payload_sha256, against_incumbent=False)
        return await _conclude(run, await run.stages())


@dataclass
class Run:
    """One run of the gate: what was measured so far."""

    step: Step
    manifest: manifests.Manifest
    folder: str
    payload_sha256: str
    against_incumbent: bool = True
    candidate: str = ""
    twin: str = ""
    loaded: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[int]] = field(default_factory=dict)
    peak_bytes: int = 0
    started: float = 0.0
    before: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> UnitRecord:
        """The unit's record."""
        return self.step.record

    @property
    def has_incumbent(self) -> bool:
        """Whether there is a confirmed release to compare with."""
        return self.against_incumbent and self.record.confirmed is not None

    async def request(self, order: Any) -> dict[str, Any]:
        """An order to the host. What is the candidate's own fault is Refused; the host being away is Later, and so is
        the incumbent's twin failing: that is not the candidate's fault."""
        try:
            return await self.step.ports.host.request(order)
        except Refused as error:
            if self.twin and getattr(order, "worker", "") == self.twin:
                raise Later(f"the incumbent's twin: {error.message}", code="twin_failed") from None
            raise

    async def stages(self) -> list[StageResult]:
        """Run the stages in order; the first failure ends the run."""
        self.started = self.step.ports.clock.now()
        self.before = await self.step.ports.hardware.environment()
        self.limits = judge.effective_limits(self.manifest, self.step.unit.gate.limits())
        functions: dict[str, Callable[[], Awaitable[list[CheckResult]]]] = {
            "compatible": self.compatible,
            "loads": self.loads,
            "right": self.right,
            "fast": self.fast,
            "small": self.small,
        }
        results: list[StageResult] = []
        failed = False
        try:
            for name in STAGES:
                if failed:
                    results.append(StageResult(stage=name, outcome="not_run", seconds=0.0))  # type: ignore[arg-type]
                    continue
                self.step.tell(doing="gate", stage=name)
                began = self.step.ports.clock.monotonic()
                checks = await self._guarded(name, functions[name])
                results.append(judge.stage(name, self.step.ports.clock.monotonic() - began, checks))
                failed = results[-1].outcome == "fail"
        finally:
            await self._retire(self.twin)
        return results

    async def _guarded(self, name: str, function: Callable[[], Awaitable[list[CheckResult]]]) -> list[CheckResult]:
        try:
            return await function()
        except Refused as error:
            if error.code not in CRASHED:
                raise Later(error.message, code=error.code) from None
            return [
                CheckResult(check=name, outcome="fail", reason=error.code, detail={"problems": [error.message[:2000]]})
            ]

    async def _retire(self, worker: str) -> None:
        if worker:
            try:
                await self.request(messages.Retire(worker, self.record.generation))
            except (Later, Refused):
                return

    # --- the stages ---------------------------------------------------------------------------------------------

    async def compatible(self) -> list[CheckResult]:
        """Contract, declared requirements, room to load."""
        slots = self.step.ports.slots
        contract = await slots.contract(self.step.name)
        if contract is None and self.record.confirmed is not None:
            first = manifests.parse(await slots.manifest_of(self.step.name, self.record.confirmed.slot))
            contract = contracts.contract_of(first.signature)
            await slots.set_contract(self.step.name, contract)
        facts = {**self.step.shared.fingerprint, "memory_free_bytes": self.step.ports.hardware.free_memory()}
        checks = [judge.not_applicable("contract", "first_install")]
        if contract is not None:
            checks = [judge.simple("contract", contracts.breaks(contract, self.manifest.signature), "contract_broken")]
        requirements = contracts.unmet(self.manifest.reference.requires, facts)
        checks.append(judge.simple("requirements", requirements, "requirement_unmet"))
        refused = self.manifest.gates == "none" and not self.step.unit.gate.allow_none
        checks.append(
            judge.simple("gates", ["the manifest switches its gates off"] if refused else [], "gates_none_forbidden")
        )
        return checks

    async def loads(self) -> list[CheckResult]:
        """Open it on the configured providers; a silent fall-back to the CPU is a failure, not a slow success."""
        listen = self.step.shared.config.listen(self.step.name)
        await self.request(messages.Configure(self.step.name, listen, self.step.unit.options()))
        self.loaded = await self._load(self.folder, "candidate", None)
        self.candidate = str(self.loaded["worker"])
        different = contracts.loaded_differently(self.manifest.signature, self.loaded["inputs"], self.loaded["outputs"])
        asked = list(self.step.unit.providers)
        missing = [provider for provider in asked if provider not in self.loaded["providers"]]
        problems = [f"asked for {', '.join(asked)}; runs on {', '.join(self.loaded['providers'])}"]
        fell_back = bool(self.loaded["fell_back"] or missing)
        load_s = float(self.loaded["load_s"])
        return [
            judge.simple("signature", different, "signature_mismatch"),
            judge.simple("providers", problems if fell_back else [], "provider_fallback"),
            CheckResult(check="load_time", outcome="not_applicable", unit="s", measured=load_s, reason="no_limit"),
        ]

    async def _load(self, folder: str, role: str, golden: str | None) -> dict[str, Any]:
        options = self.step.unit.options()
        if golden is not None:
            options["golden_folder"] = golden
        order = messages.Load(self.step.name, self.record.generation, folder, role, options)
        return await self.request(order)

    async def right(self) -> list[CheckResult]:
        """Golden outputs, finite outputs, accuracy on labels against floor and incumbent."""
        if self.manifest.golden is None:
            return [judge.not_applicable("parity", "no_golden"), judge.not_applicable("accuracy", "no_golden")]
        mine = await self.request(messages.Evaluate(self.candidate, self.record.generation))
        self.peak_bytes = max(self.peak_bytes, int(mine["memory_bytes"]))
        checks = judge.parity(mine["outputs"])
        if any(check.outcome == "fail" for check in checks):
            return checks
        hits = None
        if self.has_incumbent:
            await self._load_twin()
            if mine["hits"]:
                hits = str((await self.request(messages.Evaluate(self.twin, self.record.generation)))["hits"])
        return checks + judge.accuracy(str(mine["hits"]), hits, self.limits)

    async def _load_twin(self) -> None:
        confirmed = self.record.confirmed
        if confirmed is None or self.twin:
            return
        folder = await self.step.ports.slots.folder(self.step.name, confirmed.slot)
        try:
            self.twin = str((await self._load(folder, "twin", self.folder))["worker"])
        except Refused as error:  # the incumbent's trouble is not the candidate's fault
            raise Later(f"the incumbent's twin: {error.message}", code="twin_failed") from None

    async def fast(self) -> list[CheckResult]:
        """Absolute p95, and the ratio to the incumbent in interleaved pairs of blocks, in random order."""
        if self.manifest.golden is None:
            return [
                judge.not_applicable("latency_p95", "no_golden"),
                judge.not_applicable("latency_ratio", "no_golden"),
            ]
        await self._block(self.candidate, "warm_up", 0, WARM_UP_RUNS)
        limit = self.limits.get("latency_ratio_max")
        if not self.has_incumbent or limit is None:
            await self._block(self.candidate, "candidate", 0, ABSOLUTE_RUNS)
            absolute = judge.latency(self.samples["candidate_wall_ns"], self.limits.get("latency_p95_ms"))
            why = "no_limit" if self.has_incumbent else "no_incumbent"
            return [*absolute, judge.not_applicable("latency_ratio", why)]
        await self._load_twin()
        await self._block(self.twin, "warm_up", 0, WARM_UP_RUNS)
        ratio = await self._pairs(float(limit))
        absolute = judge.latency(
            self.samples["candidate_wall_ns"], self.limits.get("latency_p95_ms"), self.samples["incumbent_wall_ns"]
        )
        return absolute + judge.ratio_result(ratio, float(limit))

    async def _pairs(self, limit: float) -> judge.Ratio:
        work: list[float] = []
        wall: list[float] = []
        for pair in range(judge.LOOKS[-1]):
            order = [("candidate", self.candidate), ("incumbent", self.twin)]
            if self.step.ports.clock.dice() < 0.5:
                order.reverse()
            first = pair * judge.BLOCK_RUNS
            blocks = {name: await self._block(worker, name, first, judge.BLOCK_RUNS) for name, worker in order}
            wall.append(blocks["candidate"][0] / max(blocks["incumbent"][0], 1.0))
            work.append(blocks["candidate"][1] / max(blocks["incumbent"][1], 1.0))
            if pair + 1 in judge.LOOKS:
                ratio = judge.look(work, wall, limit)
                self.step.tell(doing="gate", stage="fast", pairs=ratio.pairs, ratio=round(ratio.work.estimate, 3))
                if ratio.decided:
                    return ratio
        return judge.look(work, wall, limit)

    async def _block(self, worker: str, name: str, first: int, runs: int) -> tuple[float, float]:
        answer = await self.request(messages.Probe(worker, self.record.generation, first, runs))
        wall = [int(ns) for ns in answer["wall_ns"]]
        work = [int(ns) for ns in answer["work_ns"]]
        self.samples.setdefault(f"{name}_wall_ns", []).extend(wall)
        self.samples.setdefault(f"{name}_work_ns", []).extend(work)
        if worker == self.candidate:
            self.peak_bytes = max(self.peak_bytes, int(answer["memory_bytes"]))
        return median(wall), median(work)

    async def small(self) -> list[CheckResult]:
        """Peak memory of the candidate's process."""
        peak = max(self.peak_bytes, int(self.loaded.get("memory_bytes", 0)))
        limit = self.limits.get("memory_max_bytes")
        free = self.step.ports.hardware.free_memory()
        headroom = None if free is None else free + peak  # it is loaded already: what was free before
        return judge.memory(peak, None if limit is None else int(limit), headroom)


async def _conclude(run: Run, stages: list[StageResult]) -> Happened:
    """Write and sign the verdict, keep it with its samples, and say what it means for the attempt."""
    step = run.step
    outcome, reason, message = judge.conclude(stages)
    samples = canonical.encode({"schema": "interlock.samples/1", "samples": run.samples})
    verdict = await _verdict(run, stages, (outcome, reason, message), canonical.sha256(samples))
    envelope = step.ports.signer.sign_verdict(verdict)
    document = canonical.encode(verdict.model_dump(mode="json", by_alias=True))
    await step.ports.slots.keep_verdict(step.name, step.record.generation, document, samples)
    data = {"envelope": json.loads(envelope), "message": message, "outcome": outcome}
    changes: dict[str, Any] = {"payload_sha256": run.payload_sha256, "variant": verdict.variant}
    changes["worker"] = run.candidate
    if outcome == "accept":
        return Happened(Event.ACCEPT, changes=changes, reason="ok", data=data)
    if outcome == "reject":
        return Happened(Event.REJECT, changes={**changes, "failed_check": reason}, reason=reason, data=data)
    judgements = step.attempt.judgements + 1 if step.record.attempt else 1
    settings = step.unit.gate
    wait = settings.inconclusive_wait_s * (1 + backoff(judgements, step.ports.clock.dice()) / 60)
    until = step.ports.clock.now() + wait if judgements < settings.inconclusive_max else -1.0
    changes |= {"judgements": judgements, "until": until}
    return Happened(Event.INCONCLUSIVE, changes=changes, reason=reason if until >= 0 else "operator", data=data)


async def _verdict(run: Run, stages: list[StageResult], result: tuple[str, str, str], samples: str) -> Verdict:
    step = run.step
    confirmed = run.record.confirmed if run.has_incumbent else None
    incumbent = None
    if confirmed is not None:
        incumbent = Incumbent(version=confirmed.version, payload_sha256=confirmed.payload_sha256, baseline="twin")
    outcome, reason, message = result
    if outcome not in ("accept", "reject", "inconclusive"):
        raise Never(f"no such outcome: {outcome}")
    origin = step.record.attempt.wish.origin if step.record.attempt else "rollout"
    return Verdict(
        device=step.shared.device,
        model=run.manifest.model,
        version=run.manifest.version,
        manifest_sha256=canonical.sha256(manifests.to_bytes(run.manifest)),
        payload_sha256=run.payload_sha256,
        variant=run.manifest.reference.name,
        generation=run.record.generation,
        outcome=outcome,  # type: ignore[arg-type]  # held by the line above
        reason=reason,
        message=message,
        started_at=rfc3339(run.started),
        ended_at=rfc3339(step.ports.clock.now()),
        agent=__version__,
        runtime=str(run.loaded.get("runtime", "")),
        fingerprint=step.shared.fingerprint,
        fingerprint_sha256=step.shared.fingerprint_sha256,
        limits=run.limits,
        limits_sha256=judge.limits_digest(run.limits),
        incumbent=incumbent,
        stages=tuple(stages),
        environment={"before": run.before, "after": await step.ports.hardware.environment()},
        samples_sha256=samples,
        origin="sideload" if origin == "sideload" else "rollout",
    )
