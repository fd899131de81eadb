"""What a measuring command of the device's owner says, line by line, and what it means to the gate.

The command is asked as a worker would be: a line of JSON in, a line of JSON out. So every limit and every statistic is
the gate's own, and the command only measures. docs/reference/command.md is the protocol.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from interlock_shared.base import Finite, Report, validate
from interlock_shared.documents import CheckResult
from interlock_shared.errors import Invalid, Refused

LINE_MAX_BYTES = 16 * 1024 * 1024  # a score of many items
RUNS_MAX = 100_000

Milliseconds = Annotated[Finite, Field(ge=0)]


class Ready(Report):
    """The first line: the model is loaded. `load_s`: as the command sees it; else the gate's own clock counts."""

    ready: Literal[True]
    load_s: Finite | None = Field(default=None, ge=0)
    runtime: str = Field(default="", max_length=200)


class Measured(Report):
    """To `measure`: wall time of each inference in milliseconds, and CPU (or GPU) time where the command knows it."""

    wall_ms: tuple[Milliseconds, ...] = Field(min_length=1, max_length=RUNS_MAX)
    work_ms: tuple[Milliseconds, ...] | None = Field(default=None, max_length=RUNS_MAX)
    elapsed_ms: Milliseconds | None = None


class OwnCheck(Report):
    """A check that the command has made by itself: parity, say, or that a box is where it was."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")
    passed: bool
    measured: Finite | None = None
    limit: Finite | None = None
    unit: str = Field(default="", max_length=32)
    message: str = Field(default="", max_length=500)


class Evaluated(Report):
    """To `evaluate`: rows of a metric, one an item, and own checks."""

    checks: tuple[OwnCheck, ...] = Field(default=(), max_length=100)
    score: dict[str, Any] = Field(default_factory=dict)  # as messages.Evaluation's
    slices: tuple[int, ...] = ()


def question(kind: str, **fields: Any) -> bytes:
    """One line to the command."""
    return json.dumps({"ask": kind, **fields}, separators=(",", ":")).encode() + b"\n"


def _document(line: bytes) -> dict[str, Any]:
    """Raises Refused: the command's own error, or that it spoke nonsense."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        raise Refused(f"the command said no JSON: {line[:200]!r}", code="inference_failed") from None
    if not isinstance(document, dict):
        raise Refused(f"the command said no object: {line[:200]!r}", code="inference_failed")
    if document.get("error"):
        raise Refused(str(document["error"])[:2000], code="inference_failed")
    return document


def ready(line: bytes) -> Ready:
    """Raises Refused (`load_failed`)."""
    try:
        return validate(Ready, _document(line), "ready")
    except (Invalid, Refused) as bad:
        raise Refused(bad.message, code="load_failed") from None


def samples(line: bytes, runs: int, elapsed_ns: int) -> dict[str, Any]:
    """As `messages.Samples`. Without a time of work the wall is both scales. Raises Refused."""
    try:
        said = validate(Measured, _document(line), "measure")
    except Invalid as bad:
        raise Refused(bad.message, code="inference_failed") from None
    work = said.wall_ms if said.work_ms is None else said.work_ms
    if len(said.wall_ms) != runs or len(work) != runs:
        raise Refused(f"measure: {runs} runs were asked for, {len(said.wall_ms)} were told", code="inference_failed")
    return {
        "wall_ns": [round(ms * 1e6) for ms in said.wall_ms],
        "work_ns": [round(ms * 1e6) for ms in work],
        "elapsed_ns": elapsed_ns if said.elapsed_ms is None else round(said.elapsed_ms * 1e6),
    }


def evaluation(line: bytes) -> dict[str, Any]:
    """As `messages.Evaluation`, with the command's own checks. Raises Refused."""
    try:
        said = validate(Evaluated, _document(line), "evaluate")
    except Invalid as bad:
        raise Refused(bad.message, code="inference_failed") from None
    return {"outputs": [], "score": said.score, "slices": list(said.slices), "checks": said.checks}


def rows(checks: tuple[OwnCheck, ...]) -> list[CheckResult]:
    """The command's own checks, as the verdict has them."""
    return [
        CheckResult(
            check=f"command_{one.name}",
            outcome="pass" if one.passed else "fail",
            unit=one.unit,
            limit=one.limit,
            measured=one.measured,
            reason="ok" if one.passed else "command_refused",
            detail={"problems": [one.message]} if one.message and not one.passed else {},
        )
        for one in checks
    ]
