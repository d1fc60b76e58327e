"""Small dense linear algebra in float64; failures are raised, jitter is never added."""

from __future__ import annotations

import torch
from torch import Tensor

from gpsafe import _require


def cholesky(matrix: Tensor, where: str = "cholesky") -> Tensor:
    """Lower factor L with L Lᵀ = matrix, shape (*b, n, n).

    Raises:
        ValueError: if the matrix is not numerically positive definite (no silent jitter).
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info > 0).any()):
        smallest = float(torch.linalg.eigvalsh(matrix).min())
        raise _require.fail(where, "a positive definite matrix", f"smallest eigenvalue {smallest:.3e}")
    return factor


def solve_lower(factor: Tensor, rhs: Tensor) -> Tensor:
    """L⁻¹ rhs for a lower-triangular factor, shapes (*b, n, n) and (*b, n, m)."""
    return torch.linalg.solve_triangular(factor, rhs, upper=False)


def inverse_lower(factor: Tensor) -> Tensor:
    """L⁻¹ (lower triangular), shape (*b, n, n)."""
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)


def triangular_square_norms(lower: Tensor, rhs: Tensor, blocks: int = 8) -> Tensor:
    """Column norms ‖lower @ rhs[:, j]‖², shape (m,), for a lower-triangular (n, n) matrix and (n, m) columns.

    Works in row blocks so that the zero upper triangle is not multiplied: n²(1 + 1/blocks) flops a column.
    """
    n = lower.shape[-1]
    step = max(64, -(-n // blocks))
    total = torch.zeros(rhs.shape[-1], dtype=rhs.dtype, device=rhs.device)
    for start in range(0, n, step):
        stop = min(start + step, n)
        part = lower[start:stop, :stop] @ rhs[:stop]
        total = total + torch.linalg.vecdot(part, part, dim=0)
    return total
