"""One learned output as arrays, and its Taylor polynomials over cells (theory §5.7), with the rounding of both.

A feature ψ_a is a functional like any other: its computed row errs by ENTRY relative to its prior norm, and the margins of
`gpsafe.confidence.rounding` are those of its posterior variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from gpsafe import linalg
from gpsafe.confidence._taylor import BLOCK, DEGREES, EPS, Array, Bernstein, Products, Profile, multi_indices, tiled
from gpsafe.confidence.rounding import Rounding
from gpsafe.models._fast import triangular_product
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels

ENTRY = 32 * EPS  # times d + 4: rounding of a derivative of the kernel from true differences (theory §5.7)
ROOM = 4.0  # times the margins, whose product term is measured (`gpsafe.confidence.rounding`) for values, not for derivatives
FAR = 1.0  # radius in length-scales from which the bounds far from data are tried as well


def finite(value: Array, otherwise: float) -> Array:
    """NaN replaced."""
    return np.where(np.isnan(value), otherwise, value)


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
        far: 1/λ ≥ ‖(K + λ)⁻¹‖.
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
        """√v, rounded up."""
        return float(np.sqrt(self.form.variance)) * (1 + 2 * EPS)

    @property
    def nothing(self) -> float:
        """+∞ where the margins claim nothing (ηT > λ/2, `gpsafe.confidence.rounding`), else 0.

        The prior variance is a margin then for a computed variance that is cut at 0, not for a covariance.
        """
        own = self.rounding
        return math.inf if float(own.backward * own.trace) > 0.5 * float(own.regularizer) else 0.0

    def rows(self, *, points: bool = False) -> int:
        """How many cells, or points, at a time."""
        features = 2 if points else len(multi_indices(self.dim, self.profile.order))
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
        computed = self.form.variance - self.explained(self.cross(points))
        variance = np.maximum(computed, 0.0)
        margin = self.margin(variance, np.full_like(variance, self.form.variance))
        margin = np.where(computed < -margin, self.form.variance, margin)  # the margin is refuted
        unit = 4 * EPS
        return np.sqrt(np.maximum(variance - margin, 0.0)) * (1 - unit), np.sqrt(variance + margin) * (1 + unit)

    def stated(self, deviation: Array) -> Array:
        """The margin that confidence intervals add to the variance, where σ is at most `deviation`."""
        variance = np.square(deviation)
        return self.margin(variance, np.full_like(variance, self.form.variance)) * (1 + 64 * EPS)

    def widened(self, deviation: Array) -> Array:
        """≥ √(computed variance + its margin) − σ, where σ is at most `deviation`.

        The computed variance exceeds σ² by at most its margin m, so with m = m₀ + Δ, m₀ that of σ = 0, this is at most
        √(σ² + 2m₀ + 2Δ) − σ ≤ √(2m₀) + Δ/σ; and Δ, from its formula (`gpsafe.confidence.rounding`), is at most
        2ε√k·sσ + η(2t₀sσ + s²σ²) with s² = 2T/λ. Doubled, for m is taken at the computed variance.
        """
        own, zero = self.rounding, self.stated(np.zeros_like(deviation))
        s = math.sqrt(2 * float(own.trace / own.regularizer))
        first = s * np.sqrt(zero) + 4 * float(own.entry * own.trace / own.regularizer) * self.std
        steep = 2 * float(own.entry) * self.std * s + float(own.backward) * s * (2 * first + s * deviation)
        return 2 * (np.sqrt(2 * zero) + steep)

    def mean_far_from_data(self, local: Local) -> tuple[Array, Array]:
        """Bounds of Σ α_i k(x_i, ·) over wide cells, infinite for others: each k(x_i, ·) is in [0, k at the nearest point]."""
        assert local.nearest is not None
        value = self.form.variance * self.profile.value(local.nearest) * (1 + 1e-9)
        ends = []
        for weights in (np.maximum(-self.weights, 0.0), np.maximum(self.weights, 0.0)):
            end = finite(np.einsum("cn,n->c", value, weights), np.inf) * (1 + 1e-12) + self.direct
            ends.append(np.where(local.reach > FAR, end, np.inf))
        return -ends[0], ends[1]

    def far_from_data(self, local: Local) -> Array:
        """≤ σ over wide cells, 0 for others: what is explained is at most ‖k‖²/λ."""
        assert local.nearest is not None
        value = self.form.variance * self.profile.value(local.nearest)
        explained = np.square(value).sum(-1) * self.far * (1 + 1e-9)
        known = np.sqrt(np.maximum(self.form.variance * (1 - 1e-12) - explained, 0.0))
        return np.where(local.reach > FAR, finite(known, 0.0), 0.0)

    def margin(self, variance: Array, prior: Array) -> Array:
        """≥ |exact − computed posterior variance| of functionals, from the computed one and the prior one."""
        return ROOM * self.rounding.variance(torch.from_numpy(variance), torch.from_numpy(prior)).numpy()


@dataclass(frozen=True, slots=True, eq=False)
class Local:
    """Cells in length-scales.

    Attributes:
        gaps: from the x_i to the centres, (C, d, n).
        powers: a, (m, d).
        scales: ρ^a/(ℓ^a a!), (C, m).
        reach: r of the farthest corner, (C,).
        radius: ρ/ℓ, (C, d).
        nearest: ≤ squared distance of each x_i from the cell, (C, n), where `reach` > FAR; None if it nowhere is.
    """

    gaps: Array
    powers: Array
    scales: Array
    reach: Array
    radius: Array
    nearest: Array | None

    @staticmethod
    def of(output: Output, lower: Array, upper: Array) -> Local:
        """Of cells [lower, upper], (C, d) ×2."""
        center = 0.5 * lower + 0.5 * upper
        radius = np.maximum(upper - center, center - lower) * output.inverse * (1 + 8 * EPS)
        gaps = np.empty((len(lower), output.dim, len(output.points)))
        for i, scale in enumerate(output.inverse):
            np.subtract(center[:, i, None], output.points[None, :, i], out=gaps[:, i])
            gaps[:, i] *= scale
        indices = multi_indices(output.dim, output.profile.order)
        powers = np.array(indices, dtype=float).reshape(len(indices), -1)
        factorials = np.array([math.prod(math.factorial(k) for k in a) for a in indices], dtype=float)
        scales = np.prod(radius[:, None, :] ** powers, axis=-1) / factorials
        reach = np.sqrt(np.square(radius).sum(-1)) * (1 + 8 * EPS)
        wide, nearest = reach > FAR, None
        if wide.any():
            nearest = np.zeros((len(lower), len(output.points)))
            away = np.maximum(np.abs(gaps[wide]) * (1 - 16 * EPS) - radius[wide, :, None], 0.0)
            nearest[wide] = np.square(away).sum(1)
        return Local(gaps, powers, scales, reach, radius, nearest)

    def features(self, output: Output) -> Array:
        """v ∂^aκ at the centres, (C, m, n)."""
        rows = np.empty((len(self.gaps), len(self.powers), len(output.points)))
        output.profile.features(self.gaps, multi_indices(output.dim, output.profile.order), rows)
        rows *= output.form.variance
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class MeanTaylor:
    """The mean of cells as polynomials, and what they leave out.

    Attributes:
        basis: of their Bernstein coefficients.
        powers: a, (m, d).
        monomials: Σ_i α_i ψ_a(x_i), (C, m).
        prior: ‖ψ_a‖, (C, m).
        remainder, slope: ‖e‖ (C,) and ‖∂e/∂s_i‖ (C, d).
    """

    output: Output
    basis: Bernstein
    powers: Array
    monomials: Array
    prior: Array
    remainder: Array
    slope: Array

    @staticmethod
    def of(output: Output, local: Local, rows: Array | None = None) -> MeanTaylor:
        """Of cells, whose features are `rows` if they are known."""
        own = np.sqrt(output.form.variance * np.diagonal(output.profile.priors(output.dim)))
        if rows is None:
            sums = output.profile.sums(local.gaps, output.form.variance * output.weights)
        else:
            sums = np.einsum("cmn,n->cm", rows, output.weights)
        slope = output.std * local.radius * output.profile.slope(local.reach)[:, None]
        return MeanTaylor(
            output,
            Bernstein.of(output.dim, output.profile.order),
            local.powers,
            sums * local.scales,
            own * local.scales,
            output.std * output.profile.remainder(local.reach),
            np.where(local.radius == 0, 0.0, slope),
        )

    def error(self, basis: Bernstein) -> Array:
        """Of a Bernstein coefficient in that basis, as one of Σ α_i k(x_i, z), (C,)."""
        rounding = self.output.direct_unit * self.prior.sum(-1) + basis.unit * np.abs(self.monomials).sum(-1)
        return (self.output.norm * self.remainder + rounding) * (1 + 1e-12)

    def slope_error(self, basis: Bernstein) -> Array:
        """Of one of its derivative along s_i, (C, d)."""
        rounding = self.output.direct_unit * tiled(self.prior, self.powers)
        rounding = rounding + (2 * basis.degree * basis.unit * np.abs(self.monomials).sum(-1))[:, None]
        return (self.output.norm * self.slope + rounding) * (1 + 1e-12)


@dataclass(frozen=True, slots=True, eq=False)
class VarianceTaylor:
    """|q|²_P of cells as polynomials, what they leave out, and the deviation.

    Attributes:
        mean: what the mean of the same cells is.
        basis, coefficients: Bernstein coefficients of |q|²_P, (C, K).
        center: |q(0)|²_P, the variance at the centre, (C,).
        error: of a coefficient, (C,).
        root: ≥ |q|_P, (C,).
        low, high: bounds of σ, (C,).
        slope_error: of a coefficient of the derivative along s_i as one of ∂σ²/∂s_i, (C, d).
    """

    mean: MeanTaylor
    basis: Bernstein
    coefficients: Array
    center: Array
    error: Array
    root: Array
    low: Array
    high: Array
    slope_error: Array

    @staticmethod
    def of(mean: MeanTaylor, local: Local, rows: Array) -> VarianceTaylor:
        """Of cells and their features `rows`, which it overwrites.

        Rounding: the margin of a functional grows with its variance and its prior variance, and both of q are at most squared
        sums over the ψ_a. For slopes, 2⟨x, y⟩ errs by at most the margin of x + τy over τ, for every τ > 0 (theory §5.7).
        Slopes: ∂σ² = 2⟨q + e, ∂(q + e)⟩_P, which differs from 2⟨q, ∂q⟩_P by at most 2(|q|‖∂e‖ + ‖e‖|∂q| + ‖e‖‖∂e‖).
        """
        output, (count, features, n) = mean.output, rows.shape
        table = output.form.variance * output.profile.priors(output.dim)
        half = triangular_product(output.root, rows.reshape(-1, n)).reshape(count, features, n)
        gram = (table - half @ half.transpose(0, 2, 1)) * local.scales[:, :, None] * local.scales[:, None, :]
        products = Products.of(output.dim, output.profile.order, DEGREES[output.dim])
        basis = products.basis
        monomials, rest, rest_slope = products(gram)
        own = np.maximum(np.diagonal(gram, axis1=1, axis2=2), 0.0)
        margin = output.margin(np.ascontiguousarray(own), np.square(mean.prior))
        spread, total = np.sqrt(own + margin), np.abs(gram).sum((1, 2))
        prior, part, share = mean.prior.sum(-1), tiled(spread, local.powers), tiled(mean.prior, local.powers)
        rough = output.margin(np.square(spread.sum(-1)), np.square(prior)) + output.nothing
        rough = np.where(monomials[:, 0] < -margin[:, 0], np.inf, rough)  # the margin is refuted
        error = (basis.unit * total + rest + rough) * (1 + 1e-12)

        coefficients = basis.coefficients(monomials)
        root = np.sqrt(np.maximum(coefficients.max(-1) + error, 0.0)) * (1 + 4 * EPS)
        least = np.sqrt(np.maximum(coefficients.min(-1) - error, 0.0)) * (1 - 4 * EPS)
        high = np.minimum(finite(root + mean.remainder, np.inf) * (1 + 4 * EPS), output.std)
        low = np.maximum(finite(least - mean.remainder * (1 + 4 * EPS), 0.0), 0.0)
        if local.nearest is not None:
            low = np.maximum(low, output.far_from_data(local))

        kept = root[:, None] * mean.slope
        kept += mean.remainder[:, None] * (part + mean.slope)
        tau = prior[:, None] / np.maximum(share, 1e-300)
        both = spread.sum(-1)[:, None] + tau * part, np.broadcast_to(2 * prior[:, None], tau.shape)
        rounding = output.margin(np.square(both[0]), np.square(both[1])) / tau
        rounding = np.where(np.isinf(rough)[:, None], np.inf, rounding)
        rounding += (2 * basis.degree * basis.unit * total)[:, None]
        slope_error = (2 * kept + rest_slope + rounding) * (1 + 1e-12)
        return VarianceTaylor(mean, basis, coefficients, monomials[:, 0], error, root, low, high, slope_error)
