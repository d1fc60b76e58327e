"""Information gain g = ½ log det(I + K/λ) and bounds of its maximum γ_T over designs of T points (theory §2.12).

Everything returned by a function named `..._bound` is an upper bound of γ_T, or of g for the given Gram
matrix, but for the last digits of float64 (the bounds' β take g of the data, rounded up: `confidence.rounding`).
`asymptotic_order` is not a bound and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.rkhs import kernels


def gram_info_gain(gram: Tensor, regularizer: float) -> Tensor:
    """g = ½ log det(I + K/λ), K (*b, n, n) → (*b,)."""
    gram = _square("gram_info_gain", gram)
    _require.positive_number("gram_info_gain", "regularizer", regularizer)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = linalg.cholesky(eye + gram / regularizer, "gram_info_gain")
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def linear_bound(dim: int, count: int, max_variance: float, regularizer: float) -> float:
    """γ_T ≤ (d/2) ln(1 + kT/(dλ)) for a linear kernel on d inputs with k(z, z) ≤ k on the domain.

    K has rank ≤ d and trace ≤ kT, and Σ ln(1 + s_i/λ) over d terms is largest when they are equal.
    """
    _require.count("linear_bound", "dim", dim)
    _require.count("linear_bound", "count", count)
    _require.positive_number("linear_bound", "max_variance", max_variance)
    _require.positive_number("linear_bound", "regularizer", regularizer)
    return 0.5 * dim * math.log1p(max_variance * count / (dim * regularizer))


def gram_bound(gram: Tensor, regularizer: float) -> Tensor:
    """The bound of g for every D = 0..n: (D/2) ln(1 + tr K_D/(Dλ)) + tr(K − K_D)/(2λ), K (*b, n, n) → (*b, n
    + 1).

    K_D keeps the D largest eigenvalues: those by concavity as in `linear_bound`, the others by ln(1 + t) ≤ t.
    """
    gram = _square("gram_bound", gram)
    _require.positive_number("gram_bound", "regularizer", regularizer)
    values = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0.0)
    return eigenvalue_bound(values, regularizer)


def eigenvalue_bound(values: Tensor, regularizer: float) -> Tensor:
    """As `gram_bound`, from decreasing eigenvalues (*b, n) → (*b, n + 1)."""
    n = values.shape[-1]
    heads = torch.cat([torch.zeros_like(values[..., :1]), values.cumsum(-1)], dim=-1)
    tails = (heads[..., -1:] - heads).clamp_min(0.0)
    sizes = torch.arange(n + 1, dtype=values.dtype, device=values.device)
    safe = sizes.clamp_min(1.0)
    return 0.5 * sizes * torch.log1p(heads / (safe * regularizer)) + 0.5 * tails / regularizer


@short
@dataclass(frozen=True, slots=True, eq=False)
class Greedy:
    """Greedy maximisation of g on a finite domain of m points.

    Args:
        chosen: indices of the design in order, (*b, T); repetitions occur.
        gains: g of the first t = 0..T points, (*b, T + 1).
        largest_variance: largest posterior variance on the domain after t = 0..T points, (*b, T + 1).
    """

    chosen: Tensor
    gains: Tensor
    largest_variance: Tensor


def greedy(gram: Tensor, count: int, regularizer: float) -> Greedy:
    """T greedy picks (each the point of largest posterior variance), K (*b, m, m) of the domain.

    Pivoting: after each pick the variances of all points are updated by one rank-one step, O(mt); K is never
    factored.
    """
    gram = _square("greedy", gram)
    _require.count("greedy", "count", count)
    lam = _require.positive_number("greedy", "regularizer", regularizer)
    variance = gram.diagonal(dim1=-2, dim2=-1).clone()
    rows = torch.zeros(*gram.shape[:-2], count, gram.shape[-1], dtype=gram.dtype, device=gram.device)
    gains, largest, chosen = [torch.zeros_like(variance[..., 0])], [], []
    for t in range(count):
        best, index = variance.max(-1)
        largest.append(best)
        gains.append(gains[-1] + 0.5 * torch.log1p(best / lam))
        at = index.unsqueeze(-1)
        column = torch.take_along_dim(gram, at.unsqueeze(-1), dim=-2).squeeze(-2)
        past = rows[..., :t, :]
        weights = torch.take_along_dim(past, at.unsqueeze(-2), dim=-1)  # (*b, t, 1)
        row = (column - (weights * past).sum(-2)) / (best + lam).sqrt().unsqueeze(-1)
        rows[..., t, :] = row
        variance = (variance - row.square()).clamp_min(0.0)
        chosen.append(index)
    largest.append(variance.max(-1).values)
    return Greedy(torch.stack(chosen, -1), torch.stack(gains, -1), torch.stack(largest, -1))


def greedy_bound(gram: Tensor, count: int, regularizer: float) -> Tensor:
    """γ_T ≤ greedy/(1 − 1/e) on the finite domain with Gram matrix K (*b, m, m) → (*b,).

    g is monotone and submodular over designs with repetition (Nemhauser, Wolsey & Fisher 1978; Krause et al.
    2008).
    """
    return greedy(gram, count, regularizer).gains[..., -1] / (1 - math.exp(-1))


def online_bound(gram: Tensor, count: int, regularizer: float) -> Tensor:
    """γ_T ≤ min_t G_t + (T/2) ln(1 + max σ_t²/λ), usually far below `greedy_bound`; K (*b, m, m) → (*b,).

    By submodularity any T points add at most T times the largest marginal gain to any design, the greedy one
    included (Minoux 1978; Leskovec et al. 2007).
    """
    run = greedy(gram, count, regularizer)
    return (run.gains + 0.5 * count * torch.log1p(run.largest_variance / regularizer)).min(-1).values


@dataclass(frozen=True, slots=True)
class AsymptoticOrder:
    """The growth of γ_T up to an unknown constant: not a bound.

    Args:
        label: for example "O((ln T)^3)".
        log_power, power: γ_T = O(T^power · (ln T)^log_power).
    """

    label: str
    power: float
    log_power: float

    def growth(self, count: int) -> float:
        """T^power (ln T)^log_power, without its constant, T ≥ 2."""
        _require.count("AsymptoticOrder", "count", count, minimum=2)
        return count**self.power * math.log(count) ** self.log_power


def asymptotic_order(kernel: Kernel, dim: int) -> AsymptoticOrder:
    """Order of γ_T: RBF O((ln T)^{d+1}), Matérn-ν O(T^{d/(2ν+d)} (ln T)^{2ν/(2ν+d)}), linear O(d ln T).

    Source: Srinivas et al. 2010; Vakili, Khezeli & Picheny 2021. Refuses kernels without a known order.
    """
    _require.count("asymptotic_order", "dim", dim)
    form = kernels.stationary(kernel)
    if form is not None:
        active = dim if form.dims is None else len(form.dims)
        if math.isinf(form.nu):
            return AsymptoticOrder(f"O((ln T)^{active + 1})", 0.0, active + 1.0)
        power, log_power = active / (2 * form.nu + active), 2 * form.nu / (2 * form.nu + active)
        return AsymptoticOrder(f"O(T^{power:.3g} (ln T)^{log_power:.3g})", power, log_power)
    base = kernel.base_kernel if isinstance(kernel, gpytorch.kernels.ScaleKernel) else kernel
    if isinstance(base, gpytorch.kernels.LinearKernel):
        return AsymptoticOrder("O(ln T)", 0.0, 1.0)
    raise _require.fail("asymptotic_order", "an RBF, Matérn or linear kernel", kernels.describe(kernel))


def _square(where: str, gram: Tensor) -> Tensor:
    gram = _require.finite(where, "gram", gram)
    if gram.ndim < 2 or gram.shape[-1] != gram.shape[-2]:
        raise _require.fail(where, "a Gram matrix of shape (*b, n, n)", f"shape {tuple(gram.shape)}")
    return gram
