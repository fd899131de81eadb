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
        checks = [simple("contract", contracts.breaks(run.contract, run.manifest.signature), "contract_broken")]
    checks.append(simple("requirements", contracts.unmet(tried.variant.requires, facts), "requirement_unmet"))
    refused = run.manifest.gates == "none" and not place.settings.gate.allow_none
    problems = ["the manifest switches its gates off"] if refused else []
    return [*checks, simple("gates", problems, "gates_none_forbidden")]
