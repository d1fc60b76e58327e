"""What rows say about (k, B, R): every test of the referee for one output, for many columns of observations at once.

On trial: y_i = f(z_i) + ε_i with ‖f‖_k ≤ B, and ε_i R-sub-Gaussian given everything before it, z_i included, in the order in
which rows stand here: their own within runs, a drawn one for one-step data (then no z may depend on noise). Many columns,
because the power of a test on *these* inputs is found by trying it on observations made up with a known defect
(`gpsafe.referee.power`).

**Radius.** Let m_i be any prediction of y_i from what came before, drawn from N(m̂_i, v_i) chosen before ε_i. For the true f

    M_n = Π_i exp(((y_i − f(z_i))² − (y_i − m_i)²)/2R²)

is a supermartingale, since exp(sε − s²R²/2) has conditional mean ≤ 1 at s = (m_i − f(z_i))/R²; so is its mean over the draws of
m, in which step i becomes exp((y_i − f)²/2R²) · (1 + v_i/R²)^{−½} exp(−e_i²/2(R² + v_i)), e_i = y_i − m̂_i. Ville's inequality:
with probability ≥ 1 − δ, for all n at once,

    ‖y − f(Z)‖² ≤ ρ_n² = Σ_i [R² e_i²/(R² + v_i) + R² ln(1 + v_i/R²)] + 2R² ln(1/δ).          (*)

With m̂, v of the posterior of a Gaussian process this is the radius of Flynn & Reeb (theory §2.6), in sequential form. But
*any* forecaster will do, with another kernel or with correlated noise: one that predicts better than every f of the ball
could refutes the ball, and which one it was says where to look. The smallest of M radii, each at δ/M, is a radius at δ.

**Norm.** (*) holds for f, so ‖f‖_k ≥ L_n = min {‖h‖_k : ‖y − h(Z)‖² ≤ ρ_n²}. With a multiplier 1/η of the constraint the
minimum over h is a ridge regression in closed form, and weak duality gives, for every η > 0,

    L_n² ≥ yᵀ(K + ηI)⁻¹y − ρ_n²/η;

the best of a grid of η is reported, and the largest L_n of a few n. P(L_n > ‖f‖_k for some n) ≤ δ: a confidence *lower*
bound, for noise that may be adapted to. It is no norm of an interpolant: noise of size R alone gives 0. L_n > B refutes (k,
B, R) jointly.

**Level of R.** E exp(sε²/R²) ≤ (1 − 2s)^{−½} gives P(‖ε‖² ≥ nR²(1 + t)) ≤ exp(−n(t − ln(1 + t))/2). By the same duality
‖ε‖² ≥ min_{‖h‖ ≤ B} ‖y − h(Z)‖² ≥ η yᵀ(K + ηI)⁻¹y − ηB², so R ≥ √(that/(n(1 + t))).

**Tail.** |ε_i| ≥ |y_i − μ(z_i)| − βσ(z_i) for all i with probability ≥ 1 − δ/2 (`Mixture` with λ = R², which holds for all
posteriors at once: the one before row i, and the last one, whichever says more), and |ε_i| > a has conditional probability ≤
2exp(−a²/2R²) =: p; so the number of such i among m is at most Binomial(m, p) in distribution. Exact binomial tails at seven
sizes a, δ/14 each.

**Held out.** F_n of the choosing rows, and y_i within R√(2 ln(2m/(δ/2))) of it for all m judging rows.

**Bars.** If f itself were a draw of the Gaussian process with kernel k and ε normal with deviation R, the whitened forecast
errors would be independent and standard normal: the sum of their squares has the χ² distribution. This is the Bayesian
reading that practice relies on; no theorem here does.

**Shape and memory, in that reading.** A set of processes is on trial, with other amplitudes and noises than stated ones among
them; q is the density that others, fixed before, give to the judging rows, averaged over these. For each process P of the set
E_P[q/max p] ≤ E_P[q/p_P] = 1, so q ≥ max p/δ refutes them all at level δ. "shape" tries shorter length-scales and a rougher
family against k's own, "memory" correlated noise against all of these: what is refuted then does not hang on B, nor on R.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from gpytorch.kernels import Kernel
from scipy import special
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.rkhs import kernels

SIZES = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)  # of residuals, in R
ETAS = 80  # multipliers tried
MARGIN = 1e-9  # relative, outward rounding of radii
FAMILIES = ("own", "kernel", "time")
OWN, KERNEL, TIME = FAMILIES


@short
@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """One output: where it was measured, and what is claimed of it.

    Args:
        kernel: k.
        norm: B, or +inf if none is claimed.
        noise: R > 0.
        delta: of each test.
        z: (n, d).
        first: rows that choose.
        links: (n,) row before in the same run, −1 for none.
        scale: typical size of f² that forecasters expect beside k itself.
        spent: whether k, B or R was chosen from the first rows. Their noise is no longer unseen then, and the band of the tail
            test starts with the judging rows; everything else speaks of these given the first ones anyway.
    """

    kernel: Kernel
    norm: float
    noise: float
    delta: float
    z: Tensor
    first: int
    links: Tensor
    scale: float
    spent: bool = False

    def __post_init__(self) -> None:
        where, count = "Design", len(self.z)
        _require.kind(where, "kernel", self.kernel, Kernel)
        _require.level(where, "norm", self.norm, minimum=0.0)
        _require.positive_number(where, "noise", self.noise)
        _require.probability(where, "delta", self.delta)
        _require.finite(where, "z", self.z)
        _require.shape(where, "links", self.links, (count,))
        if _require.index(where, "first", self.first) >= count:
            raise _require.fail(where, f"first < {count} rows, one to judge", self.first)
        if not bool(((self.links >= -1) & (self.links < torch.arange(count))).all()):
            raise _require.fail(where, "links to earlier rows, or -1", self.links.tolist())

    @property
    def judging(self) -> int:
        """m."""
        return len(self.z) - self.first

    def forecasters(self, family: str) -> list[tuple[Tensor, Tensor]]:
        """Covariances (n, n) of the signal and of the noise that a forecaster supposes."""
        eye, square = torch.eye(len(self.z), dtype=torch.float64), self.noise**2
        own = kernels.cross(self.kernel, self.z, self.z)
        unit = own / own.diagonal().mean()
        if family == OWN:
            return [(own, square * eye), (self.scale * unit, square * eye), (10 * self.scale * unit, square * eye)]
        if family == TIME:
            if not bool((self.links[self.first :] >= 0).any()):
                return []
            return [(self.scale * unit, square * correlation(self.links, rho)) for rho in (0.6, 0.9, -0.5)]
        found = []
        for other in shapes(self.kernel):
            gram = kernels.cross(other, self.z, self.z)
            found += [(self.scale * f * gram / gram.diagonal().mean(), square * eye) for f in (1.0, 10.0)]
        return found


def shapes(kernel: Kernel) -> list[Kernel]:
    """Shorter length-scales and a rougher family, for kernels with a stationary closed form; none for others."""
    form = kernels.stationary(kernel)
    if form is None:
        return []
    found = [replace(form, lengthscale=form.lengthscale / factor) for factor in (2.0, 4.0)]
    return [of_form(other) for other in found + ([replace(form, nu=1.5)] if form.nu > 1.5 else [])]


def of_form(form: kernels.Stationary) -> Kernel:
    """The RBF or Matérn kernel with this closed form: `kernels.stationary` the other way round."""
    dims = None if form.dims is None else form.dims.tolist()
    if math.isinf(form.nu):
        return kernels.rbf(form.lengthscale, form.variance, dims=dims)
    return kernels.matern(form.nu, form.lengthscale, form.variance, dims=dims)


def correlation(links: Tensor, rho: float) -> Tensor:
    """ρ^|lag| within stretches of successive rows, (n, n)."""
    n = len(links)
    stretch = (links < 0).long().cumsum(0)
    lag = (torch.arange(n).unsqueeze(0) - torch.arange(n).unsqueeze(-1)).abs().double()
    same = stretch.unsqueeze(0) == stretch.unsqueeze(-1)
    sign = torch.where(lag.long() % 2 == 0, 1.0, math.copysign(1.0, rho))
    return torch.where(same, sign * abs(rho) ** lag, 0.0)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """What came out, for S columns of observations.

    Attributes:
        radius: family → ρ_n² after every judging row, (m, S).
        lower: family → largest L_n, (S,).
        level: lower confidence limit of R from the size of residuals, (S,).
        tail: smallest binomial tail probability times the number of sizes, against δ/2, (S,).
        tails: (7, S) numbers of judging rows beyond each size.
        held: largest excess over F_n and noise of a judging row, in R, (S,).
        bars: Σ of squared whitened forecast errors of the judging rows, (S,).
        errors: forecast errors and their deviations before noise, (m, S) and (m,).
        shape, memory: ln(q/max p), (S,); −∞ where there is nothing to compare.
    """

    radius: dict[str, Tensor]
    lower: dict[str, Tensor]
    level: Tensor
    tail: Tensor
    tails: Tensor
    held: Tensor
    bars: Tensor
    errors: tuple[Tensor, Tensor]
    shape: Tensor
    memory: Tensor

    def refuted(self, design: Design) -> dict[str, Tensor]:
        """Test → (S,) Booleans."""
        half = design.delta / 2
        low, high = (float(special.chdtri(design.judging, p)) for p in (1 - half, half))
        found = {"norm": self.lower[OWN] > design.norm, "level": self.level > design.noise, "tail": self.tail < half}
        found |= {family: self.lower[family] > design.norm for family in (KERNEL, TIME) if family in self.lower}
        found |= {"held": self.held > 0, "bars": (self.bars < low) | (self.bars > high)}
        need = math.log(1 / design.delta)
        return found | {"shape": self.shape > need, "memory": self.memory > need}


def judge(design: Design, y: Tensor) -> Tried:
    """All tests on columns of observations y (n, S)."""
    y = _require.finite("trials.judge", "y", y)
    _require.shape("trials.judge", "y", y, (len(design.z), y.shape[-1]))
    later = y[design.first :]
    radius = {}
    for family in FAMILIES:
        found = list(_radii(design, family, y))
        if found:
            share = 2 * design.noise**2 * math.log(len(found) / design.delta)
            radius[family] = (torch.stack(found).amin(0) + share) * (1 + MARGIN)
    lower = {family: torch.zeros_like(y[0]) for family in radius}
    level = torch.zeros_like(y[0])
    for count in prefixes(design.judging):
        values, vectors, error = spectrum(design, count)
        turned = (vectors.T @ later[:count]).square()
        for family, r in radius.items():
            lower[family] = torch.maximum(lower[family], norm_lower(values, turned, r[count - 1], error))
        level = _level(design, values, turned, error) if count == design.judging else level
    return Tried(radius, lower, level, *_tails(design, y), *_forecasts(design, y), *_compared(design, y))


def prefixes(count: int) -> list[int]:
    """Numbers of judging rows at which L_n is looked at; the last is all of them."""
    return sorted({max(1, count >> i) for i in range(3)})


def _radii(design: Design, family: str, y: Tensor) -> Iterator[Tensor]:
    """Σ of (*) without its last term, after every judging row, (m, S), for each forecaster."""
    square = design.noise**2
    for signal, noise in design.forecasters(family):
        factor = linalg.cholesky(signal + noise, "trials.judge")
        white = torch.linalg.solve_triangular(factor, y, upper=False)[design.first :]
        own = factor.diagonal()[design.first :].square().unsqueeze(-1)
        total = own.clamp_min(square)  # R² + v_i
        yield (square * white.square() * own / total + square * (total / square).log()).cumsum(0)


def spectrum(design: Design, count: int | None = None) -> tuple[Tensor, Tensor, float]:
    """Eigenvalues, eigenvectors of the Gram matrix of the first judging rows, and the error of the former."""
    z = design.z[design.first :][:count]
    gram = kernels.cross(design.kernel, z, z)
    values, vectors = torch.linalg.eigh(0.5 * (gram + gram.T))
    return values.clamp_min(0.0), vectors, 100 * len(z) * 2.0**-52 * float(values[-1])


def _etas(values: Tensor) -> Tensor:
    top = values.max().clamp_min(1e-200)  # of rows at which the kernel is 0: multipliers whose reciprocals are numbers
    return top * torch.logspace(-9, 6, ETAS, dtype=torch.float64)


def norm_lower(values: Tensor, turned: Tensor, radius: Tensor, error: float) -> Tensor:
    """L from eigenvalues (m,), squares of Uᵀy (m, S) and ρ² (S,); 0 where no norm is needed. See the module.

    The eigenvalues are those of K + E with ‖E‖ ≤ `error`; yᵀ(K + ηI)⁻¹y is at least its value with η + error in their place.
    """
    eta = _etas(values).unsqueeze(-1)  # (h, 1)
    fit = (1 / (values + eta + error)) @ turned  # (h, S)
    return (fit * (1 - MARGIN) - radius / eta).amax(0).clamp_min(0.0).sqrt()


def _level(design: Design, values: Tensor, turned: Tensor, error: float) -> Tensor:
    """Lower confidence limit of R, (S,)."""
    m, eta = len(values), _etas(values).unsqueeze(-1)
    fit = (eta / (values + eta + error)) @ turned
    least = (fit - eta * design.norm**2).amax(0).clamp_min(0.0)
    return (least / (m * (1 + chernoff(m, design.delta))) * (1 - MARGIN)).sqrt()


def chernoff(count: int, delta: float) -> float:
    """t with (t − ln(1 + t))·n/2 = ln(1/δ), rounded up."""
    goal, low, high = 2 * math.log(1 / delta) / count, 0.0, 1.0
    while high - math.log1p(high) < goal:
        high *= 2
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if middle - math.log1p(middle) < goal else (low, middle)
    return high


def _posterior(design: Design, y: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Of k and λ = R² and the rows from `start` on: factor, whitened rows, information gain after each, and the rounding of
    variances.
    """
    z, square = design.z[start:], design.noise**2
    gram = kernels.cross(design.kernel, z, z)
    factor = linalg.cholesky(gram + square * torch.eye(len(gram), dtype=torch.float64), "trials.judge")
    white = torch.linalg.solve_triangular(factor, y[start:], upper=False)
    gain = (factor.diagonal().square() / square).log().cumsum(0) / 2
    return factor, white, gain, 4 * len(z) * 2.0**-52 * float(gram.diagonal().max() + square)


def _beta(design: Design, gain: Tensor) -> Tensor:
    """β of the mixture bound at δ/2 and λ = R²."""
    return (design.norm**2 + 2 * gain + 2 * math.log(2 / design.delta)).sqrt()


def _room(beta: Tensor, spread: Tensor) -> Tensor:
    """βσ, rounded up; inf where no norm is claimed."""
    return (beta * spread).nan_to_num(nan=math.inf).unsqueeze(-1) * (1 + MARGIN)


def _tails(design: Design, y: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest tail probability times the number of sizes, (S,), and how many judging rows are beyond each size, (7, S)."""
    start, square = design.first if design.spent else 0, design.noise**2
    factor, white, gain, slip = _posterior(design, y, start)
    judged, m = slice(design.first - start, None), design.judging
    own = factor.diagonal()
    spread = ((own.square() - square).clamp_min(0.0) + slip).sqrt()
    before = torch.cat([torch.zeros(1, dtype=torch.float64), gain[:-1]])
    size = (white * own.unsqueeze(-1)).abs() - _room(_beta(design, before), spread)
    inverse = linalg.inverse_lower(factor)
    after = square * (inverse.T @ white)  # y − μ_n
    last = design.noise * ((1 - square * inverse.square().sum(0)).clamp_min(0.0) + len(own) * slip / square).sqrt()
    size = torch.maximum(size, after.abs() - _room(_beta(design, gain[-1]), last))[judged]
    cuts = design.noise * torch.tensor(SIZES, dtype=torch.float64)
    beyond = (size > cuts.reshape(-1, 1, 1)).sum(1)
    chance = torch.tensor([min(1.0, 2 * math.exp(-(a**2) / 2)) for a in SIZES], dtype=torch.float64)
    hits = beyond.double().numpy()
    tail = special.betainc(hits.clip(1), m - hits.clip(1) + 1, chance.numpy()[:, None])  # P(Binomial ≥ hits)
    return torch.from_numpy(tail).where(beyond > 0, 1.0).amin(0) * len(SIZES), beyond


def _forecasts(design: Design, y: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Held out and bars: largest excess, Σ of squared whitened errors, errors with their deviations."""
    first, square, m = design.first, design.noise**2, design.judging
    factor, white, gain, slip = _posterior(design, y, 0)
    own, cross = factor.diagonal()[first:], factor[first:, :first]
    error = y[first:] - cross @ white[:first]
    prior = kernels.diagonal(design.kernel, design.z[first:])
    wide = ((prior - cross.square().sum(-1)).clamp_min(0.0) + slip).sqrt()
    noise = design.noise * math.sqrt(2 * math.log(4 * m / design.delta))
    told = torch.cat([torch.zeros(1, dtype=torch.float64), gain])[first]  # of the rows that choose
    excess = (error.abs() - _room(_beta(design, told), wide) - noise * (1 + MARGIN)) / design.noise
    spread = ((own.square() - square).clamp_min(0.0) + slip).sqrt()
    errors = white[first:] * own.unsqueeze(-1), spread
    return excess.amax(0), white[first:].square().sum(0), errors


def _compared(design: Design, y: Tensor) -> tuple[Tensor, Tensor]:
    """ln(q/max p) of other shapes against k's own, and of correlated noise against all, (S,) each."""
    eye, square = torch.eye(len(design.z), dtype=torch.float64), design.noise**2

    def densities(signals: list[Tensor], noises: list[Tensor], factors: tuple[float, ...]) -> Tensor:
        found = [_density(s + f * square * c, y, design.first) for s in signals for c in noises for f in factors]
        return torch.stack(found)

    own = densities([s for s, _ in design.forecasters(OWN)], [eye], (0.25, 1.0, 4.0, 16.0))
    nothing = torch.full_like(y[0], -math.inf)
    shape = memory = nothing
    best, others = own.amax(0), [s for s, _ in design.forecasters(KERNEL)]
    if others:
        found = densities(others, [eye], (0.25, 1.0, 4.0))
        shape = found.logsumexp(0) - math.log(len(found)) - best
        best = torch.maximum(best, found.amax(0))
    times = design.forecasters(TIME)
    if times:
        found = densities([times[0][0]], [c / square for _, c in times], (0.25, 1.0, 4.0, 16.0))
        memory = found.logsumexp(0) - math.log(len(found)) - best
    return shape, memory


def _density(covariance: Tensor, y: Tensor, first: int) -> Tensor:
    """ln of the normal density of the judging rows given the first ones, up to a constant, (S,)."""
    factor = linalg.cholesky(covariance, "trials.judge")
    white = torch.linalg.solve_triangular(factor, y, upper=False)[first:]
    return -0.5 * white.square().sum(0) - factor.diagonal()[first:].log().sum()
