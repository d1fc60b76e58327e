"""λ-returns: what a critic is fitted to, and what a policy maximises in imagination."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_returns(reward: Tensor, value: Tensor, *, discount: float, mixing: float) -> Tensor:
    """R_0 … R_{H−1}, (H, *b).

    Args:
        reward: r_1 … r_H, (H, *b).
        value: v(s_1) … v(s_H), (H, *b).
        discount: γ.
        mixing: λ; 1: discounted sums with v at the end, 0: one step.
    """
    found, ahead = [], value[-1]
    for r, v in zip(reward.flip(0), value.flip(0), strict=True):
        ahead = r + discount * ((1.0 - mixing) * v + mixing * ahead)
        found.append(ahead)
    return torch.stack(found[::-1])
