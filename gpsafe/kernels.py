"""Kernels: any ``gpytorch`` kernel, frozen, with the closed forms that certified numbers need.

A kernel is always a `gpytorch.kernels.Kernel`; this module builds the usual ones, freezes them, evaluates
sums of (scaled, ARD, restricted) RBF, Matérn and linear kernels directly in float64, and gives the kernel
metric d_k(z, z′)² = k(z, z) + k(z′, z′) − 2 k(z, z′), the Lipschitz modulus of the unit ball of the RKHS.
Every other kernel goes through ``gpytorch`` itself.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require, linalg

_EPS = torch.finfo(torch.float64).eps
MAX_SPREAD = 1e4  # squared scaled radius up to which distances may come from a matrix product
# Σ_{k≥0} r^k/(k+2)!, highest power first: enough terms for full precision on 0 ≤ r ≤ 1.
_SERIES = tuple(1.0 / math.factorial(k + 2) for k in range(19, -1, -1))


# ------------------------------------------------------------------ builders
def freeze(kernel: Kernel) -> Kernel:
    """A detached float64 copy in evaluation mode whose hyperparameters no optimiser can move."""
    frozen = copy.deepcopy(kernel).double().eval()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    return frozen


def is_stated(kernel: Kernel) -> bool:
    """Whether every hyperparameter is the number that a builder of this module was given, and no optimiser can move it.

    False for a kernel made elsewhere, and for one that was trained or edited since: it may have seen the data. Sums and
    products of stated kernels are stated.
    """
    return _stated(kernel)


def _stated(module: torch.nn.Module) -> bool:
    given, own = module.__dict__.get("_stated_parameters"), list(module.parameters())
    if given is not None:
        same = len(own) == len(given) and all(torch.equal(p.detach().cpu(), v) for p, v in zip(own, given, strict=True))
        return same and not any(p.requires_grad for p in own)
    return not list(module.parameters(recurse=False)) and all(_stated(child) for child in module.children())


def _as_stated(kernel: Kernel) -> Kernel:
    """A frozen copy that remembers its hyperparameters, see :func:`is_stated`."""
    frozen = freeze(kernel)
    object.__setattr__(frozen, "_stated_parameters", tuple(p.detach().cpu().clone() for p in frozen.parameters()))
    return frozen


def rbf(
    lengthscale: Tensor | Sequence[float] | float, variance: float = 1.0, *, dims: Sequence[int] | None = None
) -> Kernel:
    """k(z, z′) = variance · exp(−½ Σ_i ((z_i − z′_i)/ℓ_i)²), frozen.

    One ℓ for all input dimensions, or one for each; `dims` restricts the kernel to those input dimensions
    (then one ℓ for each of them).
    """
    return _scaled(gpytorch.kernels.RBFKernel, {}, lengthscale, variance, dims)


def matern(
    nu: float,
    lengthscale: Tensor | Sequence[float] | float,
    variance: float = 1.0,
    *,
    dims: Sequence[int] | None = None,
) -> Kernel:
    """Matérn kernel with ν ∈ {½, 3/2, 5/2}, ARD length-scales and output variance, frozen; `dims` as in
    :func:`rbf`.
    """
    if nu not in (0.5, 1.5, 2.5):
        raise _require.fail("matern", "nu in {0.5, 1.5, 2.5}", nu)
    return _scaled(gpytorch.kernels.MaternKernel, {"nu": nu}, lengthscale, variance, dims)


def linear(variance: Tensor | Sequence[float] | float = 1.0, *, dims: Sequence[int] | None = None) -> Kernel:
    """k(z, z′) = Σ_i variance_i z_i z′_i, frozen: one variance for all input dimensions, or one for each."""
    amounts = torch.atleast_1d(_require.positive("linear", "variance", variance))
    size = amounts.numel() if amounts.numel() > 1 else None
    kernel = gpytorch.kernels.LinearKernel(ard_num_dims=size, active_dims=_dims("linear", dims, amounts)).double()
    kernel.variance = amounts.reshape(1, -1)
    return _as_stated(kernel)


def additive(*terms: Kernel) -> Kernel:
    """k = Σ_i k_i, frozen. With ‖·‖ of a sum space: ‖f‖²_k = min Σ ‖f_i‖²_{k_i} over f = Σ f_i."""
    if not terms:
        raise _require.fail("additive", "at least one kernel", 0)
    return freeze(gpytorch.kernels.AdditiveKernel(*terms))


def _dims(where: str, dims: Sequence[int] | None, per_dim: Tensor) -> tuple[int, ...] | None:
    if dims is None:
        return None
    chosen = tuple(int(i) for i in dims)
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        raise _require.fail(where, "distinct dims >= 0", chosen)
    if per_dim.numel() not in (1, len(chosen)):
        raise _require.fail(where, f"one value, or one for each of {len(chosen)} dims", per_dim.tolist())
    return chosen


def _scaled(
    family: type[Kernel],
    options: dict[str, Any],
    lengthscale: Tensor | Sequence[float] | float,
    variance: float,
    dims: Sequence[int] | None,
) -> Kernel:
    where = family.__name__
    scales = torch.atleast_1d(_require.positive(where, "lengthscale", lengthscale))
    amount = float(_require.positive(where, "variance", variance))
    base = family(ard_num_dims=scales.numel(), active_dims=_dims(where, dims, scales), **options).double()
    base.lengthscale = scales
    kernel = gpytorch.kernels.ScaleKernel(base).double()
    kernel.outputscale = amount
    return _as_stated(kernel)


# -------------------------------------------------------------- closed forms
def _select(z: Tensor, dims: Tensor | None) -> Tensor:
    return z if dims is None else z[..., dims.to(z.device)]


def _difference_squares(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖², (*b, n, d), (*b, m, d) → (*b, n, m), one dimension at a time: smooth, unlike ``torch.cdist``, which has
    no second derivative.
    """
    columns = (a[..., i].unsqueeze(-1) - b[..., i].unsqueeze(-2) for i in range(a.shape[-1]))
    total = next(columns).square()
    for column in columns:
        total = total + column.square()
    return total


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
        positive = distance_sq > 0
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
        """(*b, n, d), (*b, m, d) → (*b, n, m).

        RBF, Matérn 3/2 and 5/2 are smooth in r², so r² = ‖a‖² + ‖b‖² − 2aᵀb from centred scaled inputs errs
        in k by no more than a few ε·(‖a‖² + ‖b‖²); Matérn ½ has a square root at zero and gets true
        differences.
        """
        if self.nu == 0.5:
            return self.variance * self.profile(_difference_squares(*self.centered(x, z)))
        return self.variance * self.profile(self.squared_distances(x, z))

    def centered(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Active inputs of x and z less the mean of x, then divided by the length-scales: precise far from
        the origin.
        """
        x, z = _select(x, self.dims), _select(z, self.dims)
        center = x.detach().mean(-2, keepdim=True)
        lengthscale = self.lengthscale.to(z.device)
        return (x - center) / lengthscale, (z - center) / lengthscale

    def squared_distances(self, x: Tensor, z: Tensor) -> Tensor:
        """r² ≥ 0 of all pairs by one matrix product, (*b, n, d), (*b, m, d) → (*b, n, m).

        The absolute error is a few ε·(‖a‖² + ‖b‖²) for centred scaled inputs a, b: harmless for functions
        that are smooth in r². Points spread so widely that it would matter are compared by true differences
        instead.
        """
        a, b = self.centered(x, z)
        rows, columns = a.square().sum(-1).unsqueeze(-1), b.square().sum(-1).unsqueeze(-2)
        readable = rows.numel() and columns.numel() and not linalg.is_transformed(a, b)
        if readable and float(rows.detach().max() + columns.detach().max()) > MAX_SPREAD:
            return _difference_squares(a, b)
        squares = rows + columns - 2 * (a @ b.mT)
        if squares.requires_grad or linalg.is_transformed(squares):
            # a clamp alone would lose the gradient where r² comes out as −ε: at the data themselves
            return squares + (squares.clamp_min(0.0) - squares).detach()
        return squares.clamp_min(0.0)

    def diagonal(self, z: Tensor) -> Tensor:
        """k(z, z), (*b, d) → (*b,)."""
        return torch.full(z.shape[:-1], self.variance, dtype=z.dtype, device=z.device)

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

    def metric_sq(self, difference: Tensor) -> Tensor:
        """d_k² = Σ_i variance_i (z_i − z′_i)²."""
        return self._weighted(difference).square().sum(-1)


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

    def metric_sq(self, difference: Tensor) -> Tensor:
        """d_k² as a function of z − z′, (*b, d) → (*b,)."""
        total = self.parts[0].metric_sq(difference)
        for part in self.parts[1:]:
            total = total + part.metric_sq(difference)
        return total


def closed_form(kernel: Kernel) -> ClosedForm | None:
    """The closed form of a sum of (scaled, ARD, restricted) RBF, Matérn or linear kernels; None for anything
    else.
    """
    parts = _parts(kernel, 1.0, None)
    return None if parts is None else ClosedForm(parts)


def _parts(kernel: Kernel, factor: float, outer: Tensor | None) -> tuple[Stationary | Linear, ...] | None:
    if kernel.batch_shape.numel() != 1:
        return None
    dims = cast(
        Tensor | None, kernel.active_dims
    )  # of a ScaleKernel: gpytorch copies its base's and does not apply them twice
    if dims is not None and outer is not None:
        dims = outer[dims]
    dims = outer if dims is None else dims
    while isinstance(kernel, gpytorch.kernels.ScaleKernel):
        factor *= float(kernel.outputscale.detach())
        kernel = kernel.base_kernel
    if type(kernel) is gpytorch.kernels.AdditiveKernel:
        found = [_parts(cast(Kernel, term), factor, dims) for term in kernel.kernels]
        return None if any(terms is None for terms in found) else tuple(part for terms in found for part in terms or ())
    if type(kernel) is gpytorch.kernels.LinearKernel:
        return (Linear(factor * kernel.variance.detach().reshape(-1).double(), dims),)
    if type(kernel) is gpytorch.kernels.RBFKernel:
        nu = math.inf
    elif type(kernel) is gpytorch.kernels.MaternKernel:
        nu = float(kernel.nu)
    else:
        return None
    return (Stationary(nu, kernel.lengthscale.detach().reshape(-1).double(), factor, dims),)


def stationary(kernel: Kernel) -> Stationary | None:
    """Closed form of a (scaled, ARD, restricted) RBF or Matérn kernel; None for anything else."""
    form = closed_form(kernel)
    if form is None or len(form.parts) != 1 or not isinstance(form.parts[0], Stationary):
        return None
    return form.parts[0]


# --------------------------------------------------------------- evaluation
def cross(kernel: Kernel | Stationary | ClosedForm, x: Tensor, z: Tensor) -> Tensor:
    """Gram matrix k(x_i, z_j), shapes (*b, n, d), (*b, m, d) → (*b, n, m); differentiable."""
    form = kernel if isinstance(kernel, (Stationary, ClosedForm)) else closed_form(kernel)
    if form is not None:
        return form.gram(x, z)
    assert isinstance(kernel, Kernel)
    return cast(Tensor, kernel(x, z).to_dense())


def diagonal(kernel: Kernel | Stationary | ClosedForm, z: Tensor) -> Tensor:
    """k(z_i, z_i), shape (*b, d) → (*b,)."""
    form = kernel if isinstance(kernel, (Stationary, ClosedForm)) else closed_form(kernel)
    if form is not None:
        return form.diagonal(z)
    assert isinstance(kernel, Kernel)
    return cast(Tensor, kernel(z.reshape(-1, z.shape[-1]), diag=True)).reshape(z.shape[:-1])


def metric(kernel: Kernel, x: Tensor, z: Tensor) -> Tensor:
    """Kernel metric d_k(x, z) elementwise, shapes (*b, d), (*b, d) → (*b,).

    For f with ‖f‖_k ≤ B: |f(x) − f(z)| ≤ B d_k(x, z). Closed forms err by a few ε of d_k at every distance;
    other kernels subtract, and are rounded outwards (by at most √(32 ε (k(x, x) + k(z, z)))).
    """
    form = closed_form(kernel)
    if form is not None:
        return form.metric_sq(x - z).sqrt()
    x, z = torch.broadcast_tensors(x, z)
    flat_x, flat_z = x.reshape(-1, x.shape[-1]), z.reshape(-1, z.shape[-1])
    mixed = kernel(flat_x.unsqueeze(-2), flat_z.unsqueeze(-2)).to_dense().reshape(-1)
    total = diagonal(kernel, flat_x) + diagonal(kernel, flat_z)
    return (total - 2 * mixed + 32 * _EPS * total).clamp_min(0.0).sqrt().reshape(x.shape[:-1])


def metric_over_box(kernel: Kernel, radius: Tensor) -> Tensor | None:
    """sup of d_k(c, z) over |z_i − c_i| ≤ radius_i, shape (*b, d) → (*b,), rounded outwards; None without
    closed form.

    The metric of a closed form depends on z − c alone and grows with each |z_i − c_i|: the corner attains the
    sup.
    """
    form = closed_form(kernel)
    if form is None:
        return None
    return form.metric_sq(radius).sqrt() * (1 + 64 * _EPS)


def entry_error(form: ClosedForm | None, points: Tensor) -> float:
    """ε such that a computed k(x, z), x in `points` (m, d), errs by at most ε √(k(x, x) k(z, z)).

    Stationary parts: r² from centred inputs errs by (d + 4)u(‖a‖² + ‖b‖²), its exponential (or Matérn
    profile, Lipschitz in r² with constant ½) by as much plus a few u; for far z the decay outweighs ‖b‖².
    With S = max ‖a‖² this is 8u(d + 4)(1 + S), S cut at MAX_SPREAD. Linear parts: γ_{d+2}. Other kernels:
    gpytorch's values are *taken* to be that accurate.
    """
    spread = 0.0
    for part in form.parts if form is not None else ():
        if isinstance(part, Stationary):
            scaled = part.scaled(points)
            spread = max(spread, float((scaled - scaled.mean(0)).square().sum(-1).max()))
    spread = min(spread, MAX_SPREAD)
    return 4 * _EPS * (points.shape[-1] + 4) * (1 + spread)
