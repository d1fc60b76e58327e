"""The plants against mechanics derived anew: Euler–Lagrange by automatic differentiation, and energy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpsafe.systems.cartpole import CartPole, accelerations
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.pendulum import Pendulum, wrap_angle
from tests.strategies import seeds

Lagrangian = Callable[[Tensor, Tensor], Tensor]


def euler_lagrange(lagrangian: Lagrangian, q: Tensor, v: Tensor, force: Tensor) -> Tensor:
    """q̈ from d/dt ∂L/∂v − ∂L/∂q = force: ∂²L/∂v² q̈ = force + ∂L/∂q − ∂²L/∂v∂q v."""
    mass = torch.func.hessian(lagrangian, argnums=1)(q, v)
    mixed = torch.func.jacrev(torch.func.grad(lagrangian, argnums=1), argnums=0)(q, v)
    return torch.linalg.solve(mass, force + torch.func.grad(lagrangian, argnums=0)(q, v) - mixed @ v)


def cartpole_lagrangian(cart: float, pole: float, length: float, gravity: float) -> Lagrangian:
    """Kinetic minus potential energy from the positions of the two masses, θ = 0 down."""

    def tip(q: Tensor) -> Tensor:
        return torch.stack([q[0] + length * torch.sin(q[1]), -length * torch.cos(q[1])])

    def lagrangian(q: Tensor, v: Tensor) -> Tensor:
        _, speed = torch.func.jvp(tip, (q,), (v,))
        return 0.5 * cart * v[0] ** 2 + 0.5 * pole * speed @ speed - pole * gravity * tip(q)[1]

    return lagrangian


def rod_lagrangian(mass: float, length: float, gravity: float) -> Lagrangian:
    """A uniform rod as 2000 point masses (midpoint rule), θ = 0 upright."""
    place = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 * length

    def lagrangian(q: Tensor, v: Tensor) -> Tensor:
        def positions(angle: Tensor) -> Tensor:
            return torch.stack([place * torch.sin(angle), place * torch.cos(angle)])

        where, speed = torch.func.jvp(positions, (q[0],), (v[0],))
        return mass * (0.5 * speed.square().sum(0) - gravity * where[1]).mean()

    return lagrangian


positive = st.floats(0.2, 5.0)


@given(seed=seeds(), cart=positive, pole=positive, length=positive, gravity=positive)
def test_cartpole_accelerations_solve_the_euler_lagrange_equations(
    seed: int, cart: float, pole: float, length: float, gravity: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, v = 3 * torch.randn(2, 2, dtype=torch.float64, generator=generator)
    push = 10 * torch.randn((), dtype=torch.float64, generator=generator)
    force = torch.stack([push, torch.zeros_like(push)])
    expected = euler_lagrange(cartpole_lagrangian(cart, pole, length, gravity), q, v, force)
    body = {"gravity": gravity, "cart": cart, "pole": pole, "length": length}
    got = torch.stack(accelerations(q[1], v[1], push, **body))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_control_cartpole_with_the_pole_the_other_way_up_is_caught() -> None:
    q, v = torch.tensor([0.1, 0.7]).double(), torch.tensor([0.2, -0.4]).double()
    force = torch.tensor([1.0, 0.0]).double()
    expected = euler_lagrange(cartpole_lagrangian(5.0, 1.0, 1.0, 9.81), q, v, force)
    body = {"gravity": -9.81, "cart": 5.0, "pole": 1.0, "length": 1.0}
    got = torch.stack(accelerations(q[1], v[1], force[0], **body))
    assert float((got - expected).abs().max()) > 1.0


@given(seed=seeds(), mass=positive, length=positive, gravity=positive, torque=positive)
def test_pendulum_speed_follows_the_euler_lagrange_equation_of_a_rod(
    seed: int, mass: float, length: float, gravity: float, torque: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, dtype=torch.float64, generator=generator)
    u = torch.rand(1, dtype=torch.float64, generator=generator)
    system = Pendulum(gravity=gravity, mass=mass, length=length, torque=torque, speed_limit=1e9)
    acceleration = (system.mean(x, u)[1] - x[1]) / system.dt
    expected = euler_lagrange(rod_lagrangian(mass, length, gravity), x[:1], x[1:], torque * u)[0]
    torch.testing.assert_close(acceleration, expected, rtol=1e-6, atol=1e-8)


def energy_drift(system: Pendulum | CartPole, start: Tensor, dt: float, seconds: float) -> float:
    """Largest change of energy along an unforced trajectory."""
    plant = replace(system, dt=dt)
    x, u = start, torch.zeros(plant.nu, dtype=torch.float64)
    first, worst = plant.energy(x), 0.0
    for _ in range(round(seconds / dt)):
        x = plant.mean(x, u)
        worst = max(worst, float((plant.energy(x) - first).abs()))
    return worst


@pytest.mark.parametrize(
    ("system", "start"),
    [(Pendulum(), [2.0, 1.0]), (CartPole(), [0.0, 2.0, 0.3, -0.5])],
    ids=["pendulum", "cartpole"],
)
def test_unforced_energy_drift_shrinks_with_the_step(system: Pendulum | CartPole, start: list[float]) -> None:
    drifts = [energy_drift(system, torch.tensor(start).double(), dt, 2.0) for dt in (0.008, 0.004, 0.002)]
    scale = float(system.energy(torch.tensor(start).double()).abs())
    assert drifts[2] < 0.04 * scale
    assert drifts[1] < 0.6 * drifts[0]  # first order: halves with dt
    assert drifts[2] < 0.6 * drifts[1]


@pytest.mark.parametrize("system", [Pendulum(), CartPole()], ids=["pendulum", "cartpole"])
def test_force_changes_energy_by_the_work_it_does(system: Pendulum | CartPole) -> None:
    plant = replace(system, dt=1e-6)
    generator = torch.Generator().manual_seed(0)
    x, u = plant.state_box.sample(100, generator), plant.input_box.sample(100, generator)
    x = 0.5 * x
    rate = (plant.energy(plant.mean(x, u)) - plant.energy(x)) / plant.dt
    force, speed = (plant.torque, x[:, 1]) if isinstance(plant, Pendulum) else (plant.force, x[:, 2])
    work = force * u[:, 0] * speed
    torch.testing.assert_close(rate, work, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("system", [Pendulum(), CartPole()], ids=["pendulum", "cartpole"])
def test_start_hangs_at_rest_and_upright_is_an_unstable_equilibrium(system: Pendulum | CartPole) -> None:
    u = torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(system.mean(system.initial_state, u), system.initial_state, rtol=0, atol=1e-15)
    upright = torch.zeros(system.nx, dtype=torch.float64)
    angle = system.angles[0]
    upright[angle] = 0.0 if isinstance(system, Pendulum) else torch.pi
    torch.testing.assert_close(system.mean(upright, u), upright, rtol=0, atol=1e-14)
    eigenvalues = [
        np.abs(np.linalg.eigvals(torch.func.jacrev(lambda x: system.mean(x, u))(point).numpy())).max()
        for point in (system.initial_state, upright)
    ]
    assert eigenvalues[0] < 1.05
    assert eigenvalues[1] > 1.1
    assert float(system.reward(upright, u)) == pytest.approx(0.0, abs=1e-12)
    assert float(system.reward(system.initial_state, u)) == pytest.approx(-(torch.pi**2))


@pytest.mark.parametrize("plant", [Pendulum, CartPole])
def test_action_repeat_is_the_step_applied_again(plant: type[Pendulum] | type[CartPole]) -> None:
    once, thrice = plant(), plant(action_repeat=3)
    generator = torch.Generator().manual_seed(0)
    x, u = once.state_box.sample(50, generator), once.input_box.sample(50, generator)
    assert torch.equal(thrice.mean(x, u), once.mean(once.mean(once.mean(x, u), u), u))


def test_pendulum_speed_is_clipped_at_its_limit() -> None:
    system = Pendulum()
    x = torch.tensor([[torch.pi / 2, 8.0], [-torch.pi / 2, -8.0]], dtype=torch.float64)
    u = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    assert system.mean(x, u)[:, 1].tolist() == [8.0, -8.0]


def test_pendulum_matches_the_published_update() -> None:
    generator = torch.Generator().manual_seed(0)
    system = Pendulum()
    x, u = system.state_box.sample(100, generator), system.input_box.sample(100, generator)
    theta, omega, a = x[:, 0].numpy(), x[:, 1].numpy(), u[:, 0].numpy()
    speed = np.clip(omega + 0.05 * (1.5 * 9.81 * np.sin(theta) + 3 * 2 * a), -8, 8)
    expected = np.stack([theta + 0.05 * speed, speed], -1)
    np.testing.assert_allclose(system.mean(x, u).numpy(), expected, rtol=0, atol=1e-14)


@given(mass=positive, force=positive, dt=st.floats(0.01, 0.5), seed=seeds())
def test_double_integrator_is_the_exact_discretisation(mass: float, force: float, dt: float, seed: int) -> None:
    block = np.zeros((3, 3))
    block[0, 1], block[1, 2] = 1.0, force / mass
    flow = scipy.linalg.expm(block * dt)[:2]
    generator = torch.Generator().manual_seed(seed)
    x, u = torch.randn(2, dtype=torch.float64, generator=generator), torch.rand(1, dtype=torch.float64)
    got = DoubleIntegrator(mass=mass, force=force, dt=dt).mean(x, u)
    np.testing.assert_allclose(got.numpy(), flow @ torch.cat([x, u]).numpy(), rtol=1e-10, atol=1e-12)


@given(angle=st.floats(-50, 50))
def test_wrapped_angle_is_the_same_angle_in_the_principal_range(angle: float) -> None:
    value = torch.tensor(angle, dtype=torch.float64)
    wrapped = wrap_angle(value)
    assert -torch.pi <= float(wrapped) < torch.pi + 1e-12
    assert float((torch.exp(1j * wrapped) - torch.exp(1j * value)).abs()) < 1e-12


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Pendulum(dt=0.0), "Pendulum: expected dt > 0"),
        (lambda: Pendulum(action_repeat=0), "Pendulum: expected integer action_repeat >= 1"),
        (lambda: Pendulum(cost_kind="soft"), "Pendulum: expected cost_kind in"),  # type: ignore[arg-type]
        (lambda: Pendulum(horizon=0), "Pendulum: expected integer horizon >= 1"),
        (lambda: Pendulum(noise_std=torch.tensor([0.1])), "Pendulum: expected noise_std of shape"),
        (lambda: Pendulum(noise_std=torch.tensor([0.1, -1.0])), "Pendulum: expected noise_std >= 0"),
        (
            lambda: Pendulum(initial_state=torch.tensor([0.0, 99.0])),
            "Pendulum: expected initial_state inside",
        ),
        (lambda: CartPole(pole=-1.0), "CartPole: expected pole > 0"),
        (lambda: CartPole(budget=-1.0), "CartPole: expected budget >= 0"),
        (lambda: CartPole(gravity=float("nan")), "CartPole: expected finite gravity"),
        (lambda: DoubleIntegrator(mass=0.0), "DoubleIntegrator: expected mass > 0"),
    ],
)
def test_impossible_plants_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
