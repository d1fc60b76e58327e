"""The Safe Drone of the published X-MPSC experiments (xmpsc.md §6.4) as a rigid body in closed form: a Crazyflie 2.1."""

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
from gpsafe.systems.base import Cost, check_fields
from gpsafe.systems.drone_known import DroneKnown, upward
from gpsafe.systems.episodic import Published, leaves, spread, uniform, wild

HOVER = 30_000.0  # motor command at thrust 0
TOP = 60_000.0  # largest motor command
DEGREES = 180.0 / math.pi
X_MIX = torch.tensor(
    [[-0.5, 0.5, 1.0], [-0.5, -0.5, -1.0], [0.5, -0.5, 1.0], [0.5, 0.5, -1.0]], dtype=torch.float64
)  # of rotors at (−,−), (+,−), (+,+), (−,+) in the body's (x, y); commands for roll, pitch, yaw


def rotation(angles: Tensor) -> Tensor:
    """Body to world for (roll, pitch, yaw): R_z(ψ) R_y(θ) R_x(φ), (*b, 3) → (*b, 3, 3)."""
    (sr, sp, sy), (cr, cp, cy) = torch.sin(angles).unbind(-1), torch.cos(angles).unbind(-1)
    rows = [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr]
    rows += [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr]
    return torch.stack([*rows, -sp, cp * sr, cp * cr], dim=-1).unflatten(-1, (3, 3))


def angle_rates(sines: Tensor, cosines: Tensor, body: Tensor) -> Tensor:
    """(φ′, θ′, ψ′) of body rates (*b, 3), from sines and cosines of (φ, θ, ψ); singular at pitch ±90°."""
    sr, cr = sines[..., 0], cosines[..., 0]
    p, q, r = body.unbind(-1)
    turning = (q * sr + r * cr) / cosines[..., 1]
    return torch.stack([p + turning * sines[..., 1], q * cr - r * sr, turning], dim=-1)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Drone(Published):
    """A quadrotor told a thrust and three body rates: x = (position, roll pitch yaw, world velocity, body rates) ∈ ℝ¹².

    u ∈ [−1, 1]⁴: motor command 30 000(1 + u₀), and set-points u₁…u₃·60°/s for the body rates. In each of the `substeps`
    of a step a proportional rate controller (gains in commands per degree a second, roll and pitch halved by the mixer) adds to
    the four motor commands, which saturate at 0 and 60 000; motor i then pushes with force·command/30 000 N until the next
    substep. The body is rigid:

        m v′ = R(roll, pitch, yaw) e_z Σ f_i − m g e_z,   J ω′ = τ − ω × Jω,

    by the trapezoidal rule for position and angles. The published controller is a PID, run once a step: 20 ms is too slow
    for its own gain (ω's error would be multiplied by 1 − 150·0.02 = −2 a step), so that it runs at 500 Hz here, as the
    firmware's does. Its integrator and its derivative are left out: they have memory, which x does not contain, and the
    published integrator also survives resets; nothing here unbalances the rotors, which is what they are for. The floor is
    left out: a drone that starts on it and does not push falls below.

    `mean` saturates the motors, which belong to the plant, and does not clip u. Cost 1 where |roll| or |pitch| > 10°. Reward
    1 − |position − (0, 0, 1)|², or −100 outside the limits.

    Args:
        mass: kg.
        inertia: principal moments, kg m².
        arm: of the rotors' places (±arm, ±arm), m.
        force: of one rotor at the command 30 000, N.
        drag: yaw torque per thrust of a rotor, m.
        gains: of the rate controller for roll, pitch, yaw.
        rate: set-points of the body rates at u = 1, rad/s.
        substeps: of a step, n ≥ 1.
    """

    mass: float = 0.030
    inertia: tuple[float, float, float] = (1.33e-5, 1.33e-5, 2.64e-5)
    arm: float = 0.028
    force: float = 0.075
    drag: float = 0.01
    gains: tuple[float, float, float] = (250.0, 250.0, 120.0)
    rate: float = math.pi / 3
    gravity: float = 9.81
    dt: float = 0.02
    substeps: int = 10
    input_noise: float = 0.01
    observation_noise: float = 0.005
    horizon: int = 100
    budget: float = 0.0
    initial_state: Tensor = field(default_factory=lambda: vector(0.0, 0.0, 0.0125, *(9 * [0.0])))
    noise_std: Tensor = field(init=False)
    name: str = "drone"

    def __post_init__(self) -> None:
        where = "Drone"
        for parameter in ("mass", "inertia", "arm", "force", "rate", "gravity", "dt"):
            _require.positive(where, parameter, getattr(self, parameter))
        for parameter in ("drag", "gains", "input_noise", "observation_noise"):
            _require.nonnegative(where, parameter, getattr(self, parameter))
        _require.count(where, "substeps", self.substeps)
        object.__setattr__(self, "noise_std", torch.zeros(12, dtype=torch.float64))
        check_fields(where, self)
        object.__setattr__(self, "noise_std", spread(self, self.input_noise))

    @property
    def nx(self) -> int:
        """12."""
        return 12

    @property
    def nu(self) -> int:
        """4."""
        return 4

    @property
    def state_box(self) -> Box:
        """|roll|, |pitch| ≤ 10°, and 10⁵ elsewhere, as published: no limit in effect."""
        upper = torch.full((12,), 1e5, dtype=torch.float64)
        upper[3:5] = math.radians(10.0)
        return Box(-upper, upper)

    @property
    def input_box(self) -> Box:
        """[−1, 1]⁴."""
        one = torch.ones(4, dtype=torch.float64)
        return Box(-one, one)

    @property
    def initial_box(self) -> Box:
        """At (±0.25, ±0.25, 0.0125) m, at rest, level, any yaw."""
        upper = torch.zeros(12, dtype=torch.float64)
        upper[:2], upper[5] = 0.25, math.pi
        lower = -upper
        lower[2] = upper[2] = 0.0125
        return Box(lower, upper)

    @property
    def limited(self) -> tuple[int, ...]:
        """Roll and pitch."""
        return (3, 4)

    @property
    def cost(self) -> Cost:
        """1 outside the limits of roll and pitch."""
        return leaves(self.state_box, self.limited)

    @property
    def hover(self) -> float:
        """u₀ at which the rotors carry the weight."""
        return self.mass * self.gravity / (4 * self.force) - 1.0

    @property
    def lags(self) -> Tensor:
        """1/s, (3,): rates of decay of the errors of the body rates, while no motor saturates.

        4·arm·½gain (roll, pitch) and 4·drag·gain (yaw), times force/30 000 N a command and 180/π, over the moment of inertia.
        """
        lever = vector(2 * self.arm, 2 * self.arm, 4 * self.drag) * vector(*self.gains)
        return lever * (self.force / HOVER * DEGREES) / vector(*self.inertia)

    def prior(self, *, scale: float = 0.8) -> DroneKnown:
        """The published prior, mended: mass and moments of inertia times `scale`; a set-point acts through a lag.

        1 does not give the truth: its angles are those of small rates and angles, and its motors do not saturate. Only so are
        its second derivatives bounded everywhere (those of the angles' rates are not, at a pitch of 90°).
        """
        scale = float(_require.positive("Drone.prior", "scale", scale))
        return DroneKnown(scale * self.mass, 4 * self.force, self.lags / scale, self.rate, self.gravity, self.dt)

    @property
    def feedback(self) -> Tensor:
        """Motor commands per error of the body rates, 1/(rad/s), (4, 3)."""
        return X_MIX * (DEGREES * vector(*self.gains))

    @property
    def levers(self) -> Tensor:
        """Torques about the body's axes per force of the rotors, m, (3, 4)."""
        return (torch.sign(X_MIX) * vector(self.arm, self.arm, self.drag)).T

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """The step without noise, (*b, 12), (*b, 4) → (*b, 12)."""
        place, angles, speed, body = x.split(3, dim=-1)
        inertia, h = vector(*self.inertia).to(x.device), self.dt / self.substeps
        down = vector(0.0, 0.0, -self.gravity).to(x.device)
        feedback, levers = self.feedback.T.to(x.device), self.levers.T.to(x.device)
        asked = HOVER * (1.0 + u[..., :1]) + self.rate * u[..., 1:] @ feedback
        for _ in range(self.substeps):
            motors = (asked - body @ feedback).clamp(0.0, TOP) * (self.force / HOVER)
            turn = (motors @ levers - torch.linalg.cross(body, inertia * body, dim=-1)) / inertia
            sines, cosines = torch.sin(angles), torch.cos(angles)
            lift = upward(sines, cosines) * (motors.sum(-1, keepdim=True) / self.mass)
            faster, turned = speed + h * (lift + down), body + h * turn
            place = place + 0.5 * h * (speed + faster)
            angles = angles + h * angle_rates(sines, cosines, 0.5 * (body + turned))
            speed, body = faster, turned
        return torch.cat([place, angles, speed, body], dim=-1)

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """1 − |position − (0, 0, 1)|², or −100 outside the limits."""
        gap = x[..., :3] - vector(0.0, 0.0, 1.0).to(x.device)
        return torch.where(self.terminated(x), -100.0, 1.0 - gap.square().sum(-1))

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The measurement of x."""
        return x + self.observation_noise * uniform(torch.ones(12, dtype=torch.float64), tuple(x.shape), generator)

    def backup(self, x: Tensor) -> Tensor:
        """Flies to (0, 0, 1) and hovers there: a cascade of proportional laws, each four times as slow as the one inside it.

        Velocity wanted ½·gap (at most 1 m/s), acceleration wanted 2·(wanted − speed), tilt wanted acceleration/g in the body's
        heading (at most 4°), body rates wanted 8·(wanted − tilt); the thrust for the acceleration wanted upwards. 1/s each.
        """
        place, angles, speed, _ = x.split(3, dim=-1)
        wanted = (0.5 * (vector(0.0, 0.0, 1.0).to(x.device) - place)).clamp(-1.0, 1.0)
        push = 2.0 * (wanted - speed)
        cy, sy = torch.cos(angles[..., 2]), torch.sin(angles[..., 2])
        ahead, aside = cy * push[..., 0] + sy * push[..., 1], cy * push[..., 1] - sy * push[..., 0]
        tilt = (torch.stack([-aside, ahead], dim=-1) / self.gravity).clamp(-math.radians(4.0), math.radians(4.0))
        rates = 8.0 * (tilt - angles[..., :2]) / self.rate
        thrust = self.mass * (self.gravity + push[..., 2]) / (4 * self.force) - 1.0
        rest = torch.zeros_like(thrust)
        return self.input_box.clip(torch.stack([thrust, *rates.unbind(-1), rest], dim=-1))

    def warm_up(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """As published, but clipped: 30 % uniform inputs, else thrust 0.3(1 − z) − 0.3 v_z and rates −0.1 a degree, ± 0.4."""
        thrust = 0.3 * (1.0 - x[..., 2]) - 0.3 * x[..., 8]
        level = -0.1 * DEGREES * x[..., 3:5]
        law = torch.stack([thrust, *level.unbind(-1), torch.zeros_like(thrust)], dim=-1)
        law = law + uniform(torch.full((4,), 0.4, dtype=torch.float64), tuple(law.shape), generator)
        return wild(self.input_box.clip(law), 0.3, generator)

    def scene(self, x: Tensor) -> draw.Scene:
        """Seen along the y axis: the body's x axis (drawn six times too large) and its upright, and the point to hover at."""
        px, _, pz, *_ = x.tolist()
        R = rotation(x[3:6])
        ahead, up = (0.25 * R[:, 0]).tolist(), (0.12 * R[:, 2]).tolist()
        aim = draw.Stroke((0.0, 1.0), (0.0, 1.0), 0.03, draw.RED)
        floor = draw.Stroke((-3.0, 0.0), (3.0, 0.0), 0.01, draw.GREY)
        body = draw.Stroke((px - ahead[0], pz - ahead[2]), (px + ahead[0], pz + ahead[2]), 0.03, draw.ACCENT)
        mast = draw.Stroke((px, pz), (px + up[0], pz + up[2]), 0.02, draw.DARK)
        return draw.Scene((floor, aim, body, mast), half_width=1.2, center=(0.0, 0.8))
