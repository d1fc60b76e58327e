"""Confidence sets with known members, for tests of cost bounds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture, members
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.rkhs import RKHSFunction
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import (
    reference_1d,
    reference_1d_policies,
    reference_pendulum,
    reference_pendulum_policies,
)
from gpsafe.systems.rkhs_twin import RKHSTwin
from gpsafe.systems.task import Task


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Case:
    """A plant, its policies, and the confidence set after some runs."""

    system: RKHSTwin
    policies: AffinePolicies
    confidence: ConfidenceSet

    @property
    def task(self) -> dict:
        return {"task": Task.of(self.system), "seed": 11}

    def task_with(self, **changes) -> dict:
        return {**self.task, "task": Task.of(self.system).with_(**changes)}

    def choose(self, *index: int) -> AffinePolicies:
        return self.policies.select(torch.tensor(index))


@cache
def make_case(name: str, runs: tuple[int, ...], seed: int = 0, *, norm_factor: float = 1.0) -> Case:
    """F_n after episodes of the policies `runs`; `norm_factor` scales the claimed B. Made once: nobody changes it."""
    system, (policies, _) = (
        (reference_1d(), reference_1d_policies())
        if name == "1d"
        else (reference_pendulum(), reference_pendulum_policies())
    )
    regularizer = float(system.noise_std[list(system.outputs)][0]) ** 2
    model = GP.create(
        system.kernels,
        regularizer,
        nx=system.nx,
        nu=1,
        noise_std=system.noise_std,
        outputs=system.outputs,
        prior=system.known,
    )
    norm = tuple((norm_factor * system.rkhs_norm).tolist())
    confidence = ConfidenceSet(Mixture(rkhs_norm=norm, subgaussian=regularizer**0.5, delta=0.1)).update(model)
    g = generator(seed)
    for index in runs:
        noise = sample_noise(system.noise_std, (system.horizon, 1, 1), g)
        states, inputs = closed_loop(system.mean, policies.select(torch.tensor([index])), system.initial_state, noise)
        model = model.condition(transitions(states[0, 0], inputs[0, 0]))
        confidence = confidence.update(model)
    return Case(system, policies, confidence)


def extremal_member(case: Case, z: Tensor, sign: float) -> RKHSFunction:
    """A member at the edge of the newest posterior's set, see `gpsafe.confidence.members`."""
    return members.extremal_member(case.confidence.bound, case.confidence.model, z, sign)


def alone(case: Case) -> Case:
    """The same with the newest posterior only, so that its extremal members are members."""
    confidence = ConfidenceSet(case.confidence.bound).update(case.confidence.model)
    return Case(case.system, case.policies, confidence)


def trajectories(case: Case, f, policies: AffinePolicies, noise: Tensor) -> Tensor:
    """States (P, N, T + 1, nx) of known + f, f: z → (*b,) for the single learned output."""
    model = case.confidence.model

    def mean(x: Tensor, u: Tensor) -> Tensor:
        return model.prior(x, u) + model.embed(f(torch.cat([x, u], dim=-1)).unsqueeze(-1))

    return closed_loop(mean, policies, case.system.initial_state, noise)[0]
