"""The plants of the published X-MPSC experiments: contract, mechanics derived anew, and their bounded noise."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from strategies import seeds

from gpsafe.systems.base import System
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from tests.systems import _claims as claims

PLANTS = {"pendulum": SimplePendulum, "cartpole": SafeCartPole}
every_plant = pytest.mark.parametrize("name", PLANTS)


def draw(plant, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = plant.initial_box.sample(count, generator) * 2
    return x, plant.input_box.sample(count, generator)


@every_plant
def test_contract(name):
    plant = PLANTS[name]()
    assert isinstance(plant, System)
    assert plant.initial_state.shape == plant.noise_std.shape == (plant.nx,)
    assert float(plant.cost(plant.initial_state)) == 0.0
    assert bool(plant.state_box.contains(plant.initial_box.vertices()).all())
    assert claims.is_pure(plant, seed=1)
    x, u = draw(plant, 6, 0)
    for function in (plant.mean, plant.reward):
        loop = torch.stack([function(a, b) for a, b in zip(x, u, strict=True)])
        torch.testing.assert_close(function(x.reshape(3, 2, -1), u.reshape(3, 2, -1)).reshape(loop.shape), loop)
        assert loop.dtype == torch.float64 and bool(loop.isfinite().all())


@every_plant
def test_leaving_the_limits_costs(name):
    plant = PLANTS[name]()
    outside = plant.state_box.upper * (1 + 1e-9)
    assert float(plant.cost(outside)) == 1.0
    assert float(plant.cost(plant.state_box.center)) == 0.0


@given(seed=seeds())
def test_pendulum_is_euler_lagrange(seed):
    """m l² ω̇ = u − b ω − ∂V/∂θ with V = m g l cos θ."""
    plant = SimplePendulum()
    x, u = draw(plant, 1, seed)
    theta = x[0, 0].requires_grad_()
    (slope,) = torch.autograd.grad(plant.mass * plant.gravity * plant.length * torch.cos(theta), theta)
    omega = x[0, 1]
    faster = (u[0, 0] - plant.damping * omega - slope) / (plant.mass * plant.length**2)
    expected = torch.stack([x[0, 0] + plant.dt * (omega + plant.dt * faster), omega + plant.dt * faster])
    torch.testing.assert_close(plant.mean(x[0], u[0]), expected, rtol=1e-10, atol=1e-10)


def rod_accelerations(plant: SafeCartPole, x: torch.Tensor, u: torch.Tensor, *, length: float) -> torch.Tensor:
    """From the kinetic and potential energy of a cart and a uniform rod of that length, tip at position − length·sin θ."""
    place = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 * length

    def lagrangian(q, v):
        def positions(p):
            return torch.stack([p[0] - place * torch.sin(p[1]), place * torch.cos(p[1])])

        at, speed = torch.func.jvp(positions, (q,), (v,))
        rod = plant.pole * (0.5 * speed.square().sum(0) - plant.gravity * at[1]).mean()
        return 0.5 * plant.cart * v[0] ** 2 + rod

    q, v = x[[0, 2]], x[[1, 3]]
    force = torch.stack([plant.force * u[0] - plant.friction * v[0], torch.zeros((), dtype=torch.float64)])
    mass = torch.func.hessian(lagrangian, argnums=1)(q, v)
    mixed = torch.func.jacrev(torch.func.grad(lagrangian, argnums=1), argnums=0)(q, v)
    return torch.linalg.solve(mass, force + torch.func.grad(lagrangian, argnums=0)(q, v) - mixed @ v)


@given(seed=seeds())
def test_cartpole_is_a_rod_of_that_length(seed):
    plant = SafeCartPole()
    x = 2 * torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    u = torch.tensor([0.7], dtype=torch.float64)
    got = (plant.mean(x, u) - x)[[1, 3]] / plant.dt
    torch.testing.assert_close(got, rod_accelerations(plant, x, u, length=plant.length), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((plant.mean(x, u) - x)[[0, 2]], plant.dt * x[[1, 3]])


def test_control_a_pole_of_twice_the_length_is_another_plant():
    plant = SafeCartPole()
    x, u = torch.tensor([0.0, 0.1, 0.1, 0.5]).double(), torch.tensor([0.3]).double()
    got = (plant.mean(x, u) - x)[[1, 3]] / plant.dt
    assert float((got - rod_accelerations(plant, x, u, length=2 * plant.length)).abs().max()) > 0.1


@every_plant
def test_the_noisy_input_is_clipped_by_the_step_not_by_the_mean(name):
    plant = replace(PLANTS[name](), input_noise=1e-6)
    x, _ = draw(plant, 4, 3)
    limit, beyond = (torch.full((4, 1), value).double() for value in (1.0, 3.0))
    assert torch.equal(plant.advance(x, beyond, torch.Generator().manual_seed(0)), plant.mean(x, limit))
    assert not torch.equal(plant.mean(x, beyond), plant.mean(x, limit))


@every_plant
def test_noise_is_bounded_and_of_the_declared_size(name):
    plant = PLANTS[name]()
    generator = torch.Generator().manual_seed(2)
    x = plant.initial_state.expand(20000, -1)
    u = torch.zeros(20000, 1, dtype=torch.float64)
    gap = plant.advance(x, u, generator) - plant.mean(x, u)
    torch.testing.assert_close(gap.std(0), plant.noise_std, rtol=0.02, atol=1e-12)
    assert bool((gap.abs() <= math.sqrt(3.0) * plant.noise_std * (1 + 1e-9) + 1e-15).all())
    assert float(u.abs().max()) == 0.0  # the caller's input is left alone
    seen = plant.observe(x, generator) - x
    half = torch.tensor([0.0288, 0.08]).double() if name == "pendulum" else torch.zeros(4).double()
    torch.testing.assert_close(seen.abs().amax(0), half, rtol=0.01, atol=0.0)


def test_prior_of_full_scale_is_the_pendulum_and_the_published_one_is_not():
    plant = SimplePendulum()
    x, u = draw(plant, 20, 5)
    torch.testing.assert_close(plant.prior(scale=1.0)(x, u), plant.mean(x, u), rtol=1e-12, atol=1e-12)
    assert float((plant.prior()(x, u) - plant.mean(x, u)).abs().max()) > 0.05


def share_leaving(plant: SafeCartPole, law, *, starts: int = 400) -> float:
    generator = torch.Generator().manual_seed(0)
    x = plant.initial_box.sample(starts, generator)
    left = torch.zeros(starts, dtype=torch.float64)
    for _ in range(plant.horizon):
        u = law(x, generator)
        assert bool((u.abs() <= 1).all())
        x = plant.advance(x, u, generator)
        left = torch.maximum(left, plant.cost(x))
    return float(left.mean())


def test_backup_keeps_the_cartpole_up():
    plant = SafeCartPole()
    assert share_leaving(plant, lambda x, _: plant.backup(x)) == 0.0
    assert share_leaving(plant, plant.warm_up) <= 0.02  # one wild input in five is not safe, only rarely unsafe


def test_control_without_the_backup_the_pole_falls():
    plant = SafeCartPole()
    assert share_leaving(plant, lambda x, _: torch.zeros_like(x[..., :1])) > 0.5


def test_bad_parameters_are_named():
    with pytest.raises(ValueError, match="mass"):
        SimplePendulum(mass=0.0)
    with pytest.raises(ValueError, match="friction"):
        SafeCartPole(friction=-1.0)
