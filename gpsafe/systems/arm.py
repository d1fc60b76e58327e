"""The Two-Link Arm of the published X-MPSC experiments (xmpsc.md §6.3), corrected: its laws get states, not observations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.linalg import vector
from gpsafe.sets import Box
from gpsafe.systems import scene as draw
from gpsafe.systems.arm_known import Links, TwoLinkArmKnown
from gpsafe.systems.base import Cost, check_fields
from gpsafe.systems.episodic import Published, leaves, spread, uniform, unlimited

START = 0.1  # m: the end-effector starts, and is kept by the warm-up law, within this distance of the shoulder


@short
@dataclass(frozen=True, slots=True, eq=False)
class TwoLinkArm(Published):
    """A horizontal arm with two links that reaches for a goal; the end-effector must stay in a square about the shoulder.

    The state is what the published task shows, eight numbers:

        x = (e_x, e_y, e_x − g_x, e_y − g_y, θ₁/10, θ₂/10, ω₁/10, ω₂/10),

    e the end-effector, g the goal, θ the joint angles (not wrapped), ω their rates. It is Markov: θ, ω and g are functions of
    it, and (θ, ω, g, u) determine the next θ, ω and e, while g stays. e is a function of θ, so that the states fill only a
    six-dimensional surface; `mean` reads θ, ω and g, and returns to the surface from beside it. Six numbers would do, but then
    the limits, a box in e, would be no polytope, which tubes and terminal sets need. `state` and `of` go back and forth.

    M(θ₂) ω′ = u − C(θ₂, ω) − B ω (see `Links`), explicit Euler. The published clip of ω at ±100 rad/s is left out:
    inputs that always push along the rates do not bring them near it in an episode. Cost 1
    where |e_x| or |e_y| > 0.5 m. Reward −(|e − g| + 10⁻³|u|) − 100·cost. No noise, as published.

    Args:
        masses, lengths, centers, inertias: of the two links; kg, m, m from their joints, kg m² .
        friction: B, (2, 2), N m s.
        dt: s.
    """

    masses: tuple[float, float] = (1.4, 1.0)
    lengths: tuple[float, float] = (0.3, 0.3)
    centers: tuple[float, float] = (0.011, 0.016)
    inertias: tuple[float, float] = (0.025, 0.045)
    friction: Tensor = field(default_factory=lambda: vector(0.05, 0.025, 0.025, 0.05).reshape(2, 2))
    dt: float = 0.02
    input_noise: float = 0.0
    horizon: int = 100
    budget: float = 0.0
    initial_state: Tensor = field(init=False)
    noise_std: Tensor = field(init=False)
    name: str = "two-link-arm"

    def __post_init__(self) -> None:
        where = "TwoLinkArm"
        for parameter in ("masses", "lengths", "centers", "inertias", "dt"):
            _require.positive(where, parameter, getattr(self, parameter))
        _require.nonnegative(where, "input_noise", self.input_noise)
        friction = _require.shape(where, "friction", _require.real(where, "friction", self.friction), (2, 2))
        object.__setattr__(self, "friction", friction)
        folded = self.of(vector(0.0, math.pi), torch.zeros(2).double(), vector(0.2, 0.2))
        object.__setattr__(self, "initial_state", folded)
        object.__setattr__(self, "noise_std", spread(self, self.input_noise))
        check_fields(where, self)

    @property
    def _links(self) -> Links:
        return Links(self.masses, self.lengths, self.centers, self.inertias, self.friction)

    @property
    def nx(self) -> int:
        """8."""
        return 8

    @property
    def nu(self) -> int:
        """2."""
        return 2

    @property
    def state_box(self) -> Box:
        """|e_x|, |e_y| ≤ 0.5 m, and 10⁵ elsewhere, as published: no limit in effect."""
        return unlimited(Box(vector(-0.5, -0.5), vector(0.5, 0.5)), 8)

    @property
    def input_box(self) -> Box:
        """[−1, 1]² N m."""
        return Box(vector(-1.0, -1.0), vector(1.0, 1.0))

    @property
    def initial_box(self) -> Box:
        """Holds all starts, which do not fill it: see `initial`."""
        upper = vector(START, START, START + 0.5, START + 0.5, 0.314, 0.314, 0.02, 0.02)
        return Box(-upper, upper)

    @property
    def limited(self) -> tuple[int, ...]:
        """The end-effector's coordinates."""
        return (0, 1)

    @property
    def cost(self) -> Cost:
        """1 where the end-effector is outside its square."""
        return leaves(self.state_box, self.limited)

    def state(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(θ, ω, g) of x (*b, 8), each (*b, 2)."""
        return 10 * x[..., 4:6], 10 * x[..., 6:8], x[..., :2] - x[..., 2:4]

    def of(self, theta: Tensor, omega: Tensor, goal: Tensor) -> Tensor:
        """x of joint angles, rates and goal, (*b, 2) ×3 → (*b, 8)."""
        place = self.end(theta)
        return torch.cat([place, place - goal, theta / 10, omega / 10], dim=-1)

    def end(self, theta: Tensor) -> Tensor:
        """The end-effector, (*b, 2) → (*b, 2)."""
        return self._links.end(theta)

    def energy(self, x: Tensor) -> Tensor:
        """½ ωᵀ M(θ₂) ω, (*b, 8) → (*b,): all there is, for nothing lifts the links."""
        theta, omega, _ = self.state(x)
        return 0.5 * (omega.unsqueeze(-2) @ self._links.mass(theta[..., 1]) @ omega.unsqueeze(-1))[..., 0, 0]

    def initial(self, count: int, generator: torch.Generator) -> Tensor:
        """θ ~ U(±3.14)² where the end-effector is within 0.1 m of the shoulder, ω ~ U(±0.2)², g ~ U(±0.5)², (count, 8)."""
        angles = torch.empty(0, 2, dtype=torch.float64)
        while angles.shape[0] < count:  # one in ten stays
            drawn = uniform(vector(3.14, 3.14), (16 * count + 16, 2), generator)
            angles = torch.cat([angles, drawn[self.end(drawn).norm(dim=-1) <= START]])
        omega = uniform(vector(0.2, 0.2), (count, 2), generator)
        return self.of(angles[:count], omega, uniform(vector(0.5, 0.5), (count, 2), generator))

    def prior(self, *, scale: float = 0.8) -> TwoLinkArmKnown:
        """The published prior: the same equations with inertias, masses, lengths and centres times `scale`.

        1 gives the truth for |ω| ≤ 20 rad/s, |u| ≤ 1.
        """
        scale = float(_require.positive("TwoLinkArm.prior", "scale", scale))
        pairs = (self.masses, self.lengths, self.centers, self.inertias)
        masses, lengths, centers, inertias = ((scale * a, scale * b) for a, b in pairs)
        return TwoLinkArmKnown(Links(masses, lengths, centers, inertias, self.friction), self.dt)

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """The step without noise, (*b, 8), (*b, 2) → (*b, 8); u as given (see `System.mean`)."""
        theta, omega, goal = self.state(x)
        faster = self._links.accelerations(theta[..., 1:], omega, u)
        return self.of(theta + self.dt * omega, omega + self.dt * faster, goal)

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """−(|e − g| + 10⁻³|u|) − 100 outside the limits."""
        return -(x[..., 2:4].norm(dim=-1) + 1e-3 * u.norm(dim=-1)) - 100.0 * self.cost(x)

    def angles_at(self, place: Tensor, elbow: Tensor) -> Tensor:
        """Joint angles that put the end-effector at `place` (*b, 2), or nearest to it, |θ₂| ≤ π with the sign of `elbow` (*b,).

        θ₂ = ± acos((r² − l₁² − l₂²)/(2 l₁ l₂)), θ₁ = atan2(e_y, e_x) − atan2(l₂ sin θ₂, l₁ + l₂ cos θ₂).
        """
        a, b = self.lengths
        inside = (place.square().sum(-1) - a * a - b * b) / (2 * a * b)
        bend = torch.copysign(torch.acos(inside.clamp(-1.0, 1.0)), elbow)
        turn = torch.atan2(place[..., 1], place[..., 0])
        turn = turn - torch.atan2(b * torch.sin(bend), a + b * torch.cos(bend))
        return torch.stack([turn, bend], dim=-1)

    def backup(self, x: Tensor) -> Tensor:
        """Draws the end-effector back to within 0.1 m of the shoulder and stops there: clip(M(κ²(θ* − θ) − 2κω) + Bω, ±1).

        θ* is the inverse kinematics of the nearest point of that disc, on the side to which the elbow is bent, on the turn that
        is nearest to θ. M at θ₂*, κ = 8 1/s: without the clip and C the joints would be critically damped.
        """
        theta, omega, _ = self.state(x)
        place = self.end(theta)
        near = place * (START / place.norm(dim=-1, keepdim=True).clamp_min(START))
        goal = self.angles_at(near, torch.sin(theta[..., 1]))
        gap = torch.remainder(goal - theta + math.pi, 2 * math.pi) - math.pi
        wanted = 64.0 * gap - 16.0 * omega
        push = (self._links.mass(goal[..., 1]) @ wanted.unsqueeze(-1)).squeeze(-1)
        return self.input_box.clip(push + omega @ self.friction.T.to(x.device))

    def warm_up(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """As published: a uniform input, unless one step with it leaves the disc of 0.1 m; then `backup`."""
        free = uniform(vector(1.0, 1.0), (*x.shape[:-1], 2), generator)
        out = self.mean(x, free)[..., :2].norm(dim=-1, keepdim=True) > START
        return torch.where(out, self.backup(x), free)

    def scene(self, x: Tensor) -> draw.Scene:
        """Both links, the goal, and the square that the end-effector must not leave."""
        theta, _, goal = self.state(x)
        elbow = (self.lengths[0] * math.cos(float(theta[0])), self.lengths[0] * math.sin(float(theta[0])))
        end, aim = tuple(self.end(theta).tolist()), tuple(goal.tolist())
        corners = [(0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5)]
        walls = [draw.Stroke(a, b, 0.006, draw.RED) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]
        upper = draw.Stroke((0.0, 0.0), elbow, 0.025, draw.DARK)
        fore = draw.Stroke(elbow, (end[0], end[1]), 0.02, draw.ACCENT)
        target = draw.Stroke((aim[0], aim[1]), (aim[0], aim[1]), 0.025, draw.GREY)
        return draw.Scene((*walls, target, upper, fore), half_width=0.65)
