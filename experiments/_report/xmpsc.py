"""Certification problems on the plants of the published X-MPSC experiments, and CPU times of proposers on them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpsafe.certify import CertificationProblem, judge
from gpsafe.data import Transitions
from gpsafe.linalg import vector
from gpsafe.models import Ensemble, Training
from gpsafe.models._normalizer import Normalizer
from gpsafe.models.gp import identity_prior, zero_prior
from gpsafe.planning.mpc._sweeps import sweep_of
from gpsafe.planning.mpc.fast import CondensedSQP, Work
from gpsafe.planning.mpc.reference import IpoptReference, Split
from gpsafe.sets import Box, Polytope, convex_hull
from gpsafe.systems.base import is_violation
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum
from gpsafe.tube import EnsembleTube, constant_gain

TOLERANCE = (
    1e-6  # excess of a row that counts as none: the published code's verdict has this size, and IPOPT misses by 1e-8
)
FACETS = 12
FORMS = {  # timed from one start each, as published: restarts would only lengthen the slow side of a ratio
    "published": IpoptReference.published(),
    "paper": replace(IpoptReference.paper(), restarts=0),
    "shared": IpoptReference(shared=True, restarts=0, name="IPOPT, shared"),
    "expanded": IpoptReference(shared=True, expand=True, restarts=0, name="IPOPT, expanded"),
    "repaired": replace(IpoptReference.repaired(), restarts=0),
}
CHALLENGER = replace(IpoptReference.repaired(), restarts=0, iterations=80)  # without a plan it runs to its limit
FREE = 1e-6  # cost below which nothing is corrected
CATEGORIES = ("as proposed", "corrected", "no plan")
SPLIT = ("hessian", "jacobian", "values", "program", "other")


def collect(plant: SimplePendulum | SafeCartPole, count: int, generator: torch.Generator) -> Transitions:
    """`count` measured transitions of episodes under warm-up inputs; an episode that leaves the limits starts anew."""
    parallel = -(-count // plant.horizon)
    x = plant.initial_box.sample(parallel, generator)
    states, inputs, following = [], [], []
    for _ in range(plant.horizon):
        cart = isinstance(plant, SafeCartPole)
        u = plant.warm_up(x, generator) if cart else plant.input_box.sample(parallel, generator)
        after = plant.advance(x, u, generator)
        states.append(plant.observe(x, generator))
        inputs.append(u)
        following.append(plant.observe(after, generator))
        out = is_violation(plant.cost(after))
        x = torch.where(out.unsqueeze(-1), plant.initial_box.sample(parallel, generator), after)
    return Transitions(torch.cat(states)[:count], torch.cat(inputs)[:count], torch.cat(following)[:count])


def ring(radii: tuple[float, float]) -> Polytope:
    """A polygon with `FACETS` vertices on the ellipse with these half-axes."""
    angle = torch.arange(FACETS, dtype=torch.float64) * (2 * math.pi / FACETS)
    return convex_hull(torch.stack([radii[0] * angle.cos(), radii[1] * angle.sin()], dim=-1))


def problem(
    plant: SimplePendulum | SafeCartPole,
    states: int,
    width: int,
    members: int,
    data: int,
    steps: int,
    seed: int,
    *,
    prior: bool = False,
) -> CertificationProblem:
    """Paper mode, K = −0.5·1, terminal set about where the published episodes start; `states` is the published N.

    `prior`: the published known part (parameters 20 % low) under the networks, instead of the identity.

    Networks of difference targets trained for `steps` steps on `data` transitions; 0 steps: the published initial weights and
    absolute targets, with the data's normalisation of inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    record = collect(plant, data, generator)
    training = Training(epochs=1, steps=steps)
    model = Ensemble.create(
        plant.nx, plant.nu, generator=generator, members=members, hidden=(width, width), training=training,
        prior=plant.prior() if prior else identity_prior if steps else zero_prior,
        normalizers=None if steps else (Normalizer.of(record.z), Normalizer.identity(plant.nx)),
    )  # fmt: skip
    model = model.condition(record) if steps else model
    if isinstance(plant, SimplePendulum):
        hull = ring((0.25 * math.pi, 1.2))
        terminal = Polytope(hull.H, hull.h + hull.H @ vector(math.pi, 0.0))
    else:
        hull = ring((0.06, 0.06))
        normals = torch.zeros(hull.H.shape[0], 4, dtype=torch.float64)
        normals[:, 0], normals[:, 2] = hull.H[:, 0], hull.H[:, 1]
        terminal = Polytope(normals, hull.h)
    return CertificationProblem(
        EnsembleTube.paper(model),
        Polytope.of_box(plant.state_box),
        Polytope.of_box(plant.input_box),
        terminal,
        constant_gain(0.5, plant.nx, plant.nu),
        states - 1,
        tolerance=TOLERANCE,
    )


def chain_problem(nx: int, seed: int) -> CertificationProblem:
    """Random difference networks (M = 5, width 20, N = 5) in nx dimensions: for the growth of times with nx alone."""
    generator = torch.Generator().manual_seed(seed)
    box = Box(-2 * torch.ones(nx).double(), 2 * torch.ones(nx).double())
    model = Ensemble.create(
        nx, 1, generator=generator, normalizers=(Normalizer.identity(nx + 1), Normalizer.identity(nx))
    )
    inner, unit = Box(0.5 * box.lower, 0.5 * box.upper), torch.ones(1, dtype=torch.float64)
    inputs = Polytope.of_box(Box(-unit, unit))
    sets = Polytope.of_box(box), inputs, Polytope.of_box(inner)
    return CertificationProblem(EnsembleTube.paper(model), *sets, constant_gain(0.1, nx, 1), 4, tolerance=TOLERANCE)


def instances(
    plant: SimplePendulum | SafeCartPole, count: int, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """States about the edge of the terminal set, and uniform proposed inputs."""
    angle = 2 * math.pi * torch.rand(count, dtype=torch.float64, generator=generator)
    size = 0.6 + 0.6 * torch.rand(count, dtype=torch.float64, generator=generator)
    if isinstance(plant, SimplePendulum):
        x = torch.stack([math.pi + 0.25 * math.pi * size * angle.cos(), 1.2 * size * angle.sin()], dim=-1)
    else:
        x = (2 * torch.rand(count, 4, dtype=torch.float64, generator=generator) - 1) * vector(0.06, 0.3, 0.05, 0.4)
    return list(zip(x, plant.input_box.sample(count, generator), strict=True))


def sweep_time(question: CertificationProblem, x0: Tensor, learned: Tensor, *, calls: int = 20) -> float:
    """CPU µs of one sweep, rows and Jacobian, at the plan that holds the proposed input: the least of five rounds."""
    sweep, plan = sweep_of(question, x0.numpy()), np.tile(learned.numpy(), (question.steps, 1))
    sweep(plan)
    rounds = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(calls):
            sweep(plan)
        rounds.append((time.process_time() - began) / calls)
    return 1e6 * min(rounds)


def timed(
    name: str, proposer: CondensedSQP | IpoptReference, question: CertificationProblem, x0: Tensor, learned: Tensor,
    *, least: float = 0.02,
) -> dict[str, Any]:  # fmt: skip
    """One row: CPU seconds of a cold search (mean of as many as fill `least` seconds), and what the judge says of its plan."""
    calls, began = 0, time.process_time()
    while True:
        proposal, work = proposer.search(question, x0, learned)
        calls += 1
        if (spent := time.process_time() - began) >= least:
            break
    seconds = spent / calls
    if isinstance(work, Split):
        split = {"hessian": work.hessian, "jacobian": work.jacobian, "values": work.values, "program": 0.0}
    else:
        assert isinstance(work, Work)
        within = seconds * work.descent_seconds / max(work.seconds, 1e-12)  # the compiled loops: sweeps, else programs
        sweeps = min(1e-6 * work.sweeps * sweep_time(question, x0, learned), within)
        split = {"hessian": 0.0, "jacobian": 0.0, "values": sweeps, "program": within - sweeps}
    split["other"] = max(seconds - sum(split.values()), 0.0)
    certificate = judge(question, x0, learned, proposal)
    return {
        "proposer": name,
        "ms": 1e3 * seconds,
        "certified": certificate.certified,
        "believed": proposal.slack <= 1.1 * TOLERANCE and proposal.status != "rejected",
        "distance": certificate.distance,
        "status": proposal.status,
        "iterations": proposal.iterations,
        **{part: 1e3 * value for part, value in split.items()},
    }


def category(question: CertificationProblem, x0: Tensor, learned: Tensor, searched: CondensedSQP) -> str:
    """One of `CATEGORIES`, by what the judge says of the plan found by `searched`."""
    found = judge(question, x0, learned, searched.propose(question, x0, learned))
    if not found.certified:
        return CATEGORIES[2]
    return CATEGORIES[0] if found.distance <= FREE else CATEGORIES[1]


def balanced(
    question: CertificationProblem, pairs: Sequence[tuple[Tensor, Tensor]], count: int
) -> list[tuple[str, Tensor, Tensor]]:
    """The first pairs of each category, as equal in number as they are found, `count` in all, categories in turn."""
    searched, found = CondensedSQP(), {name: [] for name in CATEGORIES}
    share = -(-count // len(CATEGORIES))
    spare: list[tuple[str, Tensor, Tensor]] = []
    for x0, learned in pairs:
        name = category(question, x0, learned, searched)
        (found[name] if len(found[name]) < share else spare).append((name, x0, learned))
        if all(len(group) == share for group in found.values()):
            break
    chosen = [group[i] for i in range(share) for group in found.values() if i < len(group)]
    return (chosen + spare)[:count]


def compared(
    question: CertificationProblem, cases: Sequence[tuple[str, Tensor, Tensor]], slow: Sequence[str]
) -> list[dict[str, Any]]:
    """The fast proposer and the named slow ones on every case, in turn; building a program is apart, in `build`."""
    fast, rows = CondensedSQP(), []
    fast.search(question, *cases[0][1:])  # loads the compiled code
    build = {name: FORMS[name].prepare(question) for name in slow}
    for i, (kind, x0, learned) in enumerate(cases):
        common = {"instance": i, "category": kind}
        rows.append({**common, "build": 0.0, **timed("fast", fast, question, x0, learned)})
        for name in slow:
            row = timed(name, FORMS[name], question, x0, learned, least=0.0)
            rows.append({**common, "build": 1e3 * build[name], **row})
    return rows


def corrected(
    question: CertificationProblem, x0: Tensor, learned: Tensor, wide: int, generator: torch.Generator
) -> dict[str, Any]:
    """Does one state need a correction, and how often is it found at the best known cost?

    Best known: over the default search, all its starts to the end, `wide` random warm starts (uniform, at the ends of the
    inputs, switching once), and the repaired reference from one start.
    """
    single = timed("one", CondensedSQP(starts=1), question, x0, learned)
    default = timed("default", CondensedSQP(), question, x0, learned)
    costs = [row["distance"] for row in (single, default) if row["certified"]]
    searches = [CHALLENGER.propose(question, x0, learned)]
    searches.append(CondensedSQP(exhaustive=True).propose(question, x0, learned))
    lower, upper = input_ends(question)
    for i in range(wide):
        warm = lower + (upper - lower) * torch.rand(
            question.steps, question.nu, dtype=torch.float64, generator=generator
        )
        if i % 3 == 1:
            warm = torch.where(warm > 0.5 * (lower + upper), upper, lower)
        elif i % 3 == 2:
            turn = int(torch.randint(1, question.steps, (1,), generator=generator))
            warm = torch.where(torch.arange(question.steps).unsqueeze(-1) < turn, warm[0], warm[-1])
        searches.append(CondensedSQP(starts=1).propose(question, x0, learned, warm=warm))
    for proposal in searches:
        certificate = judge(question, x0, learned, proposal)
        if certificate.certified:
            costs.append(certificate.distance)
    best = min(costs, default=math.inf)
    at_best = {
        f"{name} best": bool(row["certified"] and row["distance"] <= best + 1e-6)
        for name, row in (("one", single), ("default", default))
    }
    times = {"one ms": single["ms"], "default ms": default["ms"]}
    return {"feasible": bool(np.isfinite(best)), "best": best if costs else -1.0, **at_best, **times}


def input_ends(question: CertificationProblem) -> tuple[Tensor, Tensor]:
    """Lower and upper ends of the inputs' bounding box."""
    box = question.inputs.bounding_box()
    return box.lower, box.upper
