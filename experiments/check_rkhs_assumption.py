"""Next check 1 of the paper: does the RKHS assumption ‖f*‖_k ≤ B hold for simulators, and what if it does not?

**Norms.** For values y of f at points X, ‖f‖²_k ≥ yᵀ(K + ρI)⁻¹y for every ρ ≥ 0 and every f in the RKHS (the right side is
min_g ‖g‖² + ‖g(X) − y‖²/ρ). The bound grows with nested points and with falling ρ; f is in the RKHS if and only if it
stays bounded at ρ = 0. One Cholesky factor serves all prefixes of a Sobol' sequence: with Lw = y the bound of the first n
points is Σ_{i ≤ n} w_i². Elements of a Gaussian RKHS are analytic and vanish at infinity, and on a box they are restrictions
of such functions; so no non-zero linear function, no sine and no simulator step is in it, whatever its length-scale (for
constants and polynomials: Steinwart et al. 2006; Minh 2010). The RKHS of a Matérn kernel on a box is a Sobolev space and
holds every smooth step, but a step with a clip only if the order of the space is below 3/2.

**Misspecification.** Plants of known norm on a line, explored with a wrong B or a wrong length-scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import linalg, plotting
from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.confidence import Mixture
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import System
from gpsafe.systems.cartpole import CartPole
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.pendulum import Pendulum
from gpsafe.testbed.experiment import Experiment, Piece, Record, Report, Run, Table

from ._report import line
from ._report.statistics import Share, draw_shares, grouped

NORM_SEEDS = 3  # later seeds only add plants on a line
FAMILIES = {"typical": line.typical, "dormant": line.dormant}
PUBLISHED = {"pendulum": (1.0, 1.0, 6.0), "cart-pole": (14.8, 13.8, 13.8, 16.4, 17.5)}


@dataclass(frozen=True)
class Arguments:
    """Sizes."""

    points: int = 2048
    """Points of the Sobol' sequence for norms."""
    ridges: tuple[float, ...] = (1e-3, 1e-6, 1e-9, 1e-12)
    """ρ, relative to the kernel's variance."""
    plants: int = 2
    """Plants on a line of each kind, per seed."""
    norms: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 2.0)
    """Believed B / true B."""
    lengthscales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Believed length-scale / true length-scale."""
    episodes: int = 8
    """Episodes of exploration."""
    cells: int = 260
    """Cells of the robust program."""


@dataclass(frozen=True, slots=True)
class Step:
    """A simulator step on a box of z = (x, u), less the identity or less a prior that is 10 % off."""

    name: str
    system: System
    region: Box
    prior: Any = None

    def values(self, z: Tensor) -> Tensor:
        """Targets of the learner, (N, d) → (N, nx), in units of the r.m.s. step without prior."""
        x, u = z[:, : self.system.nx], z[:, self.system.nx :]
        step = self.system.mean(x, u)
        own = step - (x if self.prior is None else self.prior(x, u))
        return own / (step - x).square().mean(0).sqrt()


def steps() -> list[Step]:
    """The simulators: pendulum and cart-pole with the published action repeat 2."""
    pendulum, cart, cart_prior = Pendulum(action_repeat=2), CartPole(action_repeat=2), CartPole(action_repeat=2).prior()
    turn = float(torch.pi)
    whole = _box(turn, 8.0, 1.0)
    free = _box(turn, pendulum.free_speed, 1.0)
    track = _box(1.5, turn, 5.0, 8.0, 1.0)
    double = DoubleIntegrator()
    return [
        Step("double integrator", double, _box(2.0, 2.0, 1.0)),
        Step("pendulum, with speed clip", pendulum, whole),
        Step("pendulum, below the clip", pendulum, free),
        Step("pendulum, below the clip, prior", pendulum, free, pendulum.prior()),
        Step("cart-pole", cart, track),
        Step("cart-pole, prior", cart, track, cart_prior),
    ]


def _box(*half: float) -> Box:
    limits = torch.tensor(half, dtype=torch.float64)
    return Box(-limits, limits)


def kernel(name: str, dim: int) -> Kernel:
    """Unit-variance kernels on axes scaled to [−1, 1]: "rbf ℓ" or "matern-ν ℓ"."""
    kind, scale = name.split()
    lengths = [float(scale)] * dim
    return kernels.rbf(lengths) if kind == "rbf" else kernels.matern({"3/2": 1.5, "5/2": 2.5}[kind[7:]], lengths)


NAMES = ("rbf 0.5", "rbf 1", "rbf 2", "matern-5/2 1", "matern-3/2 1")


def lower_norms(of: Kernel, points: Tensor, values: Tensor, ridge: float) -> Tensor:
    """√(yᵀ(K + ρI)⁻¹y) for every prefix of the points, (n, d), (n, p) → (n, p): lower bounds of the RKHS norm."""
    gram = kernels.cross(of, points, points) + ridge * torch.eye(len(points), dtype=torch.float64)
    white = torch.linalg.solve_triangular(linalg.cholesky(gram, "lower_norms"), values, upper=False)
    return white.square().cumsum(0).sqrt()


def sobol(count: int, dim: int, seed: int) -> Tensor:
    """Scrambled Sobol' points of [−1, 1]^dim; prefixes are nested."""
    return 2 * torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(count, dtype=torch.float64) - 1


def run(arguments: Arguments, seed: int, record: Record) -> None:
    """Norms of the simulators, the published recipe, and misspecified learners."""
    jobs: list[tuple[str, Callable[[], Piece]]] = []
    if seed < NORM_SEEDS:
        jobs += [(f"norms/step-{i}", partial(_norms, arguments, step, seed)) for i, step in enumerate(steps())]
        jobs.append(("recipe", partial(_recipe, arguments, seed)))
    for family in FAMILIES:
        jobs += [(f"line/{family}-{k}", partial(_line, arguments, family, seed, k)) for k in range(arguments.plants)]
    for i, (key, compute) in enumerate(jobs):
        record.progress(i, len(jobs), key)
        record.piece(key, compute)
    record.progress(len(jobs), len(jobs), "done")


def _norms(arguments: Arguments, step: Step, seed: int) -> Piece:
    unit = sobol(arguments.points, step.region.dim, seed)
    values = step.values(unit * step.region.upper)
    counts = [2**i for i in range(4, arguments.points.bit_length())]
    rows = []
    for name in NAMES:
        for ridge in arguments.ridges:
            curve = lower_norms(kernel(name, step.region.dim), unit, values, ridge)
            for count in counts:
                for output, norm in enumerate(curve[count - 1].tolist()):
                    row = {"step": step.name, "kernel": name, "ridge": ridge, "n": count, "output": output}
                    rows.append(row | {"norm": norm})
    return Piece(rows)


def _recipe(arguments: Arguments, seed: int) -> Piece:
    """As published: observations with cos and sin, inputs and differences standardised, 1000 points, ρ = 1e-3."""
    rows: list[dict[str, float | str]] = []
    generator = torch.Generator().manual_seed(seed)
    count = min(1000, arguments.points)
    for name, step, angle in (("pendulum", steps()[1], 0), ("cart-pole", steps()[4], 1)):
        x = step.region.sample(count, generator)
        state, control = x[:, : step.system.nx], x[:, step.system.nx :]
        seen, following = (_observe(v, angle) for v in (state, step.system.mean(state, control)))
        z = _standard(torch.cat([seen, control], dim=-1))
        y = _standard(following - seen)
        for scale in (0.5, 1.0, 2.0, 4.0):
            own = kernels.rbf([scale] * z.shape[-1])
            for ridge in arguments.ridges[:3]:
                gram = kernels.cross(own, z, z)
                factor = linalg.cholesky(gram + ridge * torch.eye(count, dtype=torch.float64), "recipe")
                weights = torch.cholesky_solve(y, factor)
                norms = (weights * (gram @ weights)).sum(0).clamp_min(0).sqrt().tolist()
                row = {"system": name, "lengthscale": scale, "ridge": ridge}
                rows.append(row | {f"norm_{j}": norm for j, norm in enumerate(norms)})
    return Piece(rows)


def _observe(x: Tensor, angle: int) -> Tensor:
    theta = x[:, angle : angle + 1]
    return torch.cat([x[:, :angle], theta.cos(), theta.sin(), x[:, angle + 1 :]], dim=-1)


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0)


def _line(arguments: Arguments, family: str, seed: int, number: int) -> Piece:
    return Piece(list(_trials(arguments, family, seed, number)))


def _trials(arguments: Arguments, family: str, seed: int, number: int) -> Iterator[dict[str, Any]]:
    start = 100_003 * seed + number
    residual = FAMILIES[family](torch.Generator().manual_seed(start))
    system = line.plant(residual)
    policies = line.set_points(torch.linspace(0.0, 1.15, 24))
    truth = line.truth(system, policies, cells=4 * arguments.cells)
    beliefs = [("B", factor, 1.0) for factor in arguments.norms]
    beliefs += [("length-scale", 1.0, factor) for factor in arguments.lengthscales]
    box = torch.tensor([1.3, 1.0], dtype=torch.float64)
    points = sobol(512, 2, seed) * box + torch.tensor([0.5, 0.0], dtype=torch.float64)
    values = residual(points).unsqueeze(-1)
    for kind, norm, scale in beliefs:
        believed = kernels.rbf([0.4 * scale, 2.0 * scale], variance=0.05**2)
        claimed = norm * float(system.rkhs_norm[0])
        bound = Mixture(rkhs_norm=claimed, subgaussian=line.NOISE, delta=0.1)
        model = GP.create(believed, line.NOISE**2, nx=1, nu=1, noise_std=system.noise_std, prior=system.known)
        algorithm = ActSafe(
            system, policies, [0, 1, 2, 3], model, bound, line.program(system, arguments.cells),
            episodes=arguments.episodes,
        )  # fmt: skip
        found = algorithm.run(torch.Generator().manual_seed(start + 1))
        least = float(lower_norms(believed, points, values, 1e-10 * 0.05**2)[-1, 0])
        yield {
            "family": family,
            "belief": kind,
            "factor": norm if kind == "B" else scale,
            "norm_ratio": least / claimed,
            **line.outcome(algorithm, truth, found, residual),
        }


def report(runs: Sequence[Run]) -> Report:
    """Growth of the norm bounds, the published recipe, and what misspecification costs."""
    rows = [row for one in runs for piece in one.pieces.values() for row in piece.rows]
    norms = [row for row in rows if "step" in row]
    recipe = [row for row in rows if "system" in row]
    trials = [row for row in rows if "family" in row]
    figure = plotting.figure(13.0, 7.0)
    panels = [part.subplots(1, 3) for part in figure.subfigures(2, 1)]  # labels of one row take no room of the other
    least, looks = min(row["ridge"] for row in norms), plotting.looks(step.name for step in steps())
    for axes, name in zip(panels[0], ("rbf 1", "matern-5/2 1", "matern-3/2 1"), strict=True):
        for step in steps():
            curve = _largest(norms, step.name, name, least)
            axes.plot(list(curve), list(curve.values()), label=step.name, **looks[step.name].marked)
        axes.set(xlabel=f"points n (ρ = {least:g})", ylabel="lower bound of ‖f‖_k", xscale="log", yscale="log",
                 title=f"{name.replace(' ', ', ℓ = ')}")  # fmt: skip
    plotting.label_ends(panels[0][2])
    axes = panels[1][0]
    top = max(row["n"] for row in norms)
    for name, style in (("rbf 0.5", "-"), ("rbf 1", "--"), ("rbf 2", "-."), ("matern-5/2 1", ":")):
        for step in (steps()[0], steps()[2], steps()[4]):
            ridges = sorted({row["ridge"] for row in norms})
            height = [_largest(norms, step.name, name, ridge)[top] for ridge in ridges]
            axes.plot(ridges, height, color=looks[step.name].colour, linestyle=style, label=f"{step.name}: {name}")
    axes.set(xlabel="ρ (jitter)", ylabel="lower bound of ‖f‖_k", xscale="log", yscale="log", title=f"n = {top}")
    plotting.label_ends(axes)
    for axes, belief in zip(panels[1][1:], ("B", "length-scale"), strict=True):
        _misspecified(axes, trials, belief)
    return Report(
        figures={"rkhs-assumption": figure},
        tables={"norms": _norm_table(norms), "recipe": _recipe_table(recipe), "misspecified": _trial_table(trials)},
    )


def _largest(rows: list[Any], step: str, name: str, ridge: float) -> dict[int, float]:
    """Mean over seeds of the largest norm among outputs, by n."""
    chosen = [r for r in rows if r["step"] == step and r["kernel"] == name and r["ridge"] == ridge]
    by_output = {key: np.mean([r["norm"] for r in g]) for key, g in grouped(chosen, "n", "output").items()}
    counts = sorted({n for n, _ in by_output})
    return {n: float(max(v for (m, _), v in by_output.items() if m == n)) for n in counts}


def _norm_table(rows: list[Any]) -> Table:
    least, table = min(row["ridge"] for row in rows), []
    for step in steps():
        for name in NAMES:
            curve = _largest(rows, step.name, name, least)
            counts = list(curve)
            growth = 100 * (curve[counts[-1]] / curve[counts[-2]] - 1)
            rough = _largest(rows, step.name, name, max(row["ridge"] for row in rows))[counts[-1]]
            quarter = curve[counts[max(0, len(counts) - 4)]]
            table.append((step.name, name, f"{quarter:.2f}", f"{curve[counts[-1]]:.2f}", f"{growth:.0f} %",
                          f"{rough:.2f}"))  # fmt: skip
    top = max(row["n"] for row in rows)
    columns = ("step", "kernel, ℓ", f"‖f‖ ≥ (n = {top // 8})", f"‖f‖ ≥ (n = {top})", "growth over the last doubling",
               f"‖f‖ ≥ at the largest ρ (n = {top})")  # fmt: skip
    return Table(columns=columns, rows=table, caption="Largest output, in units of its r.m.s. step; smallest ρ.")


def _recipe_table(rows: list[Any]) -> Table:
    table = []
    for (system, scale, ridge), group in grouped(rows, "system", "lengthscale", "ridge").items():
        keys = [key for key in group[0] if key.startswith("norm_")]
        ours = ", ".join(f"{np.mean([r[key] for r in group]):.1f}" for key in keys)
        table.append((system, f"{scale:g}", f"{ridge:g}", ours, ", ".join(f"{v:g}" for v in PUBLISHED[system])))
    caption = (
        "1000 uniform points of the whole box, standardised; published: ρ = 1e-3, fitted length-scales (not published), "
        "points from their own box."
    )
    columns = ("system", "ℓ (standardised)", "ρ", "interpolant norms", "published")
    return Table(columns=columns, rows=table, caption=caption)


def _trial_table(rows: list[Any]) -> Table:
    table = [
        (
            family, f"{belief} × {factor:g}", len(group), f"{np.mean([r['norm_ratio'] for r in group]):.3g}",
            str(Share.of(r["escaped"] for r in group)), str(Share.of(r["unsafe_members"] for r in group)),
            str(Share.of(r["unsafe_executed"] for r in group)), str(Share.of(r["falsified"] for r in group)),
            f"{np.mean([r['safe_members'] / r['true_safe'] for r in group]):.2f}",
        )
        for (family, belief, factor), group in grouped(rows, "family", "belief", "factor").items()
    ]  # fmt: skip
    columns = (
        "plants", "believed", "runs", "‖f‖ in the believed kernel (lower bound) / believed B", "f* left F_n",
        "unsafe policy certified", "unsafe policy executed", "F_n found empty", "safe |S_n|/|S*|",
    )  # fmt: skip
    return Table(columns=columns, rows=table)


def _misspecified(axes: Any, rows: list[Any], belief: str) -> None:
    for key, label, noun in (("escaped", "f* left F_n", "escaped"), ("unsafe_members", "unsafe certified", "unsafe certified"),
                             ("falsified", "F_n found empty", "falsified")):  # fmt: skip
        for family, style in (("typical", "-"), ("dormant", ":")):
            groups = grouped([r for r in rows if r["belief"] == belief and r["family"] == family], "factor")
            factors = sorted(factor for (factor,) in groups)
            shares = [Share.of(r[key] for r in groups[(factor,)]) for factor in factors]
            draw_shares(
                axes, factors, shares, label=f"{label}, {family}", noun=replace(plotting.look(noun), dash=style)
            )
    axes.set(xlabel=f"believed {belief} / true {belief}", ylabel="share of runs", xscale="log", ylim=(-0.03, 1.03),
             title=f"line, wrong {belief}")  # fmt: skip
    factors = sorted({r["factor"] for r in rows if r["belief"] == belief})
    axes.set_xticks(factors, [f"{v:g}" for v in factors])
    axes.minorticks_off()
    plotting.label_ends(axes)


EXPERIMENT = Experiment(
    name="check-rkhs-assumption",
    title="RKHS norms of simulators, and learners with a wrong norm or length-scale",
    arguments=Arguments,
    budgets={
        "smoke": Arguments(
            points=64, ridges=(1e-3, 1e-6), plants=1, norms=(1.0,), lengthscales=(1.0,), episodes=1, cells=60
        ),
        "quick": Arguments(),
        "full": Arguments(points=8192, plants=40, episodes=12),
    },
    seeds={"smoke": 1, "quick": 10, "full": 10},
    run=run,
    report=report,
)
