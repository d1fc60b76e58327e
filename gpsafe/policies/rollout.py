"""Closed-loop simulation, batched over policies and noise paths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpsafe.data import Transitions
from gpsafe.policies.finite import PolicyClass, inputs_at

Dynamics = Callable[[Tensor, Tensor], Tensor]


def closed_loop(mean: Dynamics, policies: PolicyClass, x0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Trajectories of x⁺ = mean(x, π(x)) + w.

    Args:
        mean: (x, u) → x⁺ without noise.
        policies: P policies.
        x0: (nx,) or broadcastable to (P, N, nx).
        noise: (T, P or 1, N, nx).

    Returns:
        states (P, N, T + 1, nx) and inputs (P, N, T, nu).
    """
    steps, _, paths, nx = noise.shape
    x = x0.expand(policies.num, paths, nx)
    states, inputs = [x], []
    for t in range(steps):
        u = inputs_at(policies, x)
        x = mean(x.clone(), u.clone()) + noise[t]  # of copies, as `inputs_at`: what was recorded stays
        states.append(x)
        inputs.append(u)
    return torch.stack(states, dim=-2), torch.stack(inputs, dim=-2)


def one_episode(mean: Dynamics, policy: Callable[[Tensor], Tensor], x0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One trajectory of x⁺ = mean(x, π(x)) + w under a policy that may remember: it is asked once a step, in order.

    Args:
        mean: (x, u) → x⁺ without noise.
        policy: x (nx,) → u (nu,).
        x0: (nx,).
        noise: (T, nx).

    Returns:
        states (T + 1, nx) and inputs (T, nu).
    """
    x, states, inputs = x0, [x0], []
    for w in noise:
        u = policy(x.clone())
        x = mean(x.clone(), u.clone()) + w
        states.append(x)
        inputs.append(u)
    return torch.stack(states), torch.stack(inputs)


def transitions(states: Tensor, inputs: Tensor) -> Transitions:
    """All transitions of trajectories states (*b, T + 1, nx), inputs (*b, T, nu)."""
    nx, nu = states.shape[-1], inputs.shape[-1]
    return Transitions(states[..., :-1, :].reshape(-1, nx), inputs.reshape(-1, nu), states[..., 1:, :].reshape(-1, nx))
