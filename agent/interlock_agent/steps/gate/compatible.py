"""Compatible: the device's contract, declared requirements, and whether gates may be switched off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlock_agent.core import contract as contracts
from interlock_agent.core.gate import gap
from interlock_agent.core.gate.checks import not_applicable, simple
from interlock_agent.steps.gate import recorded
from interlock_agent.steps.gate.run import Run, Tried
from interlock_shared.documents import CheckResult


def _built_for(tried: Tried, fingerprint: Mapping[str, Any]) -> list[CheckResult]:
    """A compiled form runs where every fact that it was compiled for is the very same."""
    wanted = tried.variant.built_for
    if not wanted:
        return []
    other = [
        f"{fact} {value!r}: this device has {fingerprint.get(fact)!r}"
        for fact, value in sorted(wanted.items())
        if fingerprint.get(fact) != value
    ]
    return [simple("built_for", other, "built_for_another")]


def _required(tried: Tried, fingerprint: Mapping[str, Any], free: Mapping[str, Any]) -> list[CheckResult]:
    """What the device is decides at once; what others leave free of it may be otherwise in an hour."""
    lasting = [one for one in tried.variant.requires if one.fact not in free]
    passing = [one for one in tried.variant.requires if one.fact in free]
    rows = [simple("requirements", contracts.unmet(lasting, dict(fingerprint)), "requirement_unmet")]
    short = contracts.unmet(passing, dict(free))
    if short:
        row = simple("requirements_now", short, "too_little_free")
        rows.append(row.model_copy(update={"outcome": "inconclusive"}))
    return rows


async def check(run: Run, tried: Tried) -> list[CheckResult]:
    """Nothing is loaded yet; the manifest and the fingerprint say it all."""
    place = run.place
    checks = [not_applicable("contract", "first_install")]
    if run.contract is not None:
        found = simple("contract", contracts.breaks(run.contract, run.manifest.signature), "contract_broken")
        if found.outcome == "fail":  # `contract accept` takes it from the verdict: the candidate may be gone by then
            offered = contracts.contract_of(run.manifest.signature)
            found = found.model_copy(update={"detail": {**found.detail, "offered": offered}})
        checks = [found]
    checks += _required(tried, place.fingerprint, run.free())
    if tried.variant.runtime == "external" and place.command is None:
        wanted = "it is not run here, and gate.command does not say what measures it"
        checks.append(simple("measurable", [wanted], "no_command"))
    checks += _built_for(tried, place.fingerprint)
    refused = run.manifest.gates == "none" and not place.settings.gate.allow_none
    problems = ["the manifest switches its gates off"] if refused else []
    checks.append(simple("gates", problems, "gates_none_forbidden"))
    return [*checks, *gap.check(run.plan, await _no_baseline(run))]


async def _no_baseline(run: Run) -> str:
    """Why speed could not be judged without the twin, where it has to be."""
    wanted = run.limits.get("latency_ratio_max") is not None and run.measurable and run.incumbent is not None
    if not run.plan.makes_room or not wanted:
        return ""
    found = await recorded.baseline(run)
    return found if isinstance(found, str) else ""
