"""Members of a confidence set at its very edge: adversaries for tests of everything that claims to hold for all of F_n."""

from __future__ import annotations

import torch
from torch import Tensor

from gpsafe import _require, kernels
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.confidence.functionals import functional_beta
from gpsafe.models.gp import GP
from gpsafe.rkhs import RKHSFunction


def extremal_member(bound: ConfidenceBound, model: GP, z: Tensor, sign: float, *, output: int = 0) -> RKHSFunction:
    """f = μ_n ± s k_n(z, ·) with the largest s ≤ β/σ_n(z) that keeps ‖f‖_k ≤ B.

    With V = ΦᵀΦ + λI the posterior kernel section is k_n(z, ·) = λV⁻¹k(z, ·), so ‖V^{1/2}(f − μ_n)‖ = s√λ σ_n(z) ≤ √λ β:
    f is in the ellipsoid of this posterior (every functional ℓ has |ℓf − ℓμ_n| ≤ β sd_post[ℓ]) and in the ball, and for
    s = β/σ_n(z) it attains f(z) = μ_n(z) ± βσ_n(z). It need not be in the intervals of earlier posteriors.

    Args:
        bound: a bound with `functional_beta`.
        model: posterior.
        z: (d,).
        sign: ±1.
        output: learned output.

    Raises:
        ValueError: if ‖μ_n‖_k > B: the ellipsoid's centre is no member then, and nor need be anything on this line.
    """
    beta = functional_beta(bound, model)
    if beta is None:
        raise _require.fail("extremal_member", "a bound that holds for all linear functionals", bound.name)
    limit, kernel, z = float(bound.norms(model.num_outputs)[output]), model.kernels[output], z.reshape(1, -1)
    if model.inputs is None:
        return RKHSFunction(kernel, z, torch.tensor([float(sign)], dtype=torch.float64)).scaled_to(limit * (1 - 1e-12))
    gram = kernels.cross(kernel, model.inputs, model.inputs)
    scales = torch.ones(len(gram), dtype=torch.float64) if model.noise_scale is None else model.noise_scale
    gram = gram + model.regularizer[output] * torch.diag(scales.square())
    section = torch.linalg.solve(gram, kernels.cross(kernel, model.inputs, z))[:, 0]
    centers, one = torch.cat([model.inputs, z]), torch.ones(1, dtype=torch.float64)

    def member(scale: float) -> RKHSFunction:
        return RKHSFunction(kernel, centers, torch.cat([model.weights[:, output] - scale * section, scale * one]))

    full = sign * float(beta[output]) / float(model.posterior(z)[1][0, output].clamp_min(1e-9))
    low, high = 0.0, 1.0
    if member(0.0).norm_upper > limit:
        raise _require.fail("extremal_member", f"a posterior mean of norm <= {limit:g}", member(0.0).norm_upper)
    if member(full).norm_upper <= limit:
        return member(full)
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if member(middle * full).norm_upper <= limit else (low, middle)
    return member(low * full)
