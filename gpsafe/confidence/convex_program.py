"""The convex-program bound of Flynn & Reeb, through its exact one-dimensional dual (theory §2.6).

With probability ≥ 1 − δ, for all n at once, f* lies in C_n = {f : ‖f(X) − y‖² ≤ R_n², ‖f‖_k ≤ B}, where

    R_n² = yᵀ(I + cK/R²)⁻¹y + R² log det(I + cK/R²) + 2R² ln(1/δ)

(mixture of the martingale exp((‖y − f*(X)‖² − ‖y − g‖²)/2R²) over g ~ N(0, cK), c fixed before the data;
Ville). For f ∈ C_n and every η > 0, adding η times the second constraint to the first and completing the
square gives

    |f(z) − μ_η(z)| ≤ σ_η(z)/√η · √s(η),   s(η) = R_n² + ηB² − η yᵀ(K + ηI)⁻¹y,

with μ_η, σ_η the posterior with regulariser η; η → ∞ gives |f(z)| ≤ B√k(z, z). Each η is a valid bound, so
how well η is chosen cannot touch soundness; by strong duality the best η gives max and min of f(z) over C_n
exactly. s is convex in η, and s(η) < 0 for some η means that C_n is empty. The best value along a ray b = ηa
of multipliers is the infimum of a jointly convex function over a ray, so the bound is quasi-convex in η: a
bracket and golden sections find the optimum.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.confidence.bounds import ConfidenceBound, Mixture
from gpsafe.confidence.dual_program import Program, Spectrum, bound_at
from gpsafe.models._gp_checks import plain_tensors
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels

TABLE = tuple(4.0**power for power in range(-3, 8))  # η/λ of the method "table"


@dataclass(frozen=True, kw_only=True)
class BallProgram(ConfidenceBound):
    """max and min of f(z) over a set {f : ‖M(f(X) − y)‖² ≤ R_n², ‖f‖_k ≤ B} that f* is in, at each query point.

    A bound says what R_n is, and M where it is not the identity. If the set is empty, an assumption is false: the interval
    comes out inverted, [B√k, −B√k], which `ConfidenceSet.falsified` reports. `beta` is the valid β at η = λ (NaN if the set
    is empty there).

    Args:
        method: "dual" minimises over η by a batched search, "table" over a few multiples of λ (`TABLE`; several times as
            fast). "cvxpy" lets a conic solver propose the multipliers and returns the dual bound at them (and at its
            neighbours, λ and ∞): the solver is not trusted.
    """

    method: Literal["dual", "table", "cvxpy"] = "dual"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require.one_of(type(self).__name__, "method", self.method, ("dual", "table", "cvxpy"))

    @abstractmethod
    def _radius_sq(self, model: GP, output: int, spectrum: Spectrum) -> Tensor:
        """R_n², 0-d."""

    def _spectrum(self, model: GP, output: int) -> Spectrum:
        """Of M K Mᵀ and M y."""
        return _spectrum(model, output)

    def _seen(self, cross: Tensor) -> Tensor:
        """M k(X, z)."""
        return cross

    def _outer(self) -> ConfidenceBound | None:
        """A bound that holds on the same event."""
        return None

    def refusal(self, model: GP) -> str | None:
        """Needs the data themselves."""
        if not isinstance(model, GP):
            return "an exact GP"
        return super().refusal(model)

    def _beta(self, model: GP, norm: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
        if model.inputs is None:
            return norm
        return self.beta_at(model, 1.0)

    def beta_at(self, model: GP, ratio: float) -> Tensor:
        """√(s(η)/η) at η = ratio·λ, (p,), rounded outwards: for f in the set and any bounded linear ℓ, |ℓf − ℓμ_η| ≤ this times
        sd_η[ℓf]. NaN where s(η) < 0 (the set is empty). The model must have data.
        """
        values = []
        for j in range(model.num_outputs):
            program = self._plain(model, j)
            eta = ratio * model.regularizer[j : j + 1].to(program.radius_sq.device)
            gap = program.gap(eta)
            values.append(torch.where(gap.negative, math.nan, gap.upper / eta)[0])
        return torch.stack(values).sqrt()

    def _plain(self, model: GP, output: int) -> Program:
        """A program with M = I over a set that f* is in too."""
        assert model.inputs is not None
        return self.program(model, output, model.inputs[:1])

    def program(self, model: GP, output: int, z: Tensor) -> Program:
        """The program of one learned output at z (m, d). The model must have data."""
        if model.inputs is None or model.targets is None:
            raise _require.fail(type(self).__name__, "a model with data", "none")
        spectrum, kernel = self._spectrum(model, output), model.kernels[output]
        norm = self.norms(model.num_outputs)[output].to(z.device)
        cross = spectrum.vectors.mT @ self._seen(kernels.cross(kernel, model.inputs, z))
        radius_sq = self._radius_sq(model, output, spectrum)
        return Program(spectrum, cross, kernels.diagonal(kernel, z), radius_sq, norm)

    def interval(self, model: GP, z: Tensor) -> tuple[Tensor, Tensor]:
        """[min f(z), max f(z)] over the set at z (*b, d), both (*b, p), rounded outwards; inverted if it is
        empty.
        """
        self.check(model)
        width = self.prior_width(model, z)
        if model.num_data == 0:
            return -width, width
        low, high = -width, width
        outer = None if self.method == "table" else self._outer()  # η = λ is in the table
        if outer is not None:
            outer_low, outer_high = outer.interval(model, z)
            low, high = torch.maximum(low, outer_low), torch.minimum(high, outer_high)
        flat = z.reshape(-1, z.shape[-1])
        chunk = max(16, 100_000 // model.num_data)
        uppers, lowers, empties = [], [], []
        for j in range(model.num_outputs):
            solve = self._solver(model, j)
            programs = (self.program(model, j, part) for part in flat.split(chunk))
            parts = [solve(program) for program in programs]
            uppers.append(torch.cat([part[0] for part in parts]))
            lowers.append(torch.cat([part[1] for part in parts]))
            empties.append(self.program(model, j, flat[:1]).empty())
        upper = torch.stack(uppers, dim=-1).reshape(high.shape)
        lower = torch.stack(lowers, dim=-1).reshape(low.shape)
        low, high = torch.maximum(low, lower), torch.minimum(high, upper)
        empty = torch.stack(empties)
        low, high = torch.where(empty, width, low), torch.where(empty, -width, high)
        lost = ~torch.isfinite(z.square()).all(-1, keepdim=True)  # k(X, z) may be 0 there by overflow, and B√k finite
        return low.masked_fill(lost, math.nan), high.masked_fill(lost, math.nan)

    def _solver(self, model: GP, output: int) -> Callable[[Program], tuple[Tensor, Tensor]]:
        """Program → upper and lower, (m,)."""
        if self.method == "dual":
            return lambda program: program.solve()[:2]
        if self.method == "table":
            eta = model.regularizer[output] * torch.tensor(TABLE, dtype=torch.float64, device=model.regularizer.device)
            return lambda program: program.table(eta)
        from gpsafe.confidence.convex_proposer import Proposer  # cvxpy is slow to import

        proposer: list[Proposer] = []

        def solve(program: Program) -> tuple[Tensor, Tensor]:
            if not proposer:
                spectrum = program.spectrum
                proposer.append(Proposer(spectrum.values, spectrum.targets, program.radius_sq, program.norm))
            proposals = proposer[0].multipliers(program.cross, program.prior)
            return bound_at(program, proposals, float(model.regularizer[output]))

        return solve


@dataclass(frozen=True, kw_only=True)
class ConvexProgram(BallProgram):
    """max and min of f(z) over {f : ‖f(X) − y‖² ≤ R_n², ‖f‖_k ≤ B} at each query point, any fixed λ (see the
    module).

    With c = R²/λ the choice η = λ is exactly `Mixture`, which is always among the candidates: never wider
    than it. See `BallProgram` for an empty set.

    Args:
        scale: c > 0, scalar, fixed before the data; None: R²/λ.
        method: as in `BallProgram`.
    """

    scale: float | None = None

    name: ClassVar[str] = "convex-program"
    source: ClassVar[str] = "Flynn & Reeb 2024 (CMM)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None:
            _require.positive("ConvexProgram", "scale", self.scale)

    def _radius_sq(self, model: GP, output: int, spectrum: Spectrum) -> Tensor:
        noise = self.noise(model.num_outputs)
        scale = noise.square() / model.regularizer.cpu() if self.scale is None else torch.full_like(noise, self.scale)
        scale, noise = (value[output].to(spectrum.values.device) for value in (scale, noise))
        return spectrum.radius_sq(scale, noise, math.log(model.num_outputs / self.delta))

    def _mixture(self) -> Mixture:
        return Mixture(rkhs_norm=self.rkhs_norm, subgaussian=self.subgaussian, delta=self.delta, unchecked=True)

    def _outer(self) -> ConfidenceBound | None:
        return self._mixture() if self.scale is None else None

    def _beta(self, model: GP, norm: Tensor, noise: Tensor, log_inv_delta: float) -> Tensor:
        if self.scale is None or model.inputs is None:
            return self._mixture()._beta(model, norm, noise, log_inv_delta)
        return super()._beta(model, norm, noise, log_inv_delta)


@plain_tensors
def _spectrum(model: GP, output: int) -> Spectrum:
    """Eigen-decomposition of the model's Gram matrix, computed once per posterior and kernel."""
    assert model.inputs is not None and model.targets is not None
    cache = model._cache if model._cache is not None else {}
    kernel = model.kernels[output]
    key = f"spectrum-{id(kernel)}"
    if key not in cache:
        gram = kernels.cross(kernel, model.inputs, model.inputs)
        error = kernels.entry_error(kernel, model.inputs, product=False) * float(gram.trace())
        cache[key] = Spectrum.of(0.5 * (gram + gram.T), model.targets[:, output], error)
    found: Spectrum = cache[key]
    return replace(found, targets=found.vectors.T @ model.targets[:, output])
