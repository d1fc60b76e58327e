"""Open question 4 of the paper: can other uncertainty models stand in for the Gaussian process?

A GP with its theorem, a sparse variational GP, a bootstrap ensemble, Monte-Carlo dropout and a last-layer Laplace
approximation see the same data. First, calibration: is the truth within the error bars at a point, and is it there *everywhere
at once*, which is what safety needs? Three multiples of σ: the theorem's β (for the GP on the same data), σ-scaling and split
conformal prediction, both recalibrated on held-out transitions to 90 %. Second, safety: the same error bars drive the safe
set of a finite policy class on a line, and the truth of every policy is known.

For every model but the GP with β the bars are heuristic: what is certified with them assumes `calibrated` (f* within the
bars at every point of every episode). All share the RKHS norm in two places that are sound for the true plant: the cap
±B√k on residuals and the change of f* inside a cell of the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor

from gpsafe import plotting, rkhs
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.enclosure import Enclosure
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import GP, DynamicsModel, Ensemble, Training
from gpsafe.models.dropout import Dropout
from gpsafe.models.laplace import LastLayerLaplace
from gpsafe.models.sparse_gp import SparseGP
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.safety.safe_set import SafePolicySet
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_pendulum
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report import line
from ._report.statistics import Share, grouped, plus_minus

DELTA = 0.1
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
NAMES = ("GP", "sparse GP", "ensemble", "MC dropout", "Laplace")
SCALES = ("theorem's β", "σ-scaling", "conformal")
FAMILIES = {"typical": line.typical, "dormant": line.dormant}
SETTINGS = ("line, data everywhere", "line, data on the left", "pendulum")


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    steps: int = 200
    """Gradient steps of every training of a network."""
    data: int = 80
    """Training transitions of the calibration part (three times as many for the pendulum); half as many to recalibrate."""
    episodes: int = 6
    """Episodes of the safety part, after four with initially safe policies."""
    cells: int = 200
    """Cells of the robust program; the truth is computed on five times as many."""
    policies: int = 24
    """Set-points from 0 to 1.15 (the limit is 1), of which those below 0.15 are taken to be safe at the start."""


# ------------------------------------------------------------------------------------------------ models
def build(name: str, system: RKHSTwin, arguments: Arguments, generator: torch.Generator) -> DynamicsModel:
    """The model without data; all know the prior, the noise (the ensemble learns it) and which outputs to learn."""
    nx, nu, noise = system.nx, system.nu, system.noise_std
    shared = {"noise_std": noise, "outputs": system.outputs, "prior": system.known}
    network = {"generator": generator, "hidden": (16, 16), "steps": arguments.steps, "learning_rate": 0.02}
    if name == "GP":
        regularizer = [float(noise[j]) ** 2 for j in system.outputs]
        return GP.create(system.kernels, regularizer, nx=nx, nu=nu, **shared)
    if name == "sparse GP":
        return SparseGP.create(system.kernels, nx, nu, size=12 if nx == 1 else 25, **shared)
    if name == "ensemble":
        training = Training(epochs=1, steps=arguments.steps, learning_rate=0.02)
        return Ensemble.create(nx, nu, generator=generator, hidden=(16, 16), training=training, prior=system.known)
    if name == "MC dropout":
        return Dropout.create(nx, nu, masks=20, **shared, **network)
    return LastLayerLaplace.create(nx, nu, **shared, **network)


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """Error bars for the learned residual: half-width factor · √(σ² + floor²)."""

    model: DynamicsModel
    system: RKHSTwin
    factor: float
    floor: Tensor

    def at(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean residual, half-width and σ at z (*b, d), (*b, p) each."""
        x, u = z[..., : self.system.nx], z[..., self.system.nx :]
        chosen = list(self.system.outputs)
        prediction = self.model.predict(x, u)
        std = prediction.std[..., chosen]
        return (
            (prediction.mean - self.system.known(x, u))[..., chosen],
            self.factor * (std.square() + self.floor.square()).sqrt(),
            std,
        )


def recalibrated(model: DynamicsModel, system: RKHSTwin, held_out: Transitions, scale: str) -> Bars:
    """Bars meant to hold y − μ (conformal) or f* − μ (σ-scaling) with probability 1 − δ at one random point.

    Conformal: the ⌈(m+1)(1−δ)⌉-th smallest score |y − μ|/√(σ² + σ_w²), infinite if m < 1/δ − 1; exact for exchangeable points.
    σ-scaling: the s of largest likelihood of y ~ N(μ, s²σ² + σ_w²), times the Gaussian quantile.
    """
    chosen = list(system.outputs)
    noise = system.noise_std[chosen]
    prediction = model.predict(held_out.x, held_out.u)
    gap, std = (held_out.x_next - prediction.mean)[:, chosen], prediction.std[:, chosen]
    if scale == "conformal":
        scores = (gap.abs() / (std.square() + noise.square()).sqrt()).amax(-1).sort().values
        rank = math.ceil((len(scores) + 1) * (1 - DELTA))
        factor = math.inf if rank > len(scores) else float(scores[rank - 1])
        return Bars(model, system, factor, noise)
    candidates = torch.logspace(-1, 1.5, 60, dtype=torch.float64).reshape(-1, 1, 1)
    variance = candidates.square() * std.square() + noise.square()
    likelihood = -0.5 * (gap.square() / variance + variance.log()).sum((1, 2))
    factor = float(candidates[likelihood.argmax()]) * float(stats.norm.ppf(1 - DELTA / 2))
    return Bars(model, system, factor, torch.zeros_like(noise))


def theorem_beta(system: RKHSTwin, model: GP) -> float:
    """β_n of the mixture bound with the true norm and noise."""
    noise = float(system.noise_std[system.outputs[0]])
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=noise, delta=DELTA)
    return float(bound.beta(model)[0])


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


def _task(
    setting: str, count: int, generator: torch.Generator
) -> tuple[RKHSTwin, Callable[[int], Transitions], Tensor, Tensor]:
    """Plant, source of transitions, and points z with the true residual there."""
    if setting == "pendulum":
        system = reference_pendulum()
        low, high = vector(-1.2, -3.0, -1.0), vector(1.2, 3.0, 1.0)
        z = rkhs.grid(low, high, (13, 13, 7))
        truth = system.residual_fn(z)
    else:
        residual = line.typical(generator)
        system = line.plant(residual)
        low, high = vector(-0.8, -1.0), vector(1.8 if setting.endswith("everywhere") else 0.5, 1.0)
        z = line.probe()
        truth = residual(z).unsqueeze(-1)

    def draw(n: int) -> Transitions:
        points = low + (high - low) * torch.rand(n, len(low), dtype=torch.float64, generator=generator)
        x, u = points[:, : system.nx], points[:, system.nx :]
        return Transitions(x, u, system.mean(x, u) + sample_noise(system.noise_std, (n,), generator))

    return system, draw, z, truth


def _calibration(arguments: Arguments, setting: str, seed: int) -> Iterator[dict[str, Any]]:
    generator = torch.Generator().manual_seed(100_003 * seed + SETTINGS.index(setting))
    system, draw, z, truth = _task(setting, arguments.data, generator)
    count = arguments.data * (3 if setting == "pendulum" else 1)
    seen, held_out = draw(count), draw(count // 2)
    exact = build("GP", system, arguments, generator).condition(seen)
    assert isinstance(exact, GP)
    beta = theorem_beta(system, exact)
    zero = torch.zeros(len(system.outputs), dtype=torch.float64)
    for name in NAMES:
        model = exact if name == "GP" else build(name, system, arguments, generator).condition(seen)
        for scale in SCALES:
            bars = (
                Bars(model, system, beta, zero) if scale == SCALES[0] else recalibrated(model, system, held_out, scale)
            )
            mean, half, std = bars.at(z)
            error = (truth - mean).abs()
            row = {
                "setting": setting,
                "model": name,
                "scale": scale,
                "factor": bars.factor,
                "rmse": float(error.square().mean().sqrt()),
                "std": float(std.mean()),
                "half_width": float(half.mean()),
                "covered": float((error <= half).all(-1).double().mean()),
                "everywhere": bool((error <= half).all()),
                "needed_beta": float((error / std.clamp_min(1e-12)).max()),
            }
            quantiles = [float(stats.norm.ppf(0.5 + level / 2)) for level in LEVELS]
            shares = {
                f"within_{level}": float((error <= q * std).all(-1).double().mean())
                for level, q in zip(LEVELS, quantiles, strict=True)
            }
            yield {**row, **shares}


# ------------------------------------------------------------------------------------------------ safety
def _safety(arguments: Arguments, family: str, seed: int) -> Iterator[dict[str, Any]]:
    start = 100_003 * seed + 50 + list(FAMILIES).index(family)
    residual = FAMILIES[family](torch.Generator().manual_seed(start))
    system = line.plant(residual)
    targets = torch.linspace(0.0, 1.15, arguments.policies, dtype=torch.float64)
    policies, given = line.set_points(targets), torch.nonzero(targets <= 0.1501).flatten().tolist()
    truth = line.truth(system, policies, cells=5 * arguments.cells)
    program = line.program(system, arguments.cells)
    before = ConfidenceSet(line.sound_bound(system, delta=DELTA)).update(line.model(system))
    enclosure = program.enclosure(before, policies)
    for name in NAMES:
        for scale in (SCALES[0], SCALES[2]):
            generator = torch.Generator().manual_seed(start + 1)  # the same noise for all

            def episode(i: int, generator: torch.Generator = generator) -> tuple[Transitions, int]:
                noise = sample_noise(system.noise_std, (system.horizon, 1, 1), generator)
                one = policies.select(torch.tensor([i]))
                states, inputs = closed_loop(system.mean, one, system.initial_state, noise)
                return transitions(states[0, 0], inputs[0, 0]), int(system.cost(states[0, 0, :-1]).sum() > 0)

            data = [episode(given[i % len(given)])[0] for i in range(4)]
            safe = SafePolicySet.initial(policies.num, given, budget=system.budget)
            executed, violating, escaped = [], 0, False
            for number in range(1, arguments.episodes + 1):
                seen = sum(data[1:], start=data[0])
                bars = _bars(name, scale, system, arguments, seen, start + number)
                escaped = escaped or _escapes(bars, residual)
                inside = _tightened(enclosure, bars)
                safe = safe.expand(program.upper(inside), episode=number, bound=f"{name}, {scale}")
                members = safe.members
                _, _, std = bars.at(inside.select(members).z)
                chosen = int(members[program.exploration(inside.select(members), std.norm(dim=-1)).argmax()])
                fresh, violated = episode(chosen)
                executed.append(chosen)
                violating += violated
                data.append(fresh)
            unsafe, truly = truth.unsafe(system.budget), truth.safe(system.budget)
            yield {
                "family": family,
                "model": name,
                "scale": scale,
                "escaped": escaped,
                "unsafe_members": int(unsafe[safe.members].sum()),
                "unsafe_executed": int(unsafe[executed].sum()),
                "violating_episodes": violating,
                "episodes": len(executed),
                "size": len(safe),
                "safe_members": int(truly[safe.members].sum()),
                "true_safe": int(truly.sum()),
                "true_unsafe": int(unsafe.sum()),
            }


def _bars(name: str, scale: str, system: RKHSTwin, arguments: Arguments, seen: Transitions, seed: int) -> Bars:
    """Bars from all data so far; to recalibrate, a random quarter of them is held out of the training."""
    generator = torch.Generator().manual_seed(seed)
    empty = build(name, system, arguments, generator)
    if scale == SCALES[0]:
        exact = build("GP", system, arguments, generator).condition(seen)
        assert isinstance(exact, GP)
        model = exact if name == "GP" else empty.condition(seen)
        return Bars(model, system, theorem_beta(system, exact), torch.zeros(1, dtype=torch.float64))
    order = torch.randperm(len(seen), generator=generator)
    cut = len(seen) // 4
    held_out, rest = (Transitions(seen.x[i], seen.u[i], seen.x_next[i]) for i in (order[:cut], order[cut:]))
    return recalibrated(empty.condition(rest), system, held_out, scale)


def _escapes(bars: Bars, residual: Callable[[Tensor], Tensor]) -> bool:
    z = line.probe()
    mean, half, _ = bars.at(z)
    return bool(((residual(z).unsqueeze(-1) - mean).abs() > half).any())


def _tightened(enclosure: Enclosure, bars: Bars) -> Enclosure:
    """The bars at the cells, cut to ±B√k; only the newest, for heuristic bars need not intersect."""
    mean, half, _ = bars.at(enclosure.z)
    mean = mean.clamp(-enclosure.cap, enclosure.cap)
    low, high = torch.maximum(mean - half, -enclosure.cap), torch.minimum(mean + half, enclosure.cap)
    return replace(enclosure, low=low, high=high)


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
            setting, model, scale, f"{np.mean([r['factor'] for r in group]):.2f}",
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
            "rkhs_norm, subgaussian" if (model, scale) == ("GP", SCALES[0]) else "calibrated",
        )
        for (family, model, scale), group in safety.items()
    ]  # fmt: skip
    return Report(
        figures={"models": figure},
        tables={
            "calibration": Table(
                columns=(
                    "task", "model", "multiple of σ", "multiple", "RMSE × 10³", "mean half-width × 10³",
                    "points covered", "f* covered everywhere",
                ),
                rows=first,
                caption=(
                    f"Recalibrated multiples aim at {1 - DELTA:.0%} of points. Shares of seeds with 95 % Clopper–Pearson "
                    "intervals; 'everywhere' is over the points of a grid, so it can only be too favourable. σ-scaling "
                    "sees σ only through noisy targets, which say little where the noise is larger."
                ),
            ),
            "safety": Table(
                columns=(
                    "plants", "model", "multiple of σ", "f* left the bars", "unsafe policy certified",
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
            group = groups[setting, model, SCALES[0]]
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
            values = [r["needed_beta"] for r in groups[setting, model, SCALES[0]]]
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
        beta = float(np.mean([r["factor"] for r in groups[setting, "GP", SCALES[0]]]))
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
        for k, scale in enumerate((SCALES[0], SCALES[2])):
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
        for k, scale in enumerate((SCALES[0], SCALES[2])):
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
        "full": Arguments(steps=1000, data=120, episodes=12, cells=400),
    },
    seeds={"smoke": 1, "quick": 20, "full": 100},
    run=run,
    report=report,
)
