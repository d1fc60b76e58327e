"""Poison cases of ellipsoidal tubes, and of the judge of certification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from poison import ROWS, Arguments, PoisonCase, Results, draw, visible
from torch import Tensor
from xmpsc_cases import gp_confidence

from gpsafe.certify import CertificationProblem, Proposal, judge
from gpsafe.cost.curvature import remainder_outer
from gpsafe.models import Ensemble
from gpsafe.sets import Box, Polytope
from gpsafe.systems.known import pendulum_known
from gpsafe.tube import EnsembleTube, GPTube, KnownTube, KollerTube, LinearTube, TubeModel, propagate
from gpsafe.tube.core import Mode, outer_sum
from proofs_checks.safety_filter import linear_case

STEPS = 3
KNOWN = pendulum_known(gravity=10.0, gain=3.0, damping=0.3, dt=0.1, hanging_at_zero=True, semi_implicit=True)
GAIN = torch.tensor([[-0.3, -0.2]], dtype=torch.float64)


def linear(mode: Mode) -> TubeModel:
    problem, _ = linear_case()
    assert isinstance(problem.model, LinearTube)
    return replace(problem.model, mode=mode)


@cache
def ensemble(mode: Mode) -> TubeModel:
    networks = Ensemble.create(2, 1, generator=torch.Generator().manual_seed(1), members=2, hidden=(4,), prior=KNOWN)
    return EnsembleTube.paper(networks) if mode == "paper" else EnsembleTube.sound(networks, steps=STEPS, delta=0.1)


@cache
def gaussian(mode: Mode) -> TubeModel:
    return GPTube(gp_confidence(), steps=STEPS, delta=0.1, mode=mode)


def known(mode: Mode) -> TubeModel:
    assert mode == "sound"
    return KnownTube(KNOWN, torch.tensor([0.05], dtype=torch.float64))


@cache
def koller(mode: Mode) -> TubeModel:
    assert mode == "sound"
    return KollerTube(gp_confidence(), steps=STEPS, delta=0.1)


MODELS = {"LinearTube": linear, "EnsembleTube": ensemble, "GPTube": gaussian}


def tube(model: Callable[[Mode], TubeModel], mode: Mode) -> Callable[..., Results]:
    def run(x0: Tensor, inputs: Tensor) -> Results:
        found = propagate(model(mode), x0, inputs, GAIN)
        return found.center, found.factor, found.inputs

    return run


def lost_at_the_end(center: Tensor, factor: Tensor, inputs: Tensor) -> Tensor:
    return visible(center[:, :, -1], factor[:, :, -1])


def plans() -> Arguments:
    return {"x0": 0.1 * draw(ROWS, 2), "inputs": 0.1 * draw(ROWS, STEPS, 1, seed=1)}


def remainder(model: Callable[[Mode], TubeModel]) -> Callable[..., Results]:
    def run(x: Tensor, u: Tensor, factor: Tensor) -> Results:
        members = model("sound").num_members
        x, u, factor = (v.unsqueeze(1).expand(-1, members, *v.shape[1:]) for v in (x, u, factor))
        return model("sound").remainder(x, u, factor, GAIN).amax(1), x[:, 0], u[:, 0], factor[:, 0]

    return run


def sections() -> Arguments:
    return {"x": 0.1 * draw(ROWS, 2), "u": 0.1 * draw(ROWS, 1, seed=1), "factor": 0.05 * draw(ROWS, 2, 2, seed=2)}


# -------------------------------------------------------------------------------------------------- the judge
def certified(x0: Tensor, inputs: Tensor, gain: Tensor) -> Results:
    """Row by row: the judge takes one plan at a time."""
    base, _ = linear_case()
    held = []
    for x, plan, k in zip(x0, inputs, gain, strict=True):
        problem = CertificationProblem(base.model, base.states, base.inputs, base.terminal, k, base.steps)
        held.append(
            judge(problem, x, torch.zeros(1).double(), Proposal(plan, "optimal", 1, 0.0, "poison", -1.0)).certified
        )
    return (torch.tensor(held),)


def proposals() -> Arguments:
    base, _ = linear_case()
    gain = base.gain.expand(ROWS, *base.gain.shape)
    return {"x0": 0.05 * draw(ROWS, 2), "inputs": torch.zeros(ROWS, base.steps, 1).double(), "gain": gain}


def rows_of_problems(h: Tensor) -> Results:
    """Offsets of the states' rows."""
    base, _ = linear_case()
    box = Polytope.of_box(Box(-torch.ones(2).double(), torch.ones(2).double()))
    held = []
    for offsets in h:
        problem = CertificationProblem(
            base.model, Polytope(box.H, offsets), base.inputs, base.terminal, base.gain, base.steps
        )
        proposal = Proposal(torch.zeros(base.steps, 1).double(), "optimal", 1, 0.0, "poison", -1.0)
        held.append(judge(problem, torch.zeros(2).double(), torch.zeros(1).double(), proposal).certified)
    return (torch.tensor(held),)


CASES = {
    **{
        f"{name}, {mode}": PoisonCase(tube(model, mode), plans, lost_at_the_end)  # pyright: ignore[reportArgumentType]
        for name, model in MODELS.items()
        for mode in ("paper", "sound")
    },
    "KnownTube, sound": PoisonCase(tube(known, "sound"), plans, lost_at_the_end),
    "KollerTube, sound": PoisonCase(tube(koller, "sound"), plans, lost_at_the_end),
    **{
        f"{name}.remainder": PoisonCase(remainder(model), sections)
        for name, model in {**MODELS, "KnownTube": known, "KollerTube": koller}.items()
    },
    "outer_sum": PoisonCase(
        lambda first, second, box: (outer_sum([first, second], box.abs()),),
        lambda: {"first": draw(ROWS, 2, 2), "second": draw(ROWS, 2, 2, seed=1), "box": draw(ROWS, 2, seed=2)},
    ),
    "remainder_outer": PoisonCase(
        lambda z, radius: (remainder_outer(KNOWN, z, radius), z, radius),
        lambda: {"z": draw(ROWS, 3), "radius": draw(ROWS, 3, seed=1).abs()},
    ),
    "judge": PoisonCase(certified, proposals, lambda held: ~held, refuses=True),
    "judge, rows": PoisonCase(
        rows_of_problems, lambda: {"h": torch.ones(ROWS, 4).double()}, lambda held: ~held,
        honest=lambda given, found: found[0],  # a row with so large an offset holds
        refuses=True,
    ),
}  # fmt: skip
