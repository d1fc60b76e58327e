"""Explorers: how the next policy is chosen from S_n."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpsafe.models.base import DynamicsModel
from gpsafe.policies import PolicyClass
from gpsafe.policies.rollout import closed_loop
from gpsafe.systems.base import System, sample_noise


def expected_return(
    system: System, model: DynamicsModel, policies: PolicyClass, *, generator: torch.Generator, paths: int = 32
) -> Tensor:
    """Monte-Carlo J_r(π, μ_n) of every policy under the posterior mean, common noise, (P,). An estimate, not a bound."""
    noise = sample_noise(system.noise_std, (system.horizon, 1, paths), generator)
    states, inputs = closed_loop(lambda x, u: model.predict(x, u).mean, policies, system.initial_state, noise)
    return system.reward(states[..., :-1, :], inputs).sum(-1).mean(-1)


def sufficient_episodes(
    *,
    epsilon: float,
    beta_of: float,
    horizon: int,
    ceiling: float,
    noise_std: Tensor,
    prior_std: Tensor,
    regularizer: float,
    domain_eigenvalues: Tensor,
    outputs: int,
) -> float:
    """n* of theory §4 (vi) for one round, in the mean, on a finite domain, by doubling: astronomically loose, to compare only.

    The smallest N (up to a factor 2) with (2Cβ(T−1)/(σ√2π)) κ √(A Γ_{NT}/N) ≤ ε, where
    κ = 1 + 2β(T−1)√p s_max/(σ√2π), A = 2T s²_max (1 + T s²_max/λ)/ln(1 + s²_max/λ), and Γ_M ≤ (p/2) Σ ln(1 + M e_i/λ)
    with e_i the eigenvalues of the Gram matrix of the domain (a design of M points on it has weights ≤ M).
    For the robust program: (iii) with its expectation under f* does not hold for the total-variation bound
    (`proofs_checks.actsafe_theory`).

    Args:
        beta_of: β taken constant (its own growth would only enlarge n*).
    """
    sigma, scale = float(noise_std.min()), float(prior_std.norm())
    root = sigma * math.sqrt(2 * math.pi)
    kappa = 1 + 2 * beta_of * (horizon - 1) * math.sqrt(outputs) * scale / root
    square = scale**2
    amplification = 2 * horizon * square * (1 + horizon * square / regularizer) / math.log1p(square / regularizer)
    episodes = 1.0
    while episodes < 1e40:
        gain = 0.5 * outputs * float(torch.log1p(episodes * horizon * domain_eigenvalues / regularizer).sum())
        gap = 2 * ceiling * beta_of * (horizon - 1) / root * kappa * math.sqrt(amplification * gain / episodes)
        if gap <= epsilon:
            return episodes
        episodes *= 2
    return math.inf
