"""Compatible: the device's contract, declared requirements, and whether gates may be switched off."""

from __future__ import annotations

from interlock_agent.core import contract as contracts
from interlock_agent.core.gate.checks import not_applicable, simple
from interlock_agent.steps.gate.run import Run, Tried
from interlock_shared.documents import CheckResult


async def check(run: Run, tried: Tried) -> list[CheckResult]:
    """Nothing is loaded yet; the manifest and the fingerprint say it all."""
    place = run.place
    facts = {**place.fingerprint, "memory_free_bytes": place.hardware.free_memory()}
    checks = [not_applicable("contract", "first_install")]
    if run.contract is not None:
        found = simple("contract", contracts.breaks(run.contract, run.manifest.signature), "contract_broken")
        if found.outcome == "fail":  # `contract accept` takes it from the verdict: the candidate may be gone by then
            offered = contracts.contract_of(run.manifest.signature)
            found = found.model_copy(update={"detail": {**found.detail, "offered": offered}})
        checks = [found]
    checks.append(simple("requirements", contracts.unmet(tried.variant.requires, facts), "requirement_unmet"))
    refused = run.manifest.gates == "none" and not place.settings.gate.allow_none
    problems = ["the manifest switches its gates off"] if refused else []
    return [*checks, simple("gates", problems, "gates_none_forbidden")]
