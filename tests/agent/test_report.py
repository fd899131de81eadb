"""A verdict as people read it: why on top, every figure beside its limit, 80 columns."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from interlock_agent import cli
from interlock_agent.cli import output, report
from interlock_shared.errors import Invalid


def check(name: str, outcome: str = "pass", **more: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(("limit", "measured", "low", "high", "incumbent"))
    return {"check": name, "outcome": outcome, "unit": "", "reason": "ok", **nothing} | more


def stage(name: str, *checks: dict[str, Any], outcome: str = "pass") -> dict[str, Any]:
    return {"stage": name, "outcome": outcome, "checks": list(checks)}


RATIO: dict[str, Any] = {"unit": "candidate / incumbent", "limit": 1.25}
VERDICT: dict[str, Any] = {
    "model": "detector",
    "version": "1.4.0",
    "variant": "fp32",
    "outcome": "reject",
    "reason": "too_slow",
    "message": "fast: latency_ratio_work 1.522 [1.49, 1.55], limit 1.25 (too_slow)",
    "incumbent": {"version": "1.3.0"},
    "limits": {},
    "distributions": {"candidate": None, "incumbent": None},
    "stages": [
        stage("compatible", check("contract")),
        stage("right", check("accuracy", unit="fraction", limit=0.8, measured=0.91, low=0.88, high=0.93)),
        stage(
            "fast",
            check("latency_ratio_work", "fail", measured=1.522, low=1.4912, high=1.5534, reason="too_slow", **RATIO),
            check("latency_ratio_wall", "inconclusive", measured=1.3, low=1.2, high=1.4, reason="too_noisy", **RATIO),
            check("latency_p99", unit="ms", limit=20.0, measured=12.3456, low=12.1, high=13.456, incumbent=11.98765),
            check("energy", "not_applicable", measured=3.0, unit="J", reason="no_limit"),
        ),
        stage("small", outcome="not_run"),
    ],
}


def lines(monkeypatch: pytest.MonkeyPatch, width: int, document: dict[str, Any] = VERDICT) -> list[str]:
    """As on a terminal of that width."""
    file = io.StringIO()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    console = Console(file=file, width=width, highlight=False, force_terminal=True, color_system=None)
    monkeypatch.setattr(output, "out", console)
    report.show(document)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_why_is_one_sentence_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = lines(monkeypatch, 200)
    assert first == "detector 1.4.0 (fp32) beside 1.3.0: reject"
    assert second == f"it is slower than allowed – {VERDICT['message']}"


def test_an_accepted_one_has_no_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = VERDICT | {
        "outcome": "accept",
        "reason": "ok",
        "message": "every check that applies passed",
        "incumbent": None,
    }
    assert lines(monkeypatch, 200, fine)[:2] == ["detector 1.4.0 (fp32): accept", "every check that applies passed"]


def test_it_fits_eighty_columns_and_folds_no_name_and_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines(monkeypatch, 80)
    assert max(len(line) for line in said) <= 80
    words = {word for line in said for word in line.split()}
    names = {one["check"] for part in VERDICT["stages"] for one in part["checks"]}
    assert names | {"[1.491,", "1.553]", "11.99", "−21.8", "noisy)"} <= words


@pytest.mark.parametrize("width", [20, 40, 60])
def test_a_narrow_terminal_gets_all_of_it(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    _, *said = lines(monkeypatch, width)  # the terminal itself wraps the release's name
    assert max(len(line) for line in said) <= width
    assert [part["stage"] for part in VERDICT["stages"]] == [
        word for line in said for word in line.split()[:1] if word in {"compatible", "right", "fast", "small"}
    ][-4:]


def test_a_pipe_gets_a_check_on_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=output.PIPE_WIDTH, highlight=False)
    monkeypatch.setattr(output, "out", console)
    report.show(VERDICT)
    said = capsys.readouterr().out.splitlines()
    row = next(line for line in said if "latency_p99" in line)
    assert row.split() == "latency_p99 12.35 ms [12.1, 13.46] 20 ms 11.99 ms +38.3 % pass".split()
    assert [line.split() for line in said[-1:]] == [["small", "not", "run"]]


MARGINS: list[tuple[dict[str, Any], str]] = [
    (check("latency_p95", limit=20.0, measured=15.0), "+25 %"),
    (check("latency_p95", "fail", limit=20.0, measured=25.0), "−25 %"),
    (check("latency_p95", "inconclusive", limit=20.0, measured=19.0), "+5 %"),
    (check("latency_p95", "inconclusive", limit=20.0, measured=21.0), "−5 %"),
    (check("accuracy", unit="fraction", limit=0.8, measured=0.905), "+10.5 pp"),  # a floor: above it is inside
    (check("accuracy", "fail", unit="fraction", limit=0.8, measured=0.75), "−5 pp"),
    (check("accuracy_drop", unit="fraction", limit=0.01, measured=-0.02), "+3 pp"),
    (check("parity", limit=0.0, measured=0.0), "0"),
    (check("parity", "fail", limit=0.0, measured=7.0), "−7"),
    (check("latency_p95", limit=20.0, measured=20.0), "0 %"),
    (check("contract"), ""),
    (check("load_time", "not_applicable", limit=1.0, measured=2.0), ""),
    (check("requirements", "fail", limit="10.2", measured="9.1"), ""),
]


@pytest.mark.parametrize(("row", "said"), MARGINS)
def test_the_margin_is_positive_inside_the_limit(row: dict[str, Any], said: str) -> None:
    assert report.margin(row) == said


def test_the_picture_is_a_file_or_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write_picture(VERDICT, "-")
    report.write_picture(VERDICT, str(tmp_path / "verdict.svg"))
    text = (tmp_path / "verdict.svg").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert ET.fromstring(text).tag.endswith("svg")
    with pytest.raises(Invalid, match="No such file"):
        report.write_picture(VERDICT, str(tmp_path / "absent" / "verdict.svg"))


def test_each_reason_is_one_that_the_gate_gives() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "verdict.md").read_text(encoding="utf-8")
    assert [reason for reason in report.WHY if f"`{reason}`" not in page] == []


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["--json"], '{\n  "distributions"'),
        (["--svg", "-"], "<svg "),
        ([], "detector 1.4.0 (fp32) beside 1.3.0: reject"),
    ],
    ids=["document", "picture", "table"],
)
def test_the_command_asks_for_a_generation_and_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], begins: str
) -> None:
    asked: list[Any] = []

    def ask(config: Any, op: str, as_json: bool, **fields: Any) -> dict[str, Any]:
        asked.append((op, fields))
        return {"verdict": VERDICT}

    monkeypatch.setattr(output, "ask", ask)
    monkeypatch.setattr(sys, "argv", ["interlock-agent", "verdict", "detector", "--generation", "7", *words])
    assert cli.main() == 0
    assert asked == [("verdict", {"unit": "detector", "generation": 7})]
    assert capsys.readouterr().out.startswith(begins)


def test_the_forms_that_were_tried_each_say_what_became_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = check("latency_ratio_work", measured=0.5, low=0.49, high=0.52, limit=0.97, unit="candidate / incumbent")
    accepted: dict[str, Any] = {"variant": "fp32", "outcome": "accept", "reason": "ok", "message": "fine"}
    refused = accepted | {"variant": "int8", "outcome": "reject", "reason": "too_slow", "message": "fast: too slow"}
    document = VERDICT | {
        **accepted,
        "variant": "fp16",
        "others": [accepted, refused],
        "comparisons": [{"variant": "fp16", "against": "fp32", "faster": True, "checks": [ratio]}],
    }
    said = lines(monkeypatch, 80, document)
    rows = [" ".join(line.split()) for line in said[said.index("variants") + 2 :]]
    assert rows[-3:] == [
        "fp16 accept chosen",
        "fp32 accept not the fastest: fp16 ÷ fp32 0.5 in work",
        "int8 reject fast: too slow",
    ]
