"""Draws charts as text: lines, steps and histograms in SVG, coloured by the page's style sheet, and sparklines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 18, 34, 46
_SPARKS = "▁▂▃▄▅▆▇█"
_BINS = 40
_LETTER = 6.2
"""Approximate width of a letter; Chinese characters are twice as wide."""


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart.

    Attributes:
        name: in the legend.
        points: x and y, ascending in x.
        kind: `line` has a dot per point, `step` and `area` have none.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    kind: Literal["line", "step", "area"] = "line"


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at `x` with a label."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of a chart.

    Attributes:
        title: alternative text for screen readers.
        x_label: quantity and unit.
        y_label: the same.
        x_ticks: values that the x axis is labelled at; chosen automatically if empty.
        is_log: whether the x axis is logarithmic.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[float, ...] = ()
    is_log: bool = False


class _Scale:
    """Maps values of one axis to coordinates."""

    def __init__(self, low: float, high: float, start: float, end: float, *, is_log: bool = False) -> None:
        self._map = math.log2 if is_log else float
        self._low, self._start = self._map(low), start
        self._factor = (end - start) / ((self._map(high) - self._low) or 1.0)

    def __call__(self, value: float) -> float:
        return self._start + (self._map(value) - self._low) * self._factor


def line_chart(axes: Axes, series: Sequence[Series], marks: Sequence[Mark] = ()) -> str:
    """Returns one chart of all series; y begins at zero, so that heights can be compared."""
    xs = [x for one in series for x, _ in one.points]
    low, high = (min(xs), max(xs)) if axes.is_log else (min(0.0, *xs), max(xs))
    if low == high:
        low, high = (low / 2, high * 2) if axes.is_log else (0.0, (high or 1.0) * 2)
    y_ticks = ticks(0.0, max((y for one in series for _, y in one.points), default=1.0) or 1.0)
    x_ticks = axes.x_ticks or tuple(tick for tick in ticks(low, high) if low <= tick <= high)
    x = _Scale(low, high, _LEFT, WIDTH - _RIGHT, is_log=axes.is_log)
    y = _Scale(0.0, y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    body = _grid(axes, x, y, x_ticks, y_ticks)
    body += [line for index, one in enumerate(series) for line in _line(one, index, x, y)]
    body += _marks(marks, x)
    if len(series) > 1:
        body.append(_legend([one.name for one in series]))
    return _drawing(axes.title, body)


def histogram(axes: Axes, values: Sequence[float], marks: Sequence[Mark] = ()) -> str:
    """Returns the distribution of at least one value, with equal bins from the smallest to the largest."""
    low, high = min(values), max(values)
    if high - low < 1e-6 * abs(high):  # equal but for rounding
        low, high = low * 0.9, high * 1.1
    elif low == high:
        high = 1.0
    bins = min(_BINS, max(8, math.isqrt(len(values)) * 2))
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    # Leaves room for the labels of marks; only whole numbers, because requests are counted.
    y_ticks = [tick for tick in ticks(0.0, max(max(counts) * 1.25, 4.0)) if tick == int(tick)]
    x_ticks = tuple(tick for tick in ticks(low, high) if low <= tick <= high)
    x = _Scale(low, high, _LEFT, WIDTH - _RIGHT)
    y = _Scale(0.0, y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    body = _grid(axes, x, y, x_ticks, y_ticks)
    width = (high - low) / bins
    for index, count in enumerate(counts):
        if count:
            left, right, top = x(low + index * width), x(low + (index + 1) * width), y(count)
            body.append(
                f'<rect class="s0 bar" x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(0.5, right - left - 1):.1f}" '
                f'height="{HEIGHT - _BOTTOM - top:.1f}"><title>{_text(low + index * width)} – '
                f"{_text(low + (index + 1) * width)}: {count}</title></rect>"
            )
    return _drawing(axes.title, [*body, *_marks(marks, x)])


def sparkline(values: Sequence[float | None]) -> str:
    """Returns one character per value, the lowest at the bottom; a missing value is a dot."""
    known = [value for value in values if value is not None]
    if not known:
        return "·" * len(values)
    low, span = min(known), max(known) - min(known)
    return "".join(
        "·" if value is None else _SPARKS[round((value - low) / span * 7) if span else 3] for value in values
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if span / (factor * magnitude) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _grid(axes: Axes, x: _Scale, y: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    lines = []
    for tick in y_ticks:
        at = f"{y(tick):.1f}"
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
        lines.append(f'<text class="tick" x="{_LEFT - 8}" y="{at}" dy="0.35em" text-anchor="end">{_text(tick)}</text>')
    free = 0.0
    for tick in x_ticks:
        at_x = x(tick)
        half = len(_text(tick)) * _LETTER / 2
        if at_x - half < free:
            continue  # the numbers of a dense sweep would cover each other
        free = at_x + half + 6
        lines.append(f'<line class="axis" x1="{at_x:.1f}" x2="{at_x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        lines.append(f'<text class="tick" x="{at_x:.1f}" y="{bottom + 17}" text-anchor="middle">{_text(tick)}</text>')
    middle = (_LEFT + right) / 2
    lines.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    lines.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(axes.x_label)}</text>'
    )
    height = (_TOP + bottom) / 2
    lines.append(
        f'<text class="label" transform="translate(14 {height}) rotate(-90)" text-anchor="middle">'
        f"{escape(axes.y_label)}</text>"
    )
    return lines


def _line(series: Series, index: int, x: _Scale, y: _Scale) -> list[str]:
    if not series.points:
        return []
    places = [(x(one), y(other)) for one, other in series.points]
    if series.kind != "line":
        stairs = [places[0]]
        for at_x, at_y in places[1:]:
            stairs += [(at_x, stairs[-1][1]), (at_x, at_y)]
        places = stairs
    path = "M" + "L".join(f"{at_x:.1f} {at_y:.1f}" for at_x, at_y in places)
    lines = [f'<path class="s{index} stroke" d="{path}"/>']
    if series.kind == "area":
        floor = HEIGHT - _BOTTOM
        lines.insert(
            0, f'<path class="s{index} fill" d="{path}L{places[-1][0]:.1f} {floor}L{places[0][0]:.1f} {floor}Z"/>'
        )
    if series.kind == "line":
        lines += [
            f'<circle class="s{index} dot" cx="{at_x:.1f}" cy="{at_y:.1f}" r="3.5"><title>{escape(series.name)}: '
            f"{_text(value[1])} @ {_text(value[0])}</title></circle>"
            for (at_x, at_y), value in zip(places, series.points, strict=True)
        ]
    return lines


def _marks(marks: Sequence[Mark], x: _Scale) -> list[str]:
    """Lines from left to right; a label that would cover the one before it goes a row lower."""
    # Labels after all lines, so that no line goes through a label.
    lines, labels, ends = list[str](), list[str](), [0.0] * 4
    for mark in sorted(marks, key=lambda mark: mark.x):
        at, width = x(mark.x), _width(mark.label)
        is_left = at + width + 6 > WIDTH - _RIGHT
        start = at - 4 - width if is_left else at + 4
        row = next((number for number, end in enumerate(ends) if start >= end), len(ends) - 1)
        ends[row] = start + width + 6
        anchor = ' text-anchor="end"' if is_left else ""
        lines.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 4}" y2="{HEIGHT - _BOTTOM}"/>')
        labels.append(
            f'<text class="marked" x="{at - 4 if is_left else at + 4:.1f}" y="{_TOP + 6 + 14 * row}"{anchor}>'
            f"{escape(mark.label)}</text>"
        )
    return lines + labels


def _legend(names: Sequence[str]) -> str:
    parts, at = [], float(_LEFT)
    for index, name in enumerate(names):
        parts.append(f'<rect class="s{index} bar" x="{at:.0f}" y="9" width="12" height="12" rx="2"/>')
        parts.append(f'<text class="tick" x="{at + 17:.0f}" y="19">{escape(name)}</text>')
        at += 17 + _width(name) + 18
    return "".join(parts)


def _width(text: str) -> float:
    return sum(_LETTER * (2 if ord(letter) > 0x2E7F else 1) for letter in text)


def _drawing(title: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(body)}</svg>'
    )


def _text(value: float) -> str:
    """A number for an axis."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"
