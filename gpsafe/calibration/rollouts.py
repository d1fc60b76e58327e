"""Predictions many steps ahead, from one-step models: open loop along recorded inputs, or closed loop under a policy.

Every particle follows x_{t+1} = μ(x_t, u_t) + σ(x_t, u_t) ξ + σ_w(x_t, u_t) w_t with fresh w_t ~ N(0, I). What the error of the
model does from step to step no one-step model says, and there are two ends:

- "persistent": one ξ ~ N(0, I) a particle, the same at all steps: the model errs the same way everywhere;
- "independent": a fresh ξ at every step: errors average out, and the bars grow too slowly if they do not in truth.

An `Ensemble` and a `GP` do know, and "joint" asks them: each particle follows one member, or one posterior function
(`gpsafe.models.sample_functions`, approximate by random features).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.models import GP, DynamicsModel, Ensemble, sample_functions

Control = Tensor | Callable[[Tensor], Tensor]
Epistemic = Literal["persistent", "independent", "joint"]


def particles(
    model: DynamicsModel,
    start: Tensor,
    control: Control,
    *,
    steps: int | None = None,
    num: int = 64,
    epistemic: Epistemic = "persistent",
    generator: torch.Generator,
) -> Tensor:
    """Predicted states (num, B, T, nx) at steps 1 … T.

    Args:
        model: of one step.
        start: (B, nx).
        control: inputs (B, T, nu), open loop; or a policy x (*b, nx) → (*b, nu), closed loop: each particle is asked.
        steps: T; needed with a policy.
        num: particles a trajectory.
        epistemic: see the module.
        generator: of all draws.
    """
    where = "particles"
    start = _require.points(where, "start", start, model.nx)
    _require.count(where, "num", num)
    _require.one_of(where, "epistemic", epistemic, ("persistent", "independent", "joint"))
    if not callable(control):
        control = _require.points(where, "control", control, model.nu)
        if control.ndim != 3 or len(control) != len(start) or (steps is not None and steps > control.shape[1]):
            raise _require.fail(where, f"inputs ({len(start)}, T >= {steps or 1}, {model.nu})", tuple(control.shape))
        steps = control.shape[1] if steps is None else steps
    steps = _require.count(where, "steps", steps if steps is not None else 0)
    one = _stepper(model, num, len(start), epistemic, generator)
    x, found = start.expand(num, *start.shape), []
    with torch.no_grad():
        for t in range(steps):
            u = control(x) if callable(control) else control[:, t].expand(num, -1, -1)
            x = one(x, u)
            found.append(x)
    return torch.stack(found, dim=2)


def moments(model: DynamicsModel, start: Tensor, control: Control, **options: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, T, nx) of `particles`, to be held against what happened."""
    found = particles(model, start, control, **options)
    if len(found) < 2:
        raise _require.fail("moments", "num >= 2 particles", len(found))
    return found.mean(0), found.std(0)


def windows(states: Tensor, inputs: Tensor, steps: int, *, stride: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Starts (B, nx), inputs (B, T, nu) and what followed (B, T, nx), of states (N + 1, nx) and inputs (N, nu) in order.

    They do not overlap unless `stride` is smaller than `steps`.
    """
    _require.count("windows", "steps", steps)
    if len(states) != len(inputs) + 1 or len(inputs) < steps:
        raise _require.fail("windows", f"N + 1 states and N >= {steps} inputs", (len(states), len(inputs)))
    first = range(0, len(inputs) - steps + 1, steps if stride is None else _require.count("windows", "stride", stride))
    return (
        states[list(first)],
        torch.stack([inputs[i : i + steps] for i in first]),
        torch.stack([states[i + 1 : i + steps + 1] for i in first]),
    )


def _stepper(
    model: DynamicsModel, num: int, batch: int, epistemic: str, generator: torch.Generator
) -> Callable[[Tensor, Tensor], Tensor]:
    shape = (num, batch, model.nx)

    def fresh() -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    if epistemic == "joint":
        if isinstance(model, Ensemble):
            return _members(model, num, fresh)
        if isinstance(model, GP):
            functions = sample_functions(model, num, generator=generator, num_features=512)

            def sampled(x: Tensor, u: Tensor) -> Tensor:
                mean = model.prior(x, u).clone()
                mean[..., list(model.outputs)] += functions(torch.cat([x, u], dim=-1))
                return mean + model.noise_std * fresh()

            return sampled
        raise _require.fail("particles", "an Ensemble or a GP for joint draws", type(model).__name__)
    kept = fresh()

    def step(x: Tensor, u: Tensor) -> Tensor:
        found = model.predict(x, u)
        error = kept if epistemic == "persistent" else fresh()
        return found.mean + found.std * error + found.noise_std * fresh()

    return step


def _members(model: Ensemble, num: int, fresh: Callable[[], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    who = torch.arange(num) % model.members

    def step(x: Tensor, u: Tensor) -> Tensor:
        mean, std = model.evaluate(x, u)  # (M, num, B, nx)
        return mean[who, torch.arange(num)] + std[who, torch.arange(num)] * fresh()

    return step
