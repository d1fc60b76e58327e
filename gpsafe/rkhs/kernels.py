"""Kernels: any ``gpytorch`` kernel, frozen, with the closed forms that certified numbers need.

A kernel is always a `gpytorch.kernels.Kernel`; this module builds the usual ones, freezes them, evaluates
sums of (scaled, ARD, restricted) RBF, Matérn and linear kernels directly in float64, and gives the kernel
metric d_k(z, z′)² = k(z, z) + k(z′, z′) − 2 k(z, z′), the Lipschitz modulus of the unit ball of the RKHS, and
sup k(z, z) over boxes, which caps it. Products, periodic and rational quadratic kernels are evaluated here too, every other
kernel by ``gpytorch`` itself; they have no such suprema.

**Parameters are what was asked.** ``gpytorch`` keeps a parameter behind a softplus and takes a Python float through
float32 (0.7 becomes 0.69999998808, and 21 becomes 21 − 8e-10 even in float64). The builders here store float64
parameters without a transform, to the last bit; `trainable` gives back a parametrisation that an optimiser may move.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, cast

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require
from gpsafe.rkhs._forms import ClosedForm, Evaluated, Linear, Periodic, RationalQuadratic, Stationary

_EPS = torch.finfo(torch.float64).eps
MAX_SPREAD = 64.0  # squared scaled radius of the data up to which the fast path takes distances from a matrix product


# ------------------------------------------------------------------ builders
def freeze(kernel: Kernel) -> Kernel:
    """A detached float64 copy in evaluation mode whose hyperparameters no optimiser can move.

    Raw parameters are taken as they are: what ``gpytorch`` rounded before (see the module) stays rounded.
    """
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


def as_fitted(kernel: Kernel) -> Kernel:
    """A frozen copy that does not count as stated (:func:`is_stated`): its numbers come from data."""
    frozen = freeze(kernel)
    for module in frozen.modules():
        module.__dict__.pop("_stated_parameters", None)
    return frozen


def trainable(kernel: Kernel) -> Kernel:
    """A copy for an optimiser: parameters require gradients, and those stored without a transform get softplus.

    Their values move by rounding only; constraints that the kernel brought along stay.
    """
    copied = copy.deepcopy(kernel).double()
    for path, parameter, constraint in list(copied.named_parameters_and_constraints()):
        if constraint is not None and not constraint.enforced:
            owner, _, name = path.rpartition(".")
            module, softplus = cast(Kernel, copied.get_submodule(owner)), gpytorch.constraints.Positive()
            module.register_constraint(name, softplus)
            module.initialize(**{name: softplus.inverse_transform(parameter.detach())})
    for parameter in copied.parameters():
        parameter.requires_grad_(True)
    return copied


def exact() -> gpytorch.constraints.Positive:
    """A positivity constraint that stores a value as it is: softplus and its inverse would lose digits."""
    return gpytorch.constraints.Positive(transform=cast(Any, None), inv_transform=cast(Any, None))


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
    chosen = _dims("linear", dims, amounts)
    kernel = gpytorch.kernels.LinearKernel(size, variance_constraint=exact(), active_dims=chosen).double()
    kernel.variance = amounts.reshape(1, -1)
    return _as_stated(kernel)


def additive(*terms: Kernel) -> Kernel:
    """k = Σ_i k_i, frozen. With ‖·‖ of a sum space: ‖f‖²_k = min Σ ‖f_i‖²_{k_i} over f = Σ f_i."""
    if not terms:
        raise _require.fail("additive", "at least one kernel", 0)
    return freeze(gpytorch.kernels.AdditiveKernel(*terms))


def product(*factors: Kernel) -> Kernel:
    """k = Π_i k_i, frozen: no closed form."""
    if not factors:
        raise _require.fail("product", "at least one kernel", 0)
    return freeze(gpytorch.kernels.ProductKernel(*factors))


def periodic(
    period: Tensor | Sequence[float] | float,
    lengthscale: Tensor | Sequence[float] | float,
    variance: float = 1.0,
    *,
    dims: Sequence[int] | None = None,
) -> Kernel:
    """k(z, z′) = variance · exp(−2 Σ_i sin²(π(z_i − z′_i)/period_i)/ℓ_i), frozen; `dims` as in :func:`rbf`.

    ℓ is not squared, as in ``gpytorch``: no closed form.
    """
    periods = torch.atleast_1d(_require.positive("periodic", "period", period))
    scales = torch.atleast_1d(_require.positive("periodic", "lengthscale", lengthscale))
    try:
        periods, scales = torch.broadcast_tensors(periods, scales)
    except RuntimeError:
        got = (periods.tolist(), scales.tolist())
        raise _require.fail("periodic", "as many periods as length-scales, or one", got) from None
    options = {"period_length_constraint": exact()}
    kernel = _scaled(gpytorch.kernels.PeriodicKernel, options, scales, variance, dims)
    base = cast(gpytorch.kernels.PeriodicKernel, cast(gpytorch.kernels.ScaleKernel, kernel).base_kernel)
    base.period_length = periods.clone()
    return _as_stated(kernel)


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
    chosen = _dims(where, dims, scales)
    base = family(ard_num_dims=scales.numel(), active_dims=chosen, lengthscale_constraint=exact(), **options).double()
    base.lengthscale = scales.clone()
    kernel = gpytorch.kernels.ScaleKernel(base, outputscale_constraint=exact()).double()
    kernel.outputscale = torch.tensor(amount, dtype=torch.float64)
    return _as_stated(kernel)


def describe(kernel: Kernel) -> str:
    """The kernel in words, for refusals: "ScaleKernel(ProductKernel(RBFKernel, LinearKernel))"."""
    parts = [child for child in kernel.children() if isinstance(child, Kernel)]
    terms = getattr(kernel, "kernels", None)
    parts = parts if terms is None else [cast(Kernel, term) for term in terms]
    inside = ", ".join(describe(part) for part in parts)
    return f"{type(kernel).__name__}({inside})" if parts else type(kernel).__name__


def closed_form(kernel: Kernel) -> ClosedForm | None:
    """The closed form of a sum of (scaled, ARD, restricted) RBF, Matérn or linear kernels; None for anything
    else, such as a kernel restricted to dimensions that repeat or are negative.
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
    if dims is not None and (bool((dims < 0).any()) or len(dims.unique()) < len(dims)):
        return None
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
    return _gram(kernel, x, z)


def _gram(kernel: Kernel, x: Tensor, z: Tensor) -> Tensor:
    """Of sums, products and multiples of closed forms, periodic and rational quadratic kernels, from true differences; of
    others by gpytorch."""
    form = closed_form(kernel)
    if form is not None:
        return form.gram(x, z)
    parts = _composed(kernel)
    if parts is None:
        return cast(Tensor, kernel(x, z).to_dense())
    if isinstance(parts, Evaluated):
        return parts.gram(x, z)
    if isinstance(kernel, gpytorch.kernels.ScaleKernel):
        return float(kernel.outputscale.detach()) * _gram(parts[0], x, z)
    dims = cast(Tensor | None, kernel.active_dims)
    if dims is not None:
        x, z = x[..., dims], z[..., dims]
    grams = [_gram(part, x, z) for part in parts]
    return functools.reduce(operator.mul if isinstance(kernel, gpytorch.kernels.ProductKernel) else operator.add, grams)


def _composed(kernel: Kernel) -> tuple[Kernel, ...] | Evaluated | None:
    """What a kernel without a closed form is a multiple, a sum or a product of; None if it is something else."""
    if kernel.batch_shape.numel() != 1:
        return None
    dims = cast(Tensor | None, kernel.active_dims)
    if type(kernel) is gpytorch.kernels.PeriodicKernel:
        period, scale = (v.detach().reshape(-1).double() for v in (kernel.period_length, kernel.lengthscale))
        return Periodic(period, scale, dims)
    if type(kernel) is gpytorch.kernels.RQKernel:
        radial = Stationary(math.inf, kernel.lengthscale.detach().reshape(-1).double(), 1.0, dims)
        return RationalQuadratic(float(kernel.alpha.detach()), radial)
    if type(kernel) is gpytorch.kernels.ScaleKernel:
        return (cast(Kernel, kernel.base_kernel),)
    if type(kernel) in (gpytorch.kernels.AdditiveKernel, gpytorch.kernels.ProductKernel):
        return tuple(cast(Kernel, part) for part in cast(Any, kernel).kernels)
    return None


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
    other kernels subtract, and are rounded outwards by what a kernel value may err.
    """
    form = closed_form(kernel)
    if form is not None:
        return form.metric_sq(x - z).sqrt()
    x, z = torch.broadcast_tensors(x, z)
    flat_x, flat_z = x.reshape(-1, x.shape[-1]), z.reshape(-1, z.shape[-1])
    mixed = _gram(kernel, flat_x.unsqueeze(-2), flat_z.unsqueeze(-2)).reshape(-1)
    total = diagonal(kernel, flat_x) + diagonal(kernel, flat_z)
    largest = torch.maximum(flat_x.abs(), flat_z.abs()).amax(-1)
    error = 4 * _EPS + _foreign_error(kernel, x.shape[-1], largest)
    return (total - 2 * mixed + error * total).clamp_min(0.0).sqrt().reshape(x.shape[:-1])


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


def variance_over_box(kernel: Kernel, center: Tensor, radius: Tensor) -> Tensor | None:
    """≥ sup of k(z, z) over |z_i − c_i| ≤ radius_i, shape (*b, d) ×2 → (*b,), rounded outwards; None without closed
    form.

    |f| ≤ ‖f‖_k √ of it over the box. It is attained: stationary parts are constant, a linear part is Σ v_i z_i², largest
    at the corner that is farthest from the origin along every axis.
    """
    form = closed_form(kernel)
    if form is None:
        return None
    return form.variance_over(center, radius) * (1 + 4 * _EPS * (center.shape[-1] + 8))


def variance_everywhere(kernel: Kernel) -> float:
    """sup of k(z, z) over all z: of a stationary closed form the variance; +∞ with a linear part, or unknown."""
    form = closed_form(kernel)
    return math.inf if form is None else form.variance_everywhere


def entry_error(kernel: Kernel | ClosedForm, points: Tensor, *, product: bool = True) -> float:
    """ε such that a computed k(x, z), x in `points` (m, d), errs by at most ε √(k(x, x) k(z, z)).

    Stationary parts: true differences give r² to a few u·(d + 4) of itself, and κ, Lipschitz in r² with constant ½ and
    decaying, to as much absolutely: 8u(d + 4). The fast path (`gpsafe.models._fast`; `product`) takes r² from a matrix
    product of centred inputs a, b where S = max ‖a‖² ≤ MAX_SPREAD, and errs by (d + 4)u(‖a‖² + ‖b‖²); for far z the decay
    outweighs ‖b‖². Together 8u(d + 4)(1 + S). Linear parts: γ_{d+2}. Kernels without a closed form: see `_foreign_error`.
    """
    form = kernel if isinstance(kernel, ClosedForm) else closed_form(kernel)
    if form is None:
        assert isinstance(kernel, Kernel)
        return float(
            _foreign_error(kernel, points.shape[-1], points.abs().amax() if points.numel() else points.new_zeros(()))
        )
    spread = 0.0
    for part in form.parts if product else ():
        if isinstance(part, Stationary):
            scaled = part.scaled(points)
            spread = max(spread, float((scaled - scaled.mean(0)).square().sum(-1).max()))
    spread = 0.0 if spread > MAX_SPREAD else spread
    return 4 * _EPS * (points.shape[-1] + 4) * (1 + spread)


def _foreign_error(kernel: Kernel, dim: int, largest: Tensor) -> Tensor:
    """`entry_error` of kernels without a closed form, for inputs up to `largest` (*b,): (*b,).

    Of products the parts' errors add up, of sums the largest holds. What gpytorch evaluates by a length-scale, of which nothing
    is believed (`rounding_known`), takes distances from matrix products of scaled inputs: r² errs by some
    u(d + 4)(‖a‖² + ‖b‖²), for z up to twice as far from 0 as `largest`, and κ has slope ≤ 1 in it.
    """
    unit = torch.full_like(largest, 8 * _EPS * (dim + 4))
    if closed_form(kernel) is not None:
        return unit
    parts = _composed(kernel)
    if isinstance(parts, Evaluated):
        return parts.share * unit
    if parts is not None:
        errors = torch.stack([_foreign_error(part, dim, largest) for part in parts])
        return unit + (errors.sum(0) if isinstance(kernel, gpytorch.kernels.ProductKernel) else errors.amax(0))
    scales = [part.lengthscale for part in kernel.modules() if isinstance(part, Kernel) and part.has_lengthscale]
    return unit + sum(unit * (1 + 5 * dim * (largest / float(s.min())).square()) for s in scales if s is not None)


def rounding_known(kernel: Kernel) -> bool:
    """Whether `entry_error` is proved: closed forms, periodic, rational quadratic, constant and polynomial (power ≤ 16)
    kernels, and their sums, products and multiples. What else gpytorch has it evaluates in its own way."""
    if closed_form(kernel) is not None:
        return True
    parts = _composed(kernel)
    if parts is not None:
        return isinstance(parts, Evaluated) or all(map(rounding_known, parts))
    if type(kernel) is gpytorch.kernels.PolynomialKernel:
        return int(kernel.power) <= 16
    return type(kernel) is gpytorch.kernels.ConstantKernel
