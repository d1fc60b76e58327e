"""Claims about any system, cost or known part: functions that tests apply to real and to broken ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from gpsafe.sets import Box
from gpsafe.systems.arm import TwoLinkArm
from gpsafe.systems.base import CallableSystem, Cost, KnownPart, System, sample_noise
from gpsafe.systems.cartpole import CartPole
from gpsafe.systems.cartpole_local import CartPoleLocal
from gpsafe.systems.chain import chain
from gpsafe.systems.derived import derived_known
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.drone import Drone
from gpsafe.systems.pendulum import Pendulum
from gpsafe.systems.point_goal import PointGoal
from gpsafe.systems.reference import reference_1d, reference_pendulum
from gpsafe.systems.swing_up import SparseCartPole, SparsePendulum
from gpsafe.systems.synthetic import rkhs_1d, rkhs_2d
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.systems.xmpsc_local import SafeCartPoleLocal

EXACT = 1e-12


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


SYSTEMS: dict[str, Callable[[], System]] = {
    "double-integrator": DoubleIntegrator,
    "pendulum": Pendulum,
    "pendulum-repeat-2": lambda: Pendulum(action_repeat=2),
    "pendulum-hinge": lambda: Pendulum(cost_kind="hinge"),
    "cartpole": CartPole,
    "cartpole-repeat-2": lambda: CartPole(action_repeat=2),
    "cartpole-hinge": lambda: CartPole(cost_kind="hinge"),
    "point-goal": PointGoal,
    "sparse-pendulum": SparsePendulum,
    "sparse-cartpole": SparseCartPole,
    "rkhs-1d": lambda: rkhs_1d(generator=_generator()),
    "rkhs-2d": lambda: rkhs_2d(generator=_generator()),
    "rkhs-chain-1-1": lambda: chain(1, 1, generator=_generator()),
    "rkhs-chain-3-2": lambda: chain(3, 2, generator=_generator()),
    "reference-1d": reference_1d,
    "reference-pendulum": reference_pendulum,
    "double-integrator-twin": lambda: DoubleIntegrator().twin(),
    "pendulum-twin": lambda: Pendulum().twin(),
    "pendulum-repeat-2-twin": lambda: Pendulum(action_repeat=2).twin(),
    "cartpole-twin": lambda: CartPole().twin(),
    "cartpole-repeat-2-twin": lambda: CartPole(action_repeat=2).twin(),
}

SYSTEMS = {name: cache(make) for name, make in SYSTEMS.items()}  # nobody changes a system

TWINS = [name for name in SYSTEMS if "twin" in name or name.startswith(("rkhs", "reference"))]

_SAFE_CARTPOLE = torch.tensor([2.4, 8.0, 2.0, 8.0, 1.0], dtype=torch.float64)
_ARM = torch.tensor([0.5, 0.5, 1.0, 1.0, 0.6, 0.6, 3.0, 3.0, 1.5, 1.5], dtype=torch.float64)
_DRONE = torch.tensor(3 * [1.0] + 3 * [3.0] + 6 * [3.0] + 4 * [1.5], dtype=torch.float64)
_CUBE = tuple(Box(-torch.ones(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)) for n in (2, 1, 3))


def _waves(x: Tensor, u: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return torch.stack([a + torch.tanh(a) * torch.sin(2 * b), b - torch.sigmoid(a + u[..., 0]) + u[..., 0] * a], -1)


def _duffing(x: Tensor, u: Tensor) -> Tensor:
    a, b = x.unbind(-1)
    return torch.stack([a + 0.1 * b, 0.9 * b + 0.1 * (a - a**3 + (1 + 0.1 * a) * u[..., 0])], -1)


PRIORS: dict[str, Callable[[], tuple[KnownPart, Box, int]]] = {
    "double-integrator": lambda: (DoubleIntegrator().prior(), _product(DoubleIntegrator()), 2),
    "pendulum": lambda: (Pendulum().prior(), _product(Pendulum()), 2),
    "pendulum-repeat-3": lambda: (Pendulum(action_repeat=3).prior(), _product(Pendulum()), 2),
    "cartpole": lambda: (CartPole().prior(), _product(CartPole()), 4),
    "cartpole-repeat-2": lambda: (CartPole(action_repeat=2).prior(), _product(CartPole()), 4),
    "cartpole-local": lambda: (CartPoleLocal(CartPole().prior()), _product(CartPole()), 4),
    "simple-pendulum": lambda: (SimplePendulum().prior(), _product(SimplePendulum()), 2),
    "safe-cartpole": lambda: (SafeCartPole().prior(), Box(-_SAFE_CARTPOLE, _SAFE_CARTPOLE), 4),
    "safe-cartpole-local": lambda: (
        SafeCartPoleLocal(SafeCartPole().prior()),
        Box(-_SAFE_CARTPOLE, _SAFE_CARTPOLE),
        4,
    ),
    "two-link-arm": lambda: (TwoLinkArm().prior(), Box(-_ARM, _ARM), 8),
    "drone": lambda: (Drone().prior(), Box(-_DRONE, _DRONE), 12),
    "derived": lambda: (derived_known(_waves, states=_CUBE[0], inputs=_CUBE[1]), _CUBE[2], 2),
    "derived-saturated": lambda: (
        derived_known(_duffing, states=_CUBE[0], inputs=_CUBE[1], saturated=True),
        _CUBE[2],
        2,
    ),
    "reference-1d": lambda: (reference_1d().known, reference_1d().region, 1),
    "reference-pendulum": lambda: (reference_pendulum().known, reference_pendulum().region, 2),
}


def _product(system: System) -> Box:
    boxes = (system.state_box, system.input_box)
    return Box(torch.cat([b.lower for b in boxes]), torch.cat([b.upper for b in boxes]))


def rollout(system: System, *, seed: int, steps: int) -> Tensor:
    """States (steps + 1, nx) under random inputs and noise, both from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    x = system.initial_state
    states = [x]
    for _ in range(steps):
        u = system.input_box.sample(1, generator)[0]
        x = system.mean(x, u) + sample_noise(system.noise_std, (), generator)
        states.append(x)
    return torch.stack(states)


def is_pure(system: System, *, seed: int) -> bool:
    """Equal arguments give bit-equal means, in any order of the calls."""
    generator = torch.Generator().manual_seed(seed)
    x, u = system.state_box.sample(7, generator), system.input_box.sample(7, generator)
    first = system.mean(x, u)
    system.mean(-x, u)
    return torch.equal(first, system.mean(x.clone(), u.clone()))


def noisy_mean(system: System) -> CallableSystem:
    """A broken copy whose mean draws noise of its own."""
    hidden = torch.Generator().manual_seed(0)

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        return system.mean(x, u) + 1e-9 * torch.randn(x.shape, dtype=x.dtype, generator=hidden)

    return CallableSystem(
        name="noisy",
        nx=system.nx,
        nu=system.nu,
        state_box=system.state_box,
        input_box=system.input_box,
        noise_std=system.noise_std,
        initial_state=system.initial_state,
        horizon=system.horizon,
        cost=system.cost,
        budget=system.budget,
        dynamics=dynamics,
        reward_fn=system.reward,
    )


def boxes(box: Box, *, seed: int, count: int = 64) -> tuple[Tensor, Tensor]:
    """Random sub-boxes of a slightly enlarged box, from points to nearly everything: (count, d) ×2."""
    generator = torch.Generator().manual_seed(seed)
    wide = Box(box.center - 1.3 * box.radius, box.center + 1.3 * box.radius)
    a, b = wide.sample(count, generator), wide.sample(count, generator)
    shrink = torch.rand(count, 1, dtype=torch.float64, generator=generator) ** 3
    b = a + shrink * (b - a)
    return torch.minimum(a, b), torch.maximum(a, b)


def enclosure_gap(cost: Cost, lower: Tensor, upper: Tensor, *, seed: int, samples: int = 200) -> float:
    """Largest excess of sampled costs over `cost.upper`, or of `cost.lower` over them; ≤ 0 is right."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(samples, *lower.shape, dtype=torch.float64, generator=generator)
    corner = torch.rand(samples, 1, 1, dtype=torch.float64, generator=generator) < 0.5
    unit = torch.where(corner, unit.round(), unit)
    points = torch.where(unit == 1.0, upper, lower + unit * (upper - lower))
    points = torch.minimum(torch.maximum(points, lower), upper)
    values = cost(points)
    above = (values.amax(0) - cost.upper(lower, upper)).max()
    below = (cost.lower(lower, upper) - values.amin(0)).max()
    return float(torch.maximum(above, below))


def taylor_gap(known: Callable[[Tensor, Tensor], Tensor], bound: Tensor, box: Box, nx: int, *, seed: int) -> float:
    """Largest excess of |p(z + δ) − p(z) − ∇p(z)δ| over ½ Σ_jk H_jk |δ_j δ_k| at random z, δ; ≤ 0 is right.

    Half of the displacements move along one or two axes only, where the bound is tightest.
    """
    generator = torch.Generator().manual_seed(seed)
    count = 400
    z = box.sample(count, generator)
    direction = torch.randn(count, box.dim, dtype=torch.float64, generator=generator) * box.radius
    sparse = torch.rand(count, box.dim, dtype=torch.float64, generator=generator) < 1.5 / box.dim
    direction = torch.where(torch.arange(count)[:, None] % 2 == 0, direction * sparse, direction)
    length = 10.0 ** (-3 * torch.rand(count, 1, dtype=torch.float64, generator=generator))
    delta = direction * length

    def step(point: Tensor) -> Tensor:
        return known(point[:nx], point[nx:])

    _, slope = torch.func.vmap(lambda p, v: torch.func.jvp(step, (p,), (v,)))(z, delta)
    ends = torch.func.vmap(step)
    error = (ends(z + delta) - ends(z) - slope).abs()
    allowed = 0.5 * torch.einsum("ijk,nj,nk->ni", bound, delta.abs(), delta.abs())
    return float((error - allowed).max())
