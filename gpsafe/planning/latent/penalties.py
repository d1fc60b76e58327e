"""How the constraint enters the search of a policy: a log-barrier with a certified step, or a multiplier.

Both minimise f₀(θ) subject to f₁(θ) ≤ 0 from values and gradients at θ, and both change θ themselves, since that is where the
published code and the theorem part: LBSGD's statement is about the step −γ g, not about what an optimiser makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpsafe import _require
from gpsafe.planning.latent._state import Arrays, State, adam, below, load_adam, prefixed
from gpsafe.planning.log_barrier import INFEASIBLE, barrier_step


class Penalty(Protocol):
    """Minimises f₀ subject to f₁ ≤ 0, step by step."""

    def step(self, parameters: Sequence[Tensor], objective: Tensor, constraint: Tensor) -> None:
        """Changes the parameters, of which both numbers are differentiable functions."""
        ...

    def state(self) -> Arrays:
        """What it has become."""
        ...

    def load(self, state: State, parameters: Sequence[Tensor]) -> None:
        """Goes on from a `state`, with the same parameters."""
        ...


def _flat(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """∇value, (d,); zero where it does not depend on a parameter."""
    if not value.requires_grad:
        return value.new_zeros(sum(p.numel() for p in parameters))
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
    )


def _pieces(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    sizes = [p.numel() for p in parameters]
    return [part.reshape(p.shape) for part, p in zip(flat.split(sizes), parameters, strict=True)]


class _Behind:
    """Adam, made when the parameters are first seen."""

    def __init__(self, rate: float) -> None:
        self.rate, self.optimiser = rate, None

    def __call__(self, parameters: Sequence[Tensor], gradient: Tensor) -> None:
        self.optimiser = self.optimiser or torch.optim.Adam(parameters, lr=self.rate)
        for p, g in zip(parameters, _pieces(gradient, parameters), strict=True):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(parameters, 100.0)
        self.optimiser.step()

    def state(self) -> Arrays:
        return {} if self.optimiser is None else adam(self.optimiser)

    def load(self, state: State, parameters: Sequence[Tensor]) -> None:
        if state:
            self.optimiser = torch.optim.Adam(parameters, lr=self.rate)
            load_adam(self.optimiser, state)


@dataclass(slots=True)
class Barrier:
    """LBSGD (`gpsafe.planning.log_barrier`): θ⁺ = θ − γ g, or, as published, Adam with γ g for a gradient.

    Args:
        rate: Adam's; None: the step is really taken ("corrected").
        eta, cooling: η falls by the factor 1 + cooling with every step.
        smoothness: M₀ and M₁, 1.2e4 in the published code whatever the task.
        recovery: step along −∇f₁ where the slack is used up.
    """

    rate: float | None = None
    eta: float = 0.1
    cooling: float = 8e-6
    smoothness: tuple[float, float] = (1.2e4, 1.2e4)
    recovery: float = 0.01
    lengths: list[float] = field(default_factory=list)
    """γ of every step so far; nan where infeasible."""
    _adam: _Behind | None = None

    def __post_init__(self) -> None:
        _require.positive("Barrier", "eta, recovery", [self.eta, self.recovery])
        if self.rate is not None:
            self._adam = _Behind(float(_require.positive("Barrier", "rate", self.rate)))

    def step(self, parameters: Sequence[Tensor], objective: Tensor, constraint: Tensor) -> None:
        """See `Penalty`."""
        up, out = _flat(objective, parameters), _flat(constraint, parameters)
        slack = -constraint.detach().reshape(1, 1)
        if float(slack) > INFEASIBLE:
            smoothness = up.new_tensor(self.smoothness)
            taken = barrier_step(up[None], slack, out[None, None], eta=self.eta, smoothness=smoothness)
            move = taken.step[0]
            self.lengths.append(float(taken.length))
        else:
            move = -self.recovery * out
            self.lengths.append(float("nan"))
        self.eta /= 1.0 + self.cooling
        if self._adam is not None:
            self._adam(parameters, -move)
            return
        with torch.no_grad():
            for p, change in zip(parameters, _pieces(move, parameters), strict=True):
                p.add_(change)

    def state(self) -> Arrays:
        """See `Penalty`."""
        behind = self._adam.state() if self._adam is not None else {}
        return {"eta": np.array(self.eta), "lengths": np.array(self.lengths), **prefixed("adam", behind)}

    def load(self, state: State, parameters: Sequence[Tensor]) -> None:
        """See `Penalty`."""
        self.eta, self.lengths = float(state["eta"]), state["lengths"].tolist()
        if self._adam is not None:
            self._adam.load(below("adam", state), parameters)


@dataclass(slots=True)
class Multiplier:
    """Augmented Lagrangian: Adam on f₀ + ([λ + ρ f₁]₊² − λ²)/(2ρ), then λ ← [λ + ρ f₁]₊ and ρ ← (1 + growth) ρ.

    LAMBDA and BSRP-Lag start at λ = 1e-6, ρ = 5e-9 and grow by 1e-5 a step, for half a million steps; with these numbers a
    short run has no constraint at all, so the defaults here are others.

    Args:
        rate: Adam's.
        multiplier, penalty: λ and ρ, as they stand now.
        growth: of ρ.
        cap: largest ρ.
    """

    rate: float = 1e-3
    multiplier: float = 0.01
    penalty: float = 0.05
    growth: float = 0.01
    cap: float = 10.0
    _adam: _Behind | None = None

    def __post_init__(self) -> None:
        _require.positive("Multiplier", "rate, penalty, cap", [self.rate, self.penalty, self.cap])
        _require.nonnegative("Multiplier", "multiplier, growth", [self.multiplier, self.growth])
        self._adam = _Behind(self.rate)

    def step(self, parameters: Sequence[Tensor], objective: Tensor, constraint: Tensor) -> None:
        """See `Penalty`."""
        weight = max(self.multiplier + self.penalty * float(constraint.detach()), 0.0)  # of ∇f₁ in the gradient
        assert self._adam is not None
        self._adam(parameters, _flat(objective + weight * constraint, parameters))
        self.multiplier = weight
        self.penalty = min((1.0 + self.growth) * self.penalty, self.cap)

    def state(self) -> Arrays:
        """See `Penalty`."""
        assert self._adam is not None
        numbers = {"multiplier": np.array(self.multiplier), "penalty": np.array(self.penalty)}
        return {**numbers, **prefixed("adam", self._adam.state())}

    def load(self, state: State, parameters: Sequence[Tensor]) -> None:
        """See `Penalty`."""
        assert self._adam is not None
        self.multiplier, self.penalty = float(state["multiplier"]), float(state["penalty"])
        self._adam.load(below("adam", state), parameters)
