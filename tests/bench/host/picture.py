"""The figures of `bench-results/host.json` as a picture: bars of the ways to ask, and what a swap does to latencies.
One plain SVG; colours follow the viewer's light or dark setting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH = 760
LEFT, RIGHT = 190, 690  # of the bars, px
BAR, GAP, HEAD = 15, 5, 30  # px: a bar, between two, above a group

STYLE = """
text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #222 }
.page { fill: #fff }
.title { font-size: 17px; font-weight: 600 }
.group { font-size: 13px; font-weight: 600 }
.quiet { fill: #666 }
.bar { fill: #8fb8d8 }
.ours { fill: #0067b1 }
.limit { fill: #b9b9b9 }
.grid { stroke: #e4e4e4 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e6e6 }
.page { fill: #16181c }
.quiet { fill: #a0a4ab }
.bar { fill: #3d6787 }
.ours { fill: #58b4f5 }
.limit { fill: #6b7078 }
.grid { stroke: #2c3036 }
}
"""

Group = tuple[str, list[tuple[str, float, str]]]  # title, then label, ms and class of each bar


def svg(document: Mapping[str, Any]) -> str:
    """Of a result document (`interlock.bench/1`). Raises KeyError where a figure is missing."""
    groups = _groups({str(one["name"]): float(one["value"]) for one in document["figures"]})
    values = [ms for _, bars in groups for _, ms, _ in bars]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    per = (RIGHT - LEFT) / (high - low)
    body: list[str] = []
    y = 64.0
    for title, bars in groups:
        y += HEAD
        body.append(_text(20, y, title, "group"))
        for label, ms, kind in bars:
            y += BAR + GAP
            length = max(1.0, (math.log10(ms) - low) * per)
            body.append(_text(LEFT - 8, y, label, "", "end"))
            body.append(f'<rect class="{kind}" x="{LEFT}" y="{y - BAR + 3}" width="{length:.1f}" height="{BAR}"/>')
            body.append(_text(LEFT + length + 6, y, f"{ms:.3g}"))
    bottom, height = y + 10, y + 50
    ticks = range(low, high + 1)
    grid = [f'<path class="grid" d="M{LEFT + (n - low) * per:.1f} 70V{bottom:.1f}"/>' for n in ticks]
    marks = [_text(LEFT + (n - low) * per, bottom + 16, f"{10.0**n:g} ms", "quiet", "middle") for n in ticks]
    machine = document["machine"]
    about = f"{machine['cpus']} cores of {machine['cpu']}, commit {document['commit']}, {str(document['at'])[:10]}"
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" role="img"'
    return "\n".join(
        [
            f'{opening} viewBox="0 0 {WIDTH} {height:.0f}">',
            "<title>What applications feel of the host</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{height:.0f}"/>',
            _text(20, 32, "What applications feel of the host", "title"),
            _text(20, 52, f"Milliseconds, logarithmic; {about}", "quiet"),
            *grid,
            *body,
            *marks,
            "</svg>",
            "",
        ]
    )


def _groups(found: Mapping[str, float]) -> list[Group]:
    groups: list[Group] = []
    for cell in ("light, small", "light, 600 kB", "heavy, small", "heavy, 600 kB"):
        prefix = f"{cell}: "
        ways = [name.removeprefix(prefix) for name in found if name.startswith(prefix) and _is_way(name)]
        bars = [(way, found[prefix + way], _kind(way)) for way in ways]
        groups.append((f"One request, p50: {cell}", sorted(bars, key=lambda bar: bar[1])))
    swaps: list[tuple[str, float, str]] = [
        (f"{q} {part}", found[f"swaps: {q} {part}"], "ours" if part == "during" else "bar")
        for q in ("p50", "p99", "p99.9")
        for part in ("before", "during", "after")
    ]
    groups.append((f"32 applications, {found['swaps']:.0f} swaps", swaps))
    kills = [
        (kind, found[f"killed {kind}: first good answer"], "ours") for kind in ("in a trial", "after confirmation")
    ]
    groups.append(("Live worker killed (-9): first good answer", kills))
    return groups


def _is_way(name: str) -> bool:
    return not any(word in name for word in ("the front adds", " / ", "requests a second"))


def _kind(way: str) -> str:
    return {"in-process": "limit", "tritonserver": "bar", "worker": "limit"}.get(way, "ours")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
