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
    mean = _require.floats("kl_upper", "mean", mean)
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
    _require.positive_number("mean_upper", "ceiling", ceiling)
    scaled = _require.floats("mean_upper", "samples", samples) / ceiling  # integers would be divided in float32
    if not bool(((scaled >= 0) & (scaled <= 1 + 1e-12)).all()):
        raise _require.fail("mean_upper", f"samples in [0, {ceiling}]", "values outside, or NaN")
    return scaled


def betting_upper(samples: Tensor, delta: float) -> Tensor:
    """A number ≥ E X except with probability δ, from i.i.d. samples X ∈ [0, 1], (*b, N) → (*b,); it grows with every sample.

    *Statement.* With bets θ_j ∈ (0, 1], weights w_j > 0, Σ w_j = 1, that depend on N and δ alone, and the capital

        K(m) = Σ_j w_j Π_i (1 + θ_j (m − X_i)/(1 − m)),                                                              (1)

    the limit is sup{m : K(m) < 1/δ}. *Proof.* Every factor is ≥ 0 (at X_i = 1 it is 1 − θ_j), and its mean is 1 at m = E X:
    so E K(E X) = 1, and K(E X) ≥ 1/δ has probability at most δ (Markov); if not, E X is below the supremum. A factor falls with
    X_i and grows with m, its derivative being θ_j(1 − X_i)/(1 − m)² ≥ 0: so the limit is where K crosses 1/δ, and grows with
    every X_i. □

    A fixed bet θ = λ(1 − m) is the wealth of Waudby-Smith & Ramdas (2024) with a constant fraction; a predictable one, which
    learns from earlier samples, would not be monotone in them. θ = 1 is the best bet on costs that are never near 1, and gives
    1 − (δ Π (1 − X_i))^{1/N}; smaller ones serve larger deviations, down to √(ln(1/δ)/N).

    *Rounding.* The crossing is bracketed from above; capital within 1e-9 of the threshold does not count as above. Rows with a
    sample outside [0, 1] get 1.
    """
    samples = _require.floats("betting_upper", "samples", samples)
    count, log = samples.shape[-1], math.log(1 / delta)
    least = min(1.0, math.sqrt(log / count))
    bets = [2.0**-j for j in range(1 + math.ceil(-math.log2(least)))]
    weights = [0.8, *[0.2 / (len(bets) - 1)] * (len(bets) - 1)] if len(bets) > 1 else [1.0]
    known, x = ((samples >= 0) & (samples <= 1 + 1e-12)).all(-1), samples.clamp(0.0, 1.0)
    low, high = x.mean(-1), torch.ones_like(x[..., 0])
    rest = torch.log1p(-x).sum(-1)
    for _ in range(44):
        middle = 0.5 * (low + high)
        room = torch.log1p(-middle)
        parts = [math.log(weights[0]) + rest - count * room]
        for bet, weight in zip(bets[1:], weights[1:], strict=True):
            factor = (1 - middle).unsqueeze(-1) + bet * (middle.unsqueeze(-1) - x)
            parts.append(math.log(weight) + factor.clamp_min(0.0).log().sum(-1) - count * room)
        above = torch.logsumexp(torch.stack(parts), 0) >= log * (1 + 1e-12) + 1e-9
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.where(known, (high * (1 + 1e-12)).clamp_max(1.0), 1.0)


def dominating_mean_upper(samples: Tensor, ceiling: float, delta: float) -> Tensor:
    """A number ≥ E X except with probability δ, from *any* Y_i ≥ X_i with i.i.d. X ∈ [0, ceiling], (*b, N) → (*b,).

    The smaller of `betting_upper` at 0.8δ and of the Chernoff–Hoeffding limit at 0.2δ, which is sharp for costs that are all or
    nothing. The Y_i may depend on each other: both grow with every sample, so the limit of Y is at least that of X.
    (An empirical-Bernstein limit does not: raising one small sample may lower it.)
    """
    return _limit(samples, ceiling, delta)


def mean_upper(samples: Tensor, ceiling: float, delta: float) -> Tensor:
    """A number ≥ E X except with probability δ, from i.i.d. samples X ∈ [0, ceiling], (*b, N) → (*b,).

    The limit of `dominating_mean_upper`: beside it an empirical-Bernstein limit would cost δ, and help for N > 10⁵ only.
    """
    return _limit(samples, ceiling, delta)


def _limit(samples: Tensor, ceiling: float, delta: float) -> Tensor:
    scaled = _scaled(samples, ceiling, delta)
    count, mean = samples.shape[-1], scaled.mean(-1).clamp(0.0, 1.0)
    limit = torch.minimum(betting_upper(scaled, 0.8 * delta), kl_upper(mean, count, 0.2 * delta))
    return (ceiling * limit * (1 + 1e-12)).clamp_max(ceiling)


def mean_lower(samples: Tensor, ceiling: float, delta: float) -> Tensor:
    """A number ≤ E X except with probability δ, from i.i.d. samples X ∈ [0, ceiling], (*b, N) → (*b,)."""
    samples = _require.floats("mean_lower", "samples", samples)
    _scaled(samples, ceiling, delta)
    return ceiling - mean_upper((ceiling - samples).clamp_min(0.0), ceiling, delta)
