"""Confidence sets with known members, for tests of cost bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import RKHSFunction
from gpsafe.rollout import closed_loop, transitions
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import (
    reference_1d,
    reference_1d_policies,
    reference_pendulum,
    reference_pendulum_policies,
)
from gpsafe.systems.rkhs_twin import RKHSTwin


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
        s = self.system
        return {
            "initial_state": s.initial_state,
            "horizon": s.horizon,
            "cost": s.cost,
            "noise_std": s.noise_std,
            "seed": 11,
        }

    def choose(self, *index: int) -> AffinePolicies:
        return self.policies.select(torch.tensor(index))


def make_case(name: str, runs: tuple[int, ...], seed: int = 0, *, norm_factor: float = 1.0) -> Case:
    """F_n after episodes of the policies `runs`; `norm_factor` scales the claimed B."""
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


def extremal_member(case: Case, z: Tensor, sign: float, *, norm: float | None = None) -> RKHSFunction:
    """f = μ_n ± s k_n(z, ·) with the largest s ≤ β/σ_n(z) that keeps ‖f‖_k ≤ B: a member of the set at its edge near z.

    ‖V^{1/2}k_n(z, ·)‖ = √λ σ_n(z), so |ℓf − ℓμ_n| ≤ β sd_post[ℓ] for every functional ℓ; k_n(z, ·) = k(z, ·) −
    Σ q_i k(x_i, ·) with q = (K + λI)⁻¹k_n(z).
    """
    model = case.confidence.model
    beta = float(case.confidence.bound.beta(model)[0])
    limit = float(case.system.rkhs_norm[0]) if norm is None else norm
    kernel, z = model.kernels[0], z.reshape(1, -1)
    if model.inputs is None:
        unit = RKHSFunction(kernel, z, torch.tensor([sign], dtype=torch.float64))
        return unit.scaled_to(limit)
    gram = kernel(model.inputs, model.inputs).to_dense()
    gram = gram + float(model.regularizer[0]) * torch.eye(len(gram), dtype=torch.float64)
    section = torch.linalg.solve(gram, kernel(model.inputs, z).to_dense())[:, 0]
    centers = torch.cat([model.inputs, z])
    one = torch.ones(1, dtype=torch.float64)

    def member(scale: float) -> RKHSFunction:
        weights = torch.cat([model.weights[:, 0] - scale * section, scale * one])
        return RKHSFunction(kernel, centers, weights)

    full = sign * beta / float(model.posterior(z)[1].clamp_min(1e-9))
    low, high = 0.0, 1.0
    if member(full).norm_upper <= limit:
        return member(full)
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if member(middle * full).norm_upper <= limit else (low, middle)
    return member(low * full)


def trajectories(case: Case, f, policies: AffinePolicies, noise: Tensor) -> Tensor:
    """States (P, N, T + 1, nx) of known + f, f: z → (*b,) for the single learned output."""
    model = case.confidence.model

    def mean(x: Tensor, u: Tensor) -> Tensor:
        return model.prior(x, u) + model.embed(f(torch.cat([x, u], dim=-1)).unsqueeze(-1))

    return closed_loop(mean, policies, case.system.initial_state, noise)[0]
