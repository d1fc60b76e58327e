"""Tubes of network ensembles: the published one, and one that is sound if the ensemble is calibrated (theory §6.4, §7.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from scipy import stats
from torch import Tensor

from gpsafe import _require
from gpsafe._pinned import Pinned, pinned_prior
from gpsafe._sealed import Seal, require_unbroken, sealed
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.cost.curvature import remainder_outer
from gpsafe.data import Transitions
from gpsafe.models.ensemble import Ensemble
from gpsafe.models.gp import identity_prior, zero_prior
from gpsafe.systems.base import KnownPart
from gpsafe.tube.core import MODES, Linearisation, Mode

BY_HAND = " (stated by hand)"


def chi_square_radius(dim: int, delta: float, steps: int) -> float:
    """ρ with P(‖ξ_k‖ > ρ for some of `steps` k) ≤ δ for standard normal ξ_k in `dim` dimensions: √χ²_{dim, 1−δ/steps}.

    Union bound over steps; any dependence between them is allowed.
    """
    _require.probability("chi_square_radius", "delta", delta)
    _require.count("chi_square_radius", "steps", steps)
    _require.index("chi_square_radius", "dim", dim)
    return math.sqrt(float(stats.chi2.isf(delta / steps, dim))) if dim > 0 else 0.0


@short
@dataclass(frozen=True, slots=True, eq=False)
class EnsembleTube:
    """An ensemble as tube model: W_m = radius² · diag σ_m²(x̄, v). Build with `paper`, `sound` or `calibrated`.

    In sound mode R has two parts, both theorems about the given networks, over z = z̄ + Mξ, ‖ξ‖ ≤ 1, M = (I; K)L.

    (i) The linearisation error g(z) = μ(z) − μ(z̄) − ∂μ(z̄)(z − z̄). The unit ball is covered by cubes of half-width h about
    points ξ_c; with z_c = z̄ + Mξ_c, in each cube

        |g(z_c + Mη)| ≤ |g(z_c)| + h Σ_j |((∂μ(z_c) − ∂μ(z̄))M)_j| + ½ rᵀHr,   |η_j| ≤ h,   r = h Σ_j |M_j|,

    by Taylor's theorem, H an interval bound of the networks' second derivatives over that cube (plus the known part's). The
    largest over the cubes counts. One cube would do, but interval bounds over large boxes are loose.

    (ii) radius · (sup σ_m − σ_m(z̄)), since the spread is that of z, not of z̄.

    What is believed is (1) with E(0, radius²·diag σ_m²(z)) at z itself: the assumption `calibrated`.

    Attributes:
        ensemble: its `clamp` decides the spread that is used: "hard" is the published planner's.
        mode: paper or sound.
        radius: in units of σ_m; 1 in paper mode.
        assumptions: what the radius rests on. Those of `sound` and `calibrated` speak of one ensemble, radius and number of
            steps: `dataclasses.replace` refuses others. A radius stated by hand is listed as such.
        cells: at most this many cells cover a section in sound mode.
        steps: of a plan, over which the radius counts its events; longer plans are refused. None if it is not told.
    """

    ensemble: Ensemble
    mode: Mode = "paper"
    radius: float = 1.0
    assumptions: tuple[Believed, ...] = ()
    cells: int = 64
    steps: int | None = None
    _pinned: Pinned = field(init=False, compare=False)
    _numbers: tuple[Tensor, ...] = field(init=False, compare=False)
    _seal: Seal | None = field(default=None, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        _require.one_of("EnsembleTube", "mode", self.mode, MODES)
        _require.positive_number("EnsembleTube", "radius", self.radius)
        _require.count("EnsembleTube", "cells", self.cells)
        if self.mode == "sound":
            _require.half_axes("EnsembleTube", "smallest deviation", torch.exp(0.5 * self.ensemble.log_var_limits[0]))
        plain = self.ensemble.prior is zero_prior or self.ensemble.prior is identity_prior
        bends = [] if plain or self.mode == "paper" else [Assumption.KNOWN_DERIVATIVES()]
        # What was stated by hand is of another radius, perhaps.
        told = [entry for entry in listed(self.assumptions) if not entry.endswith(BY_HAND)]
        if self.mode == "paper":  # of a sound one, too: nothing is claimed any more
            told = listed(Assumption.PAPER_TUBE(), [entry for entry in told if entry.kind is Assumption.GIVEN])
            object.__setattr__(self, "_seal", None)
        elif not any(entry.kind is Assumption.CALIBRATED for entry in told):
            stated = f": one member is right to within {self.radius:g} σ_m{BY_HAND}"
            told = listed(Assumption.CALIBRATED(stated), told)
        object.__setattr__(self, "assumptions", listed(told, bends))
        if self.steps is not None:
            _require.count("EnsembleTube", "steps", self.steps)
        object.__setattr__(self, "_pinned", pinned_prior(self.ensemble.prior, self.nx, self.nu))
        object.__setattr__(self, "_numbers", tuple(part.detach().clone() for part in self._parts()))
        require_unbroken("EnsembleTube", self)

    @staticmethod
    def paper(ensemble: Ensemble, *, variance: Literal["clip", "trained"] = "clip") -> EnsembleTube:
        """The published tube: one standard deviation, no remainder.

        Args:
            ensemble: any.
            variance: "clip": exp of the raw output, clipped to the ensemble's limits (published NLP); "trained": the soft clamp
                with which it was trained.
        """
        _require.one_of("EnsembleTube.paper", "variance", variance, ("clip", "trained"))
        return EnsembleTube(replace(ensemble, clamp="hard" if variance == "clip" else "soft"), "paper", 1.0)

    @staticmethod
    def sound(
        ensemble: Ensemble, *, steps: int, delta: float, aleatoric: float = 1.0, epistemic: float = 0.0
    ) -> EnsembleTube:
        """radius = aleatoric · √χ²_{nx, 1−δ/steps} + epistemic, jointly over all steps of a plan.

        Right with probability 1 − δ if, at every z that the plan visits and for one member m, w is Gaussian with standard
        deviations ≤ aleatoric·σ_m(z), and ‖(f(z) − μ_m(z))/σ_m(z)‖ ≤ epistemic: ‖w/σ‖ + ‖(f − μ)/σ‖ ≤ radius.
        """
        where = "EnsembleTube.sound"
        epistemic = _require.number(where, "epistemic", epistemic, minimum=0.0)
        _require.positive_number(where, "aleatoric", aleatoric)
        radius = aleatoric * chi_square_radius(ensemble.nx, delta, steps) + epistemic
        told = listed(
            Assumption.CALIBRATED(f": one member m has noise ≤ {aleatoric:g} σ_m and ‖(f − μ_m)/σ_m‖ ≤ {epistemic:g}"),
            Assumption.NOISE_ELLIPSOID(
                f": for the {steps} steps of one plan, probability ≥ {1 - delta:g} for Gaussian noise"
            ),
            Assumption.ROUNDING(),
        )
        return _of_its_maker(EnsembleTube(ensemble, "sound", radius, told, steps=steps))

    @staticmethod
    def calibrated(ensemble: Ensemble, held_out: Transitions, *, steps: int, delta: float) -> EnsembleTube:
        """Radius by split conformal prediction: the ⌈(n+1)(1 − δ/steps)⌉-th smallest of the n scores max_m ‖(x⁺ − μ_m)/σ_m‖.

        If the steps of a plan are exchangeable with the n held-out rows, all members hold at all steps with probability 1 − δ.
        Closed loops shift the distribution, so this is the assumption `calibrated`, not a theorem about the tube. That the rows
        were never trained on is not checked.

        Raises:
            ValueError: if n < steps/δ − 1, too few for the quantile.
        """
        _require.probability("EnsembleTube.calibrated", "delta", delta)
        _require.count("EnsembleTube.calibrated", "steps", steps)
        mean, std = ensemble.evaluate(held_out.x, held_out.u)
        score = ((held_out.x_next - mean) / std).norm(dim=-1).amax(0).sort().values
        n = score.numel()
        rank = math.ceil((n + 1) * (1 - delta / steps))
        if rank > n:
            least = math.ceil(steps / delta) - 1
            raise _require.fail("EnsembleTube.calibrated", f"at least {least} held-out rows", n)
        told = listed(
            Assumption.CALIBRATED(
                f" by {n} held-out rows: probability ≥ {1 - delta:g} for the {steps} steps of one plan"
            ),
            Assumption.EXCHANGEABLE(": plan steps and held-out rows"),
            Assumption.HELD_OUT(),
            Assumption.ROUNDING(),
        )
        return _of_its_maker(EnsembleTube(ensemble, "sound", float(score[rank - 1]), told, steps=steps))

    @property
    def edited(self) -> str | None:
        """See `TubeModel`; of the published tube nothing is claimed."""
        if self.mode == "paper":
            return None
        if self._pinned.moved:
            return "the known part with which the networks were trained and calibrated"
        if not all(map(torch.equal, self._parts(), self._numbers)):
            return "the networks, their normalisation and limits as they were calibrated"
        return None

    def _parts(self) -> tuple[Tensor, ...]:
        """All numbers of the ensemble."""
        model = self.ensemble
        scales = (model.inputs.offset, model.inputs.scale, model.targets.offset, model.targets.scale)
        return *model.network.weights, *model.network.biases, *scales, model.log_var_limits

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.ensemble.nx

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.ensemble.nu

    @property
    def num_members(self) -> int:
        """M."""
        return self.ensemble.members

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """See `TubeModel`."""
        u = u.expand(*x.shape[:-1], self.nu)
        return self.ensemble.mean(x.movedim(-2, 0), u.movedim(-2, 0), paired=True).movedim(0, -2)

    def linearise(self, x: Tensor, u: Tensor) -> Linearisation:
        """See `TubeModel`; exact Jacobians, differentiable."""
        u = u.expand(*x.shape[:-1], self.nu)
        found = self.ensemble.linearize(x.movedim(-2, 0), u.movedim(-2, 0), paired=True)
        jacobian = found.jacobian.movedim(0, -3)
        variance = self.radius**2 * torch.exp(found.log_var).movedim(0, -2)
        return Linearisation(found.mean.movedim(0, -2), jacobian[..., : self.nx], jacobian[..., self.nx :], variance)

    def unseen(self, reach: Tensor, moved: Tensor) -> Tensor:
        """|x| for a known part, and what the networks' targets are measured in, see `gpsafe.tube.core.sizes`."""
        targets = self.ensemble.targets
        return reach + targets.offset.abs() + targets.scale

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        """See the class. Rigorous up to the last inclusion in the assumption."""
        if self.mode == "paper":
            return torch.zeros_like(x)
        nx, batch = self.nx, x.shape[:-1]
        z = torch.cat([x, u.expand(*batch, self.nu)], dim=-1)
        spread = torch.cat([factor, gain @ factor], dim=-2)  # M, (*b, M, nz, m)
        cells, half = _cells(factor.shape[-1], self.cells, z)
        points = (z.unsqueeze(-2) + cells @ spread.mT).movedim(-2, 0)  # (C, *b, M, nz)
        reach = half * spread.abs().sum(-1) * (1 + 1e-14)
        here, there = self._local(z), self._local(points)
        turned = there[1] - here[1]
        moved = (points - z).unsqueeze(-1)
        bent = (there[0] - here[0] - (here[1] @ moved).squeeze(-1)).abs() + half * (turned @ spread).abs().sum(-1)
        curvature, std_upper = self._over(points, reach)
        bent = bent + 0.5 * torch.einsum("...ijk,...j,...k->...i", curvature, reach, reach)
        prior = self.ensemble.prior
        if prior is not zero_prior and prior is not identity_prior:
            if not isinstance(prior, KnownPart):
                raise _require.fail("EnsembleTube", "a prior that has a hessian_bound", type(prior).__name__)
            bent = bent + remainder_outer(prior, points, reach.expand_as(points))
        grown = self.radius * (std_upper.amax(0) * (1 + 1e-12) - here[2]).clamp_min(0.0)
        return bent.amax(0) * (1 + 1e-12) + grown.reshape(*batch, nx)

    def _local(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (*b, M, nx), its Jacobian in z (*b, M, nx, nz) and σ (*b, M, nx) at z (*b, M, nz)."""
        local = self.linearise(z[..., : self.nx], z[..., self.nx :])
        return local.mean, torch.cat([local.A, local.B], dim=-1), local.variance.sqrt() / self.radius

    def _over(self, z: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Networks over z ± reach (*b, M, nz): |∂²μ| ≤ (*b, M, nx, nz, nz) without the known part, and sup σ (*b, M, nx)."""
        model, batch = self.ensemble, z.shape[:-2]
        scale = model.inputs.scale
        slack = 1e-15 * (z.abs() + reach + model.inputs.offset.abs()) / scale
        low, high = (
            (model.inputs(z + sign * reach) + sign * slack).movedim(-2, 0).reshape(self.num_members, -1, z.shape[-1])
            for sign in (-1, 1)
        )
        found = model.network.ranges(low, high)
        hessian = found.hessian[:, :, : self.nx] / (scale.unsqueeze(-1) * scale)
        hessian = model.targets.scale.reshape(-1, 1, 1) * hessian * (1 + 1e-12)
        raw = (found.value + found.value_radius)[..., self.nx :]
        std = torch.exp(0.5 * model._log_var(raw))
        hessian = hessian.reshape(self.num_members, *batch, *hessian.shape[2:]).movedim(0, -4)
        return hessian, std.reshape(self.num_members, *batch, self.nx).movedim(0, -2)


def _of_its_maker(tube: EnsembleTube) -> EnsembleTube:
    return sealed(tube, free=("cells",), watched=("ensemble",))


def _cells(dim: int, budget: int, like: Tensor) -> tuple[Tensor, float]:
    """Centres (C, dim) and half-width of the cubes of a regular grid on [−1, 1]^dim, C ≤ budget, that meet the unit ball."""
    side = max(1, math.floor(budget ** (1.0 / dim) + 1e-9))
    half = 1.0 / side
    line = torch.linspace(-1 + half, 1 - half, side, dtype=like.dtype, device=like.device)
    centers = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
    nearest = (centers.abs() - half).clamp_min(0.0).norm(dim=-1)
    return centers[nearest <= 1.0], half
