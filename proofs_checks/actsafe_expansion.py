"""Theory §4 (v), (vi), §2.9: what the expansion phase rests on and promises beyond `actsafe_theory`.

The conditional form of the sum of uncertainties, the number of episodes n* beside what was needed, near-optimality after the
phase, and F_n along one run. Finite plants (`proofs_checks._finite`) are exact.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from unittest import mock

import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.models import GP
from gpsafe.planning.explore import sufficient_episodes
from gpsafe.rkhs import kernels, random_function
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.verdict import Verdict, clopper_pearson, worst_of

from . import actsafe
from ._defects import around, times
from ._finite import FinitePlant
from ._regression import generator
from .actsafe_theory import CELLS, ROOT, Draw, amplification, draw, spread

DELTA = 0.1
CONFIDENCE = 0.99
E = math.e / (math.e - 1)


def judge_ratio(samples: Sequence[Sample], broken: bool) -> Evidence:
    """The largest left side over right side; it must not exceed 1."""
    top = worst_of(samples, key=lambda s: s["worst"])
    verdict = Verdict(top["worst"], top["worst"], 1.0, tol=1e-9, witness=top["about"])
    return Evidence(sum(s["cases"] for s in samples), top["worst"], verdict, {"worst": [s["worst"] for s in samples]})


def judge_rate(samples: Sequence[Sample], broken: bool) -> Evidence:
    """The largest rate of runs that failed among the cases, at most δ: a case that fails must not be thinned by the others."""
    failures, trials = (
        [sum(case) for case in zip(*(s[key] for s in samples), strict=True)] for key in ("failures", "trials")
    )
    level = 1 - (1 - CONFIDENCE) / len(trials)
    ends = [clopper_pearson(k, n, level) for k, n in zip(failures, trials, strict=True)]
    lower, upper = (worst_of(end[i] for end in ends) for i in (0, 1))
    estimate = worst_of(k / n for k, n in zip(failures, trials, strict=True))
    told = f"{sum(failures)} of {sum(trials)} runs; {samples[0]['about']}"
    return Evidence(sum(trials), estimate, Verdict(lower, upper, DELTA, witness=told), {"failures": failures})


# ------------------------------------------------------------------------------------------ F_n along one run (theory §2.9)
UPDATES, ROWS = 6, 5


def intersection(shard: int, budget: Budget, broken: bool) -> Sample:
    """f* in F_n on a grid after every update of one growing data set, and F_n nested.

    Broken: of a hundred times as many observations the largest are kept, as no set can see.
    """
    failures, trials, widest = 0, 20, 0.0
    grid = torch.linspace(0, 1, 60, dtype=torch.float64).unsqueeze(-1)
    for trial in range(trials):
        source = generator(71, shard, trial)
        kernel, noise = kernels.rbf([0.15]), 0.1
        f = random_function(kernel, torch.zeros(1).double(), torch.ones(1).double(), norm=1.0, generator=source)
        model = GP.create(kernel, noise**2, nx=1, nu=0, noise_std=noise)
        used = ConfidenceSet(Mixture(rkhs_norm=f.norm_upper, subgaussian=noise, delta=DELTA)).update(model)
        truth, (low, high) = f(grid).unsqueeze(-1), used.bounds(grid)
        failed = False
        for _ in range(UPDATES):
            count = 100 * ROWS if broken else ROWS
            z = torch.rand(count, 1, dtype=torch.float64, generator=source)
            y = f(z).unsqueeze(-1) + noise * torch.randn(count, 1, dtype=torch.float64, generator=source)
            kept = y.squeeze(-1).topk(ROWS).indices
            model = model.condition_on(z[kept], y[kept])
            used = used.update(model)
            before, (low, high) = (low, high), used.bounds(grid)
            outside = not bool(((truth >= low) & (truth <= high)).all())
            grown = bool(((low < before[0] - 1e-12) | (high > before[1] + 1e-12)).any())
            failed = failed or outside or grown
        failures += failed
        widest = worst_of(widest, float((high - low).mean()))
    return {"failures": [failures], "trials": [trials], "about": f"mean width at the end at most {widest:.3g}"}


# -------------------------------------------------------------- the sum of conditional expectations (theory §4 (v), remark)
def _path(gain: Tensor, horizon: int, square: float, lam: float) -> Tensor:
    """A g."""
    return amplification(horizon, square, lam) * spread(horizon, square, lam) * gain


def _chance(horizon: int, square: float) -> float:
    """T²s² ln(1/δ′): for places that chance leaves out."""
    return horizon**2 * square * math.log(1 / DELTA)


def _granted(gain: Tensor, horizon: int, square: float, lam: float) -> Tensor:
    """(e/(e − 1))(A g + T²s² ln(1/δ′))."""
    return E * (_path(gain, horizon, square, lam) + _chance(horizon, square))


def conditional(shard: int, budget: Budget, broken: bool) -> Sample:
    """Runs with Σ_{n≤N} E[X_n | past]² above the right side for some N, on two places that are visited at random.

    Broken: A g alone, as if the sum of expectations were below the sum path by path. A place that is seldom visited counts in
    every episode until it is. In the last case much is learned of a place that is hardly ever left out, so that A g leads.
    """
    source, failures, runs, largest = generator(72, shard), [], 200, 0.0
    for horizon, lam, share in ((1, 0.01, 0.02), (1, 0.1, 0.3), (3, 0.01, 0.05), (3, 1.0, 0.3), (1, 100.0, 0.9)):
        episodes = 120
        chance = torch.tensor([1 - share, share], dtype=torch.float64)  # of place 0, which is known, and of place 1
        stds = torch.tensor([1e-6, 1.0], dtype=torch.float64)
        counts = torch.zeros(runs, 2, dtype=torch.float64)
        left, gain, worst = (torch.zeros(runs, dtype=torch.float64) for _ in range(3))
        for _ in range(episodes):
            std = stds / (1 + counts * stds.square() / lam).sqrt()
            left = left + (horizon * (std * chance).sum(-1)).square()
            drawn = (torch.rand(runs, horizon, dtype=torch.float64, generator=source) < share).sum(-1)
            counts = counts + torch.stack([horizon - drawn, drawn], dim=-1)
            gain = 0.5 * torch.log1p(counts * stds.square() / lam).sum(-1)
            granted = (_path if broken else _granted)(gain, horizon, 1.0, lam)
            worst = torch.maximum(worst, left / granted.clamp_min(1e-300))
        failures.append(int((~(worst <= 1)).sum()))
        largest = worst_of(largest, float(worst.max()))
    about = f"largest left side over right side {largest:.3g}"
    return {"failures": failures, "trials": [runs] * len(failures), "about": about}


# --------------------------------------------------------------------------------- enough episodes, and n* (theory §4 (vi))
_SHARE = 1.0  # of n* that is claimed to do; graded controls lower it


def _enough(horizon: int, noise: float, scale: float, epsilon: float) -> tuple[int, float]:
    """n* of theory §4 (vi) for H = 1, B = 1 and f = θu, γ_M = ½ ln(1 + M s²/λ), and b for its β; to the episode."""

    def fits(episodes: int) -> tuple[bool, float]:
        gain = torch.tensor(0.5 * math.log1p(episodes * horizon * scale**2 / noise**2))
        beta = math.sqrt(1 + 2 * float(gain) + 2 * math.log(1 / DELTA))
        b = epsilon * noise * ROOT / (2 * beta * (horizon - 1))
        kappa = 1 + 2 * beta * (horizon - 1) * scale / (noise * ROOT)
        return episodes - float(_granted(gain, horizon, scale**2, noise**2)) * kappa**2 / b**2 >= 1, b

    high = next(2**k for k in range(64) if fits(2**k)[0])
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle)[0] else (middle, high)
    return high, fits(high)[1]


def _reference() -> float:
    """n* of one round on the first reference plant for ε = 0.1, in the mean, with the β before any data: it is larger."""
    system = actsafe.reference_1d()
    noise = float(system.noise_std)
    z = torch.cartesian_prod(*(torch.linspace(-1, 1, 25, dtype=torch.float64),) * 2)
    gram = kernels.cross(system.kernels[0], z, z)
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=noise, delta=DELTA)
    model = GP.create(system.kernels, noise**2, nx=1, nu=1, noise_std=noise)
    return sufficient_episodes(
        epsilon=0.1, beta_of=float(bound.beta(model)[0]), horizon=system.horizon, ceiling=1.0, noise_std=system.noise_std,
        prior_std=gram.diagonal()[:1].sqrt(), regularizer=noise**2, outputs=1,
        domain_eigenvalues=torch.linalg.eigvalsh(gram).clamp_min(0.0),
    )  # fmt: skip


def phase(shard: int, budget: Budget, broken: bool) -> Sample:
    """n* episodes of expansion over constant inputs on x⁺ = c(x) + u/4 + θu + w: how many are not good.

    One unknown number and noise larger than it: n* is some hundreds, so that it can be run out. Broken: the input 0 every time,
    from which nothing is learned.
    """
    source = generator(73, shard)
    noise, horizon, count = 0.5, 2, 9
    scale, epsilon = 0.3 * noise, 1.0
    centers = (torch.arange(10, dtype=torch.float64) + 0.5) / 5 - 1
    inputs = torch.linspace(-1, 1, count, dtype=torch.float64).unsqueeze(-1).expand(-1, 10)
    plant = FinitePlant(centers, inputs, 5, horizon, noise)
    theta = scale * (2 * float(torch.rand(1, generator=source)) - 1)
    enough, b = _enough(horizon, noise, scale, epsilon)
    low, high = -scale * inputs.abs(), scale * inputs.abs()
    precision, weighted, bad, last = 1.0, 0.0, 0, 0  # of θ/s, under the prior of variance 1
    for n in range(1, enough + 1):
        beta = math.sqrt(1 + math.log(precision) + 2 * math.log(1 / DELTA))
        mean, half = scale * inputs * (weighted / precision), beta * scale * inputs.abs() / math.sqrt(precision)
        low, high = torch.maximum(low, mean - half), torch.minimum(high, mean + half)
        unsure = plant.supremum(scale * inputs.abs() / math.sqrt(precision), low, high)[1]
        if float(unsure.max()) > b:
            bad, last = bad + 1, n
        z, y = plant.roll(theta * inputs, count // 2 if broken else int(unsure.argmax()), source)
        precision += float((scale * z[:, 1]).square().sum()) / noise**2
        weighted += float((scale * z[:, 1] * y).sum()) / noise**2
    about = f"{bad} of n* = {enough} episodes not good (b = {b:.3g}), the last the {last}th"
    if shard == 0 and not broken:
        about += (
            f"; on the first reference plant n* ≥ {_reference():.1g} for ε = 0.1, where 8 episodes reach 90 %: vacuous"
        )
    return {"worst": (bad + 1) / (_SHARE * enough), "cases": enough, "about": about}


def _fewer(factor: float) -> AbstractContextManager[object]:
    return mock.patch(f"{__name__}._SHARE", factor)


# -------------------------------------------------------------- near-optimality after expansion (theory §4 (vi), last part)
def allowance(d: Draw, b: Tensor) -> Tensor:
    """ε = 2Cβ(T−1)b/(σ√(2π))."""
    return 2 * d.beta * (d.plant.horizon - 1) / (ROOT * d.plant.noise_std) * b


def optimal(shard: int, budget: Budget, broken: bool) -> Sample:
    """Rewards lost by the policy of largest optimistic, or mean, reward over ε, where the largest exploration value is b.

    Random sets and posteriors of `actsafe_theory`; f* is against the policy that was chosen and for the best of the others, as
    far as the set allows (chosen anew at every step, which the theorem admits). Broken: b of the policy that is known best, as
    if a phase could end there.
    """
    worst, about, cases = 0.0, "", 0
    source = generator(74, shard)
    for index in range(16):
        d = draw(shard, index)
        reward = torch.rand(6, 1, CELLS, dtype=torch.float64, generator=source).round()
        unsure = d.plant.supremum(d.std, d.low, d.high)[1]
        most = unsure.min() if broken else unsure.max()
        epsilon = allowance(d, most)
        hopes = {"optimistic": d.plant.supremum(reward, d.low, d.high)[1], "mean": d.plant.value(reward, d.mid)}
        best, least = d.plant.supremum(reward, d.low, d.high)[0], -d.plant.supremum(-reward, d.low, d.high)[0]
        for how, hope in hopes.items():
            chosen = hope.argmax(-1, keepdim=True)  # (6, 1)
            lost = best.scatter(-1, chosen, -math.inf).amax(-1) - least.gather(-1, chosen).squeeze(-1)
            ratio, cases = float((lost / epsilon).max()), cases + len(lost)
            if ratio > worst:
                worst, about = ratio, f"{how}, {d.about}, T = {d.plant.horizon}, ε = {float(epsilon):.3g}"
    return {"worst": worst, "cases": cases, "about": about}


_HERE = sys.modules[__name__]
RATES: Mapping[Budget, int] = {"quick": 3, "full": 20}
FEW: Mapping[Budget, int] = {"quick": 1, "full": 4}
_SET = ("‖f*‖_k ≤ B (exact by construction)", "gaussian noise of known variance", "kernel and λ fixed before data")
_EXACT = "one state variable, finitely many cells (values exact up to rounding)"
CHECKS = (
    Check(
        name="confidence-intersection",
        claim="Along one growing data set f* stays in F_n, the intersection of all intervals so far, at all points and all n "
        "with probability ≥ 1 − δ, and F_n never grows.",
        source="ActSafe, section 4; theory §2.9",
        assumptions=(*_SET, "every observation kept"),
        statistic="99 % interval of the rate of runs in which f* is outside or the set grew; threshold δ = 0.1",
        control="only the largest of many observations are kept, as no set can see",
        shards=RATES,
        control_shards=FEW,
        sample=intersection,
        judge=judge_rate,
        grades=(Grade("confidence width β", around(Mixture, "beta", times), (0,), (0.3, 0.1)),),
    ),
    Check(
        name="actsafe-conditional-sum",
        claim="Σ_n E[Σ_t‖σ_{n−1}‖ | past]² ≤ (e/(e − 1))(A Γ + T²s² ln(1/δ′)) for all N with probability ≥ 1 − δ′.",
        source="theory §4 (v), remark",
        assumptions=("kernel and λ of the posterior", "two places that tell nothing of each other"),
        statistic="rate of runs in which the sum exceeds the right side for some N, largest of five cases, joint 99 % "
        "intervals; threshold δ′ = 0.1",
        control="A Γ alone, as if the sum were below the one path by path: a place seldom visited counts until it is",
        shards=FEW,
        sample=conditional,
        judge=judge_rate,
        grades=(
            Grade("right side", around(_HERE, "_granted", times), (0,), (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)),
            Grade("A Γ", around(_HERE, "_path", times), (0,), (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)),
            Grade("T²s² ln(1/δ′)", around(_HERE, "_chance", times), (0,), (0.5, 0.3, 0.1, 0.0)),
        ),
    ),
    Check(
        name="actsafe-episodes",
        claim="Of n* episodes of expansion at least one is good: its largest exploration value is at most b, and the next set "
        "holds R_ε(S_n).",
        source="ActSafe, Theorem 4.6; theory §4 (vi)",
        assumptions=(*_SET, _EXACT, "one unknown number and noise larger than it: n* is some hundreds here"),
        statistic="(episodes that are not good + 1)/n*; threshold 1",
        control="the input 0 every time instead of the policy of largest exploration value",
        shards={"quick": 2, "full": 20},
        control_shards=FEW,
        sample=phase,
        judge=judge_ratio,
        grades=(Grade("n*", _fewer, (0,), (0.05, 0.02, 0.01)),),
    ),
    Check(
        name="actsafe-near-optimal",
        claim="If the largest exploration value over S_n is b, the policy of largest optimistic reward, and that of largest "
        "mean reward, are within ε = 2Cβ(T−1)b/(σ√(2π)) of the best of S_n.",
        source="ActSafe, Theorem 4.6; theory §4 (vi)",
        assumptions=("|f* − μ_n| ≤ β σ_n", "gaussian noise of known variance", _EXACT),
        statistic="largest reward lost over ε; threshold 1",
        control="b of the policy that is known best instead of the largest",
        shards={"quick": 3, "full": 100},
        control_shards=FEW,
        sample=optimal,
        judge=judge_ratio,
        grades=(Grade("ε", around(_HERE, "allowance", times), (0,), (0.5, 0.4)),),
    ),
)
