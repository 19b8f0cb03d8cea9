"""Charts as inline SVG, in colours that the page sets, so that one picture serves light and dark.

All of them are 360 units wide, about the width of a telephone, so that their words stay readable there; a wide page sets
several side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]

WIDTH = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 10, 28


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Return round numbers that cover a range: 1, 2 or 5 times a power of ten apart.

    Example:
        >>> ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / number))
    step = min((times * power for times in (1, 2, 5, 10)), key=lambda one: abs(span / one - number))
    first = math.ceil(low / step - 1e-9)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return [round(one * step, places) + 0.0 for one in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Return a number as an axis shows it.

    Example:
        >>> number(12_500), number(0.25), number(3.0)
        ('12,500', '0.25', '3')
    """
    return f"{value:,.0f}" if abs(value) >= 1_000 or value == round(value) else f"{value:.4g}"


class _Frame:
    """A pair of axes: from values to places in the picture."""

    def __init__(self, x_range: Point, y_range: Point, height: int) -> None:
        self.x_range, self.y_range, self.height = _widened(*x_range), _widened(*y_range), height

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(_LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM), 1)

    def axes(self, *, x_label: str = "", shows_y: bool = True, x_ticks: Sequence[float] | None = None) -> list[str]:
        """Return the grid and the numbers at it."""
        parts = []
        for value in ticks(*self.y_range, number=4) if shows_y else ():
            place = self.y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place}" y2="{place}"/>')
            parts.append(f'<text class="tick" x="{_LEFT - 5}" y="{place + 4}" text-anchor="end">{number(value)}</text>')
        base = self.height - _BOTTOM
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
        for value in ticks(*self.x_range) if x_ticks is None else x_ticks:
            parts.append(
                f'<text class="tick" x="{self.x(value)}" y="{base + 14}" text-anchor="middle">{number(value)}</text>'
            )
        if x_label:
            corner = f'x="{WIDTH - _RIGHT}" y="{self.height - 2}"'
            parts.append(f'<text class="label" {corner} text-anchor="end">{escape(x_label)}</text>')
        return parts


def _widened(low: float, high: float) -> Point:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def histogram(series: Mapping[str, tuple[float, float, Sequence[int]]], title: str, x_label: str = "score") -> str:
    """Return histograms over each other, as shares of their own total.

    Args:
        series: By name, the lowest and the highest edge and the counts between, in bins of one width. The n-th one has
            the class ``s{n}``.
        title: What is shown, for those who do not see it.
        x_label: What is counted.
    """
    shares = {name: _shares(counts) for name, (_, _, counts) in series.items()}
    low = min(low for low, _, _ in series.values())
    high = max(high for _, high, _ in series.values())
    frame = _Frame((low, high), (0.0, max(max(values, default=0.0) for values in shares.values()) or 1.0), 190)
    parts = frame.axes(x_label=x_label)
    for place, (name, (first, last, counts)) in enumerate(series.items()):
        width = (last - first) / max(1, len(counts))
        points = [(first, 0.0)]
        for bin_number, share in enumerate(shares[name]):
            points += [(first + bin_number * width, share), (first + (bin_number + 1) * width, share)]
        points.append((last, 0.0))
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
        parts.append(f'<polygon class="area s{place}" points="{path}"/>')
    return _svg(parts, frame.height, title)


def _shares(counts: Sequence[int]) -> list[float]:
    total = max(1, sum(counts))
    return [count / total for count in counts]


def bars(
    rows: Sequence[tuple[str, float, str]],
    title: str,
    kind: str = "s0",
    *,
    whole: float | None = None,
    parts_of: Sequence[float] = (),
) -> str:
    """Return horizontal bars, each under its name and value.

    Args:
        rows: Name, length and the value in words of each.
        title: What is shown.
        kind: Class of the bars.
        whole: Length of a full bar; the longest one's if None.
        parts_of: How much of each bar is drawn in full colour, the rest pale; all of it if empty.
    """
    longest = whole or max((length for _, length, _ in rows), default=0.0) or 1.0
    parts, place = [], 4.0
    for row, (name, length, value) in enumerate(rows):
        width, full = (one / longest * (WIDTH - 4) for one in (length, parts_of[row] if parts_of else length))
        parts += [
            f'<text class="name" x="0" y="{place + 11:g}">{escape(name)}</text>',
            f'<text class="value" x="{WIDTH - 4}" y="{place + 11:g}" text-anchor="end">{escape(value)}</text>',
            f'<rect class="track" x="0" y="{place + 16:g}" width="{WIDTH - 4}" height="8" rx="2"/>',
            f'<rect class="bar pale {kind}" x="0" y="{place + 16:g}" width="{width:.1f}" height="8" rx="2"/>',
            f'<rect class="bar {kind}" x="0" y="{place + 16:g}" width="{full:.1f}" height="8" rx="2"/>',
        ]
        place += 34
    return _svg(parts, max(place, 10), title)


def stacked(parts_of: Sequence[tuple[str, float]], title: str) -> str:
    """Return one bar that is made of shares of a whole, with their names below.

    Args:
        parts_of: Name and share of each; the n-th one has the class ``s{n}``.
        title: What is shown.
    """
    parts, left = [], 0.0
    for place, (name, share) in enumerate(parts_of):
        width = share * (WIDTH - 4)
        parts.append(f'<rect class="bar s{place}" x="{left:.1f}" y="4" width="{max(0.0, width):.1f}" height="22"/>')
        left += width
        parts += [
            f'<rect class="bar s{place}" x="0" y="{38 + 20 * place}" width="10" height="10" rx="2"/>',
            f'<text class="name" x="16" y="{47 + 20 * place}">{escape(name)}</text>',
            f'<text class="value" x="{WIDTH - 4}" y="{47 + 20 * place}" text-anchor="end">{share:.1%}</text>',
        ]
    return _svg(parts, 42 + 20 * len(parts_of), title)


def lines(series: Mapping[str, Sequence[Point]], title: str, x_label: str = "", kind: str | None = None) -> str:
    """Return curves with a dot at each value.

    Args:
        series: Points by name; the n-th one has the class ``s{n}``.
        title: What is shown.
        x_label: What runs along.
        kind: One class for all.
    """
    points = [point for some in series.values() for point in some]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min([*ys, 0.0]), max(ys)
    frame = _Frame((min(xs), max(xs)), (low, high if high > low else low + 1.0), 150)
    whole = [one for one in ticks(*frame.x_range) if one == round(one)]
    parts = frame.axes(x_label=x_label, x_ticks=whole if max(xs) > min(xs) else xs[:1])
    for place, some in enumerate(series.values()):
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in some)
        name = kind or f"s{place}"
        parts.append(f'<polyline class="curve {name}" points="{path}"/>')
        parts += [f'<circle class="dot {name}" cx="{frame.x(x)}" cy="{frame.y(y)}" r="2.6"/>' for x, y in some]
    return _svg(parts, frame.height, title)


def scatter(series: Mapping[str, Sequence[Sequence[float]]], title: str) -> str:
    """Return points in the plane; both axes have one scale.

    Args:
        series: Points by name; the n-th one has the class ``s{n}``.
        title: What is shown.
    """
    points = [point for some in series.values() for point in some] or [(0.0, 0.0)]
    middle = [(min(p[i] for p in points) + max(p[i] for p in points)) / 2 for i in (0, 1)]
    span = max(max(p[i] for p in points) - min(p[i] for p in points) for i in (0, 1)) or 1.0
    side = WIDTH - 16
    parts = []
    for place, some in enumerate(series.values()):
        for point in some:
            x, y = (8 + side / 2 + (point[i] - middle[i]) / span * side * sign for i, sign in ((0, 1), (1, -1)))
            parts.append(f'<circle class="point s{place}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>')
    return _svg(parts, WIDTH, title)
