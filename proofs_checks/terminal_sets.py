"""Theory §6.7: certified terminal sets are invariant; hulls of visited states grow, are used late, and are not invariant."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor

from gpsafe.certify import CertificationProblem
from gpsafe.certify.invariant_set import invariant_polytope
from gpsafe.certify.terminal_set import AffineLaw, TerminalSet, certify_invariance
from gpsafe.linalg import vector
from gpsafe.sets import Box, Ellipsoid, Polytope
from gpsafe.sets.polytope import convex_hull
from gpsafe.systems.known import AffineKnown
from gpsafe.testbed.check import Budget, Check, Evidence, Grade, Sample
from gpsafe.tube import LinearTube, lqr_gain
from gpsafe.verdict import Verdict, worst_of

from ._regression import generator

ROUNDING = 1e-9
SIZES = (0.2, 0.4, 0.7, 0.9, 1.0, 1.1)  # of the sets offered, in units of the largest invariant one
PLANTS = 4  # of a shard


def _box(n: int) -> Polytope:
    return Polytope.of_box(Box(-torch.ones(n).double(), torch.ones(n).double()))


def _plant(source: torch.Generator) -> tuple[LinearTube, AffineLaw, Polytope] | None:
    """A linear plant of two states, its Riccati law and the largest invariant set within |x|, |u| ≤ 1, if there is one."""
    A = torch.eye(2).double() + 0.3 * torch.randn(2, 2, dtype=torch.float64, generator=source)
    B = torch.tensor([[0.05], [0.3]]).double() + 0.1 * torch.randn(2, 1, dtype=torch.float64, generator=source)
    half = 0.01 + 0.04 * torch.rand(2, dtype=torch.float64, generator=source)
    law = AffineLaw(lqr_gain(A, B), vector(0.0))
    region = _box(2).intersect(Polytope(_box(1).H @ law.gain, _box(1).h))
    noise = Ellipsoid(vector(0.0, 0.0), torch.diag(half))
    try:
        return (
            LinearTube(AffineKnown(A, B, torch.zeros(2).double()), half),
            law,
            invariant_polytope(A + B @ law.gain, vector(0.0, 0.0), region, noise),
        )
    except ValueError:  # nothing is invariant under this much noise
        return None


def _moved(model: LinearTube, law: AffineLaw, x: Tensor, u: Tensor) -> tuple[LinearTube, AffineLaw]:
    """The same plant and law in coordinates in which they rest at x and u: neither has an offset of zero."""
    A, B = model.plant.A, model.plant.B
    plant = AffineKnown(A, B, x - A @ x - B @ u)
    return replace(model, plant=plant), AffineLaw(law.gain, u - law.gain @ x)


def _around(point: Tensor, H: Tensor, h: Tensor) -> Polytope:
    """{x : H(x − point) ≤ h}."""
    return Polytope(H, h + H @ point)


def _excess(
    problem: CertificationProblem, model: LinearTube, law: AffineLaw, rest: Tensor, source: torch.Generator
) -> float:
    """Largest excess of a row of S or U from corners and drawn states of S, of S over its distance from rest; the worst
    disturbances."""
    region = problem.terminal.intersect(problem.states)
    corners = region.vertices()
    share = torch.rand(200, len(corners), dtype=torch.float64, generator=source)
    x = torch.cat([corners, share / share.sum(-1, keepdim=True) @ corners])
    u = law(x)
    after = model.plant(x, u) @ region.H.mT + (region.H * model.half_axes).norm(dim=-1) - region.h
    asked = u @ problem.inputs.H.mT - problem.inputs.h
    return worst_of(float((after / (region.h - region.H @ rest)).max()), float(asked.max()))


def invariance(shard: int, budget: Budget, broken: bool) -> Sample:
    """One step from each of the sets that are certified; broken: from hulls of visited states, for which nobody vouches."""
    source, found = generator(83, shard), []
    offered = 0
    for _ in range(PLANTS):
        while (drawn := _plant(source)) is None:
            pass
        model, law, largest = drawn
        x, u = (torch.randn(n, dtype=torch.float64, generator=source) for n in (2, 1))
        model, law = _moved(model, law, x, u)
        states, inputs = _around(x, _box(2).H, _box(2).h), _around(u, _box(1).H, _box(1).h)
        corners = largest.vertices()
        for size in SIZES:
            offered += 1
            terminal = _around(x, largest.H, size * largest.h)
            if broken:
                share = torch.rand(12, len(corners), dtype=torch.float64, generator=source).pow(4)
                terminal = convex_hull(x + size * (share / share.sum(-1, keepdim=True)) @ corners)
            problem = CertificationProblem(model, states, inputs, terminal, law.gain, 4)
            if broken or certify_invariance(problem, law, budget=200).certified:
                found.append(_excess(problem, model, law, x, source))
    return {"worst": worst_of(found) if found else -torch.inf, "certified": len(found), "offered": offered}


def judge_invariance(samples: Sequence[Sample], broken: bool) -> Evidence:
    """The largest excess of all certified sets."""
    worst = worst_of(s["worst"] for s in samples)
    certified, offered = (sum(s[key] for s in samples) for key in ("certified", "offered"))
    told = f"{certified} of {offered} sets {'used' if broken else 'certified'}; largest excess {worst:.3g}"
    return Evidence(certified, worst, Verdict(worst, worst, ROUNDING, witness=told), {"worst": worst})


def _quieter(factor: float) -> AbstractContextManager[object]:
    """The certificate, and nothing else, counts this share of the disturbance."""
    honest = certify_invariance

    def certified(problem: CertificationProblem, law: AffineLaw, *, budget: int) -> object:
        assert isinstance(problem.model, LinearTube)
        quiet = replace(problem, model=replace(problem.model, half_axes=factor * problem.model.half_axes))
        return honest(quiet, law, budget=budget)

    return mock.patch(f"{__name__}.certify_invariance", certified)


# ------------------------------------------------------------------------------------------------- growth and delay
def growth(shard: int, budget: Budget, broken: bool) -> Sample:
    """Supports of the set in use after n updates, against those of all states given up to update n − ℓ; broken: n − ℓ + 1.

    Some updates bring nothing, some only states inside.
    """
    source, worst, cases = generator(84, shard), 0.0, 0
    shrunk = 0
    for _ in range(6):
        delay = int(torch.randint(4, (1,), generator=source))
        dims = (0, 2) if shard % 2 else (0, 1)
        given = [torch.randn(6, 3, dtype=torch.float64, generator=source)]
        used = TerminalSet.start(given[0], dims=dims, delay=delay)
        ways = torch.randn(40, 2, dtype=torch.float64, generator=source)
        before = None
        for n in range(1, 9):
            few = int(torch.randint(5, (1,), generator=source))
            size = 0.1 if n % 3 == 0 else 0.5 * n
            given.append(size * torch.randn(few, 3, dtype=torch.float64, generator=source))
            used = used.update(given[-1])
            upto = max(0, n - delay) + (1 if broken else 0)
            states = torch.cat(given[: upto + 1])[:, list(dims)]
            told = used.polytope
            free = [j for j in range(3) if j not in dims]
            assert bool((told.H[:, free] == 0).all())
            corners = Polytope(told.H[:, list(dims)], told.h).vertices()
            reach, true = (corners @ ways.mT).amax(0), (states @ ways.mT).amax(0)
            worst = worst_of(worst, float(((reach - true).abs() / true.abs().clamp_min(1.0)).max()))
            shrunk += before is not None and bool((reach < before - ROUNDING).any())
            before, cases = reach, cases + 1
    return {"worst": worst, "cases": cases, "shrunk": shrunk}


def judge_growth(samples: Sequence[Sample], broken: bool) -> Evidence:
    """The largest difference of supports, and whether a set in use ever shrank."""
    shrunk, cases = (sum(s[key] for s in samples) for key in ("shrunk", "cases"))
    worst = worst_of(*(s["worst"] for s in samples), float(shrunk))
    told = f"{shrunk} of {cases} updates shrank the set in use; largest difference of supports {worst:.3g}"
    return Evidence(cases, worst, Verdict(worst, worst, ROUNDING, witness=told), {"worst": worst})


def _drawn_in(points: Tensor, factor: float) -> Tensor:
    middle = points.mean(0)
    return middle + factor * (points - middle)


def _lesser(factor: float) -> AbstractContextManager[object]:
    """Hulls of the states drawn in towards their mean."""
    return mock.patch("gpsafe.certify.terminal_set.convex_hull", lambda points: convex_hull(_drawn_in(points, factor)))


CHECKS = (
    Check(
        name="xmpsc-terminal-invariance",
        claim="From every state of a set that is certified invariant the backup keeps the set and the limits of the inputs, "
        "under every disturbance of the ellipsoid.",
        source="X-MPSC, Assumption 4.2; theory §6.7",
        assumptions=("disturbance in its ellipsoid", "linear plants"),
        statistic="largest excess of a row after one step, over its offset, from corners and drawn states; threshold 1e-9",
        control="hulls of visited states, which nobody certified",
        shards={"quick": 3, "full": 40},
        control_shards={"quick": 1, "full": 4},
        sample=invariance,
        judge=judge_invariance,
        grades=(Grade("disturbance counted by the certificate", _quieter, (0,), (0.95, 0.9, 0.7, 0.5, 0.1)),),
    ),
    Check(
        name="xmpsc-terminal-growth",
        claim="After n updates the terminal set in use is the hull of all states certified up to update n − ℓ; it only grows.",
        source="X-MPSC, equation (9) and section 5; theory §6.7",
        assumptions=(),
        statistic="largest relative difference of supports from those of the states, 1 for each shrinking; threshold 1e-9",
        control="the published ring buffer, one update early: up to n − ℓ + 1",
        shards={"quick": 4, "full": 40},
        sample=growth,
        judge=judge_growth,
        grades=(Grade("extent of the hull", _lesser, (0,), (0.99, 0.9, 0.5)),),
    ),
)
