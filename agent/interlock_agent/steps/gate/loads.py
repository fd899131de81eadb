"""Loads: opened in its own process on the configured providers, and it is what its manifest says."""

from __future__ import annotations

import asyncio

from interlock_agent.core import contract as contracts
from interlock_agent.core.gate import starts as judge
from interlock_agent.core.gate.checks import not_applicable, simple
from interlock_agent.host import messages
from interlock_agent.steps.gate import right
from interlock_agent.steps.gate.run import Run, Tried
from interlock_shared.documents import CheckResult

PROGRESS_S = 5.0  # while a model is being opened


async def check(run: Run, tried: Tried) -> list[CheckResult]:
    """A silent fall-back to the CPU is a failure, not a slow success."""
    place = run.place
    await run.request(messages.Configure(place.unit, place.listen, place.options or place.settings.options()))
    await right.ask_reference(run, tried)
    tried.folder = await run.seal(tried.variant.name)
    await _open(run, tried)
    if tried.variant.runtime == "external":
        told = [not_applicable(check, "external") for check in ("signature", "providers")]
        return [*told, await _load_time(run, tried)]
    signature = run.manifest.signature
    different = contracts.loaded_differently(signature, tried.loaded["inputs"], tried.loaded["outputs"])
    asked = ["TensorRT"] if tried.variant.runtime == "tensorrt" else list(place.settings.providers)
    missing = [provider for provider in asked if provider not in tried.loaded["providers"]]
    problems = [f"asked for {', '.join(asked)}; runs on {', '.join(tried.loaded['providers'])}"]
    fell_back = bool(tried.loaded["fell_back"] or missing)
    rows = [
        simple("signature", different, "signature_mismatch"),
        simple("providers", problems if fell_back else [], "provider_fallback"),
    ]
    if any(row.outcome == "fail" for row in rows):
        return rows
    return [*rows, *_engine(tried), await _load_time(run, tried)]


async def _open(run: Run, tried: Tried) -> None:
    """The candidate's worker. A provider may build engines meanwhile, which takes minutes: that it goes on is told."""
    loading = asyncio.ensure_future(run.load(tried.folder, "candidate"))
    began = run.place.clock.monotonic()
    try:
        while not (await asyncio.wait([loading], timeout=PROGRESS_S))[0]:
            run.place.tell(doing="gate", stage="loads", seconds=round(run.place.clock.monotonic() - began))
        tried.loaded = await loading
        tried.worker = str(tried.loaded["worker"])
    finally:
        loading.cancel()


def _engine(tried: Tried) -> list[CheckResult]:
    """Under which key the engines of a provider that compiles lie, and whether they were there before."""
    engine = tried.loaded.get("engine") or {}
    return [CheckResult(check="engine", outcome="pass", reason="ok", detail=dict(engine))] if engine else []


async def _load_time(run: Run, tried: Tried) -> CheckResult:
    """With a limit, until the first golden item is answered. One start beyond it is made once more, in a fresh process,
    which is the one that goes on: a disk that had to be read first is not the candidate's fault."""
    limit = run.limits.get("load_s_max")
    answered = limit is not None and run.measurable
    seconds = [await _start_s(run, tried, answered)]
    if limit is not None and seconds[0] > limit:
        await run.retire(tried.worker)
        await _open(run, tried)
        seconds.append(await _start_s(run, tried, answered))
    return judge.load_time(seconds, limit, answered)


async def _start_s(run: Run, tried: Tried, answered: bool) -> float:
    """An older host tells only how long it took to open the model."""
    loaded = float(tried.loaded.get("start_s") or tried.loaded["load_s"])
    first = (await run.probe(tried.worker, 0, 1))["wall_ns"][0] / 1e9 if answered else 0.0
    return loaded + first
