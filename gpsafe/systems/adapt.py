"""From what people have to a `System`: NumPy step functions, CasADi functions, differential equations, Gymnasium environments.

    step = from_ode(lambda x, u: torch.stack([x[..., 1], ...], -1), dt=0.05)     # torch, batched
    step = from_numpy(my_simulator_step)                                        # one state at a time, or vectorized=True
    step = from_casadi(casadi.Function("f", [x, u], [x_next]))
    system = plant(step, x0=[0.0, 0.0], states=([-2, -2], [2, 2]), inputs=([-1], [1]), horizon=50, safe=([-1, -inf], [1, inf]))

A Gymnasium environment, as a robot, has no dynamics to call: a learner is asked for a policy, `episode` runs it, and the
learner is told what was measured.

What no function says has to be stated: the noise, limits, and what :mod:`gpsafe.systems.derived` cannot find by interval
arithmetic: a cost over boxes, a bound of second derivatives. `KnownFunction` compares a stated bound with derivatives at drawn
points; this finds wrong ones, and proves none right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.sets import Box
from gpsafe.systems.base import CallableSystem, Cost, IndicatorCost

Dynamics = Callable[[Tensor, Tensor], Tensor]
Limits = Box | tuple[Sequence[float] | np.ndarray[Any, Any] | Tensor, Sequence[float] | np.ndarray[Any, Any] | Tensor]


# ------------------------------------------------------------------ step functions
def from_numpy(step: Callable[[Any, Any], Any], *, vectorized: bool = False) -> Dynamics:
    """x⁺ = step(x, u) of NumPy arrays, (nx,), (nu,) → (nx,); with `vectorized` of batches (n, nx), (n, nu) → (n, nx).

    Without gradients. A function of single states is called in a loop: slow, but right.
    """

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        lead, x, u = _flat(x, u)
        a, b = x.detach().cpu().numpy().copy(), u.detach().cpu().numpy().copy()
        if not vectorized:
            found = [np.asarray(step(p, q), dtype=np.float64) for p, q in zip(a, b, strict=True)] or np.zeros_like(a)
        else:
            found = step(a, b)
        array = np.array(found, dtype=np.float64)
        if array.shape != a.shape:
            raise _require.fail("from_numpy", f"next states of shape {a.shape}", f"shape {array.shape}")
        return torch.from_numpy(array).to(x.device).reshape(*lead, x.shape[-1])

    return dynamics


def from_casadi(function: Any) -> Dynamics:
    """x⁺ of a `casadi.Function` (x, u) → x⁺ with column vectors; batches by its map. Without gradients.

    The function itself may go into a known part for planning; there it keeps its exact derivatives.
    """
    sizes = (
        [function.size1_in(i) for i in range(function.n_in())],
        [function.size1_out(i) for i in range(function.n_out())],
    )
    if len(sizes[0]) != 2 or len(sizes[1]) != 1 or sizes[0][0] != sizes[1][0]:
        raise _require.fail("from_casadi", "a function (x, u) -> x+ of column vectors", str(function))

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        lead, x, u = _flat(x, u)
        if not len(x):
            return x.reshape(*lead, x.shape[-1])
        found = function.map(len(x))(x.detach().cpu().numpy().T, u.detach().cpu().numpy().T)
        return torch.from_numpy(np.array(found.full().T)).to(x.device).reshape(*lead, x.shape[-1])

    return dynamics


def from_ode(rhs: Dynamics, *, dt: float, substeps: int = 1, method: str = "rk4") -> Dynamics:
    """The flow over dt of ẋ = rhs(x, u) with u held, by `substeps` steps of "rk4" (classical Runge-Kutta) or "euler".

    Args:
        rhs: batched torch, (*b, nx), (*b, nu) → (*b, nx). What is integrated is the plant: the integrator's error is not noise.
        dt: seconds of a step of the plant.
        substeps: of the integrator in it.
        method: "rk4" or "euler".
    """
    h = float(_require.positive("from_ode", "dt", dt)) / _require.count("from_ode", "substeps", substeps)
    _require.one_of("from_ode", "method", method, ("rk4", "euler"))

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        for _ in range(substeps):
            k1 = rhs(x, u)
            if method == "euler":
                x = x + h * k1
                continue
            k2 = rhs(x + 0.5 * h * k1, u)
            k3 = rhs(x + 0.5 * h * k2, u)
            k4 = rhs(x + h * k3, u)
            x = x + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)
        return x

    return dynamics


def _flat(x: Tensor, u: Tensor) -> tuple[torch.Size, Tensor, Tensor]:
    lead = torch.broadcast_shapes(x.shape[:-1], u.shape[:-1])
    return lead, x.expand(*lead, -1).reshape(-1, x.shape[-1]), u.expand(*lead, -1).reshape(-1, u.shape[-1])


# ------------------------------------------------------------------ plants
def plant(
    dynamics: Dynamics,
    *,
    x0: Sequence[float] | Tensor,
    states: Limits,
    inputs: Limits,
    horizon: int,
    safe: Limits | None = None,
    cost: Cost | None = None,
    budget: float = 0.0,
    noise_std: Sequence[float] | Tensor | float = 0.0,
    reward: Callable[[Tensor, Tensor], Tensor] | None = None,
    name: str = "plant",
) -> CallableSystem:
    """A `System` of a batched step function (x, u) → x⁺.

    Args:
        dynamics: f*, (*b, nx), (*b, nu) → (*b, nx): one of the functions above, or batched torch.
        x0: initial state, (nx,).
        states: region on which the plant is studied, a box or (lower, upper).
        inputs: limits of u, a box or (lower, upper).
        horizon: T, steps of an episode.
        safe: a box or (lower, upper), ±inf where there is no limit: cost 1 for each step outside. Instead of `cost`.
        cost: c with its suprema over boxes (`upper`), which no step function can tell: `IndicatorCost`, `HingeCost`, one's own.
        budget: d, E Σ_{t<T} c(x_t) ≤ d.
        noise_std: standard deviations of the process noise, (nx,) or one number for all.
        reward: r(x, u), batched; 0 if none is given.
        name: short.

    Raises:
        ValueError: if `dynamics` does not give a finite (n, nx) for (n, nx) and (n, nu), or mixes the rows of a batch.
    """
    where = "plant"
    start = _require.finite(where, "x0", x0)
    region, box = as_box(where, "states", states), as_box(where, "inputs", inputs)
    if (safe is None) == (cost is None):
        raise _require.fail(where, "either safe or cost", "both" if cost is not None else "neither")
    for part, size in (
        ("x0", start.numel()),
        *((("safe", len(_limits(where, "safe", safe)[0])),) if safe is not None else ()),
    ):
        if size != region.dim:
            raise _require.fail(where, f"{part} with as many entries as states ({region.dim})", size)
    budget = _require.number(where, "budget", budget, minimum=0.0)
    charged = cost if cost is not None else _leaving(_limits(where, "safe", safe))
    std = _require.nonnegative(where, "noise_std", noise_std)
    std = std.expand(start.numel()).clone() if std.ndim == 0 else std
    _batched(dynamics, start, region, box)
    given = reward if reward is not None else lambda x, u: torch.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)
    return CallableSystem(
        name, start.numel(), box.dim, region, box, std, start, horizon, charged, budget, dynamics, given
    )


def _limits(where: str, name: str, limits: Any) -> tuple[Tensor, Tensor]:
    if isinstance(limits, Box):
        return limits.lower, limits.upper
    if not isinstance(limits, tuple | list) or len(limits) != 2:
        raise _require.fail(where, f"{name} as a Box or a pair (lower, upper)", repr(limits)[:80])
    lower, upper = (torch.atleast_1d(_require.floats(where, name, end)) for end in limits)
    if lower.shape != upper.shape or bool(lower.isnan().any() | upper.isnan().any()) or bool((lower > upper).any()):
        raise _require.fail(where, f"{name} with lower <= upper", f"{lower.tolist()} and {upper.tolist()}")
    return lower, upper


def as_box(where: str, name: str, limits: Limits) -> Box:
    """A box, or (lower, upper) as one."""
    return Box(*_limits(where, name, limits))


def _leaving(limits: tuple[Tensor, Tensor]) -> IndicatorCost:
    """1 outside [lower, upper]; infinite limits are none."""
    lower, upper = limits
    eye = torch.eye(len(lower), dtype=torch.float64)
    normals, offsets = torch.cat([eye, -eye]), torch.cat([upper, -lower])
    kept = offsets < math.inf
    if not bool(kept.any()):
        raise _require.fail("plant", "a finite limit in safe", "none")
    return IndicatorCost(normals[kept], offsets[kept])


def _batched(dynamics: Dynamics, start: Tensor, region: Box, inputs: Box) -> None:
    """Refuses a function that is not one of each row of a batch for itself."""
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([start, 0.5 * (start + region.center), start])
    u = torch.cat([inputs.sample(2, generator), inputs.sample(1, generator)])
    where, expected = "plant", "dynamics (n, nx), (n, nu) -> (n, nx)"
    try:
        found = dynamics(x, u)
        single = torch.stack([dynamics(a.unsqueeze(0), b.unsqueeze(0))[0] for a, b in zip(x, u, strict=True)])
    except Exception as error:
        raise _require.fail(where, expected, _require.told(error)) from error
    if not isinstance(found, Tensor) or found.shape != x.shape or found.dtype != torch.float64:
        told = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise _require.fail(where, f"{expected} in float64", told)
    if not bool(found.isfinite().all()):
        raise _require.fail(where, "finite next states at x0", found.tolist())
    if not torch.allclose(found, single, rtol=1e-9, atol=1e-12):
        raise _require.fail(
            where, "dynamics that treat each row of a batch for itself", "rows that depend on each other"
        )


# ------------------------------------------------------------------ known parts
@short
@dataclass(frozen=True, slots=True, eq=False)
class KnownFunction:
    """A known part p of a batched torch function and a bound of its second derivatives on all of ℝ^nz (`KnownPart`).

    Args:
        function: p, (*b, nx), (*b, nu) → (*b, nx), differentiable by torch.
        hessian_bound: H (nx, nz, nz), |∂²p_i/∂z_j∂z_k| ≤ H_ijk; 0 for one that is affine.
        region: where derivatives are compared with it.
        samples: at how many points.

    Raises:
        ValueError: where a derivative at a drawn point exceeds the bound. None found is no proof.
    """

    function: Dynamics
    hessian_bound: Tensor
    region: Box
    samples: int = 256

    def __post_init__(self) -> None:
        bound = _require.nonnegative("KnownFunction", "hessian_bound", self.hessian_bound).clone()
        nz = self.region.dim
        if bound.ndim != 3 or bound.shape[1:] != (nz, nz):
            raise _require.fail("KnownFunction", f"hessian_bound of shape (nx, {nz}, {nz})", tuple(bound.shape))
        object.__setattr__(self, "hessian_bound", bound)
        nx = bound.shape[0]
        points = self.region.sample(
            _require.count("KnownFunction", "samples", self.samples), torch.Generator().manual_seed(0)
        )

        def whole(z: Tensor) -> Tensor:
            return self.function(z[:nx], z[nx:])

        found = torch.func.vmap(torch.func.hessian(whole))(points).abs().amax(0)
        excess = found - bound * (1 + 1e-9)
        if not bool((excess <= 1e-12).all()):
            i, j, k = (int(n) for n in np.unravel_index(int(excess.nan_to_num(math.inf).argmax()), excess.shape))
            expected = f"|d²p_{i}/dz_{j}dz_{k}| <= {float(bound[i, j, k]):.4g}"
            raise _require.fail("KnownFunction", expected, f"{float(found[i, j, k]):.4g} at a drawn point")

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """p(x, u)."""
        return self.function(x, u)


# ------------------------------------------------------------------ environments
def episode(
    env: Any, policy: Callable[[Tensor], Tensor], *, horizon: int, state: Callable[[Any, dict[str, Any]], Any] | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One episode of a Gymnasium environment under x ↦ u: states (k + 1, nx) and the inputs (k, nu) applied, k ≤ horizon.

    Shorter if the environment ends it. The input is what the environment says it applied (``info["applied"]``), if it says so;
    one beyond the action space is then its own to deal with, and refused where it does not say.

    Args:
        env: with a continuous action space.
        policy: of the measured state, as `Learner.ask` gives it.
        horizon: most steps.
        state: (observation, info) → x; default ``info["state"]`` if the environment gives it, else the observation.
        seed: of the reset.

    Raises:
        ValueError: for states that are not finite, and an action that the environment would clip or refuse without a word.
    """

    def read(observation: Any, info: dict[str, Any]) -> Tensor:
        measured = state(observation, info) if state is not None else info.get("state", observation)
        return _require.finite("episode", "state", np.asarray(measured, dtype=np.float64).copy())

    observation, info = env.reset(seed=seed)
    states, inputs = [read(observation, info)], []
    for _ in range(_require.count("episode", "horizon", horizon)):
        action = policy(states[-1]).detach().cpu().numpy()
        given = action.astype(env.action_space.dtype)
        observation, _, terminated, truncated, info = env.step(given)
        if "applied" not in info and not _within(env.action_space, given):
            limits = env.action_space.low.tolist(), env.action_space.high.tolist()
            raise _require.fail("episode", f"actions within {limits} (or what was applied in info)", action.tolist())
        applied = np.asarray(info.get("applied", action), dtype=np.float64).copy()
        inputs.append(torch.from_numpy(applied))
        states.append(read(observation, info))
        if terminated or truncated:
            break
    return torch.stack(states), torch.stack(inputs)


def _within(space: Any, action: Any) -> bool:
    """Whether an action is in a space with limits, whatever its shape."""
    return not hasattr(space, "low") or bool(((action >= space.low) & (action <= space.high)).all())
