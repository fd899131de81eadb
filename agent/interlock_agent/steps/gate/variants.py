"""Which form of the model: each is judged as if it were alone, and measurement chooses among those that pass.

A manifest's metadata only prunes: what looks lighter is not faster for it (an int8 of a real model was 3.8 × smaller
and 1.4 × slower on a CPU). The worker of the best so far stays loaded, since what was measured is what will serve; the
next one that passes is measured against it, head to head, and takes its place only where it is faster for certain.
Where only one fits at a time, the first that passes is taken: each that is tried costs a gap in which nothing serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from interlock_agent.core.gate import checks
from interlock_agent.core.quarantine import CRASHES
from interlock_agent.steps.gate import fast
from interlock_agent.steps.gate.run import Run, Tried
from interlock_agent.steps.gate.stages import judge_variant
from interlock_shared.documents import Comparison
from interlock_shared.manifest import Variant


@dataclass
class Judged:
    """What a run found: the variant that the verdict is about, its worker loaded where it is accepted; the others."""

    chosen: Tried
    others: list[Tried] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)


def in_order(variants: Sequence[Variant], wanted: str | Sequence[str]) -> list[Variant]:
    """The variants to try: those the owner names, as he orders them, else the reference and then the rest. Where he
    names none that is there, the reference alone."""
    if wanted == "fastest":
        return sorted(variants, key=lambda one: not one.reference)
    named = [one for name in wanted for one in variants if one.name == name]
    return named or [one for one in variants if one.reference]


def _lasting(one: Tried) -> int:
    """For how long what was found of it holds: the whole release is remembered by the one that passes the soonest."""
    outcome, reason, _ = checks.conclude(one.stages)
    return 0 if outcome == "inconclusive" else 1 if reason not in CRASHES else 2


async def judge(run: Run) -> Judged:
    """Try them. Raises Later for what is not the candidate's fault; then none of its workers is left."""
    wanted = run.place.settings.gate.variants
    tried: list[Tried] = []
    comparisons: list[Comparison] = []
    best: Tried | None = None
    try:
        for variant in run.variants if run.serving else in_order(run.variants, wanted):
            one = Tried(variant)
            tried.append(one)
            one.stages = await judge_variant(run, one)
            if one.outcome != "accept":
                await run.retire(one.worker)
                continue
            if best is not None:
                compared = await fast.head_to_head(run, one, best)
                comparisons.append(compared)
                best, loser = (one, best) if compared.faster else (best, one)
                await run.retire(loser.worker)
            best = best or one
            if wanted != "fastest" or run.plan.makes_room:  # two cannot be measured against each other there
                break
        if best is not None:
            await run.seal(best.variant.name)  # the last one tried may be another
    except BaseException:
        for one in tried:
            await run.retire(one.worker)
        raise
    chosen = best or min(tried, key=_lasting)
    return Judged(chosen, [one for one in tried if one is not chosen], comparisons)
