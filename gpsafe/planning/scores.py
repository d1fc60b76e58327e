"""What a planner maximises: imagined returns, intrinsic reward, and the price of leaving the constraint.

Everything here is sampled and heuristic. "Pessimism" over particles is no bound: it may steer proposals, and only a
verifier that never sees these numbers may call a plan safe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models.base import DynamicsModel
from gpsafe.systems.base import HalfspaceCost

Reward = Callable[[Tensor, Tensor], Tensor]
STD_FLOOR = 1e-4  # of the aleatoric std in the intrinsic reward, units of the state (as published)


@dataclass(frozen=True, slots=True, eq=False)
class Imagined:
    """Imagined trajectories of K sequences and P particles.

    Attributes:
        states: x_1 … x_H, (K, P, H, nx).
        std: epistemic std at (x_t, u_t), t = 0 … H − 1, (K, P, H, nx).
        noise_std: aleatoric, (nx,).
    """

    states: Tensor
    std: Tensor
    noise_std: Tensor


def imagine(
    model: DynamicsModel,
    x0: Tensor,
    actions: Tensor,
    *,
    particles: int = 1,
    beta: float = 0.0,
    generator: torch.Generator | None = None,
    tail: Callable[[Tensor], Tensor] | None = None,
    tail_steps: int = 0,
) -> Imagined:
    """Rolls K action sequences out from x0 under the model.

    x_{t+1} = mean + β σ η_t + β σ ξ_t + noise_std ζ_t, ξ, ζ ~ N(0, I) fresh in every step and particle, the same for
    all K sequences (common random numbers: sequences are compared on equal luck). Without a generator ξ = ζ = 0: the
    mean rollout. η_t = 0 unless `actions` carries nx more columns, which are then the hallucinated inputs of H-UCRL in
    [−1, 1] (theirs replaces ξ, so ξ = 0). The marginals of one step are those of the posterior; a trajectory is not
    that of one posterior function, since ξ is drawn anew when a point is visited again.

    Args:
        x0: (nx,).
        actions: (K, H, nu) or (K, H, nu + nx).
        particles: P.
        beta: factor on the epistemic std; 1 is a plain posterior draw.
        generator: None for the mean rollout.
        tail: policy x → u that takes over after the H actions, for `tail_steps` steps.
    """
    K, H, columns = actions.shape
    nx, nu = model.nx, model.nu
    if columns not in (nu, nu + nx):
        raise _require.fail("imagine", f"actions with {nu} or {nu + nx} columns", columns)
    _require.count("imagine", "particles", particles)
    hallucinated = columns > nu
    x = x0.to(actions).expand(K, particles, nx)
    states, stds, noise_std = [], [], actions.new_zeros(nx)
    for t in range(H + tail_steps):
        planned = t < H
        step = actions[:, min(t, H - 1), None, :].expand(K, particles, columns)
        u = step[..., :nu] if planned or tail is None else tail(x)
        prediction = model.predict(x, u)
        std, noise_std = prediction.std, prediction.noise_std
        x = prediction.mean
        if hallucinated and planned:
            x = x + beta * std * step[..., nu:]
        if generator is not None:
            draws = torch.randn(2, particles, nx, dtype=torch.float64, generator=generator, device=generator.device)
            x = x + noise_std * draws[1]
            if not hallucinated:
                x = torch.addcmul(x, std, beta * draws[0])
        states.append(x)
        stds.append(std)
    return Imagined(torch.stack(states, dim=-2), torch.stack(stds, dim=-2), noise_std)


def intrinsic_reward(std: Tensor, noise_std: Tensor) -> Tensor:
    """Σ_j log(1 + (σ_j / max(noise_std_j, 1e-4))²), (*b, nx) → (*b,): the information one observation gives, times two."""
    return (std / noise_std.clamp_min(STD_FLOOR)).square().log1p().sum(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """A number per trajectory that should be ≤ 0, from the excess e_t = max_i (normal_i·x_t − offset_i) of a cost.

    Forms, with margin m ≥ 0: "mean-excess" mean_t max(e_t + m, −m), published for the pendulum figure (a step with
    room to spare pays for a later excess, up to m a step: one reason why the published run leaves its bound);
    "sum-excess" Σ_t max(e_t + m, 0); "indicator" mean_t 1{e_t > −m}; "worst" max_t (e_t + m).
    """

    cost: HalfspaceCost
    margin: float = 1e-3
    form: Literal["mean-excess", "sum-excess", "indicator", "worst"] = "mean-excess"

    def __post_init__(self) -> None:
        _require.nonnegative("Constraint", "margin", self.margin)
        _require.one_of("Constraint", "form", self.form, ("mean-excess", "sum-excess", "indicator", "worst"))

    def __call__(self, states: Tensor) -> Tensor:
        """(*b, H, nx) → (*b,)."""
        excess = self.cost.excess(states).amax(-1) + self.margin
        if self.form == "mean-excess":
            return excess.clamp_min(-self.margin).mean(-1)
        if self.form == "sum-excess":
            return excess.clamp_min(0.0).sum(-1)
        if self.form == "indicator":
            return (excess > 0).to(excess.dtype).mean(-1)
        return excess.amax(-1)


def penalised_return(
    imagined: Imagined,
    actions: Tensor,
    *,
    reward: Reward | None,
    extrinsic: float,
    intrinsic: float,
    constraint: Constraint | None,
    penalty: float,
    over_particles: Literal["max", "mean"] = "max",
) -> Tensor:
    """max_p (or mean_p) mean_t (w_e r(x_{t+1}, u_t) + w_i r_int) − penalty · (max_p constraint)₊, (K,).

    Returns run over the H actions; the constraint sees all imagined states, those of a tail too.

    Args:
        imagined: of K sequences, P particles.
        actions: (K, H, nu).
        reward: extrinsic reward; needed if `extrinsic` is not 0.
        constraint: None: unconstrained.
        penalty: λ.
        over_particles: "max" is the published optimism.
    """
    H = actions.shape[1]
    total = imagined.states.new_zeros(imagined.states.shape[:2])
    if extrinsic:
        if reward is None:
            raise _require.fail("penalised_return", "a reward function for extrinsic != 0", None)
        states = imagined.states[:, :, :H]
        total = total + extrinsic * reward(states, actions[:, None].expand(*states.shape[:-1], -1)).mean(-1)
    if intrinsic:
        total = total + intrinsic * intrinsic_reward(imagined.std[:, :, :H], imagined.noise_std).mean(-1)
    value = total.amax(-1) if over_particles == "max" else total.mean(-1)
    if constraint is not None:
        value = value - penalty * constraint(imagined.states).amax(-1).clamp_min(0.0)
    return value
