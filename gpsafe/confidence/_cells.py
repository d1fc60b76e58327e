"""Enclosures of posterior mean, deviation and band over cells, and at points: what `gpsafe.confidence._branch` asks of them.

Every objective is a pair of functions, g₀ to be minimised and g₁ to be maximised (for mean and deviation the same), of one
learned output over cells of its active inputs. All claims are outward of rounding, in the terms of `gpsafe.confidence.rounding`:
a feature ψ_a is a functional like any other, so that its computed row errs by ENTRY relative to its prior norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from gpsafe import linalg
from gpsafe.confidence._taylor import DEGREES, EPS, Array, Bernstein, Products, Profile, multi_indices
from gpsafe.confidence.rounding import Rounding
from gpsafe.models._fast import triangular_product
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels

ENTRY = 32 * EPS  # times d + 4: rounding of a derivative of the kernel from true differences (theory §5.7)
BLOCK = 8  # cells are padded to multiples: then no row's rounding depends on how many there are
FAR = 1.0  # radius in length-scales from which the bounds far from data are tried as well
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cells:
    """What is known of one batch of cells.

    Attributes:
        low, high: ≤ g₀ and ≥ g₁ all over the cell, (C,).
        spot: about where g₀ is least and g₁ largest, (C, 2, d).
        rise: +1 where g_side is proved to grow with z_i all over the cell, −1 where to fall, 0 otherwise, (C, 2, d).
    """

    low: Array
    high: Array
    spot: Array
    rise: NDArray[np.int8]


class Objective(Protocol):
    """See the module."""

    @property
    def inverse(self) -> Array:
        """1/ℓ of the active inputs, (d,)."""
        ...

    def over(self, lower: Array, upper: Array) -> Cells:
        """Of cells [lower, upper], (C, d) ×2."""
        ...

    def at(self, points: Array, side: NDArray[np.intp]) -> tuple[Array, Array]:
        """Proven lower and upper bounds of g_side at points (C, d), (C,) ×2; infinite where nothing is known."""
        ...


def in_blocks(run: Callable[..., tuple[Array, ...]], rows: int, *arrays: Array) -> tuple[Array, ...]:
    """`run` over at most `rows` rows at a time, padded to a multiple of BLOCK with copies of the last."""
    total, parts = len(arrays[0]), []
    for start in range(0, total, rows):
        part = [a[start : start + rows] for a in arrays]
        size = len(part[0])
        pad = -size % BLOCK
        if pad:
            part = [np.concatenate([a, np.repeat(a[-1:], pad, axis=0)]) for a in part]
        parts.append(tuple(found[:size] for found in run(*part)))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One learned output of a posterior with data, as arrays.

    Attributes:
        form, profile: its kernel.
        active: indices of its inputs.
        inverse: 1/ℓ, (d,).
        points, weights: x (n, d) and α (n,).
        root: (L⁻¹)ᵀ, Fortran-ordered.
        norm: ≥ ‖Σ α_i k(x_i, ·)‖_k with these very weights.
        rounding: its margins.
        far: ≥ ‖(K + λ)⁻¹‖, 1/λ.
    """

    form: kernels.Stationary
    profile: Profile
    active: NDArray[np.intp]
    inverse: Array
    points: Array
    weights: Array
    root: Array
    norm: float
    rounding: Rounding
    far: float

    @staticmethod
    def of(model: GP, j: int) -> Output:
        """Of learned output j of a model with data on the CPU."""
        assert model.inputs is not None
        form = kernels.stationary(model.kernels[j])
        assert form is not None
        active = np.arange(model.inputs.shape[1]) if form.dims is None else form.dims.cpu().numpy()
        inverse = (1.0 / form.lengthscale.cpu()).expand(len(active)).numpy().copy()
        rounding = Rounding.of(model).output(j)
        entry = torch.full_like(rounding.entry, ENTRY * (len(active) + 4))
        return Output(
            form,
            Profile.of(form, len(active)),
            active,
            inverse,
            np.ascontiguousarray(model.inputs.numpy()[:, active]),
            np.ascontiguousarray(model.weights[:, j].numpy()),
            model._evaluators()[model._index[j]].root,
            float(model.posterior_norm()[j]),
            replace(rounding, entry=torch.maximum(entry, rounding.entry)),
            1.0 / float(model.regularizer[j]),
        )

    @property
    def dim(self) -> int:
        """d, the number of active inputs."""
        return len(self.inverse)

    @property
    def std(self) -> float:
        """√v."""
        return float(np.sqrt(self.form.variance))

    def rows(self, features: int) -> int:
        """How many cells at a time."""
        return max(BLOCK, 2**19 // max(features * len(self.points), 1) // BLOCK * BLOCK)

    def cross(self, points: Array) -> Array:
        """k(z, x_i), (C, n)."""
        square = np.zeros((len(points), len(self.points)))
        for i, scale in enumerate(self.inverse):
            gap = (points[:, i, None] - self.points[None, :, i]) * scale
            square += gap * gap
        return self.form.variance * self.profile.value(square)

    def explained(self, rows: Array) -> Array:
        """‖L⁻¹k‖² for rows k (C, n), which it overwrites."""
        half = triangular_product(self.root, rows)
        return np.einsum("ij,ij->i", half, half)

    def value(self, points: Array) -> tuple[Array, Array]:
        """Proven bounds of Σ α_i k(x_i, z)."""
        value = np.einsum("cn,n->c", self.cross(points), self.weights)
        return value - self.direct, value + self.direct

    @property
    def direct(self) -> float:
        """Rounding of Σ α_i k(x_i, z), the weights taken as they are."""
        return self.std * self.direct_unit

    @property
    def direct_unit(self) -> float:
        """The same for any functional of unit prior norm."""
        return float(self.rounding.load) * (float(self.rounding.entry) + linalg.gamma(self.rounding.count + 4))

    def carried(self, deviation: Array) -> Array:
        """≥ |μ − Σ α_i k(x_i, ·)| where σ is at most `deviation`: the weights solve a perturbed system."""
        prior = torch.full((), self.form.variance, dtype=torch.float64)
        found = self.rounding.mean(torch.from_numpy(np.square(deviation)), prior).numpy()
        return found * (1 + 64 * EPS)

    def deviation(self, points: Array) -> tuple[Array, Array]:
        """Proven bounds of σ."""
        variance = np.maximum(self.form.variance - self.explained(self.cross(points)), 0.0)
        margin = self.margin(variance, np.full_like(variance, self.form.variance))
        unit = 4 * EPS
        return np.sqrt(np.maximum(variance - margin, 0.0)) * (1 - unit), np.sqrt(variance + margin) * (1 + unit)

    def stated(self, deviation: Array) -> Array:
        """The margin that confidence intervals add to the variance, where σ is at most `deviation`."""
        variance = np.square(deviation)
        return self.margin(variance, np.full_like(variance, self.form.variance)) * (1 + 64 * EPS)

    def margin(self, variance: Array, prior: Array) -> Array:
        """≥ |exact − computed posterior variance| of functionals, from the computed one and the prior one."""
        return self.rounding.variance(torch.from_numpy(variance), torch.from_numpy(prior)).numpy()


@dataclass(frozen=True, slots=True, eq=False)
class Local:
    """Features of cells: rows ∂^aκ·v at their centres (C, m, n), scales ρ^a/(ℓ^a a!) (C, m), r (C,) and ρ/ℓ (C, d)."""

    indices: Array
    rows: Array
    scales: Array
    reach: Array
    radius: Array
    nearest: Array | None

    @staticmethod
    def of(output: Output, lower: Array, upper: Array, indices: tuple[tuple[int, ...], ...]) -> Local:
        """Of cells [lower, upper], (C, d) ×2."""
        center = 0.5 * lower + 0.5 * upper
        radius = np.maximum(upper - center, center - lower) * output.inverse * (1 + 8 * EPS)
        gap = np.ascontiguousarray((center[:, None, :] - output.points) * output.inverse)  # (C, n, d)
        rows = np.empty((len(lower), len(indices), len(output.points)))
        output.profile.features(np.ascontiguousarray(gap.transpose(0, 2, 1)), indices, rows)
        rows *= output.form.variance
        powers = np.array(indices, dtype=float).reshape(len(indices), -1)
        factorials = np.array([math.prod(math.factorial(k) for k in a) for a in indices], dtype=float)
        scales = np.prod(radius[:, None, :] ** powers, axis=-1) / factorials
        reach = np.sqrt(np.square(radius).sum(-1)) * (1 + 8 * EPS)
        wide = reach > FAR
        nearest = None
        if wide.any():
            nearest = np.zeros((len(lower), rows.shape[-1]))
            away = np.maximum(np.abs(gap[wide]) * (1 - 16 * EPS) - radius[wide, None, :], 0.0)
            nearest[wide] = np.square(away).sum(-1)
        return Local(powers, rows, scales, reach, radius, nearest)


def _finite(value: Array, otherwise: float) -> Array:
    return np.where(np.isnan(value), otherwise, value)


def _spots(basis: Bernstein, low: Array, high: Array, lower: Array, upper: Array) -> Array:
    center, radius = 0.5 * lower + 0.5 * upper, 0.5 * upper - 0.5 * lower
    spots = np.stack([basis.peak(-low), basis.peak(high)], axis=1)
    return np.clip(center[:, None] + radius[:, None] * spots, lower[:, None], upper[:, None])


def _rise(low: Array, high: Array) -> NDArray[np.int8]:
    return (low > 0).astype(np.int8) - (high < 0).astype(np.int8)


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """g₀ = g₁ = Σ α_i k(x_i, ·) with the computed weights; `Output.carried` says how far μ is from it."""

    output: Output

    @property
    def inverse(self) -> Array:
        """See `Objective`."""
        return self.output.inverse

    def at(self, points: Array, side: NDArray[np.intp]) -> tuple[Array, Array]:
        """See `Objective`."""
        low, high = in_blocks(self.output.value, self.output.rows(2), points)
        return _finite(low, -np.inf), _finite(high, np.inf)

    def over(self, lower: Array, upper: Array) -> Cells:
        """See `Objective`."""
        indices = multi_indices(self.output.dim, self.output.profile.order)
        return Cells(*in_blocks(self._over, self.output.rows(len(indices)), lower, upper))  # type: ignore[arg-type]

    def _over(self, lower: Array, upper: Array) -> tuple[Array, ...]:
        output = self.output
        indices = multi_indices(output.dim, output.profile.order)
        local = Local.of(output, lower, upper, indices)
        poly = Polynomials.of(output, local, indices, variance=False)
        basis, cap = poly.basis, output.norm * output.std * (1 + 8 * EPS)
        coefficients = basis.coefficients(poly.mean)
        error = poly.mean_error(basis)
        low, high = coefficients.min(-1) - error, coefficients.max(-1) + error
        low, high = np.maximum(_finite(low, -cap), -cap), np.minimum(_finite(high, cap), cap)
        if local.nearest is not None:
            value = output.form.variance * output.profile.value(local.nearest) * (1 + 1e-9)
            direct = np.where(local.reach > FAR, output.direct, np.inf)
            low = np.maximum(low, -_finite(value @ np.maximum(-output.weights, 0.0), np.inf) * (1 + 1e-12) - direct)
            high = np.minimum(high, _finite(value @ np.maximum(output.weights, 0.0), np.inf) * (1 + 1e-12) + direct)
        rise = np.zeros((len(low), output.dim), dtype=np.int8)
        if basis.degree:
            steep, error = basis.slopes(coefficients), poly.mean_slope_error(basis)
            rise = _rise(steep[0] - error, steep[1] + error)
        return low, high, _spots(basis, coefficients, coefficients, lower, upper), np.stack([rise, rise], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Polynomials:
    """Mean (C, m) and variance (C, Γ) of cells in monomials of s, and what they leave out.

    Attributes:
        basis: of the mean.
        prior: prior norms of the ψ_a, (C, m).
        remainder, slope: ‖e‖ (C,) and ‖∂e/∂s_i‖ (C, d).
        gram: |⟨ψ_a, ψ_b⟩_P| summed, (C,); `rest`, `rest_slope` what was left out of the variance, (C,), (C, d).
        spread, spread_slope: Σ|ψ_a|_P and Σ a_i|ψ_a|_P, rounded up; `rough`, `rough_slope` the same of √margins.
    """

    output: Output
    powers: Array
    basis: Bernstein
    mean: Array
    prior: Array
    remainder: Array
    slope: Array
    products: Products | None = None
    variance: Array | None = None
    gram: Array | None = None
    rest: Array | None = None
    rest_slope: Array | None = None
    spread_slope: Array | None = None
    rough: Array | None = None
    rough_slope: Array | None = None

    @staticmethod
    def of(output: Output, local: Local, indices: tuple[tuple[int, ...], ...], *, variance: bool) -> Polynomials:
        """The mean's, and if asked the variance's (that overwrites the rows of `local`)."""
        dim, order = output.dim, output.profile.order
        table = output.form.variance * output.profile.priors(dim)
        prior = np.sqrt(np.diagonal(table)) * local.scales
        mean = np.einsum("cmn,n->cm", local.rows, output.weights) * local.scales
        remainder = output.std * output.profile.remainder(local.reach)
        slope = output.std * local.radius * output.profile.slope(local.reach)[:, None]
        slope = np.where(local.radius == 0, 0.0, slope)
        found = Polynomials(output, local.indices, Bernstein.of(dim, order), mean, prior, remainder, slope)
        if not variance:
            return found
        count, features, n = local.rows.shape
        half = triangular_product(output.root, local.rows.reshape(-1, n)).reshape(count, features, n)
        gram = (table - half @ half.transpose(0, 2, 1)) * local.scales[:, :, None] * local.scales[:, None, :]
        products = Products.of(dim, order, DEGREES[dim])
        monomials, rest, rest_slope = products(gram)
        own = np.maximum(np.diagonal(gram, axis1=1, axis2=2), 0.0)
        margin = output.margin(np.ascontiguousarray(own), np.square(prior))
        rough = np.sqrt(margin)
        return replace(
            found,
            products=products,
            variance=monomials,
            gram=np.abs(gram).sum((1, 2)),
            rest=rest,
            rest_slope=rest_slope,
            spread_slope=np.sqrt(own + margin) @ local.indices * (1 + 1e-12),
            rough=rough.sum(-1) * (1 + 1e-12),
            rough_slope=rough @ local.indices * (1 + 1e-12),
        )

    def mean_error(self, basis: Bernstein) -> Array:
        """Of a Bernstein coefficient of the mean as a bound of Σ α_i k(x_i, z)."""
        rounding = self.output.direct_unit * self.prior.sum(-1) + basis.unit * np.abs(self.mean).sum(-1)
        return (self.output.norm * self.remainder + rounding) * (1 + 1e-12)

    def mean_slope_error(self, basis: Bernstein) -> Array:
        """Of its derivatives, (C, d)."""
        rounding = self.output.direct_unit * (self.prior @ self.powers)
        rounding = rounding + (2 * basis.degree * basis.unit * np.abs(self.mean).sum(-1))[:, None]
        return (self.output.norm * self.slope + rounding) * (1 + 1e-12)

    def variance_error(self) -> Array:
        """Of a Bernstein coefficient of |q|²_P, (C,)."""
        assert self.products is not None
        assert self.gram is not None
        assert self.rest is not None
        assert self.rough is not None
        return (self.products.basis.unit * self.gram + self.rest + np.square(self.rough)) * (1 + 1e-12)

    def variance_slope_error(self, root: Array) -> Array:
        """Of its derivatives as those of σ², where |q|_P ≤ root, (C, d)."""
        assert self.products is not None
        assert self.gram is not None
        assert self.rest_slope is not None
        assert self.spread_slope is not None
        assert self.rough is not None
        assert self.rough_slope is not None
        basis = self.products.basis
        rounding = (2 * basis.degree * basis.unit * self.gram)[:, None] + 2 * self.rough[:, None] * self.rough_slope
        kept = root[:, None] * self.slope + self.remainder[:, None] * (self.spread_slope + self.slope)
        return (2 * kept + self.rest_slope + rounding) * (1 + 1e-12)


@dataclass(frozen=True, slots=True, eq=False)
class Deviation:
    """g₀ = g₁ = σ."""

    output: Output

    @property
    def inverse(self) -> Array:
        """See `Objective`."""
        return self.output.inverse

    def at(self, points: Array, side: NDArray[np.intp]) -> tuple[Array, Array]:
        """See `Objective`."""
        low, high = in_blocks(self.output.deviation, self.output.rows(2), points)
        return _finite(low, 0.0), np.minimum(_finite(high, np.inf), self.output.std)

    def over(self, lower: Array, upper: Array) -> Cells:
        """See `Objective`."""
        indices = multi_indices(self.output.dim, self.output.profile.order)
        return Cells(*in_blocks(self._over, self.output.rows(len(indices)), lower, upper))  # type: ignore[arg-type]

    def _over(self, lower: Array, upper: Array) -> tuple[Array, ...]:
        output = self.output
        indices = multi_indices(output.dim, output.profile.order)
        local = Local.of(output, lower, upper, indices)
        poly = Polynomials.of(output, local, indices, variance=True)
        basis, coefficients, low, high, root = deviation_range(poly, local)
        rise = np.zeros((len(low), output.dim), dtype=np.int8)
        if basis.degree:
            steep, error = basis.slopes(coefficients), poly.variance_slope_error(root)
            rise = _rise(steep[0] - error, steep[1] + error)
        return low, high, _spots(basis, coefficients, coefficients, lower, upper), np.stack([rise, rise], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One interval μ ± (βσ + slack) of one output."""

    output: Output
    beta: float
    slack: float


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """g₀ = l_n and g₁ = h_n: over several posteriors of one kernel the largest μ − βσ and the least μ + βσ, cut to ±cap.

    Both as in exact arithmetic and as `gpsafe.confidence.ConfidenceSet.bounds` rounds them, outwards.

    With any σ₀ > 0, σ ≤ |q|_P + ‖e‖ ≤ (|q|²_P/σ₀ + σ₀)/2 + ‖e‖: a polynomial, so that mean and deviation are not bounded apart.
    """

    generations: tuple[Generation, ...]
    cap: float

    @property
    def inverse(self) -> Array:
        """See `Objective`."""
        return self.generations[0].output.inverse

    def at(self, points: Array, side: NDArray[np.intp]) -> tuple[Array, Array]:
        """See `Objective`."""
        sign = np.where(side == 1, 1.0, -1.0)
        inner, outer = np.full((2, len(points)), self.cap)  # of −l and h
        for one in self.generations:
            low, high = in_blocks(one.output.value, one.output.rows(2), points)
            least, most = in_blocks(one.output.deviation, one.output.rows(2), points)
            most = np.minimum(_finite(most, one.output.std), one.output.std)
            drift = one.output.carried(most)
            rounded = np.sqrt(np.square(most) + 2 * one.output.stated(most)) * (1 + 8 * EPS)
            value, top = np.where(side == 1, low, -high), np.where(side == 1, high, -low)
            inner = np.minimum(inner, _finite(value - drift + one.beta * _finite(least, 0.0) + one.slack, -np.inf))
            outer = np.minimum(outer, _finite(top + 2 * drift + one.beta * rounded + one.slack, np.inf))
        inner, outer = inner - 4 * EPS * np.abs(inner), outer + 8 * EPS * np.abs(outer)
        return np.where(side == 1, inner, -outer), np.where(side == 1, outer, sign * inner)

    def over(self, lower: Array, upper: Array) -> Cells:
        """See `Objective`."""
        first = self.generations[0].output
        features = len(multi_indices(first.dim, first.profile.order))
        found = [
            in_blocks(lambda a, b, one=one: _band(one, a, b), one.output.rows(features), lower, upper)
            for one in self.generations
        ]
        low, high, spot, rise = found[-1]
        for other in found[:-1]:
            low, high = np.maximum(low, other[0]), np.minimum(high, other[1])
            rise = np.where(rise == other[3], rise, 0).astype(np.int8)
        return Cells(np.maximum(low, -self.cap), np.minimum(high, self.cap), spot, rise)


def _band(one: Generation, lower: Array, upper: Array) -> tuple[Array, ...]:
    output, beta = one.output, one.beta
    indices = multi_indices(output.dim, output.profile.order)
    local = Local.of(output, lower, upper, indices)
    poly = Polynomials.of(output, local, indices, variance=True)
    basis, variance, least, most, root = deviation_range(poly, local)
    assert poly.variance is not None
    mean = poly.mean @ basis.matrix[: len(indices)]
    rounded = 2 * output.stated(most)
    error = poly.variance_error() + rounded
    apart = np.sqrt(np.square(root) + rounded) * (1 + 4 * EPS)
    drift = 2 * output.carried(most) + poly.mean_error(basis) + beta * poly.remainder + one.slack
    middle = np.sqrt(np.maximum(poly.variance[:, 0], 1e-6 * np.square(root)))
    theta = 0.5 * beta / middle
    tangent = theta[:, None] * variance
    extra = theta * error + 0.5 * beta * middle
    high = np.minimum(_finite((mean + tangent).max(-1) + extra, np.inf), mean.max(-1) + beta * apart) + drift
    low = np.maximum(_finite((mean - tangent).min(-1) - extra, -np.inf), mean.min(-1) - beta * apart) - drift
    wide = 8 * EPS * (np.abs(mean).max(-1) + np.abs(tangent).max(-1) + extra)
    low, high = _finite(low - wide, -np.inf), _finite(high + wide, np.inf)
    spots = _spots(basis, mean - tangent, mean + tangent, lower, upper)
    rise = np.zeros((len(low), 2, output.dim), dtype=np.int8)
    if basis.degree:
        ends = [0.5 * beta / np.maximum(end, 1e-300) * (1 + sign * 8 * EPS) for end, sign in ((most, -1), (least, 1))]
        error = poly.mean_slope_error(basis) + ends[1][:, None] * poly.variance_slope_error(root)
        for side, sign in enumerate((-1.0, 1.0)):
            slopes = [basis.slopes(mean + sign * end[:, None] * variance) for end in ends]
            steep = np.minimum(slopes[0][0], slopes[1][0]) - error, np.maximum(slopes[0][1], slopes[1][1]) + error
            rise[:, side] = _rise(*steep)
    return low, high, spots, rise


def deviation_range(poly: Polynomials, local: Local) -> tuple[Bernstein, Array, Array, Array, Array]:
    """The variance's basis and coefficients, bounds of σ over cells, and one of |q|_P."""
    assert poly.products is not None
    assert poly.variance is not None
    output, basis = poly.output, poly.products.basis
    coefficients, error = basis.coefficients(poly.variance), poly.variance_error()
    root = np.sqrt(np.maximum(coefficients.max(-1) + error, 0.0)) * (1 + 4 * EPS)
    least = np.sqrt(np.maximum(coefficients.min(-1) - error, 0.0)) * (1 - 4 * EPS)
    high = np.minimum(_finite(root + poly.remainder, np.inf) * (1 + 4 * EPS), output.std)
    low = np.maximum(_finite(least - poly.remainder * (1 + 4 * EPS), 0.0), 0.0)
    if local.nearest is not None:
        value = output.form.variance * output.profile.value(local.nearest)
        explained = np.square(value).sum(-1) * output.far * (1 + 1e-9)
        known = np.sqrt(np.maximum(output.form.variance * (1 - 1e-12) - explained, 0.0))
        low = np.maximum(low, np.where(local.reach > FAR, _finite(known, 0.0), 0.0))
    return basis, coefficients, low, high, root
