"""Loads: opened in its own process on the configured providers, and it is what its manifest says."""

from __future__ import annotations

from interlock_agent.core import contract as contracts
from interlock_agent.core.gate.checks import simple
from interlock_agent.host import messages
from interlock_agent.steps.gate.run import Run, Tried
from interlock_shared.documents import CheckResult


async def check(run: Run, tried: Tried) -> list[CheckResult]:
    """A silent fall-back to the CPU is a failure, not a slow success."""
    place = run.place
    await run.request(messages.Configure(place.unit, place.listen, place.settings.options()))
    tried.folder = await run.seal(tried.variant.name)
    tried.loaded = await run.load(tried.folder, "candidate")
    tried.worker = str(tried.loaded["worker"])
    signature = run.manifest.signature
    different = contracts.loaded_differently(signature, tried.loaded["inputs"], tried.loaded["outputs"])
    asked = list(place.settings.providers)
    missing = [provider for provider in asked if provider not in tried.loaded["providers"]]
    problems = [f"asked for {', '.join(asked)}; runs on {', '.join(tried.loaded['providers'])}"]
    fell_back = bool(tried.loaded["fell_back"] or missing)
    load_s = float(tried.loaded["load_s"])
    return [
        simple("signature", different, "signature_mismatch"),
        simple("providers", problems if fell_back else [], "provider_fallback"),
        CheckResult(check="load_time", outcome="not_applicable", unit="s", measured=load_s, reason="no_limit"),
    ]
