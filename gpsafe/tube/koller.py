"""Ellipsoidal tubes of Koller et al.: one Gaussian-process step over an ellipsoid, over-approximated with Lipschitz constants.

[CDC] Koller, Berkenkamp, Turchetta & Krause, "Learning-based model predictive control for safe exploration", CDC 2018
(arXiv 1803.08287); [J] Koller, Berkenkamp, Turchetta, Boedecker & Krause, "Learning-based model predictive control for
safe exploration and reinforcement learning" (arXiv 1906.12189), and its program `safe-exploration` (`onestep_reachability`).

The plant is x⁺ = h(z) + g(z), z = (x, u), g learned; u = ū + K(x − p) and x ∈ E(p, Q), so that z − z̄ = S(x − p), S = (I; K),
and

    r² = max ‖z − z̄‖² = λ_max(Q SᵀS).

*mean* ([J] and the program) linearises h + μ_n. With L_∇ the Lipschitz constants of the gradients and L_σ that of σ_n,

    |f_j(z) − f̃_j(z)| ≤ ½(L_∇h,j + L_∇μ,j) r² + β(σ_j(z̄) + L_σ,j r) =: b¹_j + b²_j.

*known* ([CDC]) linearises h alone and takes μ_n(z̄), with L_g the Lipschitz constant of g itself:

    |f_j(z) − f̃_j(z)| ≤ ½ L_∇h,j r² + L_g,j r + βσ_j(z̄) =: b_j.

Then E(p⁺, Q⁺), p⁺ = h(z̄) + μ_n(z̄), is the sum of E(0, H Q Hᵀ), H = f̃'s closed loop, and of the least ellipsoids around the
boxes, Q_b = n_x diag(b_j²); the sum of two is (1 + 1/c)Q₁ + (1 + c)Q₂ with c = √(tr Q₁/tr Q₂) (Kurzhanski), which is
associative.

**What it proves.** With |f − μ_n| ≤ βσ_n everywhere and true constants, x_k ∈ E(p_k, Q_k) for all k: by Taylor's theorem on
the segment from z̄ to z, and σ_n(z) ≤ σ_n(z̄) + L_σ‖z − z̄‖. The papers leave the constants to the user, and the program
estimates L_∇μ and L_σ on samples; then containment is no theorem. Here they are derived from the kernel, k(z, z′) = v κ(‖(z −
z′)/ℓ‖), where not given:

    L_∇μ = ‖μ_n‖_k √(v κ⁗(0))/ℓ_min²,      L_σ = √(−v κ″(0))/ℓ_min,      L_g = B L_σ.

Proof. ∂_a∂_a μ(z) = ⟨μ, ∂_a∂_a k(z, ·)⟩ and ‖∂_a∂_a k(z, ·)‖² = v κ⁗(0)‖a/ℓ‖⁴. σ_n(z) = ‖A k(z, ·)‖ for an A with AᵀA ⪯ I, so
|σ_n(z) − σ_n(z′)| ≤ ‖k(z, ·) − k(z′, ·)‖, whose square is 2v(1 − κ) ≤ −vκ″(0)‖(z − z′)/ℓ‖². The last is |g(z) − g(z′)| ≤ B
d_k. □

The papers' plant has no process noise; ours does, and its ellipsoid is one more summand, as in `gpsafe.tube.gp`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost.enclosure import jacobians
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels
from gpsafe.sets.zonotope import HUGE
from gpsafe.systems.base import KnownPart, known_with_bound
from gpsafe.tube.core import Linearisation, Mode
from gpsafe.tube.ensemble import chi_square_radius
from gpsafe.tube.gp import residual_sizes

Form = Literal["mean", "known"]


@short
@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """Lipschitz constants of the learned outputs.

    Attributes:
        slope: L_∇μ, of the gradient of the posterior mean, (p,). It is halved in b¹: a constant that is to multiply r² itself
        is
            L_∇μ/2.
        std: L_σ, of the posterior deviation, (p,).
        value: L_g, of the residual itself, (p,).
    """

    slope: Tensor
    std: Tensor
    value: Tensor

    @staticmethod
    def of(confidence: ConfidenceSet) -> Constants:
        """Derived from the kernels, see the module; inf where a kernel is not smooth enough or no norm is assumed.

        Raises:
            ValueError: if a kernel is not one stationary part of RBF, Matérn 3/2 or 5/2.
        """
        model = confidence.model
        norms, size = confidence.bound.norms(model.num_outputs), model.posterior_norm()
        slope, std = [], []
        for j, kernel in enumerate(model.kernels):
            form = kernels.stationary(kernel)
            if form is None or form.nu < 1:
                raise _require.fail("KollerTube", "an RBF, Matérn 3/2 or 5/2 kernel", kernels.describe(kernel))
            scale = float(form.lengthscale.min())
            fourth = {math.inf: 3.0, 2.5: 25.0}.get(form.nu, math.inf)
            at_zero = float(form.slope(torch.zeros((), dtype=torch.float64)))
            slope.append(float(size[j]) * math.sqrt(form.variance * fourth) / scale**2)
            std.append(math.sqrt(form.variance * at_zero) / scale)
        bend, steep = torch.tensor(slope, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        return Constants(bend * (1 + 1e-12), steep * (1 + 1e-12), norms * steep * (1 + 1e-12))


@short
@dataclass(frozen=True, slots=True, eq=False)
class KollerTube:
    """The tube of the module as a tube model with M = 1.

    Args:
        confidence: its newest posterior is μ_n, σ_n, and its bound gives β.
        steps, delta: of the noise events, as in `GPTube`.
        form: "mean" or "known".
        constants: given by the user, who vouches for them; derived from the kernel if None.
    """

    confidence: ConfidenceSet
    steps: int
    delta: float
    form: Form = "mean"
    constants: Constants | None = None

    def __post_init__(self) -> None:
        where = "KollerTube"
        _require.one_of(where, "form", self.form, get_args(Form))
        chi_square_radius(1, self.delta, self.steps)
        known_with_bound(where, self.model.prior)
        _require.half_axes(where, "noise_std", self.model.noise_std)
        self.confidence.check_noise(where, self.model.noise_std)
        for name in ("slope", "std", "value"):
            value = _require.nonnegative(where, name, getattr(self.used, name).nan_to_num(nan=-1.0, posinf=1e300))
            _require.shape(where, name, value, (self.model.num_outputs,))

    @property
    def model(self) -> GP:
        """μ_n, σ_n."""
        return _require.kind("KollerTube", "model", self.confidence.model, GP)

    @property
    def used(self) -> Constants:
        """The constants that count."""
        return Constants.of(self.confidence) if self.constants is None else self.constants

    @property
    def edited(self) -> str | None:
        """See `TubeModel`."""
        return self.confidence.edited

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
    def mode(self) -> Mode:
        """Sound: Q_0 = 0, and containment is a theorem under `assumptions`."""
        return "sound"

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """Those of the confidence set, of constants that were given, and of the noise of one plan."""
        ellipsoid = f": for the {self.steps} steps of one plan, probability ≥ {1 - self.delta:g} for Gaussian noise"
        return listed(
            self.confidence.assumptions,
            [] if self.confidence.sound else [Assumption.IN_SET(f" ({self.confidence.bound.name} is no theorem here)")],
            []
            if self.constants is None
            else [Assumption.LIPSCHITZ(": of the mean's gradient, of the deviation, of f")],
            self.confidence.unlearned,
            Assumption.KNOWN_DERIVATIVES(),
            Assumption.NOISE_ELLIPSOID(ellipsoid),
            Assumption.GAUSSIAN_NOISE(),
            Assumption.ROUNDING(),
        )

    def linearise(self, x: Tensor, u: Tensor) -> Linearisation:
        """f̃ at z̄, and the noise's ellipsoid; without a graph."""
        model, u = self.model, u.expand(*x.shape[:-1], self.nu)
        z = torch.cat([x, u], dim=-1).detach()
        A, B = jacobians(cast(KnownPart, model.prior), x, u)
        if self.form == "mean":
            slope, _ = model.gradient(z.reshape(-1, z.shape[-1]))
            learned = torch.zeros(*x.shape, z.shape[-1], dtype=z.dtype, device=z.device)
            learned[..., list(model.outputs), :] = slope.reshape(*z.shape[:-1], *slope.shape[1:])
            A, B = A + learned[..., : self.nx], B + learned[..., self.nx :]
        noise = model.noise_std.to(x.device)
        radius = chi_square_radius(int((noise > 0).sum()), self.delta, self.steps)
        mean = model.predict(x, u).mean
        return Linearisation(mean, A, B, (radius**2 * noise.square()).expand(x.shape))

    def unseen(self, reach: Tensor, moved: Tensor) -> Tensor:
        """See `residual_sizes`."""
        return residual_sizes(self.confidence, reach, moved)

    def boxes(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> tuple[Tensor, ...]:
        """b¹ and b² (*mean*) or b (*known*), (*b, M, nx) each, see the module; inf where numbers are lost, where the section
        leaves what the bound's theorem covers, and where F_n is empty: an assumption is then false and nothing is claimed.
        """
        model, used = self.model, self.used
        z = torch.cat([x, u.expand(*x.shape[:-1], self.nu)], dim=-1)
        spread = torch.cat([factor, gain @ factor], dim=-2)
        fine = torch.isfinite(z).all(-1) & (spread.abs() <= HUGE).all(-1).all(-1)
        z, spread = torch.where(fine.unsqueeze(-1), z, 0.0), torch.where(fine[..., None, None], spread, 0.0)
        r = torch.linalg.matrix_norm(spread, ord=2).unsqueeze(-1) * (1 + 1e-12)
        known = cast(KnownPart, model.prior).hessian_bound.to(x.device)
        bend = torch.linalg.matrix_norm(known, ord=2) * (1 + 1e-12)
        reach = spread.norm(dim=-1) * (1 + 1e-12)
        fine = fine & self.confidence.bound.covers(z - reach, z + reach)
        fine = fine & ~self.confidence.empty(z)
        beta = self.confidence.bound.beta(model).to(x.device)
        _, std = model.posterior(z)
        doubt = self.confidence.bound.half_width(model, beta, std, model.prior_variance(z)) + model.mean_error(z)
        moved = torch.where(r > 0, r, 1.0)  # a constant may be infinite, and nothing moves at r = 0
        if self.form == "mean":
            curved = 0.5 * torch.where(r > 0, used.slope.to(x.device) * moved.square(), 0.0)
            parts = (0.5 * bend * r.square() + model.embed(curved), doubt + beta * used.std.to(x.device) * r)
            parts = (parts[0], model.embed(parts[1]))
        else:
            shift = torch.where(r > 0, used.value.to(x.device) * moved, 0.0)
            parts = (0.5 * bend * r.square() + model.embed(doubt + shift),)
        return tuple(torch.where(fine.unsqueeze(-1), part, torch.inf) for part in parts)

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        """The sum of `boxes`: R of `gpsafe.tube.core`."""
        return torch.stack(self.boxes(x, u, factor, gain)).sum(0)
