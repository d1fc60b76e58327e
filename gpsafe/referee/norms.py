"""‖f‖_k: what rows prove (a lower bound, `gpsafe.referee.trials`), beside what is published as an estimate from above.

No upper bound follows from rows: a bump between two of them has any norm and leaves no trace. What is called one adds an
assumption about f, which is listed with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.referee import trials
from gpsafe.referee.trials import Design, Tried
from gpsafe.rkhs import kernels

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of R
DRAWS = 200  # random functions
EXTRA = 30  # further centres of each


@short
@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """L_n of nested judging rows, all at once with probability ≥ 1 − δ.

    Attributes:
        counts: n.
        lower: L_n with k's own forecasters.
        mean: norm of the posterior mean of the same rows: no bound of anything.
    """

    counts: tuple[int, ...]
    lower: tuple[float, ...]
    mean: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """a in L_n ~ n^a over the last factor of four; nan where L_n was 0."""
        n = self.counts[-1]
        start = min(range(len(self.counts)), key=lambda i: abs(self.counts[i] - n / 4))
        if self.lower[start] <= 0 or start == len(self.counts) - 1:
            return math.nan
        return math.log(self.lower[-1] / self.lower[start]) / math.log(n / self.counts[start])


def growth(design: Design, y: Tensor, tried: Tried) -> Growth:
    """Of one column y (n,), whose trial is `tried` (its first column)."""
    m = design.judging
    counts = sorted({max(4, m >> i) for i in range(6)})
    lower, mean = [], []
    for count in counts:
        values, vectors, error = trials.spectrum(design, count)
        turned = (vectors.T @ y[design.first :][:count]).square().unsqueeze(-1)
        radius = tried.radius[trials.OWN][count - 1, :1]
        lower.append(float(trials.norm_lower(values, turned, radius, error)[0]))
        mean.append(float((turned[:, 0] * values / (values + design.noise**2).square()).sum().sqrt()))
    return Growth(tuple(counts), tuple(lower), tuple(mean))


@dataclass(frozen=True, slots=True)
class Alternative:
    """What R would have to be: the tests again with another R.

    Attributes:
        factor: of R.
        lower: family → L.
        refuted: tests of (k, B, this R) that refute it.
    """

    factor: float
    lower: dict[str, float]
    refuted: tuple[str, ...]


JOINT = ("norm", "kernel", "time", "level", "tail", "held")


def alternatives(design: Design, y: Tensor) -> tuple[Alternative, ...]:
    """For R times each of `FACTORS`."""
    found = []
    for factor in FACTORS:
        other = replace(design, noise=factor * design.noise)
        try:
            tried = trials.judge(other, y.unsqueeze(-1))
        except ValueError:  # R too small for the arithmetic
            continue
        wrong = tried.refuted(other)
        names = tuple(name for name in JOINT if name in wrong and bool(wrong[name][0]))
        found.append(Alternative(factor, {name: float(v[0]) for name, v in tried.lower.items()}, names))
    return tuple(found)


def random_functions(design: Design, y: Tensor, *, seed: int = 0) -> Tensor:
    """Norms of random functions that have the observed values, (DRAWS,), sorted: after Tokmak et al. (2024, 2025).

    Each is Σ b_i k(z̃_i, ·), `EXTRA` centres uniform in the box of the rows and weights uniform, scaled to half of ‖μ‖² in the
    mean, plus the function of least norm that then meets the rows up to noise (R²). **If** f were one more draw of the same
    kind, ‖f‖ would be above the largest of N norms with probability 1/(N + 1). It is for nobody to know whether f is.
    """
    generator = torch.Generator().manual_seed(seed)
    z = design.z
    low, high = z.amin(0), z.amax(0)
    gram = kernels.cross(design.kernel, z, z)
    factor = linalg.cholesky(gram + design.noise**2 * torch.eye(len(z), dtype=torch.float64), "norms.random_functions")
    size = torch.cholesky_solve(y.unsqueeze(-1), factor)
    own = float((size.T @ gram @ size).clamp_min(0.0).sqrt())
    found = []
    for _ in range(DRAWS):
        extra = low + (high - low) * torch.rand(EXTRA, z.shape[1], dtype=torch.float64, generator=generator)
        weights = 2 * torch.rand(EXTRA, 1, dtype=torch.float64, generator=generator) - 1
        inner, cross = kernels.cross(design.kernel, extra, extra), kernels.cross(design.kernel, z, extra)
        weights = weights * (own / math.sqrt(2) / float((weights.T @ inner @ weights).clamp_min(1e-300).sqrt()))
        rest = torch.cholesky_solve(y.unsqueeze(-1) - cross @ weights, factor)
        square = rest.T @ gram @ rest + 2 * rest.T @ cross @ weights + weights.T @ inner @ weights
        found.append(float(square.clamp_min(0.0).sqrt()))
    return torch.tensor(sorted(found), dtype=torch.float64)


@short
@dataclass(frozen=True, slots=True)
class OverEstimate:
    """What is published as a bound of ‖f‖_k from above, and what it is under.

    Attributes:
        value: the estimate.
        failure: probability that ‖f‖_k is larger, if the assumption holds.
        assumptions: that one.
    """

    value: float
    failure: float
    assumptions: tuple[Believed, ...]


def over_estimate(design: Design, y: Tensor, *, failure: float = 0.05, seed: int = 0) -> OverEstimate:
    """The PAC over-estimate of one column y (n,): the least order statistic of `random_functions` that is enough.

    N draws and f, all of one kind, are exchangeable: ‖f‖ exceeds the k-th smallest of the N norms with probability at most
    1 − k/(N + 1), and k = ⌈(1 − failure)(N + 1)⌉. The draws are scaled by the very rows, so that even a random function with
    uniform centres and weights of its own is not one of them: the level is not met on such (tests/referee).

    Raises:
        ValueError: if N draws cannot show so small a failure.
    """
    y = _require.shape("norms.over_estimate", "y", _require.finite("norms.over_estimate", "y", y), (len(design.z),))
    rank = math.ceil((1 - _require.probability("norms.over_estimate", "failure", failure)) * (DRAWS + 1) - 1e-9)
    if rank > DRAWS:
        raise _require.fail("norms.over_estimate", f"failure >= 1/{DRAWS + 1}", failure)
    kind = Assumption.GIVEN("f is one more random function of the kind that was drawn (centres and weights uniform)")
    return OverEstimate(float(random_functions(design, y, seed=seed)[rank - 1]), failure, listed([kind]))
