"""Policies that are linear in smooth features of the state, with rigorous closed-loop changes over boxes.

    π_i(x) = clip(θ_i φ(x), input box),   φ_k(x) = Π_j b_kj(x_j),   b ∈ {1, x, x², x³, sin, cos, tanh}(scale · x_j).

Set-points with any damping (1, θ, ω), gravity compensation (sin θ) and energy shaping are of this form: with
E = ½ω² + w²(1 − cos θ), the pump k(E* − E)ω is linear in (ω, ω³, ω cos θ), and its level E* sits in the coefficients.

**Changes over a box.** With c the middle of a box of half-widths r and v = θφ, Taylor's formula gives
v(x) − v(c) = θ∇φ(c)(x − c) + e, |e| ≤ ½ Σ_k |θ_k| Σ_jl H_kjl r_j r_l, H_kjl ≥ |∂²φ_k/∂x_j∂x_l| over the box. Each H is a
product of suprema of |b|, |b′|, |b″| over intervals: exact for powers, at most 1, 1 and 4/(3√3) for the bounded ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.policies.finite import ROUNDING, Feedback, no_other_policy, require_same_box, secants
from gpsafe.sets import Box


@dataclass(frozen=True, slots=True)
class _Kind:
    """b, b′ at a point and suprema of |b|, |b′|, |b″| over |y| ≤ reach; the supremum of |b| everywhere."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    tops: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    everywhere: float


def _power(n: int) -> _Kind:
    def tops(reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        second = n * (n - 1) * reach ** max(n - 2, 0)
        return reach**n, n * reach ** max(n - 1, 0), second

    return _Kind(lambda y: y**n, lambda y: n * y ** max(n - 1, 0), tops, 1.0 if n == 0 else math.inf)


def _bounded(
    value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], curvature: float, *, odd: bool
) -> _Kind:
    def tops(reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones_like(reach)
        return (reach.clamp_max(1.0) if odd else one), one, curvature * one

    return _Kind(value, slope, tops, 1.0)


_KINDS: dict[str, _Kind] = {
    "1": _power(0),
    "x": _power(1),
    "x^2": _power(2),
    "x^3": _power(3),
    "sin": _bounded(torch.sin, torch.cos, 1.0, odd=True),
    "cos": _bounded(torch.cos, lambda y: -torch.sin(y), 1.0, odd=False),
    "tanh": _bounded(torch.tanh, lambda y: 1.0 - torch.tanh(y).square(), 4 / (3 * math.sqrt(3)), odd=True),
}


@dataclass(frozen=True, slots=True)
class Feature:
    """φ(x) = Π_j b_j(scale_j x_j).

    Args:
        kinds: one of "1", "x", "x^2", "x^3", "sin", "cos", "tanh" for each state.
        scales: factors inside; 1 by default.
    """

    kinds: tuple[str, ...]
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.kinds:
            raise _require.fail("Feature", "one kind for each state", self.kinds)
        for kind in self.kinds:
            _require.one_of("Feature", "kinds", kind, tuple(_KINDS))
        scales = self.scales or (1.0,) * len(self.kinds)
        if len(scales) != len(self.kinds) or not all(math.isfinite(s) for s in scales):
            raise _require.fail("Feature", f"{len(self.kinds)} finite scales", scales)
        object.__setattr__(self, "scales", tuple(float(s) for s in scales))

    @property
    def everywhere(self) -> float:
        """sup of |φ| over all states; inf for polynomials."""
        return math.prod(_KINDS[kind].everywhere for kind in self.kinds)

    def value(self, x: Tensor) -> Tensor:
        """φ(x), (*b, nx) → (*b,)."""
        return torch.stack([_KINDS[k].value(s * x[..., j]) for j, (k, s) in enumerate(self._factors())]).prod(0)

    def gradient(self, x: Tensor) -> Tensor:
        """∇φ(x), (*b, nx) → (*b, nx)."""
        values = [_KINDS[k].value(s * x[..., j]) for j, (k, s) in enumerate(self._factors())]
        slopes = [s * _KINDS[k].slope(s * x[..., j]) for j, (k, s) in enumerate(self._factors())]
        columns = [torch.stack([*values[:j], slopes[j], *values[j + 1 :]]).prod(0) for j in range(len(values))]
        return torch.stack(columns, dim=-1)

    def remainder(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Bound of |φ(x) − φ(c) − ∇φ(c)(x − c)| over boxes (*b, nx) ×2 around c, their middle → (*b,)."""
        radius, far = 0.5 * (upper - lower), torch.maximum(lower.abs(), upper.abs())
        tops = []
        for j, (kind, scale) in enumerate(self._factors()):
            zeroth, first, second = _KINDS[kind].tops(abs(scale) * far[..., j])
            tops.append((zeroth, abs(scale) * first * radius[..., j], (scale * radius[..., j]).square() * second))
        total = torch.zeros_like(radius[..., 0])
        for j in range(len(tops)):
            for k in range(j, len(tops)):
                order = [0] * len(tops)
                order[j] += 1
                order[k] += 1
                term = torch.stack([top[o] for top, o in zip(tops, order, strict=True)]).prod(0)
                total = total + (0.5 if j == k else 1.0) * term
        return total * (1 + 1e-12)

    def _factors(self) -> list[tuple[str, float]]:
        return list(zip(self.kinds, self.scales, strict=True))


@short
@dataclass(frozen=True, slots=True, eq=False)
class FeaturePolicies:
    """π_i(x) = clip(θ_i φ(x), input box).

    Args:
        coefficients: θ, (P, nu, m).
        features: φ, m of them.
        input_box: limits of u.
    """

    coefficients: Tensor
    features: tuple[Feature, ...]
    input_box: Box

    def __init_subclass__(cls) -> None:
        no_other_policy(cls, "FeaturePolicies")

    def __post_init__(self) -> None:
        theta = _require.finite("FeaturePolicies", "coefficients", self.coefficients).clone()  # its own
        m = len(self.features)
        if theta.ndim != 3 or theta.shape[1:] != (self.input_box.dim, m) or m == 0:
            expected = f"coefficients (P, {self.input_box.dim}, {m}), one column for each of the features"
            raise _require.fail("FeaturePolicies", expected, tuple(theta.shape))
        if len({len(feature.kinds) for feature in self.features}) != 1:
            raise _require.fail("FeaturePolicies", "features of one state dimension", self.features)
        object.__setattr__(self, "coefficients", theta)
        object.__setattr__(self, "features", tuple(self.features))

    @property
    def num(self) -> int:
        """P."""
        return self.coefficients.shape[0]

    def select(self, index: Tensor) -> FeaturePolicies:
        """Sub-class of the given indices."""
        return FeaturePolicies(self.coefficients[index], self.features, self.input_box)

    def basis(self, x: Tensor) -> Tensor:
        """φ(x), (*b, nx) → (*b, m)."""
        return torch.stack([feature.value(x) for feature in self.features], dim=-1)

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs, x (P or 1, N, nx) → (P, N, nu)."""
        return self.input_box.clip(self.basis(x) @ self.coefficients.mT)

    def feedback(self, lower: Tensor, upper: Tensor) -> Feedback:
        """See :class:`~gpsafe.policies.finite.Feedback`: the gradient at the middle, its Taylor remainder over the box."""
        center, radius, size = 0.5 * (lower + upper), 0.5 * (upper - lower), self.coefficients.abs().mT
        basis = self.basis(center)
        raw = basis @ self.coefficients.mT
        gradients = torch.stack([feature.gradient(center) for feature in self.features], dim=-2)  # (P|1, N, m, nx)
        gain = torch.einsum("pum,pnmx->pnux", self.coefficients, gradients)
        rest = torch.stack([feature.remainder(lower, upper) for feature in self.features], dim=-1) @ size
        rest = rest + ROUNDING * (basis.abs() @ size)
        reach = torch.einsum("pnux,pnx->pnu", gain.abs(), radius)
        low, high = secants(raw, reach + rest, self.input_box)
        return Feedback(gain, low, high, rest)

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Refused: the gain changes with the state; see `feedback`."""
        raise _require.fail("FeaturePolicies.slopes", "a caller of `gpsafe.policies.finite.feedback`", "affine slopes")

    def input_change(self, others: FeaturePolicies | None = None) -> Tensor:
        """Upper bound of sup_x |π_i(x) − π′_j(x)| over all states, (P, Q, nu): Σ_k |θ_ik − θ′_jk| sup|φ_k|, at most the box.

        A difference in an unbounded feature (a power) gives the width of the box: there the Lipschitz rule is vacuous.

        Args:
            others: Q policies on the same features, with the same input box; the class itself by default.
        """
        others = self if others is None else others
        if others.features != self.features:
            raise _require.fail("FeaturePolicies.input_change", "policies on the same features", others.features)
        require_same_box("FeaturePolicies.input_change", self.input_box, others.input_box)
        gap = (self.coefficients.unsqueeze(1) - others.coefficients.unsqueeze(0)).abs()  # (P, Q, nu, m)
        reach = torch.tensor([feature.everywhere for feature in self.features], dtype=torch.float64)
        total = torch.where(gap == 0, 0.0, gap * reach).sum(-1)
        return torch.minimum(total * (1 + 1e-12), self.input_box.upper - self.input_box.lower)


def pendulum_features() -> tuple[Feature, ...]:
    """(1, θ, ω, sin θ, ω³, ω cos θ) on x = (θ, ω)."""
    table = (("1", "1"), ("x", "1"), ("1", "x"), ("sin", "1"), ("1", "x^3"), ("cos", "x"))
    return tuple(Feature(kinds) for kinds in table)


def pendulum_coefficients(
    *,
    push: Sequence[float] | Tensor | float,
    spring: Sequence[float] | Tensor | float,
    damping: Sequence[float] | Tensor | float,
    gravity: Sequence[float] | Tensor | float,
    pump: Sequence[float] | Tensor | float,
    level: Sequence[float] | Tensor | float,
    frequency_sq: float,
) -> Tensor:
    """θ of u = push − spring·θ − damping·ω + gravity·sin θ + pump·(E* − E)·ω in `pendulum_features`, (P, 1, 6).

    E = ½ω² + w²(1 − cos θ) with w² = `frequency_sq` (1/s²), θ = 0 hanging. Arguments broadcast to (P,).
    """
    a, k, d, s, p, e = (torch.as_tensor(v, dtype=torch.float64) for v in (push, spring, damping, gravity, pump, level))
    columns = torch.broadcast_tensors(a, -k, p * (e - frequency_sq) - d, s, -0.5 * p, p * frequency_sq)
    return torch.stack(columns, dim=-1).unsqueeze(1)
