"""Feedback gains of tubes. What a designer returns is checked here before anyone sees it."""

from __future__ import annotations

import torch
from numpy.linalg import LinAlgError
from torch import Tensor

from gpsafe import _require, linalg


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
    Q, R = (
        torch.eye(n, dtype=torch.float64) if weight is None else _require.shape("lqr_gain", name, weight, (n, n))
        for name, weight, n in (("Q", state_weight, nx), ("R", input_weight, nu))
    )
    try:
        gain = -linalg.regulator(A, B, Q, R).to(A.device)
    except LinAlgError as error:
        raise _require.fail("lqr_gain", "a stabilisable pair (A, B)", str(error)) from error
    radius = float(spectral_radius(A, B, gain))
    if not radius < 1.0:
        raise _require.fail("lqr_gain", "a stabilisable pair (A, B)", f"spectral radius {radius:.6g}")
    return gain
