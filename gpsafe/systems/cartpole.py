"""The cart-pole of the published swing-up experiments; θ = 0 hangs down."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.linalg import vector
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems import scene as draw
from gpsafe.systems._magnitude import leaf
from gpsafe.systems.base import Cost, HingeCost, IndicatorCost, check_fields, measured
from gpsafe.systems.pendulum import wrap_angle
from gpsafe.systems.rkhs_twin import RKHSTwin, twin


def accelerations(
    theta: Tensor, omega: Tensor, push: Tensor, *, gravity: float, cart: float, pole: float, length: float
) -> tuple[Tensor, Tensor]:
    """(ẍ, θ̈) of a frictionless cart with a point mass on a massless pole, θ = 0 down, `push` = F on the cart.

    ẍ = (F + m sin θ (lω² + g cos θ)) / (M + m sin²θ),
    θ̈ = −(F cos θ + m l ω² cos θ sin θ + (M + m) g sin θ) / (l (M + m sin²θ)).
    """
    sine, cosine = torch.sin(theta), torch.cos(theta)
    inertia = cart + pole * sine.square()
    centripetal = pole * length * omega.square() * sine
    cart_acceleration = (push + centripetal + pole * gravity * sine * cosine) / inertia
    pole_acceleration = -((push + centripetal) * cosine + (cart + pole) * gravity * sine) / (length * inertia)
    return cart_acceleration, pole_acceleration


def soft_clip(y: Tensor, limit: float, margin: float) -> Tensor:
    """y for |y| ≤ limit, then flattening to ±(limit + margin/2) over `margin`: |s′| ≤ 1, |s″| ≤ 1/margin."""
    excess = (y.abs() - limit).clamp(0.0, margin)
    over = (y.abs() - limit - margin).clamp_min(0.0)
    return y - torch.sign(y) * (excess.square() / (2 * margin) + over)


def soft_clips(y: Tensor, limits: list[float], margins: list[float]) -> tuple[Tensor, Tensor]:
    """s(y) and s′(y) of :func:`soft_clip`, for y (*b, k) with a limit and a margin for each of k: fewer operations."""
    limit, margin = y.new_tensor(limits), y.new_tensor(margins)
    over = y.abs() - limit
    excess = over.clamp_min(0.0).minimum(margin)
    bent = excess.square() / (2 * margin) + (over - margin).clamp_min(0.0)
    return y - torch.copysign(bent, y), 1.0 - excess / margin


@short
@dataclass(frozen=True, slots=True, eq=False)
class CartPoleKnown:
    """Explicit Euler steps of a cart-pole with bounded second derivatives, on z = (x, θ, v, ω, u).

    ω and u enter the accelerations through :func:`soft_clip`, which changes nothing for |ω| ≤ speed_limit,
    |u| ≤ 1 and keeps the Hessian bounded everywhere (the centripetal term is quadratic in ω).

    Args:
        gravity: m/s².
        cart, pole: masses, kg.
        length: m.
        force: N at u = 1.
        dt: s.
        speed_limit: rad/s, up to where the step is the physical one.
        action_repeat: substeps.
    """

    gravity: float
    cart: float
    pole: float
    length: float
    force: float
    dt: float
    speed_limit: float
    action_repeat: int = 1

    def __post_init__(self) -> None:
        for parameter in ("gravity", "cart", "pole", "length", "force", "dt", "speed_limit"):
            _require.positive("CartPoleKnown", parameter, getattr(self, parameter))
        _require.count("CartPoleKnown", "action_repeat", self.action_repeat)

    @property
    def _margin(self) -> float:
        return 0.25 * self.speed_limit

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u), (*b, 4), (*b, 1) → (*b, 4)."""
        position, theta, v, omega = x.unbind(-1)
        push = self.force * soft_clip(u[..., 0], 1.0, 1.0)
        body = {"gravity": self.gravity, "cart": self.cart, "pole": self.pole, "length": self.length}
        for _ in range(self.action_repeat):
            a, alpha = accelerations(theta, soft_clip(omega, self.speed_limit, self._margin), push, **body)
            position, theta = position + self.dt * v, theta + self.dt * omega
            v, omega = v + self.dt * a, omega + self.dt * alpha
        return torch.stack([position, theta, v, omega], dim=-1)

    @property
    def hessian_bound(self) -> Tensor:
        """H (4, 5, 5): the substeps followed by the product and chain rules on absolute bounds."""
        M, m, length, g, dt = self.cart, self.pole, self.length, self.gravity, self.dt
        position, theta, v, omega, u = (leaf(i, 5, math.inf) for i in range(5))
        push = u.compose(1.5, 1.0, 1.0).scale(self.force)
        top, bend = self.speed_limit + 0.5 * self._margin, 1.0 / self._margin
        for _ in range(self.action_repeat):
            sine, both = theta.compose(1.0, 1.0, 1.0), theta.compose(0.5, 1.0, 2.0)  # sin θ, ½ sin 2θ
            mass = theta.compose(M + m, m, 2 * m)  # M + m sin²θ ∈ [M, M + m]; m sin 2θ, 2m cos 2θ
            inverse = mass.compose(1 / M, 1 / M**2, 2 / M**3)
            slow = omega.compose(top, 1.0, bend)
            square = slow * slow
            a = (push + (square * sine).scale(m * length) + both.scale(m * g)) * inverse
            turn = push * sine + (square * both).scale(m * length) + sine.scale((M + m) * g)  # |cos| as |sin|
            alpha = (turn * inverse).scale(1 / length)
            position, theta = position + v.scale(dt), theta + omega.scale(dt)
            v, omega = v + a.scale(dt), omega + alpha.scale(dt)
        rows = torch.stack([position.hess, theta.hess, v.hess, omega.hess])
        return rows * (1.0 + 1e-12)  # more than the rounding of a few dozen sums and products


@short
@dataclass(frozen=True, slots=True, eq=False)
class CartPole:
    """x = (position, θ, v, ω): explicit Euler on :func:`accelerations`, force·u with u ∈ [−1, 1], θ = 0 down.

    Units m, rad, m/s, rad/s; θ is not wrapped. Cost on |position| > track, as an indicator or as the hinge
    min((|position| − track)₊, 1). Reward −(φ² + position² + 0.1(v² + ω²)) − 0.01u², φ the wrapped angle from
    upright.

    Args:
        gravity: m/s².
        cart, pole: masses, kg.
        length: m.
        force: N at u = 1.
        dt: s, of one substep.
        track: m.
        speed_limit: rad/s: half-width of the state box in ω; the plant itself has no clip.
        action_repeat: substeps for which u is held; one step of the plant is all of them.
        cost_kind: "indicator" or "hinge".
        noise_std: of the state per step.
        horizon: T steps.
        budget: d.
    """

    gravity: float = 9.81
    cart: float = 5.0
    pole: float = 1.0
    length: float = 1.0
    force: float = 15.0
    dt: float = 0.05
    track: float = 1.5
    speed_limit: float = 8.0
    action_repeat: int = 1
    cost_kind: Literal["indicator", "hinge"] = "indicator"
    noise_std: Tensor = field(default_factory=lambda: vector(0.001, 0.001, 0.001, 0.001))
    initial_state: Tensor = field(default_factory=lambda: vector(0.0, 0.0, 0.0, 0.0))
    horizon: int = 100
    budget: float = 1.0
    name: str = "cartpole"

    def __post_init__(self) -> None:
        for parameter in ("gravity", "cart", "pole", "length", "force", "dt", "track", "speed_limit"):
            _require.positive("CartPole", parameter, getattr(self, parameter))
        _require.count("CartPole", "action_repeat", self.action_repeat)
        _require.one_of("CartPole", "cost_kind", self.cost_kind, ("indicator", "hinge"))
        check_fields("CartPole", self)

    @property
    def nx(self) -> int:
        """4."""
        return 4

    @property
    def nu(self) -> int:
        """1."""
        return 1

    @property
    def angles(self) -> tuple[int, ...]:
        """State indices that are angles."""
        return (1,)

    @property
    def state_box(self) -> Box:
        """|position| ≤ 2·track, |θ| ≤ 3π/2, |v| ≤ 5, |ω| ≤ speed_limit."""
        half = vector(2 * self.track, 1.5 * math.pi, 5.0, self.speed_limit)
        return Box(-half, half)

    @property
    def input_box(self) -> Box:
        """[−1, 1]."""
        return Box(vector(-1.0), vector(1.0))

    @property
    def cost(self) -> Cost:
        """1{|position| > track}, or min((|position| − track)₊, 1)."""
        normals = vector(1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0).reshape(2, 4)
        offsets = vector(self.track, self.track)
        if self.cost_kind == "hinge":
            return HingeCost(normals, offsets)
        return IndicatorCost(normals, offsets)

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """f*(x, u), (*b, 4), (*b, 1) → (*b, 4)."""
        x, u = measured(self, x, u)
        position, theta, v, omega = x.unbind(-1)
        push = self.force * u[..., 0]
        body = {"gravity": self.gravity, "cart": self.cart, "pole": self.pole, "length": self.length}
        for _ in range(self.action_repeat):
            a, alpha = accelerations(theta, omega, push, **body)
            position, theta = position + self.dt * v, theta + self.dt * omega
            v, omega = v + self.dt * a, omega + self.dt * alpha
        return torch.stack([position, theta, v, omega], dim=-1)

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """−(φ² + position² + 0.1(v² + ω²)) − 0.01u²."""
        position, theta, v, omega = x.unbind(-1)
        upright = wrap_angle(theta - math.pi)
        speeds = 0.1 * (v.square() + omega.square())
        return -(upright.square() + position.square() + speeds) - 0.01 * u[..., 0].square()

    def energy(self, x: Tensor) -> Tensor:
        """½(M + m)v² + m l cos θ·vω + ½ m l²ω² + m g l(1 − cos θ), J, zero hanging at rest."""
        _, theta, v, omega = x.unbind(-1)
        motion = 0.5 * (self.cart + self.pole) * v.square() + 0.5 * self.pole * (self.length * omega).square()
        coupling = self.pole * self.length * torch.cos(theta) * v * omega
        return motion + coupling + self.pole * self.gravity * self.length * (1.0 - torch.cos(theta))

    def prior(self, *, cart_error: float = 0.1, pole_error: float = 0.1, length_error: float = 0.05) -> CartPoleKnown:
        """The step of a cart-pole whose masses and length are off by the given fractions.

        Its soft clip of ω starts far enough beyond speed_limit not to act within a step that starts in the
        state box.
        """
        cart, pole = self.cart * (1.0 + cart_error), self.pole * (1.0 + pole_error)
        length, speed = self.length * (1.0 + length_error), self.speed_limit
        for _ in range(self.action_repeat - 1):  # |θ̈| ≤ (F + ½mlω² + (M + m)g) / (lM)
            pull = self.force + 0.5 * pole * length * speed**2 + (cart + pole) * self.gravity
            speed += self.dt * pull / (length * cart)
        return CartPoleKnown(
            gravity=self.gravity,
            cart=cart,
            pole=pole,
            length=length,
            force=self.force,
            dt=self.dt,
            speed_limit=speed,
            action_repeat=self.action_repeat,
        )

    def twin(
        self,
        *,
        cart_error: float = 0.1,
        pole_error: float = 0.1,
        length_error: float = 0.05,
        counts: tuple[int, int, int] = (19, 8, 4),
        ridge: float = 1e-9,
    ) -> RKHSTwin:
        """The RKHS twin over the state box; position and v enter through the known part only.

        RBF on (θ, ω, u) with ℓ = (0.8, 6, 3); the velocities are learned, and with action_repeat > 1 the
        positions too.
        """
        step = self.action_repeat * self.dt

        stds = {0: 0.05 * step, 1: 0.2 * step, 2: 0.05, 3: 0.2}
        outputs = (2, 3) if self.action_repeat == 1 else (0, 1, 2, 3)
        return twin(
            self,
            self.prior(cart_error=cart_error, pole_error=pole_error, length_error=length_error),
            kernels=[kernels.rbf([0.8, 6.0, 3.0], variance=stds[j] ** 2, dims=(1, 3, 4)) for j in outputs],
            outputs=outputs,
            counts=(1, counts[0], 1, counts[1], counts[2]),
            ridge=ridge,
        )

    def scene(self, x: Tensor) -> draw.Scene:
        """Cart, pole and the ends of the track."""
        p, theta = float(x[0]), float(x[1])
        tip = (p + self.length * math.sin(theta), -self.length * math.cos(theta))
        ends = [draw.Stroke((s * self.track, -0.25), (s * self.track, 0.25), 0.015, draw.RED) for s in (-1, 1)]
        return draw.Scene(
            (
                draw.Stroke((-4 * self.track, 0.0), (4 * self.track, 0.0), 0.012, draw.GREY),
                *ends,
                draw.Stroke((p - 0.2, 0.0), (p + 0.2, 0.0), 0.12, draw.DARK),
                draw.Stroke((p, 0.0), tip, 0.035, draw.ACCENT),
                draw.Stroke(tip, tip, 0.09, draw.ACCENT),
            ),
            half_width=2 * self.track,
        )
