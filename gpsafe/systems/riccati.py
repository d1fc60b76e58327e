"""Linear-quadratic laws about an equilibrium of a plant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpsafe import linalg


def riccati(step: Callable[[Tensor, Tensor], Tensor], x: Tensor, u: Tensor, weights: Tensor, effort: Tensor) -> Tensor:
    """K (nu, nx) of u − K(y − x): the discrete LQR of the linearisation of `step` at (x, u).

    It minimises Σ yᵀ diag(weights) y + uᵀ diag(effort) u for the linear plant, by the stabilising solution of the discrete
    algebraic Riccati equation; that shows nothing about the plant itself.

    Args:
        step: f(x, u), differentiable at the point.
        x, u: the equilibrium, (nx,), (nu,).
        weights, effort: (nx,) ≥ 0, (nu,) > 0.
    """
    with torch.inference_mode(False):  # plants are made anywhere
        point = (x.detach().clone(), u.detach().clone())
        a, b = torch.autograd.functional.jacobian(step, point)
        return linalg.regulator(a, b, torch.diag(weights), torch.diag(effort))
