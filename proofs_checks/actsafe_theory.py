"""Theory §4 (iii), (iv), (v): the inequalities between a certificate's width, optimism and the information gain.

(iii) and (iv) say something of every rectangular set {f : |f − μ| ≤ βσ} and every f* in it, so they are checked on random
ones as well as on posteriors, where f* may be any corner of the set. All values are exact (`proofs_checks._finite`), and
suprema are bracketed: the interval of each check contains the largest ratio left/right side, the threshold is 1.

(iii) has its expectation under f* for the robust program; for the total-variation bound it must be under
μ_n: J(μ) + pen(μ) − J(f*) ≤ 2 pen(μ), and pen(μ) may exceed pen(f*). `refuting_plant` shows it (ratio 1.06).

(v) holds path by path, Σ_n (Σ_t ‖σ_{n−1}(z_{n,t})‖)² ≤ A·g ≤ A Γ_{NT} with g the information gain of the points visited,
and so in expectation over the whole run. It does not hold almost surely for conditional expectations given the data of
the first n − 1 episodes: a place visited with small probability counts in every episode until it is visited.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from gpsafe import plotting
from gpsafe.confidence import Mixture
from gpsafe.confidence.info_gain import gram_info_gain
from gpsafe.cost.total_variation import simulation_gap
from gpsafe.models import GP
from gpsafe.rkhs import kernels, random_function
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, worst_of

from ._defects import FACTORS, around, past_one, times
from ._finite import FinitePlant
from ._regression import generator

ROOT = math.sqrt(2 * math.pi)
HORIZONS = (2, 3, 5, 10)
CELLS, POLICIES, DRAWS = 24, 8, 16
SHARDS: dict[Budget, int] = {"quick": 24, "full": 400}
CONTROL_SHARDS: dict[Budget, int] = {"quick": 3, "full": 12}


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """A plant, a rectangular set |f − mid| ≤ βσ, and members of it to play f*, all (P, S)."""

    plant: FinitePlant
    mid: Tensor
    std: Tensor
    beta: float
    scale: float  # s_max
    truths: Mapping[str, Tensor]
    about: str

    @property
    def half(self) -> Tensor:
        """βσ."""
        return self.beta * self.std

    @property
    def low(self) -> Tensor:
        """μ − βσ."""
        return self.mid - self.half

    @property
    def high(self) -> Tensor:
        """μ + βσ."""
        return self.mid + self.half


def _uniform(source: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(1, generator=source))


def draw(shard: int, index: int) -> Draw:
    """Every third a posterior after up to 40 steps of data, with f* too if it is inside; the others random sets."""
    source = generator(61, shard, index)
    noise = 10 ** _uniform(source, -1.5, -0.3)
    horizon = HORIZONS[index % 4]
    plant = FinitePlant.draw(CELLS, POLICIES, horizon, noise, source)
    drawn: Tensor | None = None
    if index % 3 == 0:
        scale = noise * 10 ** _uniform(source, -1.5, 0.5)
        kernel = kernels.rbf([_uniform(source, 0.05, 0.5), 1.0], variance=scale**2)
        corner = torch.ones(2, dtype=torch.float64)
        drawn = random_function(kernel, -corner, corner, norm=1.0, generator=source)(plant.z)
        model = GP.create(kernel, noise**2, nx=1, nu=1, noise_std=noise)
        for _ in range(int(torch.randint(5, (1,), generator=source)) * 10 // horizon):
            z, y = plant.roll(drawn, int(torch.randint(POLICIES, (1,), generator=source)), source)
            model = model.condition_on(z, y.unsqueeze(-1))
        mid, std = (value.squeeze(-1) for value in model.posterior(plant.z))
        beta = float(Mixture(rkhs_norm=1.0, subgaussian=noise, delta=0.1).beta(model)[0])
        about = f"posterior after {model.num_data} steps"
    else:
        beta = _uniform(source, 0.5, 3.0)
        scale = noise * 10 ** _uniform(source, -1.5, 0.7) / beta
        std = scale * torch.rand(POLICIES, CELLS, dtype=torch.float64, generator=source)
        std = torch.where(torch.rand(POLICIES, CELLS, generator=source) < 0.7, 1e-3 * scale, std)  # mostly known
        mid = 0.3 * torch.randn(POLICIES, CELLS, dtype=torch.float64, generator=source)
        about = "random set"
    half = beta * std
    signs = 2.0 * (torch.rand(POLICIES, CELLS, generator=source) > 0.5).to(torch.float64) - 1
    truths = {"μ − βσ": mid - half, "μ + βσ": mid + half, "μ ± βσ": mid + signs * half}
    if drawn is not None and bool(((drawn - mid).abs() <= half).all()):
        truths["drawn f*"] = drawn
    return Draw(plant, mid, std, beta, scale, truths, about)


def _costs() -> Tensor:
    """Indicators of x > threshold for every second threshold, (Q, 1, S)."""
    return (torch.arange(CELLS) >= torch.arange(1, CELLS, 2)[:, None]).to(torch.float64).unsqueeze(1)


def ahead(horizon: int) -> float:
    """T − 1: the steps for which what goes wrong at the first may last."""
    return horizon - 1


def width(d: Draw, under: Tensor) -> Tensor:
    """(2(T−1)/√(2π)) E Σ_t βσ(z_t)/σ_w under a residual, (P,): the right side of (iii), C = 1."""
    return 2 * ahead(d.plant.horizon) / ROOT * d.plant.value(d.half / d.plant.noise_std, under)


def kappa(d: Draw, steps: float) -> float:
    """1 + 2β·steps·s_max/(σ√(2π))."""
    return 1 + 2 * d.beta * steps * d.scale / (d.plant.noise_std * ROOT)


def spread(horizon: int, square: float, lam: float) -> float:
    """1 + T s²/λ: how much more than after an update σ² may be within an episode."""
    return 1 + horizon * square / lam


def amplification(horizon: int, square: float, lam: float) -> float:
    """A/(1 + T s²/λ) = 2T s²/ln(1 + s²/λ)."""
    return 2 * horizon * square / math.log1p(square / lam)


def _worst(rows: list[dict[str, Any]], lower: Tensor, upper: Tensor, about: str) -> None:
    """Keeps the draw's largest ratio."""
    at = int(upper.argmax())
    rows.append({"lower": float(lower.max()), "upper": float(upper.reshape(-1)[at]), "about": about})


# ------------------------------------------------------------------------------- (iii) the certificate's width
def width_robust(shard: int, budget: Budget, broken: bool) -> Sample:
    """(sup_f J_c − J_c(f*)) over the right side of (iii); broken: half of the right side (βσ for the width 2βσ)."""
    rows: list[dict[str, Any]] = []
    for index in range(DRAWS):
        d = draw(shard, index)
        below, above = d.plant.supremum(_costs(), d.low, d.high)
        for name, truth in d.truths.items():
            cost = d.plant.value(_costs(), truth)
            right = (0.5 if broken else 1.0) * width(d, truth)
            about = f"{d.about}, T = {d.plant.horizon}, f* = {name}"
            _worst(rows, (below - cost) / right, (above - cost) / right, about)
    return {"rows": rows}


def variation_bound(plant: FinitePlant, cost: Tensor, mid: Tensor, half: Tensor) -> Tensor:
    """J_c(π, μ) + C·max{Σ d_t(T−1−t) : d_t ≤ p_t, Σ d_t ≤ 1}, p_t = E_μ τ(z_t): `TotalVariation` without sampling, (*q, P)."""
    rate = torch.erf(half / plant.noise_std / (2 * math.sqrt(2)))
    steps = torch.eye(plant.horizon, dtype=torch.float64)
    rates = torch.stack([plant.value(rate, mid, weights) for weights in steps], dim=-1)
    return plant.value(cost, mid) + simulation_gap(rates, 1.0)


def refuting_plant() -> tuple[FinitePlant, Tensor, Tensor, Tensor, Tensor]:
    """A plant on which (iii) fails for the total-variation bound with E under f*: plant, cost, μ, βσ, f* = μ − βσ.

    From the start f* steps left of 0 with probability Φ(1.25) and μ right of it with probability Φ(0.3). Right of 0 every
    step costs 1, and the first cells there are badly known: μ meets them often, f* seldom.
    """
    count, noise, horizon = 40, 0.05, 60
    centers = (torch.arange(count, dtype=torch.float64) + 0.5) * 2 / count - 1
    plant = FinitePlant(centers, torch.zeros(1, count, dtype=torch.float64), 10, horizon, noise)
    target = torch.where(centers < 0, -0.8, 0.8).to(torch.float64)
    half = torch.where((centers > 0) & (centers < 0.45), 2 * noise, 0.0).to(torch.float64)
    target[10], half[10] = 0.3 * noise, 1.55 * noise
    mid = (target - centers).unsqueeze(0)
    return plant, (centers > 0).to(torch.float64).unsqueeze(0), mid, half.unsqueeze(0), mid - half


def width_variation(shard: int, budget: Budget, broken: bool) -> Sample:
    """The same for the total-variation bound, with E under μ; broken: under f*, on the plant that refutes it."""
    rows: list[dict[str, Any]] = []
    if broken:
        plant, cost, mid, half, truth = refuting_plant()
        left = variation_bound(plant, cost, mid, half) - plant.value(cost, truth)
        ratio = left / (2 * (plant.horizon - 1) / ROOT * plant.value(half / plant.noise_std, truth))
        _worst(rows, ratio, ratio, "the refuting plant")
        return {"rows": rows}
    for index in range(DRAWS):
        d = draw(shard, index)
        bound = variation_bound(d.plant, _costs(), d.mid, d.half)
        right = width(d, d.mid)
        for name, truth in d.truths.items():
            ratio = (bound - d.plant.value(_costs(), truth)) / right
            _worst(rows, ratio, ratio, f"{d.about}, T = {d.plant.horizon}, f* = {name}")
    return {"rows": rows}


# ------------------------------------------------------------------------------------------- (iv) optimism
def optimism(shard: int, budget: Budget, broken: bool) -> Sample:
    """sup_f E Σ‖σ‖ over κ E_{f*} Σ‖σ‖ for every policy; broken: κ without its factor T − 1."""
    rows: list[dict[str, Any]] = []
    for index in range(DRAWS):
        d = draw(shard, index)
        below, above = d.plant.supremum(d.std, d.low, d.high)
        factor = kappa(d, 1 if broken else ahead(d.plant.horizon))
        for name, truth in d.truths.items():
            right = factor * d.plant.value(d.std, truth)
            about = f"{d.about}, T = {d.plant.horizon}, f* = {name}, κ = {factor:.3g}"
            _worst(rows, below / right, above / right, about)
    return {"rows": rows}


# --------------------------------------------------------------------------- (v) sum of squared uncertainties
def uncertainty_sum(shard: int, budget: Budget, broken: bool) -> Sample:
    """Σ_n (Σ_t ‖σ_{n−1}(z_{n,t})‖)² over A·g on designs of one or two outputs; broken: A without 1 + T s²/λ.

    Designs: one point all the time, random points, random points of a few places, the most uncertain point of a grid.
    """
    rows: list[dict[str, Any]] = []
    for index in range(24):
        source = generator(62, shard, index)
        outputs, horizon, episodes = 1 + index % 2, HORIZONS[index % 4], (1, 2, 6, 20)[index // 4 % 4]
        lam = 10 ** _uniform(source, -3, 2)
        scales = [_uniform(source, 0.05, 0.6) for _ in range(outputs)]
        kinds = [kernels.rbf(s, variance=1.0) if j else kernels.matern(0.5, s, 0.5) for j, s in enumerate(scales)]
        grid = torch.linspace(0, 1, 41, dtype=torch.float64).unsqueeze(-1)
        grams = torch.stack([kernels.cross(kernel, grid, grid) for kernel in kinds])  # (p, m, m)
        square = float(grams.diagonal(dim1=-2, dim2=-1).sum(0).max())  # s²_max of ‖σ‖
        visited, left = torch.zeros(0, dtype=torch.long), 0.0
        for _ in range(episodes):
            known = grams[:, visited][:, :, visited] + lam * torch.eye(len(visited), dtype=torch.float64)
            cross = grams[:, visited]
            drop = (cross * torch.linalg.solve(known, cross)).sum(1) if len(visited) else 0.0
            variance = (grams.diagonal(dim1=-2, dim2=-1) - drop).sum(0).clamp_min(0.0)
            pick = torch.randint(41, (horizon,), generator=source)
            choices = (torch.zeros_like(pick), pick, pick % 4, variance.argmax().expand(horizon))
            pick = choices[index // 6 % 4]
            left += float(variance[pick].sqrt().sum()) ** 2
            visited = torch.cat([visited, pick])
        gain = float(sum(gram_info_gain(gram[visited][:, visited], lam) for gram in grams))
        factor = 1.0 if broken else spread(horizon, square, lam)
        ratio = left / (amplification(horizon, square, lam) * factor * gain)
        about = f"{episodes} episodes of {horizon} steps, {outputs} outputs, λ = {lam:.2g}, s² = {square:.2g}"
        rows.append({"lower": ratio, "upper": ratio, "about": about})
    return {"rows": rows}


def judge(samples: Sequence[Sample], broken: bool) -> Evidence:
    """The largest ratio, bracketed; it must not exceed 1."""
    rows = [row for s in samples for row in s["rows"]]
    top = worst_of(rows, key=lambda row: row["upper"])
    lower = worst_of(row["lower"] for row in rows)
    verdict = Verdict(lower, top["upper"], 1.0, tol=1e-9, witness=top["about"])
    return Evidence(len(rows), lower, verdict, {"ratios": sorted(row["upper"] for row in rows)[-2000:]})


def plot(figure: Figure, claim: Mapping[str, Any], control: Mapping[str, Any]) -> None:
    """Distribution of the ratios."""
    axes = figure.subplots()
    for data, noun in ((claim, "claim"), (control, "control")):
        look = plotting.look(noun)
        ratios = sorted(data["ratios"])
        shares = [(i + 1) / len(ratios) for i in range(len(ratios))]
        axes.step(ratios, shares, where="post", label=noun, **look.line)
        axes.plot(ratios[-1], 1.0, **look.points)
    plotting.limit(axes, 1.0, upright=True)
    axes.set(xlabel="left side / right side (worst policy and cost of a draw)", ylabel="share of draws")
    axes.legend()


def _check(
    name: str,
    claim: str,
    source: str,
    control: str,
    sample: Callable[[int, Budget, bool], Sample],
    grades: tuple[Grade, ...],
    *,
    assumptions: tuple[str, ...] = ("|f* − μ_n| ≤ β σ_n", "gaussian noise of known variance"),
    control_shards: Mapping[Budget, int] = CONTROL_SHARDS,
) -> Check:
    return Check(
        name=name,
        claim=claim,
        source=source,
        assumptions=(*assumptions, "one state variable, finitely many cells (values exact up to rounding)"),
        statistic="largest left side / right side over draws, policies and costs (suprema bracketed); threshold 1",
        control=control,
        shards=SHARDS,
        control_shards=control_shards,
        sample=sample,
        judge=judge,
        plot=plot,
        grades=grades,
    )


COARSE = (0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
_HERE = sys.modules[__name__]


def _lasting(shard: int, factors: tuple[float, ...] = COARSE) -> Grade:
    """T − 1 as 1 + g(T − 2)."""
    return Grade("growth of T − 1 with the horizon", around(_HERE, "ahead", past_one), (shard,), factors)


CHECKS = (
    _check(
        "actsafe-cost-width",
        "sup_{f∈F_n} J_c(π,f) − J_c(π,f*) ≤ (2C(T−1)/√(2π)) E_{π,f*} Σ_t ‖Σ_w^{-1/2}βσ_n(z_t)‖ for every f* in F_n.",
        "ActSafe, Lemma on the pessimistic cost; theory §4 (iii), bound 3",
        "half of the right side: βσ taken for the distance between two members of F_n",
        width_robust,
        (Grade("right side", around(_HERE, "width", times), (12,), FACTORS), _lasting(6)),
    ),
    _check(
        "actsafe-cost-width-variation",
        "J_c(π,μ) + penalty − J_c(π,f*) ≤ (2C(T−1)/√(2π)) E_{π,μ} Σ_t ‖Σ_w^{-1/2}βσ_n(z_t)‖ for every f* in F_n.",
        "theory §4 (iii), bound 4, with the expectation under μ_n",
        "the expectation under f*, as for bound 3, on a plant where μ_n meets what is not known and f* seldom does",
        width_variation,
        (Grade("right side", around(_HERE, "width", times), (22,), FACTORS), _lasting(15)),
        control_shards={"quick": 1, "full": 1},
    ),
    _check(
        "actsafe-optimism",
        "sup_{f∈F_n} E_{π,f} Σ_t‖σ_n(z_t)‖ ≤ κ_n E_{π,f*} Σ_t‖σ_n(z_t)‖, κ_n = 1 + 2β(T−1)√nx·s_max/(σ√(2π)).",
        "theory §4 (iv)",
        "κ_n without its factor T − 1",
        optimism,
        (
            Grade("κ", around(_HERE, "kappa", times), (23,), FACTORS),
            Grade("κ − 1", around(_HERE, "kappa", past_one), (10,), COARSE),
            _lasting(0, (0.5, 0.0)),
        ),
    ),
    _check(
        "actsafe-uncertainty-sum",
        "Σ_n(Σ_t‖σ_{n−1}(z_{n,t})‖)² ≤ A Γ_{NT} path by path, A = 2T s²(1 + T s²/λ)/ln(1 + s²/λ).",
        "theory §4 (v)",
        "A without 1 + T s²/λ: σ taken as if it were updated inside the episode",
        uncertainty_sum,
        (
            Grade("A without 1 + T s²/λ", around(_HERE, "amplification", times), (6,), FACTORS),
            Grade("T s²/λ: growth within an episode", around(_HERE, "spread", past_one), (8,), COARSE),
        ),
        assumptions=("kernel and λ of the posterior",),
    ),
)
