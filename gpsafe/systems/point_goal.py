"""A point that must find a goal it is not told about, among hazards: a sparse task to be seen in pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.linalg import vector
from gpsafe.sets import Box
from gpsafe.systems import scene as draw
from gpsafe.systems.base import check_fields, measured
from gpsafe.systems.known import AffineKnown

WALL = 0.05  # over which a wall bends a step, in units of the state


@short
@dataclass(frozen=True, slots=True, eq=False)
class DiscCost:
    """c(x) = 1 if (x₁, x₂) lies in one of m closed discs, else 0. A state with NaN among the two costs 1.

    Args:
        centers: (m, 2).
        radii: (m,), positive.
        nx: state dimension.
    """

    centers: Tensor
    radii: Tensor
    nx: int = 2

    def __post_init__(self) -> None:
        _require.count("DiscCost", "nx", self.nx, minimum=2)
        centers = _require.real("DiscCost", "centers", self.centers)
        if centers.ndim != 2 or centers.shape[1] != 2:
            raise _require.fail("DiscCost", "centers of shape (m, 2)", f"shape {tuple(centers.shape)}")
        radii = _require.positive("DiscCost", "radii", _require.real("DiscCost", "radii", self.radii))
        object.__setattr__(self, "centers", centers)
        object.__setattr__(self, "radii", _require.shape("DiscCost", "radii", radii, (len(centers),)))

    @property
    def ceiling(self) -> float:
        """C = 1."""
        return 1.0

    def _plane(self, x: Tensor) -> Tensor:
        return _require.points("DiscCost", "x", x, self.nx)[..., None, :2]  # (*b, 1, 2)

    def _within(self, gap: Tensor, slack: float) -> Tensor:
        """Whether ‖gap‖ ≤ r (1 + slack) for some disc, gap (*b, m, 2); NaN counts as inside."""
        distance = torch.linalg.vector_norm(gap, dim=-1)
        return (~(distance > self.radii.to(gap.device) * (1.0 + slack))).any(-1).to(gap.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """1 inside a disc."""
        plane = self._plane(x)
        return self._within(plane - self.centers.to(plane.device), 0.0)

    def upper(self, lower: Tensor, upper: Tensor) -> Tensor:
        """1 if the box meets a disc: exact but for 1e-12 of the radius, by which it errs upwards."""
        low, high = self._plane(lower), self._plane(upper)
        centers = self.centers.to(low.device)
        gap = torch.where(centers < low, low - centers, torch.where(centers > high, centers - high, 0.0))
        gap = torch.where(low.isnan() | high.isnan(), torch.nan, gap)  # comparisons would let a NaN bound pass
        return self._within(gap, 1e-12)

    def lower(self, lower: Tensor, upper: Tensor) -> Tensor:
        """1 if one disc alone holds the whole box (under-approximates where several discs hold it together)."""
        low, high = self._plane(lower), self._plane(upper)
        centers = self.centers.to(low.device)
        far = torch.linalg.vector_norm(torch.maximum((centers - low).abs(), (high - centers).abs()), dim=-1)
        return (far <= self.radii.to(far.device) * (1.0 - 1e-12)).any(-1).to(far.dtype)


@short
@dataclass(frozen=True, slots=True, eq=False)
class PointGoal:
    """x = (p₁, p₂), u ∈ [−1, 1]²: p⁺ = wall(p + stride·u), a smooth clamp to ±arena.

    wall(v) = v − s·softplus((v − arena)/s) + s·softplus((−v − arena)/s) with s = 0.05: the identity inside but for
    0.05·e^(−gap/s), and smooth, because walls that clamp attract whatever explores by disagreement. Reward 1 in every step
    within goal_radius of the goal, else 0; cost 1 in every step inside a hazard. The straight way leads through one.

    Args:
        stride: of a step at |u| = 1.
        arena: half-width.
        goal, goal_radius: a disc.
        hazards: centres, (m, 2).
        hazard_radius: of all of them.
        noise_std: of (p₁, p₂) per step.
        horizon: T.
        budget: d, expected steps inside hazards in an episode.
    """

    stride: float = 0.2
    arena: float = 1.4
    goal: Tensor = field(default_factory=lambda: vector(1.0, 1.0))
    goal_radius: float = 0.3
    hazards: Tensor = field(default_factory=lambda: vector(0.0, 0.0, 0.8, -0.5, -0.5, 0.8).reshape(3, 2))
    hazard_radius: float = 0.3
    noise_std: Tensor = field(default_factory=lambda: vector(0.01, 0.01))
    initial_state: Tensor = field(default_factory=lambda: vector(-1.0, -1.0))
    horizon: int = 30
    budget: float = 1.5
    name: str = "point-goal"

    def __post_init__(self) -> None:
        for parameter in ("stride", "arena", "goal_radius", "hazard_radius"):
            _require.positive("PointGoal", parameter, getattr(self, parameter))
        goal = _require.shape("PointGoal", "goal", _require.real("PointGoal", "goal", self.goal), (2,))
        object.__setattr__(self, "goal", goal)
        object.__setattr__(self, "hazards", self.cost.centers)
        check_fields("PointGoal", self)

    @property
    def nx(self) -> int:
        """2."""
        return 2

    @property
    def nu(self) -> int:
        """2."""
        return 2

    @property
    def state_box(self) -> Box:
        """The arena and a tenth beyond, for the noise."""
        half = vector(1.0, 1.0) * (1.1 * self.arena)
        return Box(-half, half)

    @property
    def input_box(self) -> Box:
        """[−1, 1]²."""
        return Box(vector(-1.0, -1.0), vector(1.0, 1.0))

    @property
    def cost(self) -> DiscCost:
        """1 inside a hazard."""
        hazards = _require.real("PointGoal", "hazards", self.hazards)
        return DiscCost(hazards, torch.full((len(hazards),), self.hazard_radius, dtype=torch.float64))

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """f*(x, u), (*b, 2), (*b, 2) → (*b, 2)."""
        x, u = measured(self, x, u)
        v = x + self.stride * u
        over, under = ((s * v - self.arena) / WALL for s in (1.0, -1.0))
        return v - WALL * torch.nn.functional.softplus(over) + WALL * torch.nn.functional.softplus(under)

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """1 within the goal, else 0; sparse."""
        x, _ = measured(self, x, u)
        return (torch.linalg.vector_norm(x - self.goal.to(x.device), dim=-1) <= self.goal_radius).to(x.dtype)

    def prior(self, *, stride_error: float = 0.2) -> AffineKnown:
        """The plant without walls, its stride (1 + stride_error) times the true one."""
        eye = torch.eye(2, dtype=torch.float64)
        return AffineKnown(eye, eye * (self.stride * (1.0 + stride_error)), torch.zeros(2, dtype=torch.float64))

    def scene(self, x: Tensor) -> draw.Scene:
        """From above: hazards, the goal, the point."""
        at = (float(x[0]), float(x[1]))
        goal = (float(self.goal[0]), float(self.goal[1]))
        discs = [(float(a), float(b)) for a, b in self.hazards.tolist()]
        hazards = [draw.Stroke(c, c, self.hazard_radius, draw.RED) for c in discs]
        return draw.Scene(
            (*hazards, draw.Stroke(goal, goal, self.goal_radius, draw.GREY), draw.Stroke(at, at, 0.12, draw.ACCENT)),
            half_width=1.15 * self.arena,
        )
