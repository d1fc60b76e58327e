"""Proposes multipliers for the convex-program bound with a conic solver. Nothing here is trusted.

In the orthonormal basis of span{k(x_i, ·), k(z, ·)} given by the eigenvectors of K and the part of k(z, ·)
orthogonal to the data, f has coordinates (a, b): f(X) = U diag(√s) a, ‖f‖² = ‖a‖² + b², f(z) = pᵀa + qb, with
p_i = (Uᵀk(X, z))_i/√s_i and q² = k(z, z) − ‖p‖². Only p and q depend on z, so one problem, compiled once,
serves all query points.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

RANK = 1e-13  # eigenvalues below RANK times the largest carry no direction of their own


class Proposer:
    """The compiled problem: max pᵀa + qb s.t. ‖diag(√s)a − Uᵀy‖ ≤ R_n, ‖(a, b)‖ ≤ B, with p, q as
    parameters.
    """

    def __init__(self, values: Tensor, targets: Tensor, radius_sq: Tensor, norm: Tensor) -> None:
        """Compiles for s = `values` (n,), Uᵀy = `targets` (n,), R_n² and B, see `convex_program.Program`."""
        eigenvalues = values.cpu().numpy()
        keep = eigenvalues > RANK * eigenvalues.max()
        self._roots = np.where(
            keep, np.sqrt(np.where(keep, eigenvalues, 1.0)), np.inf
        )  # p_i = 0 for dropped directions
        self._radius = float(radius_sq.sqrt())
        self._norm = float(norm)
        n = len(eigenvalues)
        self._slope, self._rest = cp.Parameter(n), cp.Parameter()
        weights, extra = cp.Variable(n), cp.Variable()
        misfit = cp.multiply(np.where(keep, self._roots, 0.0), weights) - targets.cpu().numpy()
        self._fit = cp.norm(misfit) <= self._radius
        self._size = cp.norm(cp.hstack([weights, extra])) <= self._norm
        objective = cp.Maximize(self._slope @ weights + self._rest * extra)
        self.problem = cp.Problem(objective, [self._fit, self._size])

    def optimum(self, cross: Tensor, prior: Tensor, sign: float) -> tuple[float, float]:
        """The solver's claims for Uᵀk(X, z) = `cross` (n,) and k(z, z) = `prior`: sign·max sign·f(z), and η = (ρ_norm
        R_n)/(ρ_fit B). NaN if it failed.

        The multipliers ρ belong to norms; those of the squared constraints are ρ/(2R_n) and ρ/(2B).
        """
        slope = cross.cpu().numpy() / self._roots
        rest = float(prior) - float(slope @ slope)
        self._slope.value = sign * slope
        self._rest.value = np.sqrt(max(0.0, rest))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "may be inaccurate": it is not trusted anyway
                self.problem.solve(solver=cp.CLARABEL)
        except cp.SolverError:
            return math.nan, math.nan
        claims = [_number(v) for v in (self.problem.value, self._fit.dual_value, self._size.dual_value)]
        value, fit, size = claims
        eta = size * self._radius / (fit * self._norm) if fit > 0 else math.inf
        return sign * value, math.nan if math.isnan(fit) else eta

    def multipliers(self, cross: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Proposed η of the upper and of the lower bound at every point, (m,) each, from cross (n, m) and prior (m,)."""
        found = [[self.optimum(a, b, sign)[1] for a, b in zip(cross.T, prior, strict=True)] for sign in (1.0, -1.0)]
        device = prior.device
        return (
            torch.tensor(found[0], dtype=torch.float64, device=device),
            torch.tensor(found[1], dtype=torch.float64, device=device),
        )


def _number(value: Any) -> float:
    """A solver's number as a float; NaN if it gave none."""
    return math.nan if value is None else float(np.asarray(value).reshape(-1)[0])
