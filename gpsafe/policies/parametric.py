"""Policy classes with continuous parameters: θ ↦ AffinePolicies, and how far two policies can be apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.policies.finite import ROUNDING, AffinePolicies, require_same_box
from gpsafe.sets import Box

_PROBES = 32  # of every parameter
Build = Callable[[Tensor], tuple[Tensor, Tensor]]


@short
@dataclass(frozen=True, slots=True, eq=False)
class ParametricPolicies:
    """π_θ(x) = clip(offset(θ) + gain(θ) x) with offset and gain *multi-affine* in θ (affine in each θ_i alone).

    Multi-affine maps attain their extremes over a box of parameters at its vertices: `spread` rests on it.

    Args:
        names: one per parameter.
        box: parameters allowed, dimension d. The unit cube of the searches is this box.
        input_box: limits of u.
        build: θ (P, d) → offset (P, nu), gain (P, nu, nx); differentiable.
    """

    names: tuple[str, ...]
    box: Box
    input_box: Box
    build: Build

    def __post_init__(self) -> None:
        if len(self.names) != self.box.dim:
            raise _require.fail("ParametricPolicies", f"{self.box.dim} names", self.names)
        if not bool((self.box.upper > self.box.lower).all()):
            raise _require.fail(
                "ParametricPolicies", "a box with interior", (self.box.lower.tolist(), self.box.upper.tolist())
            )

    @property
    def dim(self) -> int:
        """d."""
        return self.box.dim

    def __call__(self, theta: Tensor) -> AffinePolicies:
        """The policies of θ (P, d), physical units."""
        _require.last_dim("ParametricPolicies", "theta", theta, self.dim)
        return AffinePolicies(*self._built(theta), self.input_box)

    def _built(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Offset and gain, of a copy of θ (P, d): certified parameters stay what they are.

        Raises:
            ValueError: where a policy of the batch is another one when it is asked for alone: what is certified among
                proposals would not be what is flown.
        """
        found = self.build(theta.clone())
        if len(theta) > 1:
            middle = slice(len(theta) // 2, len(theta) // 2 + 1)
            with torch.no_grad():
                alone = self.build(theta[middle].clone())
            for own, whole in zip(alone, found, strict=True):
                if not linalg.alike(own.reshape(1, -1), whole.reshape(len(theta), -1), middle):
                    expected = "offset and gain of each parameter vector for itself"
                    got = "vectors that depend on each other (a sum or norm over the whole batch?)"
                    raise _require.fail("ParametricPolicies", expected, got)
        return found

    def from_unit(self, unit: Tensor) -> Tensor:
        """θ of points of the unit cube (*b, d)."""
        return self.box.lower + unit * (self.box.upper - self.box.lower)

    def to_unit(self, theta: Tensor) -> Tensor:
        """Inverse of `from_unit`."""
        return (theta - self.box.lower) / (self.box.upper - self.box.lower)

    def grid(self, counts: tuple[int, ...]) -> Tensor:
        """Midpoints of the cells of a regular partition of the box, row-major, (Π counts, d)."""
        axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in counts]
        return self.from_unit(torch.cartesian_prod(*axes).reshape(-1, self.dim))

    def vertices(self, center: Tensor, radius: Tensor) -> Tensor:
        """Corners of the boxes center ± radius, (P, d) ×2 → (P, 2^d, d)."""
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=self.dim)), dtype=torch.float64)
        return center.unsqueeze(-2) + signs * radius.unsqueeze(-2)

    def require_multiaffine(self, where: str) -> None:
        """Raises ValueError if offset or gain is not affine in one of the parameters, at points drawn from the box.

        What a box is said to hold by its vertices would not be all that it holds, where an angle, say, goes round once.
        """
        generator = torch.Generator().manual_seed(0)
        first, second, share = (self.box.sample(_PROBES * self.dim, generator) for _ in range(3))
        share = (share - self.box.lower) / (self.box.upper - self.box.lower)
        axis = torch.eye(self.dim, dtype=torch.float64).repeat(_PROBES, 1)
        points = torch.stack([first, first + axis * (second - first), first + axis * share * (second - first)])
        share = (axis * share).sum(-1)
        for part in self._built(points.reshape(-1, self.dim)):
            a, b, between = part.reshape(3, len(first), -1)
            away = (between - torch.lerp(a, b, share.unsqueeze(-1))).abs()
            if not bool((away <= 1e-9 * (1e-300 + torch.maximum(a.abs(), b.abs()).amax(-1, keepdim=True))).all()):
                i = int(away.amax(-1).argmax()) % self.dim
                raise _require.fail(
                    where, "offset and gain affine in every parameter alone", f"{self.names[i]} bends them"
                )

    def spread(self, center: Tensor, radius: Tensor, *, x: Tensor, x_radius: Tensor) -> Tensor:
        """sup |π_θ(x′) − π_center(x′)| over |θ − center| ≤ radius and |x′ − x| ≤ x_radius, rounded outwards.

        For each x′ the raw input is multi-affine in θ, so it stays between its values at the vertices; these differ
        from the centre's by an affine function of x′. Clipping is 1-Lipschitz and monotone: the width of the clipped
        range bounds the difference too.

        Args:
            center, radius: boxes of parameters, (P, d).
            x, x_radius: cells of states, (N, nx).

        Returns:
            (P, N, nu).

        Raises:
            ValueError: where offset or gain bends in a parameter (`require_multiaffine`).
        """
        self.require_multiaffine("ParametricPolicies.spread")
        corners = self.vertices(center, radius)
        offset, gain = self._built(corners.reshape(-1, self.dim))
        offset = offset.reshape(*corners.shape[:2], -1)
        gain = gain.reshape(*corners.shape[:2], *gain.shape[1:])
        middle_offset, middle_gain = self._built(center)

        def ranges(o: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:  # value at x and reach over the cell, (P, V, N, nu)
            value = o.unsqueeze(-2) + torch.einsum("pvux,nx->pvnu", g, x)
            return value, torch.einsum("pvux,nx->pvnu", g.abs(), x_radius)

        away, reach = ranges(offset - middle_offset.unsqueeze(1), gain - middle_gain.unsqueeze(1))
        apart = (away.abs() + reach).amax(1)
        value, reach = ranges(offset, gain)
        high, low = (value + reach).amax(1), (value - reach).amin(1)
        ends = self.input_box.clip(high), self.input_box.clip(low)
        apart = torch.minimum(apart, ends[0] - ends[1])
        terms = offset.abs().unsqueeze(-2) + torch.einsum("pvux,nx->pvnu", gain.abs(), x.abs())
        size = torch.stack([end.abs() for end in (high, low, *ends)]).amax(0)
        return apart + 1e-12 * size + 2 * ROUNDING * terms.amax(1)


def input_gap(first: AffinePolicies, second: AffinePolicies) -> Tensor:
    """sup over all x ∈ ℝ^nx of |π(x) − π′(x)|, per input, (P, nu) × (Q, nu) → (P, Q, nu), rounded outwards.

    Equal gains: min(|Δoffset|, width of the input box), by 1-Lipschitz clipping. One state: both are piecewise linear
    in x, so the supremum is at one of the four kinks or at infinity; exact for any gains. Several states and different
    gains: the width of the input box (attained when the gains are not parallel).
    """
    box = first.input_box
    require_same_box("input_gap", box, second.input_box)
    width = (box.upper - box.lower).expand(first.num, second.num, -1)
    change = (first.offset.unsqueeze(1) - second.offset.unsqueeze(0)).abs()
    same = (first.gain.unsqueeze(1) == second.gain.unsqueeze(0)).all(-1).all(-1, keepdim=True)
    general = width if first.gain.shape[-1] > 1 else _gap_1d(first, second)
    return torch.minimum(torch.where(same, change, general), width)


def _gap_1d(first: AffinePolicies, second: AffinePolicies) -> Tensor:
    box = first.input_box
    o1, o2 = first.offset.unsqueeze(1), second.offset.unsqueeze(0)  # (P, 1, nu), (1, Q, nu)
    k1, k2 = first.gain[..., 0].unsqueeze(1), second.gain[..., 0].unsqueeze(0)
    shape = torch.broadcast_shapes(o1.shape, o2.shape)
    gap = torch.zeros(shape, dtype=torch.float64, device=o1.device)
    for offset, gain in ((o1, k1), (o2, k2)):
        for limit in (box.lower, box.upper):
            kink = torch.where(gain == 0, torch.zeros_like(gain), (limit - offset) / gain)
            kink = torch.nan_to_num(kink, posinf=1e300, neginf=-1e300)
            difference = (box.clip(o1 + k1 * kink) - box.clip(o2 + k2 * kink)).abs()
            # A kink is known up to a relative 1e-15, which moves either policy by |gain| times as much.
            rounding = 1e-14 * ((k1.abs() + k2.abs()) * kink.abs() + o1.abs() + o2.abs() + difference)
            gap = torch.maximum(gap, difference + rounding)
    for sign in (-1.0, 1.0):
        ends = [
            torch.where(k * sign > 0, box.upper, torch.where(k * sign < 0, box.lower, box.clip(o)))
            for o, k in ((o1, k1), (o2, k2))
        ]
        gap = torch.maximum(gap, (ends[0] - ends[1]).abs())
    return gap


def set_point_family(targets: tuple[float, float], gains: tuple[float, float], *, input_box: Box) -> ParametricPolicies:
    """u = clip(k (g − x)) for one state and one input, θ = (g, k). (An offset b would only move g by b/k.)"""
    if input_box.dim != 1:
        raise _require.fail("set_point_family", "one input", input_box.dim)

    def build(theta: Tensor) -> tuple[Tensor, Tensor]:
        goal, gain = theta[..., :1], theta[..., 1:]
        return gain * goal, -gain.unsqueeze(-1)

    bounds = torch.tensor([targets, gains], dtype=torch.float64)
    return ParametricPolicies(("g", "k"), Box(bounds[:, 0], bounds[:, 1]), input_box, build)


def feedback_family(lower: Tensor, upper: Tensor, *, input_box: Box, nx: int) -> ParametricPolicies:
    """u = clip(b − K x), θ = (b, K) with K row-major: every affine feedback, d = nu(1 + nx) parameters in a box."""
    nu = input_box.dim
    if lower.shape != (nu * (1 + nx),):
        raise _require.fail("feedback_family", f"a box of dimension {nu * (1 + nx)}", tuple(lower.shape))

    def build(theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta[..., :nu], -theta[..., nu:].reshape(*theta.shape[:-1], nu, nx)

    names = tuple(f"b{i}" for i in range(nu)) + tuple(f"k{i}{j}" for i in range(nu) for j in range(nx))
    return ParametricPolicies(names, Box(lower, upper), input_box, build)
