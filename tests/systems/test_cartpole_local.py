"""The cart-pole's local curvature and its policy family."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from torch import Tensor

from gpsafe.cost.curvature import remainder_outer
from gpsafe.cost.enclosure import jacobians
from gpsafe.systems.cartpole import CartPole
from gpsafe.systems.cartpole_local import CartPoleLocal, sine_sup
from gpsafe.systems.cartpole_policies import CartPolePolicies, hanging_lqr

KNOWN = CartPole(speed_limit=4.0).prior()
LOCAL = CartPoleLocal(KNOWN)
SCALE = torch.tensor([3.0, 4.0, 5.0, 6.0, 2.5], dtype=torch.float64)  # beyond the soft clips of ω and u


def boxes(seed: int, size: float) -> tuple[Tensor, Tensor, torch.Generator]:
    """Centres and radii of 24 boxes of z, and the generator for more."""
    g = torch.Generator().manual_seed(seed)
    center = (2 * torch.rand(24, 5, generator=g, dtype=torch.float64) - 1) * SCALE
    return center, size * torch.rand(24, 5, generator=g, dtype=torch.float64) * SCALE, g


@settings(max_examples=10)
@given(seed=seeds(), size=st.sampled_from((1e-6, 0.05, 0.5)))
def test_local_hessian_dominates_automatic_second_derivatives(seed: int, size: float) -> None:
    center, radius, g = boxes(seed, size)
    bound = LOCAL.hessian_over(center - radius, center + radius)
    z = center + (2 * torch.rand(24, 5, generator=g, dtype=torch.float64) - 1) * radius
    hessians = torch.func.vmap(torch.func.hessian(lambda p: KNOWN(p[:4], p[4:])))(z)
    assert float((hessians.abs() - bound).max()) <= 1e-12
    assert bool((bound <= KNOWN.hessian_bound).all())


@given(seed=seeds(), size=st.sampled_from((1e-3, 0.05, 0.5)))
def test_remainder_outer_dominates_the_linearisation_error(seed: int, size: float) -> None:
    center, radius, g = boxes(seed, size)
    a, b = jacobians(LOCAL, center[:, :4], center[:, 4:])
    d = (2 * torch.rand(24, 5, generator=g, dtype=torch.float64) - 1) * radius
    linear = (a @ d[:, :4, None] + b @ d[:, 4:, None]).squeeze(-1)
    z = center + d
    error = (KNOWN(z[:, :4], z[:, 4:]) - KNOWN(center[:, :4], center[:, 4:]) - linear).abs()
    assert float((error - remainder_outer(LOCAL, center, radius)).max()) <= 1e-12
    assert bool((remainder_outer(LOCAL, center, radius) <= remainder_outer(KNOWN, center, radius) + 1e-12).all())


def test_control_curvature_at_the_centre_alone_is_caught() -> None:
    center, radius, g = boxes(0, 0.3)
    point = LOCAL.hessian_over(center, center)
    z = center + (2 * torch.rand(24, 5, generator=g, dtype=torch.float64) - 1) * radius
    hessians = torch.func.vmap(torch.func.hessian(lambda p: KNOWN(p[:4], p[4:])))(z)
    assert float((hessians.abs() - point).max()) > 1e-2


def test_local_curvature_near_hanging_is_a_fraction_of_the_global_one() -> None:
    half = torch.tensor([1.0, 0.05, 1.0, 0.2, 0.1], dtype=torch.float64)
    local, everywhere = LOCAL.hessian_over(-half, half)[3, 1, 1], KNOWN.hessian_bound[3, 1, 1]
    assert float(local) < 0.1 * float(everywhere)


@given(seed=seeds())
def test_jacobian_is_the_forward_mode_one(seed: int) -> None:
    center, _, _ = boxes(seed, 0.0)
    x, u = center[:, :4], center[:, 4:]
    for closed, automatic in zip(LOCAL.jacobian(x, u), jacobians(KNOWN, x, u), strict=True):
        assert torch.allclose(closed, automatic, atol=1e-13)


@given(low=st.floats(-8, 8), width=st.floats(0, 7))
def test_sine_sup_dominates_and_is_attained(low: float, width: float) -> None:
    t = torch.linspace(low, low + width, 4001, dtype=torch.float64)
    seen = float(t.sin().abs().max())
    found = float(sine_sup(t[:1], t[-1:])[0])
    assert seen <= found <= seen + 1e-5


def test_action_repeat_is_refused() -> None:
    with pytest.raises(ValueError, match="action_repeat 1"):
        CartPoleLocal(CartPole(action_repeat=2).prior())


def family() -> CartPolePolicies:
    gains = [hanging_lqr(LOCAL, position=q, speed=0.1, swing=0.1, effort=1.0) for q in (1.0, 16.0)]
    return CartPolePolicies.create(gains, torch.tensor([-0.5, 0.0, 1.0], dtype=torch.float64), (0.0, 0.2))


def test_family_holds_every_combination_once() -> None:
    found = family()
    combos = set(zip(found.gain.tolist(), found.pump.tolist(), found.target.tolist(), strict=True))
    assert found.num == len(combos) == 12
    assert found.near(0.5).tolist() == [0, 1, 6, 7]


def test_every_member_rests_at_its_set_point_and_its_gain_contracts_without_pump() -> None:
    found, plant = family(), CartPole()
    rest = torch.zeros(found.num, 1, 4, dtype=torch.float64)
    rest[:, 0, 0] = found.target
    assert float(found.policies(rest).abs().max()) <= 1e-12
    a, b = jacobians(plant.prior(), rest, found.policies(rest))
    loop = (a + b @ found.policies.gain.unsqueeze(1))[:, 0]
    size = torch.linalg.eigvals(loop).abs().amax(-1)
    assert bool((size[found.pump == 0] < 1.0).all())


def test_the_set_points_within_reach_are_safe_on_the_true_plant() -> None:
    """S_0 = {no pump, |g| ≤ 0.5} stays within |x| ≤ 0.8 of 1.5 without noise."""
    found, plant = family(), CartPole()
    part = found.policies.select(found.near(0.5))
    x = torch.zeros(part.num, 1, 4, dtype=torch.float64)
    for _ in range(50):
        x = plant.mean(x, part(x))
        assert float(x[..., 0].abs().max()) <= 0.8
    assert math.isfinite(float(x.abs().max()))
