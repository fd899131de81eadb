"""A verdict's picture: valid XML, nothing that runs or is fetched, and what it says is where it belongs."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock_shared import plot

SVG = "{http://www.w3.org/2000/svg}"


def sketch(*ms: float) -> dict[str, Any]:
    """101 quantiles that run through these points evenly."""
    last = len(ms) - 1
    quantiles = []
    for k in range(101):
        below = min(k * last // 100, last - 1)
        quantiles.append(ms[below] + (ms[below + 1] - ms[below]) * (k * last / 100 - below))
    return {"samples": 250, "quantiles_ms": quantiles}


def verdict(candidate: Any = None, incumbent: Any = None, **more: Any) -> dict[str, Any]:
    document = {
        "model": "detector",
        "version": "1.4.0",
        "variant": "fp32",
        "outcome": "accept",
        "message": "every check that applies passed",
        "limits": {},
        "incumbent": {"version": "1.3.0"} if incumbent else None,
        "distributions": {"candidate": candidate, "incumbent": incumbent},
    }
    return document | more


def drawn(document: dict[str, Any]) -> ET.Element:
    return ET.fromstring(plot.svg(document))


def texts(root: ET.Element) -> list[str]:
    return ["".join(one.itertext()) for one in root.iter(f"{SVG}text")]


def circles(root: ET.Element, name: str) -> list[tuple[float, float]]:
    found = [one for one in root.iter(f"{SVG}circle") if one.get("class") == f"of-{name}"]
    return [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in found]


def test_it_says_what_was_judged_and_how() -> None:
    said = texts(drawn(verdict(sketch(8, 9, 12), sketch(7, 8, 11))))
    for part in ("detector 1.4.0 (fp32): accept", "every check that applies passed", "wall time of one inference, ms"):
        assert part in said
    rows = ("candidate 1.4.0 | 9 | 11.7 | 11.94 | 12 | 250", "incumbent 1.3.0 | 8 | 10.7 | 10.94 | 11 | 250")
    assert said[-12:] == " | ".join(rows).split(" | ")


def test_the_slower_one_is_to_the_right_at_the_same_height() -> None:
    root = drawn(verdict(sketch(8, 9, 12), sketch(7, 8, 11)))
    for mine, other in zip(circles(root, "candidate"), circles(root, "incumbent"), strict=True):
        assert mine[0] > other[0]
        assert mine[1] == other[1]


def test_a_curve_rises_and_stays_in_its_frame() -> None:
    root = drawn(verdict(sketch(8, 9, 12, 500), sketch(7, 8, 11)))
    for path in root.iter(f"{SVG}path"):
        points = [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path.attrib["d"])]
        assert points == sorted(points, key=lambda one: (one[0], -one[1]))
        assert all(x <= plot.RIGHT for x, _ in points)


def test_one_outlier_does_not_squeeze_the_rest() -> None:
    quiet, outlier = sketch(8, 9, 12), sketch(8, 9, 12)
    outlier["quantiles_ms"][100] = 4000.0
    widths = [
        one[1][0] - one[0][0] for one in (circles(drawn(verdict(each)), "candidate") for each in (quiet, outlier))
    ]
    assert widths[1] > widths[0] / 2


def test_a_limit_stands_where_it_is() -> None:
    root = drawn(verdict(sketch(8, 9, 12), limits={"latency_ms": {"p95": 12.5, "p99": 4000.0}}))
    lines = [float(one.attrib["x1"]) for one in root.iter(f"{SVG}line") if one.get("class") == "limit"]
    assert len(lines) == 1, "what is far off is not drawn"
    assert circles(root, "candidate")[1][0] < lines[0] < plot.RIGHT
    assert "p95 limit" in texts(root)


def test_without_latencies_it_still_says_the_outcome() -> None:
    root = drawn(verdict(outcome="reject", message="right: parity 3"))
    assert {"detector 1.4.0 (fp32): reject", "right: parity 3", "No latency was measured."} <= set(texts(root))


def test_what_comes_from_outside_is_text_and_nothing_else() -> None:
    hostile = "<script>alert(1)</script> & \x00\x1b]0;x\x07 \u202e \ufffe"
    text = plot.svg(verdict(sketch(1, 2), message=hostile, version=hostile, outcome='"/><script/>'))
    root = ET.fromstring(text)
    assert {one.tag.removeprefix(SVG) for one in root.iter()} <= set(
        "svg title desc style rect text tspan line circle path".split()
    )
    assert not [name for one in root.iter() for name in one.attrib if name.startswith("on") or name.endswith("href")]
    assert "url(" not in text


def test_it_can_be_read_on_dark_ground_too() -> None:
    light, _, dark = plot.STYLE.partition("@media (prefers-color-scheme: dark) {")
    coloured = set(re.findall(r"^(\S+) \{[^}]*(?:fill|stroke): #", light, re.MULTILINE))
    assert coloured - set(re.findall(r"^(\S+) \{", dark, re.MULTILINE)) <= {".quiet,"}


times = st.lists(st.floats(1e-6, 1e7), min_size=2, max_size=6).map(lambda some: sketch(*sorted(some)))


@given(times, st.none() | times, st.floats(1e-6, 1e9))
def test_any_figures_give_a_picture(candidate: Any, incumbent: Any, limit: float) -> None:
    root = drawn(verdict(candidate, incumbent, limits={"latency_ms": {"p99": limit}}))
    ticks = [one for one in root.iter(f"{SVG}line") if one.get("class") == "grid" and one.get("x1") == one.get("x2")]
    assert 1 <= len(ticks) <= 3 * plot.TICKS


@pytest.mark.parametrize("ms", [0.0, 5.0])
def test_equal_figures_give_a_picture(ms: float) -> None:
    assert circles(drawn(verdict(sketch(ms, ms))), "candidate")
