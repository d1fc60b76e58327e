"""TRPO on the Lagrangian: L = (E[ρA] − λ E[ρA_c])/(1 + λ) is climbed in a trust region, while λ climbs the cost's excess."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpsafe import _require
from gpsafe.baselines._nets import Array, Numbers
from gpsafe.baselines._surrogate import Surrogate
from gpsafe.baselines.base import Part
from gpsafe.baselines.onpolicy import Data, OnPolicy


def ascended(multiplier: float, excess: float, rate: float) -> float:
    """max(0, λ + α (Ĵ_c − d)): with d = 0 and costs ≥ 0 it never falls."""
    return max(0.0, multiplier + rate * excess)


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class TRPOLagrangian(OnPolicy):
    """First λ, then one natural-gradient step √(2δ/xᵀHx) x on L, x = H⁻¹∇L, backtracking 15 × 0.8.

    Published: the cost is that of the measured state; KL ≤ 1.5 δ is accepted. Corrected: true cost; KL ≤ δ. In both λ cannot
    fall where d = 0, as in the published comparison: give a positive `limit` for a multiplier that finds its level.

    Args:
        radius: δ; searched over 1e-4, 1e-3, 1e-2.
        multiplier_rate: α_λ; searched over 1e-3, 1e-2, 1e-1.
        The rest: see `OnPolicy`.
    """

    radius: float = 1e-3
    multiplier_rate: float = 1e-2

    def __post_init__(self) -> None:
        super(TRPOLagrangian, self).__post_init__()
        for name in ("radius", "multiplier_rate"):
            _require.positive("TRPOLagrangian", name, getattr(self, name))

    def _fresh(self) -> dict[str, Part]:
        return {**super(TRPOLagrangian, self)._fresh(), "multiplier": Numbers(value=1e-3)}

    def _improve(self, data: Data) -> Mapping[str, Any]:
        held = self._parts["multiplier"]
        lam = held["value"] = ascended(held["value"], data.cost - self.allowed, self.multiplier_rate)
        weight = (data.advantage[0] - lam * data.advantage[1]) / (1 + lam)
        local = Surrogate(self._parts["policy"], data.rows, data.drawn, data.std)
        share, divergence = trust_region(local, weight, self.radius, 1.5 if self.preset == "published" else 1.0)
        return {"multiplier": lam, "share": share, "kl": divergence}


def trust_region(local: Surrogate, weight: Array, radius: float, slack: float = 1.0) -> tuple[float, float]:
    """One step of TRPO on E[ρ·weight]: share of √(2δ/xᵀHx) x that improves it at KL ≤ slack·δ, and the KL."""
    gradient = local.gradient(weight)
    x = local.natural(gradient)
    square = x @ local.fisher(x)
    if not square > 0:
        return 0.0, 0.0
    before = weight.mean()

    def accept(mean: Array, ratio: Array, divergence: float, share: float) -> bool:
        return bool((ratio * weight).mean() > before and divergence <= slack * radius)

    return local.search(math.sqrt(2 * radius / square) * x, accept, times=15)
