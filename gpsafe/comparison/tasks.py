"""Contests to begin with: a twin on which every assumption of the theory is true, and three plants on which some may not be."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.comparison.contest import Contest
from gpsafe.linalg import vector
from gpsafe.sets import Box
from gpsafe.systems import SafeCartPole, SimplePendulum, TwoLinkArm, reference_pendulum
from gpsafe.systems.arm_known import Links, TwoLinkArmKnown

TaskName = Literal["twin", "pendulum", "cart-pole", "arm"]
TASKS: dict[str, tuple[str, ...]] = {
    "twin": ("none", "policy-set", "tube-paper", "tube-sound", "shield"),
    "pendulum": ("none", "policy-set", "tube-paper", "tube-sound", "shield"),
    "cart-pole": ("none", "policy-set", "tube-paper", "tube-sound"),
    "arm": ("none", "tube-paper"),
}
"""Task → certifiers that say something there in tolerable time: a shield's tables want bounded states; sound tubes of the
arm's eight states, and its policies, cost minutes an episode."""
HORIZON = 50
SPOILED = 0.8  # of masses and inertias in what is known of the arm


def task(name: TaskName | str, seed: int = 0, *, horizon: int = HORIZON) -> Contest:
    """A contest of that name.

    twin: the reference pendulum of theory (θ ≤ 1.2), whose kernels and B are known; T = 30, whatever `horizon` says.
    pendulum, cart-pole: those of X-MPSC with Gaussian instead of bounded noise, measured exactly; masses and lengths known 20 %
    too low.
    arm: the two-link arm, geometry known, masses and inertias 20 % too low, noise of 0.002 rad/s on the rates.

    Args:
        name: one of `TASKS`.
        seed: of the first data and of all noise.
        horizon: T.
    """
    _require.one_of("task", "name", name, TASKS)
    _require.count("task", "horizon", horizon)
    if name == "twin":
        twin, gain = reference_pendulum(), vector(0.6, 0.15).reshape(2, 1)

        def hold(x: Tensor) -> Tensor:
            return torch.clamp(-(x @ gain), -1.0, 1.0)

        return Contest.create(
            twin, twin.known, law=hold, budget=0.2, seed=seed, outputs=twin.outputs, kernels=twin.kernels,
            rkhs_norm=twin.rkhs_norm,
        )  # fmt: skip
    if name == "pendulum":
        pendulum = SimplePendulum(horizon=horizon)
        return Contest.create(pendulum, pendulum.prior(), seed=seed)
    if name == "cart-pole":
        cart = SafeCartPole(horizon=horizon)
        reach = vector(2.4, 2.0, math.radians(12.0), 1.5)
        return Contest.create(cart, cart.prior(), region=Box(-reach, reach), seed=seed)
    arm = TwoLinkArm(horizon=horizon)
    masses, inertias = (tuple(SPOILED * v for v in pair) for pair in (arm.masses, arm.inertias))
    links = Links((masses[0], masses[1]), arm.lengths, arm.centers, (inertias[0], inertias[1]), arm.friction)
    reach = vector(0.6, 0.6, 1.0, 1.0, 0.314, 0.314, 0.3, 0.3)
    return Contest.create(
        arm, TwoLinkArmKnown(links, arm.dt), region=Box(-reach, reach), radius=0.5, seed=seed,
        noise_std=vector(*(6 * [0.0]), 2e-4, 2e-4), surface=lambda x: arm.of(*arm.state(x)),
    )  # fmt: skip
