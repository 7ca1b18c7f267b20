"""Draws line charts side by side as one SVG picture; no drawing library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 34, 44
COLUMNS = 2
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000")
"""Distinguishable without colour vision, as far as there are few lines."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """One chart: x is drawn on a scale of powers of two, y from zero.

    Attributes:
        title: above it.
        x_label: below it.
        lines: name -> points, in ascending order of x; at least one point in all.
    """

    title: str
    x_label: str
    lines: Mapping[str, Points]


def draw(charts: Sequence[Chart]) -> str:
    """Returns the picture of all charts, two per row, with one legend for all lines."""
    names = list(dict.fromkeys(name for chart in charts for name in chart.lines))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    rows = -(-len(charts) // COLUMNS)
    width, height = WIDTH * min(COLUMNS, len(charts)), HEIGHT * rows + 20 * (1 + (len(names) - 1) // 4)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="12" font-family="Arial">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, chart in enumerate(charts):
        x, y = WIDTH * (index % COLUMNS), HEIGHT * (index // COLUMNS)
        parts += [f'<g transform="translate({x} {y})">', *_chart(chart, colours), "</g>"]
    for index, name in enumerate(names):
        x, y = LEFT + 190 * (index % 4), HEIGHT * rows + 20 * (index // 4) + 8
        parts.append(f'<path d="M{x} {y}h22" stroke="{colours[name]}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 28}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _chart(chart: Chart, colours: Mapping[str, str]) -> list[str]:
    xs = sorted({x for points in chart.lines.values() for x, _ in points})
    step = _round_step(max(y for points in chart.lines.values() for _, y in points) / 5)
    top = step * math.ceil(max(y for points in chart.lines.values() for _, y in points) / step)
    span = math.log2(xs[-1] / xs[0]) or 1.0
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log2(x / xs[0]) / span
        return round(LEFT + plot_width * across, 1), round(TOP + plot_height * (1 - y / top), 1)

    parts = [
        f'<text x="{LEFT}" y="20" font-weight="bold">{escape(chart.title)}</text>',
        f'<text x="{LEFT + plot_width / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x_label)}</text>',
    ]
    for tick in range(round(top / step) + 1):
        y = place(xs[0], tick * step)[1]
        parts.append(f'<path d="M{LEFT} {y}h{plot_width}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick * step:g}</text>')
    parts += [f'<text x="{place(x, 0)[0]}" y="{HEIGHT - 26}" text-anchor="middle">{x:g}</text>' for x in xs]
    for name, points in chart.lines.items():
        places = [place(x, y) for x, y in points]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colours[name]}"/>' for x, y in places]
    return parts


def _round_step(least: float) -> float:
    """Returns the smallest of 1, 2, 5, 10, 20, ... (or 0.5, ...) that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
