"""Plants whose step is PyBullet's: the same task under other mechanics, to try what rests on a model across the gap."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.sets import Box
from gpsafe.systems import scene as draw
from gpsafe.systems.base import Cost, KnownPart
from gpsafe.systems.drone import HOVER, TOP, Drone, rotation
from gpsafe.systems.episodic import Published
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum

_LENGTH = {SimplePendulum: 1.0, SafeCartPole: 0.5}  # m, of the files
FREQUENCY = (
    1000.0  # Hz, of the physics of pendulum and cart-pole; the drone's has one step per step of its rate controller
)


def _pybullet() -> Any:
    try:
        import pybullet
    except ModuleNotFoundError as error:
        told = "BulletPlant: expected PyBullet to be installed (pip install 'gpsafe[bullet]'), got no module pybullet"
        raise ModuleNotFoundError(told, name="pybullet") from error
    return pybullet


class BulletPlant(Published):
    """The task of `plant`, with PyBullet's mechanics (DIRECT mode, no window) of a body made of primitive shapes.

    Pendulum and cart-pole are hinged bodies in steps of a millisecond, where the plant takes one Euler step of 100 or 20 ms:
    the difference is the Euler error. Their friction is a force −b·speed, set in every one of these steps. The drone is a free
    rigid body; its rate controller and its motors are those of `Drone`, at the same rate; forces act at the places of the
    rotors. Nothing collides and there is no floor. Joints and bodies have none of Bullet's own damping.

    `mean` puts the body into the state x, steps, and reads the state, row by row: a function of (x, u), like any plant's.
    Everything else (limits, starts, noise, laws, prior) is the plant's. Where Bullet tells angles, they are turned to the turn
    nearest to the angle before the step, for the plants do not wrap them.

    Args:
        plant: masses, moments of inertia, arms and gains are taken from it; the pendulum's and the pole's length must be 1 m
            and 0.5 m, as in their files.
    """

    def __init__(self, plant: SimplePendulum | SafeCartPole | Drone) -> None:
        if not isinstance(plant, SimplePendulum | SafeCartPole | Drone):
            raise _require.fail("BulletPlant", "a SimplePendulum, SafeCartPole or Drone", type(plant).__name__)
        if not isinstance(plant, Drone) and plant.length != _LENGTH[type(plant)]:
            raise _require.fail(
                "BulletPlant", f"a length of {_LENGTH[type(plant)]} m, as in the body's file", plant.length
            )
        self.plant = plant
        self._bullet = bullet = _pybullet()
        self._client = bullet.connect(bullet.DIRECT)
        self._close = weakref.finalize(self, _disconnect, bullet, self._client)
        drone = isinstance(plant, Drone)
        self._substeps = plant.substeps if drone else math.ceil(plant.dt * FREQUENCY)
        bullet.setPhysicsEngineParameter(
            fixedTimeStep=plant.dt / self._substeps, numSubSteps=0, physicsClientId=self._client
        )
        bullet.setGravity(0.0, 0.0, -plant.gravity, physicsClientId=self._client)
        name = "drone" if drone else "cartpole" if isinstance(plant, SafeCartPole) else "pendulum"
        self._body = self._load(name, fixed=not drone)

    def _load(self, name: str, *, fixed: bool) -> int:
        bullet, client, plant = self._bullet, self._client, self.plant
        with resources.as_file(resources.files("gpsafe.systems.bullet") / f"{name}.urdf") as path:
            flags = bullet.URDF_USE_INERTIA_FROM_FILE
            body = bullet.loadURDF(str(path), useFixedBase=fixed, flags=flags, physicsClientId=client)
        for link in range(-1, bullet.getNumJoints(body, physicsClientId=client)):
            still: dict[str, float] = {"linearDamping": 0.0, "angularDamping": 0.0, "jointDamping": 0.0}
            bullet.changeDynamics(body, link, maxJointVelocity=1e6, **still, physicsClientId=client)
            if link >= 0:  # Bullet's joints brake by default
                bullet.setJointMotorControl2(body, link, bullet.VELOCITY_CONTROL, force=0.0, physicsClientId=client)
        for link, mass, inertia in _dynamics(plant):
            bullet.changeDynamics(body, link, mass=mass, localInertiaDiagonal=inertia, physicsClientId=client)
        return body

    def close(self) -> None:
        """Disconnects from PyBullet; the plant cannot step afterwards."""
        self._close()

    # ------------------------------------------------------------------------------------------------------ the task
    @property
    def name(self) -> str:
        """The plant's, with "-bullet"."""
        return f"{self.plant.name}-bullet"

    @property
    def nx(self) -> int:
        """The plant's."""
        return self.plant.nx

    @property
    def nu(self) -> int:
        """The plant's."""
        return self.plant.nu

    @property
    def state_box(self) -> Box:
        """The plant's."""
        return self.plant.state_box

    @property
    def input_box(self) -> Box:
        """The plant's."""
        return self.plant.input_box

    @property
    def initial_box(self) -> Box:
        """The plant's."""
        return self.plant.initial_box

    @property
    def initial_state(self) -> Tensor:
        """The plant's."""
        return self.plant.initial_state

    @property
    def noise_std(self) -> Tensor:
        """The plant's."""
        return self.plant.noise_std

    @property
    def input_noise(self) -> float:
        """The plant's."""
        return self.plant.input_noise

    @property
    def horizon(self) -> int:
        """The plant's."""
        return self.plant.horizon

    @property
    def budget(self) -> float:
        """The plant's."""
        return self.plant.budget

    @property
    def cost(self) -> Cost:
        """The plant's."""
        return self.plant.cost

    @property
    def limited(self) -> tuple[int, ...]:
        """The plant's."""
        return self.plant.limited

    def reward(self, x: Tensor, u: Tensor) -> Tensor:
        """The plant's."""
        return self.plant.reward(x, u)

    def prior(self, *, scale: float = 0.8) -> KnownPart:
        """The plant's."""
        return self.plant.prior(scale=scale)

    def observe(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The plant's."""
        return self.plant.observe(x, generator)

    def backup(self, x: Tensor) -> Tensor:
        """The plant's."""
        return self.plant.backup(x)

    def warm_up(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The plant's."""
        return self.plant.warm_up(x, generator)

    def scene(self, x: Tensor) -> draw.Scene:
        """The plant's."""
        return self.plant.scene(x)

    # ------------------------------------------------------------------------------------------------------ the mechanics
    def mean(self, x: Tensor, u: Tensor) -> Tensor:
        """A step of the physics without noise, (*b, nx), (*b, nu) → (*b, nx)."""
        if not self._close.alive:
            raise _require.fail("BulletPlant.mean", "an open connection", "a closed one")
        step = self._fly if isinstance(self.plant, Drone) else self._swing
        shape = torch.broadcast_shapes(x.shape[:-1], u.shape[:-1])
        states, inputs = (part.expand(*shape, -1).reshape(-1, part.shape[-1]).tolist() for part in (x, u))
        rows = [step(a, b) for a, b in zip(states, inputs, strict=True)]
        return torch.tensor(rows, dtype=torch.float64, device=x.device).reshape(*shape, self.nx)

    def _swing(self, x: Sequence[float], u: Sequence[float]) -> list[float]:
        """Joints in the order of the state: (value, rate) each; the first is pushed and rubs."""
        bullet, body, plant = self._bullet, self._body, self.plant
        assert not isinstance(plant, Drone)
        cart = isinstance(plant, SafeCartPole)
        push, rub = (plant.force * u[0], plant.friction) if cart else (u[0], plant.damping)
        joints = range(len(x) // 2)
        for j in joints:
            bullet.resetJointState(body, j, x[2 * j], x[2 * j + 1], physicsClientId=self._client)
        speed = x[1]
        for _ in range(self._substeps):
            bullet.setJointMotorControl2(
                body, 0, bullet.TORQUE_CONTROL, force=push - rub * speed, physicsClientId=self._client
            )
            bullet.stepSimulation(physicsClientId=self._client)
            speed = bullet.getJointState(body, 0, physicsClientId=self._client)[1]
        ends = [bullet.getJointState(body, j, physicsClientId=self._client)[:2] for j in joints]
        return [value for end in ends for value in end]

    def _fly(self, x: Sequence[float], u: Sequence[float]) -> list[float]:
        """Four forces at the rotors' places and the drag's torque, in every step of the rate controller."""
        bullet, body, plant, client = self._bullet, self._body, self.plant, self._client
        assert isinstance(plant, Drone)
        bullet.resetBasePositionAndOrientation(body, x[:3], bullet.getQuaternionFromEuler(x[3:6]), client)
        turning = rotation(torch.tensor(x[3:6], dtype=torch.float64)) @ torch.tensor(x[9:], dtype=torch.float64)
        bullet.resetBaseVelocity(body, x[6:9], turning.tolist(), physicsClientId=client)
        wanted, asked = plant.rate * torch.tensor(u[1:], dtype=torch.float64), HOVER * (1.0 + u[0])
        place, R, speed, rates = self._pose()
        for _ in range(self._substeps):
            commands = (asked + plant.feedback @ (wanted - rates)).clamp(0.0, TOP)
            forces = (commands * (plant.force / HOVER)).tolist()
            for (px, py), force in zip(_ROTORS, forces, strict=True):
                at = [plant.arm * px, plant.arm * py, 0.0]
                bullet.applyExternalForce(body, -1, [0, 0, force], at, bullet.LINK_FRAME, physicsClientId=client)
            about = plant.drag * (forces[0] - forces[1] + forces[2] - forces[3])
            bullet.applyExternalTorque(body, -1, [0, 0, about], bullet.LINK_FRAME, physicsClientId=client)
            bullet.stepSimulation(physicsClientId=client)
            place, R, speed, rates = self._pose()
        pitch = -math.asin(max(-1.0, min(1.0, float(R[2, 0]))))
        angles = [math.atan2(R[2, 1], R[2, 2]), pitch, math.atan2(R[1, 0], R[0, 0])]
        angles = [a + math.tau * round((b - a) / math.tau) for a, b in zip(angles, x[3:6], strict=True)]
        return [*place, *angles, *speed, *rates.tolist()]

    def _pose(self) -> tuple[Sequence[float], Tensor, Sequence[float], Tensor]:
        """Place, R from body to world, velocity in the world, body rates."""
        place, attitude = self._bullet.getBasePositionAndOrientation(self._body, physicsClientId=self._client)
        speed, turning = self._bullet.getBaseVelocity(self._body, physicsClientId=self._client)
        R = torch.tensor(self._bullet.getMatrixFromQuaternion(attitude), dtype=torch.float64).reshape(3, 3)
        return place, R, speed, R.T @ torch.tensor(turning, dtype=torch.float64)


def _dynamics(plant: SimplePendulum | SafeCartPole | Drone) -> list[tuple[int, float, list[float]]]:
    """(link, mass, principal moments) of the bodies; a point mass needs some moment of inertia, a cart none."""
    if isinstance(plant, Drone):
        return [(-1, plant.mass, list(plant.inertia))]
    if isinstance(plant, SimplePendulum):
        return [(0, plant.mass, 3 * [1e-9 * plant.mass * plant.length**2])]
    rod = plant.pole * plant.length**2 / 12
    return [(0, plant.cart, 3 * [0.01]), (1, plant.pole, [rod, rod, 1e-6])]


def _disconnect(bullet: Any, client: int) -> None:
    if bullet.isConnected(client):
        bullet.disconnect(client)


_ROTORS = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))  # in the order of `Drone`'s mixer
