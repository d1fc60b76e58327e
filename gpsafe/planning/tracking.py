"""Plans from candidate inputs: nominal rollout, braking, and a feedback that keeps the plant near the nominal path.

Nothing here is trusted: whatever comes out is judged by `gpsafe.cost.plan_tube`. An open-loop plan lets every disturbance
grow, and a saturated brake has no feedback; a tube around either is soon too wide. So the brake is planned with
part of the input range, and the rest is left to a time-varying LQR gain around the nominal path,

    u_t(x) = clip(ū_t + K_t (x − x̄_t)),   K_t = −(R + BᵀPB)⁻¹BᵀPA,   P ← Q + AᵀPA + AᵀPBK (Riccati recursion),

with A, B the Jacobians of the posterior mean along (x̄_t, ū_t).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.confidence.functionals import differentiable, jet
from gpsafe.cost.enclosure import jacobians
from gpsafe.cost.plan_tube import Plans, PlanTube
from gpsafe.models.gp import GP
from gpsafe.models.low_rank import LowRankGP
from gpsafe.policies import PolicyClass


@short
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tracking:
    """How candidates are completed.

    Args:
        brakes: M policies that end a plan, along its nominal path; their inputs are scaled into `authority`.
        authority: (M,) or a number in (0, 1], share of the input range (about its middle) that each brake uses nominally.
        state_weight: Q, (nx,), the diagonal.
        input_weight: R, (nu,), the diagonal.
    """

    brakes: PolicyClass
    authority: Tensor | float
    state_weight: Tensor
    input_weight: Tensor

    def __post_init__(self) -> None:
        for name in ("state_weight", "input_weight"):
            object.__setattr__(self, name, _require.positive("Tracking", name, getattr(self, name)))
        authority = torch.atleast_1d(_require.positive("Tracking", "authority", self.authority))
        if authority.numel() not in (1, self.brakes.num) or bool((authority > 1).any()):
            raise _require.fail("Tracking", f"1 or {self.brakes.num} values of authority in (0, 1]", authority.tolist())
        object.__setattr__(self, "authority", authority.expand(self.brakes.num))

    def plans(self, judge: PlanTube, x: Tensor, candidates: Tensor, lengths: Tensor, steps: int) -> Plans:
        """Every candidate with every brake: P = K·M plans of `steps` laws, candidate-major, from the state x (nx,).

        Args:
            judge: whose grid and landing fallback are used.
            x: measured state.
            candidates: (K, H, nu).
            lengths: (K,), inputs used of each candidate.
            steps: remaining steps of the episode.
        """
        count, brakes = candidates.shape[0], self.brakes.num
        inputs = candidates.repeat_interleave(brakes, 0)
        lengths = lengths.repeat_interleave(brakes)
        which = torch.arange(brakes, device=x.device).repeat(count)
        policies, box = self.brakes.select(which), judge.input_box
        assert isinstance(self.authority, Tensor)
        share = self.authority.to(x.device)[which].unsqueeze(-1)
        state, path, used, slopes_x, slopes_u = x.expand(len(which), -1), [], [], [], []
        for t in range(steps):
            brake = box.center + share * (policies(state.unsqueeze(1)).squeeze(1) - box.center)
            u = brake
            if t < inputs.shape[1]:
                u = torch.where((t < lengths).unsqueeze(-1), box.clip(inputs[:, t]), brake)
            following, a, b = linearised(judge, state, u)
            path.append(state)
            used.append(u)
            slopes_x.append(a)
            slopes_u.append(b)
            state = following
        # a path may overflow: what is no number there becomes an open-loop input, to be judged like any other
        gains = _finite(self._gains(slopes_x, slopes_u))
        states, u = torch.stack(path, dim=1), _finite(torch.stack(used, dim=1))
        offset = u - _finite((gains @ states.unsqueeze(-1)).squeeze(-1))
        full = torch.full_like(lengths, steps)
        return Plans(offset, gains, full, torch.zeros_like(lengths), lengths.clamp_min(1))

    def _gains(self, slopes_x: list[Tensor], slopes_u: list[Tensor]) -> Tensor:
        """K_t (P, T, nu, nx) by the Riccati recursion from P_T = Q."""
        weight, effort = torch.diag(self.state_weight), torch.diag(self.input_weight)
        value, gains = weight.expand(slopes_x[0].shape), []
        for a, b in zip(reversed(slopes_x), reversed(slopes_u), strict=True):
            back = b.mT @ value
            gain = -torch.linalg.solve_ex(effort + back @ b, back @ a).result
            value = weight + a.mT @ value @ (a + b @ gain)
            gains.append(gain)
        return torch.stack(gains[::-1], dim=1)


def _finite(value: Tensor) -> Tensor:
    return value.nan_to_num(0.0, 0.0, 0.0)


def linearised(judge: PlanTube, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean of x⁺ (P, nx) and its Jacobians in x and u, from the judge's grid if it has one (first order there). Where
    a kernel has no gradients (Matérn 1/2) the slopes are those of the known part.
    """
    assert judge.confidence is not None
    model = judge.confidence.model
    known = model.prior
    z = torch.cat([x, u], dim=-1)
    local, offset = (None, torch.zeros_like(z)) if judge.anchors is None else judge.anchors.around(z)
    if local is None or local.mean is None:
        exact = model.exact if isinstance(model, LowRankGP) else model
        mean, offset = jet(exact, z).mean if differentiable(exact) else _flat(exact, z), torch.zeros_like(z)
    else:
        mean = local.mean
    slope = mean[..., 1:]
    value = mean[..., 0] + (slope @ offset.unsqueeze(-1)).squeeze(-1)
    a, b = jacobians(known, x, u)  # type: ignore[arg-type]
    a, b, following = a.clone(), b.clone(), known(x, u)
    columns = list(model.outputs)
    following[..., columns] += value
    a[..., columns, :] += slope[..., : model.nx]
    b[..., columns, :] += slope[..., model.nx :]
    return following, a, b


def _flat(model: GP, z: Tensor) -> Tensor:
    """Posterior means at z (P, d) beside gradients 0, (P, p, 1 + d)."""
    mean = model.posterior(z)[0].unsqueeze(-1)
    return torch.cat([mean, mean.new_zeros(*mean.shape[:-1], z.shape[-1])], dim=-1)
