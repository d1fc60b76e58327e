"""What a plant is (theory §1.1).

x⁺ = f*(x, u) + w with w ~ N(0, diag(noise_std²)), a cost in [0, C] and a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.sets import Box


@runtime_checkable
class Cost(Protocol):
    """A state cost c(x) ∈ [0, ceiling] together with its exact supremum over boxes."""

    @property
    def ceiling(self) -> float: ...

    def __call__(self, x: Tensor) -> Tensor:
        """c(x), (*b, nx) → (*b,)."""
        ...

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        """sup of c over the boxes [lower, upper], (*b, nx) ×2 → (*b,)."""
        ...

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        """inf of c over the boxes, (*b, nx) ×2 → (*b,)."""
        ...


def is_violation(cost: Any) -> Any:
    """Whether a cost, or each of a tensor or an array of them, is that of a violation: c > 0, or NaN as of a diverged state."""
    return (cost <= 0) ^ True  # NaN answers `cost > 0` with no


@runtime_checkable
class HalfspaceCost(Cost, Protocol):
    """A cost that depends on the state through finitely many linear functions, and grows with each of them."""

    @property
    def directions(self) -> Tensor:
        """Normals of the half-spaces, (m, nx)."""
        ...

    def excess(self, x: Tensor) -> Tensor:
        """normal_i·x − offset_i, (*b, nx) → (*b, m): positive beyond the half-space."""
        ...

    def of_reach(self, reach: Tensor) -> Tensor:
        """Upper bound of c over a set whose supports along `directions` are at most `reach`, (*b, m) → (*b,)."""
        ...


def _supports(normals: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """min and max of normals x over boxes, (*b, nx) ×2 → (*b, m) ×2, rounded outward.

    A normal with one non-zero entry needs no margin: the product is rounded monotonically. The others get
    4·nx·ε·|normal|·max|x|, more than the rounding of both this sum and the one at a point.
    """
    normals = normals.to(lower.device)
    positive, negative = normals.clamp_min(0.0).T, normals.clamp_max(0.0).T
    several = ((normals != 0).sum(-1) > 1).to(normals.dtype)
    size = torch.maximum(lower.abs(), upper.abs()) @ normals.abs().T
    margin = 4 * normals.shape[-1] * torch.finfo(torch.float64).eps * several * size
    return lower @ positive + upper @ negative - margin, upper @ positive + lower @ negative + margin


def _states(cost: HalfspaceCost, x: Tensor) -> Tensor:
    """States (*b, nx) of tensors, arrays or lists."""
    return _require.points(type(cost).__name__, "x", x, cost.directions.shape[1])


def _check_halfspaces(where: str, normals: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    normals = _require.real(where, "normals", normals)  # its own: a limit that moves was never certified
    if normals.ndim != 2:
        raise _require.fail(where, "normals of shape (m, nx)", f"shape {tuple(normals.shape)}")
    offsets = _require.real(where, "offsets", offsets)
    return normals, _require.shape(where, "offsets", offsets, (normals.shape[0],))


@short
@dataclass(frozen=True, slots=True, eq=False)
class IndicatorCost:
    """c(x) = 1{normals[i]·x > offsets[i] for some i}: the state has left the polytope {normals x ≤ offsets}.

    A state with NaN entries costs 1: a diverged trajectory never counts as safe.

    Args:
        normals: (m, nx).
        offsets: (m,).
    """

    normals: Tensor
    offsets: Tensor

    if TYPE_CHECKING:  # lists and arrays become tensors

        def __init__(self, normals: _require.Numbers, offsets: _require.Numbers) -> None: ...

    def __post_init__(self) -> None:
        normals, offsets = _check_halfspaces("IndicatorCost", self.normals, self.offsets)
        object.__setattr__(self, "normals", normals)
        object.__setattr__(self, "offsets", offsets)

    @property
    def ceiling(self) -> float:
        """C = 1."""
        return 1.0

    @property
    def directions(self) -> Tensor:
        """(m, nx)."""
        return self.normals

    def excess(self, x: Tensor) -> Tensor:
        """normals x − offsets, (*b, m)."""
        x = _states(self, x)
        return x @ self.normals.T.to(x.device) - self.offsets.to(x.device)

    def of_reach(self, reach: Tensor) -> Tensor:
        """1 if one support exceeds its offset (or is NaN), (*b, m) → (*b,)."""
        return (~(reach <= self.offsets.to(reach.device))).any(-1).to(reach.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """1 outside the polytope, 0 inside."""
        x = _states(self, x)
        inside = x @ self.normals.T.to(x.device) <= self.offsets.to(x.device)
        return (~inside).any(-1).to(x.dtype)

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        """1 if the box meets the unsafe set (exact: each half-space is tested by its support function)."""
        lower, upper = _states(self, lower), _states(self, upper)
        return self.of_reach(_supports(self.normals, lower, upper)[1])

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        """1 if one half-space alone shows that the whole box is unsafe (under-approximates for m > 1)."""
        lower, upper = _states(self, lower), _states(self, upper)
        reach = _supports(self.normals, lower, upper)[0]
        return (reach > self.offsets.to(lower.device)).any(-1).to(lower.dtype)


@short
@dataclass(frozen=True, slots=True, eq=False)
class HingeCost:
    """c(x) = min(max_i (normal_i·x − offset_i)₊, ceiling): how far the state is outside {normal x ≤ offset}.

    A state with NaN entries costs the ceiling.

    Args:
        normal: (nx,) for one half-space, or (m, nx).
        offset: a number for one half-space, or (m,).
        ceiling: C > 0.
    """

    normal: Tensor
    offset: Tensor | float
    ceiling: float = 1.0

    if TYPE_CHECKING:  # lists and arrays become tensors

        def __init__(self, normal: _require.Numbers, offset: _require.Numbers, ceiling: float = 1.0) -> None: ...

    def __post_init__(self) -> None:
        normals = torch.atleast_2d(_require.finite("HingeCost", "normal", self.normal))
        offsets = torch.atleast_1d(_require.finite("HingeCost", "offset", self.offset))
        normals, offsets = _check_halfspaces("HingeCost", normals, offsets)
        object.__setattr__(self, "normal", normals)
        object.__setattr__(self, "offset", offsets)
        object.__setattr__(self, "ceiling", float(_require.positive("HingeCost", "ceiling", self.ceiling)))

    def _clip(self, reach: Tensor) -> Tensor:
        assert isinstance(self.offset, Tensor)
        return (reach - self.offset.to(reach.device)).amax(-1).clamp(0.0, self.ceiling)

    @property
    def directions(self) -> Tensor:
        """(m, nx)."""
        return self.normal

    def excess(self, x: Tensor) -> Tensor:
        """normal x − offset, (*b, m)."""
        x = _states(self, x)
        assert isinstance(self.offset, Tensor)
        return x @ self.normal.T.to(x.device) - self.offset.to(x.device)

    def of_reach(self, reach: Tensor) -> Tensor:
        """Clipped largest excess of the supports, (*b, m) → (*b,)."""
        return torch.nan_to_num(self._clip(reach), nan=self.ceiling)

    def __call__(self, x: Tensor) -> Tensor:
        """Clipped distance beyond the worst half-space, in units of normal·x."""
        x = _states(self, x)
        return self.of_reach(x @ self.normal.T.to(x.device))

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Sup over boxes (exact up to outward rounding)."""
        lower, upper = _states(self, lower), _states(self, upper)
        return self.of_reach(_supports(self.normal, lower, upper)[1])

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        """max_i of the infima over boxes: the infimum for m = 1, an under-approximation for m > 1."""
        lower, upper = _states(self, lower), _states(self, upper)
        return torch.nan_to_num(self._clip(_supports(self.normal, lower, upper)[0]), nan=0.0)


@runtime_checkable
class System(Protocol):
    """A plant. Everything is batched over leading dimensions and pure."""

    @property
    def name(self) -> str:
        """Short name."""
        ...

    @property
    def nx(self) -> int:
        """State dimension."""
        ...

    @property
    def nu(self) -> int:
        """Input dimension."""
        ...

    @property
    def state_box(self) -> Box:
        """Region on which the system is meant to be studied."""
        ...

    @property
    def input_box(self) -> Box:
        """Limits of u; who applies inputs clips or refuses what is outside (`SystemEnv` clips), `mean` never does."""
        ...

    @property
    def noise_std(self) -> Tensor:
        """Standard deviations of w, (nx,)."""
        ...

    @property
    def initial_state(self) -> Tensor:
        """x₀, (nx,)."""
        ...

    @property
    def horizon(self) -> int:
        """T."""
        ...

    @property
    def cost(self) -> Cost:
        """c."""
        ...

    @property
    def budget(self) -> float:
        """d: E Σ_{t<T} c(x_t) ≤ d."""
        ...

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """f*(x, u), (*b, nx), (*b, nu) → (*b, nx), smooth across the limits of u: u is not clipped."""
        ...

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """r(x, u), → (*b,)."""
        ...


def measured(system: System, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """x (*b, nx) and u (*b, nu) as float64 tensors, of tensors, arrays or lists."""
    where = type(system).__name__
    return _require.points(where, "x", x, system.nx), _require.points(where, "u", u, system.nu)


@runtime_checkable
class KnownPart(Protocol):
    """A known mean p(x, u), C¹ with Lipschitz derivative, whose second derivatives are bounded everywhere.

    So p(z) is within ½ Σ_jk H_ijk |δ_j δ_k| of its linearisation at z + δ, and ranges over cells are
    rigorous.
    """

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), → (*b, nx)."""
        ...

    @property
    def hessian_bound(self) -> Tensor:
        """H (nx, nz, nz), z = (x, u): |∂²p_i/∂z_j∂z_k| ≤ H_ijk almost everywhere."""
        ...


def known_with_bound(where: str, prior: object) -> KnownPart:
    """`prior` itself; refused, with what to use instead, if it states no bound on its second derivatives."""
    if isinstance(prior, KnownPart):
        return prior
    got = getattr(prior, "__name__", type(prior).__name__)
    expected = (
        "a known part with hessian_bound (gpsafe.AffineKnown for a linear one, gpsafe.systems.derived_known for a torch "
        "function, a plant's prior(), or your own class)"
    )
    raise _require.fail(where, expected, got)


def step(system: System, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """x⁺ = f*(x, u) + w for given noise w."""
    return system.mean(x, u) + w


def sample_noise(noise_std: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """w ~ N(0, diag(noise_std²)), shape (*shape, nx), on the generator's device."""
    draw = torch.randn(*shape, noise_std.numel(), dtype=torch.float64, generator=generator, device=generator.device)
    return draw * noise_std.to(draw.device)


def check_fields(where: str, system: System) -> None:
    """For a frozen plant's __post_init__: makes noise_std and initial_state float64 tensors of the right shape.

    Refuses a plant whose declared sizes, noise, start, horizon, budget and boxes do not fit together.
    """
    for name, check in (("noise_std", _require.nonnegative), ("initial_state", _require.finite)):
        value = check(where, name, getattr(system, name))
        object.__setattr__(system, name, _require.shape(where, name, value, (system.nx,)))
    _require.count(where, "horizon", system.horizon)
    _require.nonnegative(where, "budget", system.budget)
    boxes = (system.state_box.dim, system.input_box.dim)
    if boxes != (system.nx, system.nu):
        raise _require.fail(where, f"boxes of dimensions ({system.nx}, {system.nu})", boxes)
    if not bool(system.state_box.contains(system.initial_state)):
        raise _require.fail(where, "initial_state inside state_box", system.initial_state.tolist())


@short
@dataclass(frozen=True, slots=True, eq=False)
class CallableSystem:
    """A plant from two functions: `dynamics` (x, u) → x⁺, `reward_fn` (x, u) → r; the rest as in `System`."""

    name: str
    nx: int
    nu: int
    state_box: Box
    input_box: Box
    noise_std: Tensor
    initial_state: Tensor
    horizon: int
    cost: Cost
    budget: float
    dynamics: Callable[[Tensor, Tensor], Tensor]
    reward_fn: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        check_fields("CallableSystem", self)

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """f*(x, u)."""
        x, u = measured(self, x, u)
        return self.dynamics(x, u)

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """r(x, u)."""
        return self.reward_fn(x, u)
