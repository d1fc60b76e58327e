"""Feedback for all members at once by linear matrix inequalities; what the solver proposes is checked and rescaled here.

Not imported by ``gpsafe.tube`` itself, because cvxpy takes seconds to load.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.sets.ellipsoid import Ellipsoid

RATES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)


@short
@dataclass(frozen=True, slots=True, eq=False)
class RobustGain:
    """One gain with one ellipsoid that is invariant under every listed closed loop.

    Attributes:
        gain: K, (nu, nx).
        invariant: E(0, S): (A_i + B_i K)e + w ∈ E(0, S) for e ∈ E(0, S), w ∈ E(0, W), and every i.
        rate: λ with F_i S F_iᵀ ⪯ λ S.
    """

    gain: Tensor
    invariant: Ellipsoid
    rate: float


def lmi_gain(
    A: Tensor, B: Tensor, disturbance: Tensor, *, input_weight: float = 0.1, rates: Sequence[float] = RATES
) -> RobustGain:
    """K = Y S⁻¹ that minimises tr S + input_weight · tr(K S Kᵀ), a steady tube's size and the input it takes, over S, Y with

        [[S − W/(1 − λ), A_iS + B_iY], [·, λ S]] ⪰ 0  for all i,     [[Z, Y], [Yᵀ, S]] ⪰ 0,

    and over λ in a grid. By Schur's complement F_i S F_iᵀ/λ + W/(1 − λ) ⪯ S, and the left side is an outer Minkowski sum of
    F_i E(0, S) and E(0, W) (weights λ, 1 − λ): E(0, S) is robustly invariant. Afterwards the inequality is evaluated in
    float64 and S rescaled by the factor it asks for; what cannot be mended so is refused.

    For a linear plant this is a theorem. For a nonlinear one it designs K from its Jacobians at a few points; tubes with that K
    make their own claims.

    Args:
        A, B: (n, nx, nx) and (n, nx, nu): the members, or several points of operation.
        disturbance: half-axes of W, (nx,), > 0.
        input_weight: ≥ 0.
        rates: grid of λ in (0, 1).

    Raises:
        ValueError: if no common ellipsoid exists for any λ of the grid.
    """
    A, B = _require.finite("lmi_gain", "A", A), _require.finite("lmi_gain", "B", B)
    if A.ndim != 3 or B.ndim != 3 or A.shape[:2] != B.shape[:2] or A.shape[1] != A.shape[2]:
        got = f"{tuple(A.shape)} and {tuple(B.shape)}"
        raise _require.fail("lmi_gain", "A (n, nx, nx) and B (n, nx, nu)", got)
    axes = _require.shape(
        "lmi_gain", "disturbance", _require.positive("lmi_gain", "disturbance", disturbance), A.shape[1:2]
    )
    _require.nonnegative("lmi_gain", "input_weight", input_weight)
    found = [r for r in (_at_rate(A, B, axes, input_weight, rate) for rate in rates) if r is not None]
    if not found:
        raise _require.fail("lmi_gain", "a common invariant ellipsoid for all (A, B)", f"none for rates {tuple(rates)}")
    return min(found, key=lambda pair: pair[0])[1]


def _at_rate(A: Tensor, B: Tensor, axes: Tensor, weight: float, rate: float) -> tuple[float, RobustGain] | None:
    """The objective and the gain for one λ; None if the program has no solution that survives the check."""
    _require.probability("lmi_gain", "rate", rate)
    nx, nu = B.shape[1:]
    # In units of the disturbance's half-axes the program is well scaled: W = I.
    scaled_A, scaled_B = (A * axes / axes.unsqueeze(-1)).cpu().numpy(), (B / axes.unsqueeze(-1)).cpu().numpy()
    S, Y, Z = cp.Variable((nx, nx), symmetric=True), cp.Variable((nu, nx)), cp.Variable((nu, nu), symmetric=True)
    constraints: list[Any] = [cp.bmat([[Z, Y], [Y.T, S]]) >> 0]
    for a, b in zip(scaled_A, scaled_B, strict=True):
        moved = a @ S + b @ Y
        constraints.append(cp.bmat([[S - np.eye(nx) / (1 - rate), moved], [moved.T, rate * S]]) >> 0)
    size = cp.trace(cp.multiply(S, np.diag(axes.square().cpu().numpy())))
    problem = cp.Problem(cp.Minimize(size + weight * cp.trace(Z)), constraints)
    try:
        with warnings.catch_warnings():  # that it may be inaccurate: `_checked` sees to that
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=cp.CLARABEL)
    except cp.SolverError:
        return None
    if S.value is None or Y.value is None:  # what the solver calls it does not matter: `_checked` decides
        return None
    shape = torch.from_numpy(0.5 * (S.value + S.value.T)).to(A.device)
    gain = torch.from_numpy(np.linalg.solve(np.asarray(S.value), np.asarray(Y.value).T).T).to(A.device) / axes
    shape = axes.unsqueeze(-1) * shape * axes
    return _checked(A, B, axes, weight, rate, gain, shape)


def _checked(
    A: Tensor, B: Tensor, axes: Tensor, weight: float, rate: float, gain: Tensor, shape: Tensor
) -> tuple[float, RobustGain] | None:
    """Scales S by the least s with F_i S F_iᵀ/λ + W/(s(1 − λ)) ⪯ S for all i, as computed.

    With S = RRᵀ, C_i = R⁻¹F_iR and N = R⁻¹WR⁻ᵀ: s(1 − λ) is the largest eigenvalue of N relative to I − C_iC_iᵀ/λ.
    """
    if not bool(torch.linalg.eigvalsh(shape)[0] > 0):
        return None
    root = linalg.cholesky(shape)
    inverse = linalg.inverse_lower(root)
    closed = inverse @ (A + B @ gain) @ root
    room = torch.eye(axes.numel(), dtype=torch.float64, device=A.device) - closed @ closed.mT / rate
    if not bool(torch.linalg.eigvalsh(room).min() > 1e-6):
        return None
    relative = linalg.inverse_lower(linalg.cholesky(room)) @ (inverse * axes)
    grow = float(torch.linalg.matrix_norm(relative, ord=2).amax().square()) / (1 - rate) * (1 + 1e-9)
    shape = shape * grow
    objective = float(shape.trace() + weight * (gain @ shape @ gain.mT).trace())
    return objective, RobustGain(gain, Ellipsoid(torch.zeros_like(axes), linalg.cholesky(shape)), rate)
