"""One idea: every claim is an interval against a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from scipy import special  # not scipy.stats: it takes a second to load, in every worker

from gpsafe import _require
from gpsafe._show import short, table


class Outcome(StrEnum):
    """What an interval says about the claim ``value ≤ threshold``."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    INCONCLUSIVE = "INCONCLUSIVE"


@short
@dataclass(frozen=True, slots=True)
class Verdict:
    """The claim ``value ≤ threshold``, given ``value ∈ [lower, upper]``.

    Args:
        lower: lower end of the interval for the value (−inf if nothing is known).
        upper: upper end (+inf if nothing is known, as after sampling alone: sampling refutes, never certifies); never −inf.
        threshold: the claimed bound, finite.
        tol: numerical margin ≥ 0 that the value must clear on either side.
        witness: what violates the claim, or how it was shown, in words.
    """

    lower: float
    upper: float
    threshold: float
    tol: float = 0.0
    witness: str = ""

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "threshold", "tol"):
            value = getattr(self, name)
            kind = str(getattr(value, "dtype", type(value).__name__))  # NumPy's and torch's have a __float__, too
            single = hasattr(value, "__float__") and not getattr(value, "ndim", 0)
            if isinstance(value, str) or not single or "bool" in kind or "complex" in kind or math.isnan(value):
                raise _require.fail("Verdict", f"a number for {name}", repr(value)[:60])
            object.__setattr__(self, name, float(value))  # float32 is compared as such: 0.1 in it is more than 0.1
        if math.isinf(self.threshold):
            raise _require.fail("Verdict", "a finite threshold", self.threshold)
        if self.upper == -math.inf:  # nothing was looked at, or something overflowed
            raise _require.fail("Verdict", "upper > -inf", self.upper)
        if self.lower > self.upper:
            raise _require.fail("Verdict", "lower <= upper", f"[{self.lower}, {self.upper}]")
        if self.tol < 0:
            raise _require.fail("Verdict", "tol >= 0", self.tol)

    @property
    def outcome(self) -> Outcome:
        """HOLDS if upper ≤ threshold − tol; VIOLATED if lower > threshold + tol; else INCONCLUSIVE."""
        if self.upper <= self.threshold - self.tol:
            return Outcome.HOLDS
        if self.lower > self.threshold + self.tol:
            return Outcome.VIOLATED
        return Outcome.INCONCLUSIVE

    def _repr_html_(self) -> str:
        rows = [("claim", f"value ≤ {self.threshold:.6g}"), ("value in", f"[{self.lower:.6g}, {self.upper:.6g}]")]
        rows += [("margin", self.tol), *([("witness", self.witness)] if self.witness else [])]
        return table(self.outcome.value, rows)


def worst_of(first: Any, *others: Any, key: Callable[[Any], float] = float) -> Any:
    """The largest of all, and NaN if there is one: `max` passes over it, and of NaN no `Verdict` can be made.

    >>> max(0.5, math.nan), worst_of(0.5, math.nan), worst_of([0.5, 2.0])
    (0.5, nan, 2.0)

    Args:
        first, others: values, or one iterable of them; at least one value.
        key: of a value, a number.
    """
    found = [first, *others] if others else list(first)
    ranks = [float(key(value)) for value in found]
    return found[max(range(len(found)), key=lambda i: (math.isnan(ranks[i]), ranks[i]))]


def clopper_pearson(successes: int, trials: int, confidence: float = 0.99) -> tuple[float, float]:
    """Two-sided Clopper–Pearson interval for a binomial probability (exact, conservative).

    >>> low, high = clopper_pearson(0, 100, 0.95)
    >>> low, round(high, 4)
    (0.0, 0.0362)
    """
    _require.count("clopper_pearson", "trials", trials)
    _require.count("clopper_pearson", "successes", successes, minimum=0)
    _require.probability("clopper_pearson", "confidence", confidence)
    if successes > trials:
        raise _require.fail("clopper_pearson", f"successes <= trials = {trials}", successes)
    tail = (1.0 - confidence) / 2
    lower = 0.0 if successes == 0 else float(special.betaincinv(successes, trials - successes + 1, tail))
    upper = 1.0 if successes == trials else float(special.betainccinv(successes + 1, trials - successes, tail))
    return lower, upper


def clopper_pearson_upper(successes: int, trials: int, delta: float) -> float:
    """One-sided upper confidence limit: P(p > limit) ≤ delta."""
    _require.count("clopper_pearson_upper", "trials", trials)
    _require.count("clopper_pearson_upper", "successes", successes, minimum=0)
    _require.probability("clopper_pearson_upper", "delta", delta)
    if successes > trials:
        raise _require.fail("clopper_pearson_upper", f"successes <= trials = {trials}", successes)
    return 1.0 if successes == trials else float(special.betainccinv(successes + 1, trials - successes, delta))


def anytime_interval(failures: int, trials: int, alpha: float) -> tuple[float, float]:
    """[lower, upper] for a binomial probability p, each end valid at *every* number of trials at once.

    P(∃ n: p > upper_n) ≤ α and P(∃ n: p < lower_n) ≤ α, so that a test may look after each trial and stop when it has seen
    enough. upper = sup{p : e_n(p) < 1/α} with e_n(p) = ½ Σ_q (q/p)^k ((1−q)/(1−p))^{n−k} over q ∈ {0, p/4}, k failures in n
    trials: for a true p₀ ≥ p each term is a nonnegative supermartingale with mean ≤ 1 (a factor has mean
    p₀ q/p + (1−p₀)(1−q)/(1−p), which falls in p₀ and is 1 at p₀ = p), and Ville's inequality holds. The lower end is that of
    the successes. Without a failure it is as sharp as a test of fixed size, but for the factor ½.

    >>> low, high = anytime_interval(0, 32, 0.05)
    >>> low, round(high, 3)
    (0.0, 0.098)
    """
    _require.count("anytime_interval", "trials", trials)
    _require.count("anytime_interval", "failures", failures, minimum=0)
    _require.probability("anytime_interval", "alpha", alpha)
    if failures > trials:
        raise _require.fail("anytime_interval", f"failures <= trials = {trials}", failures)
    return 1.0 - _anytime_upper(trials - failures, trials, alpha), _anytime_upper(failures, trials, alpha)


def _anytime_upper(failures: int, trials: int, alpha: float) -> float:
    def evidence(p: float) -> float:
        """ln e_n(p); it grows with p above failures/trials."""
        never = -trials * math.log1p(-p) if failures == 0 else -math.inf
        seldom = failures * math.log(0.25) + (trials - failures) * (math.log1p(-p / 4) - math.log1p(-p))
        return max(never, seldom) + math.log1p(math.exp(-abs(never - seldom))) - math.log(2.0)

    low, high = failures / trials, 1.0
    while high - low > 1e-12:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if evidence(middle) < -math.log(alpha) else (low, middle)
    return high


def hoeffding_radius(trials: int, value_range: float, delta: float) -> float:
    """One-sided deviation: P(E X − mean > radius) ≤ delta for i.i.d. X in an interval of length `value_range`."""
    _require.count("hoeffding_radius", "trials", trials)
    _require.nonnegative("hoeffding_radius", "value_range", value_range)
    _require.probability("hoeffding_radius", "delta", delta)
    return value_range * math.sqrt(math.log(1 / delta) / (2 * trials))


def bernstein_radius(trials: int, value_range: float, sample_var: float, delta: float) -> float:
    """One-sided empirical-Bernstein deviation (Maurer & Pontil 2009, Theorem 4).

    P(E X − mean > sqrt(2 s² ln(2/δ)/n) + 7 r ln(2/δ)/(3(n−1))) ≤ δ with s² the unbiased sample variance.
    """
    _require.count("bernstein_radius", "trials", trials, minimum=2)
    _require.nonnegative("bernstein_radius", "value_range", value_range)
    _require.nonnegative("bernstein_radius", "sample_var", sample_var)
    _require.probability("bernstein_radius", "delta", delta)
    log = math.log(2 / delta)
    return math.sqrt(2 * sample_var * log / trials) + 7 * value_range * log / (3 * (trials - 1))
