"""A step of a tube in its own words, for tests that compare every sub-term: plants, policies and the step as a formula."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from cost_cases import Case, alone, make_case
from torch import Tensor

from gpsafe.confidence import ConfidenceSet
from gpsafe.cost.curvature import remainder_outer
from gpsafe.cost.enclosure import jacobians
from gpsafe.cost.local_affine import AffineRange, Displacements, LocalAffine
from gpsafe.policies import AffinePolicies, Feedback
from gpsafe.systems.known import AffineKnown

tensor = partial(torch.tensor, dtype=torch.float64)
AFFINE = (tensor([[1.0, 0.1], [-0.3, 0.9]]), tensor([[-0.02], [0.4]]), tensor([0.05, -0.1]))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Bent(AffineKnown):
    """A known part with a stated bound of its curvature (it need not be one: only the arithmetic is looked at)."""

    hessian_bound = torch.rand(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Curved:
    """Affine policies that say that their gain leaves something out."""

    inside: AffinePolicies
    rest: float = 0.07

    @property
    def num(self) -> int:
        return self.inside.num

    def __call__(self, x: Tensor) -> Tensor:
        return self.inside(x)

    def select(self, index: Tensor) -> Curved:
        return Curved(self.inside.select(index), self.rest)

    def slopes(self, lower: Tensor, upper: Tensor):
        return self.inside.slopes(lower, upper)

    def feedback(self, lower: Tensor, upper: Tensor) -> Feedback:
        gain, low, high = self.slopes(lower, upper)
        return Feedback(gain.unsqueeze(1), low, high, self.rest + torch.zeros_like(low[:, :1]))


@cache
def bent_pendulum() -> tuple[ConfidenceSet, Case]:
    """F_n of the pendulum after two runs, about a known part that bends."""
    case = alone(make_case("pendulum", (0, 4)))
    held = case.confidence
    return ConfidenceSet(held.bound).update(replace(held.model, prior=Bent(*AFFINE))), case


def saturating(case: Case) -> AffinePolicies:
    """The first is beyond its limits on a part of the sets near x_0."""
    return AffinePolicies(tensor([[0.75], [0.1]]), tensor([[[-1.0, -0.4]], [[-0.8, 0.5]]]), case.policies.input_box)


@dataclass(frozen=True)
class Step:
    """f(x, π(x)) over {c + Gξ} for one policy: {center + linear ξ + e : |e| ≤ error}."""

    center: Tensor
    linear: Tensor
    error: Tensor
    z: Tensor
    moves: Displacements
    kinked: bool


def one_step(F: ConfidenceSet, one: AffinePolicies, c: Tensor, G: Tensor, *, rest: float | None = None) -> Step:
    """`rest` None: the chord along K; else slopes over the box, and what the gain leaves out. No residual."""
    known, K, r = F.model.prior, one.gain[0], G.abs().sum(-1)
    spread = (K @ G).abs().sum(-1) + (rest or 0.0)
    if rest is None:
        u, slope, kink = (s[0, 0] for s in one.chords(c[None, None], spread[None, None]))
    else:
        ends = one.slopes((c - r)[None, None], (c + r)[None, None])[1:]
        low, high = (s[0, 0] for s in ends)
        u, slope = one(c[None, None])[0, 0], (low + high) / 2
        kink = (high - low) / 2 * spread + slope * rest
    kink = kink + 1e-12 * K.abs() @ r
    A, B = jacobians(known, c[None], u[None])
    feed = slope[:, None] * (K @ G)
    z = torch.cat([c, u])
    bend = remainder_outer(known, z[None], torch.cat([r, slope * (K @ G).abs().sum(-1) + kink])[None])[0]
    moves = Displacements(0 * z, torch.cat([G, feed]), torch.cat([0 * c, kink]))
    center, linear = known(c[None], u[None])[0], A[0] @ G + B[0] @ feed
    return Step(center, linear, B[0].abs() @ kink + bend, z, moves, bool((slope < 1 - 1e-9).all()))


def learned(F: ConfidenceSet, step: Step, anchor: Tensor) -> Step:
    """The same with the residual, which is learned for the second state, from an anchor (nz,)."""
    moves = step.moves
    away = Displacements((step.z - anchor)[None], moves.generators[None], moves.error[None])
    found: AffineRange = LocalAffine.at(F, anchor[None]).range_outer(away)
    center, linear, error = step.center.clone(), step.linear.clone(), step.error.clone()
    center[1] += found.value[0, 0]
    linear[1] += found.linear[0, 0]
    error[1] += found.error[0, 0]
    return replace(step, center=center, linear=linear, error=error)


def rounded(F: ConfidenceSet, step: Step) -> Tensor:
    """By how much the error of a step that is `learned` is widened: 10⁻¹² of itself, of its terms and of what they become."""
    x, u = (step.z.abs() + step.moves.generators.abs().sum(-1) + step.moves.error).split([2, 1])
    (A,), (B,) = jacobians(F.model.prior, step.z[None, :2], step.z[None, 2:])
    size = x + step.center.abs() + B.abs() @ u + tensor([0.0, 1.0]) * LocalAffine.at(F, step.z[None]).cap
    return 1e-12 * (step.error + size + A.abs() @ size)
