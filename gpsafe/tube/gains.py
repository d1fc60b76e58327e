"""Feedback gains of tubes. What a designer returns is checked here before anyone sees it."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import LinAlgError, solve_discrete_are
from torch import Tensor

from gpsafe import _require


def constant_gain(factor: float, nx: int, nu: int) -> Tensor:
    """K = −c · 1, (nu, nx): the published one (c = 0.5 for pendulum and cart-pole). It stabilises nothing by design."""
    return torch.full((nu, nx), -float(factor), dtype=torch.float64)


def spectral_radius(A: Tensor, B: Tensor, gain: Tensor) -> Tensor:
    """max |eigenvalue| of A + BK, (*b,)."""
    return torch.linalg.eigvals(A + B @ gain).abs().amax(-1)


def lqr_gain(A: Tensor, B: Tensor, *, state_weight: Tensor | None = None, input_weight: Tensor | None = None) -> Tensor:
    """K = −(R + BᵀPB)⁻¹BᵀPA, (nu, nx), P the stabilising solution of the discrete algebraic Riccati equation.

    Args:
        A, B: (nx, nx), (nx, nu).
        state_weight, input_weight: Q (nx, nx) and R (nu, nu); identities by default.

    Raises:
        ValueError: if there is no stabilising solution; A + BK is checked.
    """
    A, B = _require.finite("lqr_gain", "A", A), _require.finite("lqr_gain", "B", B)
    nx, nu = B.shape
    _require.shape("lqr_gain", "A", A, (nx, nx))
    Q = np.eye(nx) if state_weight is None else _require.shape("lqr_gain", "Q", state_weight, (nx, nx)).numpy()
    R = np.eye(nu) if input_weight is None else _require.shape("lqr_gain", "R", input_weight, (nu, nu)).numpy()
    a, b = A.detach().cpu().numpy(), B.detach().cpu().numpy()
    try:
        P = solve_discrete_are(a, b, Q, R)
    except LinAlgError as error:
        raise _require.fail("lqr_gain", "a stabilisable pair (A, B)", str(error)) from error
    gain = torch.from_numpy(-np.linalg.solve(R + b.T @ P @ b, b.T @ P @ a)).to(A.device)
    radius = float(spectral_radius(A, B, gain))
    if not radius < 1.0:
        raise _require.fail("lqr_gain", "a stabilisable pair (A, B)", f"spectral radius {radius:.6g}")
    return gain
