"""Small certification problems, made once per process: a linear plant, a trained ensemble, a Gaussian process."""

import math
from functools import lru_cache

import torch

from gpsafe.certify import CertificationProblem, Proposal
from gpsafe.data import Transitions
from gpsafe.models import Ensemble, Training, identity_prior
from gpsafe.sets import Box, Polytope, convex_hull
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.known import pendulum_known
from gpsafe.tube import EnsembleTube, LinearTube, constant_gain, lqr_gain

# The Simple Pendulum of the published X-MPSC experiments (step corrected: it returns the new state); θ = 0 upright.
PENDULUM = pendulum_known(
    gravity=10.0, gain=1 / 0.33, damping=0.1 / 0.33, dt=0.1, hanging_at_zero=False, semi_implicit=True
)
PENDULUM_STATES = Box(
    torch.tensor([0.25 * math.pi, -8.0], dtype=torch.float64),
    torch.tensor([2.0833 * math.pi, 8.0], dtype=torch.float64),
)
PENDULUM_INPUTS = Box(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64))


def plan(*inputs: float) -> torch.Tensor:
    """Inputs of a one-input plan, (T, 1)."""
    return torch.tensor(inputs, dtype=torch.float64).unsqueeze(-1)


def propose(inputs: torch.Tensor, *, status: str = "Solve_Succeeded", slack: float = -1.0) -> Proposal:
    """A proposal by hand."""
    return Proposal(inputs, status, 1, 0.0, "by hand", slack)


def double_integrator(*, steps: int = 8, disturbance: tuple[float, float] = (0.005, 0.02)) -> CertificationProblem:
    """|p|, |v| ≤ 1, |u| ≤ 1, dt = 0.1, LQR; the terminal set is a box about 0 (not claimed to be invariant)."""
    plant = DoubleIntegrator().prior(mass_error=0.0)
    model = LinearTube(plant, torch.tensor(disturbance, dtype=torch.float64))
    box = Box(-torch.ones(2).double(), torch.ones(2).double())
    inner = Box(-0.5 * torch.ones(2).double(), 0.5 * torch.ones(2).double())
    return CertificationProblem(
        model,
        Polytope.of_box(box),
        Polytope.of_box(PENDULUM_INPUTS),
        Polytope.of_box(inner),
        lqr_gain(plant.A, plant.B),
        steps,
    )


def pendulum_data(count: int, seed: int = 0, *, noise: float = 0.02) -> Transitions:
    """Uniform states and inputs of the state box, one step each, Gaussian noise."""
    generator = torch.Generator().manual_seed(seed)
    x, u = PENDULUM_STATES.sample(count, generator), PENDULUM_INPUTS.sample(count, generator)
    w = noise * torch.randn(count, 2, dtype=torch.float64, generator=generator)
    return Transitions(x, u, PENDULUM(x, u) + w)


@lru_cache(maxsize=4)
def pendulum_ensemble(members: int = 3, width: int = 10, *, count: int = 1500, steps: int = 1500) -> Ensemble:
    """Difference targets, spread limits 1e-3 … 1e-1, as published; small."""
    model = Ensemble.create(
        2,
        1,
        generator=torch.Generator().manual_seed(1),
        members=members,
        hidden=(width, width),
        prior=identity_prior,
        training=Training(epochs=1, steps=steps),
    )
    return model.condition(pendulum_data(count))


def pendulum_terminal(facets: int = 12) -> Polytope:
    """A hull with `facets` facets about the hanging position, where the published episodes start."""
    angles = torch.arange(facets, dtype=torch.float64) * (2 * math.pi / facets)
    ring = torch.stack([math.pi + 0.25 * math.pi * angles.cos(), 1.2 * angles.sin()], dim=-1)
    return convex_hull(ring)


def ensemble_pendulum(*, members: int = 3, width: int = 10, steps: int = 4) -> CertificationProblem:
    """The published problem in paper mode: K = −0.5·1, 12 terminal facets, T = steps (N = steps + 1)."""
    return CertificationProblem(
        EnsembleTube.paper(pendulum_ensemble(members, width)),
        Polytope.of_box(PENDULUM_STATES),
        Polytope.of_box(PENDULUM_INPUTS),
        pendulum_terminal(),
        constant_gain(0.5, 2, 1),
        steps,
    )
