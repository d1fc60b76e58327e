"""Batched tanh networks: M members in one call, analytic derivatives, and rigorous ranges of the derivatives over boxes.

A member is a_1 = z W_1 + b_1, h_l = tanh(a_l), a_{l+1} = h_l W_{l+1} + b_{l+1}, with the last a as output. Rows of points are
(M, n, d): member m sees row block m.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require, linalg

CURVATURE = 4.0 / (3.0 * math.sqrt(3.0))  # max |tanh''|, at |a| = artanh(1/√3)
_PEAK = math.atanh(1.0 / math.sqrt(3.0))


@dataclass(frozen=True, slots=True, eq=False)
class MLP:
    """M tanh networks with the same layer sizes.

    Args:
        weights: one (M, d_in, d_out) per layer, applied as h @ W.
        biases: one (M, d_out) per layer.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        weights = tuple(_require.finite("MLP", f"weights[{i}]", w) for i, w in enumerate(self.weights))
        biases = tuple(_require.finite("MLP", f"biases[{i}]", b) for i, b in enumerate(self.biases))
        if not weights or len(weights) != len(biases):
            raise _require.fail("MLP", "as many biases as weights, at least one", (len(weights), len(biases)))
        size: int | None = None
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            if w.ndim != 3 or w.shape[0] != weights[0].shape[0] or (size is not None and w.shape[1] != size):
                expected = f"weights[{i}] of shape ({weights[0].shape[0]}, {'d_in' if size is None else size}, d_out)"
                raise _require.fail("MLP", expected, f"shape {tuple(w.shape)}")
            _require.shape("MLP", f"biases[{i}]", b, (w.shape[0], w.shape[2]))
            size = w.shape[2]
        # Its own: networks that are trained on in place were never certified.
        object.__setattr__(self, "weights", tuple(w.clone() for w in weights))
        object.__setattr__(self, "biases", tuple(b.clone() for b in biases))

    @property
    def members(self) -> int:
        """M."""
        return self.weights[0].shape[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """(d_in, hidden…, d_out)."""
        return (self.weights[0].shape[1], *(w.shape[2] for w in self.weights))

    @staticmethod
    def random(members: int, sizes: Sequence[int], generator: torch.Generator) -> MLP:
        """Weights from a normal truncated at ±2σ with σ = 1/(2√d_in), biases 0 (the published initialisation)."""
        weights = []
        for d_in, d_out in itertools.pairwise(sizes):
            unit = torch.rand(members, d_in, d_out, dtype=torch.float64, generator=generator, device=generator.device)
            tail = 0.5 * math.erfc(math.sqrt(2.0))  # Φ(−2)
            normal = torch.special.ndtri(tail + (1 - 2 * tail) * unit)
            weights.append(normal / (2 * math.sqrt(d_in)))
        return MLP(tuple(weights), tuple(w.new_zeros(members, w.shape[2]) for w in weights))

    def to(self, device: torch.device | str) -> MLP:
        """The same networks on another device."""
        return MLP(tuple(w.to(device) for w in self.weights), tuple(b.to(device) for b in self.biases))

    def __call__(self, z: Tensor) -> Tensor:
        """Outputs at z (M, n, d_in), (M, n, d_out)."""
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            z = torch.baddbmm(b.unsqueeze(1), torch.tanh(z) if i > 0 else z, w)
        return z

    def linearize(self, z: Tensor, first: int | None = None) -> tuple[Tensor, Tensor]:
        """Outputs (M, n, d_out) at z (M, n, d_in), and Jacobians ∂out/∂z (M, n, first, d_in) of the first ones, of all by
        default, in one forward sweep."""
        value, jacobian, last = z, None, len(self.weights) - 1
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            value = torch.baddbmm(b.unsqueeze(1), value, w)
            turned = (w if i < last else w[..., :first]).mT.unsqueeze(1)  # (M, 1, d_out, d_in)
            jacobian = turned.expand(-1, z.shape[1], -1, -1) if jacobian is None else turned @ jacobian
            if i < last:
                value = torch.tanh(value)
                jacobian = (1.0 - value.square()).unsqueeze(-1) * jacobian
        assert jacobian is not None
        return value, jacobian

    def ranges(self, lower: Tensor, upper: Tensor) -> Ranges:
        """Rigorous ranges of outputs, Jacobians and Hessians over the boxes [lower, upper], (n, d_in) each, or (M, n, d_in):
        member m sees block m.
        """
        center, radius = 0.5 * (lower + upper), 0.5 * (upper - lower)
        shape = (self.members, *center.shape[-2:])
        value = _Interval(center, radius * (1 + 1e-15) + 1e-15 * center.abs()).map(lambda t: t.expand(shape))
        first = second = None
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            turned = w.mT.unsqueeze(1)
            value = value.affine(turned, b.unsqueeze(1))
            if first is None or second is None:
                full = turned.expand(-1, shape[1], -1, -1)
                first = _Interval(full, torch.zeros_like(full))
                zero = full.new_zeros(*full.shape, full.shape[-1])
                second = _Interval(zero, zero)
            else:
                first, second = first.matrix(turned), second.matrix(turned)
            if i < len(self.weights) - 1:
                slope, bend = value.slope(), value.bend()
                outer = first.map(lambda t: t.unsqueeze(-1)) * first.map(lambda t: t.unsqueeze(-2))
                curved = bend.map(lambda t: t[..., None, None]) * outer
                second = curved + slope.map(lambda t: t[..., None, None]) * second
                first = slope.map(lambda t: t.unsqueeze(-1)) * first
                value = value.tanh()
        assert first is not None
        assert second is not None
        return Ranges(value.mid, value.rad, first.mid, first.rad, second.mid.abs() + second.rad)


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """|out − value| ≤ value_radius, |∂out − jacobian| ≤ jacobian_radius, |∂²out| ≤ hessian, elementwise over a box.

    Shapes (M, n, d_out), (M, n, d_out, d_in), (M, n, d_out, d_in, d_in).
    """

    value: Tensor
    value_radius: Tensor
    jacobian: Tensor
    jacobian_radius: Tensor
    hessian: Tensor


def forward(weights: Sequence[Tensor], biases: Sequence[Tensor], z: Tensor) -> list[Tensor]:
    """z, the hidden values and the outputs of the networks at z (M, n, d_in)."""
    values = [z]
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        if i > 0:
            values[-1] = values[-1].tanh_()
        values.append(torch.baddbmm(b.unsqueeze(1), values[-1], w))
    return values


def backward(weights: Sequence[Tensor], values: Sequence[Tensor], cotangent: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Gradients (W, b) per layer of Σ cotangent · outputs, from what :func:`forward` returned."""
    gradients = []
    for i in reversed(range(len(weights))):
        gradients.append((values[i].mT @ cotangent, cotangent.sum(1)))
        if i > 0:
            cotangent = (cotangent @ weights[i].mT).mul_(1.0 - values[i].square())
    return gradients[::-1]


class _Interval:
    """Midpoint–radius intervals, [mid − rad, mid + rad] elementwise; every operation rounds the radius up.

    Rounding: a product of n terms errs by at most γ_n Σ|a||b|, added to the radius; radii are sums of nonnegative terms and
    err relatively, which the factor `_UP` covers for fewer than 10⁴ terms.
    """

    __slots__ = ("mid", "rad")

    def __init__(self, mid: Tensor, rad: Tensor) -> None:
        self.mid, self.rad = mid, rad

    def map(self, view: Callable[[Tensor], Tensor]) -> _Interval:
        """A view of both parts."""
        return _Interval(view(self.mid), view(self.rad))

    def matrix(self, w: Tensor) -> _Interval:
        """w @ self over axis 2: w (M, 1, o, i), self (M, n, i, *rest) with at least one axis in rest."""
        rest = self.mid.shape[3:]
        mid, rad = self.mid.flatten(3), self.rad.flatten(3)
        error = linalg.gamma(2 * w.shape[-1] + 8)
        out = _Interval(w @ mid, w.abs() @ (rad + error * mid.abs()) * _UP)
        return out.map(lambda t: t.unflatten(3, rest))

    def affine(self, w: Tensor, b: Tensor) -> _Interval:
        """w @ self + b for self (M, n, i)."""
        product = self.map(lambda t: t.unsqueeze(-1)).matrix(w).map(lambda t: t.squeeze(-1))
        mid = product.mid + b
        return _Interval(mid, (product.rad + 4 * linalg.UNIT * (product.mid.abs() + b.abs())) * _UP)

    def __mul__(self, other: _Interval) -> _Interval:
        mid = self.mid * other.mid
        rad = self.mid.abs() * other.rad + self.rad * (other.mid.abs() + other.rad) + 4 * linalg.UNIT * mid.abs()
        return _Interval(mid, rad * _UP)

    def __add__(self, other: _Interval) -> _Interval:
        mid = self.mid + other.mid
        return _Interval(mid, (self.rad + other.rad + 4 * linalg.UNIT * mid.abs()) * _UP)

    def _ends(self) -> tuple[Tensor, Tensor]:
        slack = 4 * linalg.UNIT * (self.mid.abs() + self.rad)
        return self.mid - self.rad - slack, self.mid + self.rad + slack

    @staticmethod
    def _between(lower: Tensor, upper: Tensor) -> _Interval:
        """[lower, upper] widened by 1e-14: more than the error of tanh and its derivatives, all of size ≤ 1."""
        mid = 0.5 * (lower + upper)
        return _Interval(mid, 0.5 * (upper - lower) * _UP + 1e-14)

    def tanh(self) -> _Interval:
        low, high = self._ends()
        return self._between(torch.tanh(low), torch.tanh(high))

    def slope(self) -> _Interval:
        """tanh' = 1 − tanh²: even, falling in |a|."""
        low, high = self._ends()
        near = torch.where((low <= 0) & (high >= 0), torch.zeros_like(low), torch.minimum(low.abs(), high.abs()))
        far = torch.maximum(low.abs(), high.abs())
        return self._between(1 - torch.tanh(far).square(), 1 - torch.tanh(near).square())

    def bend(self) -> _Interval:
        """tanh'' = −2 tanh tanh': odd, extrema ∓`CURVATURE` at ±artanh(1/√3), monotone between."""
        low, high = self._ends()
        ends = torch.stack([_second(low), _second(high)])
        least, most = ends.amin(0), ends.amax(0)
        least = torch.where((low <= _PEAK) & (high >= _PEAK), torch.full_like(least, -CURVATURE), least)
        most = torch.where((low <= -_PEAK) & (high >= -_PEAK), torch.full_like(most, CURVATURE), most)
        return self._between(least, most)


_UP = 1.0 + 1e-11


def _second(a: Tensor) -> Tensor:
    value = torch.tanh(a)
    return -2 * value * (1 - value.square())
