"""Small dense linear algebra in float64; failures are raised, jitter is never added."""

from __future__ import annotations

import torch
from torch import Tensor

from gpsafe import _require

UNIT = torch.finfo(torch.float64).eps / 2  # unit roundoff u of float64


def gamma(n: int) -> float:
    """γ_n = n u/(1 − n u): an inner product of length n computed in any order errs by at most γ_n
    Σ|x_i||y_i|.
    """
    return n * UNIT / (1 - n * UNIT)


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
        total = total + part.square().sum(0)
    return total


def reverse_cholesky(matrix: Tensor, where: str = "reverse_cholesky") -> Tensor:
    """Lower factor C with Cᵀ C = matrix, shape (*b, n, n): the Cholesky factor of the matrix read
    backwards.
    """
    flipped = torch.flip(matrix, dims=(-2, -1))
    return torch.flip(cholesky(flipped, where), dims=(-2, -1)).mT


def psd_root(matrix: Tensor) -> Tensor:
    """A square root S with S Sᵀ = matrix for a symmetric positive semi-definite matrix, shape (*b, n, n).

    From the eigendecomposition; eigenvalues that rounding made negative count as 0. Needs no positive
    definiteness.
    """
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    return vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)


def is_transformed(*tensors: Tensor) -> bool:
    """Whether a tensor is inside a ``torch.func`` transform (vmap, jacrev, …), where its storage is not
    accessible.
    """
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
