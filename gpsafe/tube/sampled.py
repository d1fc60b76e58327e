"""Tubes of posterior samples: a plan is followed under K functions drawn from the Gaussian process, and that is the tube.

After Prajapat et al., "Finite-sample-based reachability for safe control with Gaussian process dynamics" (arXiv 2505.07594),
and their program `sampling-gpmpc`: member m of the tube is x⁺ = p(z) + f_m(z), f_m one function
at all times (Matheron's rule, `gpsafe.models.samples`), with the same inputs for all.

**What K samples prove**, about one number s(f) of a plan (the largest excess of a constraint row, say), *for a plan that was
fixed before the samples were drawn*. A planner that optimises against them, as the published controller does, has used them up.

(i) If f* is itself a draw of the posterior (the prior is right, the noise is Gaussian with variance λ), f*, f_1 … f_K are
exchangeable, and P(s(f*) > max_m s(f_m)) ≤ 1/(K + 1). Over all plants and data, and for that one number: q of them need
q/(K + 1). (The draws are those of random features, which err by O(1/√F) in their covariance.)

(ii) With probability ≥ 1 − β over the samples, P(s(f) > max_m s(f_m)) ≤ ε for a further draw f, for (1 − ε)^K ≤ β
(`sampled_level`): a draw beyond the (1 − ε)-quantile of s is missed by all K with probability (1 − ε)^K.

(iii) About the ball ‖f‖_k ≤ B nothing, unless the samples are so many that one of them is near *every* member: by Cameron and
Martin P(‖f_m − g‖ ≤ ε) ≥ e^{−‖g‖²/2} P(‖f_m‖ ≤ ε) for a sample f_m of the centred process and any symmetric convex norm, so
that K ≥ ln β/ln(1 − e^{−B²/2} P_ε) have one within ε of a given g with probability ≥ 1 − β (`sampled_count`). B = 4.5 and P_ε =
1/100 ask for 6·10⁶ at β = 0.1.

None of them is containment of one given plant. So the tube is heuristic, in paper mode, and says so in `assumptions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.assumptions import Assumption, Believed, listed
from gpsafe.models._prior import prior_jacobian
from gpsafe.models.gp import GP
from gpsafe.models.samples import FunctionSamples, sample_functions
from gpsafe.tube.core import Linearisation, Mode
from gpsafe.tube.ensemble import chi_square_radius


def sampled_level(samples: int, failure: float) -> float:
    """ε of (ii): the share of further draws beyond the largest of K, but with probability β = `failure` over the K."""
    _require.probability("sampled_level", "failure", failure)
    return -math.expm1(math.log(failure) / _require.count("sampled_level", "samples", samples))


def sampled_count(norm: float, small_ball: float, failure: float) -> float:
    """K of (iii), for ‖g‖_k ≤ B = `norm` and P_ε = `small_ball`; may be astronomical."""
    where = "sampled_count"
    norm = _require.number(where, "norm", norm, minimum=0.0)
    _require.probability(where, "small_ball", small_ball)
    _require.probability(where, "failure", failure)
    chance = math.exp(-0.5 * norm**2) * small_ball
    count = math.inf if chance == 0.0 else math.log(failure) / math.log1p(-chance)
    return count if math.isinf(count) else math.ceil(count)


@short
@dataclass(frozen=True, slots=True, eq=False)
class SampledTube:
    """The tube of the module as a tube model with M = K members, in paper mode.

    The plant's noise, which the published tubes do not have, is W = ρ² diag noise_std², as in `GPTube`.

    Args:
        model: the posterior.
        samples: K.
        generator: of the samples, which are drawn once.
        steps, delta: of the noise events, as in `GPTube`.
        features: of each prior draw.
    """

    model: GP
    samples: int
    generator: torch.Generator
    steps: int
    delta: float
    features: int = 512
    functions: FunctionSamples = field(init=False)

    def __post_init__(self) -> None:
        _require.count("SampledTube", "samples", self.samples)
        chi_square_radius(1, self.delta, self.steps)
        drawn = sample_functions(self.model, self.samples, generator=self.generator, num_features=self.features)
        object.__setattr__(self, "functions", drawn)

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
        """K."""
        return self.samples

    @property
    def mode(self) -> Mode:
        """Paper: nothing is claimed of the plant."""
        return "paper"

    @property
    def assumptions(self) -> tuple[Believed, ...]:
        """What (i) and (ii) need, and that containment does not follow from them."""
        return listed(
            Assumption.GAUSSIAN_PRIOR(),
            Assumption.LAMBDA_NOISE(),
            Assumption.NOT_A_THEOREM(f": {self.samples} samples of the posterior contain no given plant"),
        )

    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """p(z) + f_m(z), (*b, M, nx); without a graph."""
        u = u.expand(*x.shape[:-1], self.nu)
        with torch.no_grad():
            return self.model.prior(x, u) + self.model.embed(self._values(torch.cat([x, u], dim=-1)))

    def linearise(self, x: Tensor, u: Tensor) -> Linearisation:
        """Value and Jacobian of every member at its own point; without a graph."""
        u = u.expand(*x.shape[:-1], self.nu)
        z = torch.cat([x, u], dim=-1).detach().requires_grad_(True)
        with torch.enable_grad():
            values = self._values(z)
            slopes = [
                torch.autograd.grad(values[..., j].sum(), z, retain_graph=True)[0] for j in range(values.shape[-1])
            ]
        known = prior_jacobian("SampledTube", self.model.prior, x, u)  # type: ignore[arg-type]
        jacobian = known.expand(*x.shape, z.shape[-1]).clone()
        jacobian[..., list(self.model.outputs), :] += torch.stack(slopes, -2)
        noise = self.model.noise_std.to(x.device)
        radius = chi_square_radius(int((noise > 0).sum()), self.delta, self.steps)
        variance = (radius**2 * noise.square()).expand(x.shape)
        mean = (self.model.prior(x, u) + self.model.embed(values)).detach()
        return Linearisation(mean, jacobian[..., : self.nx], jacobian[..., self.nx :], variance)

    def remainder(self, x: Tensor, u: Tensor, factor: Tensor, gain: Tensor) -> Tensor:
        """0, as published."""
        return torch.zeros_like(x)

    def _values(self, z: Tensor) -> Tensor:
        """f_m at its own points, (*b, M, d) → (*b, M, p)."""
        own = z.movedim(-2, 0)
        values = self.functions(own.reshape(self.samples, -1, z.shape[-1]))
        return values.reshape(*own.shape[:-1], values.shape[-1]).movedim(0, -2)
