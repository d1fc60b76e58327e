"""Plants that are known: tubes of a known part whose second derivatives are bounded, under bounded errors of the input."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import Pinned, pinned_prior
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.cost.curvature import remainder_outer
from gpsafe.models._prior import check_prior, prior_jacobian
from gpsafe.systems.base import KnownPart, known_with_bound
from gpsafe.tube.core import Linearisation, Mode


@short
@dataclass(frozen=True, slots=True, eq=False)
class KnownTube:
    """x⁺ = p(x, u + e) with |e_i| ≤ error_i, as a tube model with M = 1, in sound mode.

    For z = z̄ + δ with δ = (d, Kd + e) and d in the ellipsoid E(0, LLᵀ), |δ_j| ≤ r_j = ‖row j of (I; K)L‖ + (0; error)_j, and

        p(z) ∈ p(z̄) + (A + BK) d + {|r_i| ≤ Σ_j |B_ij| error_j + ½ Σ_jk H_ijk r_j r_k}

    by Taylor's theorem with the bound H of the second derivatives. So W = 0 and R is the box: (1) of `gpsafe.tube.core`.

    An error of the measurement that a law acts on is one of its input: κ(x + v) = κ(x) + Kv, so that |Kv| is added to `error`.

    Args:
        known: p.
        error: (nu,), ≥ 0.
    """

    known: KnownPart
    error: Tensor
    nx: int = field(init=False)
    nu: int = field(init=False)
    _pinned: Pinned = field(init=False, compare=False)

    def __post_init__(self) -> None:
        nx, nz, _ = known_with_bound("KnownTube", self.known).hessian_bound.shape
        object.__setattr__(self, "nx", nx)
        object.__setattr__(self, "nu", nz - nx)
        check_prior("KnownTube", self.known, nx, nz - nx)
        error = _require.nonnegative("KnownTube", "error", _require.real("KnownTube", "error", self.error))
        object.__setattr__(self, "error", _require.shape("KnownTube", "error", error, (self.nu,)))
        object.__setattr__(self, "_pinned", pinned_prior(self.known, self.nx, self.nu))

    @property
    def edited(self) -> str | None:
        """See `TubeModel`."""
        return "the known part of which this tube was made" if self._pinned.moved else None

    @property
    def num_members(self) -> int:
        """1."""
        return 1

    @property
    def mode(self) -> Mode:
        """Sound."""
        return "sound"

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """The known part, its derivatives, and the bound on the error of the input."""
        error = f": none but an error of the input of at most {self.error.tolist()}, at every step"
        return listed(
            Assumption.KNOWN_OUTPUTS(" (all states)"),
            Assumption.KNOWN_DERIVATIVES(),
            Assumption.NOISE_ELLIPSOID(error),
            Assumption.ROUNDING(),
        )

    def linearise(self, x: Tensor, u: Tensor) -> Linearisation:
        """Value and Jacobian of p; no disturbance ellipsoid."""
        u = u.expand(*x.shape[:-1], self.nu)
        jacobian = prior_jacobian("KnownTube", self.known, x, u).expand(*x.shape, self.nx + self.nu)
        mean = self.known(x, u)
        return Linearisation(mean, jacobian[..., : self.nx], jacobian[..., self.nx :], torch.zeros_like(mean))

    def unseen(self, reach: Tensor, moved: Tensor) -> Tensor:
        """|x|, see `gpsafe.tube.core.sizes`: of p = x + … in which the slopes cancel."""
        return reach

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        """R, see the class."""
        u, error = u.expand(*x.shape[:-1], self.nu), self.error.to(x.device)
        spread = torch.cat([factor, gain @ factor], dim=-2).norm(dim=-1)
        reach = spread + torch.cat([error.new_zeros(self.nx), error])
        pushed = (self.linearise(x, u).B.abs() @ error.unsqueeze(-1)).squeeze(-1)
        bent = remainder_outer(self.known, torch.cat([x, u], dim=-1), reach * (1 + 1e-12))
        return (pushed + bent) * (1 + 1e-12)
