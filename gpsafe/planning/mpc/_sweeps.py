"""Constraint rows of a plan and their Jacobian, compiled where the model allows it, through torch otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpsafe.certify.problem import CertificationProblem
from gpsafe.models.ensemble import Ensemble
from gpsafe.models.gp import identity_prior, zero_prior
from gpsafe.planning.mpc._known import tape_of
from gpsafe.planning.mpc._tape import EMPTY, NotReadableError, Tape
from gpsafe.sets.polytope import Polytope
from gpsafe.tube import core
from gpsafe.tube.ensemble import EnsembleTube

Array = NDArray[np.float64]
Sweep = Callable[[Array], tuple[Array, Array]]
"""ū (T, nu) ↦ rows (R,), ≤ 0 where satisfied, and their Jacobian (R, T·nu); NaN or inf where the plan diverges."""
STEP = 1e-6  # of central differences, for inputs of order 1: error about 1e-9 in a Jacobian of order 1


@dataclass(frozen=True, slots=True)
class Scale:
    """Rows are given as hardness·(c + offset), hardness 1 for terminal rows."""

    offset: float = 0.0
    hardness: float = 1.0


def sweep_of(problem: CertificationProblem, x0: Array, scale: Scale = Scale()) -> Sweep:
    """The fastest sweep there is for the problem's model.

    Compiled: paper-mode ensembles of tanh networks whose known part has a tape (`gpsafe.planning.mpc._tape`); sound-mode
    ones never: their remainder is an interval bound without a useful derivative.
    """
    model = problem.model
    if isinstance(model, EnsembleTube) and model.mode == "paper":
        try:
            return compiled(problem, model, x0, scale)
        except (ImportError, NotReadableError):
            pass
    return general(problem, x0, scale)


def parameters(ensemble: Ensemble) -> tuple[Array, NDArray[np.int64]]:
    """θ (M, P) and layer sizes, the normalisations folded into the first and last layers.

    In NumPy: a torch operation on twenty numbers costs five times as much.
    """
    weights = [_array(w) for w in ensemble.network.weights]
    biases = [_array(b) for b in ensemble.network.biases]
    spread = _array(ensemble.targets.scale)
    weights[0] = weights[0] / _array(ensemble.inputs.scale)[:, None]
    biases[0] = biases[0] - _array(ensemble.inputs.offset) @ weights[0]
    factor = np.concatenate([spread, np.ones_like(spread)])
    shift = np.concatenate([_array(ensemble.targets.offset), 2 * np.log(spread)])
    weights[-1], biases[-1] = weights[-1] * factor, biases[-1] * factor + shift
    members = ensemble.members
    flat = [part.reshape(members, -1) for pair in zip(weights, biases, strict=True) for part in pair]
    return np.concatenate(flat, axis=1), np.array(ensemble.network.sizes)


def _array(value: Tensor) -> Array:
    return np.ascontiguousarray(value.detach().cpu().numpy())


def _half_spaces(polytope: Polytope) -> tuple[Array, Array]:
    return _array(polytope.H), _array(polytope.h)


@lru_cache(maxsize=8)
def input_box(inputs: Polytope) -> tuple[Array, Array]:
    """Lower and upper bounds (nu,) of the inputs, without linear programs if every bound is a row of its own; ±inf if none."""
    H, h = _half_spaces(inputs)
    alone = (H != 0).sum(1) == 1
    ratio = h[alone, None] / np.where(H[alone] != 0, H[alone], 1.0)
    upper = np.where(H[alone] > 0, ratio, np.inf).min(0, initial=np.inf)
    lower = np.where(H[alone] < 0, ratio, -np.inf).max(0, initial=-np.inf)
    if not (np.isfinite(upper).all() and np.isfinite(lower).all()):
        try:
            box = inputs.bounding_box()
        except ValueError:  # unbounded: the rows alone decide
            return np.full(inputs.dim, -np.inf), np.full(inputs.dim, np.inf)
        lower, upper = _array(box.lower), _array(box.upper)
    return np.minimum(lower, upper), upper


def compiled(problem: CertificationProblem, model: EnsembleTube, x0: Array, scale: Scale = Scale()) -> Sweep:
    """By `gpsafe.planning.mpc._kernel`.

    Raises:
        ImportError: without numba.
        NotReadableError: for a known part without a tape.
    """
    from gpsafe.planning.mpc import _kernel

    size = problem.steps * problem.nu
    kernel: Any = _kernel.sweep
    before, after, count = _arrays(problem, model, scale)

    def sweep(inputs: Array) -> tuple[Array, Array]:
        rows, jacobian = np.empty(count), np.zeros((count, size))
        kernel(*before, x0, inputs, *after, rows, jacobian)
        return rows, jacobian

    return sweep


@lru_cache(maxsize=8)
def _arrays(
    problem: CertificationProblem, model: EnsembleTube, scale: Scale
) -> tuple[tuple[Any, ...], tuple[Any, ...], int]:
    """The kernel's arguments before x0 and after the inputs, and the number of rows. Problems compare by identity.

    A new ensemble or set is a new problem: 0.1 ms here, and no program to build.
    """
    ensemble, steps = model.ensemble, problem.steps
    theta, sizes = parameters(ensemble)
    kind, tape = _known(ensemble)
    sets: list[Array] = []
    for polytope, weight in ((problem.states, scale.hardness), (problem.inputs, scale.hardness), (problem.terminal, 1)):
        H, h = _half_spaces(polytope)
        sets += [weight * H, weight * (h - scale.offset)]
    count = problem.num_members * (steps * (len(sets[1]) + len(sets[3])) + len(sets[5]))
    before = (
        theta,
        sizes,
        kind,
        tape.arrays,
        _array(ensemble.log_var_limits),
        ensemble.clamp == "hard",
        np.full(problem.nx, model.radius**2),
    )
    gain = _array(core.gains(problem.gain, steps, problem.nx, problem.nu))
    return before, (gain, core.START**2, *sets), count


def _known(ensemble: Ensemble) -> tuple[int, Tape]:
    """How the kernel gets the known part."""
    from gpsafe.planning.mpc import _kernel

    if ensemble.prior is zero_prior or ensemble.prior is identity_prior:
        return (_kernel.ZERO if ensemble.prior is zero_prior else _kernel.IDENTITY), EMPTY
    tape = tape_of(ensemble.prior, ensemble.nx, ensemble.nu)
    if tape is None:
        raise NotReadableError("the known part has no tape")
    return _kernel.TAPE, tape


def general(problem: CertificationProblem, x0: Array, scale: Scale = Scale()) -> Sweep:
    """By the problem's own tubes, for any model: all 2·T·nu + 1 plans of central differences in one batch."""
    start, size = torch.from_numpy(x0), problem.steps * problem.nu
    moves = torch.cat([torch.zeros(1, size), STEP * torch.eye(size), -STEP * torch.eye(size)]).to(torch.float64)
    moves = moves.reshape(-1, problem.steps, problem.nu)
    block = np.full(problem.steps * (problem.states.rows + problem.inputs.rows) + problem.terminal.rows, scale.hardness)
    block[len(block) - problem.terminal.rows :] = 1.0
    counts = np.tile(block, problem.num_members)

    @torch.no_grad()
    def sweep(inputs: Array) -> tuple[Array, Array]:
        margins = problem.margins(problem.tube(start, torch.from_numpy(inputs) + moves))
        parts = (margins.state.flatten(-2), margins.input.flatten(-2), margins.terminal)
        values = (scale.offset - torch.cat(parts, dim=-1).flatten(1).numpy()) * counts
        return values[0], (values[1 : size + 1] - values[size + 1 :]).T / (2 * STEP)

    return sweep
