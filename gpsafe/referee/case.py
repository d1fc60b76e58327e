"""All that the judgements look at: rows, claim, and every output with its tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpsafe._show import short
from gpsafe.referee import noise, norms, power, trials
from gpsafe.referee.claim import Claim
from gpsafe.referee.rows import Rows
from gpsafe.referee.trials import Design, Tried

TRIALS = 40  # of each defect, for the power


@short
@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One learned output after its tests.

    Attributes:
        name: of the state.
        design, tried: what was tested, and what came out; the first column is the user's, the others are made up.
        growth, others, random: of the norm (`gpsafe.referee.norms`).
        power: on these inputs.
        lattice: step of the lattice on which the measured values lie, 0 for none.
        lag: correlation of successive forecast errors, and the number of pairs.
    """

    name: str
    design: Design
    tried: Tried
    growth: norms.Growth
    others: tuple[norms.Alternative, ...]
    random: Tensor
    power: power.Power
    lattice: float
    lag: tuple[float, int]

    def refuted(self, test: str) -> bool:
        """Whether these rows refute it."""
        found = self.tried.refuted(self.design)
        return test in found and bool(found[test][0])

    def quiet(self) -> bool:
        """Whether forecast errors are so far below R that they are no noise of that size."""
        return float(self.tried.errors[0][:, 0].square().mean().sqrt()) < 0.5 * self.design.noise

    def repair(self) -> float:
        """The smallest factor ≥ 1 on R, of those tried, from which on no test of (k, B, R) refutes; inf if there is none."""
        last = max((o.factor for o in self.others if o.refuted), default=0.0)
        return min((o.factor for o in self.others if o.factor >= 1 and o.factor > last), default=float("inf"))


@short
@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """What was examined.

    Attributes:
        rows, claim: see there.
        y: residuals of the learned outputs, (n, p).
        outputs: after their tests.
        share: level of each test of each output.
        origin: "recorded", or "drawn" by gpsafe with noise of its own.
        repeats: rows with the same (x, u).
        power: the least of the outputs'.
    """

    rows: Rows
    claim: Claim
    y: Tensor
    outputs: tuple[Output, ...]
    share: float
    origin: str
    repeats: noise.Repeats
    power: power.Power


def heard(rows: Rows, claim: Claim, *, share: float, names: tuple[str, ...], origin: str, seed: int) -> Case:
    """Runs the tests of every output."""
    y, outputs = claim.residuals(rows.data), []
    for place, state in enumerate(claim.outputs):
        column = y[:, place]
        design = claim.design(rows, column, place, share)
        made = list(power.columns(design, TRIALS, torch.Generator().manual_seed(seed + 1000 + place)))
        tried = trials.judge(design, torch.cat([column.unsqueeze(-1), *(c for _, c in made)], -1))
        outputs.append(
            Output(
                names[state] if names else f"x{state + 1}",
                design,
                tried,
                norms.growth(design, column, tried),
                norms.alternatives(design, column),
                norms.random_functions(design, column, seed=seed),
                power.counted(design, tried, [name for name, _ in made], TRIALS),
                noise.lattice(rows.data.x_next[:, state]),
                noise.lag_one(rows, tried.errors[0][:, 0]),
            )
        )
    weakest = power.weakest([o.power for o in outputs])
    return Case(rows, claim, y, tuple(outputs), share, origin, noise.repeated(rows, y, share), weakest)
