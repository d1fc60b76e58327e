"""What is certified in the safety-filter experiment: plants, modes, ensembles, terminal sets, and the search in sound modes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gpsafe.certify import CertificationProblem
from gpsafe.certify.invariant_set import invariant_polytope
from gpsafe.certify.terminal_set import AffineLaw, Invariance, certify_invariance
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import Ensemble, Training
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.planning.mpc.tightened import Tightened
from gpsafe.safety.filter import SafetyFilter
from gpsafe.sets import Box, Ellipsoid, Polytope
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.tube import EnsembleTube, constant_gain, lqr_gain

from .._report.xmpsc import TOLERANCE, collect

Mode = Literal["none", "paper", "sound", "invariant"]
Plant = SimplePendulum | SafeCartPole
SLACKS = (
    1.0,
    3.0,
    8.0,
    15.0,
)  # for the unmodelled part when an invariant set is proposed, in units of the disturbance at rest


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A plant with what the certification of it needs.

    Attributes:
        plant: with its published noise.
        states: N of the plans, which have N − 1 inputs.
        dims: coordinates of the learned terminal set.
        angle: coordinate whose limits the adversary pushes to; its rate is the next one.
        weight: of the input in the design of the LQR gain (sound modes).
        finest: lower limit of the predicted standard deviation in sound modes (1e-3, as published, in paper mode).
        around: half-widths about rest in which an invariant set is sought.
    """

    plant: Plant
    states: int
    dims: tuple[int, int]
    angle: int
    weight: float
    finest: float
    around: Tensor

    @property
    def error(self) -> Tensor:
        """Half-widths of the measurement noise."""
        if isinstance(self.plant, SafeCartPole):
            return torch.zeros(4, dtype=torch.float64)
        return 2 * self.plant.observation_noise * self.plant.state_box.radius


CASES = {
    "pendulum": Case(SimplePendulum(), 5, (0, 1), 0, 10.0, 1e-3, vector(0.8, 2.5)),
    "pendulum-exact": Case(SimplePendulum(observation_noise=0.0), 5, (0, 1), 0, 1.0, 1e-4, vector(0.8, 2.5)),
    "cart-pole": Case(SafeCartPole(), 7, (0, 2), 2, 100.0, 1e-4, vector(2.0, 3.0, 0.2, 2.0)),
}


# --------------------------------------------------------------------------------------------------------- questions
@dataclass(frozen=True, slots=True, eq=False)
class Sizes:
    """Of an arm; see the experiment's arguments."""

    data: int
    calibration: int
    training: int
    members: int
    width: int
    initial: int
    epochs: int
    episodes: int
    steps: int
    delay: int
    delta: float
    cells: int
    probe: int
    copies: int
    audits: int
    audit_iterations: int


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """What is known between epochs: rows to learn from, rows kept apart for the conformal radius, and the ensemble."""

    learnt: Transitions
    apart: Transitions
    ensemble: Ensemble

    @staticmethod
    def first(case: Case, mode: Mode, sizes: Sizes, seed: int) -> Knowledge:
        """Warm-up data as published, with clipped inputs, and the first training."""
        generator = torch.Generator().manual_seed(9_000_011 + seed)
        plant = case.plant
        learnt, apart = collect(plant, sizes.data, generator), collect(plant, sizes.calibration, generator)
        ensemble = Ensemble.create(
            plant.nx,
            plant.nu,
            generator=generator,
            members=sizes.members,
            hidden=(sizes.width, sizes.width),
            std_limits=(1e-3 if mode == "paper" else case.finest, 1e-1),
            training=Training(epochs=40, steps=sizes.training),
        )
        return Knowledge(learnt, apart, ensemble.condition(learnt))

    def extended(self, x: Tensor, u: Tensor, after: Tensor) -> Knowledge:
        """Trained anew with more rows, every fourth of which is kept apart."""
        kept = torch.arange(len(x)) % 4 == 3
        apart = self.apart + Transitions(x[kept], u[kept], after[kept]) if bool(kept.any()) else self.apart
        rest = Transitions(x[~kept], u[~kept], after[~kept])
        return Knowledge(self.learnt + rest, apart, self.ensemble.condition(rest))


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A filter, the backup law it uses, and whether its terminal set is invariant."""

    filter: SafetyFilter
    radius: float
    invariance: Invariance | None
    why: str


def question(case: Case, mode: Mode, sizes: Sizes, known: Knowledge, terminal: Polytope) -> Question:
    """Paper: 1σ, K = −½·1, terminal set learned, softened after T failures, the published backup law (cart-pole only).

    Sound: conformal radius, LQR gain, X less the measurement noise, backup LQR about rest, invariance of the learned terminal
    set checked. Invariant: the same with a certified invariant set as terminal set, if one is found.
    """
    plant, steps = case.plant, case.states - 1
    inputs = Polytope.of_box(plant.input_box)
    if mode == "paper":
        problem = CertificationProblem(
            EnsembleTube.paper(known.ensemble),
            Polytope.of_box(plant.state_box),
            inputs,
            terminal,
            constant_gain(0.5, plant.nx, plant.nu),
            steps,
            tolerance=TOLERANCE,
        )
        backup = plant.published_backup if isinstance(plant, SafeCartPole) else None
        proposer = CondensedSQP(hardness=100.0)  # softening gives up the terminal set, not the limits
        return Question(SafetyFilter(problem, proposer, backup=backup, soften=steps), 1.0, None, "not claimed")
    tube = EnsembleTube.calibrated(known.ensemble, known.apart, steps=steps, delta=sizes.delta)
    tube = replace(tube, cells=sizes.cells)
    rest, still = plant.initial_state, torch.zeros(plant.nu, dtype=torch.float64)
    local = known.ensemble.linearize(rest.unsqueeze(0), still.unsqueeze(0))
    jacobian = local.jacobian.mean(0)[0]
    A, B = jacobian[:, : plant.nx], jacobian[:, plant.nx :]
    gain = lqr_gain(A, B, input_weight=torch.tensor([[case.weight]], dtype=torch.float64))
    law = AffineLaw.about(gain, rest, still)
    box = plant.state_box
    states = Polytope.of_box(Box(box.lower + case.error, box.upper - case.error))
    problem = CertificationProblem(tube, states, inputs, terminal, gain, steps)
    if mode == "sound":
        sure = certify_invariance(problem, law, budget=256)
        why = f"{sure.verdict.outcome}, excess {sure.verdict.lower:.3g}"
        backing = sure if sure.certified else None
        return Question(SafetyFilter(problem, Tightened(), backing, backup=law), tube.radius, backing, why)
    spread = tube.radius * local.log_var[:, 0].mul(0.5).exp().amax(0)
    offset = local.mean.mean(0)[0] - A @ rest + B @ law.offset
    near = Polytope.of_box(Box(rest - case.around, rest + case.around))
    region = near.intersect(Polytope(inputs.H @ gain, inputs.h - inputs.H @ law.offset))
    tried = []
    for slack in SLACKS:
        try:
            noise = Ellipsoid(torch.zeros(plant.nx, dtype=torch.float64), torch.diag(slack * spread))
            found = invariant_polytope(A + B @ gain, offset, region, noise)
        except ValueError:
            tried.append(f"slack {slack:g}: empty")
            continue
        sure = certify_invariance(replace(problem, terminal=found), law, budget=1024)
        if sure.certified:
            safe = SafetyFilter(replace(problem, terminal=found), Tightened(), sure)
            return Question(safe, tube.radius, sure, f"HOLDS (slack {slack:g})")
        tried.append(f"slack {slack:g}: {sure.verdict.outcome}")
    return Question(SafetyFilter(problem, Tightened(), backup=law), tube.radius, None, "; ".join(tried))
