"""The policy class of `pendulum_policies.py`: 2032 members that are linear in features of the pendulum's state."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe.policies.features import FeaturePolicies, pendulum_coefficients, pendulum_features
from gpsafe.sets import Box

FREQUENCY_SQ = 9.81 / 1.1  # 1/s²: g/l as the learner believes it
GAIN = 15.0 / 1.1**2  # rad/s² per unit of input, as the learner believes it
PUSHES = (-0.4, -0.2, -0.1, 0.05, 0.1, 0.2, 0.3, 0.5)
NAMES = ("set point", "compensated set point", "pumped set point", "energy level")


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """The class with the coordinates of its members.

    Attributes:
        policies: all members.
        kind: index into NAMES, (P,).
        target: set-point g (rad); for energy levels the angle whose potential energy is E*, (P,).
        stiffness, damping: of the feedback, 1/s² and 1/s, (P,).
        pump: energy gain, s²/rad² (per unit of input), (P,).
        push: constant input of the energy levels, (P,).
    """

    policies: FeaturePolicies
    kind: Tensor
    target: Tensor
    stiffness: Tensor
    damping: Tensor
    pump: Tensor
    push: Tensor

    @property
    def initial(self) -> Tensor:
        """S_0: the plain set-points g ≤ −0.35 rad with stiffness 40 and damping 11."""
        plain = (self.kind == 0) & (self.stiffness == 40.0) & (self.damping == 11.0)
        return torch.nonzero(plain & (self.target <= -0.35 + 1e-9)).flatten()

    def select(self, index: Tensor) -> Family:
        """The members of the given indices."""
        parts = (self.kind, self.target, self.stiffness, self.damping, self.pump, self.push)
        return Family(self.policies.select(index), *(part[index] for part in parts))

    @property
    def region(self) -> tuple[Tensor, Tensor]:
        """A box where the orbit of an energy level lies (empty, at the origin, for the others), (P, 2) each."""
        speed = (2 * FREQUENCY_SQ * (1 - self.target.cos())).sqrt()
        reach = torch.where((self.kind == 3).unsqueeze(-1), torch.stack([self.target, speed], -1), 0.0)
        return -reach, reach


def family(*, targets: int = 36, gains: int = 4) -> Family:
    """Four sub-families on u ∈ [−1, 1], θ = 0 hanging; w² and b are the believed frequency² and gain.

    - set point: u = (w² sin g + k(g − θ) − dω)/b,
    - compensated: u = (w² sin θ + k(g − θ) − dω)/b: gravity is cancelled where the input suffices,
    - pumped: the compensated one with soft feedback plus p(E* − E)ω, E* the potential energy of g,
    - energy level: u = push + p(E* − E)ω: swings up to the level and holds it.

    The defaults give 36·16·2 + 36·12 + 14·32 = 2032 members. Smaller numbers are for tests.
    """
    angles = torch.linspace(-0.6, 1.6, targets, dtype=torch.float64).tolist()
    stiff, damp = [40.0, 20.0, 30.0, 60.0][:gains], [11.0, 7.0, 9.0, 14.0][:gains]
    rows = []
    for g, k, d in itertools.product(angles, stiff, damp):
        rows += [(0, g, k, d, 0.0, 0.0), (1, g, k, d, 0.0, 0.0)]
    for g, k, d, p in itertools.product(angles, stiff[:2], (4.0, 7.0), (0.05, 0.1, 0.2)[:gains]):
        rows.append((2, g, k, d, p, 0.0))
    levels = torch.linspace(0.2, 1.7, max(2, 2 * targets // 5), dtype=torch.float64).tolist()
    for g, p, b in itertools.product(levels, (0.2, 0.1, 0.05, 0.4)[:gains], PUSHES):
        rows.append((3, g, 0.0, 0.0, p, b))
    kind, g, k, d, p, b = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    compensated = (kind == 1) | (kind == 2)
    theta = pendulum_coefficients(
        push=torch.where(kind == 0, FREQUENCY_SQ * g.sin() / GAIN, b) + k * g / GAIN,
        spring=k / GAIN,
        damping=d / GAIN,
        gravity=torch.where(compensated, FREQUENCY_SQ / GAIN, 0.0),
        pump=p,
        level=FREQUENCY_SQ * (1 - g.cos()),
        frequency_sq=FREQUENCY_SQ,
    )
    box = Box(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64))
    return Family(FeaturePolicies(theta, pendulum_features(), box), kind.long(), g, k, d, p, b)
