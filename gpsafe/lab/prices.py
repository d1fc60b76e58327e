"""What the theorems cost: n*, κ, and where a bound says nothing at all.

One plant of the shape of `reference_1d`: a kernel of deviation s on [−1, 1]^d, noise σ, costs in [0, C] with C = 1.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.confidence import Mixture
from gpsafe.confidence.info_gain import Greedy, greedy
from gpsafe.cost.total_variation import parting_rate, simulation_gap
from gpsafe.lab.explorer import Explorer, Slider, panels
from gpsafe.planning.explore import sufficient_episodes
from gpsafe.rkhs import kernels

DIMS, COUNT, DOMAIN = 6, 200, 250
DELTA, DEVIATION = 0.1, 0.1  # δ; s, the deviation of the kernel
MEASURED = 8  # episodes in which the mixture bound covers 90 % of the safe policies of `reference_1d` (docs/results.md)
SCALES, NOISES, NORMS = (0.5, 0.7, 1.0, 1.4, 2.0), (0.003, 0.01, 0.03, 0.1), (0.5, 1.0, 2.0, 4.5, 9.0)
HORIZONS = (5, 10, 20, 50, 100, 200)


@lru_cache(maxsize=128)
def design(dim: int, scale: float, noise: float) -> Greedy:
    """The design of largest variance on points of [−1, 1]^d, `COUNT` steps: no design leaves much less."""
    points = 2 * torch.rand(DOMAIN, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(dim)) - 1
    return greedy(kernels.cross(kernels.rbf(scale, DEVIATION**2), points, points), COUNT, noise**2)


def beta(gain: Tensor, norm: float) -> Tensor:
    """β of the mixture bound on λ = R² = σ²."""
    one = torch.ones((), dtype=torch.float64)
    bound = Mixture(rkhs_norm=norm, subgaussian=1.0, delta=DELTA)
    count = torch.zeros_like(gain)
    return bound.formula(gain, count, one, norm=norm * one, noise=one, log_inv_delta=math.log(1 / DELTA))


def width(dim: int, scale: float, noise: float, norm: float) -> Tensor:
    """Largest half-width of F_n on the domain after n = 0 … `COUNT` observations, never above Bs: (COUNT + 1,)."""
    run = design(dim, scale, noise)
    half = beta(run.gains, norm) * run.largest_variance.sqrt()
    return half.clamp_max(norm * DEVIATION)


def draw_widths(figure: Figure, *, scale: float, noise: float, norm: float, horizon: int) -> None:
    """How much of the prior F_n leaves, and of the trivial bound of the cost, by dimension and number of observations."""
    left, right = panels(figure, 1, 2, sharey=True)
    half = torch.stack([width(d, scale, noise, norm) for d in range(1, DIMS + 1)])  # (d, n)
    rates = parting_rate(half.unsqueeze(-1), torch.tensor([noise], dtype=torch.float64))
    loss = simulation_gap(rates.unsqueeze(-1).expand(-1, -1, horizon), 1.0) / horizon
    n, d = torch.arange(COUNT + 1), torch.arange(1, DIMS + 1)
    titles = ("half-width of $F_n$ over that without data", "what may be lost, over the trivial bound $TC$")
    for axes, table, title in zip((left, right), (half / (norm * DEVIATION), loss), titles, strict=True):
        levels = torch.linspace(0, 1, 11)
        axes.contourf(n, d, table, levels=levels, cmap=plotting.colour_map("amount").reversed(), extend="both")
        certified = axes.contour(n, d, table, levels=[0.01, 0.1, 0.5], colors=[plotting.colour("page")], linewidths=0.8)
        axes.clabel(certified, fmt=lambda value: f"{value:g}", fontsize=7)
        axes.set(xlabel="observations n", xticks=(0, 100, 200))
        axes.set_title(title, loc="left")
    left.set(ylabel="dimension of (x, u)", yticks=range(1, DIMS + 1))


def episodes(norm: float, noise: float, horizon: int, epsilon: float) -> tuple[float, float, float]:
    """n*, β and κ on one axis of [−1, 1] with length-scale 1, β that of 200 observations."""
    run = design(1, 1.0, noise)
    chosen = float(beta(run.gains[-1:], norm)[0])
    root = noise * math.sqrt(2 * math.pi)
    kappa = 1 + 2 * chosen * (horizon - 1) * DEVIATION / root
    found = sufficient_episodes(
        epsilon=epsilon,
        beta_of=chosen,
        horizon=horizon,
        ceiling=1.0,
        noise_std=torch.tensor([noise]),
        prior_std=torch.tensor([DEVIATION]),
        regularizer=noise**2,
        domain_eigenvalues=_eigenvalues(),
        outputs=1,
    )
    return found, chosen, kappa


@lru_cache(maxsize=1)
def _eigenvalues() -> Tensor:
    z = torch.linspace(-1, 1, 60, dtype=torch.float64).unsqueeze(-1)
    return torch.linalg.eigvalsh(kernels.cross(kernels.rbf(1.0, DEVIATION**2), z, z)).clamp_min(0.0)


def draw_episodes(figure: Figure, *, norm: float, noise: float, horizon: int) -> None:
    """n* against ε, beside the episodes that were needed; and what β and κ contribute."""
    many, parts = panels(figure, 1, 2, width_ratios=(1.6, 1))
    gaps = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]
    found = [episodes(norm, noise, horizon, gap) for gap in gaps]
    many.plot(gaps, [n for n, *_ in found], label="n*, which suffices", **plotting.look("claim").marked)
    many.plot(0.1, MEASURED, label="measured", **plotting.look("executed").points)
    many.set(xscale="log", yscale="log", xlabel="gap ε of the expected cost", ylabel="episodes", ylim=(1, 1e32))
    many.set(yticks=[1e0, 1e8, 1e16, 1e24, 1e32])
    many.minorticks_off()
    many.legend(loc="lower left")
    n, chosen, kappa = found[2]
    many.set_title(f"for ε = 0.1: n* = {n:.1e} episodes, against {MEASURED}", loc="left")
    places = {"β": chosen, "κ": kappa, "β² κ²": (chosen * kappa) ** 2}
    parts.barh(range(len(places)), list(places.values()), color=plotting.colour("claim"), height=0.5)
    for place, value in enumerate(places.values()):
        parts.annotate(f" {value:.3g}", (value, place), va="center")
    parts.set(xscale="log", xlim=(1, 1e14), ylim=(2.6, -0.6), xticks=[1, 1e5, 1e10], xlabel="factor")
    parts.set_yticks(range(len(places)), list(places))
    parts.minorticks_off()
    parts.set_title("n* grows with their product, squared", loc="left")


def draw_horizons(figure: Figure) -> None:
    """What may be lost over T steps if every step is off by a share of the noise: the trivial bound is reached at once."""
    (axes,) = panels(figure)
    ratio = torch.logspace(-4, 1, 200, dtype=torch.float64)
    rates = parting_rate(ratio.unsqueeze(-1), torch.ones(1, dtype=torch.float64))
    for horizon, shade in zip(HORIZONS, plotting.ramp(len(HORIZONS)), strict=True):
        lost = simulation_gap(rates.unsqueeze(-1).expand(-1, horizon), 1.0)
        axes.plot(ratio, lost, color=shade, label=f"T = {horizon}")
    plotting.limit(axes, 0.2, label="budget d = 0.2")
    axes.set(xscale="log", yscale="log", ylim=(1e-3, 300), xlim=(1e-4, 10))
    axes.set(xlabel="half-width of $F_n$ over the noise σ", ylabel="cost that may be added")
    plotting.label_ends(axes)


def width_explorer() -> Explorer:
    """Vacuity maps."""
    for noise in NOISES:
        for scale in SCALES:
            for dim in range(1, DIMS + 1):
                design(dim, scale, noise)
    return Explorer(
        draw_widths,
        (10.0, 3.7),
        scale=Slider("length-scale", SCALES, 1.0),
        noise=Slider("noise σ", NOISES, 0.01),
        norm=Slider("B", NORMS, 1.0),
        horizon=Slider("horizon T", HORIZONS, 20),
    )


def episode_explorer() -> Explorer:
    """n* and its parts."""
    return Explorer(
        draw_episodes,
        (10.0, 3.7),
        norm=Slider("B", NORMS, 4.5),
        noise=Slider("noise σ", NOISES, 0.01),
        horizon=Slider("horizon T", HORIZONS, 20),
    )
