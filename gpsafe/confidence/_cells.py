"""Enclosures of posterior mean, deviation and band over cells, and at points: what `gpsafe.confidence._branch` asks of them.

Every objective is a pair of functions, g₀ to be minimised and g₁ to be maximised (for mean and deviation the same), of one
learned output over cells of its active inputs. All claims are outward of rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpsafe.confidence._output import Local, MeanTaylor, Output, VarianceTaylor, finite, in_blocks
from gpsafe.confidence._taylor import EPS, Array, Bernstein


@dataclass(frozen=True, slots=True)
class Cells:
    """What is known of one batch of cells.

    Attributes:
        low, high: ≤ g₀ and ≥ g₁ all over the cell, (C,).
        spot: about where g₀ is least and g₁ largest, (C, 2, d).
        rise: +1 where g_side is proved to grow with z_i all over the cell, −1 where to fall, 0 otherwise, (C, 2, d).
        hoped: about the least g₀ and the largest g₁ in the cell: as `low` and `high`, but for remainders and rounding, (C, 2).
    """

    low: Array
    high: Array
    spot: Array
    rise: Array
    hoped: Array


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


def _spots(basis: Bernstein, low: Array, high: Array, lower: Array, upper: Array) -> Array:
    center, radius = 0.5 * lower + 0.5 * upper, 0.5 * upper - 0.5 * lower
    spots = np.stack([basis.peak(-low), basis.peak(high)], axis=1)
    return np.clip(center[:, None] + radius[:, None] * spots, lower[:, None], upper[:, None])


def _rise(low: Array, high: Array) -> Array:
    return (low > 0).astype(float) - (high < 0).astype(float)


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
        low, high = in_blocks(self.output.value, self.output.rows(points=True), points)
        return finite(low, -np.inf), finite(high, np.inf)

    def over(self, lower: Array, upper: Array) -> Cells:
        """See `Objective`."""
        return Cells(*in_blocks(self._over, self.output.rows(), lower, upper))

    def _over(self, lower: Array, upper: Array) -> tuple[Array, ...]:
        output = self.output
        local = Local.of(output, lower, upper)
        taylor = MeanTaylor.of(output, local)
        basis, cap = taylor.basis, output.norm * output.std * (1 + 8 * EPS)
        coefficients = basis.coefficients(taylor.monomials)
        error = taylor.error(basis)
        hoped = np.stack([coefficients.min(-1), coefficients.max(-1)], axis=1)
        low, high = hoped[:, 0] - error, hoped[:, 1] + error
        low, high = np.maximum(finite(low, -cap), -cap), np.minimum(finite(high, cap), cap)
        if local.nearest is not None:
            least, most = output.mean_far_from_data(local)
            low, high = np.maximum(low, least), np.minimum(high, most)
        rise = np.zeros((len(low), output.dim))
        if basis.degree:
            steep, error = basis.slopes(coefficients), taylor.slope_error(basis)
            rise = _rise(steep[0] - error, steep[1] + error)
        spots = _spots(basis, coefficients, coefficients, lower, upper)
        return low, high, spots, np.stack([rise, rise], axis=1), hoped


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
        low, high = in_blocks(self.output.deviation, self.output.rows(points=True), points)
        return finite(low, 0.0), np.minimum(finite(high, np.inf), self.output.std)

    def over(self, lower: Array, upper: Array) -> Cells:
        """See `Objective`."""
        return Cells(*in_blocks(self._over, self.output.rows(), lower, upper))

    def _over(self, lower: Array, upper: Array) -> tuple[Array, ...]:
        output = self.output
        local = Local.of(output, lower, upper)
        rows = local.features(output)
        taylor = VarianceTaylor.of(MeanTaylor.of(output, local, rows), local, rows)
        basis, coefficients, low, high = taylor.basis, taylor.coefficients, taylor.low, taylor.high
        rise = np.zeros((len(low), output.dim))
        if basis.degree:
            steep, error = basis.slopes(coefficients), taylor.slope_error
            rise = _rise(steep[0] - error, steep[1] + error)
        hoped = np.sqrt(np.maximum(np.stack([coefficients.min(-1), coefficients.max(-1)], axis=1), 0.0))
        spots = _spots(basis, coefficients, coefficients, lower, upper)
        return low, high, spots, np.stack([rise, rise], axis=1), hoped


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One interval μ ± (βσ + slack) of one output."""

    output: Output
    beta: float
    slack: float


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """g₀ = l and g₁ = h: over several posteriors of one kernel the largest μ̂ − βσ and the least μ̂ + βσ, cut to ±cap.

    μ̂ is the mean with the computed weights, as in `Mean`.

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
        inner, outer = np.full((2, len(points)), self.cap)  # of −l and h
        inner *= 1 - 512 * EPS  # the cap is rounded up
        for one in self.generations:
            low, high = in_blocks(one.output.value, one.output.rows(points=True), points)
            least, most = in_blocks(one.output.deviation, one.output.rows(points=True), points)
            most = np.minimum(finite(most, np.inf), one.output.std)
            value, top = np.where(side == 1, low, -high), np.where(side == 1, high, -low)
            inner = np.minimum(
                inner, finite(value + one.beta * (1 - 8 * EPS) * finite(least, 0.0) + one.slack, -np.inf)
            )
            outer = np.minimum(outer, finite(top + one.beta * most + one.slack, np.inf))
        inner, outer = inner - 8 * EPS * np.abs(inner), outer + 8 * EPS * np.abs(outer)
        return np.where(side == 1, inner, -outer), np.where(side == 1, outer, -inner)

    def over(self, lower: Array, upper: Array) -> Cells:
        """See `Objective`."""
        found = [
            in_blocks(lambda a, b, one=one: _band(one, a, b), one.output.rows(), lower, upper)
            for one in self.generations
        ]
        low, high, spot, rise, hoped = found[-1]
        for other in found[:-1]:
            low, high = np.maximum(low, other[0]), np.minimum(high, other[1])
            rise = np.where(rise == other[3], rise, 0.0)
            hoped = np.stack([np.maximum(hoped[:, 0], other[4][:, 0]), np.minimum(hoped[:, 1], other[4][:, 1])], axis=1)
        return Cells(np.maximum(low, -self.cap), np.minimum(high, self.cap), spot, rise, hoped)


def _band(one: Generation, lower: Array, upper: Array) -> tuple[Array, ...]:
    output, beta = one.output, one.beta
    local = Local.of(output, lower, upper)
    rows = local.features(output)
    own = MeanTaylor.of(output, local, rows)
    taylor = VarianceTaylor.of(own, local, rows)
    basis, variance = taylor.basis, taylor.coefficients
    mean = basis.coefficients(own.monomials)
    apart = beta * taylor.high * (1 + 4 * EPS)
    drift = own.error(basis) + one.slack
    middle = np.sqrt(np.maximum(taylor.center, 1e-6 * np.square(taylor.root)))
    theta = 0.5 * beta / middle
    tangent = theta[:, None] * variance
    extra = theta * taylor.error + 0.5 * beta * middle + beta * own.remainder
    ends = (mean - tangent).min(-1), (mean + tangent).max(-1)
    low = np.maximum(finite(ends[0] - extra, -np.inf), mean.min(-1) - apart) - drift
    high = np.minimum(finite(ends[1] + extra, np.inf), mean.max(-1) + apart) + drift
    added = 0.5 * beta * middle + one.slack
    hoped = np.stack([ends[0] - added, ends[1] + added], axis=1)
    wide = 8 * EPS * (np.abs(mean).max(-1) + np.abs(tangent).max(-1) + extra)
    low, high = finite(low - wide, -np.inf), finite(high + wide, np.inf)
    spots = _spots(basis, mean - tangent, mean + tangent, lower, upper)
    rise = np.zeros((len(low), 2, output.dim))
    if basis.degree:
        pairs = ((taylor.high, -1), (taylor.low, 1))
        weights = [0.5 * beta / np.maximum(end, 1e-300) * (1 + sign * 8 * EPS) for end, sign in pairs]
        error = own.slope_error(basis) + weights[1][:, None] * taylor.slope_error
        for side, sign in enumerate((-1.0, 1.0)):
            slopes = [basis.slopes(mean + sign * weight[:, None] * variance) for weight in weights]
            steep = np.minimum(slopes[0][0], slopes[1][0]) - error, np.maximum(slopes[0][1], slopes[1][1]) + error
            rise[:, side] = _rise(*steep)
    return low, high, spots, rise, hoped
