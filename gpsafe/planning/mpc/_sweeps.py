"""Constraint rows of a plan and their Jacobian, compiled where the model allows it, through torch otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpsafe.certify.problem import CertificationProblem
from gpsafe.models.ensemble import Ensemble
from gpsafe.models.gp import identity_prior, zero_prior
from gpsafe.planning.mpc._read import tape_of
from gpsafe.sets.polytope import Polytope
from gpsafe.systems._tape import EMPTY, NotReadableError, Tape
from gpsafe.tube import core
from gpsafe.tube.ensemble import EnsembleTube

Array = NDArray[np.float64]
STEP = 1e-6  # of central differences, of the unit of an input: error about 1e-9 in a Jacobian of order 1


@dataclass(frozen=True, slots=True)
class Scale:
    """Rows are given as hardness·(c + offset + further): `further` of each row of X, U and the terminal set, 0 on disagreement;
    hardness 1 for the terminal set and disagreement."""

    offset: float = 0.0
    hardness: float = 1.0
    further: tuple[tuple[float, ...], ...] = ((0.0,), (0.0,), (0.0,))


@dataclass(frozen=True, slots=True)
class Sweep:
    """ū (T, nu) ↦ rows (R,), ≤ 0 where satisfied, and their Jacobian (R, T·nu); NaN or inf where the plan diverges.

    Attributes:
        kind: how: "compiled", "given" or "differences", see `sweep_of`.
        count: R.
        linearise: the map.
        values: plans (B, T, nu) ↦ rows (B, R), for less than it takes to linearise them.
        drive: arguments of `_descent`'s loop but the first ↦ the sweeps it took, all in compiled code; None where they are not.
        path: ū ↦ x̄ of all members (M, T+1, nx); None likewise.
    """

    kind: str
    count: int
    linearise: Callable[[Array], tuple[Array, Array]]
    values: Callable[[Array], Array]
    drive: Callable[..., int] | None = None
    path: Callable[[Array], Array] | None = None

    def __call__(self, inputs: Array) -> tuple[Array, Array]:
        return self.linearise(inputs)


def sweep_of(problem: CertificationProblem, x0: Array, scale: Scale = Scale(), unit: Array | float = 1.0) -> Sweep:
    """The fastest sweep there is for the problem's model; differences are taken over a share of `unit` of each input, (nu,).

    - compiled: paper-mode ensembles of tanh networks whose known part has a tape (`gpsafe.systems._tape`);
    - given: the same with any other known part that torch differentiates, which alone is left to torch;
    - differences: the rest: known parts that leave torch, Gaussian processes, whose tubes have no graph, and sound ensembles
      (forward differentiation of a whole tube took four to nine times as long on paper-mode ones).
    """
    model = problem.model
    if isinstance(model, EnsembleTube) and model.mode == "paper":
        try:
            return compiled(problem, model, x0, scale)
        except NotReadableError:
            found = given(problem, model, x0, scale)
            if _right(problem, found, general(problem, x0, scale, unit)):
                return found
        except ImportError:
            pass
    return general(problem, x0, scale, unit)


def in_units(sweep: Sweep, rows: Array, inputs: Array) -> Sweep:
    """The same with rows and inputs measured in other units, (R,) and (T, nu)."""

    def linearise(plan: Array) -> tuple[Array, Array]:
        found, jacobian = sweep(plan * inputs)
        return found / rows, jacobian * inputs.ravel() / rows[:, None]

    path = None if sweep.path is None else lambda plan, path=sweep.path: path(plan * inputs)
    return Sweep(sweep.kind, sweep.count, linearise, lambda plans: sweep.values(plans * inputs) / rows, None, path)


_RIGHT: WeakKeyDictionary[CertificationProblem, bool] = WeakKeyDictionary()


def _right(problem: CertificationProblem, sweep: Sweep, slow: Sweep) -> bool:
    """Whether rows and Jacobian are those that differences of the problem's own tubes show, at one plan; tried until told.

    Where a part leaves torch, or states a `jacobian` of its own, derivatives may be wrong without a word.
    """
    if problem not in _RIGHT:
        plan = 0.3 * np.cos(np.arange(1.0, 1.0 + problem.steps * problem.nu)).reshape(problem.steps, problem.nu)
        expected, slopes = slow(plan)
        if not (np.isfinite(expected).all() and np.isfinite(slopes).all()):
            return False
        try:
            rows, jacobian = sweep(plan)
        except Exception:  # whatever a user's function may raise where it is differentiated
            _RIGHT[problem] = False
        else:
            close = np.allclose(rows, expected, rtol=1e-8, atol=1e-8)
            _RIGHT[problem] = close and bool(np.abs(jacobian - slopes).max() <= 1e-5 * (1 + np.abs(slopes).max()))
    return _RIGHT[problem]


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
    return _compiled(problem, _arrays(problem, model, scale, False), x0)


def given(problem: CertificationProblem, model: EnsembleTube, x0: Array, scale: Scale = Scale()) -> Sweep:
    """By `gpsafe.planning.mpc._kernel`, the known part by torch: its values along the nominal paths, then all derivatives
    at once."""
    from gpsafe.planning.mpc import _kernel, _known

    ensemble, arrays = model.ensemble, _arrays(problem, model, scale, True)
    networks: Any = _kernel.networks
    theta, sizes = arrays[0][1], arrays[0][2][0]
    parts = _known.Part(
        ensemble.prior, lambda x, u, out: networks(theta, sizes, x, u, out), problem.num_members, problem.nx
    )
    return _compiled(problem, arrays, x0, parts)


def _compiled(problem: CertificationProblem, arrays: _Arrays, x0: Array, part: Any = None) -> Sweep:
    from gpsafe.planning.mpc import _drive, _kernel

    size = problem.steps * problem.nu
    kernel, driven, valued = cast(Any, _kernel.sweep), cast(Any, _drive.drive), cast(Any, _drive.values)
    workroom, followed = cast(Any, _kernel.workroom), cast(Any, _drive.path)
    before, after, count = arrays

    def jets(inputs: Array) -> Any:
        return _NOTHING if part is None else part.jets(x0, inputs)

    def sweep(inputs: Array) -> tuple[Array, Array]:
        rows, jacobian = np.empty(count), np.zeros((count, size))
        kernel(before, x0, jets(inputs), inputs, after, workroom(before), rows, jacobian)
        return rows, jacobian

    def values(plans: Array) -> Array:
        rows = np.empty((len(plans), count))
        if part is None:
            valued(before, x0, _NOTHING, after, plans, rows)
        else:
            for plan, out in zip(plans, rows, strict=True):
                valued(before, x0, jets(plan), after, plan[None], out[None])
        return rows

    def drive(*arguments: Any) -> int:
        return driven(before, x0, _NOTHING, after, *arguments)

    def path(inputs: Array) -> Array:
        out = np.empty((problem.num_members, problem.steps + 1, problem.nx))
        followed(before, x0, inputs, out)
        return out

    if part is not None:
        return Sweep("given", count, sweep, values)
    return Sweep("compiled", count, sweep, values, drive, path)


_NOTHING = np.zeros((0, 0, 0)), np.zeros((0, 0, 0, 0)), np.zeros((0, 0, 0, 0, 0))
_Arrays = tuple[tuple[Any, ...], tuple[Any, ...], int]


@lru_cache(maxsize=8)
def _arrays(problem: CertificationProblem, model: EnsembleTube, scale: Scale, given: bool) -> _Arrays:
    """The kernel's arguments before x0 and after the inputs, and the number of rows. Problems compare by identity.

    A new ensemble or set is a new problem: 0.1 ms here, and no program to build.
    """
    ensemble, steps = model.ensemble, problem.steps
    theta, sizes = parameters(ensemble)
    kind, tape = _known_part(ensemble, given)
    sets: list[Array] = []
    weighted = (problem.states, scale.hardness), (problem.inputs, scale.hardness), (problem.terminal, 1)
    for (polytope, weight), further in zip(weighted, scale.further, strict=True):
        H, h = _half_spaces(polytope)
        sets += [weight * H, weight * (h - scale.offset - np.array(further))]
    levels = np.zeros((0, problem.nx)) if problem.certainty is None else _array(problem.certainty) - scale.offset
    count = problem.num_members * (steps * (len(sets[1]) + len(sets[3])) + len(sets[5]) + 2 * levels.size)
    limits, hard = _array(ensemble.log_var_limits), ensemble.clamp == "hard"
    before = len(theta), _lanes(theta), (sizes, kind, tape.arrays, limits, hard, np.full(problem.nx, model.radius**2))
    gain = _array(core.gains(problem.gain, steps, problem.nx, problem.nu))
    return before, (gain, core.START**2, *sets, levels), count


def _lanes(theta: Array) -> Array:
    """Parameters (M, P) as (groups, P, LANES); lanes left over repeat the last member."""
    from gpsafe.planning.mpc._lanes import LANES

    groups = -(-len(theta) // LANES)
    member = np.minimum(np.arange(groups * LANES), len(theta) - 1)
    return np.ascontiguousarray(theta[member].reshape(groups, LANES, -1).transpose(0, 2, 1))


def _known_part(ensemble: Ensemble, given: bool) -> tuple[int, Tape]:
    """How the kernel gets it."""
    from gpsafe.planning.mpc import _kernel

    if given:
        return _kernel.GIVEN, EMPTY
    if ensemble.prior is zero_prior or ensemble.prior is identity_prior:
        return (_kernel.ZERO if ensemble.prior is zero_prior else _kernel.IDENTITY), EMPTY
    tape = tape_of(ensemble.prior, ensemble.nx, ensemble.nu)
    if tape is None:
        raise NotReadableError("the known part has no tape")
    return _kernel.TAPE, tape


def general(problem: CertificationProblem, x0: Array, scale: Scale = Scale(), unit: Array | float = 1.0) -> Sweep:
    """By the problem's own tubes, for any model: all 2·T·nu + 1 plans of central differences in one batch."""
    start, size = torch.from_numpy(x0), problem.steps * problem.nu
    step = np.resize(unit, size)
    eye = torch.eye(size, dtype=torch.float64)
    moves = STEP * torch.cat([torch.zeros_like(eye[:1]), eye, -eye])
    moves *= torch.from_numpy(step)
    moves = moves.reshape(-1, problem.steps, problem.nu)
    hard = problem.steps * (problem.states.rows + problem.inputs.rows)
    soft = problem.terminal.rows + (0 if problem.certainty is None else 2 * problem.certainty.numel())
    counts = np.tile(np.repeat([scale.hardness, 1.0], [hard, soft]), problem.num_members)
    offsets = np.zeros((problem.num_members, hard + soft)) + scale.offset
    ends = np.cumsum([problem.steps * problem.states.rows, problem.steps * problem.inputs.rows, problem.terminal.rows])
    for part, further in zip(np.split(offsets, ends, axis=1), scale.further, strict=False):
        part += np.resize(further, part.shape[1])

    @torch.no_grad()
    def values(plans: Array | Tensor) -> Array:
        margins = problem.margins(problem.tube(start, torch.as_tensor(plans)))
        return (offsets.ravel() - margins.rows.flatten(1).numpy()) * counts

    def sweep(inputs: Array) -> tuple[Array, Array]:
        found = values(torch.from_numpy(inputs) + moves)
        return found[0], (found[1 : size + 1] - found[size + 1 :]).T / (2 * STEP * step)

    return Sweep("differences", len(counts), sweep, values)
