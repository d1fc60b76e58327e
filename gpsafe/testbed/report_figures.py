"""Pictures of the guarantee report: a check's own figure, and its interval drawn against its threshold."""

from __future__ import annotations

import base64
import math
import warnings
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from gpsafe import plotting
from gpsafe.testbed.verify import CheckResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = ("lower", "upper", "estimate", "threshold")
MAX_SVG_BYTES = 400_000  # larger drawings (many thousand points) become PNG


def number(value: Any, digits: int = 4) -> str:
    """A number for people: 4 significant digits, true minus and infinity signs, an en dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}g}".replace("-", "−")


class Pictures(NamedTuple):
    """A check's figure as ``data:`` URIs, for light and for dark pages."""

    light: str
    dark: str


def figure_uris(result: CheckResult) -> tuple[Pictures | None, str]:
    """The check's figure (SVG, or PNG if that is too large), and why there is none.

    Both are empty if the check draws nothing. A drawing that fails is no verdict: the reason is one line.
    """
    claim, control = result.claim.evidence, result.control.evidence
    if result.check.plot is None or claim is None or control is None:
        return None, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about layouts and missing glyphs: the picture shows them
            return Pictures(
                *(_drawn(result.check.plot, claim.data, control.data, theme) for theme in ("light", "dark"))
            ), ""
    except Exception as error:  # a check's drawing may raise anything
        return None, " ".join(f"{type(error).__name__}: {error}".split())


def _drawn(plot: Callable[..., None], claim: Mapping[str, Any], control: Mapping[str, Any], theme: Any) -> str:
    with plotting.style(theme, size=9):
        figure = plotting.figure(8.4, 3.8)
        plot(figure, claim, control)
        return data_uri(figure)


def data_uri(figure: Figure) -> str:
    """A figure as ``data:`` URI: SVG, or PNG if that is too large. Within the `plotting.style` that it was drawn in."""
    content, kind = plotting.save(figure), "svg+xml"
    if len(content) > MAX_SVG_BYTES:
        content, kind = plotting.save(figure, kind="png", dpi=150), "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


class _Bar(NamedTuple):
    label: str
    lower: float
    upper: float
    estimate: float
    threshold: float
    outcome: str


def interval_svg(record: Mapping[str, Any]) -> str:
    """Inline SVG: the intervals of claim and control on one axis, with the threshold and the claimed side.

    Ends off the axis (infinite ones, or of a control very far away) are drawn as arrows.
    """
    rows = [
        _Bar(label, **{key: record[prefix + key] for key in KEYS}, outcome=record[outcome])
        for label, prefix, outcome in (("claim", "", "outcome"), ("control", "control_", "control_verdict"))
        if record[prefix + "lower"] is not None
    ]
    if not rows:
        return ""
    low, high = _axis(rows)
    left, right, height = 58.0, 408.0, 34 + 30 * len(rows)

    def x(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return left + share * (right - left)

    parts = []
    for index, (label, lower, upper, estimate, threshold, outcome) in enumerate(rows):
        top = 20 + 30 * index
        limit, start, end = x(threshold), x(lower), x(upper)
        parts.append(f'<rect class="region" x="{left}" y="{top}" width="{limit - left:.1f}" height="24"/>')
        if lower <= high and upper >= low:
            begin = min(start, right - 3)
            size = f'x="{begin:.1f}" y="{top + 7}" width="{max(end - start, 3.0):.1f}" height="10" rx="2"'
            parts.append(f'<rect class="bar {outcome}" {size}/>')
        if low <= threshold <= high:
            parts.append(f'<path class="limit" d="M{limit:.1f} {top - 1}v26"/>')
        if low <= estimate <= high:
            parts.append(f'<circle class="estimate" cx="{x(estimate):.1f}" cy="{top + 12}" r="4.5"/>')
        for off, edge, way in ((lower < low, left, -8), (upper > high, right, 8)):
            if off:
                parts.append(f'<path class="bar {outcome}" d="M{edge} {top + 4}l{way} 8l{-way} 8z"/>')
        parts.append(f'<text x="{left - 14}" y="{top + 16}" text-anchor="end">{label}</text>')
    bottom = height - 12
    parts.append(f'<path class="axis" d="M{left} {bottom - 2}H{right}"/>')
    parts.append(f'<text x="{left}" y="{bottom + 11}">{number(low, 3)}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 11}" text-anchor="end">{number(high, 3)}</text>')
    threshold = rows[0].threshold
    anchor = "start" if x(threshold) < 130 else "end" if x(threshold) > 340 else "middle"
    parts.append(f'<text x="{x(threshold):.1f}" y="13" text-anchor="{anchor}">threshold {number(threshold)}</text>')
    words = "; ".join(
        f"{label}: interval {number(lower)} to {number(upper)}, estimate {number(estimate)}, "
        f"threshold {number(threshold)}, {outcome}"
        for label, lower, upper, estimate, threshold, outcome in rows
    )
    return (
        f'<svg class="interval" viewBox="0 0 420 {height}" role="img" aria-label="{escape(words)}">'
        f"{''.join(parts)}</svg>"
    )


def _axis(rows: list[_Bar]) -> tuple[float, float]:
    """Ends of the axis: all of the claim, and the control unless it would squeeze the claim to nothing."""
    finite = [[v for v in row[1:5] if abs(v) < 1e150] or [0.0] for row in rows]
    low, high = min(finite[0]), max(finite[0])
    reach = 12 * ((high - low) or abs(high) or 1.0)
    near = [value for row in finite[1:] for value in row if low - reach <= value <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    pad = 0.05 * ((high - low) or abs(high) or 1.0)
    low, high = 0.0 if 0 <= low <= pad else low - pad, high + pad
    return low, (high if high > low else low + 1.0)
