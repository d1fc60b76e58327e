"""A policy family for the cart-pole near hanging: drive the cart to a set-point, damp the pole or pump it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.linalg import vector
from gpsafe.policies import AffinePolicies
from gpsafe.sets import Box
from gpsafe.systems.base import KnownPart
from gpsafe.systems.riccati import riccati


def hanging_lqr(known: KnownPart, *, position: float, speed: float, swing: float, effort: float) -> Tensor:
    """Gain K (1, 4) of u = −K x, the discrete LQR of the linearisation of `known` at rest, hanging (θ = 0 down).

    Stage cost position·x² + swing·θ² + speed·(v² + ω²) + effort·u², in m², rad², … : only a way to choose K.
    """
    x, u = torch.zeros(4, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return riccati(known, x, u, vector(position, swing, speed, speed), vector(effort))


@short
@dataclass(frozen=True, slots=True, eq=False)
class CartPolePolicies:
    """u = clip(K_i (g_i e_x − x) + pump_i·ω, ±1) for every gain, set-point g (m) and pump (1/(rad/s)).

    pump adds to the feedback on ω: one sign damps the pole more, the other feeds it energy until the clip limits the
    swing. The order is gains (slowest), pumps, set-points (fastest).

    Attributes:
        policies: the P affine policies.
        gain: index of the gain, (P,).
        pump: (P,).
        target: g, (P,), m.
    """

    policies: AffinePolicies
    gain: Tensor
    pump: Tensor
    target: Tensor

    @staticmethod
    def create(gains: Sequence[Tensor], targets: Tensor, pumps: Sequence[float]) -> CartPolePolicies:
        """All combinations of gains (1, 4), set-points (G,) and pumps."""
        targets = _require.finite("CartPolePolicies", "targets", targets)
        if targets.ndim != 1 or not gains or not pumps:
            got = (len(gains), tuple(targets.shape), len(pumps))
            raise _require.fail("CartPolePolicies", "gains, set-points (G,) and pumps", got)
        table = torch.stack([_require.shape("CartPolePolicies", "gain", g, (1, 4)) for g in gains])
        combos = torch.cartesian_prod(
            torch.arange(len(gains), dtype=torch.float64), torch.tensor(pumps, dtype=torch.float64), targets
        )
        which, pump, target = combos[:, 0].long(), combos[:, 1], combos[:, 2]
        gain = -table[which]
        gain[:, 0, 3] += pump
        offset = table[which][:, :, 0] * target.unsqueeze(-1)
        box = Box(vector(-1.0), vector(1.0))
        return CartPolePolicies(AffinePolicies(offset, gain, box), which, pump, target)

    @property
    def num(self) -> int:
        """P."""
        return self.policies.num

    def near(self, reach: float) -> Tensor:
        """Indices of the policies without pump and |g| ≤ reach: candidates for S_0."""
        return ((self.pump == 0) & (self.target.abs() <= reach + 1e-12)).nonzero().squeeze(-1)
