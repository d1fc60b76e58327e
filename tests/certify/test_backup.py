"""Certified backup sets of pendulum and cart-pole: the verdict, what it implies in simulation, and where it must not hold."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from gpsafe.certify import certified_backup
from gpsafe.certify.backup import SHARE, _parallelotope
from gpsafe.certify.terminal_set import Invariance
from gpsafe.linalg import vector
from gpsafe.sets import Box, Polytope
from gpsafe.systems import SafeCartPole, SimplePendulum, TwoLinkArm
from gpsafe.verdict import Outcome


@cache
def pendulum() -> Invariance:
    return certified_backup(SimplePendulum())


def pressed(plant, found: Invariance, *, steps: int, seed: int = 0) -> float:
    """Largest excess of the rows of S when the plant starts at its vertices and all noise is at its ends, at random signs."""
    generator = torch.Generator().manual_seed(seed)
    x = found.region.vertices().repeat(20, 1)
    noise = getattr(plant, "observation_noise", 0.0) * 2 * plant.state_box.radius
    worst = -torch.inf

    def sign(*shape: int) -> torch.Tensor:
        return torch.sign(torch.rand(*shape, dtype=torch.float64, generator=generator) - 0.5)

    for _ in range(steps):
        u = plant.backup(x + noise * sign(*x.shape))
        x = plant.mean(x, plant.input_box.clip(u + plant.input_noise * sign(len(x), 1)))
        worst = max(worst, float((x @ found.region.H.mT - found.region.h).max()))
    return worst


def test_the_pendulums_backup_keeps_a_set_that_holds_most_published_starts():
    plant, found = SimplePendulum(), pendulum()
    assert found.certified and found.verdict.outcome is Outcome.HOLDS
    starts = plant.initial(2000, torch.Generator().manual_seed(0))
    assert float(found.region.contains(starts).double().mean()) > 0.8
    assert bool(plant.state_box.contains(found.region.vertices()).all())
    assert any("error of the input" in told for told in found.assumptions)
    assert pressed(plant, found, steps=200) <= 1e-9


def test_a_proposed_parallelotope_is_a_share_of_the_largest():
    """Along the axes of |x₁| ≤ 1, |x₂| ≤ 0.6 about (0.1, −0.2), in whatever units its edges come."""
    room = Polytope.of_box(Box([-1.0, -0.6], [1.0, 0.6]))
    for edges in (torch.eye(2), torch.diag(torch.tensor([2.0, -3.0]))):
        found = _parallelotope(edges.double(), vector(0.1, -0.2), room)
        reach = found.support(room.H) - room.H @ vector(0.1, -0.2)
        torch.testing.assert_close(reach, SHARE * vector(0.9, 0.4, 0.9, 0.4), rtol=1e-6, atol=0)
    assert 0.9 < SHARE < 1


@pytest.mark.parametrize("start", [math.pi, 3.0])
def test_in_the_certified_set_the_law_is_the_plants_backup_wherever_it_starts(start):
    plant = SimplePendulum(initial_state=vector(start, 0.0))
    found = certified_backup(plant)
    assert found.certified
    x = found.region.vertices()
    torch.testing.assert_close(found.law(x), plant.backup(x), rtol=1e-12, atol=1e-12)
    assert float(found.law(x).abs().max()) <= 1 - 0.04


@pytest.mark.parametrize("change", [{"input_noise": 0.9}, {"observation_noise": 0.1}])
def test_control_with_too_much_noise_nothing_is_certified(change):
    with pytest.raises(ValueError, match="certified_backup: expected a law that stabilises within the limits"):
        certified_backup(replace(SimplePendulum(), **change), budget=2000)


def test_control_the_certificate_of_another_pendulum_does_not_hold_for_a_heavier_push():
    """The set of the published plant, and noise six times as large: it is left in simulation."""
    plant = replace(SimplePendulum(), input_noise=0.2, observation_noise=0.03)
    assert pressed(plant, pendulum(), steps=50) > 1e-3


def test_the_cartpole_needs_its_cells_and_says_so():
    found = certified_backup(SafeCartPole(), budget=200)
    assert found.verdict.outcome is Outcome.INCONCLUSIVE and not found.certified
    assert pressed(SafeCartPole(), found, steps=150) <= 1e-9  # but what it proposes is kept, as far as simulation tells


@pytest.mark.slow
def test_the_cartpoles_backup_keeps_a_set_in_all_four_dimensions():
    plant = SafeCartPole()
    found = certified_backup(plant)
    assert found.certified
    vertices = found.region.vertices()
    assert bool(plant.state_box.contains(vertices).all())
    starts = plant.initial(4000, torch.Generator().manual_seed(0))
    assert float(found.region.contains(starts).double().mean()) > 0.2  # a sliver: it holds a quarter of the starts
    assert bool((vertices.abs().amax(0) > torch.tensor([2.2, 1.3, 0.19, 0.7]).double()).all())
    assert float(vertices[:, [1, 3]].abs().max()) < 10  # where the known part is the plant
    assert pressed(plant, found, steps=500) <= 1e-9


def test_the_cartpoles_law_is_its_backup_wherever_it_starts():
    plant = SafeCartPole(initial_state=vector(0.6, 0.0, 0.0, 0.0))
    found = certified_backup(plant, budget=1)
    x = found.region.vertices()
    torch.testing.assert_close(found.law(x), plant.backup(x), rtol=1e-12, atol=1e-12)


class Windy(SimplePendulum):
    """Another plant of the same class, in whose set nothing stays: the wind is no part of its prior."""

    def mean(self, x, u):
        return SimplePendulum.mean(self, x, u + 0.5)


def test_other_plants_are_refused():
    windy = Windy()
    assert pressed(windy, pendulum(), steps=50) > 1e-2
    with pytest.raises(ValueError, match="SimplePendulum or SafeCartPole, got Windy"):
        certified_backup(windy)
    with pytest.raises(ValueError, match="SimplePendulum or SafeCartPole"):
        certified_backup(TwoLinkArm())  # type: ignore[arg-type]
