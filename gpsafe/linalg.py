"""Small dense linear algebra in float64; failures are raised, jitter is never added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpsafe import _require

UNIT = torch.finfo(torch.float64).eps / 2  # unit roundoff u of float64


def gamma(n: int) -> float:
    """γ_n = n u/(1 − n u): an inner product of length n computed in any order errs by at most γ_n
    Σ|x_i||y_i|.
    """
    return n * UNIT / (1 - n * UNIT)


def vector(*values: float) -> Tensor:
    """The numbers as a float64 vector, (len(values),)."""
    return torch.tensor(values, dtype=torch.float64)


def alike(part: Tensor, whole: Tensor, at: Any = ...) -> bool:
    """Whether a function gives alone, `part`, what it gives among others, whole[at], (*b, m) each, but for what the size of a
    batch changes in rounding (NaN is NaN): 10⁻⁶ of itself, 10⁻⁹ of the largest of its component (the components have units of
    their own), of which small ones may be the rounding, and 10⁻¹⁵ of the largest of all, of which components may be.
    """
    expected, size = whole[at], whole.detach().nan_to_num(0.0, 0.0, 0.0).abs()
    if part.shape != expected.shape or not whole.numel():
        return part.shape == expected.shape
    largest = size.flatten(0, -2).amax(0)
    room = 1e-6 * size[at] + 1e-9 * largest + 1e-15 * largest.max()
    return bool((((part - expected).abs() <= room) | (part == expected) | (part.isnan() & expected.isnan())).all())


def cholesky(matrix: Tensor, where: str = "cholesky") -> Tensor:
    """Lower factor L with L Lᵀ = matrix, shape (*b, n, n).

    Raises:
        ValueError: if the matrix is not numerically positive definite (no silent jitter), or not finite: squares of numbers
            beyond 1e154 are not.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info > 0).any()):
        if not bool(torch.isfinite(matrix).all()):
            raise _require.fail(
                where, "a finite matrix (of numbers whose squares are finite)", "NaN or infinite entries"
            )
        smallest = float(torch.linalg.eigvalsh(matrix).min())
        raise _require.fail(where, "a positive definite matrix", f"smallest eigenvalue {smallest:.3e}")
    return factor


def residual_norm(matrix: Tensor, factor: Tensor) -> Tensor:
    """≥ ‖M − AAᵀ‖_F, (*b,), and near it where that is of the size of rounding, M (*b, n, n), A (*b, n, m).

    A = H + L with H on a grid so coarse that float64 holds HHᵀ exactly, in any order of summation (Ozaki et al., Numerical
    Algorithms 59, 2012): what is left is rounded by shares of ‖H‖‖L‖.
    """
    n, m = factor.shape[-2:]
    top = factor.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)
    unit = torch.frexp(top).mantissa / top  # a power of two, with which entries are below 1
    factor, matrix = factor * unit, matrix * unit * unit
    grid = 2.0 ** ((52 - (m - 1).bit_length()) // 2)
    high = (factor * grid).round() / grid
    low = factor - high
    mixed = high @ low.mT
    gap = matrix - high @ high.mT - (mixed + mixed.mT + low @ low.mT)
    size, left, right = (torch.linalg.matrix_norm(part) for part in (gap, high, low))
    return (
        (1 + 2 * gamma(n * n + 8))
        * (size + gamma(m + 8) * (2 * left + right) * right)
        / unit[..., 0, 0]
        / unit[..., 0, 0]
    )


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
    definiteness. Rows and columns are first brought to diagonals in [½, 2], by powers of two: eigenvalues err by a share of the
    largest, so that what one coordinate's units make small would be lost.
    """
    matrix = 0.5 * (matrix + matrix.mT)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    scale = torch.exp2(torch.where(diagonal > 0, 0.5 * diagonal.clamp_min(1e-300).log2(), 0.0).round())
    values, vectors = torch.linalg.eigh(matrix / scale.unsqueeze(-1) / scale.unsqueeze(-2))
    return scale.unsqueeze(-1) * (vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2))


def safe_sqrt(value: Tensor) -> Tensor:
    """√value with gradient 0 (not inf) at 0; NaN stays NaN."""
    zero = value <= 0
    return torch.where(zero, torch.zeros_like(value), torch.where(zero, torch.ones_like(value), value).sqrt())


def is_transformed(*tensors: Tensor) -> bool:
    """Whether a tensor is inside a ``torch.func`` transform (vmap, jacrev, …), where its storage is not
    accessible.
    """
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # type: ignore[attr-defined]
    return any(wrapped(tensor) for tensor in tensors)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b without a graph; on the CPU by NumPy's BLAS, which is faster for thin factors and strided views."""
    if a.device.type == "cpu":
        return torch.from_numpy(a.detach().numpy() @ b.detach().numpy())
    return a @ b


def substitute(lower: Tensor, rhs: Tensor, *, adjoint: bool = False, block: int = 128) -> Tensor:
    """L⁻¹ rhs, or L⁻ᵀ rhs if `adjoint`, for (n, n) views and (n, m) right-hand sides, without a graph.

    Substitution by blocks: reads the lower triangle once, where it lies (a solver would first copy a strided view). The
    residual bound of substitution, |L x − rhs| ≤ γ_n |L||x|, holds for every order of summation.
    """
    n = lower.shape[-1]
    solution = torch.empty_like(rhs)
    starts = range(0, n, block)
    for start in reversed(starts) if adjoint else starts:
        stop = min(start + block, n)
        part, corner = rhs[start:stop], lower[start:stop, start:stop]
        if adjoint and stop < n:
            part = part - _product(lower[stop:, start:stop].mT, solution[stop:])
        elif not adjoint and start > 0:
            part = part - _product(lower[start:stop, :start], solution[:start])
        corner = corner.mT if adjoint else corner
        solution[start:stop] = torch.linalg.solve_triangular(corner, part, upper=adjoint)
    return solution


def product_lower(rows: Tensor, lower: Tensor, *, block: int = 256) -> Tensor:
    """rows @ L for (m, n) rows and a lower-triangular (n, n) view, without a graph and without its zero blocks."""
    n = lower.shape[-1]
    parts = [_product(rows[:, k:], lower[k:, k : min(k + block, n)]) for k in range(0, n, block)]
    return torch.cat(parts, dim=-1) if parts else rows


def regulator(A: Tensor, B: Tensor, Q: Tensor, R: Tensor) -> Tensor:
    """(R + BᵀPB)⁻¹BᵀPA, (nu, nx), of u = −Kx: P the stabilising solution of the discrete algebraic Riccati equation.

    Raises:
        numpy.linalg.LinAlgError: if none is found.
    """
    import numpy as np
    from scipy.linalg import solve_discrete_are  # half a second, for those who design a law

    a, b, q, r = (part.detach().cpu().numpy() for part in (A, B, Q, R))
    P = solve_discrete_are(a, b, q, r)
    return torch.from_numpy(np.linalg.solve(r + b.T @ P @ b, b.T @ P @ a))
