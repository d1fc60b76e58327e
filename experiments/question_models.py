"""Open question 4 of the paper: can other uncertainty models stand in for the Gaussian process?

A GP with its theorem, a sparse variational GP, a bootstrap ensemble, Monte-Carlo dropout and a last-layer Laplace
approximation see the same data, fitted one way (`gpsafe.calibration.Fitter`). First, calibration: is the truth within the
claimed interval at a point, and is it there *everywhere at once*, which is what safety needs? Five ways to claim one
(`gpsafe.calibration.bars.SCALES`): a constant multiple of σ, the model's own interval, σ-scaling and split conformal
prediction, both recalibrated on held-out transitions to 90 %, and β of the GP's theorem (for the others borrowed from the GP
on the same data). Second, safety: the same claims drive the safe set of a finite policy class on a line, and the truth of every
policy is known.

For every model but the GP with β the claims are heuristic. All share the RKHS norm in two places that are sound for the true
plant: the cap ±B√k on residuals and the change of f* inside a cell of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor

from gpsafe import plotting, rkhs
from gpsafe.calibration import Effort, Fitter, bars, downstream, ratios, theory_band
from gpsafe.confidence import ConfidenceSet
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import GP, DynamicsModel
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_pendulum
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report import line
from ._report.statistics import Share, grouped, plus_minus

DELTA = 0.1
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
NAMES = {"GP": "gp", "sparse GP": "sparse-gp", "ensemble": "ensemble-5", "MC dropout": "dropout", "Laplace": "laplace"}
SCALES = {"theorem's β": "theory", "2σ": "plain", "raw": "raw", "σ-scaling": "scale", "conformal": "conformal"}
SHOWN = ("theorem's β", "conformal")  # of the scales, in the figure
FAMILIES = {"typical": line.typical, "dormant": line.dormant}
SETTINGS = ("line, data everywhere", "line, data on the left", "pendulum")


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    steps: int = 200
    """Gradient steps of every training of a network."""
    data: int = 80
    """Training transitions of the calibration part (three times as many for the pendulum); half as many to recalibrate."""
    episodes: int = 4
    """Episodes of the safety part, after four with initially safe policies."""
    cells: int = 200
    """Cells of the robust program; the truth is computed on five times as many."""
    policies: int = 24
    """Set-points from 0 to 1.15 (the limit is 1), of which those below 0.15 are taken to be safe at the start."""


# ----------------------------------------------------------------------------------------------- claims
class Claims:
    """All models of one system, fitted to the same rows, with any of the scales."""

    def __init__(self, system: RKHSTwin, seen: Transitions, seed: int, steps: int) -> None:
        effort = Effort(inducing=12 if system.nx == 1 else 25, hidden=(16, 16), steps=steps)
        self.system = system
        self.fitter = Fitter(
            seen, seed, prior=system.known, noise_std=system.noise_std, kernels=system.kernels, effort=effort,
            outputs=system.outputs,
        )  # fmt: skip
        self._models: dict[str, DynamicsModel] = {}

    def model(self, name: str) -> DynamicsModel:
        """Fitted once, by its name in `gpsafe.calibration.MODELS`."""
        if name not in self._models:
            self._models[name] = self.fitter.fit(name).model
        return self._models[name]

    def of(self, name: str, scale: str, held_out: Transitions | None = None) -> bars.Bars:
        """Those of a model; β comes with the true norm and noise."""
        band = None
        if SCALES[scale] == "theory":
            exact = self.model("gp")
            assert isinstance(exact, GP)
            noise = self.system.noise_std[list(self.system.outputs)]
            band = theory_band(exact, rkhs_norm=self.system.rkhs_norm, subgaussian=noise, delta=DELTA)
        return bars.bars(self.model(NAMES[name]), SCALES[scale], held_out, delta=DELTA, band=band)


# ------------------------------------------------------------------------------------------- calibration
def run(arguments: Arguments, seed: int, record: Record) -> None:
    """Both parts; plants and data are drawn from the seed and are the same for all models."""
    total = len(SETTINGS) + len(FAMILIES)
    for i, setting in enumerate(SETTINGS):
        record.progress(i, total, setting)
        record.piece(f"calibration/{i}", lambda s=setting: Piece(list(_calibration(arguments, s, seed)), {}))
    for i, family in enumerate(FAMILIES):
        record.progress(len(SETTINGS) + i, total, f"safety, {family}")
        record.piece(f"safety/{family}", lambda f=family: Piece(list(_safety(arguments, f, seed)), {}))
    record.progress(total, total, "done")


def _task(setting: str, generator: torch.Generator) -> tuple[RKHSTwin, Callable[[int], Transitions], Tensor]:
    """Plant, source of transitions, and points z at which f* is looked up."""
    if setting == "pendulum":
        system = reference_pendulum()
        low, high = vector(-1.2, -3.0, -1.0), vector(1.2, 3.0, 1.0)
        z = rkhs.grid(low, high, (13, 13, 7))
    else:
        system = line.plant(line.typical(generator))
        low, high = vector(-0.8, -1.0), vector(1.8 if setting.endswith("everywhere") else 0.5, 1.0)
        z = line.probe()

    def draw(n: int) -> Transitions:
        points = low + (high - low) * torch.rand(n, len(low), dtype=torch.float64, generator=generator)
        x, u = points[:, : system.nx], points[:, system.nx :]
        return Transitions(x, u, system.mean(x, u) + sample_noise(system.noise_std, (n,), generator))

    return system, draw, z


def _calibration(arguments: Arguments, setting: str, seed: int) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(100_003 * seed + SETTINGS.index(setting))
    system, draw, z = _task(setting, generator)
    count = arguments.data * (3 if setting == "pendulum" else 1)
    seen, held_out = draw(count), draw(count // 2)
    claims, chosen = Claims(system, seen, seed, arguments.steps), list(system.outputs)
    x, u = z[:, : system.nx], z[:, system.nx :]
    truth = system.mean(x, u)[:, chosen]
    for name in NAMES:
        told = claims.model(NAMES[name]).predict(x, u)
        mean, std = told.mean[:, chosen], told.std[:, chosen]
        needed = ratios(truth, mean, std)  # |f* − μ|/σ
        shares = {
            f"within_{level}": float((needed <= float(stats.norm.ppf(0.5 + level / 2))).all(-1).double().mean())
            for level in LEVELS
        }
        for scale in SCALES:
            claimed = claims.of(name, scale, held_out)
            low, high = (end[:, chosen] for end in claimed.of_function(x, u))
            inside = ~claimed.misses(system.mean, x, u)
            yield {
                "setting": setting, "model": name, "scale": scale,
                "rmse": float((truth - mean).square().mean().sqrt()), "std": float(std.mean()),
                "half_width": float(0.5 * (high - low).mean()), "covered": float(inside.double().mean()),
                "everywhere": bool(inside.all()), "needed_beta": float(needed.max()),
                "beta": float(claimed.function.max()) if claimed.function is not None else None, **shares,
            }  # fmt: skip


# ------------------------------------------------------------------------------------------------ safety
def _safety(arguments: Arguments, family: str, seed: int) -> Iterator[dict[str, Any]]:
    start = 100_003 * seed + 50 + list(FAMILIES).index(family)
    residual = FAMILIES[family](torch.Generator().manual_seed(start))
    system = line.plant(residual)
    targets = torch.linspace(0.0, 1.15, arguments.policies, dtype=torch.float64)
    policies, given = line.set_points(targets), torch.nonzero(targets <= 0.1501).flatten().tolist()
    truth = line.truth(system, policies, cells=5 * arguments.cells)
    unsafe, truly = truth.unsafe(system.budget), truth.safe(system.budget)
    program = line.program(system, arguments.cells)
    before = ConfidenceSet(line.sound_bound(system, delta=DELTA)).update(line.model(system))
    enclosure = program.enclosure(before, policies)
    for name in NAMES:
        for scale in SCALES:

            def claims(seen: Transitions, number: int, name: str = name, scale: str = scale) -> bars.Bars:
                """From all rows; to recalibrate, a random quarter of them is held out of the training."""
                if SCALES[scale] not in bars.RECALIBRATED:
                    return Claims(system, seen, start + number, arguments.steps).of(name, scale)
                order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(start + number))
                cut = len(seen) // 4
                parts = (seen.select(i) for i in (order[:cut], order[cut:]))
                held_out, rest = parts
                return Claims(system, rest, start + number, arguments.steps).of(name, scale, held_out)

            found = downstream.explore(
                system, policies, program, enclosure, given, claims, line.probe(), episodes=arguments.episodes,
                generator=torch.Generator().manual_seed(start + 1),  # the same noise for all
            )  # fmt: skip
            members, executed = found.safe.members, list(found.executed)
            yield {
                "family": family, "model": name, "scale": scale, "escaped": found.escaped,
                "unsafe_members": int(unsafe[members].sum()), "unsafe_executed": int(unsafe[executed].sum()),
                "violating_episodes": found.violating, "episodes": len(executed), "size": len(found.safe),
                "safe_members": int(truly[members].sum()), "true_safe": int(truly.sum()), "true_unsafe": int(unsafe.sum()),
            }  # fmt: skip


# ------------------------------------------------------------------------------------------------ report
def report(runs: Sequence[Run]) -> Report:
    """Calibration, simultaneous coverage and safety of the models."""
    rows = [row for one in runs for key, piece in sorted(one.pieces.items()) for row in piece.rows]
    calibration = grouped([row for row in rows if "setting" in row], "setting", "model", "scale")
    safety = grouped([row for row in rows if "family" in row], "family", "model", "scale")
    figure = plotting.figure("screen", 6.5)
    panels = figure.subplots(2, 2)
    _reliability(panels[0, 0], calibration)
    _needed(panels[0, 1], calibration)
    _everywhere(panels[1, 0], calibration)
    _unsafe(panels[1, 1], safety)
    first = [
        (
            setting, model, scale,
            f"{np.mean([r['beta'] for r in group]):.2f}" if group[0]["beta"] is not None else "",
            plus_minus((1e3 * r["rmse"] for r in group), 1), plus_minus((1e3 * r["half_width"] for r in group), 1),
            f"{np.mean([r['covered'] for r in group]):.3f}", str(Share.of(r["everywhere"] for r in group)),
        )
        for (setting, model, scale), group in calibration.items()
    ]  # fmt: skip
    second = [
        (
            family, model, scale, str(Share.of(r["escaped"] for r in group)),
            str(Share.of(r["unsafe_members"] for r in group)), str(Share.of(r["unsafe_executed"] for r in group)),
            f"{sum(r['unsafe_executed'] for r in group)}/{sum(r['episodes'] for r in group)}",
            sum(r["violating_episodes"] for r in group),
            f"{np.mean([r['safe_members'] / r['true_safe'] for r in group]):.3f}",
            "rkhs_norm, subgaussian" if (model, scale) == ("GP", SHOWN[0]) else "the claim itself",
        )
        for (family, model, scale), group in safety.items()
    ]  # fmt: skip
    return Report(
        figures={"models": figure},
        tables={
            "calibration": Table(
                columns=(
                    "task", "model", "claim", "multiple of σ", "RMSE × 10³", "mean half-width × 10³",
                    "points covered", "f* covered everywhere",
                ),
                rows=first,
                caption=(
                    f"Raw, σ-scaled and conformal intervals aim at {1 - DELTA:.0%} of next states and are claimed of f*; 2σ "
                    "and β multiply the epistemic σ. Shares of seeds with 95 % Clopper–Pearson intervals; 'everywhere' is "
                    "over the points of a grid, so it can only be too favourable."
                ),
            ),
            "safety": Table(
                columns=(
                    "plants", "model", "claim", "f* left the claim", "unsafe policy certified",
                    "unsafe policy executed", "unsafe episodes", "episodes with a violation", "mean safe |S_n| / |S*|",
                    "assumes",
                ),
                rows=second,
                caption=(
                    "One plant per seed and family. Shares of runs with 95 % Clopper–Pearson intervals. An unsafe policy has "
                    "J_c > d = 0.2 for sure; a safe one may violate in an episode."
                ),
            ),
        },
    )  # fmt: skip


Groups = dict[tuple[Any, ...], list[Any]]


def _reliability(axes: Axes, groups: Groups) -> None:
    for setting, style in zip(SETTINGS, ("-", ":", "--"), strict=True):
        for model, look in plotting.looks(NAMES).items():
            group = groups[setting, model, SHOWN[0]]
            share = [np.mean([r[f"within_{level}"] for r in group]) for level in LEVELS]
            axes.plot(
                LEVELS,
                share,
                style,
                color=look.colour,
                marker=look.marker,
                markersize=3,
                label=model if style == "-" else None,
            )
    axes.plot([0.5, 1], [0.5, 1], color=plotting.colour("ink"), linewidth=0.8, label="calibrated")
    axes.set(
        xlabel="nominal probability (Gaussian quantile of σ)", ylabel="share of points with |f* − μ| ≤ qσ",
        title="at a point (dotted: left; dashed: pendulum)", ylim=(0, 1.02),
    )  # fmt: skip
    plotting.legend_beside(axes)


def _needed(axes: Axes, groups: Groups) -> None:
    looks = plotting.looks(SETTINGS)
    for i, setting in enumerate(SETTINGS):
        for j, model in enumerate(NAMES):
            values = [r["needed_beta"] for r in groups[setting, model, SHOWN[0]]]
            place = np.full(len(values), j + 0.25 * (i - 1)) + np.linspace(-0.06, 0.06, len(values))
            axes.plot(
                place,
                values,
                "o",
                color=looks[setting].colour,
                markersize=3,
                alpha=0.7,
                label=setting if j == 0 else None,
            )
        beta = float(np.mean([r["beta"] for r in groups[setting, "GP", SHOWN[0]]]))
        axes.axhline(beta, color=looks[setting].colour, linestyle="--", linewidth=0.9)
    axes.set_xticks(range(len(NAMES)), [name.replace(" ", "\n") for name in NAMES])
    axes.set(
        yscale="log", ylabel="max |f* − μ|/σ over the domain", title="multiple of σ needed (dashed: β)"
    )  # fmt: skip
    plotting.legend_beside(axes)


def _bars_of(axes: Axes, place: float, share: Share, *, color: str, hatch: str, label: str | None) -> None:
    low, high = share.interval
    axes.bar(place, share.value, 0.12, color=color, hatch=hatch, edgecolor=plotting.colour("page"), label=label)
    axes.errorbar(
        place,
        share.value,
        yerr=[[share.value - low], [high - share.value]],
        color=plotting.colour("ink"),
        capsize=2,
        linewidth=0.8,
    )


def _everywhere(axes: Axes, groups: Groups) -> None:
    looks = plotting.looks(SETTINGS)
    for i, setting in enumerate(SETTINGS):
        for k, scale in enumerate((SHOWN[0], SHOWN[1])):
            for j, model in enumerate(NAMES):
                share = Share.of(r["everywhere"] for r in groups[setting, model, scale])
                label = f"{setting}, {scale}" if j == 0 else None
                place = j + 0.14 * (2 * i + k - 2.5)
                _bars_of(axes, place, share, color=looks[setting].colour, hatch="//" if k else "", label=label)
    axes.axhline(1 - DELTA, color=plotting.colour("ink"), linestyle="--", linewidth=0.8)
    axes.set_xticks(range(len(NAMES)), [name.replace(" ", "\n") for name in NAMES])
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set(ylim=(0, 1.05), ylabel="share of seeds", title="f* in the bars everywhere (dashed: 1 − δ)")
    plotting.legend_beside(axes)


def _unsafe(axes: Axes, groups: Groups) -> None:
    for i, (family, look) in enumerate(plotting.looks(FAMILIES).items()):
        for k, scale in enumerate((SHOWN[0], SHOWN[1])):
            for j, model in enumerate(NAMES):
                share = Share.of(r["unsafe_executed"] for r in groups[family, model, scale])
                label = f"{family} plants, {scale}" if j == 0 else None
                place = j + 0.16 * (2 * i + k - 1.5)
                _bars_of(axes, place, share, color=look.colour, hatch="//" if k else "", label=label)
    axes.axhline(DELTA, color=plotting.colour("ink"), linestyle="--", linewidth=0.8)
    axes.set_xticks(range(len(NAMES)), [name.replace(" ", "\n") for name in NAMES])
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set(ylim=(0, 1.05), ylabel="share of runs", title="an unsafe policy was executed (dashed: δ)")
    plotting.legend_beside(axes)


EXPERIMENT = Experiment(
    name="question-models",
    title="Q4: other uncertainty models in place of the Gaussian process",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(steps=5, data=20, episodes=1, cells=40, policies=8),
        "quick": Arguments(),
        "full": Arguments(steps=1000, data=120, episodes=8, cells=400),
    },
    seeds={"smoke": 1, "quick": 10, "full": 100},
    run=run,
    report=report,
)
