"""What a user writes, through the face alone: a type checker must find nothing here. Read by test_user_code.py, never run."""

# ruff: noqa: F841, RUF059

from __future__ import annotations

import numpy as np
import torch

import gpsafe as gs
from gpsafe.models import from_gpytorch
from gpsafe.systems import DerivedCost, derived_known, from_ode


def user() -> None:
    # -- regression
    states = np.random.default_rng(0).normal(size=(21, 2)).astype(np.float32)
    kernel = gs.kernels.rbf([1.0, 2.0], 0.5)
    gp = gs.GP.regression(kernel, dim=2, noise_std=0.1).condition_on(torch.from_numpy(states), torch.zeros(21, 1))
    mean, std = gp.posterior(torch.zeros(5, 2))
    largest: float = float((mean + 2 * std).max())

    # -- a plant of one's own
    def pendulum(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[..., 1], torch.sin(x[..., 0]) + u[..., 0]], -1)

    step = from_ode(pendulum, dt=0.05, method="euler")
    plant = gs.plant(
        step,
        x0=[0.0, 0.0],
        states=([-2.0, -4.0], [2.0, 4.0]),
        inputs=([-1.0], [1.0]),
        horizon=20,
        noise_std=[1e-3, 1e-3],
        cost=DerivedCost(lambda x: x[..., 0].abs() - 1.0, nx=2),
    )
    known = derived_known(step, states=plant.state_box, inputs=plant.input_box)
    affine = gs.AffineKnown(torch.eye(2), torch.ones(2, 1), torch.zeros(2))
    twin = gs.twin(plant, affine, kernels=gs.kernels.rbf([1.0], 1.0, dims=[0]), outputs=(1,), counts=(5, 1, 1))

    # -- learners
    found = gs.estimate(states, np.zeros((20, 1)), prior=affine, outputs=[1])
    reason: str | None = found.heuristic
    learner = gs.sound_learner(twin, known, twin.kernels, twin.rkhs_norm, outputs=(1,))
    learner.learn(3)
    table = learner.logger.frame()
    policy = learner.ask()
    u: torch.Tensor = policy(np.zeros(2))
    learner.tell(np.zeros((3, 2)), np.zeros((2, 1)))
    again = gs.sound_learner(twin, known, found.declare(), seed=1)

    # -- certified sets of policies
    task = gs.Task.of(twin)
    theory = gs.GP.create(kernel, 0.01, nx=2, nu=0, noise_std=[0.1, 0.1])
    confidence = gs.ConfidenceSet(gs.Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)).update(theory)
    low, high = confidence.bounds(torch.zeros(3, 2))
    verdict = gs.Verdict(0.0, 0.5, 1.0)
    holds: bool = verdict.outcome is gs.Outcome.HOLDS
    box = gs.Box([-1.0, -1.0], [1.0, 1.0])
    polytope = gs.Polytope.of_box(box)
    inside: torch.Tensor = box.contains(torch.zeros(2))
    path = gs.save("model.npz", confidence)
    loaded = gs.load(path)
    version: str = gs.__version__
    model = from_gpytorch(object())
    ensemble: gs.Ensemble | None = None
    policies = gs.AffinePolicies(torch.zeros(3, 1), torch.zeros(3, 1, 2), gs.Box([-1.0], [1.0]))
    cost = gs.IndicatorCost(torch.eye(2), torch.ones(2))
