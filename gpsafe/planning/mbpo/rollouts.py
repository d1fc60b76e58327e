"""Virtual transitions: short branches from real states through a learned model (xmpsc.md §4). Nothing here is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpsafe import _require
from gpsafe.models._prior import known_part
from gpsafe.models._training import soft_clamp
from gpsafe.models.base import DynamicsModel
from gpsafe.models.ensemble import Ensemble
from gpsafe.planning.mbpo._nets import FLOAT, Array
from gpsafe.planning.mbpo.replay import Ring, transitions, width
from gpsafe.systems.base import System

Step = Callable[[NDArray[np.float64], NDArray[np.float64], np.random.Generator], NDArray[np.float64]]
"""Draws x⁺ (n, nx) for x (n, nx), u (n, nu)."""
CHUNK = 8192  # rows at once: the hidden values of the policy stay in the cache


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of a branch: linear from `shortest` in epoch `first` to `longest` in epoch `last`, constant outside, truncated."""

    first: int
    last: int
    shortest: int
    longest: int

    def __post_init__(self) -> None:
        _require.count("Schedule", "shortest", self.shortest)
        _require.count("Schedule", "longest", self.longest, minimum=self.shortest)
        if not self.first < self.last:
            raise _require.fail("Schedule", "first < last", (self.first, self.last))

    def __call__(self, epoch: int) -> int:
        """Steps of a branch in an epoch."""
        done = min(max(epoch - self.first, 0), self.last - self.first)
        return self.shortest + (self.longest - self.shortest) * done // (self.last - self.first)


def sampler(model: Ensemble | DynamicsModel) -> Step:
    """How x⁺ is drawn from a model.

    An ensemble: every row through one member, drawn anew at every step; rows are sorted by member, so that each is evaluated
    once; N(μ_m, diag σ_m²) of that member, the known part added. Any other model: N(mean, std² + noise_std²) of its
    `predict`, independent at every step.
    """
    if isinstance(model, Ensemble):
        return _ensemble_step(model)

    def step(x: NDArray[np.float64], u: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
        with torch.no_grad():
            told = model.predict(torch.from_numpy(x), torch.from_numpy(u))
            scale = (told.std.square() + told.noise_std.square()).sqrt()
        return told.mean.numpy() + scale.numpy() * generator.standard_normal(x.shape)

    return step


def _ensemble_step(model: Ensemble) -> Step:
    nx, single = model.nx, torch.float32
    weights = [w.detach().to(single) for w in model.network.weights]
    biases = [b.detach().to(single) for b in model.network.biases]
    low, high = model.log_var_limits.to(single)
    shift, scale = 2 * model.targets.scale.log().to(single), model.targets.scale
    offset = model.targets.offset

    def one(m: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """Residual in normalised units and σ of x⁺, (n, nx) each."""
        for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
            z = torch.addmm(b[m], torch.tanh(z) if i > 0 else z, w[m])
        raw = z[:, nx:] + shift
        hard = model.clamp == "hard"
        log_var = torch.minimum(torch.maximum(raw, low), high) if hard else soft_clamp(raw, low, high)
        return z[:, :nx], torch.exp(0.5 * log_var)

    def step(x: NDArray[np.float64], u: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
        members = generator.integers(
            model.members, size=len(x), dtype=np.uint16
        )  # short numbers are sorted in linear time
        order = torch.from_numpy(np.argsort(members, kind="stable"))
        with torch.no_grad():
            states, inputs = torch.from_numpy(x), torch.from_numpy(u)
            z = model.inputs(torch.cat([states, inputs], -1)).to(single)[order]
            counts = np.bincount(members, minlength=model.members).tolist()
            parts = [one(m, rows) for m, rows in enumerate(z.split(counts))]
            mean, std = torch.empty(2, len(x), nx, dtype=torch.float64)
            mean[order] = torch.cat([mu for mu, _ in parts]).double()
            std[order] = torch.cat([sigma for _, sigma in parts]).double()
            mean = known_part("rollouts.sampler", model.prior, states, inputs) + offset + scale * mean
        return mean.numpy() + std.numpy() * generator.standard_normal(x.shape)

    return step


def starts(real: Ring, count: int, generator: np.random.Generator) -> Array:
    """Real states for branches to begin in, drawn with replacement, (count, nx)."""
    if not len(real):
        raise _require.fail("rollouts.starts", "at least one real transition", 0)
    return real.x[generator.integers(len(real), size=count)]


def branch(
    step: Step,
    system: System,
    policy: Callable[[Array], Array],
    starts: Array,
    length: int,
    generator: np.random.Generator,
) -> Array:
    """Rows [x | u | r(x⁺, u) | x⁺ | c(x⁺) > 0] of branches under `policy`, for `Ring.extend`.

    A branch ends after `length` steps, with a terminal row, or silently where the model leaves the finite numbers of float32.

    Args:
        step: draws x⁺ (see `sampler`).
        system: gives reward and cost, which are known; its dynamics are not asked.
        policy: x (n, nx) ↦ u (n, nu).
        starts: (n, nx).
        length: see above.
        generator: of the model's draws.
    """
    _require.count("branch", "length", length)
    if starts.ndim != 2 or starts.shape[1] != system.nx:
        raise _require.fail("branch", f"starts of shape (n, {system.nx})", f"shape {starts.shape}")
    found: list[Array] = []
    for chunk in np.array_split(np.asarray(starts, FLOAT), max(-(-len(starts) // CHUNK), 1)):
        x = chunk
        for _ in range(length):
            if not len(x):
                break
            with np.errstate(over="ignore", invalid="ignore"):  # such rows are dropped
                u = policy(x)
                rows = transitions(system, x, u, step(x.astype(np.float64), u.astype(np.float64), generator))
            rows = rows[np.isfinite(rows).all(-1)]
            found.append(rows)
            x = rows[rows[:, -1] == 0, system.nx + system.nu + 1 : -1]
    return np.concatenate(found) if found else np.empty((0, width(system.nx, system.nu)), FLOAT)
