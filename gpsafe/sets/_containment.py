"""Answer to "is this set inside that one?": a margin and the point that decides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe import _require


@dataclass(frozen=True, slots=True, eq=False)
class Containment:
    """margin ≥ 0: contained. The witness, a point of the inner set, leaves the outer set farthest or comes closest to it.

    Args:
        margin: (*b,), in the unit that the predicate states.
        witness: (*b, d).
    """

    margin: Tensor
    witness: Tensor

    @property
    def holds(self) -> Tensor:
        """Boolean (*b,); False where the margin is NaN."""
        return self.margin >= 0

    def __bool__(self) -> bool:
        return bool(self.holds.all())


def maximize_square(a: Tensor, A: Tensor, *, steps: int = 80) -> tuple[Tensor, Tensor]:
    """max over ‖ξ‖ ≤ 1 of ‖a + Aξ‖², from above, and a maximiser: a (*b, d), A (*b, d, m).

    S-procedure: with AᵀA = VΛVᵀ, g = VᵀAᵀa, every μ ≥ λ_max with a finite value gives the upper bound
    ‖a‖² + μ + Σ g_i²/(μ − λ_i) (weak duality), and the best μ solves Σ g_i²/(μ − λ_i)² = 1; bisection. In the hard case
    (no g along the top eigenvectors) μ = λ_max and the maximiser has a free part along the top eigenvector.
    Where a or AᵀA is not finite the bound is inf, and the other rows do not notice.

    Returns:
        Upper bound (*b,), tight to rounding, and ξ (*b, m) of norm 1 (0 if m = 0).
    """
    a, A = (_require.floats("maximize_square", name, value) for name, value in (("a", a), ("A", A)))
    base = a.square().sum(-1)
    if A.shape[-1] == 0:
        return base.nan_to_num(nan=torch.inf, posinf=torch.inf), A.new_zeros(*a.shape[:-1], 0)
    gram = A.mT @ A
    finite = torch.isfinite(base) & torch.isfinite(gram).all(-1).all(-1)
    a, A, gram = (
        torch.where(finite.reshape(*finite.shape, *([1] * (v.ndim - finite.ndim))), v, 0.0) for v in (a, A, gram)
    )
    values, vectors = torch.linalg.eigh(gram)
    top = values[..., -1:]
    g = (vectors.mT @ (A.mT @ a.unsqueeze(-1))).squeeze(-1)
    # Any μ > λ_max is a sound bound, so start a little above: terms with g_i = 0 then vanish without 0/0.
    tiny = 1e-15 * (top + g.norm(dim=-1, keepdim=True)) + 1e-300
    low, high = top + tiny, top + g.norm(dim=-1, keepdim=True) + tiny
    for _ in range(steps):
        middle = 0.5 * (low + high)
        beyond = (g / (middle - values)).square().sum(-1, keepdim=True) > 1.0
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    y = g / (high - values)
    upper = base + high.squeeze(-1) + (g * y).sum(-1)
    missing = (1.0 - y.square().sum(-1)).clamp_min(0.0).sqrt()
    sign = torch.where(y[..., -1] < 0, -torch.ones_like(missing), torch.ones_like(missing))
    y = torch.cat([y[..., :-1], (y[..., -1] + sign * missing).unsqueeze(-1)], dim=-1)
    y = y / y.norm(dim=-1, keepdim=True)
    return torch.where(finite, upper, torch.inf), (vectors @ y.unsqueeze(-1)).squeeze(-1)
