"""A verdict's latencies as a picture: one plain SVG, the same from the device's command and from the server.

Each curve is a cumulative distribution: how many of the inferences took at most so long. The further left, the faster;
the gap between two curves at 50 % is the difference of the medians. Drawn from the 101 quantiles in the verdict, so
that whoever has the document has the picture. No script, no font, nothing that is fetched; colours follow the viewer's
light or dark setting, and the incumbent's curve is dashed too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 736, 84, 352  # of the plot's frame, px
ROOM = 72  # px inside the frame at both sides: a figure stands beside its point
LEVELS = (0, 25, 50, 75, 95, 100)  # % lines
MARKED = (50, 95)  # % quantiles that are written out
TICKS = 6  # at most about so many on the time axis
# The axis ends so far beyond the 95 % quantile, in spans up to it: a few slow ones must not squeeze the rest.
STRETCH = 1.0
LINE_PX = 20  # of text

STYLE = """
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #222 }
.page { fill: #fff }
.title { font-size: 17px; font-weight: 600 }
.quiet, .tick { fill: #666 }
.tick, .figure { font-size: 12px }
.figure { paint-order: stroke; stroke: #fff; stroke-width: 3px }
.grid { stroke: #e4e4e4; stroke-width: 1 }
.frame { stroke: #999; stroke-width: 1; fill: none }
.limit { stroke: #a4133c; stroke-width: 1.5; stroke-dasharray: 2 3 }
.limits { fill: #a4133c }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round }
.candidate { stroke: #0067b1 }
.incumbent { stroke: #c04f00; stroke-dasharray: 7 4 }
.of-candidate { fill: #0067b1 }
.of-incumbent { fill: #c04f00 }
.accept { fill: #1a7f37 }
.reject { fill: #c1121f }
.inconclusive { fill: #8a6100 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e6e6 }
.page { fill: #16181c }
.figure { stroke: #16181c }
.quiet, .tick { fill: #a0a4ab }
.grid { stroke: #2c3036 }
.frame { stroke: #6b7078 }
.limit { stroke: #ff7b93 }
.limits { fill: #ff7b93 }
.candidate { stroke: #58b4f5 }
.incumbent { stroke: #f0a154 }
.of-candidate { fill: #58b4f5 }
.of-incumbent { fill: #f0a154 }
.accept { fill: #4cc26b }
.reject { fill: #ff6b70 }
.inconclusive { fill: #e3b341 }
}
"""


def svg(verdict: Mapping[str, Any]) -> str:
    """The picture of a verdict document (`interlock.verdict/1`), whether or not latencies were measured."""
    sketches = _sketches(verdict)
    limits = _limits(verdict)
    body = [*_head(verdict)]
    if sketches:
        scale = _Scale(sketches, limits)
        body += [*_axes(scale), *_limit_marks(scale, limits)]
        for name, sketch in reversed(sketches.items()):  # the candidate on top
            body.append(_curve(scale, name, sketch))
        body += [*_marks(scale, sketches), *_legend(verdict, sketches)]
    else:
        body.append(_text(WIDTH / 2, (TOP + BOTTOM) / 2, "No latency was measured.", "quiet", "middle"))
    title = f"{_release(verdict)}: {verdict['outcome']}"
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    )
    parts = [
        f'{opening} role="img" aria-labelledby="title about">',
        f'<title id="title">{_clean(title)}</title>',
        f'<desc id="about">{_clean(_about(verdict, sketches))}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        *body,
        "</svg>",
        "",
    ]
    return "\n".join(parts)


# --- what is in the document ------------------------------------------------------------------------------------------


def _sketches(verdict: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """By name, candidate first; those that were measured."""
    found = verdict.get("distributions") or {}
    return {name: found[name] for name in ("candidate", "incumbent") if found.get(name)}


def _limits(verdict: Mapping[str, Any]) -> dict[str, float]:
    """Absolute limits on latency, ms by quantile."""
    return {name: float(limit) for name, limit in (verdict["limits"].get("latency_ms") or {}).items()}


def _release(verdict: Mapping[str, Any]) -> str:
    return f"{verdict['model']} {verdict['version']} ({verdict['variant']})"


def _about(verdict: Mapping[str, Any], sketches: Mapping[str, Mapping[str, Any]]) -> str:
    said = [f"{verdict['message']}."]
    for name, sketch in sketches.items():
        quantiles = sketch["quantiles_ms"]
        said.append(f"{name}: median {quantiles[50]:.4g} ms, 95 % within {quantiles[95]:.4g} ms.")
    return " ".join(said)


# --- drawing ----------------------------------------------------------------------------------------------------------


class _Scale:
    """Milliseconds and percent to pixels. A limit widens the axis where it is not far off."""

    def __init__(self, sketches: Mapping[str, Mapping[str, Any]], limits: Mapping[str, float]) -> None:
        every: list[Sequence[float]] = [sketch["quantiles_ms"] for sketch in sketches.values()]
        self.low = min(quantiles[0] for quantiles in every)
        ends = [min(q[100], q[95] + STRETCH * (q[95] - q[0])) for q in every]
        near = [limit for limit in limits.values() if self.low < limit <= 2 * max(ends)]
        self.high = max([*ends, *near])
        if self.high - self.low < 1e-9:
            self.low, self.high = 0.9 * self.low, 1.1 * self.high or 1.0
        self._per_ms = (RIGHT - LEFT - 2 * ROOM) / (self.high - self.low)

    def x(self, ms: float) -> float:
        return LEFT + ROOM + (ms - self.low) * self._per_ms

    def y(self, percent: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * percent / 100

    def holds(self, ms: float) -> bool:
        return LEFT < self.x(ms) < RIGHT

    def ticks(self) -> list[float]:
        """Round numbers inside the frame: 1, 2 or 5 × a power of ten apart."""
        span = (RIGHT - LEFT) / self._per_ms
        power = 10.0 ** math.floor(math.log10(span / TICKS))
        step = next(power * one for one in (1, 2, 5, 10) if power * one * TICKS >= span)
        first = max(0, math.ceil((self.low - ROOM / self._per_ms) / step))
        return [n * step for n in range(first, first + 3 * TICKS) if self.holds(n * step)]


def _clean(text: str) -> str:
    """For XML: markup escaped, and no control characters, which XML has none of."""
    return escape("".join(one if one.isprintable() else " " for one in text))


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{_clean(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _short(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _head(verdict: Mapping[str, Any]) -> list[str]:
    outcome = str(verdict["outcome"])
    title = f'{_clean(_release(verdict))}: <tspan class="{_clean(outcome)}">{_clean(outcome)}</tspan>'
    return [
        f'<text x="20" y="32" class="title">{title}</text>',
        _text(20, 32 + LINE_PX, _short(str(verdict["message"]), 104), "quiet"),
        _text(LEFT - 44, TOP - 10, "inferences that took at most so long", "tick"),
    ]


def _axes(scale: _Scale) -> list[str]:
    parts = []
    for percent in LEVELS:
        y = scale.y(percent)
        parts += [_line(LEFT, y, RIGHT, y, "grid"), _text(LEFT - 8, y + 4, f"{percent} %", "tick", "end")]
    for ms in scale.ticks():
        x = scale.x(ms)
        parts += [_line(x, TOP, x, BOTTOM, "grid"), _text(x, BOTTOM + 17, f"{ms:.4g}", "tick", "middle")]
    frame = f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"/>'
    return [*parts, frame, _text((LEFT + RIGHT) / 2, BOTTOM + 38, "wall time of one inference, ms", "tick", "middle")]


def _limit_marks(scale: _Scale, limits: Mapping[str, float]) -> list[str]:
    """A line where each absolute limit is, down from its own quantile."""
    parts = []
    for name, limit in limits.items():
        if scale.holds(limit):
            x, y = scale.x(limit), scale.y(float(name[1:]))
            parts.append(_line(x, y, x, BOTTOM, "limit"))
            parts.append(_text(x + 5, BOTTOM - 8, f"{name} limit", "tick limits"))
    return parts


def _curve(scale: _Scale, name: str, sketch: Mapping[str, Any]) -> str:
    quantiles: Sequence[float] = sketch["quantiles_ms"]
    points = [(scale.x(min(ms, scale.high)), scale.y(k)) for k, ms in enumerate(quantiles) if ms <= scale.high]
    if len(points) < len(quantiles):  # what lies beyond the axis is in the table below it
        points.append((scale.x(scale.high), points[-1][1]))
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="curve {name}" d="M{path}"/>'


def _marks(scale: _Scale, sketches: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Points at the marked quantiles; the faster one's figure stands left of it, the slower one's right."""
    parts = []
    for percent in MARKED:
        at = {name: float(sketch["quantiles_ms"][percent]) for name, sketch in sketches.items()}
        for place, name in enumerate(sorted(at, key=lambda one: at[one], reverse=True)):
            x, y = scale.x(at[name]), scale.y(percent)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="of-{name}"/>')
            beside = (x + 8, y + 15, "start") if place == 0 else (x - 9, y + 4, "end")
            parts.append(_text(beside[0], beside[1], f"{at[name]:.4g}", f"figure of-{name}", beside[2]))
    return parts


LEGEND = ((64, "start"), (330, "end"), (430, "end"), (530, "end"), (630, "end"), (736, "end"))  # columns: x, anchor


def _legend(verdict: Mapping[str, Any], sketches: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table under the plot: who, median, 95 %, 99 %, the slowest, how many."""
    y = BOTTOM + 62
    heads = ("", "median", "95 %", "99 %", "slowest", "inferences")
    parts = [_text(x, y, head, "tick", anchor) for (x, anchor), head in zip(LEGEND, heads, strict=True)]
    versions = {"candidate": verdict["version"], "incumbent": (verdict.get("incumbent") or {}).get("version", "")}
    for name, sketch in sketches.items():
        y += LINE_PX
        quantiles = sketch["quantiles_ms"]
        cells = [_short(f"{name} {versions[name]}", 26), *(f"{quantiles[k]:.4g}" for k in (50, 95, 99, 100))]
        cells.append(str(sketch["samples"]))
        parts.append(f'<path class="curve {name}" d="M20 {y - 4}L52 {y - 4}"/>')
        parts += [_text(x, y, cell, "figure", anchor) for (x, anchor), cell in zip(LEGEND, cells, strict=True)]
    return parts
