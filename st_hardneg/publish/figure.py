"""The figure of a card: how similar anchors are to their positives and to the negatives, drawn as SVG by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 640, 300, 20, 44, 252
_BINS = 40
# Readable on white and on black; the two fills differ in lightness, too.
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#444}.axis{stroke:#888}"
    ".positive{fill:#1b7f5c;fill-opacity:.55;stroke:#1b7f5c}.negative{fill:#d9822b;fill-opacity:.55;stroke:#d9822b}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.axis{stroke:#777}"
    ".positive{fill:#4fd1a5;stroke:#4fd1a5}.negative{fill:#f6b26b;stroke:#f6b26b}}"
)


def score_figure(positives: npt.NDArray[np.float32], negatives: npt.NDArray[np.float32], similarity: str) -> str:
    """Return two histograms over one axis, each as shares of its own values, as an SVG document.

    Args:
        positives: Similarities of anchors and positives, of any shape.
        negatives: Similarities of anchors and negatives, of any shape; what is not finite is an empty slot.
        similarity: Name of the similarity.
    """
    series = {"positive": _finite(positives), "negative": _finite(negatives)}
    every = np.concatenate(list(series.values()))
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    # Scores that are all the same, but for how they were rounded, have bins of their own width.
    high = high if high - low > 1e-6 * max(1.0, abs(low), abs(high)) else low + 1.0
    shares = {
        name: np.histogram(values, bins=_BINS, range=(low, high))[0] / max(1, len(values))
        for name, values in series.items()
    }
    most = max(float(share.max()) for share in shares.values()) or 1.0
    areas = "".join(f'<path class="{name}" d="{_area(share / most)}"/>' for name, share in shares.items())
    legend = "".join(
        f'<rect class="{name}" x="{_LEFT + 200 * place}" y="14" width="14" height="14"/>'
        f'<text x="{_LEFT + 20 + 200 * place}" y="26">{name}s (mean {_mean(series[name])})</text>'
        for place, name in enumerate(series)
    )
    title = f"{similarity} similarity of anchors to positives and to mined negatives"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"<title>{title}</title><style>{_STYLE}</style>{legend}{areas}"
        f'<line class="axis" x1="{_LEFT}" y1="{_BOTTOM}" x2="{_WIDTH - _LEFT}" y2="{_BOTTOM}"/>{_ticks(low, high)}'
        f'<text x="{_WIDTH / 2:g}" y="{_HEIGHT - 8}" text-anchor="middle">{similarity} similarity to the anchor</text>'
        "</svg>\n"
    )


def _finite(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return values[np.isfinite(values)].astype(np.float64)


def _mean(values: npt.NDArray[np.float64]) -> str:
    return f"{values.mean():.2f}" if len(values) else "none"


def _x(place: float) -> float:
    """Return where a place from 0 to 1 is on the page."""
    return _LEFT + place * (_WIDTH - 2 * _LEFT)


def _area(heights: npt.NDArray[np.float64]) -> str:
    steps = [f"M{_x(0):.1f} {_BOTTOM}"]
    for place, height in enumerate(heights):
        steps.append(f"V{_BOTTOM - height * (_BOTTOM - _TOP):.1f}H{_x((place + 1) / len(heights)):.1f}")
    return "".join(steps) + f"V{_BOTTOM}Z"


def _ticks(low: float, high: float) -> str:
    return "".join(
        f'<text x="{_x(part):.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{low + part * (high - low):.2f}</text>'
        for part in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
