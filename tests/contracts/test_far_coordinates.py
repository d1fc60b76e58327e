"""Terms that cancel, a million times as large as what is left of them: what is claimed holds in rational arithmetic.

A margin in units of a result that came of a cancellation is less than what its terms were rounded by.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from strategies import seeds
from torch import Tensor

from gpsafe import Box, CertificationProblem, Polytope
from gpsafe.certify import AffineLaw, certify_invariance
from gpsafe.cost.enclosure import closed_loop_range
from gpsafe.policies import AffinePolicies
from gpsafe.policies.parametric import ParametricPolicies
from gpsafe.systems.known import AffineKnown
from gpsafe.tube import LinearTube

FAR = 1e6
ONE = torch.ones(1, 1, dtype=torch.float64)
Exact = Fraction
ULPS = Fraction(1, 10**14)  # of values of 1


def drawn(generator: torch.Generator, *low_high: tuple[float, float]) -> list[float]:
    return [
        low + (high - low) * float(torch.rand(1, generator=generator, dtype=torch.float64)) for low, high in low_high
    ]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def interval(high: float, low: float) -> Polytope:
    return Polytope(torch.cat([ONE, -ONE]), vector(high, -low))


def law_far_from_zero(generator: torch.Generator, share: float):
    """u = K x + o over [10⁶, 10⁶ + 1], its limit exceeded by `share`; x⁺ halves the distance to a middle."""
    K, H = drawn(generator, (0.3, 1.3), (0.3, 1.3))
    offset, gain = -K * FAR, K * ONE
    top = Exact(H) * (Exact(K) * Exact(FAR + 1) + Exact(offset))
    limit = float(top) * (1 - share)
    S, U = interval(FAR + 1, FAR), Polytope(H * ONE, vector(limit))
    model = LinearTube(AffineKnown(0.5 * ONE, 0 * ONE, vector(0.5 * (FAR + 0.5))), [0.0])
    return CertificationProblem(model, S, U, S, gain, 1), AffineLaw(gain, vector(offset)), top - Exact(limit)


def loop_of_large_terms(generator: torch.Generator, share: float):
    """x⁺ = (A + BK)x + w on [−1, 1], A and BK of 10⁶ and their sum one half: the disturbance takes it out by `share`."""
    A, B = drawn(generator, (0.5 * FAR, 1.5 * FAR), (0.5, 1.5))
    K = -(A - 0.5) / B
    closed = Exact(A) + Exact(B) * Exact(K)
    axis = float(1 - closed) * (1 + share)
    S, gain = interval(1.0, -1.0), K * ONE
    model = LinearTube(AffineKnown(A * ONE, B * ONE, vector(0.0)), [axis])
    problem = CertificationProblem(model, S, interval(1e8, -1e8), S, gain, 1)
    return problem, AffineLaw(gain, vector(0.0)), closed + Exact(axis) - 1


@pytest.mark.parametrize("case", [law_far_from_zero, loop_of_large_terms])
def test_no_set_is_called_invariant_that_is_not(case):
    """Excesses of 10⁻¹¹, which float64 does not see; with as much room, and more than the terms' rounding, it is certified."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        problem, law, excess = case(generator, 2e-11)
        assert not certify_invariance(problem, law).certified or excess <= 0
    problem, law, excess = case(generator, -1e-4)
    assert excess < 0 and certify_invariance(problem, law).certified


def clipped(v: Exact) -> Exact:
    return min(max(v, Exact(-1)), Exact(1))


@given(seed=seeds())
def test_boxes_strips_and_secants_of_a_clipped_law_hold_it_exactly(seed: int) -> None:
    """u = clip(K(x − x_0) + small) about x_0 = 10⁶, and x⁺ = Ax + Bu + c: at points of the cell, in rationals."""
    generator = torch.Generator().manual_seed(seed)
    K, A, B, shift, r = drawn(generator, (0.3, 3.0), (0.3, 3.0), (-2.0, 2.0), (-1.0, 1.0), (0.0, 0.5))
    c = FAR + drawn(generator, (-1.0, 1.0))[0]
    offset, rest = -K * FAR + shift, -A * FAR
    policies = AffinePolicies(vector(offset).reshape(1, 1), vector(K).reshape(1, 1, 1), Box([-1.0], [1.0]))
    known = AffineKnown(A * ONE, B * ONE, vector(rest))
    middle, half, inputs = closed_loop_range(known, policies, vector(c).reshape(1, 1), vector(r).reshape(1, 1))
    reach = vector(abs(K) * r).reshape(1, 1, 1)
    strip = [Exact(float(v)) for v in policies.chords(vector(c).reshape(1, 1, 1), reach)]
    low, high = (Exact(float(v)) for v in policies.secants(vector(c).reshape(1, 1, 1), reach))
    at = clipped(Exact(K) * Exact(c) + Exact(offset))
    for share in (-1, Exact(-1, 2), Exact(1, 3), 1):
        x = Exact(c) + share * Exact(r)
        u = clipped(Exact(K) * x + Exact(offset))
        after = Exact(A) * x + Exact(B) * u + Exact(rest)
        assert abs(after - Exact(float(middle))) <= Exact(float(half))
        assert abs(u - at) <= Exact(float(inputs)) + ULPS
        moved = Exact(K) * (x - Exact(c))
        assert abs(u - strip[0] - strip[1] * moved) <= strip[2]
        assert min(low * moved, high * moved) - ULPS <= u - at <= max(low * moved, high * moved) + ULPS


@given(seed=seeds())
def test_the_spread_of_a_family_holds_exactly(seed: int) -> None:
    """u = clip(k(x − g)) about g = 10⁶, over boxes of (k, k g)."""
    generator = torch.Generator().manual_seed(seed)
    k, g, r, dk, x = drawn(generator, (0.3, 3.0), (-0.2, 0.2), (0.0, 0.1), (0.0, 1e-7), (-0.2, 0.2))
    family = ParametricPolicies(
        ("k", "kg"),
        Box([0.0, 0.0], [4.0, 8.0 * FAR]),
        Box([-1.0], [1.0]),
        lambda theta: (-theta[:, 1:], theta[:, :1].unsqueeze(-1)),
    )
    center, radius = vector(k, k * (FAR + g)).reshape(1, 2), vector(dk, 0.01).reshape(1, 2)
    found = family.spread(center, radius, x=vector(FAR + x).reshape(1, 1), x_radius=vector(r).reshape(1, 1))
    (k0, b0), (rk, rb) = ([Exact(v) for v in row] for row in (center[0].tolist(), radius[0].tolist()))
    for share in (-1, 0, 1):
        y = Exact(FAR + x) + share * Exact(r)
        for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            apart = clipped((k0 + a * rk) * y - (b0 + b * rb)) - clipped(k0 * y - b0)
            assert abs(apart) <= Exact(float(found))
