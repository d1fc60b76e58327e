"""Small certification problems, made once per process: a linear plant, a trained ensemble, a Gaussian process."""

import math
from dataclasses import replace
from functools import lru_cache

import torch

from gpsafe.certify import CertificationProblem, Proposal
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.enclosure import jacobians
from gpsafe.data import Transitions
from gpsafe.models import GP, Ensemble, Training, identity_prior
from gpsafe.sets import Box, Polytope, convex_hull
from gpsafe.systems.base import sample_noise
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.known import SineKnown, pendulum_known
from gpsafe.systems.reference import reference_pendulum
from gpsafe.tube import EnsembleTube, GPTube, LinearTube, constant_gain, lqr_gain

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


@lru_cache(maxsize=2)
def gp_confidence(count: int = 60, seed: int = 0) -> ConfidenceSet:
    """F_n of the reference pendulum's RKHS twin after `count` random transitions (θ = 0 hangs)."""
    system = reference_pendulum()
    generator = torch.Generator().manual_seed(seed)
    x = Box(torch.tensor([-1.2, -4.0]).double(), torch.tensor([1.2, 4.0]).double()).sample(count, generator)
    u = PENDULUM_INPUTS.sample(count, generator)
    data = Transitions(x, u, system.mean(x, u) + sample_noise(system.noise_std, (count,), generator))
    noise_std = float(system.noise_std[1])
    model = GP.create(
        system.kernels,
        noise_std**2,
        nx=2,
        nu=1,
        noise_std=system.noise_std,
        outputs=system.outputs,
        prior=system.known,
    )
    bound = Mixture(rkhs_norm=tuple(system.rkhs_norm.tolist()), subgaussian=noise_std, delta=0.1)
    return ConfidenceSet(bound).update(model.condition(data))


def gp_pendulum(*, steps: int = 4, delta: float = 0.1, count: int = 60) -> CertificationProblem:
    """|θ| ≤ 1.2, |ω| ≤ 6, |u| ≤ 1 on the RKHS pendulum, sound GP tubes, LQR about the hanging rest."""
    system = reference_pendulum()
    zero = torch.zeros(1, 3, dtype=torch.float64)
    A, B = jacobians(system.known, zero[:, :2], zero[:, 2:])
    box = Box(torch.tensor([-1.2, -6.0]).double(), torch.tensor([1.2, 6.0]).double())
    inner = Box(torch.tensor([-0.6, -3.0]).double(), torch.tensor([0.6, 3.0]).double())
    return CertificationProblem(
        GPTube(gp_confidence(count), steps, delta),
        Polytope.of_box(box),
        Polytope.of_box(PENDULUM_INPUTS),
        Polytope.of_box(inner),
        lqr_gain(A[0], B[0], input_weight=torch.tensor([[10.0]]).double()),
        steps,
    )


def wave_problem(seed: int) -> tuple[CertificationProblem, torch.Tensor]:
    """x⁺ = x + 0.3u + a sin(fx + c) and almost no network, |u| ≤ 1, T = 4, a small terminal set near x_0: some have plans."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda: float(torch.rand(1, generator=g))  # noqa: E731
    frequency, amplitude, phase = 1 + 3 * draw(), 0.2 + 0.5 * draw(), 4 * draw() - 2
    one = _vector(1.0).reshape(1, 1)
    known = SineKnown(
        one, 0.3 * one, _vector(0.0), amplitude * one, _vector(frequency, 0.0).reshape(1, 2), _vector(phase)
    )
    made = Ensemble.create(1, 1, generator=g, members=1, hidden=(3,), prior=known)
    network = replace(made.network, weights=tuple(0.05 * w for w in made.network.weights))
    ensemble = replace(made, network=network, log_var_limits=_vector(-14.0, -12.0).reshape(2, 1))
    x0 = 6 * draw() - 3
    goal = x0 + 1.5 * (2 * draw() - 1)
    boxes = (Box(_vector(low), _vector(high)) for low, high in ((-6.0, 6.0), (-1.0, 1.0), (goal - 0.15, goal + 0.15)))
    sets = [Polytope.of_box(box) for box in boxes]
    model = EnsembleTube.paper(ensemble)
    return CertificationProblem(model, *sets, 0.1 * one, 4, tolerance=1e-6), _vector(x0)


def _vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=torch.float64)
