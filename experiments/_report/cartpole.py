"""The cart-pole of the budget experiments: plant, policies, model, confidence set, and the truth by simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpsafe.algorithms.receding import Initial
from gpsafe.confidence import Mixture
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import set_point_policies
from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.cartpole import CartPole
from gpsafe.systems.cartpole_local import CartPoleLocal
from gpsafe.systems.cartpole_policies import CartPolePolicies, hanging_lqr
from gpsafe.systems.rkhs_twin import RKHSTwin, twin

NOISE = (0.003, 1e-4, 4e-4, 1e-3)  # per step, times the noise factor: m, rad, m/s, rad/s
GAINS = ((1.0, 0.1), (1.0, 10.0), (4.0, 10.0), (2.0, 40.0), (8.0, 40.0))  # LQR weights of position and swing
SHARE = 0.1  # δ of the confidence set


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """Everything a run of ActSafe needs, in theory mode: frozen before any data."""

    plant: RKHSTwin
    family: CartPolePolicies
    initial: Tensor
    model: GP
    bound: Mixture


def near_rest(system: RKHSTwin, *, reach: float, position: float, swing: float) -> Initial:
    """S_0 of the shield's experiments: a random set-point within `reach` m of rest, by LQR of these weights."""
    gain = hanging_lqr(system.known, position=position, speed=0.1, swing=swing, effort=1.0)

    def start(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        goal = torch.zeros(1, 4, dtype=torch.float64)
        goal[0, 0] = reach * (2 * torch.rand((), dtype=torch.float64, generator=generator) - 1)
        policy = set_point_policies(goal, gain, torch.zeros(1, 1, dtype=torch.float64), system.input_box)
        return lambda x: policy(x.reshape(1, 1, 4))[0, 0]

    return start


def plant(*, noise: float, horizon: int, budget: float, stds: tuple[float, float, float, float] = NOISE) -> RKHSTwin:
    """RKHS twin of the cart-pole over |θ| ≤ 1, |ω| ≤ 3 (no policy of the family leaves it before it costs).

    Known part: masses 10 % and length 5 % too large. The errors of v⁺ and ω⁺ are learned; their kernel does not see x
    and v, which the dynamics do not depend on: RBF on (θ, ω, u), ℓ = (0.8, 6, 3), std 0.05 and 0.2.
    """
    physics = CartPole(speed_limit=4.0, horizon=horizon, budget=budget, noise_std=noise * vector(*stds))
    region = Box(vector(-3.0, -1.0, -5.0, -3.0, -1.0), vector(3.0, 1.0, 5.0, 3.0, 1.0))
    residuals = [kernels.rbf([0.8, 6.0, 3.0], variance=std**2, dims=(1, 3, 4)) for std in (0.05, 0.2)]
    return twin(
        physics,
        CartPoleLocal(physics.prior()),
        kernels=residuals,
        outputs=(2, 3),
        counts=(1, 9, 1, 6, 4),
        region=region,
        ridge=1e-9,
    )


def set_points(coarse: int, fine: int) -> Tensor:
    """`coarse` set-points from −0.2 to 1.2 m and `fine` ones up to 1.7 m, where costs begin."""
    first = torch.linspace(-0.2, 1.2, coarse, dtype=torch.float64)
    return torch.cat([first, torch.linspace(1.2, 1.7, fine + 1, dtype=torch.float64)[1:]])


def task(*, noise: float, horizon: int, budget: float, gains: int, coarse: int, fine: int, pumps: int) -> Setting:
    """The plant, a family of gains × pumps × set-points, S_0 = {no pump, |g| ≤ 0.25 m}, the empty GP."""
    system = plant(noise=noise, horizon=horizon, budget=budget)
    found = [hanging_lqr(system.known, position=q, speed=0.1, swing=s, effort=1.0) for q, s in GAINS[:gains]]
    family = CartPolePolicies.create(found, set_points(coarse, fine), (0.0, 0.2, -0.1)[:pumps])
    learned = list(system.outputs)
    model = GP.create(
        system.kernels,
        system.noise_std[learned].square(),
        nx=4,
        nu=1,
        noise_std=system.noise_std,
        outputs=system.outputs,
        prior=system.known,
    )
    norms, noises = system.rkhs_norm.tolist(), system.noise_std[learned].tolist()
    bound = Mixture(rkhs_norm=tuple(norms), subgaussian=tuple(noises), delta=SHARE)
    return Setting(system, family, family.near(0.25), model, bound)


def with_budget(given: Setting, budget: float) -> Setting:
    """The same task with another d."""
    system = given.plant
    physics = system.physics
    assert isinstance(physics, CartPole)
    return replace(given, plant=replace(system, physics=replace(physics, budget=budget)))


def travel(states: Tensor) -> Tensor:
    """Σ x_t over the steps of a trajectory (*b, T, 4), m: what going near the limit earns, and going beyond it too."""
    return states[..., 0].sum(-1)


def truth(system: RKHSTwin, family: CartPolePolicies, *, paths: int, seed: int) -> tuple[Tensor, Tensor]:
    """Σ c of every policy and path (P, N), and means of Σ r and of `travel` (P, 2), on the true plant."""
    generator = torch.Generator().manual_seed(seed)
    noise = sample_noise(system.noise_std, (system.horizon, 1, paths), generator)
    states, inputs = closed_loop(system.mean, family.policies, system.initial_state, noise)
    before = states[..., :-1, :]
    gains = torch.stack([system.reward(before, inputs).sum(-1).mean(-1), travel(before).mean(-1)], dim=-1)
    return system.cost(before).sum(-1), gains


def centre_returns(model: GP, system: RKHSTwin, family: CartPolePolicies, index: Tensor) -> Tensor:
    """Σ r and `travel` of the policies `index` along the posterior mean without noise, (m, 2): to choose, not to certify."""
    still = torch.zeros(system.horizon, 1, 1, 4, dtype=torch.float64)
    policies = family.policies.select(index)
    states, inputs = closed_loop(lambda x, u: model.predict(x, u).mean, policies, system.initial_state, still)
    before = states[:, 0, :-1, :]
    return torch.stack([system.reward(before, inputs[:, 0]).sum(-1), travel(before)], dim=-1)
