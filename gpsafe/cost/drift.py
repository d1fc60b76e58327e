"""How much an expectation over paths changes when every step's mean is pushed: one Gaussian test for all steps (theory §3.11).

Let x follow x_{t+1} = m_t + w_t, w_t ~ N(0, Σ), under P, and x_{t+1} = m_t + δ_t + w_t under Q; m_t and δ_t may depend on the
path so far. With a_t = ‖Σ^{-1/2}δ_t‖ and any Z ∈ [0, 1] of the path:

    Σ_t a_t² ≤ r² on every path   ⇒   E_Q Z ≤ Φ(Φ⁻¹(E_P Z) + r).                                                   (1)

*Proof.* Let V_t and V′_t be the expectations of Z given the path up to t, under P and Q, and r_t² = r² − Σ_{s<t} a_s². By
induction from the end, where V = V′ = Z, V′_t ≤ Φ(Φ⁻¹(V_t) + r_t): for v ∈ [0, 1] and b ≥ 0, Φ(Φ⁻¹(v) + b) is the probability
that ξ − b ≤ Φ⁻¹(v), ξ standard normal and independent. So V′_t ≤ E_Q Φ(Φ⁻¹(V_{t+1}) + r_{t+1}) is the probability of the event
ξ ≤ Φ⁻¹(V_{t+1}) for (Σ^{-1/2}w_t, ξ) shifted by (Σ^{-1/2}δ_t, −r_{t+1}), of norm at most r_t, while without the shift it is
E_P V_{t+1} = V_t. By Neyman and Pearson a shift of length r_t raises no probability p above Φ(Φ⁻¹(p) + r_t). □

It is attained: constant shifts along one line, Z the indicator of a half-space of the sum of the noises. Two consequences.

- For costs of the state, c_t ∈ [0, C], x_t depends on the steps before t, and sup_p Φ(Φ⁻¹(p) + r) − p = 2Φ(r/2) − 1, so that
  |J_Q − J_P| ≤ C Σ_{t=1}^{T−1} (2Φ(½(Σ_{s<t} a_s²)^{1/2}) − 1) (`drift_gap`): the sum over t of the total variations of whole
  paths, at most that of the sums of steps (2Φ − 1 of a norm is at most the sum), and below Pinsker's ½(Σ a_s²)^{1/2}.
- J_Q ≤ TC·Φ(Φ⁻¹(J_P/TC) + r) (`drifted`): a rare cost stays rare.

Where a_t is bounded on some paths only, let A be the paths with Σ a_t² ≤ r²; whether a path leaves A is known before the push
that would exceed r is made. Stopped there, pushes satisfy (1), and Q is changed only where Z̃ = Z·1_A + 1 − 1_A is 1 anyhow:

    E_Q Z ≤ E_Q Z̃ ≤ Φ(Φ⁻¹(E_P Z̃) + r).                                                                            (2)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpsafe import _require


def push(gap: Tensor, noise_std: Tensor) -> Tensor:
    """a = ‖Σ^{-1/2}δ‖ for |δ| ≤ gap, (*b, nx) → (*b,), rounded up.

    A state without noise contributes +∞ as soon as its gap is not 0; so does a gap that is NaN or negative.
    """
    gap = _require.floats("push", "gap", gap)
    noise = noise_std.to(gap)
    scaled = torch.where(gap == 0, 0.0, torch.where(gap > 0, gap / noise, torch.inf))
    return torch.linalg.vector_norm(scaled, dim=-1) * (1 + 1e-14)


def drift_gap(pushes: Tensor, ceiling: float) -> Tensor:
    """C Σ_{t=1}^{T−1} (2Φ(½(Σ_{s<t} a_s²)^{1/2}) − 1) ≥ |J_Q − J_P| for a_t ≤ pushes (*b, T) on every path, (*b,), rounded up.

    What is no number ≥ 0 counts as +∞.
    """
    pushes = _require.floats("drift_gap", "pushes", pushes)
    _require.positive_number("drift_gap", "ceiling", ceiling)
    pushes = torch.where(pushes >= 0, pushes, torch.inf)
    root = pushes[..., :-1].square().cumsum(-1).sqrt()
    found = torch.special.erf(root / math.sqrt(8.0)).sum(-1) * (1 + 1e-13)
    return ceiling * found.clamp_max(root.shape[-1])


def drifted(value: Tensor, radius: Tensor | float, ceiling: float) -> Tensor:
    """K·Φ(Φ⁻¹(value/K) + r) ≥ E_Q of a variable in [0, K] with E_P ≤ value, rounded up; K where value or r is no number ≥ 0.

    Args:
        value: broadcast against `radius`.
        radius: r.
        ceiling: K.
    """
    value = _require.floats("drifted", "value", value)
    _require.positive_number("drifted", "ceiling", ceiling)
    share, radius = value / ceiling, torch.as_tensor(radius, dtype=value.dtype, device=value.device)
    along = torch.special.ndtri(share) + radius  # NaN for a share outside [0, 1]
    # Of small probabilities torch's ndtr, ½(1 + erf), has no digit: 0 from Φ(−8.3) on.
    moved = 0.5 * torch.special.erfc(-along / math.sqrt(2.0)) * (1 + 1e-9) + 1e-300
    return ceiling * torch.where((radius >= 0) & (moved <= 1), moved, 1.0)  # False of NaN
