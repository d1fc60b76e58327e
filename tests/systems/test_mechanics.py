"""The plants of the X-MPSC experiments against equations written again, integrated by SciPy, and against what is conserved."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from gpsafe.linalg import vector
from gpsafe.systems import Drone, SafeCartPole, SimplePendulum, TwoLinkArm
from gpsafe.systems.drone import rotation

PENDULUM, CART, ARM, DRONE = SimplePendulum(), SafeCartPole(), TwoLinkArm(), Drone()


# ------------------------------------------------------------------------------ the equations of motion, written again
def pendulum(x, u):
    """A point mass on a rod, in Cartesian forces: the component of gravity across the rod, the torque, and the damping."""
    plant = PENDULUM
    across = np.array([np.cos(x[0]), -np.sin(x[0])])  # direction of growing θ: clockwise from upright
    force = plant.mass * np.array([0.0, -plant.gravity]) @ across + (u[0] - plant.damping * x[1]) / plant.length
    return np.array([x[1], force / plant.mass / plant.length])


def cartpole(x, u):
    """Newton for cart and rod (half-length h, inertia 4/3 m h² about the hinge) as a linear system for both accelerations."""
    plant = CART
    m, h, s, c = plant.pole, plant.length / 2, np.sin(x[2]), np.cos(x[2])
    mass = np.array([[plant.cart + m, -m * h * c], [-m * h * c, 4 / 3 * m * h * h]])
    push = np.array([plant.force * u[0] - plant.friction * x[1] - m * h * x[3] ** 2 * s, m * plant.gravity * h * s])
    faster = np.linalg.solve(mass, push)
    return np.array([x[1], faster[0], x[3], faster[1]])


def arm_energy(q, w, plant):
    """½ I₁ω₁² + ½ m₂|v|² + m₂ v·(r × ω) + ½ I₂(ω₁ + ω₂)², v of the elbow, r from it to the centre of the second link."""
    (_, m), (a, _), (_, s), (i1, i2) = plant.masses, plant.lengths, plant.centers, plant.inertias
    both, spin = q[0] + q[1], w[0] + w[1]
    elbow = a * w[0] * torch.stack([-torch.sin(q[0]), torch.cos(q[0])])
    rest = s * spin * torch.stack([-torch.sin(both), torch.cos(both)])
    return 0.5 * (i1 * w[0] ** 2 + m * elbow @ elbow + i2 * spin**2) + m * elbow @ rest


def arm(x, u):
    """Euler–Lagrange of `arm_energy`, by automatic derivatives; x = (θ, ω)."""
    plant = ARM
    q, w = torch.from_numpy(x[:2]), torch.from_numpy(x[2:])

    def energy(q, w):
        return arm_energy(q, w, plant)

    mass = torch.func.hessian(energy, argnums=1)(q, w)
    mixed = torch.func.jacfwd(torch.func.grad(energy, argnums=1), argnums=0)(q, w)
    push = torch.from_numpy(u) - plant.friction @ w + torch.func.grad(energy, argnums=0)(q, w) - mixed @ w
    return np.concatenate([x[2:], torch.linalg.solve(mass, push).numpy()])


def drone(x, u):
    """Motors at their places with lever arms as cross products, as the firmware mixes them; R as nine numbers."""
    plant = DRONE
    R, v, w = x[3:12].reshape(3, 3), x[12:15], x[15:18]
    error = np.degrees(plant.rate * u[1:] - w)
    roll, pitch, yaw = np.array(plant.gains) * error
    asked = 30000 * (1 + u[0])
    commands = [asked - roll / 2 + pitch / 2 + yaw, asked - roll / 2 - pitch / 2 - yaw]
    commands += [asked + roll / 2 - pitch / 2 + yaw, asked + roll / 2 + pitch / 2 - yaw]
    forces = plant.force * np.clip(commands, 0, 60000) / 30000
    places = plant.arm * np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    torque = sum(np.cross(place, [0, 0, f]) for place, f in zip(places, forces, strict=True))
    torque = torque + plant.drag * np.array([0, 0, forces @ [1, -1, 1, -1]])
    J = np.diag(plant.inertia)
    turning = np.linalg.solve(J, torque - np.cross(w, J @ w))
    faster = R @ [0, 0, forces.sum()] / plant.mass - [0, 0, plant.gravity]
    skew = np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])
    return np.concatenate([v, (R @ skew).ravel(), faster, turning])


def angles_of(R):
    return np.array([math.atan2(R[2, 1], R[2, 2]), -math.asin(R[2, 0]), math.atan2(R[1, 0], R[0, 0])])


def integrated(rates, x, u, seconds):
    ends = solve_ivp(lambda _, y: rates(y, u), (0, seconds), x, method="LSODA", rtol=1e-6, atol=1e-8)
    return ends.y[:, -1]


def stepped(plant, x, u, seconds):
    for _ in range(round(seconds / plant.dt)):
        x = plant.mean(x, u)
    return x


CASES = {  # plant, rates, start as the plant has it, to and from what the rates take, u, seconds
    "pendulum": (PENDULUM, pendulum, torch.tensor([2.3, 1.1]), lambda x: x, [0.6], 0.5),
    "cart-pole": (CART, cartpole, torch.tensor([0.2, -0.4, 0.3, -0.5]), lambda x: x, [0.35], 0.3),
    "arm": (
        ARM,
        arm,
        ARM.of(*(torch.tensor(v).double() for v in ([0.4, 2.0], [1.5, -2.5], [0.1, 0.2]))),
        lambda x: np.concatenate([10 * x[4:6], 10 * x[6:8]]),
        [0.5, -0.3],
        0.2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_converge_to_the_differential_equation_at_first_order(name):
    """Halving dt halves the distance to SciPy's solution: what is left is Euler's error, no term of the mechanics."""
    plant, rates, start, view, u, seconds = CASES[name]
    u = torch.tensor(u).double()
    truth = integrated(rates, view(start.double().numpy()), u.numpy(), seconds)
    errors = []
    for dt in (4e-3, 2e-3):
        end = view(stepped(replace(plant, dt=dt), start.double(), u, seconds).numpy())
        errors.append(np.abs(end - truth).max())
    assert errors[1] < 0.04
    assert 1.8 < errors[0] / errors[1] < 2.2


@pytest.mark.parametrize("u", [(0.0, 0.4, -0.3, 0.5), (-0.9, 1.0, 1.0, -1.0)], ids=["hovering", "motors saturate"])
def test_the_drone_converges_to_the_differential_equation(u):
    start = torch.tensor([0.1, -0.2, 0.9, 0.1, -0.12, 0.7, 0.3, -0.1, 0.2, 0.5, -0.4, 0.3]).double()
    command = torch.tensor(u).double()
    R = rotation(start[3:6]).numpy()
    full = np.concatenate([start[:3].numpy(), R.ravel(), start[6:9].numpy(), start[9:].numpy()])
    ends = integrated(drone, full, command.numpy(), 0.06)
    truth = np.concatenate([ends[:3], angles_of(ends[3:12].reshape(3, 3)), ends[12:15], ends[15:]])
    errors = []
    for substeps in (10, 20):
        end = stepped(replace(DRONE, substeps=substeps), start, command, 0.06).numpy()
        errors.append(np.abs(end - truth).max())
    assert errors[1] < 5e-3
    assert errors[0] / errors[1] > 1.7


def test_control_a_wrong_term_is_seen():
    """Without the gyroscopic term, with half the pole's inertia or another centre, the distance does not go to zero."""
    plant, rates, start, view, u, seconds = CASES["arm"]
    truth = integrated(rates, view(start.numpy()), np.array(u), seconds)
    other = replace(plant, dt=2e-3, centers=(0.011, 0.1))
    assert np.abs(view(stepped(other, start, torch.tensor(u).double(), seconds).numpy()) - truth).max() > 0.02


# ----------------------------------------------------------------------------------------------------- what is conserved
def test_the_undamped_arm_keeps_its_energy_and_its_momentum_about_the_shoulder():
    plant = replace(ARM, friction=torch.zeros(2, 2).double(), dt=2e-4)
    x = plant.of(*(torch.tensor(v).double() for v in ([0.4, 1.0], [2.0, -3.0], [0.1, 0.2])))
    theta, omega, _ = plant.state(x)
    assert float(plant.energy(x)) == pytest.approx(float(arm_energy(theta, omega, plant)), rel=1e-12)

    def momentum(x):
        theta, omega, _ = plant.state(x)
        return float((plant._links.mass(theta[..., 1]) @ omega)[0])

    end = stepped(plant, x, torch.zeros(2).double(), 0.4)
    assert float((plant.state(end)[0] - theta).abs().max()) > 0.4  # it moved
    assert float(plant.energy(end)) == pytest.approx(float(plant.energy(x)), rel=2e-3)
    assert momentum(end) == pytest.approx(momentum(x), rel=2e-3)


def test_friction_takes_energy_from_the_arm():
    x = ARM.of(*(torch.tensor(v).double() for v in ([0.4, 1.0], [2.0, -3.0], [0.1, 0.2])))
    assert float(ARM.energy(stepped(ARM, x, torch.zeros(2).double(), 0.4))) < 0.8 * float(ARM.energy(x))


def test_the_drone_in_free_flight_keeps_momenta_and_energy():
    plant = replace(DRONE, gains=(0.0, 0.0, 0.0), substeps=40)
    x = torch.tensor([0.1, -0.2, 0.9, 0.1, -0.12, 0.7, 0.3, -0.1, 0.2, 3.0, -2.0, 4.0]).double()
    end = stepped(plant, x, torch.tensor([-1.0, 0.3, -0.4, 0.2]).double(), 0.4)
    J, down = vector(*plant.inertia), vector(0.0, 0.0, -plant.gravity)

    def spin(x):
        return rotation(x[3:6]) @ (J * x[9:])

    assert float((end[3:6] - x[3:6]).abs().max()) > 0.5  # it turned
    torch.testing.assert_close(spin(end), spin(x), rtol=1e-2, atol=0)
    torch.testing.assert_close(J @ end[9:] ** 2, J @ x[9:] ** 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(end[6:9], x[6:9] + 0.4 * down, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end[:3], x[:3] + 0.4 * x[6:9] + 0.08 * down, rtol=1e-12, atol=1e-12)


def test_the_undamped_pendulum_swings_back_to_the_height_it_came_from():
    plant = replace(PENDULUM, damping=0.0, dt=1e-3)
    x, highest = torch.tensor([2.0, 0.0]).double(), 2.0
    for _ in range(3000):
        x = plant.mean(x, torch.zeros(1).double())
        highest = max(highest, float(x[0]))
    assert highest - math.pi == pytest.approx(math.pi - 2.0, abs=2e-3)
