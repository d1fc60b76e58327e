"""f(x, π(x)) over sets {c + Gξ : ξ ∈ [−1, 1]^m}: the step that scenario, Gaussian and plan tubes share (theory §3.5).

The input is affine but for a strip, π(x) = u + Fξ + e with |e| ≤ kink: about the chord of clipped affine laws
(`AffinePolicies.chords`), by slopes over the box for others. The known part is linearised at (c, u) with its *closed-loop*
Jacobian AG + BF, so that plant and feedback cancel, plus |B|·kink and the Hessian remainder; the residual is enclosed about an
anchor (`LocalAffine`). What a step may round goes into its error, so that no unit of a state matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from gpsafe._show import short
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.cost.curvature import remainder_outer, wide_axes
from gpsafe.cost.enclosure import jacobians
from gpsafe.cost.local_affine import Displacements, LocalAffine
from gpsafe.policies import AffinePolicies, PolicyClass, feedback, inputs_at
from gpsafe.systems.base import KnownPart

ROUNDING = 1e-12  # share of all `sizes` by which the error of a step is widened: more than it rounds


@short
@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """{u + Fξ + e : |e| ≤ kink} ∋ π(c + Gξ): u, kink (*b, nu), F = feed (*b, nu, m)."""

    u: Tensor
    feed: Tensor
    kink: Tensor

    @staticmethod
    def over(policies: PolicyClass, x: Tensor, generators: Tensor) -> Inputs:
        """Of P policies, each over its N sets: c = x (P, N, nx), G = generators (P, N, nx, m)."""
        radius = generators.abs().sum(-1)
        if isinstance(policies, AffinePolicies):
            gain = policies.gain.unsqueeze(1)
            feed = gain @ generators
            u, slope, kink = policies.chords(x, feed.abs().sum(-1))
        else:
            found = feedback(policies, x - radius, x + radius)
            gain, feed, slope = found.gain, found.gain @ generators, 0.5 * (found.low + found.high)
            reach = feed.abs().sum(-1) + found.remainder  # sup |K(x − c) + e|
            u, kink = inputs_at(policies, x), 0.5 * (found.high - found.low) * reach + slope * found.remainder
        rounded = ROUNDING * (gain.abs() @ radius.unsqueeze(-1)).squeeze(-1)  # of KG, whose terms may cancel
        return Inputs(u, slope.unsqueeze(-1) * feed, kink + rounded)


@short
@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """{center + linear ξ + e : |e| ≤ error} ∋ f(x, π(x)) for every f ∈ F_n; center, error (*b, nx), linear (*b, nx, m).

    `empty` (*b,) marks where F_n came out empty: no claim is made there. `axes` are the states that may have an error.
    """

    center: Tensor
    linear: Tensor
    error: Tensor
    empty: Tensor
    axes: tuple[int, ...]


def image(
    confidence: ConfidenceSet,
    x: Tensor,
    generators: Tensor,
    inputs: Inputs,
    local: LocalAffine,
    offset: Tensor,
    *,
    every: bool,
) -> Image:
    """Over the sets {x + generators ξ}, with the residual enclosed about anchors, which are (x, u) − offset, (*b, nx + nu).

    With `every` all states have an error, of rounding at least. Else those that can have no other have none: the states which
    they sum have width already, far more than they round, but where widths cancel (theory §3.5, "Rounding").
    """
    model = confidence.model
    known = cast(KnownPart, model.prior)  # checked once by the tubes: a look at a protocol is dear in every step
    u, feed, kink = inputs.u, inputs.feed, inputs.kink
    a, b = jacobians(known, x, u)
    linear = a @ generators + b @ feed
    reach, pushed = generators.abs().sum(-1), feed.abs().sum(-1) + kink
    bent = remainder_outer(known, torch.cat([x, u], dim=-1), torch.cat([reach, pushed], dim=-1))
    error = (b.abs() @ kink.unsqueeze(-1)).squeeze(-1) + bent
    kinks = torch.cat([torch.zeros_like(x), kink], dim=-1)
    found = local.range_outer(Displacements(offset, torch.cat([generators, feed], dim=-2), kinks))
    columns = list(model.outputs)
    linear[..., columns, :] += found.linear
    error[..., columns] += found.error
    center = known(x, u) + model.embed(found.value)  # not in place: p(x, u) may be x, or of fewer digits
    rounded = error * (1 + 1e-12) + ROUNDING * sizes(
        x.abs() + reach, u.abs() + pushed, center, a, b, model.embed(local.cap)
    )
    axes = tuple(range(x.shape[-1])) if every else wide_axes(known, model.outputs)
    error[..., axes] = rounded[..., axes]
    return Image(center, linear, error, found.empty, axes)


def sizes(x: Tensor, u: Tensor, center: Tensor, a: Tensor, b: Tensor, residual: Tensor) -> Tensor:
    """s + |A|s with s = |x| + |f(x, u)| + |B||u| + residual, (*b, nx): what the rounding of a step is a share of.

    The terms, not their sum: they may cancel. Over a set |x| and |u| are the largest there. For the residual, whose inner
    terms are not seen, its bound B√k stands.
    """
    s = x.abs() + center.abs() + (b.abs() @ u.abs().unsqueeze(-1)).squeeze(-1) + residual
    return s + (a.abs() @ s.unsqueeze(-1)).squeeze(-1)
