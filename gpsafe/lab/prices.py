"""What the theorems cost: n*, κ, and where a bound says nothing at all.

One plant of the shape of `reference_1d`: a kernel of deviation s on [−1, 1]^d, noise σ, costs in [0, C] with C = 1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

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
BUDGET = 0.2  # d
HORIZONS = (5, 10, 20, 50, 100)


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


@lru_cache(maxsize=1)
def _losses() -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """What may be lost, over TC, if each of T steps is off by a share of the noise: log10 of shares, horizons, (T, shares);
    and the largest share for which it is within the budget, for each T.
    """
    exponents, horizons = torch.linspace(-4, 1.5, 100, dtype=torch.float64), torch.arange(2, 101, 2)
    rates = parting_rate(10 ** exponents.unsqueeze(-1), torch.ones(1, dtype=torch.float64))
    lost = [simulation_gap(rates.unsqueeze(-1).expand(-1, int(t)), 1.0) / int(t) for t in horizons]
    largest = [float(exponents[(row * t <= BUDGET).nonzero().max()]) for row, t in zip(lost, horizons, strict=True)]
    return exponents, horizons, torch.stack(lost), largest


def draw_widths(figure: Figure, *, scale: float, noise: float, norm: float, horizon: int) -> None:
    """How much of the prior F_n leaves, by dimension and number of observations; and what that is worth over T steps."""
    left, right = panels(figure, 1, 2)
    half = torch.stack([width(d, scale, noise, norm) for d in range(1, DIMS + 1)])  # (d, n)
    shades, extent = plotting.colour_map("amount"), (0, COUNT, 0.5, DIMS + 0.5)
    how: dict[str, Any] = {
        "origin": "lower",
        "aspect": "auto",
        "cmap": shades,
        "vmin": 0,
        "vmax": 1,
        "interpolation": "nearest",
    }
    left.imshow((half / (norm * DEVIATION)).numpy(), extent=extent, **how)
    for d in range(1, DIMS + 1):
        share = float(half[d - 1, -1]) / (norm * DEVIATION)
        left.annotate(f"{share:.2g}", (COUNT, d), xytext=(3, 0), textcoords="offset points", va="center")
    left.set(xlabel="observations n", ylabel="dimension of (x, u)", xticks=(0, 200), yticks=(1, 3, 6))
    left.set_title("half-width of F over that without data (at the right: after 200)", loc="left")
    exponents, horizons, lost, largest = _losses()
    ends = (float(exponents[0]), float(exponents[-1]), float(horizons[0]), float(horizons[-1]))
    right.imshow(lost.numpy(), extent=ends, **how)
    right.plot(largest, horizons, **plotting.look("certified").line)
    marks = plotting.looks([f"d = {d}" for d in (1, 2, 3)])
    for d, (name, style) in enumerate(marks.items(), 1):
        places = (half[d - 1, [10, 50, 200]] / noise).log10().clamp(*ends[:2])
        right.plot(
            places,
            [horizon] * 3,
            label=f"{name}, n = 10, 50, 200",
            markersize=6,
            markeredgecolor=plotting.colour("page"),
            **style.marked,
        )
    right.legend(loc="upper left")
    right.set(xlim=ends[:2], ylim=ends[2:], xlabel="half-width of F over the noise σ", ylabel="horizon T")
    right.set(yticks=(50, 100))
    right.set_xticks([-4, -2, 0], ["0.0001", "0.01", "1"])
    right.set_title("cost that may be added, over TC; left of the line: ≤ 0.2", loc="left")


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
    exponents = [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5]
    found = [episodes(norm, noise, horizon, 10**e) for e in exponents]
    many.plot(
        exponents, [math.log10(n) for n, *_ in found], label="n*, which suffices", **plotting.look("claim").marked
    )
    many.plot(
        -1, math.log10(MEASURED), label="measured (B = 4.5, σ = 0.01, T = 20)", **plotting.look("executed").points
    )
    many.set(xlabel="gap ε of the expected cost", ylabel="episodes", ylim=(0, 32))
    many.set_xticks([-2, -1, 0], ["0.01", "0.1", "1"])
    many.set_yticks([0, 8, 16, 24, 32], ["1", "10⁸", "10¹⁶", "10²⁴", "10³²"])
    many.legend(loc="upper right")
    n, chosen, kappa = found[2]
    many.set_title(f"for ε = 0.1: n* = {n:.1e} episodes, against {MEASURED}", loc="left")
    places = {"β": chosen, "κ": kappa, "β² κ²": (chosen * kappa) ** 2}
    parts.barh(range(len(places)), [math.log10(v) for v in places.values()], color=plotting.colour("claim"), height=0.5)
    for place, value in enumerate(places.values()):
        parts.annotate(f" {value:.3g}", (math.log10(value), place), va="center")
    parts.set(xlim=(0, 14), ylim=(2.6, -0.6), xlabel="factor")
    parts.set_xticks([0, 5, 10], ["1", "10⁵", "10¹⁰"])
    parts.set_yticks(range(len(places)), list(places))
    parts.set_title("n* grows with their product, squared", loc="left")


def width_explorer() -> Explorer:
    """Vacuity maps."""
    for noise in NOISES:
        for scale in SCALES:
            for dim in range(1, DIMS + 1):
                design(dim, scale, noise)
    _losses()
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
