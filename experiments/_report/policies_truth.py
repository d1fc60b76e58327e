"""Truth of `pendulum_policies.py`: J_c(π, f*) by rigorous sweeps with the true f, and the states that policies reach."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet
from gpsafe.cost.grid import Grid
from gpsafe.cost.pruned import windowed
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.policies import PolicyClass
from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task


@dataclass(frozen=True, slots=True, eq=False)
class SeparableResidual:
    """Σ_i w_i k(z_i, z) of an RBF kernel at z = (x_n, u_pn): exp factors over x and u, so that x is paid for once.

    k = κ² e^{−|x−a|²/2} e^{−(u−b)²/2} in scaled coordinates, centres on a product grid: per x the sum over a is a vector
    over the distinct b.
    """

    function: RKHSFunction

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """x (N, nx), u (P, N, 1) → (P, N). Equal to the function up to rounding."""
        form = kernels.stationary(self.function.kernel)
        assert form is not None and form.dims is None
        centers, nx = self.function.centers, x.shape[-1]
        levels, which = torch.unique(centers[:, nx], return_inverse=True)
        scale = form.lengthscale.reshape(-1)
        near = torch.exp(-0.5 * ((x / scale[:nx]).unsqueeze(1) - centers[:, :nx] / scale[:nx]).square().sum(-1))
        weights = torch.zeros(len(centers), len(levels), dtype=torch.float64)
        weights[torch.arange(len(centers)), which] = self.function.weights * form.variance
        per_level = near @ weights
        total = torch.zeros_like(u[..., 0])
        for i, level in enumerate(levels):
            total += per_level[:, i] * torch.exp(-0.5 * ((u[..., 0] - level) / scale[nx]).square())
        return total


BOX = Box(torch.tensor([-1.6, -5.0], dtype=torch.float64), torch.tensor([1.6, 5.0], dtype=torch.float64))
VISITED = Grid(BOX, (32, 25))  # 0.1 rad × 0.4 rad/s


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What the true plant does under each of P policies.

    Attributes:
        lower, upper: J_c(π, f*) ∈ [lower, upper] by sweeps, (P,).
        estimate: of J_c by Monte Carlo, which chose the side to compute, (P,).
        reward: estimate of J_r, (P,).
        visits: share of paths that visit each cell of `VISITED`, in 255ths, (P, cells) bytes.
    """

    lower: Tensor
    upper: Tensor
    estimate: Tensor
    reward: Tensor
    visits: Tensor

    def safe(self, budget: float) -> Tensor:
        """Proved safe."""
        return self.upper <= budget

    def unsafe(self, budget: float) -> Tensor:
        """Proved unsafe."""
        return self.lower > budget


def paths(system: RKHSTwin, policies: PolicyClass, *, count: int, seed: int) -> Tensor:
    """True closed-loop states, common noise, (P, count, T, nx)."""
    noise = sample_noise(system.noise_std, (system.horizon, 1, count), torch.Generator().manual_seed(seed))
    return closed_loop(system.mean, policies, system.initial_state, noise)[0][..., :-1, :]


def visited(states: Tensor) -> Tensor:
    """Share of the paths (P, K, T, nx) that enter each cell of `VISITED`, in 255ths, (P, cells) bytes."""
    cell = VISITED.index(states) + 1  # 0: outside
    seen = torch.zeros(*cell.shape[:2], VISITED.num + 1, dtype=torch.bool)
    seen.scatter_(-1, cell, True)
    return (seen[..., 1:].double().mean(1) * 255).round().to(torch.uint8)


def true_costs(
    system: RKHSTwin,
    grid: Grid,
    confidence: ConfidenceSet,
    policies: PolicyClass,
    *,
    region: tuple[Tensor, Tensor],
    seed: int,
    count: int = 64,
) -> Truth:
    """Sweeps with l = h = f*: the upper side where Monte Carlo says safe, the lower where it says unsafe, both between.

    Args:
        confidence: any set with the plant's B and known part (its intervals are replaced by f*).
        region: a box that each policy's window includes, (P, nx) twice.
    """
    dp = RobustDP(grid, Task.of(system))
    upper = torch.full((policies.num,), system.horizon * system.cost.ceiling, dtype=torch.float64)
    lower, estimate, reward = torch.zeros_like(upper), torch.zeros_like(upper), torch.zeros_like(upper)
    visits = torch.zeros(policies.num, VISITED.num, dtype=torch.uint8)
    for index in torch.arange(policies.num).split(256):
        states = paths(system, policies.select(index), count=count, seed=seed)
        estimate[index] = system.cost(states).sum(-1).mean(-1)
        inputs = policies.select(index)(states.flatten(1, 2)).unflatten(1, (count, -1))
        reward[index] = system.reward(states, inputs).sum(-1).mean(-1)
        visits[index] = visited(states)
        low = torch.minimum(states.amin((1, 2)), region[0][index])
        high = torch.maximum(states.amax((1, 2)), region[1][index])
        for program, group in windowed(dp, low, high, margin=12):
            part = index[group]
            lower[part], upper[part] = both_sides(system, program, confidence, policies.select(part), estimate[part])
    return Truth(lower, upper, estimate, reward, visits)


def both_sides(
    system: RKHSTwin, program: RobustDP, confidence: ConfidenceSet, policies: PolicyClass, estimate: Tensor
) -> tuple[Tensor, Tensor]:
    """J_c(π, f*) ∈ [lower, upper], (P,) each, on the program's grid; a side that the estimate makes hopeless is trivial."""
    residual = SeparableResidual(system.residual[0])
    upper = torch.full((policies.num,), system.horizon * system.cost.ceiling, dtype=torch.float64)
    lower = torch.zeros_like(upper)
    for part in torch.arange(policies.num).split(max(1, program.chunk // program.grid.num)):
        enclosure = program.enclosure(confidence, policies.select(part))
        value = residual(enclosure.centers, enclosure.z[..., enclosure.centers.shape[-1] :])
        exact = enclosure.with_residual(value.unsqueeze(-1))
        below, above = estimate[part] < 4 * system.budget, estimate[part] > 0.25 * system.budget
        if bool(below.any()):
            upper[part[below]] = program.upper(exact.select(below)) * (1 + 1e-9) + 1e-9
        if bool(above.any()):
            lower[part[above]] = program.lower(exact.select(above)) - 1e-9
    return lower, upper
