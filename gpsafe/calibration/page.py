"""The page of a calibration study: words first, then three pictures, then the numbers. One file, nothing fetched."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from html import escape
from string import Template

from matplotlib.figure import Figure

from gpsafe import plotting
from gpsafe.calibration.findings import Assessment, Findings
from gpsafe.calibration.resampling import Estimated
from gpsafe.testbed.report_figures import data_uri
from gpsafe.testbed.report_template import STYLE

OVER, UNDER, EXACT, RIGHT = "over-confident", "under-confident", "right", "not told apart"

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';img-src data:;style-src 'unsafe-inline'">
<title>Calibration of $title</title>
<style>$style ul.words li{margin:.35rem 0;max-width:60rem} td.left{text-align:left}</style>
</head>
<body>
<main>
<h1>Whose uncertainty fits $title?</h1>
<p class="summary">$summary</p>
<ul class="words">$words</ul>
<dl class="environment">$facts</dl>
<h2>Does the interval hold as often as it says?</h2>
<figure><img alt="reliability of every model" src="$reliability"><figcaption>Share of next states inside the centred interval
(vertical) of each nominal probability (horizontal). Below the diagonal: over-confident. Dashed: after split conformal
recalibration at $level.</figcaption></figure>
<h2>Is it so far from the data, too?</h2>
<figure><img alt="coverage by distance to the data" src="$shells"><figcaption>Share inside the $level bars in four shells of
equally many test rows by distance of (x, u) to the nearest row learnt from (each axis in standard deviations), with 95 %
Clopper–Pearson intervals, as if all next states were independent. The vertical line is $level.</figcaption></figure>
<h2>What would hold everywhere at once?</h2>
<figure><img alt="multiple of sigma that holds every test row" src="$needed"><figcaption>The multiple of σ at which
<em>every</em> test row and output lies inside. Grey: what a perfect Gaussian model would need for so many rows (95 %). It is a
property of these rows: points that were not visited may need more, so no number here certifies
anything.$theory</figcaption></figure>
<h2>Numbers</h2>
<div class="scroll" tabindex="0" role="region" aria-label="scores"><table>
<thead><tr><th scope="col">Model</th><th scope="col">Bars</th><th scope="col" class="number">Inside $level bars</th>
<th scope="col" class="number">Errors / σ</th><th scope="col" class="number">RMSE</th><th scope="col" class="number">Width</th>
<th scope="col" class="number">ECE</th><th scope="col" class="number">Area</th><th scope="col" class="number">NLL</th>
<th scope="col" class="number">CRPS</th><th scope="col" class="number">Energy score</th>
<th scope="col" class="number">Interval score</th>
<th scope="col" class="number">All of a $unit inside</th><th scope="col" class="number">10 steps ahead</th></tr></thead>
<tbody>$rows</tbody></table></div>
<p class="note">RMSE, width and scores but NLL in standard deviations of the residual (1: as good as no model). ECE:
expected calibration error of the interval form; area: miscalibration area; definitions of the Uncertainty Toolbox. Second
lines: 95 % bootstrap intervals over $units. Errors / σ: root mean square; 1 is right, and rare large errors weigh much.</p>
<h2>What it costs</h2>
<div class="scroll" tabindex="0" role="region" aria-label="costs"><table>
<thead><tr><th scope="col">Model</th><th scope="col" class="number">Rows learnt from</th>
<th scope="col" class="number">Seconds to fit</th><th scope="col" class="number">Seconds for 1000 predictions</th>
<th scope="col" class="number">Size</th></tr></thead><tbody>$costs</tbody></table></div>
<p class="note">Processor seconds on this machine. Work that models share (kernels of the Gaussian processes, members of an
ensemble) counts for the first.</p>
<h2>What to keep in mind</h2>
<ul>$notes</ul>
</main>
</body>
</html>
""")


def html(study: Findings) -> str:
    """The page."""
    level = f"{1 - study.delta:.0%}"
    verdicts = [(name, study.of(name), verdict(study.of(name), study.delta)) for name in study.models]
    words = "".join(f"<li><b>{escape(name)}</b>: {escape(one.words(study.delta))}.</li>" for name, one, _ in verdicts)
    facts = {
        "states": ", ".join(study.states), "inputs": ", ".join(study.inputs) or "none",
        "rows": "{} learnt from, {} for recalibration, {} tested".format(*study.rows),
        "test units": f"{study.units[0]} {study.units[1]}", "seconds": f"{study.seconds:.0f} (processor)",
    }  # fmt: skip
    notes = [
        *study.notes,
        "Bars hold the next state with its noise. Whether the plant without noise is inside, and at states that were not "
        "visited, data cannot tell.",
        "Scale assumes Gaussian residuals, isotonic one shape of residual everywhere, conformal that new rows come from the "
        "distribution of these: driving the plant elsewhere breaks all three.",
    ]
    return PAGE.substitute(
        title=escape(study.title), style=STYLE, level=level, units=study.units[1], unit=study.units[1].rstrip("s")
        if study.units[1] == "rows" else "trajectory",
        summary=escape(summary(study)), words=words,
        facts="".join(f"<div class=wide><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()),
        reliability=_uri(lambda figure: _reliability(figure, study), (9.0, 2.6 * math.ceil(len(study.models) / 4))),
        shells=_uri(lambda figure: _shells(figure, study), (8.4, 0.6 + 0.5 * len(study.models))),
        needed=_uri(lambda figure: _needed(figure, study), (8.4, 0.8 + 0.38 * len(study.models))),
        theory=_theory(study), rows="".join(_row(one) for one in study.assessments),
        costs="".join(
            f"<tr><th scope=row>{escape(f.name)}</th>{_cells(f'{f.rows}', f'{f.seconds:.2f}')}"
            f"{_cells(f'{study.predict_seconds[f.name]:.3g}', f'{f.size / 1000:,.0f} kB')}</tr>"
            for f in study.fits
        ),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
    )  # fmt: skip


def verdict(one: Assessment, delta: float) -> str:
    """In two words."""
    words = one.words(delta)
    return next((kind for kind in (OVER, UNDER, EXACT) if words.startswith(kind)), RIGHT)


def summary(study: Findings) -> str:
    """The first sentences: how many are over-confident, which is best, and what repairs it."""
    found = {name: verdict(study.of(name), study.delta) for name in study.models}
    told = []
    for kind in (OVER, UNDER, EXACT, RIGHT):
        names = [name for name, value in found.items() if value == kind]
        if names:
            verb = "is" if len(names) == 1 else "are"
            told.append(f"{', '.join(names)} {verb} {kind}" + (" from right" if kind == RIGHT else ""))
    best = min(study.models, key=lambda name: float(study.of(name).scores["crps"].value))
    score = study.of(best).scores["crps"]
    low, high = float(score.low), float(score.high)
    near = [n for n in study.models if n != best and float(study.of(n).scores["crps"].low) <= high]
    tied = f" (not told apart from {', '.join(near)})" if near else ""
    return (
        f"At {1 - study.delta:.0%}: {'; '.join(told)}. The best predictions as a whole, by CRPS, come from {best}{tied}: "
        f"{float(score.value):.3g} [{low:.3g}, {high:.3g}] standard deviations of the residual."
    )


def _theory(study: Findings) -> str:
    if study.theory is None:
        return ""
    found, outside = study.theory
    beta = ", ".join(f"{b:.3g}" for b in found.beta.tolist())
    return (
        f" For comparison, the theorem's β of the Gaussian process, with B taken as twice the norm of its mean, is {beta} "
        f"for the outputs, noise apart; {outside} of {study.rows[2]} test rows refute that band."
    )


def _row(one: Assessment) -> str:
    ahead = "–" if one.ahead is None else _percent(one.ahead)
    every = f"{one.everywhere.value:.1%}<span class=range>{_range(one.everywhere.interval())}</span>"
    names = ("stretch", "rmse", "width", "ece", "area", "nll", "crps", "energy", "interval_score")
    bars = "as fitted" if one.recalibration == "none" else one.recalibration
    return (
        f"<tr><th scope=row>{escape(one.model)}</th><td>{bars}</td>"
        f"{_cells(_percent(one.inside_interval), *(_pair(one.scores[n]) for n in names), every, ahead)}</tr>"
    )


def _cells(*values: str) -> str:
    return "".join(f"<td class=number>{value}</td>" for value in values)


def _pair(found: Estimated) -> str:
    return f"{float(found.value):.3g}<span class=range>[{float(found.low):.3g}, {float(found.high):.3g}]</span>"


def _percent(found: Estimated) -> str:
    return f"{float(found.value):.1%}<span class=range>{_range((float(found.low), float(found.high)))}</span>"


def _range(ends: Iterable[float]) -> str:
    low, high = ends
    return f"[{low:.1%}, {high:.1%}]"


# ------------------------------------------------------------------------------------------------------ pictures
def _uri(draw: Callable[[Figure], None], size: tuple[float, float]) -> str:
    with plotting.style("light", size=9.5), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing glyphs: the picture shows them
        figure = plotting.figure(*size)
        draw(figure)
        return data_uri(figure)


def _colour(one: Assessment, delta: float) -> str:
    found = verdict(one, delta)
    return plotting.colour(found if found in (OVER, UNDER) else "well-calibrated")


def _reliability(figure: Figure, study: Findings) -> None:
    columns = min(4, len(study.models))
    panels = figure.subplots(math.ceil(len(study.models) / columns), columns, squeeze=False, sharex=True, sharey=True)
    for axes, name in zip(panels.flat, study.models, strict=False):
        axes.plot([0, 1], [0, 1], color=plotting.colour("grey"), linewidth=0.8)
        one = study.of(name)
        colour = _colour(one, study.delta)
        axes.plot(*one.curve.tolist(), color=colour)
        axes.fill_between(one.curve[0].tolist(), one.curve[0].tolist(), one.curve[1].tolist(), color=colour, alpha=0.18)
        again = [a for a in study.assessments if a.model == name and a.recalibration == "conformal"]
        for other in again:
            axes.plot(*other.curve.tolist(), color=plotting.colour("ink"), linestyle="--", linewidth=0.9)
        axes.set_title(f"{name}\n{verdict(one, study.delta)}", fontsize=9, color=colour)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    for axes in list(panels.flat)[len(study.models) :]:
        axes.set_visible(False)


def _shells(figure: Figure, study: Findings) -> None:
    axes = figure.subplots()
    shades = plotting.ramp(4)
    for i, name in enumerate(study.models):
        found = study.of(name).shells
        for j, shell in enumerate(found):
            place = i + 0.17 * (j - (len(found) - 1) / 2)
            low, high = float(shell.inside.low), float(shell.inside.high)
            colour = shades[round(j * (len(shades) - 1) / max(1, len(found) - 1))]
            axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axes.plot([shell.rate.value], [place], "o", color=colour, markersize=4.5)
            if i == 0 and j in (0, len(found) - 1):
                axes.annotate(
                    "nearest" if j == 0 else "farthest", (high, place), xytext=(6, 0), textcoords="offset points",
                    fontsize=8, va="center", color=colour,
                )  # fmt: skip
    axes.axvline(1 - study.delta, color=plotting.colour("ink"), linewidth=0.9)
    axes.set_yticks(range(len(study.models)), study.models)
    axes.set_ylim(len(study.models) - 0.5, -0.5)
    axes.set_xlabel("share of next states inside")


def _needed(figure: Figure, study: Findings) -> None:
    axes = figure.subplots()
    trials = study.rows[2] * len(study.states)
    ends = [-_normal(0.5 * (1 - p ** (1 / trials))) for p in (0.025, 0.975)]
    axes.axvspan(*ends, color=plotting.colour("faint"), linewidth=0)
    for i, name in enumerate(study.models):
        one = study.of(name)
        if math.isfinite(one.needed):
            axes.plot([1, one.needed], [i, i], color=_colour(one, study.delta), linewidth=2)
            axes.plot([one.needed], [i], "o", color=_colour(one, study.delta))
            axes.annotate(f"{one.needed:.3g}", (one.needed, i), xytext=(6, 0), textcoords="offset points", va="center")
        else:
            axes.annotate("none suffices", (1.2, i), va="center")
    axes.set_yticks(range(len(study.models)), study.models)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="multiple of σ that holds every test row", xlim=(0.8, None))
    axes.margins(x=0.15)


def _normal(level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(level))
