"""Closed forms of kernels: sums of stationary and linear parts, evaluated directly in float64.

Distances come from true differences of the inputs, coordinate by coordinate: r² then has relative error (d + 6)u wherever
the points lie, and k(z, z) is exact. (One matrix product, ‖a‖² + ‖b‖² − 2aᵀb, would err by u(‖a‖² + ‖b‖²).)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require

# Σ_{k≥0} r^k/(k+2)!, highest power first: enough terms for full precision on 0 ≤ r ≤ 1.
_SERIES = tuple(1.0 / math.factorial(k + 2) for k in range(19, -1, -1))


def _select(z: Tensor, dims: Tensor | None) -> Tensor:
    return z if dims is None else z[..., dims.to(z.device)]


@dataclass(frozen=True, slots=True, eq=False)
class Stationary:
    """k(z, z′) = variance · κ(‖(z − z′)/lengthscale‖) with κ the RBF (nu = inf) or Matérn profile.

    `dims` are the active input dimensions (None: all).
    """

    nu: float
    lengthscale: Tensor
    variance: float
    dims: Tensor | None = None

    def scaled(self, z: Tensor) -> Tensor:
        """Active inputs divided by their length-scales."""
        return _select(z, self.dims) / self.lengthscale.to(z.device)

    def profile(self, distance_sq: Tensor) -> Tensor:
        """κ as a function of the squared scaled distance r² ≥ 0.

        Differentiable twice in z at r = 0 too, as κ is for ν > ½: there it is its expansion 1 − slope(0)·r²/2. For
        ν = ½, which has no gradient at r = 0, that is 0.
        """
        if math.isinf(self.nu):
            return torch.exp(-0.5 * distance_sq)
        positive = ~(distance_sq <= 0)  # NaN is kept as such: it must not count as distance 0
        r = torch.where(positive, 2 * self.nu * distance_sq, torch.ones_like(distance_sq)).sqrt()
        decay = torch.exp(-r)
        if self.nu == 0.5:
            return torch.where(positive, decay, torch.ones_like(decay))
        value = (1 + r) * decay if self.nu == 1.5 else (1 + r + r.square() / 3) * decay
        curvature = 3.0 if self.nu == 1.5 else 5 / 3
        return torch.where(positive, value, 1 - 0.5 * curvature * distance_sq)

    def slope(self, distance_sq: Tensor) -> Tensor:
        """−2 dκ/d(r²), so that ∂κ/∂z_i = −slope·(z_i − z′_i)/ℓ_i². RBF, Matérn 3/2 and 5/2 only."""
        if math.isinf(self.nu):
            return torch.exp(-0.5 * distance_sq)
        r = torch.sqrt(2 * self.nu * distance_sq)
        if self.nu == 1.5:
            return 3 * torch.exp(-r)
        if self.nu == 2.5:
            return 5 / 3 * (1 + r) * torch.exp(-r)
        raise _require.fail("Stationary.slope", "nu > 1/2 (Matérn 1/2 is not differentiable)", self.nu)

    def gap(self, distance_sq: Tensor) -> Tensor:
        """1 − κ(r) as a function of r², to full relative precision at every distance.

        Near zero 1 − κ cancels; there Matérn 3/2 is r² e^{−r} Σ_{k≥0} r^k/(k+2)! and Matérn 5/2 the same less
        r² e^{−r}/3 (r is the argument of the exponential): sums of positive terms.
        """
        if math.isinf(self.nu):
            return -torch.expm1(-0.5 * distance_sq)
        r = torch.sqrt(2 * self.nu * distance_sq)
        if self.nu == 0.5:
            return -torch.expm1(-r)
        decay, small = torch.exp(-r), r.clamp_max(1.0)
        series = torch.zeros_like(r)
        for coefficient in _SERIES[:-1]:
            series = series * small + coefficient
        if self.nu == 1.5:
            near, far = series * small + 1 / 2, 1 - (1 + r) * decay
        else:
            near, far = series * small + 1 / 6, 1 - (1 + r + r.square() / 3) * decay
        return torch.where(r < 1, small.square() * decay * near, far)

    def metric(self, distance_sq: Tensor) -> Tensor:
        """d_k = √(2·variance·(1 − κ(r))) as a function of r², without cancellation near zero."""
        return torch.sqrt(2 * self.variance * self.gap(distance_sq))

    def gram(self, x: Tensor, z: Tensor) -> Tensor:
        """(*b, n, d), (*b, m, d) → (*b, n, m); k(z, z) exactly `variance`."""
        return self.variance * self.profile(self.squared_distances(x, z))

    def squared_distances(self, x: Tensor, z: Tensor) -> Tensor:
        """r² of all pairs, (*b, n, d), (*b, m, d) → (*b, n, m), from true differences (see the module)."""
        x, z = _select(x, self.dims), _select(z, self.dims)
        scales = self.lengthscale.to(z.device).expand(x.shape[-1])
        gaps = [(x[..., :, None, i] - z[..., None, :, i]) / scales[i] for i in range(x.shape[-1])]
        total = gaps[0].square()
        for gap in gaps[1:]:
            total = total + gap.square()
        return total

    def diagonal(self, z: Tensor) -> Tensor:
        """k(z, z), (*b, d) → (*b,)."""
        return torch.full(z.shape[:-1], self.variance, dtype=z.dtype, device=z.device)

    def variance_over(self, center: Tensor, radius: Tensor) -> Tensor:
        """sup of k(z, z) over |z_i − c_i| ≤ radius_i, (*b, d) ×2 → (*b,): the same everywhere."""
        return self.diagonal(center)

    @property
    def variance_everywhere(self) -> float:
        """sup of k(z, z) over all z."""
        return self.variance

    def metric_sq(self, difference: Tensor) -> Tensor:
        """d_k² as a function of z − z′, (*b, d) → (*b,)."""
        return 2 * self.variance * self.gap(self.scaled(difference).square().sum(-1))


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """k(z, z′) = Σ_i variance_i z_i z′_i over the active dimensions."""

    variance: Tensor
    dims: Tensor | None = None

    def _weighted(self, z: Tensor) -> Tensor:
        return _select(z, self.dims) * self.variance.sqrt().to(z.device)

    def gram(self, x: Tensor, z: Tensor) -> Tensor:
        """(*b, n, d), (*b, m, d) → (*b, n, m)."""
        return self._weighted(x) @ self._weighted(z).mT

    def diagonal(self, z: Tensor) -> Tensor:
        """k(z, z), (*b, d) → (*b,)."""
        return self._weighted(z).square().sum(-1)

    def variance_over(self, center: Tensor, radius: Tensor) -> Tensor:
        """sup of k(z, z) over |z_i − c_i| ≤ radius_i, (*b, d) ×2 → (*b,): Σ variance_i (|c_i| + radius_i)²."""
        return self.diagonal(center.abs() + radius)

    @property
    def variance_everywhere(self) -> float:
        """sup of k(z, z) over all z."""
        return math.inf

    def metric_sq(self, difference: Tensor) -> Tensor:
        """d_k² = Σ_i variance_i (z_i − z′_i)²."""
        return self._weighted(difference).square().sum(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Periodic:
    """k(z, z′) = exp(−2 Σ_i sin²(π(z_i − z′_i)/period_i)/lengthscale_i) over the active dimensions."""

    period: Tensor
    lengthscale: Tensor
    dims: Tensor | None = None

    def gram(self, x: Tensor, z: Tensor) -> Tensor:
        """(*b, n, d), (*b, m, d) → (*b, n, m): remainders are exact, so that the phase is, however far the points lie."""
        period, lengthscale = self.period.to(z.device), self.lengthscale.to(z.device)
        x, z = torch.fmod(_select(x, self.dims), period), torch.fmod(_select(z, self.dims), period)
        phase = (x.unsqueeze(-2) - z.unsqueeze(-3)) * (math.pi / period)
        return torch.exp(-2 * (phase.sin().square() / lengthscale).sum(-1))

    @property
    def share(self) -> float:
        """By how much more a value may err than one of a closed form: the phase errs by 20u, κ by 2/ℓ of that per dimension."""
        return 2 * max(1.0, 2 / float(self.lengthscale.min()))


@dataclass(frozen=True, slots=True, eq=False)
class RationalQuadratic:
    """k(z, z′) = (1 + r²/2α)^(−α) with r = ‖(z − z′)/lengthscale‖ over the active dimensions of `radial`."""

    alpha: float
    radial: Stationary
    share: float = 1.0  # r² errs relatively, and |r² ∂κ/∂(r²)| ≤ 1/e, as |κ ln κ| is

    def gram(self, x: Tensor, z: Tensor) -> Tensor:
        """(*b, n, d), (*b, m, d) → (*b, n, m), from true differences (see the module)."""
        return torch.exp(-self.alpha * torch.log1p(self.radial.squared_distances(x, z) / (2 * self.alpha)))


Evaluated = Periodic | RationalQuadratic


@dataclass(frozen=True, slots=True, eq=False)
class ClosedForm:
    """A sum of stationary and linear parts. Its metric depends on z − z′ only, and grows with every |z_i −
    z′_i|.
    """

    parts: tuple[Stationary | Linear, ...]

    def gram(self, x: Tensor, z: Tensor) -> Tensor:
        """(*b, n, d), (*b, m, d) → (*b, n, m)."""
        total = self.parts[0].gram(x, z)
        for part in self.parts[1:]:
            total = total + part.gram(x, z)
        return total

    def diagonal(self, z: Tensor) -> Tensor:
        """k(z, z), (*b, d) → (*b,)."""
        total = self.parts[0].diagonal(z)
        for part in self.parts[1:]:
            total = total + part.diagonal(z)
        return total

    def variance_over(self, center: Tensor, radius: Tensor) -> Tensor:
        """≥ sup of k(z, z) over |z_i − c_i| ≤ radius_i, (*b, d) ×2 → (*b,): the sum of the parts' suprema."""
        total = self.parts[0].variance_over(center, radius)
        for part in self.parts[1:]:
            total = total + part.variance_over(center, radius)
        return total

    @property
    def variance_everywhere(self) -> float:
        """sup of k(z, z) over all z."""
        return sum(part.variance_everywhere for part in self.parts)

    def metric_sq(self, difference: Tensor) -> Tensor:
        """d_k² as a function of z − z′, (*b, d) → (*b,)."""
        total = self.parts[0].metric_sq(difference)
        for part in self.parts[1:]:
            total = total + part.metric_sq(difference)
        return total
