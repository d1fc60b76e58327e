"""Known parts and costs from plain torch functions: bounds by interval arithmetic instead of by hand.

    known = derived_known(p, states=([-3, -8], [3, 8]), inputs=([-1], [1]))     # |∂²p| on all of ℝ^nz, derived
    cost = DerivedCost(lambda x: (x[..., 0].abs() - 1).clamp(0, 1), nx=2)       # upper and lower over boxes, derived

The function is traced to a list of scalar operations, and these are run on intervals (:mod:`gpsafe.systems._curvature`). What
was traced is compared with the function at drawn points, and numbers that leave torch on the way are refused: a function that
deceives both is not found. What consumers of a known part rely on holds **everywhere** (`KnownPart`): tubes and cells leave
every region that one might name. So a bound is derived on all of ℝ^nz or refused; a bound on a region alone would certify
nothing. A function that bends without bound, a cube, say, can be *saturated*: replaced beyond the region by p∘s with
s(z) = z inside and, beyond an end e, e + w tanh((z − e)/w), w half the width of the region. That is another known part, the
same on the region, twice continuously differentiable and bounded everywhere; f* − p∘s is learned then, and B is its norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import Pinned
from gpsafe._show import short
from gpsafe.sets import Box
from gpsafe.systems._curvature import Jet, box, leaves, ranges
from gpsafe.systems._interval import Array, Interval, outward
from gpsafe.systems._tape import NotReadableError, Tape
from gpsafe.systems._trace import read
from gpsafe.systems.adapt import Dynamics, Limits, as_box

STEEPEST = 0.7698004  # > sup |tanh″| = 4/(3√3)
AGREE = 1e-9  # relative, between trace and function
BY_HAND = "(else state the bound: KnownFunction(p, hessian_bound, region))"


@short
@dataclass(frozen=True, slots=True, eq=False)
class DerivedKnown:
    """A known part with derived bounds of its second derivatives; make it with `derived_known`.

    The bounds are refused once the function captures other numbers than those of which they were derived.

    Attributes:
        function: p as given, (*b, nx), (*b, nu) → (*b, nx).
        region: of z = (x, u).
        saturated: whether it is p∘s beyond the region (see the module).
    """

    function: Dynamics
    region: Box
    saturated: bool
    _bound: Tensor
    _tape: Tape
    _pinned: Pinned = field(compare=False)

    @property
    def hessian_bound(self) -> Tensor:
        """H (nx, nz, nz), |∂²p_i/∂z_j∂z_k| ≤ H_ijk everywhere."""
        self._pinned.require("known part", "a function")
        return self._bound

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), or p(s(x), s(u))."""
        x, u = _require.floats("known part", "x", x), _require.floats("known part", "u", u)
        if not self.saturated:
            return self.function(x, u)
        nx = self._bound.shape[0]
        (low, high), (below, above) = ((end[:nx], end[nx:]) for end in (self.region.lower, self.region.upper))
        return self.function(_saturate(x, low, below), _saturate(u, high, above))

    def hessian_over(self, lower: Tensor, upper: Tensor) -> Tensor:
        """|∂²p_i/∂z_j∂z_k| ≤ H_ijk on the box [lower, upper] of z, (*b, nz) ×2 → (*b, nx, nz, nz)."""
        lead, nz = lower.shape[:-1], lower.shape[-1]
        ends = [e.detach().cpu().numpy().reshape(-1, nz) for e in (lower, upper)]
        found = _hessians(self._tape, self._leaves(*ends))
        local = torch.from_numpy(found).to(lower.device).reshape(*lead, *found.shape[1:])
        return torch.minimum(local, self.hessian_bound.to(lower.device))

    def _leaves(self, lower: Array, upper: Array) -> list[Jet]:
        if not self.saturated:
            return box(lower, upper, second=True)
        return _saturated(lower, upper, self.region)


def derived_known(function: Dynamics, *, states: Limits, inputs: Limits, saturated: bool = False) -> DerivedKnown:
    """The known part p with bounds of its second derivatives found from its own text.

    Args:
        function: p, batched torch, (*b, nx), (*b, nu) → (*b, nx); a `CasadiKnown` is one.
        states, inputs: region in which p is compared with its trace, boxes or (lower, upper).
        saturated: beyond the region p∘s stands for p, see the module: for functions that bend without bound.

    Raises:
        ValueError: that names what has no bound, may have a kink, or cannot be traced.
    """
    where = "derived_known"
    x, u = as_box(where, "states", states), as_box(where, "inputs", inputs)
    nx, region = x.dim, Box(torch.cat([x.lower, u.lower]), torch.cat([x.upper, u.upper]))
    if saturated and not bool((region.radius > 0).all()):
        raise _require.fail(where, "a region with width along every axis", region.radius.tolist())
    tape, pinned = _traced(where, function, nx, u.dim, region)
    probe = DerivedKnown(function, region, saturated, torch.zeros(nx, region.dim, region.dim), tape, pinned)
    end = np.full((1, region.dim), np.inf)
    jets = ranges(tape, probe._leaves(-end, end))
    more = "" if saturated else " or saturated=True"
    for i, jet in enumerate(jets):
        if bool(jet.bad.any()):
            raise _require.fail(where, f"a function that is smooth everywhere {BY_HAND}{more}", f"p_{i}: {jet.why}")
    bound = _hessians(tape, probe._leaves(-end, end))[0]
    if not bool(np.isfinite(bound).all()):
        i, j, k = (int(n) for n in np.argwhere(~np.isfinite(bound))[0])
        expected = f"second derivatives that interval arithmetic can bound everywhere {BY_HAND}{more}"
        raise _require.fail(where, expected, f"none for d2p_{i}/dz_{j}dz_{k}")
    return DerivedKnown(function, region, saturated, torch.from_numpy(bound), tape, pinned)


def _hessians(tape: Tape, given: list[Jet]) -> Array:
    """sup |∂²| of every output, (n, nx, nz, nz); inf where nothing is known."""
    sizes = []
    for jet in ranges(tape, given):
        assert jet.hess is not None
        sizes.append(np.where(jet.bad[:, None, None], np.inf, jet.hess.size))
    return np.stack(sizes, axis=1)


def _saturate(z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """s(z): z itself between the limits."""
    lower, upper = lower.to(z.device), upper.to(z.device)
    inside = torch.minimum(torch.maximum(z, lower), upper)
    width = 0.5 * (upper - lower)
    return inside + width * torch.tanh((z - inside) / width)


def _saturated(lower: Array, upper: Array, region: Box) -> list[Jet]:
    """s, s′ = sech² and s″ = −2 tanh sech²/w over boxes; s grows, so that its range is that of the ends."""
    low, high, width = (e.cpu().numpy() for e in (region.lower, region.upper, region.radius))

    def level(z: Array) -> Array:
        inside = np.clip(z, low, high)
        return inside + width * np.tanh((z - inside) / width)

    value = outward(level(lower), level(upper), 64 * np.finfo(float).eps)
    inside = (lower >= low) & (upper <= high)
    far = np.maximum(upper - high, low - lower) / width
    with np.errstate(over="ignore"):
        least = np.where(inside, 1.0, np.cosh(far) ** -2 * (1 - 1e-12))
    bend = STEEPEST / width
    second = Interval(np.where(upper > high, -bend, 0.0), np.where(lower < low, bend, 0.0))
    exact = Interval(np.where(inside, lower, value.low), np.where(inside, upper, value.high))
    return leaves(exact, Interval(least, np.ones_like(least)), second)


def _traced(where: str, function: Dynamics, nx: int, nu: int, region: Box) -> tuple[Tape, Pinned]:
    """The tape of a function, and what it is held to from now on.

    Refused where there is none, or it is not the function at drawn points in and beyond the region.
    """
    try:
        tape = read(function, nx, nu, strict=True)
    except NotReadableError as error:
        raise _require.fail(
            where, f"a function of torch operations that can be traced {BY_HAND}", str(error)
        ) from error
    generator = torch.Generator().manual_seed(0)
    inside = region.sample(512, generator)
    wide = torch.logspace(-2, 2, 128, dtype=torch.float64).unsqueeze(-1)
    z = torch.cat([inside, wide * torch.randn(128, nx + nu, dtype=torch.float64, generator=generator)])
    pinned = Pinned.of(function, z[:, :nx], z[:, nx:])
    with torch.no_grad():
        expected = function(z[:, :nx], z[:, nx:])
        alone = torch.cat([function(p[None, :nx], p[None, nx:]) for p in z[::40]])
    if not torch.allclose(alone, expected[::40], rtol=1e-9, atol=1e-12, equal_nan=True):
        raise _require.fail(where, "a function of each row of a batch for itself", "rows that depend on each other")
    for i, jet in enumerate(ranges(tape, box(z.numpy(), z.numpy(), second=False))):
        p = expected[:, i].numpy()
        with np.errstate(invalid="ignore"):
            slack = AGREE * (1 + np.abs(p))
            wrong = ~((p >= jet.value.low - slack) & (p <= jet.value.high + slack)) & ~np.isnan(p) & ~jet.bad
        wrong = wrong | (np.isnan(p) & ~jet.bad)
        if bool(wrong.any()):
            place = z[int(wrong.argmax())].tolist()
            raise _require.fail(
                where, f"a function that its own trace computes {BY_HAND}", f"p_{i} differs at z = {place}"
            )
    return tape, pinned


@short
@dataclass(frozen=True, slots=True, eq=False)
class DerivedCost:
    """c(x) = function(x) cut to [0, ceiling], with suprema and infima over boxes by interval arithmetic (a `Cost`).

    `upper` is at least the supremum, `lower` at most the infimum; how far off they are depends on how often the function names
    one state. Kinks are allowed. Where the function has no value, it costs the ceiling.

    Args:
        function: batched torch, (*b, nx) → (*b,).
        nx: states.
        ceiling: C > 0.

    Raises:
        ValueError: where the function cannot be traced.
    """

    function: Callable[[Tensor], Tensor]
    nx: int
    ceiling: float = 1.0
    _tape: Tape = field(init=False)
    _pinned: Pinned = field(init=False, compare=False)

    def __post_init__(self) -> None:
        where, nx = "DerivedCost", _require.count("DerivedCost", "nx", self.nx)
        object.__setattr__(self, "ceiling", float(_require.positive(where, "ceiling", self.ceiling)))

        function = self.function

        def repeated(x: Tensor, u: Tensor) -> Tensor:
            return function(x).unsqueeze(-1).expand(*x.shape)

        one = torch.ones(nx, dtype=torch.float64)
        tape, pinned = _traced(where, repeated, nx, 0, Box(-one, one))
        object.__setattr__(self, "_tape", tape)
        object.__setattr__(self, "_pinned", pinned)

    def __call__(self, x: Tensor) -> Tensor:
        """c(x), (*b, nx) → (*b,)."""
        x = _require.points("DerivedCost", "x", x, self.nx)
        return torch.nan_to_num(self.function(x), nan=self.ceiling).clamp(0.0, self.ceiling)

    def _range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._pinned.require("DerivedCost", "a function")
        lower, upper = (_require.points("DerivedCost", "x", e, self.nx) for e in (lower, upper))
        lead = lower.shape[:-1]
        ends = [e.detach().cpu().numpy().reshape(-1, self.nx) for e in (lower, upper)]
        jet = ranges(self._tape, box(*ends, second=False))[0]
        unknown = jet.bad | np.isnan(ends[0]).any(-1) | np.isnan(ends[1]).any(-1)
        found = (jet.value.low, jet.value.high, unknown)
        low, high, bad = (torch.from_numpy(np.array(a)).to(lower.device).reshape(lead) for a in found)
        return low, high, bad

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        """≥ sup of c over the boxes [lower, upper], (*b, nx) ×2 → (*b,)."""
        _, high, bad = self._range(lower, upper)
        return torch.where(bad, self.ceiling, high.clamp(0.0, self.ceiling))

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        """≤ inf of c over the boxes."""
        low, _, bad = self._range(lower, upper)
        return torch.where(bad, 0.0, low.clamp(0.0, self.ceiling))
