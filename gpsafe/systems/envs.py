"""Gymnasium environments: any `System` as an episodic task, and the registered plants of this package.

``import gpsafe.systems.envs`` registers gpsafe/<name>-v0 for every name in `PLANTS`: Pendulum, CartPole, DoubleIntegrator,
PointGoal, RKHS1D, RKHS2D, and those of the X-MPSC experiments, SimplePendulum, SafeCartPole, TwoLinkArm and Drone.
``gymnasium.make("gpsafe.systems.envs:gpsafe/Pendulum-v0")`` imports and makes in one go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from gpsafe import _require
from gpsafe.systems import drawing
from gpsafe.systems.arm import TwoLinkArm
from gpsafe.systems.base import System, sample_noise
from gpsafe.systems.cartpole import CartPole
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.drone import Drone
from gpsafe.systems.episodic import Episodic
from gpsafe.systems.pendulum import Pendulum
from gpsafe.systems.point_goal import PointGoal
from gpsafe.systems.synthetic import rkhs_1d, rkhs_2d
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum

Array = NDArray[np.float64]

ENVELOPE = 10.0  # observations are bounded by the state box widened this many times around its middle


class SystemEnv(gymnasium.Env[Array, Array]):
    """One episode of T = system.horizon steps of x⁺ = f*(x, u) + w from the initial state.

    ``info["cost"]`` of a step is c(x_t) of the state the action was applied in, so that its sum over an
    episode is the Σ_{t<T} c(x_t) whose expectation the budget bounds (theory §1.1); ``info["cost_next"]`` is
    c(x_{t+1}). Also ``info["state"]``, the new state, and ``info["applied"]``, the input: actions outside the input box are
    clipped to it.

    An `Episodic` system has its own starts, noise and measurements: a reset draws `initial`, a step is `advance`, the
    observation is `observe` of the true state, which ``info["state"]`` tells. Its episodes end when the state leaves the
    limits, so that reward and cost of a step are those of the state it leads to: ``info["cost"]`` is c(x_{t+1}), 1 in the
    step that leaves.

    The episode is truncated at the horizon, or when the state leaves the state box widened ten times
    (``info["escaped"]``; the last observation is then clipped to the observation space, ``info["state"]`` is
    not). It terminates only if the system has a method ``terminated(x)`` that says so.

    Args:
        system: the plant.
        observation: "state", or "trig": every angle the system declares in ``angles`` becomes (cos, sin).
        render_mode: None or "rgb_array".
        image_size: pixels of a rendered picture's side.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(
        self,
        system: System,
        *,
        observation: Literal["state", "trig"] = "state",
        render_mode: str | None = None,
        image_size: int = 320,
    ) -> None:
        _require.one_of("SystemEnv", "observation", observation, ("state", "trig"))
        if render_mode is not None:
            _require.one_of("SystemEnv", "render_mode", render_mode, self.metadata["render_modes"])
        self.system = system
        self._episodic = system if isinstance(system, Episodic) else None
        self.render_mode = render_mode
        self.image_size = _require.count("SystemEnv", "image_size", image_size, minimum=16)
        self._angles = tuple(getattr(system, "angles", ())) if observation == "trig" else ()
        box = system.state_box
        self._low = box.center - ENVELOPE * box.radius
        self._high = box.center + ENVELOPE * box.radius
        low, high = self._expand(self._low, angle=-1.0), self._expand(self._high, angle=1.0)
        self.observation_space = spaces.Box(low, high, dtype=np.float64)
        limits = system.input_box
        self.action_space = spaces.Box(limits.lower.numpy(), limits.upper.numpy(), dtype=np.float64)
        self._trail: list[Tensor] = []
        self._generator = torch.Generator()

    def _expand(self, x: Tensor, *, angle: float | None = None) -> Array:
        parts: list[Tensor] = []
        for i, value in enumerate(x.unbind(-1)):
            if i not in self._angles:
                parts.append(value)
            elif angle is None:
                parts += [torch.cos(value), torch.sin(value)]
            else:
                parts += 2 * [torch.full_like(value, angle)]
        return torch.stack(parts, dim=-1).numpy().copy()

    def _observe(self, x: Tensor) -> Array:
        if self._episodic is not None:
            x = self._episodic.observe(x, self._generator)
        return self._expand(torch.minimum(torch.maximum(x, self._low), self._high))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Back to the initial state (of an `Episodic` system: a start of its own), or to ``options["state"]`` (nx,).

        Start and noise of the episode are drawn from `seed`.
        """
        super().reset(seed=seed)
        self._generator.manual_seed(int(self.np_random.integers(2**62)))
        given = (options or {}).get("state")
        x = self.system.initial_state.clone()
        if self._episodic is not None:
            x = self._episodic.initial(1, self._generator)[0]
        if given is not None:
            x = _require.finite("SystemEnv.reset", "options['state']", given).clone()
            _require.shape("SystemEnv.reset", "options['state']", x, (self.system.nx,))
        self._trail = [x]
        return self._observe(x), {"state": x.numpy().copy()}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """One step; see the class for `info`.

        Raises:
            ResetNeeded: before the first reset.
            ValueError: an action of the wrong shape or with NaN or infinite entries.
        """
        if not self._trail:
            raise ResetNeeded("SystemEnv.step: expected a call of reset first, got none")
        u = _require.finite("SystemEnv.step", "action", np.array(action, dtype=np.float64))
        u = self.system.input_box.clip(_require.shape("SystemEnv.step", "action", u, (self.system.nu,)))
        x = self._trail[-1]
        if self._episodic is None:
            judged, x_next = x, self.system.mean(x, u) + sample_noise(self.system.noise_std, (), self._generator)
        else:
            judged = x_next = self._episodic.advance(x, u, self._generator)
        self._trail.append(x_next)
        escaped = not bool(((x_next >= self._low) & (x_next <= self._high)).all())
        ends = getattr(self.system, "terminated", None)
        terminated = bool(ends(x_next)) if ends is not None else False
        truncated = escaped or len(self._trail) > self.system.horizon
        info = {
            "cost": float(self.system.cost(judged)),
            "cost_next": float(self.system.cost(x_next)),
            "state": x_next.numpy().copy(),
            "applied": u.numpy().copy(),
            "escaped": escaped,
        }
        return self._observe(x_next), float(self.system.reward(judged, u)), terminated, truncated, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """(image_size, image_size, 3) uint8 in "rgb_array" mode, else None."""
        if self.render_mode is None:
            return None
        if not self._trail:
            raise ResetNeeded("SystemEnv.render: expected a call of reset first, got none")
        return drawing.picture(self.system, torch.stack(self._trail), size=self.image_size)


def _rkhs(build: Callable[..., System]) -> Callable[..., System]:
    def make(*, function_seed: int = 0, **parameters: Any) -> System:
        return build(generator=torch.Generator().manual_seed(function_seed), **parameters)

    return make


PLANTS: dict[str, Callable[..., System]] = {
    "Pendulum": Pendulum,
    "CartPole": CartPole,
    "DoubleIntegrator": DoubleIntegrator,
    "PointGoal": PointGoal,
    "RKHS1D": _rkhs(rkhs_1d),
    "RKHS2D": _rkhs(rkhs_2d),
    "SimplePendulum": SimplePendulum,
    "SafeCartPole": SafeCartPole,
    "TwoLinkArm": TwoLinkArm,
    "Drone": Drone,
}


def make_env(
    plant: str,
    *,
    twin: bool = False,
    bullet: bool = False,
    observation: Literal["state", "trig"] = "state",
    render_mode: str | None = None,
    image_size: int = 320,
    **parameters: Any,
) -> SystemEnv:
    """What ``gymnasium.make("gpsafe/<plant>-v0", ...)`` calls.

    Args:
        plant: a key of `PLANTS`.
        twin: the RKHS twin of the plant instead of its physics (the RKHS plants are their own twins).
        bullet: PyBullet's mechanics (extra "bullet") instead of the plant's, for SimplePendulum, SafeCartPole and Drone.
        observation, render_mode, image_size: see :class:`SystemEnv`.
        parameters: fields of the plant (e.g. ``action_repeat=2``), or ``function_seed`` of an RKHS plant.
    """
    _require.one_of("make_env", "plant", plant, PLANTS)
    system = PLANTS[plant](**parameters)
    if twin and isinstance(system, Pendulum | CartPole | DoubleIntegrator):
        system = system.twin()
    if bullet:
        from gpsafe.systems.bullet import BulletPlant

        system = BulletPlant(system)  # type: ignore[arg-type]  (it says which plants it has)
    return SystemEnv(system, observation=observation, render_mode=render_mode, image_size=image_size)


for _plant in PLANTS:
    if f"gpsafe/{_plant}-v0" not in gymnasium.registry:
        gymnasium.register(
            id=f"gpsafe/{_plant}-v0", entry_point="gpsafe.systems.envs:make_env", kwargs={"plant": _plant}
        )
