"""Batches of sequential regression experiments with functions of exactly known norm, all trials in one tensor
computation.

A trial draws f and noise, then for n = 1..N picks a point of a fixed candidate grid (at random, or adaptively
from the observations so far), observes y = f + ε there and updates the posterior at all candidates. With rows
V_n and whitened residuals w_n of the Cholesky factor of K_n + λI the posterior is μ_n = Σ w_r V_r, σ_n² = k −
Σ V_r².
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from torch import Tensor

from gpsafe import plotting
from gpsafe.confidence.bounds import ClosedForm
from gpsafe.confidence.rounding import MARGIN
from gpsafe.rkhs import kernels
from gpsafe.verdict import Verdict, clopper_pearson, worst_of

Mode = Literal["random", "adaptive"]
MODES: tuple[Mode, ...] = ("random", "adaptive")
DELTAS = (0.1, 0.01)
CONFIDENCE = 0.99
TIE = 0.9  # of noise from one observation to the next


@dataclass(frozen=True)
class Setting:
    """Kernel, noise and posterior of a family of trials on [0, 1] (unit output variance).

    `nu`, `lengthscale`: the kernel of the posterior; `true_lengthscale`: of f, where it differs. `norm`:
    exact ‖f‖. `prior`: "rkhs" for random functions of that norm, "gp" for sample paths of the prior.
    """

    nu: float | None = None
    lengthscale: float = 0.1
    true_lengthscale: float | None = None
    norm: float = 1.0
    noise: Literal["gaussian", "rademacher", "uniform", "student", "biased", "tied", "rare"] = "gaussian"
    noise_std: float = 0.1
    regularizer: float = 0.01
    steps: int = 60
    points: int = 101
    prior: Literal["rkhs", "gp"] = "rkhs"

    def kernel(self, lengthscale: float | None = None):
        """The posterior's kernel, or the same family with another length-scale."""
        scale = self.lengthscale if lengthscale is None else lengthscale
        return kernels.rbf(scale) if self.nu is None else kernels.matern(self.nu, scale)

    def candidates(self) -> Tensor:
        """(m, 1)."""
        return torch.linspace(0, 1, self.points, dtype=torch.float64).unsqueeze(-1)


def betas(setting: Setting, info_gain: Tensor, bound: ClosedForm, delta: float) -> Tensor:
    """β_n by the bound's own formula, for g_n (F, N + 1)."""
    one = torch.ones_like(info_gain)
    return bound.formula(
        info_gain,
        torch.arange(one.shape[1], dtype=torch.float64).expand_as(one),
        setting.regularizer * one,
        norm=float(bound.norms(1)) * one,
        noise=float(bound.noise(1)) * one,
        log_inv_delta=-float(torch.tensor(delta, dtype=torch.float64).log()),
    )


@dataclass(frozen=True, eq=False)
class Deviations:
    """What a bound βσ needs of F trials: g_n and the largest |f − μ_n|/σ_n over the candidates, (F, N + 1) each.

    σ is rounded outwards by the floor of `gpsafe.confidence.rounding`.
    """

    setting: Setting
    info_gain: Tensor
    largest: Tensor

    def beta(self, bound: ClosedForm, delta: float) -> Tensor:
        """β_n, (F, N + 1)."""
        return betas(self.setting, self.info_gain, bound, delta)

    def ratio(self, beta: Tensor) -> Tensor:
        """Largest |f − μ_n|/(β_n σ_n) over n and z of each trial, (F,): above 1 is a failure."""
        return (self.largest / beta).amax(-1)


@dataclass(frozen=True, eq=False)
class Run:
    """F trials: values of f (F, m), picks (F, N), observations (F, N), mean and std (F, N + 1, m), g_n (F, N
    + 1).
    """

    setting: Setting
    f: Tensor
    picks: Tensor
    y: Tensor
    mean: Tensor
    std: Tensor
    info_gain: Tensor

    @property
    def deviations(self) -> Deviations:
        """Of f from μ in units of σ."""
        largest = ((self.f.unsqueeze(1) - self.mean).abs() / self.half_width(torch.ones_like(self.info_gain))).amax(-1)
        return Deviations(self.setting, self.info_gain, largest)

    def beta(self, bound: ClosedForm, delta: float) -> Tensor:
        """β_n, (F, N + 1)."""
        return betas(self.setting, self.info_gain, bound, delta)

    def half_width(self, beta: Tensor) -> Tensor:
        """βσ rounded outwards by the floor of `gpsafe.confidence.rounding`, (F, N + 1, m)."""
        return beta.unsqueeze(-1) * (self.std.square() + MARGIN).sqrt()

    def ratio(self, half: Tensor) -> Tensor:
        """Largest |f − μ_n|/half over n and z of each trial, (F,): above 1 is a failure."""
        return ((self.f.unsqueeze(1) - self.mean).abs() / half).flatten(1).amax(-1)

    def data(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gram matrices (F, n, n), observations (F, n) and k(X, z) (F, n, m) of the first n points."""
        grid = self.setting.candidates()
        gram = kernels.cross(self.setting.kernel(), grid, grid)
        cross = gram[self.picks[:, :count]]
        return torch.take_along_dim(cross, self.picks[:, None, :count], dim=-1), self.y[:, :count], cross


def functions(setting: Setting, trials: int, generator: torch.Generator) -> Tensor:
    """Values on the candidates, (F, m): Σ α_i k(c_i, ·) of norm exactly `norm` with 1 to 20 centres, or GP
    paths.
    """
    kernel, grid = setting.kernel(setting.true_lengthscale), setting.candidates()
    if setting.prior == "gp":
        values, vectors = torch.linalg.eigh(kernels.cross(kernel, grid, grid))
        root = vectors * values.clamp_min(0.0).sqrt()
        return torch.randn(trials, len(grid), dtype=torch.float64, generator=generator) @ root.T
    most = 20
    centers = torch.rand(trials, most, dtype=torch.float64, generator=generator)
    sizes = torch.randint(1, most + 1, (trials, 1), generator=generator)
    weights = torch.randn(trials, most, dtype=torch.float64, generator=generator)
    weights = weights * (torch.arange(most) < sizes)
    form = kernels.stationary(kernel)
    assert form is not None
    scale = float(form.lengthscale)
    gram = form.profile(((centers.unsqueeze(-1) - centers.unsqueeze(-2)) / scale).square())
    norms = torch.einsum("fi,fij,fj->f", weights, gram, weights).clamp_min(0.0).sqrt()
    cross = form.profile(((grid[:, 0, None, None] - centers) / scale).square())  # (m, F, c)
    return setting.norm * torch.einsum("mfc,fc->fm", cross, weights) / norms.unsqueeze(-1)


def noise(setting: Setting, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """R-sub-Gaussian noise with R = noise_std, but for "student" (2 degrees of freedom: infinite variance), "biased" (±R, nine
    of ten times R), "tied" (N(0, R²), one correlated by `TIE` with the next) and "rare" (±3R one time in nine: E w⁴ = 9R⁴).
    """
    normal = torch.randn(*shape, dtype=torch.float64, generator=generator)
    if setting.noise == "gaussian":
        return setting.noise_std * normal
    if setting.noise == "rademacher":
        return setting.noise_std * torch.where(normal < 0, -1.0, 1.0).to(torch.float64)
    if setting.noise == "uniform":
        return setting.noise_std * (2 * torch.rand(*shape, dtype=torch.float64, generator=generator) - 1)
    uniform = torch.rand(*shape, dtype=torch.float64, generator=generator).clamp_min(1e-300)
    if setting.noise == "biased":
        return setting.noise_std * torch.where(uniform < 0.9, 1.0, -1.0).to(torch.float64)
    if setting.noise == "rare":
        return setting.noise_std * torch.where(uniform < 1 / 9, 3 * normal.sign(), 0.0)
    if setting.noise == "tied":
        lags = torch.arange(shape[-1], dtype=torch.float64)
        root = torch.linalg.cholesky(TIE ** (lags.unsqueeze(-1) - lags).abs())
        return setting.noise_std * normal @ root.T
    return setting.noise_std * normal / (-uniform.log()).sqrt()  # χ² with 2 degrees of freedom is −2 ln U


def simulate(setting: Setting, trials: int, mode: Mode, generator: torch.Generator) -> Run:
    """F independent trials.

    "random": points drawn uniformly beforehand. "adaptive": odd steps take the point of largest variance,
    even steps the largest μ + 2σ, which depends on the observations.
    """
    grid = setting.candidates()
    gram = kernels.cross(setting.kernel(), grid, grid)
    lam, m = setting.regularizer, len(grid)
    f = functions(setting, trials, generator)
    errors = noise(setting, (trials, setting.steps), generator)
    random = torch.randint(m, (trials, setting.steps), generator=generator)
    rows = torch.zeros(trials, setting.steps, m, dtype=torch.float64)
    mean, variance = torch.zeros(trials, m, dtype=torch.float64), torch.ones(trials, m, dtype=torch.float64)
    gain = torch.zeros(trials, dtype=torch.float64)
    means, variances, gains = [mean], [variance], [gain]
    picks, observed = [], []
    for n in range(setting.steps):
        if mode == "random":
            pick = random[:, n]
        elif n % 2:
            pick = variance.argmax(-1)
        else:
            pick = (mean + 2 * variance.clamp_min(0.0).sqrt()).argmax(-1) if n else random[:, 0]
        at = pick.unsqueeze(-1)
        weights = torch.take_along_dim(rows[:, :n], at.unsqueeze(-1), dim=-1).squeeze(-1)  # (F, n)
        own = variance.gather(1, at).squeeze(-1)
        spread = (own + lam).sqrt()
        row = (gram[pick] - torch.einsum("fn,fnm->fm", weights, rows[:, :n])) / spread.unsqueeze(-1)
        y = f.gather(1, at).squeeze(-1) + errors[:, n]
        residual = (y - mean.gather(1, at).squeeze(-1)) / spread
        rows[:, n] = row
        mean, variance = mean + residual.unsqueeze(-1) * row, (variance - row.square()).clamp_min(0.0)
        gain = gain + 0.5 * torch.log1p(own / lam)
        for store, value in ((means, mean), (variances, variance), (gains, gain), (picks, pick), (observed, y)):
            store.append(value)
    return Run(
        setting,
        f,
        torch.stack(picks, 1),
        torch.stack(observed, 1),
        torch.stack(means, 1),
        torch.stack(variances, 1).sqrt(),
        torch.stack(gains, 1),
    )


def generator(*parts: int) -> torch.Generator:
    """A generator determined by a tuple of integers."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 12_345) % (2**62)
    return torch.Generator().manual_seed(seed)


def rate_verdict(
    failures: Sequence[int], trials: Sequence[int], deltas: Sequence[float], witness: str = ""
) -> tuple[float, Verdict]:
    """Estimate and verdict of "failure rate ≤ δ in every cell": the value is the largest rate/δ, the
    threshold 1.

    Clopper–Pearson intervals hold jointly with `CONFIDENCE` (union over the cells).
    """
    level = 1 - (1 - CONFIDENCE) / len(failures)
    ends = [clopper_pearson(k, n, level) for k, n in zip(failures, trials, strict=True)]
    lower = worst_of(end[0] / delta for end, delta in zip(ends, deltas, strict=True))
    upper = worst_of(end[1] / delta for end, delta in zip(ends, deltas, strict=True))
    estimate = worst_of(k / n / delta for k, n, delta in zip(failures, trials, deltas, strict=True))
    return estimate, Verdict(lower, upper, 1.0, witness=witness)


def draw_rates(axes: Axes, groups: Mapping[str, tuple[Sequence[Mapping[str, Any]], str]], ylabel: str) -> None:
    """Failure rates with intervals; `groups` maps a label to cells {name, rate, lower, upper, delta} and a noun.

    The cells of all groups stand side by side under their name, with a dash at each δ.
    """
    names = list(dict.fromkeys(cell["name"] for cells, _ in groups.values() for cell in cells))
    for g, (label, (cells, noun)) in enumerate(groups.items()):
        shift = 0.3 * ((g + 0.5) / len(groups) - 0.5)
        for i, cell in enumerate(cells):
            x = names.index(cell["name"])
            axes.plot([x + shift] * 2, [cell["lower"], cell["upper"]], color=plotting.colour(noun), lw=3)
            axes.plot(x + shift, cell["rate"], ms=4, label=label if i == 0 else None, **plotting.look(noun).points)
            axes.plot([x - 0.35, x + 0.35], [cell["delta"]] * 2, linewidth=1, **plotting.look("limit").line)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_yticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
    axes.set_ylim(-0.001, 1.3)
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=7)


def picture(run: Run, half: Tensor, count: int, trial: int = 0) -> dict[str, Any]:
    """JSON-able numbers of one confidence band after `count` observations."""
    return {
        "z": run.setting.candidates()[:, 0].tolist(),
        "f": run.f[trial].tolist(),
        "mean": run.mean[trial, count].tolist(),
        "half": half[trial, count].tolist(),
        "x": run.setting.candidates()[run.picks[trial, :count], 0].tolist(),
        "y": run.y[trial, :count].tolist(),
    }


def draw_band(axes: Axes, band: dict[str, Any], title: str) -> None:
    """One confidence band, the function and its observations."""
    mean, half = torch.tensor(band["mean"]), torch.tensor(band["half"])
    seen = (band["x"], band["y"])
    plotting.band(
        axes, band["z"], mean - half, mean + half, mean=mean, truth=band["f"], data=seen, label="mean and bound"
    )
    axes.set_title(title)
    plotting.label_ends(axes)
