"""Constrained policy optimisation (Achiam, Held, Tamar, Abbeel, ICML 2017): max gᵀd subject to c + bᵀd ≤ 0, ½ dᵀHd ≤ δ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpsafe import _require
from gpsafe.baselines._nets import Array
from gpsafe.baselines._surrogate import Surrogate
from gpsafe.baselines.onpolicy import Data, OnPolicy

TINY = 1e-12


def corrected_step(g: Array, b: Array, c: float, radius: float, solve: Callable[[Array], Array]) -> tuple[Array, str]:
    """The step d that maximises gᵀd subject to c + bᵀd ≤ 0 and ½ dᵀHd ≤ δ, and which case it is.

    With x = H⁻¹g, p = H⁻¹b, q = gᵀx, r = gᵀp, s = bᵀp: "free", where √(2δ/q) x satisfies c + bᵀd ≤ 0; else "bounded", on
    the plane c + bᵀd = 0: d = −(c/s) p + √(B/A) (x − (r/s) p), A = q − r²/s, B = 2δ − c²/s; "recovery", where the plane misses
    the ellipsoid (c > 0, B < 0): −√(2δ/s) p, which lowers the cost most. With b = 0 and c > 0 no step is known to help: 0.

    Args:
        g, b: ∇ of the reward's and of the cost's surrogate, (P,).
        c: what the cost exceeds its limit by.
        radius: δ.
        solve: v ↦ H⁻¹v, H positive definite.
    """
    x, p = solve(g), solve(b)
    q, r, s = g @ x, g @ p, b @ p
    free = math.sqrt(2 * radius / q) * x if q > TINY else np.zeros_like(g)
    if c + b @ free <= 0:
        return free, "free"
    if s <= TINY:
        return (free, "free") if c <= 0 else (np.zeros_like(g), "recovery")
    a, rest = max(q - r * r / s, 0.0), 2 * radius - c * c / s
    if rest < 0:  # then c > 0: a plane that misses the ellipsoid elsewhere leaves it free
        return -math.sqrt(2 * radius / s) * p, "recovery"
    along = math.sqrt(rest / a) * (x - r / s * p) if a > TINY * max(q, TINY) else np.zeros_like(g)
    return -c / s * p + along, "bounded"


def published_step(g: Array, b: Array, c: float, radius: float, solve: Callable[[Array], Array]) -> tuple[Array, str]:
    """The step of the released code, in its cases 0–4, as a description of that code has it.

    **The sign of r is wrong in it:** ν = max(0, λc − r)/s and f_a are those of minimising gᵀd, while x = H⁻¹g climbs. For the
    ascent that is taken it must be λc + r. Should g be the gradient of a loss in the code, the slip is the description's.
    Where reward and cost conflict (r > 0), ν is 0 and the constraint is ignored; where they agree it is enforced without
    need. With c = 0 the projection divides by zero, and the constraint is ignored if r > 0.
    """
    eps = 1e-8
    x, p = solve(g), solve(b)
    q, r, s, c = (np.float64(v) for v in (g @ x, g @ p, b @ p, c))
    a, rest = q - r * r / (s + eps), 2 * radius - c * c / (s + eps)
    if (b @ b <= 1e-6 and c < 0) or (c < 0 and rest < 0):
        return math.sqrt(2 * radius / (q + eps)) * x, "free"
    if rest < 0:
        return -math.sqrt(2 * radius / (s + eps)) * p, "recovery"
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (0.0, r / c), (r / c, np.inf)
        of_a, of_b = (low, high) if c < 0 else (high, low)
        lam_a = max(of_a[0], min(of_a[1], np.sqrt(a / rest)))
        lam_b = max(of_b[0], min(of_b[1], np.sqrt(q / (2 * radius))))
        f_a = -0.5 * (a / (lam_a + eps) + rest * lam_a) - r * c / (s + eps)
        f_b = -0.5 * (q / (lam_b + eps) + 2 * radius * lam_b)
        lam = lam_a if f_a >= f_b else lam_b
        nu = max(0.0, lam * c - r) / (s + eps)
        return (x - nu * p) / (lam + eps), "bounded"


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class CPO(OnPolicy):
    """c = (Ĵ_c − d)/(mean steps of an episode), b = ∇E[ρ A_c]; backtracking 0.8^j along the step.

    Published: `published_step` with its sign; the cost is that of the measured state; KL ≤ 1.5 δ; 20 trials (the paper:
    25); a trial is refused as not finite only if reward *and* divergence are not, and comparisons with NaN refuse nothing.
    Corrected: `corrected_step`; true cost; KL ≤ δ; 25 trials; all numbers finite.

    Args:
        radius: δ; searched over 1e-4, 5e-4, 1e-3.
        The rest: see `OnPolicy`.
    """

    radius: float = 1e-3

    def __post_init__(self) -> None:
        super(CPO, self).__post_init__()
        _require.positive("CPO", "radius", self.radius)

    def _improve(self, data: Data) -> Mapping[str, Any]:
        local = Surrogate(self._parts["policy"], data.rows, data.drawn, data.std)
        reward, cost = data.advantage
        g, b = local.gradient(reward), local.gradient(cost)
        c, published = (data.cost - self.allowed) / data.length, self.preset == "published"
        step, case = (published_step if published else corrected_step)(g, b, c, self.radius, local.natural)
        gained, spent = reward.mean(), cost.mean()
        largest = self.radius * (1.5 if published else 1.0)

        def accept(mean: Array, ratio: Array, divergence: float, share: float) -> bool:
            more, worse = (ratio * reward).mean() - gained, (ratio * cost).mean() - spent
            ends = np.isfinite([more, worse, divergence])
            if not (ends[0] or ends[2]) if published else not ends.all():
                return False
            falls = more < 0 and (case == "free" or (case == "bounded" and c < 0))
            return not (divergence > largest or falls or worse > max(-c, 0.0))

        share, divergence = local.search(step, accept, times=20 if published else 25)
        return {"case": case, "share": share, "kl": divergence, "excess": c}
