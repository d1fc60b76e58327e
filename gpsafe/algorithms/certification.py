"""What X-MPSC certifies a learner's inputs with: tubes of its model, limits, and the set in which plans end.

Two kinds of terminal set. A *hull* of the states certified so far is the published one: it only grows, and nothing shows that
one can stay in it. In few of many coordinates it can be useless: a cart-pole's hull in (position, angle) takes no notice of
speeds, and what has one can be met at a speed at which it is left at once. An *invariant* set of the plant linearised about
rest, under its LQR law and the model's spread, is in all coordinates, and there the law can go on for ever, up to what the
linearisation leaves out; in sound mode `gpsafe.certify.terminal_set.certify_invariance` decides whether that is so.

In many coordinates such a set has too many rows to be computed, and need not have them: a drone's limits are on roll and
pitch, whose motion depends on them and their rates alone, so that an invariant set in these four, with place, speed and yaw
free, is one in all twelve. Which coordinates these are is said in `Certification.dims`, and believed in paper mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gpsafe import _require
from gpsafe._show import short
from gpsafe.certify.certainty import certainty_levels
from gpsafe.certify.invariant_set import invariant_polytope
from gpsafe.certify.problem import CertificationProblem, Proposer
from gpsafe.certify.terminal_set import AffineLaw, Invariance, TerminalSet, certify_invariance
from gpsafe.confidence.set import ConfidenceSet
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models.ensemble import Ensemble
from gpsafe.safety.filter import SafetyFilter
from gpsafe.sets import Box, Ellipsoid, Polytope
from gpsafe.systems.arm import TwoLinkArm
from gpsafe.systems.base import HalfspaceCost, System, is_violation
from gpsafe.systems.drone import Drone
from gpsafe.systems.episodic import Episodic
from gpsafe.tube import EnsembleTube, GPTube, constant_gain, lqr_gain
from gpsafe.tube.core import Mode, TubeModel

Model = Ensemble | ConfidenceSet
Certifiable = Model | TubeModel
"""What learns here, or a tube model made elsewhere, whose mode must be the one asked for."""
SLACKS = (1.0, 3.0, 8.0, 15.0)  # of the disturbance at rest, tried in this order for an invariant set
BUDGET = 1024  # cells of an invariance certificate


class NoInvariantSetError(ValueError):
    """The linearised plant has no invariant set within the limits, for the disturbance that the model states."""


@short
@dataclass(frozen=True, slots=True, eq=False)
class Certification:
    """Arguments of the certification problem, the same for every model that is learned.

    Args:
        states: N, states of a plan, which has N − 1 inputs.
        mode: "paper": tubes of one standard deviation, least-violating plans after N − 1 steps without one; or "sound".
        feedback: c of K = −c·1, as published; None: the LQR gain about rest.
        terminal: see the module.
        dims: coordinates of the terminal set, all by default; of an invariant one, those whose linearised motion depends on no
            others: its law feeds back these alone, and what the model says of the others' influence on them is left out.
        delay: published ℓ ≥ 1: the hull in use was made ℓ − 1 updates ago.
        delta: failure probability of a sound plan, jointly over its steps.
        input_weight: R of the LQR design, times the identity.
        state_weight: diagonal of its Q, (nx,); ones by default.
        around: half-widths about rest in which an invariant set is sought, (nx,); those of the state box by default.
        error: half-widths of the measurement noise, by which the limits are drawn in, (nx,); none by default, as
            published. The limits are on the true state, and a plan starts at the measured one.
        rest: (x, u) at rest; the task's initial state and the middle of the inputs by default.
        cells: of a sound ensemble tube, see `EnsembleTube`.
        tolerance: excess of a row that counts as none; 0 in sound mode.
        proposer: of plans; the compiled search by default.
        apart: every so manieth transition is kept from training for the conformal radius (sound mode of ensembles).
        certainty: share of the stretches flown so far on which members disagree less than a plan may
            (`gpsafe.certify.certainty`); no limit by default.
    """

    states: int = 5
    mode: Mode = "paper"
    feedback: float | None = 0.5
    terminal: Literal["hull", "invariant"] = "hull"
    dims: tuple[int, ...] | None = None
    delay: int = 1
    delta: float = 0.1
    input_weight: float = 1.0
    state_weight: Tensor | None = None
    around: Tensor | None = None
    error: Tensor | None = None
    rest: tuple[Tensor, Tensor] | None = None
    cells: int = 16
    tolerance: float = 1e-6
    proposer: Proposer | None = None
    apart: int = 4
    certainty: float | None = None

    def __post_init__(self) -> None:
        where = "Certification"
        _require.index(where, "states", self.states, minimum=2)
        _require.one_of(where, "mode", self.mode, ("paper", "sound"))
        _require.one_of(where, "terminal", self.terminal, ("hull", "invariant"))
        _require.index(where, "delay", self.delay, minimum=1)
        _require.index(where, "apart", self.apart, minimum=2)
        _require.probability(where, "delta", self.delta)
        _require.positive(where, "input_weight", self.input_weight)
        if self.certainty is not None:
            _require.probability(where, "certainty", self.certainty)
        if self.dims is not None:
            dims = tuple(_require.index(where, "coordinate", j) for j in _require.listing(where, "dims", self.dims))
            if not dims or len(set(dims)) != len(dims):
                raise _require.fail(where, "distinct coordinates in dims", dims)
            object.__setattr__(self, "dims", dims)
        if self.rest is not None:
            if not isinstance(self.rest, tuple | list) or len(self.rest) != 2:
                raise _require.fail(where, "a pair (x, u) as rest", type(self.rest).__name__)
            x, u = (_require.real(where, f"{name} of rest", part) for name, part in zip("xu", self.rest, strict=True))
            object.__setattr__(self, "rest", (x, u))
        for name in ("around", "error", "state_weight"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _require.nonnegative(where, name, getattr(self, name)))

    @property
    def steps(self) -> int:
        """T = N − 1."""
        return self.states - 1

    def first(self, system: System, starts: Tensor) -> TerminalSet:
        """The hull of the first states of episodes (n, nx)."""
        return TerminalSet.start(starts, dims=self.hulled(system), delay=self.delay - 1)

    def hulled(self, system: System) -> tuple[int, ...]:
        """Coordinates of hulls: those asked for, or the limited ones where a hull only stands in for an invariant set."""
        if self.terminal == "invariant":
            return tuple(getattr(system, "limited", range(system.nx)))
        return tuple(range(system.nx)) if self.dims is None else self.dims

    def tube(self, model: Certifiable, apart: Transitions | None) -> TubeModel:
        """Of a model; the conformal radius of a sound ensemble tube is taken on rows kept apart.

        Raises:
            ValueError: for a tube model of another mode.
        """
        if isinstance(model, ConfidenceSet):
            return GPTube(model, self.steps, self.delta, self.mode)
        if not isinstance(model, Ensemble):
            return _of_mode(model, self.mode)
        if self.mode == "paper":
            return EnsembleTube.paper(model)
        if apart is None:
            raise _require.fail("Certification", "rows kept apart for a sound tube of an ensemble", None)
        return replace(EnsembleTube.calibrated(model, apart, steps=self.steps, delta=self.delta), cells=self.cells)

    def filter(
        self,
        system: System,
        model: Certifiable,
        apart: Transitions | None = None,
        terminal: Polytope | None = None,
        episodes: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> SafetyFilter:
        """What decides on the inputs of an episode.

        Args:
            system: the plant's limits, rest and backup.
            model: as learned.
            apart: rows that it was not trained on; needed for a sound tube of an ensemble.
            terminal: X_f; by default an invariant set of this model.
            episodes: measured states and inputs flown so far; needed with `certainty`.

        Raises:
            ValueError: if no stabilising gain is found where one is asked for, or the plant is noisier than a sound tube.
            NoInvariantSetError: if one is sought and there is none.
        """
        tube, limits = self._tube_of(system, model, apart), self._limits(system)
        about, sure = self._about_rest(system, tube), None
        if terminal is None:
            terminal, sure = self._invariant(system, tube, limits, about)
        law, paper = about.law, self.mode == "paper"
        if self.feedback is not None:
            gain = constant_gain(self.feedback, tube.nx, tube.nu)
        elif law is not None:
            gain = law.gain
        else:
            raise _require.fail("Certification", "a stabilisable plant about rest, or a feedback factor", "no LQR gain")
        levels = None
        if self.certainty is not None:
            if not isinstance(tube, EnsembleTube):
                raise _require.fail("Certification", "an ensemble for levels of certainty", type(model).__name__)
            levels = certainty_levels(tube, episodes, steps=self.steps, share=self.certainty)
        problem = CertificationProblem(
            tube, *limits, terminal, gain, self.steps, tolerance=self.tolerance if paper else 0.0, certainty=levels
        )
        backup = getattr(system, "backup", law)
        proposer = self.proposer or _search(paper, isinstance(model, Ensemble))
        if paper:
            return SafetyFilter(problem, proposer, backup=backup, soften=self.steps)
        if sure is None and law is not None:
            sure = self._sure(problem, law)
        return SafetyFilter(problem, proposer, sure if sure is not None and sure.certified else None, backup=backup)

    def invariant(self, system: System, model: Certifiable, apart: Transitions | None = None) -> Polytope:
        """A set that is invariant for the plant linearised about rest under its LQR law.

        Its disturbance is the model's at rest, times the first of `SLACKS` for which, in sound mode, invariance is certified
        for the model itself; the last that was found if it is for none.

        Raises:
            NoInvariantSetError: if the plant is not stabilisable about rest, or no such set is found.
        """
        tube = self._tube_of(system, model, apart)
        return self._invariant(system, tube, self._limits(system), self._about_rest(system, tube))[0]

    def _tube_of(self, system: System, model: Certifiable, apart: Transitions | None) -> TubeModel:
        """The tube, whose noise must cover the plant's: the ellipsoids of a smaller one hold next to nothing."""
        tube = self.tube(model, apart)
        confidence = getattr(tube, "confidence", None)
        if self.mode == "sound" and isinstance(confidence, ConfidenceSet):
            stated, true = confidence.model.noise_std, system.noise_std
            if not bool((stated >= true).all()):
                expected = f"a model of at least the plant's noise_std {true.tolist()}"
                raise _require.fail("Certification", expected, stated.tolist())
        return tube

    def _invariant(
        self, system: System, tube: TubeModel, limits: tuple[Polytope, Polytope], about: _Rest
    ) -> tuple[Polytope, Invariance | None]:
        """The set, and in sound mode its certificate, whatever that says."""
        states, inputs = limits
        if about.law is None:
            raise NoInvariantSetError(
                "Certification.invariant: expected a stabilisable plant about rest, got no LQR gain"
            )
        dims, law, found, why, sure = self._closed(tube.nx), about.law, None, "none tried", None
        rest, spread = about.rest[dims], about.spread[dims]
        reach, box = (system.state_box.radius if self.around is None else self.around)[dims], self._box(system)
        near = Box(rest - reach, rest + reach).intersect(Box(box.lower[dims], box.upper[dims]))
        unsaturated = Polytope((inputs.H @ law.gain)[:, dims], inputs.h - inputs.H @ law.offset)
        region = Polytope.of_box(near).intersect(unsaturated)
        beyond = slice(
            2 * tube.nx, None
        )  # the rows of X that the box has not; those on other coordinates are left to plans
        mine = (states.H[beyond].abs() @ _outside(tube.nx, dims)) == 0
        if bool(mine.any()):
            region = region.intersect(Polytope(states.H[beyond][mine][:, dims], states.h[beyond][mine]))
        for slack in SLACKS:
            noise = Ellipsoid(torch.zeros_like(rest), torch.diag(slack * spread))
            try:
                found = invariant_polytope(about.closed, about.offset, region, noise)
            except ValueError as error:
                why = str(error)
                continue
            found = Polytope(found.H @ torch.eye(tube.nx, dtype=torch.float64)[dims], found.h)
            if self.mode == "paper":
                break
            sure = self._sure(CertificationProblem(tube, states, inputs, found, law.gain, self.steps), law)
            if sure is not None and sure.certified:
                break
        if found is None:
            raise NoInvariantSetError(f"Certification.invariant: expected an invariant set about rest, got {why}")
        return found, sure

    def _sure(self, problem: CertificationProblem, law: AffineLaw) -> Invariance | None:
        """Whether the terminal set is invariant; None, not tried, where it leaves coordinates free: these leave any limits."""
        if self.dims is not None and len(self.dims) < problem.nx:
            return None
        return certify_invariance(problem, law, budget=BUDGET)

    def _closed(self, nx: int) -> list[int]:
        """Coordinates in which an LQR law and its invariant set are sought."""
        return list(range(nx) if self.dims is None or self.terminal == "hull" else self.dims)

    def _box(self, system: System) -> Box:
        box = system.state_box
        return box if self.error is None else Box(box.lower + self.error, box.upper - self.error)

    def _limits(self, system: System) -> tuple[Polytope, Polytope]:
        """X, the part of the state box that costs nothing, and U. Half-spaces of the cost that hold on the box add no row.

        Raises:
            ValueError: if the cost is positive somewhere in the box and not given by half-spaces: then X is no polytope.
        """
        box, cost, inputs = self._box(system), system.cost, Polytope.of_box(system.input_box)
        if not isinstance(cost, HalfspaceCost):
            if is_violation(float(cost.upper(box.lower, box.upper))):
                expected = "a cost of half-spaces (IndicatorCost, HingeCost), or none in the state box"
                raise _require.fail("Certification", expected, type(cost).__name__)
            return Polytope.of_box(box), inputs
        normals = cost.directions
        offsets = -cost.excess(torch.zeros(system.nx, dtype=torch.float64))
        if self.error is not None:
            offsets = offsets - normals.abs() @ self.error
        cut = normals.clamp_min(0.0) @ box.upper + normals.clamp_max(0.0) @ box.lower > offsets
        limits = Polytope.of_box(box)
        return (limits.intersect(Polytope(normals[cut], offsets[cut])) if bool(cut.any()) else limits), inputs

    def _about_rest(self, system: System, tube: TubeModel) -> _Rest:
        rest, still = (system.initial_state, system.input_box.center) if self.rest is None else self.rest
        given = () if self.rest is None else (("x", rest, system.state_box), ("u", still, system.input_box))
        for name, point, box in given:
            _require.shape("Certification", f"{name} of rest", point, (box.dim,))
            if not bool(box.contains(point)):
                limits = f"[{box.lower.tolist()}, {box.upper.tolist()}]"
                raise _require.fail("Certification", f"{name} of rest within the system's {limits}", point.tolist())
        with torch.no_grad():
            local = tube.linearise(rest.expand(tube.num_members, -1), still.expand(tube.num_members, -1))
        dims = self._closed(tube.nx)
        A, B, spread = local.A.mean(0)[dims][:, dims], local.B.mean(0)[dims], local.variance.amax(0).sqrt()
        after = local.mean.mean(0)[dims]
        weight = torch.ones(tube.nx, dtype=torch.float64) if self.state_weight is None else self.state_weight
        Q, R = torch.diag(weight[dims]), self.input_weight * torch.eye(tube.nu, dtype=torch.float64)
        try:
            gain = lqr_gain(A, B, state_weight=Q, input_weight=R)
        except ValueError:
            return _Rest(rest, None, A, after - A @ rest[dims], spread)
        closed = A + B @ gain
        law = AffineLaw.about(gain @ torch.eye(tube.nx, dtype=torch.float64)[dims], rest, still)
        return _Rest(rest, law, closed, after - closed @ rest[dims], spread)


def invariant_about_rest(plant: Episodic, **changes: Any) -> Certification:
    """Certification with an invariant terminal set and its LQR gain, tuned for a stock plant; `changes` are its arguments.

    Drone: in roll, pitch and their rates about hovering, with a law under which a tilt decays in half a second. Arm: in the
    end-effector's place and the joints' rates about a bent elbow. Others: in all coordinates about the plant's initial state.
    """
    chosen: dict[str, Any] = {"terminal": "invariant", "feedback": None}
    if isinstance(plant, Drone):
        about, weight = torch.full((12,), 4.0, dtype=torch.float64), torch.ones(12, dtype=torch.float64)
        weight[3:5] = 50.0
        hover = vector(plant.hover, 0.0, 0.0, 0.0)
        chosen |= {"states": 4, "dims": (3, 4, 9, 10), "rest": (plant.initial_state, hover)}
        chosen |= {"around": about, "state_weight": weight, "input_weight": 0.1}
    if isinstance(plant, TwoLinkArm):
        bent = plant.of(vector(0.0, 1.5), torch.zeros(2).double(), vector(0.2, 0.2))
        chosen |= {"dims": (0, 1, 6, 7), "rest": (bent, torch.zeros(2).double())}
        chosen["around"] = vector(0.15, 0.15, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2)
    return Certification(**(chosen | changes))


def _of_mode(model: TubeModel, mode: Mode) -> TubeModel:
    if model.mode != mode:
        raise _require.fail("Certification", f"a tube model of mode {mode!r}", model.mode)
    return model


def _outside(nx: int, dims: list[int]) -> Tensor:
    """1 at coordinates that are not among dims, (nx,)."""
    found = torch.ones(nx, dtype=torch.float64)
    found[dims] = 0.0
    return found


def _search(paper: bool, ensemble: bool) -> Proposer:
    """The compiled search; its libraries are an extra."""
    try:
        from gpsafe.planning.mpc.fast import CondensedSQP
        from gpsafe.planning.mpc.tightened import Tightened
    except ImportError as error:
        raise ImportError("Certification without a proposer of its own needs: pip install 'gpsafe[mpc]'") from error
    if paper:
        # Softening gives up the terminal set, not the limits. In a loop the first start finds the plan where there is one.
        return CondensedSQP(hardness=100.0, sweeps=25, fruitless=8, patience=4)
    return Tightened() if ensemble else CondensedSQP()


@dataclass(frozen=True, slots=True, eq=False)
class _Rest:
    """x at rest, the LQR law about it (None if there is none), the mean closed loop, and σ there.

    The loop is y⁺ = closed·y + offset for y, the coordinates fed back.
    """

    rest: Tensor
    law: AffineLaw | None
    closed: Tensor
    offset: Tensor
    spread: Tensor
