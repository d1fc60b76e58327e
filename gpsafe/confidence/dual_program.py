"""max and min of f(z) over {f : ‖f(X) − y‖² ≤ R_n², ‖f‖_k ≤ B} by the exact one-dimensional dual (theory §2.6): see
:mod:`gpsafe.confidence.convex_program`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gpsafe import linalg
from gpsafe._show import short
from gpsafe.confidence.rounding import MARGIN

EPS = 2.0**-52
EMPTY = 1e-9  # relative margin below zero at which s(η) counts as negative


@short
@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """K = Q diag(values) Qᵀ, Q orthonormal and near U, and the data in that basis; all shapes may have leading batch dims.

    Args:
        values: eigenvalues, (*b, n), ≥ 0.
        vectors: U, (*b, n, n).
        targets: Uᵀy, (*b, n).
        share: ≥ ‖K − Q diag(values) Qᵀ‖/max values.
        turn: ≥ ‖Qᵀy − Uᵀy‖/‖y‖ and ‖Qᵀk(X, z) − Uᵀk(X, z)‖/√(‖K‖ k(z, z)), of the right sides as computed.
    """

    values: Tensor
    vectors: Tensor
    targets: Tensor
    share: float = 0.0
    turn: float = 0.0

    @staticmethod
    def of(gram: Tensor, targets: Tensor, error: float = 0.0, product: float = 0.0) -> Spectrum:
        """From K (*b, n, n) and y (*b, n).

        K errs by `error` in operator norm and by a share `product` of its norm; k(X, z) by as much of √(‖K‖ k(z, z)): of kernel
        values that err by ε√(k(x, x)k(z, z)) the first is ε tr K, of products the second is a share of each side, y too.

        The decomposition is held to what it should be (theory §2.6, "Rounding"): φ ≥ ‖UᵀU − I‖ puts U within φ of an
        orthonormal Q.
        """
        values, vectors = torch.linalg.eigh(gram)
        values, n = values.clamp_min(0.0), gram.shape[-1]
        top = values.amax(-1).clamp_min(1e-300)
        turned = linalg.residual_norm(torch.eye(n, dtype=gram.dtype, device=gram.device), vectors.mT)
        lost = linalg.residual_norm(gram, vectors * values.sqrt().unsqueeze(-2)) / top
        lost = lost + 3 * EPS * (values.sum(-1) / top).sqrt() + (2 + turned) * turned  # rounding of √, and Q for U
        turned = turned + (math.sqrt(n) + 2) * linalg.gamma(n + 4)  # products with U, and sums of n terms after them
        blur = error / top + product
        share, turn = (float(part.max()) * (1 + 1e-6) for part in (lost + blur, turned + blur))
        return Spectrum(values, vectors, (vectors.mT @ targets.unsqueeze(-1)).squeeze(-1), share, turn)

    def radius_sq(self, scale: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
        """R_n² for c = scale and R = noise (*b,), rounded outwards."""
        ratio = (scale / noise.square()).unsqueeze(-1) * self.values
        fit = (self.targets.square() / (1 + ratio)).sum(-1)
        # With a ≥ ‖cΔK/R²‖, a share a of yᵀ(I + cK/R²)⁻¹y ≥ I ⪯ itself, and a tr(I + cK/R²)⁻¹ of the concave log det.
        share = ratio.amax(-1) * self.share
        value = fit + noise.square() * (torch.log1p(ratio).sum(-1) + 2 * log_inv_delta)
        return value * (1 + 1e-12) + 2 * share * (fit + noise.square() * (1 / (1 + ratio)).sum(-1))


class Gap(NamedTuple):
    """s(η) as computed, the sum of its terms' sizes, and a bound of its rounding."""

    value: Tensor
    size: Tensor
    error: Tensor

    @property
    def upper(self) -> Tensor:
        """≥ s(η), at least 0."""
        return self.value.clamp_min(0.0) + self.error

    @property
    def negative(self) -> Tensor:
        """Whether s(η) < 0, beyond rounding."""
        return self.value < -EMPTY * self.size - self.error


@short
@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """max and min of f(z) over C_n at m points z.

    Args:
        spectrum: of the data, batch shape *b.
        cross: Uᵀk(X, z), (*b, n, m).
        prior: k(z, z), (*b, m).
        radius_sq: R_n², (*b,).
        norm: B, (*b,).
    """

    spectrum: Spectrum
    cross: Tensor
    prior: Tensor
    radius_sq: Tensor
    norm: Tensor

    @property
    def radius(self) -> Tensor:
        """R_n for the data that Uᵀy is exactly of, (*b,): y is within ρ = t‖Uᵀy‖/(1 − t) of them, and R_n, as a function of y,
        moves by no more."""
        turn = min(self.spectrum.turn, 1 - 1e-16)
        moved = turn / (1 - turn) * torch.linalg.vector_norm(self.spectrum.targets, dim=-1)
        return self.radius_sq.sqrt() + 2 * moved

    @property
    def ceiling(self) -> Tensor:
        """B√k(z, z), rounded up, (*b, m)."""
        return self.norm.unsqueeze(-1) * self.prior.sqrt() * (1 + 64 * EPS)

    def gap(self, eta: Tensor) -> Gap:
        """s(η), the size of its terms, and how far rounding may have moved it, η (*b, h) → (*b, h).

        Beside a share of the size: e ≥ ‖E‖, E the error of the decomposed matrix, moves η yᵀ(K + ηI)⁻¹y by e/(η − e) of itself
        at most, since (K + E + ηI)⁻¹ ⪯ (K + (η − e)I)⁻¹ ⪯ η/(η − e) (K + ηI)⁻¹.
        """
        values, targets = self.spectrum.values.unsqueeze(-1), self.spectrum.targets.unsqueeze(-1)
        fit = eta * (targets.square() / (values + eta.unsqueeze(-2))).sum(-2)
        room = self.radius.square().unsqueeze(-1) + eta * self.norm.square().unsqueeze(-1)
        error, size = self._matrix_error().unsqueeze(-1), room + fit
        summed = max(1e-13, linalg.gamma(self.spectrum.values.shape[-1] + 8))
        return Gap(room - fit, size, summed * size + error / (eta - error).clamp_min(1e-300) * fit)

    def _matrix_error(self) -> Tensor:
        """≥ the error of the decomposed matrix, in operator norm, (*b,)."""
        return self.spectrum.share * self.spectrum.values.amax(-1)

    def dual(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Upper and lower bounds of f(z) over C_n from the multiplier η (*b, m) or (*b, 1): both (*b, m).

        Valid for every η > 0 with s(η) ≥ 0; rounded outwards by `MARGIN` and by what errors e ≥ ‖E‖ of the decomposed matrix
        and d = t√((‖K‖ + e)k(z, z)) ≥ ‖δ‖ of k(X, z) do (theory §2.6): with α the computed weights of the data and q those of a
        query, ‖q‖ ≤ σ/√η and √(k(z, z)/η)/2, the mean errs by at most (e‖q‖ + d)‖α‖ and σ² by e‖q̂‖² + 2d‖q̂‖, ‖q̂‖ ≤ (‖q‖ +
        d/η)/(1 − e/η); where e > η/4 nothing is claimed. Where s(η) is negative by rounding only, 0 is used.
        """
        shifted = self.spectrum.values.unsqueeze(-1) + eta.unsqueeze(-2)
        weights = self.spectrum.targets.unsqueeze(-1) / shifted
        mean = (self.cross * weights).sum(-2)
        explained = (self.cross.square() / shifted).sum(-2)
        half = self._half(eta, explained, self.prior, torch.linalg.vector_norm(weights, dim=-2), self.gap(eta))
        return mean + half, mean - half

    def dual_table(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """`dual` at every point for every one of h shared multipliers: η (*b, h) → (*b, h, m), by matrix
        products.
        """
        shifted = self.spectrum.values.unsqueeze(-2) + eta.unsqueeze(-1)  # (*b, h, n)
        weights = self.spectrum.targets.unsqueeze(-2) / shifted
        mean = weights @ self.cross
        explained = shifted.reciprocal() @ self.cross.square()
        gap = Gap(*(term.unsqueeze(-1) for term in self.gap(eta)))
        length = torch.linalg.vector_norm(weights, dim=-1).unsqueeze(-1)
        half = self._half(eta.unsqueeze(-1), explained, self.prior.unsqueeze(-2), length, gap)
        return mean + half, mean - half

    def _half(self, eta: Tensor, explained: Tensor, prior: Tensor, length: Tensor, gap: Gap) -> Tensor:
        """σ_η/√η·√s(η), outwards; `length` is ‖(K + ηI)⁻¹y‖."""
        error, top = self._matrix_error(), self.spectrum.values.amax(-1)
        error, top = (
            part.reshape(*part.shape, *(1 for _ in range(explained.ndim - part.ndim))) for part in (error, top)
        )
        computed = (prior - explained).clamp_min(0.0) + MARGIN * prior
        seen, kept = self.spectrum.turn * ((top + error) * prior).sqrt(), (1 - error / eta).clamp_min(0.75)
        weight, variance = 0.5 * (prior / eta).sqrt(), prior
        for _ in range(2):  # what the first bound of σ² says of the weights makes the second
            own = (weight + seen / eta) / kept
            variance = computed + error * own.square() + 2 * seen * own
            weight = torch.minimum(weight, (variance / eta).sqrt())
        variance = torch.where(4 * error <= eta, variance, torch.inf)
        return (variance * gap.upper / eta).sqrt() + (error * weight + seen) * length

    def range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest η worth trying, (*b,): below, rounding dominates; above, η = ∞ is as good."""
        top = self.spectrum.values.amax(-1)
        room = self.radius_sq / self.norm.square()
        low = torch.maximum(1e-9 * top, 1e-9 * room)
        return low, torch.maximum(1e6 * top, 1e3 * room)

    def empty(self) -> Tensor:
        """Whether C_n is found to be empty, (*b,): min_η s(η) < 0 beyond rounding.

        s′(η) = B² − ‖μ_η‖² increases in η, so its zero is found by bisection (in log η).
        """
        low, high = (edge.log() for edge in self.range())
        values, targets = self.spectrum.values, self.spectrum.targets
        for _ in range(60):
            middle = 0.5 * (low + high)
            size = (targets.square() * values / (values + middle.exp().unsqueeze(-1)).square()).sum(-1)
            grow = size > self.norm.square()
            low, high = torch.where(grow, middle, low), torch.where(grow, high, middle)
        return self.gap(torch.stack([low.exp(), high.exp()], dim=-1)).negative.any(-1)

    def solve(self, *, grid: int = 24, sections: int = 18) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Best dual bounds over η: upper and lower (*b, m), and the η of each (+∞ where B√k is the best)."""
        low, high = (edge.log() for edge in self.range())
        ceiling = self.ceiling
        steps = torch.linspace(0, 1, grid, dtype=low.dtype, device=low.device)
        nodes = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * steps  # (*b, h)
        tables = self.dual_table(nodes.exp())
        step = ((high - low) / (grid - 1)).unsqueeze(-1)
        ends, multipliers = [], []
        for side, sign in ((0, 1.0), (1, -1.0)):
            start, index = (sign * tables[side]).min(-2)
            center = low.unsqueeze(-1) + step * index
            best, best_at = self._golden(center - step, center + step, side, sign, sections)
            best, best_at = _better(start, center.exp(), best, best_at)
            best, best_at = _better(ceiling, torch.full_like(ceiling, math.inf), best, best_at)
            ends.append(sign * best)
            multipliers.append(best_at)
        return ends[0], ends[1], multipliers[0], multipliers[1]

    def table(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """The best of the dual bounds at η (h,) and of B√k, upper and lower, (*b, m)."""
        upper, lower = self.dual_table(eta)
        return torch.minimum(upper.amin(-2), self.ceiling), torch.maximum(lower.amax(-2), -self.ceiling)

    def _golden(self, left: Tensor, right: Tensor, side: int, sign: float, sections: int) -> tuple[Tensor, Tensor]:
        """Golden-section search in log η on per-point brackets (*b, m): best value found and its η."""
        ratio = (math.sqrt(5) - 1) / 2
        inner = [right - ratio * (right - left), left + ratio * (right - left)]
        values = [sign * self.dual(point.exp())[side] for point in inner]
        for _ in range(sections):
            go_left = values[0] <= values[1]
            left, right = torch.where(go_left, left, inner[0]), torch.where(go_left, inner[1], right)
            kept = torch.where(go_left, inner[0], inner[1])
            kept_value = torch.where(go_left, values[0], values[1])
            fresh = torch.where(go_left, right - ratio * (right - left), left + ratio * (right - left))
            fresh_value = sign * self.dual(fresh.exp())[side]
            inner = [torch.where(go_left, fresh, kept), torch.where(go_left, kept, fresh)]
            values = [torch.where(go_left, fresh_value, kept_value), torch.where(go_left, kept_value, fresh_value)]
        best, at = _better(values[0], inner[0], values[1], inner[1])
        return best, at.exp()


def _better(value: Tensor, at: Tensor, other: Tensor, other_at: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller of two values, with its argument."""
    take = value <= other
    return torch.where(take, value, other), torch.where(take, at, other_at)


def bound_at(program: Program, proposals: tuple[Tensor, Tensor], regularizer: float) -> tuple[Tensor, Tensor]:
    """Dual bounds (m,) from proposed η (upper side, lower side), each (m,), whatever they are.

    Tries the proposals, their neighbours within ±1 %, λ, and ∞; NaN, zero, negative or infinite proposals
    count as ∞.
    """
    smallest, largest = program.range()
    ceiling = program.ceiling
    ends = []
    for side, sign in ((0, 1.0), (1, -1.0)):
        best = ceiling
        proposed = torch.nan_to_num(proposals[side], nan=0.0, posinf=0.0, neginf=0.0)
        usable = torch.where(proposed > 0, proposed, regularizer)
        tries = [usable * factor for factor in (1.0, 0.99, 1.01)]
        for eta in (*tries, torch.full_like(usable, regularizer)):
            clipped = torch.minimum(torch.maximum(eta, smallest), largest)
            best = torch.minimum(best, sign * program.dual(clipped)[side])
        ends.append(sign * best)
    return ends[0], ends[1]
