"""The verdict: the stages of a run as the document that is shown, kept, sent and signed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from interlock_agent.core.gate import checks as judge
from interlock_agent.core.gate.limits import limits_digest
from interlock_agent.core.statistics import quantile
from interlock_agent.core.times import rfc3339
from interlock_agent.steps.gate.run import Run, Tried
from interlock_agent.steps.gate.variants import Judged
from interlock_shared import __version__, canonical
from interlock_shared import manifest as manifests
from interlock_shared.documents import Distributions, Incumbent, Sketch, VariantResult, Verdict

Origin = Literal["rollout", "sideload", "dry-run"]


Outcome = Literal["accept", "reject", "inconclusive"]


def samples_document(judged: Judged) -> bytes:
    """The raw samples, in nanoseconds, as they are kept beside the verdict."""
    others = {one.variant.name: one.samples for one in judged.others if one.samples}
    document = {"schema": "interlock.samples/1", "samples": judged.chosen.samples}
    return canonical.encode({**document, "others": others} if others else document)


def distributions(tried: Tried) -> Distributions:
    """What was measured of both side by side, by quantiles: for a picture where the samples are not. Where it was done
    in nicer processes, both are of those: equal things are shown."""
    names = ("candidate_nice_wall_ns", "incumbent_nice_wall_ns")
    if "incumbent_wall_ns" in tried.samples or names[1] not in tried.samples:
        names = ("candidate_wall_ns", "incumbent_wall_ns")
    mine, other = (_sketch(tried.samples.get(name, [])) for name in names)
    return Distributions(candidate=mine, incumbent=other)


def _sketch(wall_ns: Sequence[int]) -> Sketch | None:
    if not wall_ns:
        return None
    ordered = sorted(ns / 1e6 for ns in wall_ns)
    quantiles = tuple(round(quantile(ordered, percent / 100), 6) for percent in range(101))  # to the nanosecond
    return Sketch(samples=len(ordered), quantiles_ms=quantiles)


def _result(tried: Tried) -> VariantResult:
    outcome, reason, message = judge.conclude(tried.stages)
    return VariantResult(
        variant=tried.variant.name,
        outcome=cast(Outcome, outcome),
        reason=reason,
        message=message,
        stages=tuple(tried.stages),
        distributions=distributions(tried),
    )


async def verdict(run: Run, judged: Judged, *, device: str, fingerprint_sha256: str, origin: Origin) -> Verdict:
    """The document, unsigned."""
    tried, result = judged.chosen, _result(judged.chosen)
    incumbent = None
    if run.incumbent is not None:
        payload = run.incumbent.payload_sha256
        kind: Literal["twin", "recorded"] = "recorded" if run.alone else "twin"
        incumbent = Incumbent(version=run.incumbent.version, payload_sha256=payload, baseline=kind)
    after: dict[str, Any] = await run.place.hardware.environment()
    return Verdict(
        device=device,
        model=run.manifest.model,
        version=run.manifest.version,
        manifest_sha256=canonical.sha256(manifests.to_bytes(run.manifest)),
        payload_sha256=run.payload_sha256,
        variant=tried.variant.name,
        generation=run.place.generation,
        outcome=result.outcome,
        reason=result.reason,
        message=result.message,
        started_at=rfc3339(run.started),
        ended_at=rfc3339(run.place.clock.now()),
        agent=__version__,
        runtime=str(tried.loaded.get("runtime", "")),
        fingerprint=run.place.fingerprint,
        fingerprint_sha256=fingerprint_sha256,
        limits=run.limits,
        limits_sha256=limits_digest(run.limits),
        incumbent=incumbent,
        stages=result.stages,
        distributions=result.distributions,
        others=tuple(_result(one) for one in judged.others),
        comparisons=tuple(judged.comparisons),
        environment={"before": run.before, "after": after, "live": run.guest.document(), "unit": run.runs_with},
        samples_sha256=canonical.sha256(samples_document(judged)),
        origin=origin,
    )
