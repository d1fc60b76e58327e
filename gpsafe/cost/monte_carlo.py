"""Monte-Carlo parts of cost bounds: noise, one-sided confidence limits of means, and where δ goes.

**Accounting.** A bound has one total δ for a whole run. Its evaluation at stage n (n = number of generations of
the confidence set, ≥ 1) may fail with probability δ_n = δ/(n(n + 1)), and Σ_n δ_n = δ; the P policies of the call
share δ_n equally. The noise of stage n is a function of (seed, n) alone, so it is fresh at every stage: F_n may
depend on the outcomes of earlier evaluations (they chose the policies that produced the data) but not on this
stage's noise. Evaluating the same policies at the same stage again gives the same numbers and spends nothing;
a caller that evaluates up to k *different* classes at one stage says so (`calls=k`), and each gets δ_n/k.
The seed must not be the one that drives the plant.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.systems.base import sample_noise


def stage_delta(delta: float, stage: int, *, calls: int = 1) -> float:
    """δ/(calls · n(n + 1)): the shares of all stages and calls sum to δ.

    >>> round(sum(stage_delta(0.1, n, calls=3) * 3 for n in range(1, 10_000)), 4)
    0.1
    """
    _require.probability("stage_delta", "delta", delta)
    _require.count("stage_delta", "stage", stage)
    _require.count("stage_delta", "calls", calls)
    return delta / (calls * stage * (stage + 1))


def stream(seed: int, stage: int, purpose: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for (seed, stage, purpose); different triples give independent streams."""
    _require.count("stream", "seed", seed, minimum=0)
    state = np.random.SeedSequence((seed, stage, purpose)).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def noise_paths(
    noise_std: Tensor, horizon: int, paths: int, *, seed: int, stage: int, purpose: int, device: torch.device
) -> Tensor:
    """w ~ N(0, diag(noise_std²)), (T, 1, N, nx), the same for every policy (common random numbers)."""
    return sample_noise(noise_std, (horizon, 1, paths), stream(seed, stage, purpose)).to(device)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(Bernoulli(p) ‖ Bernoulli(q))."""
    return torch.special.xlogy(p, p / q) + torch.special.xlogy(1 - p, (1 - p) / (1 - q))


def kl_upper(mean: Tensor, trials: int, delta: float) -> Tensor:
    """sup{q : n·KL(mean ‖ q) ≤ ln(1/δ)}, rounded up by bisection: P(E X > limit) ≤ δ for i.i.d. X ∈ [0, 1].

    Chernoff's bound with Hoeffding's remark that a [0, 1] variable has no larger moment generating function than
    the Bernoulli variable of the same mean. For mean 0 it is 1 − δ^{1/n}, as Clopper–Pearson's; unlike theirs it
    needs no {0, 1} values.
    """
    _require.count("kl_upper", "trials", trials)
    _require.probability("kl_upper", "delta", delta)
    level = math.log(1 / delta) / trials
    low, high = mean.clone(), torch.ones_like(mean)
    for _ in range(60):
        middle = 0.5 * (low + high)
        above = (_kl(mean, middle.clamp(1e-300, 1 - 1e-16)) > level) & (middle > mean)
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (high * (1 + 1e-12)).clamp_max(1.0)


def _scaled(samples: Tensor, ceiling: float, delta: float) -> Tensor:
    """samples/ceiling, checked to lie in [0, 1]."""
    _require.count("mean_upper", "number of samples", samples.shape[-1], minimum=2)
    _require.probability("mean_upper", "delta", delta)
    scaled = samples / ceiling
    if not bool(((scaled >= 0) & (scaled <= 1 + 1e-12)).all()):
        raise _require.fail("mean_upper", f"samples in [0, {ceiling}]", "values outside, or NaN")
    return scaled


def dominating_mean_upper(samples: Tensor, ceiling: float, delta: float) -> Tensor:
    """A number ≥ E X except with probability δ, from *any* Y_i ≥ X_i with i.i.d. X ∈ [0, ceiling], (*b, N) → (*b,).

    The Y_i may depend on each other. The Chernoff–Hoeffding limit grows with every sample, so the limit of Y is at least
    that of X. (The empirical-Bernstein limit does not: raising one small sample may lower it.)
    """
    scaled = _scaled(samples, ceiling, delta)
    limit = kl_upper(scaled.mean(-1).clamp(0.0, 1.0), samples.shape[-1], delta)
    return (ceiling * limit * (1 + 1e-12)).clamp_max(ceiling)


def mean_upper(samples: Tensor, ceiling: float, delta: float) -> Tensor:
    """A number ≥ E X except with probability δ, from i.i.d. samples X ∈ [0, ceiling], (*b, N) → (*b,).

    The smaller of the Chernoff–Hoeffding limit at 0.9 δ and the empirical-Bernstein limit of Maurer & Pontil
    (2009, Thm 4) at 0.1 δ: the first is sharp for rare costs, the second for small variance.
    """
    scaled, count = _scaled(samples, ceiling, delta), samples.shape[-1]
    mean, log = scaled.mean(-1).clamp(0.0, 1.0), math.log(2 / (0.1 * delta))
    spread = (2 * scaled.var(-1) * log / count).sqrt()
    bernstein = mean + spread + 7 * log / (3 * (count - 1))
    limit = torch.minimum(kl_upper(mean, count, 0.9 * delta), bernstein)
    return (ceiling * limit * (1 + 1e-12)).clamp_max(ceiling)


def mean_lower(samples: Tensor, ceiling: float, delta: float) -> Tensor:
    """A number ≤ E X except with probability δ, from i.i.d. samples X ∈ [0, ceiling], (*b, N) → (*b,)."""
    _scaled(samples, ceiling, delta)
    return ceiling - mean_upper((ceiling - samples).clamp_min(0.0), ceiling, delta)
