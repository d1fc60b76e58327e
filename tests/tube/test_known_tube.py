"""Tubes of known plants: remainders against samples, containment under every error of the input, and broken bounds."""

import math
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from strategies import seeds

from gpsafe.linalg import vector
from gpsafe.models import _prior
from gpsafe.systems import AffineKnown, SafeCartPole, SafeCartPoleLocal, SimplePendulum
from gpsafe.tube import KnownTube, propagate

KNOWN = {
    "pendulum": SimplePendulum().prior(scale=1.0),
    "cart-pole": SafeCartPole().prior(scale=1.0),
    "cart-pole, local": SafeCartPoleLocal(SafeCartPole().prior(scale=1.0)),
}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def excess(tube: KnownTube, seed: int, size: float) -> torch.Tensor:
    """How far p(x + d, u + Kd + e) is beyond mean + (A + BK)d ± R, at sampled d on and in the ellipsoid and |e| ≤ error."""
    nx, nu = tube.nx, tube.nu
    x, u = 0.3 * draw(seed, 1, nx), 0.3 * draw(seed + 1, 1, nu)
    factor, gain = size * draw(seed + 2, 1, nx, nx), draw(seed + 3, nu, nx)
    local, rest = tube.linearise(x, u), tube.remainder(x, u, factor, gain)
    ray = draw(seed + 4, 300, nx)
    d = (ray / ray.norm(dim=-1, keepdim=True)) @ factor[0].mT
    e = tube.error * torch.sign(draw(seed + 5, 300, nu))
    moved = tube.known(x + d, u + d @ gain.mT + e)
    linear = local.mean + d @ (local.A[0] + local.B[0] @ gain).mT
    return ((moved - linear).abs() - rest).amax()


@pytest.mark.parametrize("name", KNOWN)
@given(seed=seeds())
@settings(max_examples=8)
def test_remainders_bound_curvature_and_errors_of_the_input(name, seed):
    for size in (0.02, 0.3):
        assert float(excess(KnownTube(KNOWN[name], vector(0.1)), seed, size)) <= 1e-12


@dataclass(frozen=True)
class Flatter:
    """A known part that understates its curvature."""

    known: object
    share: float

    def __call__(self, x, u):
        return self.known(x, u)

    @property
    def hessian_bound(self):
        return self.share * self.known.hessian_bound


def test_control_an_understated_curvature_or_error_is_seen():
    with pytest.raises(ValueError, match="within its own hessian_bound"):
        KnownTube(Flatter(KNOWN["pendulum"], 0.1), vector(0.0))
    with mock.patch.object(_prior, "check_derivatives"):
        flat = KnownTube(Flatter(KNOWN["pendulum"], 0.1), vector(0.0))
    assert max(float(excess(flat, seed, 1.0)) for seed in range(5)) > 1e-3
    small = KnownTube(KNOWN["pendulum"], vector(0.1))
    object.__setattr__(small, "error", vector(0.01))
    honest = KnownTube(KNOWN["pendulum"], vector(0.1))
    x, u, L, K = vector(0.1, 0.2).unsqueeze(0), vector(0.1).unsqueeze(0), torch.zeros(1, 2, 2).double(), draw(1, 1, 2)
    gap = (honest.known(x, u + 0.1) - honest.known(x, u)).abs()
    assert bool((gap <= honest.remainder(x, u, L, K)).all()) and not bool((gap <= small.remainder(x, u, L, K)).all())


@given(seed=seeds())
@settings(max_examples=4)
def test_tubes_contain_the_plant_under_the_affine_law(seed):
    plant = SafeCartPole()
    tube = KnownTube(SafeCartPoleLocal(plant.prior(scale=1.0)), vector(0.05))
    x0, inputs, gain = 0.05 * draw(seed, 4), 0.2 * draw(seed + 1, 5, 1), -plant.backup_gain
    found = propagate(tube, x0, inputs, gain)
    x = x0.expand(100, -1)
    for k in range(5):
        u = inputs[k] + (x - found.reference[k]) @ gain.mT
        x = plant.mean(x, u + 0.05 * torch.sign(draw(seed + 2 + k, 100, 1)))
        gap = torch.linalg.solve(found.factor[0, k + 1], (x - found.center[0, k + 1]).mT)
        assert float(gap.norm(dim=0).max()) <= 1 + 1e-9


def test_an_affine_plant_adds_only_the_error():
    A, B = draw(0, 2, 2), draw(1, 2, 1)
    tube = KnownTube(AffineKnown(A, B, vector(0.0, 0.0)), vector(0.3))
    rest = tube.remainder(draw(2, 3, 1, 2), draw(3, 3, 1, 1), draw(4, 3, 1, 2, 2), draw(5, 1, 2))
    torch.testing.assert_close(rest, (0.3 * B.abs()).squeeze(-1).expand(3, 1, 2))
    assert (tube.nx, tube.nu, tube.num_members, tube.mode) == (2, 1, 1, "sound")
    assert any("error of the input of at most [0.3]" in told for told in tube.assumptions)


@pytest.mark.parametrize("name", ["pendulum", "cart-pole"])
def test_remainders_are_half_the_curvature_over_the_reach_of_the_law(name):
    """|B| e + ½ Σ H_jk r_j r_k, r = row norms of (I; K)L and e added to that of u."""
    known, error, up = KNOWN[name], 0.3, 1 + 1e-12  # r, their square and the sum are rounded up
    n = known.hessian_bound.shape[0]
    x, u, L, K = 0.3 * draw(0, 1, n), draw(1, 1, 1), 0.2 * draw(2, 1, n, n), draw(3, 1, n)
    tube = KnownTube(known, vector(error))
    rest, B = tube.remainder(x, u, L, K)[0], tube.linearise(x, u).B[0]
    r = [math.hypot(*row) for row in (*L[0].tolist(), (K @ L[0])[0].tolist())]
    r[n] += error
    for i in range(n):
        bent = 0.5 * sum(
            float(h) * r[j] * r[k] for j, row in enumerate(known.hessian_bound[i]) for k, h in enumerate(row)
        )
        assert float(rest[i]) == pytest.approx((error * abs(float(B[i, 0])) + bent * up**3) * up, rel=1e-14, abs=0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="hessian_bound"):
        KnownTube(lambda x, u: x, vector(0.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="error"):
        KnownTube(KNOWN["pendulum"], vector(-0.1))
    with pytest.raises(ValueError, match="error of shape"):
        KnownTube(KNOWN["pendulum"], vector(0.1, 0.1))


@given(seed=seeds())
@settings(max_examples=12)
def test_curvature_over_boxes_is_above_that_at_their_points_and_below_the_bound_everywhere(seed):
    local, wide = KNOWN["cart-pole, local"], vector(2.0, 12.0, 2.0, 12.0, 2.5)
    unit = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    center, radius = (2 * unit[0] - 1) * wide, 0.3 * unit[1] * wide
    bound = local.hessian_over(center - radius, center + radius)
    z = center + (2 * unit[2] - 1) * radius
    there = torch.func.hessian(lambda z: local.known(z[:4], z[4:]))(z).abs()
    assert bool((there <= bound + 1e-12).all()) and bool((bound <= local.hessian_bound).all())


def test_curvature_near_upright_rest_is_small():
    local, near = KNOWN["cart-pole, local"], vector(1.0, 0.5, 0.1, 0.5, 0.3)
    assert float(local.hessian_over(-near, near)[3].sum()) < 0.25 * float(local.hessian_bound[3].sum())
