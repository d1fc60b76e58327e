"""Polynomials that a posterior mean and variance follow over a cell, with proven remainders (theory §5.7).

Write φ_z = k(z, ·) and let |·|_P ≤ ‖·‖ be the posterior seminorm, |φ_z|_P = σ(z), with inner product ⟨·, ·⟩_P the posterior
covariance of the functionals (theory §2.1). Over a cell with centre c and half-widths ρ let z = c + ρs, |s_i| ≤ 1, and

    q(s) = Σ_{|a| ≤ p} s^a ψ_a,   ψ_a = ρ^a ∂^aφ_c / a!,   φ_z = q(s) + e.

A function f = ⟨f, φ_z⟩ then differs from the polynomial Σ ⟨f, ψ_a⟩ s^a by at most ‖f‖‖e‖, and σ(z) from |q(s)|_P, the root of
the polynomial Σ ⟨ψ_a, ψ_b⟩_P s^{a+b}, by at most ‖e‖, which the kernel alone determines (`Profile`).

Ranges of polynomials over |s_i| ≤ 1 are taken from their Bernstein coefficients, whose least and largest enclose them; a
coefficient at a corner is the value there.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gpsafe.rkhs import kernels

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)

ORDERS = {1: 6, 2: 5, 3: 4, 4: 3, 5: 2, 6: 2}  # p for the RBF, by dimension
DEGREES = {1: 12, 2: 10, 3: 6, 4: 4, 5: 3, 6: 3}  # polynomials of the variance: higher powers go into the remainder
MAX_DIM = 6
BLOCK = (
    24  # cells come in multiples of so many, full tiles for BLAS: then no row's rounding depends on the rows around it
)


def tiled(rows: Array, matrix: Array) -> Array:
    """rows @ matrix, (C, k) and (k, l) → (C, l), BLOCK rows at a time where C is a multiple of it."""
    tiles, over = divmod(len(rows), BLOCK)
    if over:
        return rows @ matrix
    return np.matmul(rows.reshape(tiles, BLOCK, rows.shape[-1]), matrix).reshape(len(rows), matrix.shape[-1])


@dataclass(frozen=True, slots=True)
class Profile:
    """What the kernel's shape says: derivatives and remainders of z ↦ κ(‖z‖), inputs in length-scales.

    Along the segment φ(t) = φ_{c + t(z−c)}, r = ‖(z − c)/ℓ‖, e is the remainder of Taylor's formula of order p at t = 1, and
    its norm follows from κ alone:

    - RBF: e = ∫₀¹ (1−t)^p/p! φ^{(p+1)}(t) dt with ‖φ^{(p+1)}(t)‖ = √((2p+1)!!) r^{p+1} for all t;
    - Matérn 5/2, p = 2: d‖e‖²/dr = r²(κ⁗(0)r − κ‴(r)) ≤ (100√5/3)r⁴, since (3 − 4a)e^a ≤ 3 − a, a = √5r;
    - Matérn 3/2, p = 1: d‖e‖²/dr = 2r(κ″(r) − κ″(0)) ≤ 12√3 r², since 1 − (1 − a)e^{−a} ≤ 2a, a = √3r;
    - Matérn ½, p = 0: ‖e‖² = 2(1 − e^{−r}).

    ∂_ie is the remainder of ∂_iφ, of order p − 1: the same with the kernel −∂_i²κ along the segment, which is a mixture of −κ″
    (i along the segment) and −κ′/r (across it), of which the first is the worst (theory §5.7).
    """

    nu: float
    order: int

    @staticmethod
    def of(form: kernels.Stationary, dim: int) -> Profile:
        """For a kernel on `dim` active inputs."""
        return Profile(form.nu, ORDERS[dim] if math.isinf(form.nu) else int(form.nu - 0.5))

    def remainder(self, r: Array) -> Array:
        """≥ ‖e‖/√v, grows with r."""
        p = self.order
        if math.isinf(self.nu):
            value = math.sqrt(_double_factorial(2 * p + 1)) / math.factorial(p + 1) * r ** (p + 1)
        elif self.nu == 2.5:
            value = math.sqrt(20 * math.sqrt(5) / 3) * r**2.5
        elif self.nu == 1.5:
            value = math.sqrt(4 * math.sqrt(3)) * r**1.5
        else:
            value = np.sqrt(-2 * np.expm1(-r))
        return value * (1 + 64 * EPS)

    def slope(self, r: Array) -> Array:
        """≥ ℓ_i‖∂_ie‖/√v, grows with r; +∞ where φ has no derivative."""
        p = self.order
        if math.isinf(self.nu):
            value = math.sqrt(_double_factorial(2 * p + 1)) / math.factorial(p) * r**p
        elif self.nu == 2.5:
            value = math.sqrt(400 * math.sqrt(5) / 9) * r**1.5
        elif self.nu == 1.5:
            value = np.sqrt(12 * math.sqrt(3) * r)
        else:
            value = np.full_like(r, math.inf)
        return value * (1 + 64 * EPS)

    def value(self, square: Array) -> Array:
        """κ as a function of r²."""
        if math.isinf(self.nu):
            return np.exp(-0.5 * square)
        a = np.sqrt(2 * self.nu * square)
        return self._polynomial(a) * np.exp(-a)

    def at_zero(self, index: tuple[int, ...]) -> float:
        """∂^γκ at 0, |γ| ≤ 2p."""
        if any(k % 2 for k in index):
            return 0.0
        if math.isinf(self.nu):
            return math.prod((-1) ** (k // 2) * _double_factorial(k - 1) for k in index)
        even = tuple(sorted((k for k in index if k), reverse=True))
        curvature = {1.5: -3.0, 2.5: -5 / 3}.get(self.nu, math.nan)
        return {(): 1.0, (2,): curvature, (4,): 25.0, (2, 2): 25 / 3}[even]

    def priors(self, dim: int) -> Array:
        """⟨∂^aφ, ∂^bφ⟩/v = (−1)^{|b|} ∂^{a+b}κ(0) for all |a|, |b| ≤ p, (m, m)."""
        return _priors(self, dim)

    def sums(self, t: Array, weights: Array) -> Array:
        """Σ_i weights_i ∂^aκ(t_i) of all |a| ≤ p, t (C, d, n), weights (n,) → (C, m)."""
        indices = multi_indices(t.shape[1], self.order)
        if math.isinf(self.nu):
            rows = np.empty((len(t), len(indices), t.shape[2]))
            self.features(t, indices, rows)
            return np.einsum("cmn,n->cm", rows, weights)
        value, first, second = self._radial(np.einsum("cin,cin->cn", t, t))
        found = [np.einsum("cn,n->c", value, weights)[:, None]]
        if self.order > 0:
            first *= weights
            found.append(np.einsum("cn,cin->ci", first, t))
        if self.order > 1:
            second *= weights
            pairs = np.matmul(t * second[:, None], t.transpose(0, 2, 1))
            bend = first.sum(-1)
            for a in indices[1 + t.shape[1] :]:
                i, j = (k for k, e in enumerate(a) for _ in range(e))
                found.append((pairs[:, i, j] + (bend if i == j else 0.0))[:, None])
        return np.concatenate(found, axis=1)

    def features(self, t: Array, indices: tuple[tuple[int, ...], ...], out: Array) -> None:
        """∂^aκ at t (C, d, n) for every index, into out (C, m, n)."""
        square = np.einsum("cin,cin->cn", t, t)
        if not math.isinf(self.nu):
            value, first, second = self._radial(square)
            for k, index in enumerate(indices):
                axes = [i for i, e in enumerate(index) for _ in range(e)]
                if not axes:
                    out[:, k] = value
                    continue
                np.multiply(first if len(axes) == 1 else second, t[:, axes[0]], out=out[:, k])
                if len(axes) == 2:
                    out[:, k] *= t[:, axes[1]]
                    if axes[0] == axes[1]:
                        out[:, k] += first
            return
        top = max(max(a) for a in indices)
        one_axis = [np.ones_like(t), -t]  # (−1)^j He_j(t)
        for j in range(1, top):
            one_axis.append(-t * one_axis[j] - j * one_axis[j - 1])
        place = {a: k for k, a in enumerate(indices)}
        for k, a in enumerate(indices):
            last = max((i for i, e in enumerate(a) if e), default=None)
            if last is None:
                np.exp(-0.5 * square, out=out[:, k])
                continue
            before = place[(*a[:last], 0, *a[last + 1 :])]
            np.multiply(out[:, before], one_axis[a[last]][:, last], out=out[:, k])

    def _radial(self, square: Array) -> tuple[Array, Array, Array]:
        """κ, κ′/r and (κ′/r)′/r of a Matérn kernel, as far as they exist, from r²."""
        a = np.sqrt(2 * self.nu * square)
        decay = np.exp(-a)
        first = second = decay
        if self.nu == 1.5:
            first = -3.0 * decay
        elif self.nu == 2.5:
            first, second = (-5 / 3) * (1 + a) * decay, (25 / 3) * decay
        return self._polynomial(a) * decay, first, second

    def _polynomial(self, a: Array) -> Array | float:
        """κ e^a of a Matérn kernel, a = √(2ν) r."""
        if self.nu == 0.5:
            return 1.0
        return 1 + a if self.nu == 1.5 else 1 + a * (1 + a / 3)


def chord(nu: float, eta: Array) -> Array:
    """c(η) ≥ ‖φ(t) − (1 − t)φ(0) − tφ(1)‖ of a unit kernel, t ∈ [0, 1], along a segment of η length-scales (theory §5.10)."""
    if math.isinf(nu):
        return math.sqrt(3) / 8 * eta**2
    if nu == 2.5:
        return 5 / 8 * eta**2
    if nu == 1.5:
        return math.sqrt(12 * math.sqrt(3)) / 4 * eta**1.5
    return np.sqrt(-2 * np.expm1(-0.5 * eta))


@cache
def _priors(profile: Profile, dim: int) -> Array:
    indices = multi_indices(dim, profile.order)
    sums = [[tuple(x + y for x, y in zip(a, b, strict=True)) for b in indices] for a in indices]
    signs = [(-1) ** sum(b) for b in indices]
    return np.array([[sign * profile.at_zero(c) for sign, c in zip(signs, row, strict=True)] for row in sums])


def _double_factorial(n: int) -> float:
    return float(math.prod(range(n, 0, -2)))


@cache
def multi_indices(dim: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """All a with |a| ≤ degree, by degree."""
    every = (a for a in itertools.product(range(degree + 1), repeat=dim) if sum(a) <= degree)
    return tuple(sorted(every, key=lambda a: (sum(a), a[::-1])))


@cache
def _bernstein_axis(degree: int) -> Array:
    """Bernstein coefficients of s^j on [−1, 1], (degree + 1, degree + 1): averages of products of ±1, so within [−1, 1]."""
    rows = []
    for j in range(degree + 1):
        row = []
        for k in range(degree + 1):  # blossom of s^j at k times 1 and degree − k times −1
            total = sum((-1) ** (j - i) * math.comb(k, i) * math.comb(degree - k, j - i) for i in range(j + 1))
            row.append(total / math.comb(degree, j))
        rows.append(row)
    return np.array(rows)


@dataclass(frozen=True, slots=True, eq=False)
class Bernstein:
    """Polynomials of total degree ≤ D in d variables over [−1, 1]^d.

    Attributes:
        dim, degree: d and D.
        indices: of the monomials, Γ of them.
        matrix: monomials → Bernstein coefficients, (Γ, (D + 1)^d).
    """

    dim: int
    degree: int
    indices: tuple[tuple[int, ...], ...]
    matrix: Array

    @staticmethod
    @cache
    def of(dim: int, degree: int) -> Bernstein:
        """The basis."""
        indices, axis = multi_indices(dim, degree), _bernstein_axis(degree)
        rows = np.ones((len(indices), 1))
        powers = np.array(indices).reshape(len(indices), dim)
        for i in range(dim):
            rows = (rows[:, :, None] * axis[powers[:, i]][:, None, :]).reshape(len(indices), -1)
        return Bernstein(dim, degree, indices, np.ascontiguousarray(rows))

    def coefficients(self, monomials: Array) -> Array:
        """(C, Γ') → (C, (D + 1)^d), of the first Γ' monomials; each errs by at most `unit` Σ|monomials|."""
        return tiled(monomials, self.matrix[: monomials.shape[1]])

    @property
    def unit(self) -> float:
        """Relative rounding of a coefficient and of the difference of two."""
        return 2 * EPS * (len(self.indices) + 4)

    def slopes(self, coefficients: Array) -> tuple[Array, Array]:
        """Least and largest Bernstein coefficient of every ∂/∂s_i, (C, d) ×2."""
        grid = coefficients.reshape(-1, *(self.degree + 1,) * self.dim)
        low, high = np.empty((2, len(grid), self.dim))
        for i in range(self.dim):
            step = np.diff(grid, axis=i + 1).reshape(len(grid), -1)
            low[:, i], high[:, i] = step.min(-1), step.max(-1)
        return 0.5 * self.degree * low, 0.5 * self.degree * high

    def peak(self, coefficients: Array) -> Array:
        """About where the largest value is, (C, d) in [−1, 1]: the largest coefficient, and a parabola along every axis."""
        size, degree, rows = self.degree + 1, max(self.degree, 1), np.arange(len(coefficients))
        flat = coefficients.argmax(-1)
        place = np.stack(np.unravel_index(flat, (size,) * self.dim), axis=-1).reshape(len(rows), self.dim)
        top, found = coefficients[rows, flat], np.empty((len(rows), self.dim))
        for i in range(self.dim):
            stride, k = size ** (self.dim - 1 - i), place[:, i]
            inner = (k > 0) & (k < size - 1)
            step = np.where(inner, stride, 0)
            before, after = coefficients[rows, flat - step], coefficients[rows, flat + step]
            bend = 2 * top - before - after
            shift = np.where(inner & (bend > 0), 0.5 * (after - before) / np.where(bend > 0, bend, 1.0), 0.0)
            found[:, i] = 2 * (k + np.clip(shift, -0.5, 0.5)) / degree - 1
        return np.clip(found, -1.0, 1.0) if self.degree else np.zeros_like(found)


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """Σ_ab G_ab s^{a+b} in monomials: where each pair (a, b) goes.

    Attributes:
        basis: of what is kept.
        order, starts, used: pairs sorted by a + b; where each kept monomial starts; which those are.
        tail: the pairs of higher degree, and their degree in every variable.
    """

    basis: Bernstein
    order: NDArray[np.intp]
    starts: NDArray[np.intp]
    tail: NDArray[np.intp]
    tail_powers: Array

    @staticmethod
    @cache
    def of(dim: int, order: int, degree: int) -> Products:
        """For features of order ≤ `order`, kept up to `degree`."""
        features, basis = multi_indices(dim, order), Bernstein.of(dim, min(degree, 2 * order))
        place = {a: k for k, a in enumerate(basis.indices)}
        sums = [tuple(x + y for x, y in zip(a, b, strict=True)) for a in features for b in features]
        home = np.array([place.get(a, len(place)) for a in sums])
        ranked = np.argsort(home, kind="stable")
        kept = int((home < len(place)).sum())
        starts = np.searchsorted(home[ranked[:kept]], np.arange(len(place)))
        tail = ranked[kept:]
        powers = np.array([sums[k] for k in tail], dtype=float).reshape(len(tail), dim)
        return Products(basis, ranked[:kept], starts, tail, powers)

    def __call__(self, gram: Array) -> tuple[Array, Array, Array]:
        """G (C, m, m) → monomials (C, Γ), and what the rest is at most: value (C,) and ∂/∂s_i (C, d)."""
        flat = gram.reshape(len(gram), -1)
        monomials = np.add.reduceat(flat[:, self.order], self.starts, axis=1)
        rest = np.abs(flat[:, self.tail])
        return monomials, rest.sum(-1), tiled(rest, self.tail_powers)
