"""A tube model whose every number is stated: affine members, given variances, a remainder that depends on all it is given."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe.tube.core import Linearisation


@dataclass(frozen=True)
class Stated:
    """x⁺ = A_m x + B_m u + c_m, W = diag(variance_m), and R = share · (1 + |x| + Σ|u| + ‖L‖ + Σ|K|) in sound mode."""

    A: Tensor  # (M, nx, nx)
    B: Tensor  # (M, nx, nu)
    c: Tensor  # (M, nx)
    variance: Tensor  # (M, nx)
    share: float = 0.0
    mode: str = "sound"
    assumptions: tuple[str, ...] = ("stated",)

    @property
    def nx(self) -> int:
        return self.A.shape[-1]

    @property
    def nu(self) -> int:
        return self.B.shape[-1]

    @property
    def num_members(self) -> int:
        return len(self.A)

    def linearise(self, x: Tensor, u: Tensor) -> Linearisation:
        mean = (self.A @ x.unsqueeze(-1) + self.B @ u.unsqueeze(-1)).squeeze(-1) + self.c
        batch = mean.shape[:-2]
        return Linearisation(mean, self.A.expand(*batch, *self.A.shape), self.B.expand(*batch, *self.B.shape),
                             self.variance.expand(*batch, *self.variance.shape))  # fmt: skip

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        size = u.abs().sum(-1) + factor.square().sum((-2, -1)).sqrt() + gain.abs().sum()
        return self.share * (1.0 + x.abs() + size.unsqueeze(-1))


def stated(
    seed: int = 0, *, members: int = 2, nx: int = 2, nu: int = 2, share: float = 0.03, mode: str = "sound"
) -> Stated:
    """Random members."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(members, *shape, dtype=torch.float64, generator=generator)

    return Stated(0.6 * draw(nx, nx), 0.5 * draw(nx, nu), 0.1 * draw(nx), 0.01 * draw(nx).square(), share, mode)
