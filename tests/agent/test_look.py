"""`interlock-agent status` as people read it: what goes on, and what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from interlock_agent import cli
from interlock_agent.cli import output

UNIT: dict[str, Any] = {
    "phase": "confirmed",
    "offered": "1.0.0",
    "confirmed": "1.0.0",
    "running": "1.0.0",
    "reason": "",
}
DOCUMENT: dict[str, Any] = {
    "device": "press-7",
    "agent": "0.1.0",
    "host": "0.1.0",
    "link": None,
    "notes": [],
    "quarantine": [],
    "units": {},
}


def said(monkeypatch: pytest.MonkeyPatch, **unit: Any) -> str:
    """What the command prints of a unit."""
    document = DOCUMENT | {"units": {"detector": UNIT | unit}}
    monkeypatch.setattr(output, "ask", lambda *_, **__: document)
    done = CliRunner().invoke(cli.app, ["status"])
    assert done.exit_code == 0, done.output
    return str(done.output)


def test_a_unit_that_is_well_has_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(monkeypatch, host={"trouble": "", "hook_trouble": ""})
    assert "confirmed" in text
    assert "hook" not in text
    assert "does not start" not in text


def test_what_is_wrong_with_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(monkeypatch, host={"trouble": "load_failed: no kernel", "hook_trouble": "exit 1: [still] starting"})
    assert "detector does not start: load_failed: no kernel" in text
    assert "detector hook: exit 1: [still] starting" in text


def test_what_its_signers_took_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"version": "1.4.0", "reason": "labels were swapped", "at": "2026-03-01T00:00:00Z"}
    text = said(monkeypatch, fallback="1.4.0", revoked=[taken])
    assert "revoked detector 1.4.0: labels were swapped" in text


def test_a_model_that_is_long_being_opened_says_since_when(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(monkeypatch, phase="gating", progress={"doing": "gate", "stage": "loads", "seconds": 125})
    assert "gating (loads, 125 s)" in text


PLANNED = {"why": "policy", "expected_s": 4.2, "at_most_s": 30.0}


def test_a_gap_is_told_before_it_begins_and_while_nothing_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said(monkeypatch, phase="gating", gap=PLANNED, host={"gap": {"last_s": 0.0}})
    assert "gap detector nothing will serve for about 4 s, at most 30 s: policy" in text
    text = said(monkeypatch, phase="gating", gap=PLANNED, host={"gap": {"last_s": 0.0, "left_s": 25.12}})
    assert "gap detector nothing serves, to make room for a candidate; for at most 25 s more" in text
    assert "will serve" not in text
    assert "gap" not in said(monkeypatch, gap=PLANNED, host={"gap": {"last_s": 4.0}}), "it is over"


def test_a_trial_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"doing": "trial", "elapsed_s": 12.345, "requests": 40, "golden_runs": 5}
    text = said(monkeypatch, phase="trial", progress=seen | {"min_seconds": 60.0, "min_requests": 1000})
    assert "detector trial: 12 of 60 s, 45 of 1000 requests (5 of them its own golden items)" in text
