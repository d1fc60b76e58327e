"""Sparse swing-ups: mechanics by what is conserved, dm_control's numbers, rewards at the top only, a soft end of the rail."""

import math

import pytest
import torch
from hypothesis import given

from gpsafe.linalg import vector
from gpsafe.systems import Pendulum, SparseCartPole, SparsePendulum
from gpsafe.systems.swing_up import tolerance
from tests.strategies import seeds

FREE = SparseCartPole(cart_damping=0.0, pole_damping=0.0)


def momentum(x: torch.Tensor) -> torch.Tensor:
    """(M + m) v + m l cos θ·ω, along the rail."""
    return (FREE.cart + FREE.pole) * x[..., 2] + 0.5 * FREE.pole * FREE.length * torch.cos(x[..., 1]) * x[..., 3]


@given(seeds())
def test_a_free_cart_pole_keeps_its_energy_and_its_momentum(seed):
    """Two integrals of motion fix the two accelerations."""
    generator = torch.Generator().manual_seed(seed)
    x = FREE.state_box.sample(20, generator) * vector(0.3, 1.0, 0.1, 0.3)
    later = x
    for _ in range(4):
        later = FREE.mean(later, torch.zeros(20, 1))
    assert torch.allclose(FREE.energy(later), FREE.energy(x), atol=1e-6)
    assert torch.allclose(momentum(later), momentum(x), atol=1e-6)
    damped = SparseCartPole(cart_damping=0.5, pole_damping=0.01)
    assert bool(
        (damped.energy(damped.mean(x, torch.zeros(20, 1))) <= x.new_tensor(0.0) + damped.energy(x) + 1e-9).all()
    )


def test_a_push_changes_the_momentum_by_itself_and_small_swings_have_the_period_of_a_rod():
    pushed = FREE.mean(vector(0.0, 0.0, 0.0, 0.0), vector(0.7))
    assert float(momentum(pushed)) == pytest.approx(0.7 * FREE.force * FREE.dt * FREE.action_repeat, rel=1e-9)
    heavy = SparseCartPole(cart=1e9, cart_damping=0.0, pole_damping=0.0)  # a fixed hinge: ω₀² = m g l/J
    x, fast = vector(0.0, 1e-4, 0.0, 0.0), math.sqrt(0.05 * 9.81 / heavy.inertia)
    for _ in range(50):
        x = heavy.mean(x, vector(0.0))
    assert float(x[1]) == pytest.approx(1e-4 * math.cos(fast * 50 * 0.02), rel=1e-6)
    assert heavy.inertia == pytest.approx(0.1 / 3, rel=0.05)  # of a thin rod


def test_the_end_of_the_rail_is_soft_and_pushes_back():
    plant, x = SparseCartPole(), vector(1.75, 0.0, 3.0, 0.0)
    far = []
    for _ in range(60):
        x = plant.mean(x, vector(1.0))
        far.append(float(x[0]))
    assert 1.8 < max(far) < 2.1 and far[-1] < 1.9
    out, back = (plant.mean(vector(1.9, 0.0, v, 0.0), vector(0.0))[2] - v for v in (0.0, -40.0))
    assert float(out) < -0.2 and abs(float(back)) < 0.2  # it never pulls outwards


def test_rewards_are_for_the_top_and_costs_for_what_is_limited():
    plant, still = SparseCartPole(), vector(0.0)
    top = vector(0.0, math.pi, 0.0, 0.0)
    assert float(plant.reward(top, still)) == 1.0
    for away in (vector(0.3, math.pi, 0.0, 0.0), vector(0.0, math.pi + 0.11, 0.0, 0.0), vector(0.0, 0.0, 0.0, 0.0)):
        assert float(plant.reward(away, still)) == 0.0
    assert float(plant.reward(top, vector(1.0))) == pytest.approx(0.8, abs=1e-9)
    assert float(tolerance(vector(0.2), 0.1, 0.1)) == pytest.approx(0.1)
    assert plant.cost(torch.tensor([[0.49, 0, 0, 0], [-0.51, 0, 0, 0]]).double()).tolist() == [0.0, 1.0]
    rod = SparsePendulum()
    assert rod.reward(
        torch.tensor([[0.13, 3.0], [0.15, 0.0], [math.tau, 0.0]]).double(), torch.zeros(3, 1)
    ).tolist() == [1, 0, 1]
    assert rod.cost(vector(0.0, 6.1)) == 1.0
    x, u = vector(1.0, 2.0), vector(0.3)
    assert torch.equal(rod.mean(x, u), Pendulum(action_repeat=4).mean(x, u))
