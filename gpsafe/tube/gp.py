"""Tubes of a Gaussian process with a confidence set: containment is a theorem (theory §6.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast, get_args

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpsafe import _require, linalg
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost.curvature import remainder_outer
from gpsafe.cost.enclosure import jacobians
from gpsafe.cost.local_affine import LocalAffine
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels
from gpsafe.sets._containment import maximize_square
from gpsafe.sets.zonotope import HUGE
from gpsafe.systems.base import KnownPart, known_with_bound
from gpsafe.tube.core import MODES, Linearisation, Mode
from gpsafe.tube.ensemble import chi_square_radius

Noise = Literal["each", "sums"]


def residual_sizes(confidence: ConfidenceSet, reach: Tensor, moved: Tensor) -> Tensor:
    """`unseen` of `gpsafe.tube.core.sizes` for p + f about z of sizes (reach, moved), (*b, nx), (*b, nu) → (*b, nx): |x| for p,
    B√k(1 + 2 Σ_i |z_i|/ℓ_i) for f and its slopes, which those of p may cancel; ‖μ_n‖_k for B where no norm is assumed.
    """
    model, z = confidence.model, torch.cat([reach, moved], dim=-1)
    norm = confidence.bound.norms(model.num_outputs)
    if not bool(torch.isfinite(norm).all()):
        norm = model.posterior_norm()
    lengths = torch.stack([_lengths(kernel, z) for kernel in model.kernels], dim=-1)
    return reach + model.embed(norm.to(z.device) * model.prior_variance(z).sqrt() * (1 + 2 * lengths))


def _lengths(kernel: Kernel, z: Tensor) -> Tensor:
    """Σ_i |z_i|/ℓ_i of a stationary kernel, 0 of another, (*b, nz) → (*b,)."""
    form = kernels.stationary(kernel)
    if form is None:
        return torch.zeros_like(z[..., 0])
    active = z if form.dims is None else z[..., form.dims.to(z.device)]
    return (active / form.lengthscale.to(z.device)).sum(-1)


@short
@dataclass(frozen=True, slots=True, eq=False)
class GPTube:
    """x⁺ = p(z) + f(z) + w, f ∈ F_n with ‖f_j‖_k ≤ B_j, w ~ N(0, diag noise_std²), as a tube model with M = 1.

    The nominal path is that of μ = p + μ_n, with its exact Jacobian.

    *paper*: W = posterior variance plus noise variance, no remainder.

    *sound*: W = ρ² diag noise_std² with ρ² = χ²_{r, 1−δ/steps} (r noisy states), so that all noises of a plan are in their
    ellipsoids with probability 1 − δ; and, for z = z̄ + v, v = Mξ, ‖ξ‖ ≤ 1, M = (I; K)L, e = k(z, ·) − k(z̄, ·) − ∂_v k(z̄, ·),

        |f(z) − μ_n(z̄) − ∂_v μ_n(z̄)| ≤ |f(z̄) + ∂_v f(z̄) − μ_n(z̄) − ∂_v μ_n(z̄)| + |⟨f, e⟩|
                                      ≤ sup_v β sd_post[f(z̄) + ∂_v f(z̄)] + B sup_v ‖e‖_k.                          (2)

    Proof. ⟨f, e⟩ = f(z) − f(z̄) − ∂_v f(z̄) by the reproducing property of values and derivatives, then Cauchy–Schwarz. The first
    term is the self-normalised bound for the functional f ↦ f(z̄) + ∂_v f(z̄), on the event f* ∈ F_n; ‖e‖_k comes from the
    kernel's profile and grows with ‖v/ℓ‖ ≤ σ_max(diag(1/ℓ)M) (both: gpsafe.confidence.functionals). The supremum of the
    first term is one of a convex quadratic over a ball, bounded from above by the S-procedure. □

    Other forms are taken where they are narrower, output by output: value and slope apart, with the running intersection of
    values; and |f(z) − f(z̄)| ≤ B d_k(z, z̄), without gradients. The known part adds its second-order remainder. That is (1) of
    `gpsafe.tube.core`: containment holds with the probability of {f* ∈ F_n} and of the noise events. R is +inf where F_n is
    empty: an assumption is then false and nothing is claimed.

    With `noise` = "sums" the noises of a plan are not held in their ellipsoids one by one: their sums through the linear loop
    are, which are Gaussian with a known covariance (`gpsafe.tube.core`). That is narrower, up to √T, and true of Gaussian
    noise alone: with probability 1 − δ for a plan, whatever f ∈ F_n is.

    Args:
        confidence: F_n; its newest posterior is μ_n. Its kernels must be stationary (RBF or Matérn).
        steps: of a plan, for the union over noises.
        delta: probability that a noise of a plan leaves its ellipsoid.
        mode: "sound" by default.
        noise: "each" or "sums".
    """

    confidence: ConfidenceSet
    steps: int
    delta: float
    mode: Mode = "sound"
    noise: Noise = "each"

    def __post_init__(self) -> None:
        _require.one_of("GPTube", "mode", self.mode, MODES)
        _require.one_of("GPTube", "noise", self.noise, get_args(Noise))
        chi_square_radius(1, self.delta, self.steps)
        if self.mode == "sound":
            known_with_bound("GPTube", self.model.prior)
            _require.half_axes("GPTube", "noise_std", self.model.noise_std)
            self.confidence.check_noise("GPTube", self.model.noise_std)

    @property
    def model(self) -> GP:
        """μ_n, σ_n."""
        return self.confidence.model

    @property
    def edited(self) -> str | None:
        """See `TubeModel`."""
        return self.confidence.edited if self.mode == "sound" else None

    @property
    def nx(self) -> int:
        """State dimension."""
        return self.model.nx

    @property
    def nu(self) -> int:
        """Input dimension."""
        return self.model.nu

    @property
    def num_members(self) -> int:
        """1."""
        return 1

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """Those of the confidence set, and of the noise of one plan."""
        if self.mode == "paper":
            return listed(Assumption.PAPER_TUBE())
        held = "" if self.noise == "each" else ", summed through the linear loop"
        ellipsoid = (
            f"{held}: for the {self.steps} steps of one plan, probability ≥ {1 - self.delta:g} for Gaussian noise"
        )
        return listed(
            self.confidence.assumptions,
            [] if self.confidence.sound else [Assumption.IN_SET(f" ({self.confidence.bound.name} is no theorem here)")],
            self.confidence.unlearned,
            Assumption.KNOWN_DERIVATIVES(),
            Assumption.NOISE_ELLIPSOID(ellipsoid),
            Assumption.GAUSSIAN_NOISE(),
            Assumption.ROUNDING(),
        )

    @property
    def growth(self) -> Callable[[int], float] | None:
        """ρ_k/ρ with ρ_k² = χ²_{min(nx, kr), 1−δ/steps}, k ≤ steps, see `gpsafe.tube.core`; None for noises one by one."""
        noisy = int((self.model.noise_std > 0).sum())
        return None if self.noise == "each" or noisy == 0 else partial(self._growth, noisy)

    def _growth(self, noisy: int, k: int) -> float:
        if k > self.steps:
            raise _require.fail("GPTube", f"a plan of at most {self.steps} steps", k)
        radii = [chi_square_radius(dim, self.delta, self.steps) for dim in (min(self.nx, k * noisy), noisy)]
        return radii[0] / radii[1] * (1 + 1e-14)

    def linearise(self, x: Tensor, u: Tensor) -> Linearisation:
        """See `TubeModel`; values and Jacobians without a graph."""
        model, u = self.model, u.expand(*x.shape[:-1], self.nu)
        z = torch.cat([x, u], dim=-1).detach()
        prediction = model.predict(x, u)
        slope, _ = model.gradient(z.reshape(-1, z.shape[-1]))
        slope = slope.reshape(*z.shape[:-1], *slope.shape[1:])
        learned = torch.zeros(*x.shape, z.shape[-1], dtype=z.dtype, device=z.device)
        learned[..., list(model.outputs), :] = slope
        A, B = jacobians(cast(KnownPart, model.prior), x, u)  # only its values are used
        noise_var = model.noise_std.to(x.device).square()
        if self.mode == "paper":
            variance = prediction.std.square() + noise_var
        else:
            radius = chi_square_radius(int((model.noise_std > 0).sum()), self.delta, self.steps)
            variance = (radius**2 * noise_var).expand(x.shape)
        return Linearisation(prediction.mean, A + learned[..., : self.nx], B + learned[..., self.nx :], variance)

    def unseen(self, reach: Tensor, moved: Tensor) -> Tensor:
        """See `residual_sizes`."""
        return residual_sizes(self.confidence, reach, moved)

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        """R = (2) plus the known part's remainder, see the class."""
        if self.mode == "paper":
            return torch.zeros_like(x)
        z = torch.cat([x, u.expand(*x.shape[:-1], self.nu)], dim=-1)
        spread = torch.cat([factor, gain @ factor], dim=-2)  # M, (*b, 1, nz, m)
        finite = torch.isfinite(z).all(-1) & (spread.abs() <= HUGE).all(-1).all(-1)
        z = torch.where(finite.unsqueeze(-1), z, 0.0)  # decompositions raise for NaN: these points get inf below
        spread = torch.where(finite[..., None, None], spread, 0.0)
        reach = spread.norm(dim=-1) * (1 + 1e-14)
        known = self.model.prior
        assert isinstance(known, KnownPart)
        total = remainder_outer(known, z, reach)
        learned = self._learned(z.reshape(-1, z.shape[-1]), spread.reshape(-1, *spread.shape[-2:]))
        total[..., list(self.model.outputs)] += learned.reshape(*z.shape[:-1], -1)
        return torch.where(finite.unsqueeze(-1), total, torch.inf)

    def _learned(self, z: Tensor, spread: Tensor) -> Tensor:
        """The least of the bounds on |f(z̄ + v) − μ_n(z̄) − ∂_v μ_n(z̄)|, (n, p) for z̄ (n, nz), M (n, nz, m)."""
        local = LocalAffine.at(self.confidence, z)
        reach = spread.norm(dim=-1) * (1 + 1e-14)
        if local.mean is None:
            mean = self.model.residual_mean(z)
            slope, _ = self.model.gradient(z)
        else:
            mean, slope = local.mean[..., 0], local.mean[..., 1:]
        value = (local.middle - mean).abs() + local.half
        tilt = (slope @ spread).norm(dim=-1)
        bound = value + tilt + local.norm * local.moduli.metric(reach)
        if local.cov is not None:
            rest = local.norm * local.moduli.rest_within(
                lambda scale: torch.linalg.matrix_norm(scale.unsqueeze(-1) * spread, ord=2) * (1 + 1e-12)
            )
            root = linalg.psd_root(local.cov).mT  # cov = rootᵀ root, (n, p, 1 + d, 1 + d)
            moved = root[..., 1:] @ spread.unsqueeze(-3)
            apart = torch.linalg.matrix_norm(moved, ord=2)
            joint = maximize_square(root[..., 0], moved)[0].clamp_min(0.0).sqrt()
            bound = torch.minimum(bound, torch.minimum(joint, value + apart) * (1 + 1e-10) + rest)
        return torch.where(local.empty.unsqueeze(-1), torch.full_like(bound, torch.inf), bound * (1 + 1e-12))
