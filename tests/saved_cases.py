"""One object of every class that a file may hold, and files that were edited."""

import functools
import io
import json
import math
import zipfile

import numpy as np
import torch
from strategies import make_kernel
from xmpsc_cases import double_integrator, gp_pendulum, plan, propose

import gpsafe as gs
from gpsafe.confidence import BOUNDS, Falsification, Memberless, Strayed, make_bound
from gpsafe.cost.base import CostInterval
from gpsafe.linalg import vector
from gpsafe.models._prior import PlainKnown
from gpsafe.safety import SafeParameters
from gpsafe.safety.safe_set import Witness
from gpsafe.systems import CartPoleKnown, SineKnown
from gpsafe.tube import Constants, KollerTube

KNOWN = gs.AffineKnown(0.9 * torch.eye(2).double(), torch.ones(2, 1).double(), vector(0.1, -0.2))
QUERIES = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
OPTIONS = {"chowdhury-gopalan": {"max_data": 40}, "actsafe": {"max_data": 40, "unchecked": True}}
OPTIONS |= {"lederer": {"lower": (-1.0,), "upper": (1.0,), "lipschitz": 3.0}, "fiedler": {"convention": "published"}}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def process(kernel=None, *, blocks=(7, 5), scaled: bool = False, **options) -> gs.GP:
    """A posterior that grew block by block, asked in between, so that its factors have the rounding of their blocks."""
    given = {"nx": 2, "nu": 1, "noise_std": 0.1, "prior": KNOWN, **options}
    model = gs.GP.create(make_kernel("rbf", 3) if kernel is None else kernel, 0.01, **given)
    for seed, count in enumerate(blocks):
        weight = 1 + draw(count, seed=seed).abs() if scaled and seed else None
        model = model.condition_on(
            draw(count, 3, seed=seed), draw(count, model.num_outputs, seed=seed), noise_scale=weight
        )
        model.posterior(QUERIES)
    return model


def grown(*, mixed: bool = False) -> gs.ConfidenceSet:
    """Four generations; `mixed`: two outputs with kernels of their own."""
    model = process([make_kernel("matern-5/2", 3), make_kernel("additive", 3)] if mixed else None, blocks=())
    found = gs.ConfidenceSet(gs.Mixture(rkhs_norm=3.0, subgaussian=0.1, delta=0.1)).update(model)
    for seed in range(3):
        model = model.condition_on(draw(40 + seed, 3, seed=seed), draw(40 + seed, 2, seed=seed))
        found = found.update(model)
    return found


def certificate() -> gs.certify.Certificate:
    problem = double_integrator(steps=3)
    return gs.judge(problem, vector(0.2, 0.0), vector(0.3), propose(plan(-0.1, 0.0, 0.0)))


def rewritten(path, change):
    """The file with `change(about, arrays)` applied, its checksums those of an honest file."""
    with np.load(path) as found:
        about = json.loads(found["object.json"])
        arrays = {name: found[name] for name in found.files if name != "object.json"}
    change(about, arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("object.json", json.dumps(about))
    path.write_bytes(buffer.getvalue())
    return path


@functools.cache
def examples() -> dict[str, object]:
    """One object of every class that a file may hold."""
    box = gs.Box(vector(-1.0, -2.0), vector(1.0, 2.0))
    cost = gs.IndicatorCost(torch.eye(2).double(), vector(1.0, 1.0))
    found = [make_bound(name, **{"rkhs_norm": (2.0, 0.1), "subgaussian": 0.3, "delta": 0.05, **OPTIONS.get(name, {})})
             for name in BOUNDS]  # fmt: skip
    shown, problem = certificate(), gp_pendulum(steps=2, count=10)
    parameters = SafeParameters.initial(draw(2, 3), budget=0.5)
    parameters = parameters.add(draw(1, 3), vector(0.2), episode=3, bound="dp", rule="bound")
    policies = gs.SafePolicySet.initial(6, [2], budget=0.5)
    upper = vector(math.inf, 0.4, 0.1, 0.45, 2.0, 2.0)
    policies = policies.expand(upper, episode=1, bound="dp", distance=0.35 * (1 - torch.eye(6).double()))
    found += [
        PlainKnown(2, 1, True),
        grown(),
        Falsification((1.0, 2.0), 0, 0.5, -0.5),
        Strayed((1.0, 2.0), 0, 0.5, 0.6, 1.0),
        Memberless((), 1, 2.5, 2.0),
        box,
        gs.Polytope.of_box(box),
    ]
    found += [
        gs.Ellipsoid(vector(0.0, 1.0), torch.eye(2).double()),
        gs.sets.Zonotope(vector(0.0, 1.0), torch.eye(2).double()),
    ]
    found += [
        KNOWN,
        CartPoleKnown(9.8, 1.0, 0.1, 0.5, 10.0, 0.02, 8.0),
        gs.Task(vector(0.0, 0.0), 5, cost, 0.1, vector(0.1, 0.0)),
    ]
    found += [
        SineKnown(KNOWN.A, KNOWN.B, KNOWN.c, draw(1, 2), draw(1, 3), vector(0.3)),
        cost,
        gs.HingeCost(vector(1.0, 0.0), 0.5),
    ]
    found += [gs.AffinePolicies(draw(4, 1), draw(4, 1, 2), gs.Box(vector(-1.0), vector(1.0)))]
    found += [gs.Transitions(draw(3, 2), draw(3, 1), draw(3, 2)), gs.Verdict(-math.inf, 0.5, 1.0, witness="ω")]
    found += [CostInterval(vector(0.0), vector(0.5), True, "dp", 0.01, shown.assumptions, torch.tensor([False]))]
    found += [
        policies,
        parameters,
        Witness(0, "given", math.nan, "assumption"),
        shown,
        problem,
        shown.margins,
        shown.proposal,
    ]
    found += [shown.tightest, shown.tube, problem.model, shown.problem.model]
    constants = Constants(vector(1.0, 2.0), vector(0.5, 0.5), vector(3.0, math.inf))
    found += [constants, KollerTube(grown(), 3, 0.1, constants=constants)]
    assert {w.rule for w in policies.witnesses.values()} == {"given", "bound", "lipschitz"}
    return {type(value).__name__: value for value in found}
