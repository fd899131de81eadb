"""The gate's stage Right as it runs: the owner's metrics, samples beside the event loop, an incumbent that differs."""

from __future__ import annotations

from typing import Any

import pytest

from interlock_agent.config import Config
from interlock_agent.core.states import Event
from interlock_shared import manifest as manifests
from interlock_shared.documents import CheckResult
from tests.agent.material import UNIT, the_manifest
from tests.agent.test_gating import GOLDEN, Bench

AGAIN = {"values": 4, "different": 0, "outside": 0, "max_abs": 0.0}


class Told:
    """What workers tell of golden data, by role."""

    def __init__(self, bench: Bench, **scores: Any) -> None:
        self.scores, self.again, self.slices = scores, dict(AGAIN), [0, 1] * 25
        bench.host._evaluate = self.evaluate  # type: ignore[method-assign]

    def evaluate(self, order: Any, role: str) -> dict[str, Any]:
        del order
        output = {"name": "y", "compared": True, "outside": 0, "max_abs": 0.0, "max_rel": 0.0, "again": self.again}
        score = self.scores[role]
        return {
            "items": 50, "outputs": [output], "score": score, "slices": self.slices, "repeated": 32, "memory_bytes": 9
        }  # fmt: skip


def bench(metric: str = "top1", gates: dict[str, Any] | None = None, owner: dict[str, Any] | None = None) -> Bench:
    document = the_manifest(**GOLDEN).model_dump(mode="json", by_alias=True)
    document["golden"] |= {"metric": metric, "slices": "s", "slice_names": ["day", "night"]}
    config = Config.model_validate({"units": {UNIT: {"gate": owner or {}}}})
    return Bench(manifests.from_document({**document, "gates": gates or {}}), config=config)


def score(rows: Any, metric: str = "top1", kind: str = "hits", better: str = "higher") -> dict[str, Any]:
    return {"metric": metric, "better": better, "kind": kind, "rows": rows}


async def judged(one: Bench) -> tuple[Event, str, dict[str, CheckResult]]:
    happened = await one.run()
    verdict = one.verdict(happened)
    (right,) = [stage for stage in verdict.stages if stage.stage == "right"]
    return happened.event, happened.reason, {row.check: row for row in right.checks}


async def test_a_plug_in_that_the_owner_has_not_allowed_is_refused_before_it_runs() -> None:
    one = bench("ours")
    event, reason, rows = await judged(one)
    assert (event, reason, list(rows)) == (Event.REJECT, "metric_not_allowed", ["accuracy"])
    assert ("evaluate", "candidate") not in one.host.orders


async def test_a_plug_in_that_the_owner_allows_is_used() -> None:
    one = bench("ours", owner={"metrics": ["ours"]})
    Told(one, **{role: score([0.5] * 50, "ours", "mean") for role in ("candidate", "twin")})
    event, reason, rows = await judged(one)
    assert (event, reason, rows["accuracy_drop"].outcome) == (Event.ACCEPT, "ok", "pass")
    assert one.step().unit.options()["metrics"] == ["ours"]


@pytest.mark.parametrize("who", ["candidate", "twin"])
async def test_a_plug_in_that_breaks_is_not_the_candidates_fault(who: str) -> None:
    one = bench("ours", owner={"metrics": ["ours"]})
    fine, broken = score([0.5] * 50, "ours", "mean"), {"metric": "ours", "problem": "metric_missing", "message": "no"}
    Told(one, **{"candidate": fine, "twin": fine, who: broken})
    assert (await judged(one))[:2] == (Event.INCONCLUSIVE, "metric_missing")


ERRORS: list[tuple[float, Event, str]] = [(1.0, Event.ACCEPT, "ok"), (1.5, Event.REJECT, "error_rose")]


@pytest.mark.parametrize(("error", "event", "reason"), ERRORS)
async def test_an_error_is_compared_by_samples_of_items(error: float, event: Event, reason: str) -> None:
    found = []
    for _ in range(2):
        one = bench("mae")
        Told(one, candidate=score([error] * 50, "mae", "mean", "lower"), twin=score([1.0] * 50, "mae", "mean", "lower"))
        happened = await judged(one)
        assert happened[:2] == (event, reason)
        found.append(happened[2]["error_rise"])
    assert found[0] == found[1]  # the same figures, the same verdict
    assert found[0].detail["test"] == "paired_bootstrap"


async def test_a_slice_that_got_worse_is_named() -> None:
    one = bench(gates={"slice_drop_max": 0.05})
    mine = "".join("1" if item % 2 == 0 or item < 25 else "0" for item in range(50))
    theirs = "".join("0" if item % 2 == 0 and item < 35 else "1" for item in range(50))
    Told(one, candidate=score(mine), twin=score(theirs))
    event, reason, rows = await judged(one)
    assert (event, reason) == (Event.REJECT, "accuracy_dropped")
    assert {name: row.outcome for name, row in rows.items() if "drop" in name} == {
        "accuracy_drop": "pass",  # on the whole it is better
        "accuracy_drop.day": "pass",
        "accuracy_drop.night": "fail",
    }


async def test_too_few_items_wait_for_more_and_condemn_nobody() -> None:
    one = bench(gates={"accuracy_drop_max": 0.01})
    Told(one, candidate=score("1" * 48 + "00"), twin=score("1" * 50))
    event, reason, rows = await judged(one)
    assert (event, reason) == (Event.INCONCLUSIVE, "too_few_items")
    assert rows["accuracy_drop"].detail["smallest_effect"] == 0.1


async def test_a_model_that_rolls_dice_is_refused_before_its_labels_are_looked_at() -> None:
    one = bench()
    told = Told(one, candidate=score("1" * 50), twin=score("1" * 50))
    told.again |= {"different": 4, "outside": 2, "max_abs": 0.3}
    event, reason, rows = await judged(one)
    assert (event, reason) == (Event.REJECT, "not_deterministic")
    assert "accuracy" not in rows
    assert ("evaluate", "twin") not in one.host.orders


async def test_an_incumbent_without_that_output_is_not_compared() -> None:
    one = bench()
    Told(one, candidate=score("1" * 50), twin={})
    event, _, rows = await judged(one)
    assert event is Event.ACCEPT
    assert (rows["accuracy_drop"].outcome, rows["accuracy_drop"].reason) == ("not_applicable", "not_comparable")


@pytest.mark.parametrize("strange", [{"metric": "top1"}, score("1" * 50, kind="sum"), score("")])
async def test_a_score_that_is_none_is_the_hosts_fault(strange: dict[str, Any]) -> None:
    one = bench()
    Told(one, candidate=strange, twin=score("1" * 50))
    happened = await one.run()
    assert (happened.event, happened.reason) == (Event.UNJUDGED, "bad_evaluation")


async def test_scores_of_different_items_are_the_hosts_fault() -> None:
    one = bench()
    Told(one, candidate=score("1" * 50), twin=score("1" * 49))
    happened = await one.run()
    assert (happened.event, happened.reason) == (Event.UNJUDGED, "bad_evaluation")
