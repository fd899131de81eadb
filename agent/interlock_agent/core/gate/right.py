"""Is it right: golden outputs within their tolerances, finite, the same when asked again; and by labels, on the whole
golden set and on each slice of it, good enough and no worse than the incumbent.

The rule for everything that has a limit and comes from a sample of items:
- an estimate within the limit passes;
- one beyond it fails where the test says so at LEVEL (one-sided);
- one beyond it of which the test cannot tell is inconclusive, `too_few_items`, with the smallest effect it could have
  seen. Within k slices, each is asked at LEVEL ÷ k: one among many is out by chance more often than one alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from interlock_agent.core.gate import metrics
from interlock_agent.core.gate.checks import not_applicable, simple
from interlock_agent.core.gate.metrics import LEVEL, Dice, Score
from interlock_shared.documents import CheckResult, Outcome
from interlock_shared.gates import METRICS, Golden, Parity

RISE_SHARE = 0.05  # of the incumbent's error: what an error may rise by where no limit says
ROUNDING = 1e-9  # a difference of sums is this exact


# --- golden outputs ---------------------------------------------------------------------------------------------------


def parity(
    outputs: Sequence[dict[str, Any]], golden: Golden, own: Mapping[str, Parity] | None = None
) -> list[CheckResult]:
    """No NaN or Inf, and what each output's rule asks, the variant's own before `golden`'s; without one, each value in
    tolerance."""
    rows, rules = [], {**golden.parity, **(own or {})}
    for output in outputs:
        name = str(output["name"])
        if output.get("non_finite"):
            detail = {"output": name, "values": int(output["non_finite"])}
            rows.append(CheckResult(check="finite", outcome="fail", reason="non_finite_output", detail=detail))
        if output.get("compared"):
            rows += _compared(output, rules.get(name, Parity(rtol=golden.rtol, atol=golden.atol)))
    return rows


def _compared(output: dict[str, Any], rule: Parity) -> list[CheckResult]:
    rows, detail = [], {"output": str(output["name"])}
    if rule.by_value:
        far = {"max_abs": output.get("max_abs"), "max_rel": output.get("max_rel")}
        outside = float(output["outside"])
        rows.append(_golden_row("parity", "values outside tolerance", 0.0, outside, outside == 0, detail | far))
    if rule.cosine_min is not None:
        worst = -1.0 if output.get("cosine") is None else float(output["cosine"])
        fits, where = worst >= rule.cosine_min - ROUNDING, {"item": output.get("cosine_item")}
        rows.append(_golden_row("parity_cosine", "cosine", rule.cosine_min, worst, fits, detail | where))
    if rule.agreement_min is not None:
        share = float(output.get("agreement") or 0.0)
        fits, of = share >= rule.agreement_min - ROUNDING, {"top_k": rule.top_k}
        rows.append(_golden_row("parity_top_k", "share of items", rule.agreement_min, share, fits, detail | of))
    return rows


def _golden_row(
    check: str, unit: str, limit: float, measured: float, fits: bool, detail: Mapping[str, Any]
) -> CheckResult:
    return CheckResult(
        check=check,
        outcome="pass" if fits else "fail",
        unit=unit,
        limit=limit,
        measured=measured,
        reason="ok" if fits else "golden_mismatch",
        detail=dict(detail),
    )


def determinism(outputs: Sequence[dict[str, Any]], repeated: int) -> CheckResult:
    """The first items, run twice: values that differ are told, and fail only beyond the tolerance of their output."""
    asked = [(str(output["name"]), output["again"]) for output in outputs if output.get("again")]
    if not repeated or not asked:
        return not_applicable("determinism", "not_repeated")
    outside = sum(int(again["outside"]) for _, again in asked)
    return CheckResult(
        check="determinism",
        outcome="fail" if outside else "pass",
        unit="values outside tolerance",
        limit=0.0,
        measured=float(outside),
        reason="not_deterministic" if outside else "ok",
        detail={
            "items": repeated,
            "values": sum(int(again["values"]) for _, again in asked),
            "different": sum(int(again["different"]) for _, again in asked),
            "max_abs": max(float(again["max_abs"]) for _, again in asked),
            "outputs": [name for name, again in asked if again["different"]],
        },
    )


# --- labels -----------------------------------------------------------------------------------------------------------


class Words(NamedTuple):
    """What a check and its limit are called, by which way the metric goes."""

    check: str
    change: str
    limit: str
    change_limit: str
    beyond: str
    changed: str


WORDS = {
    "higher": Words(
        "accuracy", "accuracy_drop", "accuracy_min", "accuracy_drop_max", "accuracy_below_floor", "accuracy_dropped"
    ),
    "lower": Words("error", "error_rise", "error_max", "error_rise_max", "error_above_limit", "error_rose"),
}


def allowed(metric: str, owners: Sequence[str]) -> CheckResult | None:
    """A refusal of a plug-in that the device's owner has not allowed; None when the metric may be used."""
    if metric in METRICS or metric in owners:
        return None
    return simple("accuracy", [f"the owner's gate.metrics does not allow the metric {metric}"], "metric_not_allowed")


def trouble(check: str, metric: str, document: Mapping[str, Any]) -> CheckResult:
    """A metric that could not be worked out: a plug-in's trouble is not the candidate's fault."""
    outcome: Outcome = "fail" if metric in METRICS else "inconclusive"
    problems = [str(document.get("message", ""))[:500]]
    return CheckResult(check=check, outcome=outcome, reason=str(document["problem"]), detail={"problems": problems})


def labelled(
    mine: Score,
    theirs: Score | None,
    limits: Mapping[str, Any],
    dice: Dice,
    why: str = "no_incumbent",
    index: Sequence[int] = (),
    names: Sequence[str] = (),
) -> list[CheckResult]:
    """The whole golden set, then each slice. `index`: each item's place in `names`; `why`: of there being no score
    of the incumbent's."""
    resamples = metrics.resamples_for(metrics.work_of(mine) + (metrics.work_of(theirs) if theirs else 0))
    rows = _judged(mine, theirs, limits, dice, resamples, LEVEL, "", why)
    for place, name in enumerate(names):
        items = [item for item, own in enumerate(index) if own == place]
        own_limits = {"gates": limits.get("gates"), **limits.get("slices", {}).get(name, {})}
        if not items:
            rows.append(not_applicable(f"{WORDS[mine.better].check}.{name}", "no_items"))
            continue
        beside = None if theirs is None else theirs.part(items)
        rows += _judged(mine.part(items), beside, own_limits, dice, resamples, LEVEL / len(names), name, why)
    return rows


def _judged(
    mine: Score,
    theirs: Score | None,
    limits: Mapping[str, Any],
    dice: Dice,
    resamples: int,
    level: float,
    name: str,
    why: str,
) -> list[CheckResult]:
    """Two rows: the figure against its limit, and against the incumbent's."""
    words, suffix = WORDS[mine.better], f".{name}" if name else ""
    foreign = WORDS["lower" if mine.better == "higher" else "higher"].limit
    rows = [_figure(words.check + suffix, mine, theirs, limits.get(words.limit), dice, resamples, level)]
    if limits.get(foreign) is not None:
        kind = "a score" if mine.better == "higher" else "an error"
        problem = f"{foreign} is asked for, and {mine.metric} is {kind}"
        rows.append(simple(words.check + suffix, [problem], "limit_not_comparable"))
    margin = limits.get(words.change_limit)
    if theirs is None:
        return [*rows, not_applicable(words.change + suffix, why)]
    if margin is None and mine.better == "lower" and not name and limits.get("gates") != "none":
        margin = RISE_SHARE * theirs.value
    if margin is None:
        return [*rows, not_applicable(words.change + suffix, "no_limit")]
    return [*rows, _change(words.change + suffix, mine, theirs, float(margin), dice, resamples, level)]


def _unit(score: Score) -> str:
    return "fraction" if score.kind == "hits" else score.metric


def _decide(beyond: bool, p: float, level: float, reason: str) -> tuple[Outcome, str]:
    if not beyond:
        return "pass", "ok"
    return ("fail", reason) if p <= level else ("inconclusive", "too_few_items")


def _figure(
    check: str, mine: Score, theirs: Score | None, limit: float | None, dice: Dice, resamples: int, level: float
) -> CheckResult:
    value, found = mine.value, metrics.against(mine, limit, dice, resamples)
    short = 0.0 if limit is None else limit - value if mine.better == "higher" else value - limit
    outcome: Outcome = "not_applicable"
    reason, detail = "no_limit", {"metric": mine.metric, "items": len(mine.rows)}
    if limit is not None:
        outcome, reason = _decide(short > ROUNDING, found.p, level, WORDS[mine.better].beyond)
        detail |= {"p": found.p, "level": level}
    return CheckResult(
        check=check,
        outcome=outcome,
        unit=_unit(mine),
        limit=limit,
        measured=value,
        low=found.low,
        high=found.high,
        incumbent=None if theirs is None else theirs.value,
        reason=reason,
        detail=detail,
    )


def _change(
    check: str, mine: Score, theirs: Score, margin: float, dice: Dice, resamples: int, level: float
) -> CheckResult:
    worse = metrics.compare(theirs, mine, dice, resamples, level)
    beyond = worse.estimate - margin > ROUNDING
    outcome, reason = _decide(beyond, worse.p, level, WORDS[mine.better].changed)
    detail = {
        "metric": mine.metric,
        "items": len(mine.rows),
        "differ": worse.differ,
        "test": worse.test,
        "p": worse.p,
        "level": level,
        "smallest_effect": worse.smallest_effect,
    }
    return CheckResult(
        check=check,
        outcome=outcome,
        unit=_unit(mine),
        limit=margin,
        measured=worse.estimate,
        low=worse.low,
        high=worse.high,
        reason=reason,
        detail={**detail, **({"resamples": worse.resamples} if worse.resamples else {})},
    )
