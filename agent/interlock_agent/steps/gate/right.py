"""Right: golden outputs, the same when asked again; labels against limits and the incumbent, whole and by slice."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any

from interlock_agent.core.gate import command, metrics
from interlock_agent.core.gate import right as judge
from interlock_agent.core.gate.checks import not_applicable, simple
from interlock_agent.steps.gate.run import Run, Tried, TwinTooLarge
from interlock_shared.documents import CheckResult
from interlock_shared.errors import Later, Refused
from interlock_shared.gates import Golden


async def check(run: Run, tried: Tried) -> list[CheckResult]:
    """The golden set is the warm-up set too."""
    if run.place.command is not None:
        return await _told(run, tried)
    golden = run.manifest.golden
    if golden is None:
        return [_nothing_expected(run, tried), not_applicable("accuracy", "no_golden")]
    refused = judge.allowed(golden.metric, run.place.settings.gate.metrics)
    if refused is not None:
        return [refused]
    if _beside_reference(run, golden) and not tried.variant.reference and not tried.loaded.get("start_s"):
        # The host is older than the agent: it would be asked to compare, and would not.
        return [CheckResult(check="parity", outcome="inconclusive", reason="host_too_old")]
    answers = await _answers(run, tried, golden)
    mine = await run.evaluate(tried.worker, answers)
    run.answers_kept = run.answers_kept or answers == "keep"
    tried.peak_bytes = max(tried.peak_bytes, int(mine["memory_bytes"]))
    tried.costs.look_at_gpu(run.place.hardware, tried.loaded)  # whole batches: usually the most that it takes
    rows = judge.parity(mine["outputs"], golden, tried.variant.parity)
    if not any(output.get("compared") for output in mine["outputs"]):
        rows.insert(0, _nothing_expected(run, tried))
    rows.append(judge.determinism(mine["outputs"], int(mine.get("repeated", 0))))
    return await _labels_too(run, tried, rows, mine)


async def _told(run: Run, tried: Tried) -> list[CheckResult]:
    """By the owner's command: its own checks, and the score that it has of both."""
    mine = await run.evaluate(tried.worker)
    return await _labels_too(run, tried, command.rows(mine["checks"]), mine)


async def _labels_too(run: Run, tried: Tried, rows: list[CheckResult], mine: dict[str, Any]) -> list[CheckResult]:
    """What passed so far is judged by its labels, beside the incumbent's twin."""
    if any(row.outcome == "fail" for row in rows):
        return rows
    theirs: dict[str, Any] | None = None
    if run.incumbent is not None:
        await run.load_twin(tried)
        theirs = await _of_twin(run) if mine["score"] else None
    return rows + await _labelled(run, mine, theirs)


async def _of_twin(run: Run) -> dict[str, Any] | None:
    """The incumbent's score; None where its twin does not fit."""
    if run.alone:
        return None
    try:
        return dict((await run.evaluate(run.twin))["score"])
    except TwinTooLarge:
        await run.without_twin()
        return None


def _nothing_expected(run: Run, tried: Tried) -> CheckResult:
    """The reference may be judged by its labels alone; another form of it must be compared with something, once: before
    it serves."""
    if tried.variant.reference or run.serving:
        return not_applicable("parity", "no_golden")
    problem = f"variant {tried.variant.name}: nothing is there that it could be compared with"
    return simple("parity", [problem], "no_reference")


def _beside_reference(run: Run, golden: Golden) -> bool:
    """Whether golden data says nothing of an output of which the reference's answers can be had."""
    outputs = {tensor.name for tensor in run.manifest.signature.outputs}
    return not outputs <= set(golden.expected) and len(run.manifest.variants) > 1 and not run.serving


async def _answers(run: Run, tried: Tried, golden: Golden) -> str:
    """`Evaluate.answers`: where golden data says nothing of an output, the reference's own answers are expected of the
    other variants. It is asked for them once, in a process of its own where it is not tried itself."""
    if not _beside_reference(run, golden):
        return ""
    if tried.variant.reference:
        return "keep"
    if not run.answers_kept and not run.plan.makes_room:
        await _keep_answers(run, tried)
    return "compare" if run.answers_kept else ""  # else it does not run here: what golden data expects must do


async def ask_reference(run: Run, tried: Tried) -> None:
    """Where only one fits at a time: the reference's answers, before the variant is loaded, in a gap of their own."""
    golden = run.manifest.golden
    if not run.plan.makes_room or golden is None or tried.variant.reference or run.answers_kept:
        return
    if _beside_reference(run, golden):
        await _keep_answers(run, tried)


async def _keep_answers(run: Run, tried: Tried) -> None:
    worker = ""
    try:
        folder = await run.seal(run.manifest.reference.name)
        worker = str((await run.load(folder, "candidate"))["worker"])
        await run.evaluate(worker, "keep")
        run.answers_kept = True
    except Refused:
        return
    finally:
        await run.retire(worker)
        await run.seal(tried.variant.name)


async def _labelled(run: Run, mine: dict[str, Any], theirs: dict[str, Any] | None) -> list[CheckResult]:
    """`theirs`: the incumbent's score on the same items; empty where it has no such output."""
    if not mine["score"]:
        return [not_applicable("accuracy", "no_labels"), not_applicable("accuracy_drop", "no_labels")]
    if "problem" in mine["score"]:
        return [judge.trouble("accuracy", str(mine["score"].get("metric", "")), mine["score"])]
    rows, why, beside = [], "no_twin" if run.alone else "no_incumbent", None
    try:
        score = metrics.score_of(mine["score"])
        if theirs is not None and "problem" in theirs:
            rows.append(judge.trouble("accuracy_drop", "", theirs))
        elif theirs:
            beside = metrics.score_of(theirs)
            if not metrics.comparable(beside, score):
                raise ValueError("the incumbent's score is about other items")
        why = why if theirs is None else "not_comparable"
    except (KeyError, ValueError) as strange:
        raise Later(f"the host's evaluation: {strange}", code="bad_evaluation") from None
    seed = f"{run.payload_sha256} {run.incumbent.payload_sha256 if run.incumbent else ''}"
    names = run.manifest.golden.slice_names if run.manifest.golden else ()
    judged = partial(judge.labelled, score, beside, run.limits, random.Random(seed), why, mine.get("slices", ()), names)
    # Hits are counted at once; anything else draws samples for seconds, beside the event loop.
    return rows + (judged() if score.kind == "hits" else await asyncio.to_thread(judged))
