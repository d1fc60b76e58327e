"""What the experiments on a line share: cheap one-dimensional tasks on which everything can be computed.

x⁺ = x + 0.25u + f(x, u) + w with cost 1{x > 1}; policies are set-points g, u = clip(3(g − x), ±1). f has exactly known
RKHS norm, and the truth of every policy is enclosed by two sweeps with f itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import rkhs
from gpsafe.algorithms.actsafe import ActSafe, ActSafeRun
from gpsafe.confidence import ConfidenceBound, ConfidenceSet, Mixture
from gpsafe.confidence.history import posterior_history
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies, set_point_policies
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.sets import Box
from gpsafe.systems.base import CallableSystem, IndicatorCost, is_violation
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.rkhs_twin import RKHSTwin, exact_twin
from gpsafe.systems.task import Task

NORM = 4.0
NOISE = 0.03
KERNEL = kernels.rbf([0.4, 2.0], variance=0.05**2)
KNOWN = AffineKnown(vector(1.0).reshape(1, 1), vector(0.25).reshape(1, 1), vector(0.0))
INPUTS = Box(vector(-1.0), vector(1.0))
STATES = Box(vector(-0.8), vector(1.8))
BUDGET = 0.2


def set_points(targets: Sequence[float] | Tensor) -> AffinePolicies:
    """u = clip(3(g − x), ±1), one policy for each g."""
    goals = torch.as_tensor(targets, dtype=torch.float64)
    zero = torch.zeros(len(goals), 1, dtype=torch.float64)
    return set_point_policies(goals[:, None], vector(3.0).reshape(1, 1), zero, INPUTS)


def plant(residual: RKHSFunction, *, noise_std: float = NOISE, horizon: int = 10, target: float = 1.0) -> RKHSTwin:
    """x⁺ = x + 0.25u + f(x, u) + w, x₀ = 0, reward −|x − target|."""

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        return KNOWN(x, u) + residual(torch.cat([x, u], dim=-1)).unsqueeze(-1)

    physics = CallableSystem(
        name="line",
        nx=1,
        nu=1,
        state_box=STATES,
        input_box=INPUTS,
        noise_std=vector(noise_std),
        initial_state=vector(0.0),
        horizon=horizon,
        cost=IndicatorCost(vector(1.0).reshape(1, 1), vector(1.0)),
        budget=BUDGET,
        dynamics=dynamics,
        reward_fn=lambda x, u: -(x[..., 0] - target).abs(),
    )
    return exact_twin(physics, KNOWN, residual=(residual,), outputs=(0,), test_points=16)


def typical(generator: torch.Generator) -> RKHSFunction:
    """A random function of norm exactly `NORM`: 30 uniform centres, normal weights."""
    lower, upper = vector(-0.8, -1.0), vector(1.8, 1.0)
    return rkhs.random_function(KERNEL, lower, upper, norm=NORM, generator=generator)


def dormant(generator: torch.Generator) -> RKHSFunction:
    """The worst kind of norm `NORM`: invisible below a random state, then as large as its norm allows, pushing outwards.

    With X a grid of states up to 0.35 … 0.7 below a peak z₀ near the limit, f is the element of least norm that is 0 on X
    and largest at z₀, scaled to the norm: f(z₀) = B σ_X(z₀), σ_X the noise-free posterior deviation on X.
    """
    draw = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
    peak, gap = 0.85 + 0.2 * draw[0], 0.35 + 0.35 * draw[1]
    quiet = rkhs.grid(vector(-0.4, -1.0), vector(peak - gap, 1.0), (10, 4))
    top = vector(peak, -0.4 + 0.6 * draw[2]).reshape(1, 2)
    points = torch.cat([quiet, top])
    values = torch.zeros(len(points), dtype=torch.float64)
    values[-1] = 1.0
    return rkhs.interpolate(KERNEL, points, values, ridge=1e-8).scaled_to(NORM)


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Rigorous ends of J_c(π, f*) for every policy, (P,)."""

    lower: Tensor
    upper: Tensor

    def safe(self, budget: float) -> Tensor:
        """Surely safe policies."""
        return self.upper <= budget

    def unsafe(self, budget: float) -> Tensor:
        """Surely unsafe policies."""
        return self.lower > budget


def program(system: RKHSTwin, cells: int) -> RobustDP:
    """The robust program of the task on [−0.8, 1.8]."""
    return RobustDP(Grid(system.state_box, (cells,)), Task.of(system))


def model(system: RKHSTwin, *, prior: AffineKnown | None = None) -> GP:
    """The learner's GP before data, λ = σ²."""
    noise = system.noise_std
    return GP.create(system.kernels, float(noise[0]) ** 2, nx=1, nu=1, noise_std=noise, prior=prior or system.known)


def sound_bound(system: RKHSTwin, *, delta: float = 0.1) -> Mixture:
    """The mixture bound with the true norm and noise."""
    return Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=float(system.noise_std[0]), delta=delta)


def truth(system: RKHSTwin, policies: AffinePolicies, *, cells: int = 1040) -> Truth:
    """J_c(π, f*) by an upper and a lower sweep with f*."""
    fine = program(system, cells)
    confidence = ConfidenceSet(sound_bound(system)).update(model(system))
    enclosure = fine.enclosure(confidence, policies)
    exact = enclosure.with_residual(system.residual_fn(enclosure.z))
    return Truth(fine.lower(exact), fine.upper(exact))


def probe() -> Tensor:
    """Points z at which f* ∈ F_n is looked up, (N, 2)."""
    return rkhs.grid(vector(-0.8, -1.0), vector(1.8, 1.0), (105, 9))


def escape(run: ActSafeRun, residual: RKHSFunction, *, episode: int) -> tuple[float, float]:
    """max over all generations n and probes of |f* − μ_n|/σ_n and of |f* − μ_n|/(β_n σ_n): > 1 means f* ∉ F_n.

    The first is the smallest constant β, the second the smallest multiple of the bound in use, that would have kept f*.

    Args:
        episode: data of an episode (generations grow by this many).
    """
    z = probe()
    newest = run.confidence.model
    assert isinstance(newest, GP)
    counts = list(range(0, newest.num_data + 1, episode))
    mean, std = posterior_history(newest, counts, z)
    needed = ((residual(z).unsqueeze(-1) - mean).abs() / std)[..., 0].amax(-1)  # (generations,)
    beta = torch.stack([run.confidence.bound.beta(g)[0] for g in run.confidence.generations])
    return float(needed.max()), float((needed / beta).max())


def outcome(algorithm: ActSafe, known: Truth, run: ActSafeRun, residual: RKHSFunction) -> dict[str, float | int | bool]:
    """What happened in one run, as a row."""
    budget = algorithm.system.budget
    unsafe, safe = known.unsafe(budget), known.safe(budget)
    executed = [episode.policy for episode in run.episodes]
    members = run.safe_set.members
    constant, ratio = escape(run, residual, episode=algorithm.system.horizon)
    z, first = probe(), run.confidence.model
    beyond = bool((residual(z).abs() > algorithm.bound.prior_width(first, z)[..., 0] * (1 + 1e-9)).any())
    return {
        "needed_beta": constant,
        "needed_scale": ratio,
        "escaped": ratio > 1.0 or beyond,  # beyond: |f*| exceeds B√k, which F_n never does
        "unsafe_members": int(unsafe[members].sum()),
        "unsafe_executed": int(unsafe[executed].sum()),
        "episodes": len(executed),
        "violating_steps": sum(int(episode.cost) for episode in run.episodes),
        "violating_episodes": sum(is_violation(episode.cost) for episode in run.episodes),
        "true_safe": int(safe.sum()),
        "true_unsafe": int(unsafe.sum()),
        "initial_unsafe": int(unsafe[run.safe_sets[0].members].sum()),
        "size": len(run.safe_set),
        "safe_members": int(safe[members].sum()),
        "falsified": run.falsified is not None,
    }


def with_bound(algorithm: ActSafe, bound: ConfidenceBound) -> ActSafe:
    """The same run with another confidence bound."""
    return algorithm.with_(bound=bound)
