"""Plants on which one term of a cost bound leads, with a true cost that is known in closed form.

The robust program is met by plants without noise: their cost counts states beyond a threshold that lies on an edge of the
grid, and the member of F_n that attains the term passes it by a hair. The other bounds are met where their inequality is
nearly an equality: Gaussian tails, a chain that parts at its first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.base import CostBound
from gpsafe.cost.gaussian_tube import GaussianTube
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.total_variation import TotalVariation
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown, SineKnown
from gpsafe.systems.task import Task
from gpsafe.verdict import worst_of

from ._edges import LAMBDA, SUBGAUSSIAN, TINY, Edge, attaining, make_edge

HAIR = 1e-6
CELL = 0.5
NEAR = 0.498  # a state next to the upper edge of the cell [0, 0.5]


@dataclass(frozen=True, slots=True, eq=False)
class CostEdge:
    """A bound, a set F_n, one policy, and the cost of one member of F_n."""

    bound: CostBound
    confidence: ConfidenceSet
    policies: AffinePolicies
    truth: float


def _line(slope: float, constant: float, gain: float = 0.0) -> AffineKnown:
    return AffineKnown(vector(slope).reshape(1, 1), vector(gain).reshape(1, 1), vector(constant))


def _z(*first: float, u: float | None = None) -> Tensor:
    """Inputs (x, u)."""
    return torch.tensor([[x, 0.0 if u is None else x] for x in first], dtype=torch.float64)


def _normal(x: float) -> float:
    """Φ(x)."""
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def _program(
    found: Edge, *, threshold: float = 1.0, noise_std: float = 0.0, upper: float = 2.0, horizon: int | None = None
) -> CostEdge:
    """The robust program on cells of width ½, and how many states of the worst member are beyond the threshold."""
    cost = IndicatorCost(found.normal.reshape(1, 1), vector(threshold))
    horizon = horizon or found.steps + 1
    grid = Grid(Box(vector(-2.0), vector(upper)), (round((upper + 2.0) / CELL),))
    bound = RobustDP(grid, Task(found.initial_state, horizon, cost, 0.0, vector(noise_std)))
    truth = worst_of(float(cost(found.path(member)[:horizon]).sum()) for member in found.members)
    return CostEdge(bound, found.confidence, found.policies, truth)


def _in_cell(axis: int) -> CostEdge:
    """From x_1 = NEAR the residual jumps by B·d_k over the value at the cell's centre (over x, or over the input)."""
    kernel = kernels.rbf(1.0, dims=(axis,))
    centre, start = 0.5 * CELL, -1.9
    on_input = None if axis == 0 else 1.0
    points = _z(NEAR, centre, u=on_input)
    unit = attaining(kernel, points, vector(1.0, -1.0), 1.0)
    first, second = unit(_z(start, NEAR, u=on_input)).tolist()
    norm = (1.0 + HAIR - NEAR) / (second - first)  # so that x_2 = 1 + HAIR
    f = attaining(kernel, points, vector(1.0, -1.0), norm)
    seen = _z(centre, start, u=on_input)
    policies = AffinePolicies(
        vector(0.0).reshape(1, 1), vector(float(axis)).reshape(1, 1, 1), Box(vector(-3.0), vector(3.0))
    )
    known = _line(0.0, NEAR - float(f(_z(start, u=on_input))[0]))
    return _program(make_edge(known, (kernel,), (norm / (1 - 1e-8),), seen, (f,), vector(start), policies=policies))


def _gradient() -> CostEdge:
    """From x_1 the residual jumps by B sd_post[f(x_1)], having been seen at the cell's centre and at x_0 (theory §5.11).

    To second order that is β sd[f(c) + ∂_v f(c)] plus B times the Taylor rest: the box of gradients, here narrower than that of
    the kernel metric, is nearly attained. The centre is an anchor; x_1 keeps off the next cell, as f(x_0) is not quite known.
    """
    kernel, start, near = kernels.rbf(2.5, dims=(0,)), -1.9, 0.495
    seen, end = _z(0.5 * CELL, start), _z(near)
    pull = torch.linalg.solve(kernels.cross(kernel, seen, seen), kernels.cross(kernel, seen, end)[:, 0])
    points, weights = torch.cat([end, seen]), torch.cat([vector(1.0), -pull])
    norm = (1.0 + HAIR - near) / float(attaining(kernel, points, weights, 1.0)(end)[0])
    f = attaining(kernel, points, weights, norm)
    known = _line(0.0, near - float(f(_z(start))[0]))
    return _program(make_edge(known, (kernel,), (norm / (1 - 1e-8),), seen.repeat(40, 1), (f,), vector(start)))


def _value() -> CostEdge:
    """One step from a point that was observed once: f = h_n there."""
    kernel, start = kernels.rbf(1.0, dims=(0,)), 0.1
    f = attaining(kernel, _z(-0.5, 1.0), vector(1.0, -0.5), 0.5)
    found = make_edge(_line(0.0, 0.0), (kernel,), (1.0,), _z(start), (f,), vector(start), steps=1)
    known = _line(0.0, 1.0 + HAIR - found.reached())
    return _program(make_edge(known, (kernel,), (1.0,), _z(start), (f,), vector(start), steps=1))


def _cap() -> CostEdge:
    """One step without data: f = B√k."""
    kernel, start = kernels.rbf(1.0, dims=(0,)), 0.1
    f = attaining(kernel, _z(start), vector(1.0), 1.0)
    return _program(make_edge(_line(0.0, 2 * HAIR), (kernel,), (1.0,), None, (f,), vector(start), steps=1))


def _quiet() -> dict[str, Any]:
    """A residual that has no say."""
    kernel = kernels.rbf(1.0, dims=(0,))
    return {
        "kernel": (kernel,),
        "norms": (TINY,),
        "data": None,
        "truth": (attaining(kernel, _z(0.0), vector(1.0), TINY),),
    }


def _known_slope(side: float = 1.0) -> CostEdge:
    """x⁺ = 2x + c: over a cell the known part ranges over twice the cell. The other side is its mirror image."""
    constant = 1.0 + 3 * HAIR - 2 * NEAR
    start = vector(side * (NEAR - constant) / 2)
    return _program(make_edge(_line(2.0, side * constant), **_quiet(), start=start, sign=side))


def _known_curve() -> CostEdge:
    """x⁺ = c − a cos ω(x − centre): no slope at the centre of the cell, all of the change is curvature."""
    frequency, centre = 0.5, 0.5 * CELL
    size = (1.0 + 3 * HAIR - NEAR) / (
        1.0 - math.cos(frequency * (NEAR - centre))
    )  # from x_0 = centre to NEAR and on to 1
    constant = NEAR + size
    known = SineKnown(
        torch.zeros(1, 1).double(), torch.zeros(1, 1).double(), vector(constant), vector(size).reshape(1, 1),
        vector(frequency, 0.0).reshape(1, 2), vector(-math.pi / 2 - frequency * centre),
    )  # fmt: skip
    return _program(make_edge(known, **_quiet(), start=vector(centre)))


def _averaged() -> CostEdge:
    """One noisy step whose mean is next to the edge of its sub-cell: the average must hold for all of the sub-cell."""
    mean, noise_std = 0.5 - 10 * TINY, 0.2
    found = make_edge(_line(0.0, mean), **_quiet(), start=vector(0.1), steps=1)
    return replace(_program(found, noise_std=noise_std), truth=_normal((mean - TINY - 1.0) / noise_std))


def _outside(side: float = 1.0, *, later: bool = False) -> CostEdge:
    """The first step (or the second) leaves the grid, and the plant stays outside: it costs 1 at every later step."""
    start, step = (-1.9, 2.5) if later else (0.0, 3.0)
    return _program(make_edge(_line(1.0, side * step), **_quiet(), start=vector(side * start), steps=4, sign=side))


def _stage() -> CostEdge:
    """The state ends in the unsafe corner of a cell whose centre is safe."""
    return _program(make_edge(_line(0.0, 0.9995), **_quiet(), start=vector(0.1), steps=1), threshold=0.999)


def _spilled() -> CostEdge:
    """One noisy step next to the end of the grid, beyond which it costs: what leaves the grid is charged."""
    mean, noise_std = 2.0 - 10 * TINY, 0.2
    found = make_edge(_line(0.0, mean), **_quiet(), start=vector(0.1), steps=1)
    return replace(_program(found, threshold=2.0, noise_std=noise_std), truth=_normal((mean - TINY - 2.0) / noise_std))


def _bent_input(curved: bool) -> CostEdge:
    """x⁺ = c + u, u clipped from below at the centre of a cell (or x⁺ = c − a cos u, u = x − centre): by the input alone."""
    centre, box = 0.5 * CELL, Box(vector(-9.0 if curved else 0.0), vector(9.0))
    gain = vector(1.0).reshape(1, 1, 1)
    policies = AffinePolicies(vector(-centre).reshape(1, 1), gain, box)
    rise = 1.0 + 3 * HAIR - NEAR  # from x_0 = centre, u = 0, to NEAR, and on to 1
    if not curved:
        known: AffineKnown | SineKnown = _line(0.0, NEAR, rise / (NEAR - centre))
    else:
        size = rise / (1.0 - math.cos(NEAR - centre))
        known = SineKnown(
            torch.zeros(1, 1).double(), torch.zeros(1, 1).double(), vector(NEAR + size), vector(-size).reshape(1, 1),
            vector(0.0, 1.0).reshape(1, 2), vector(math.pi / 2),
        )  # fmt: skip
    return _program(make_edge(known, **_quiet(), start=vector(centre), policies=policies))


def _tails() -> CostEdge:
    """x⁺ = x + w: two steps, two half-spaces, J = Σ_t 2Φ(−gap/σ√t)."""
    noise_std, gap = 0.1, 0.3
    found = make_edge(_line(1.0, 0.0), **_quiet(), start=vector(0.0))
    cost = IndicatorCost(vector(1.0, -1.0).reshape(2, 1), vector(gap, gap))
    bound = GaussianTube(task=Task(vector(0.0), 3, cost, 0.0, vector(noise_std)), width=8.0)
    truth = sum(2 * _normal(-gap / (noise_std * math.sqrt(t))) for t in (1, 2))
    return CostEdge(bound, found.confidence, found.policies, truth)


def _sure_part() -> CostEdge:
    """One noisy step without data: x_1 = B√k + w, and half the threshold is used up by what is not noise."""
    kernel, noise_std, gap = kernels.rbf(1.0, dims=(0,)), 0.1, 0.2
    f = attaining(kernel, _z(0.0), vector(1.0), 1.0)
    found = make_edge(_line(0.0, 0.0), (kernel,), (1.0,), None, (f,), vector(0.0), steps=1)
    cost = IndicatorCost(vector(1.0).reshape(1, 1), vector(1.0 + gap))
    bound = GaussianTube(task=Task(vector(0.0), 2, cost, 0.0, vector(noise_std)))
    return CostEdge(bound, found.confidence, found.policies, _normal((found.reached() - 1.0 - gap) / noise_std))


def _leaves_its_box() -> CostEdge:
    """x⁺ = a(1 − cos ωx) + w, a bend so sharp that it costs to leave the box ±κσ, and nothing else: J ≈ 2Φ(−κ)."""
    kappa, noise_std, size, frequency, threshold = 2.0, 0.01, 1000.0, 5.0, 5.05
    known = SineKnown(
        torch.zeros(1, 1).double(), torch.zeros(1, 1).double(), vector(size), vector(-size).reshape(1, 1),
        vector(frequency, 0.0).reshape(1, 2), vector(math.pi / 2),
    )  # fmt: skip
    found = make_edge(known, **_quiet(), start=vector(0.0))
    cost = IndicatorCost(vector(1.0).reshape(1, 1), vector(threshold))
    bound = GaussianTube(task=Task(vector(0.0), 3, cost, 0.0, vector(noise_std)), width=kappa)
    w = torch.linspace(-8.0, 8.0, 200_001, dtype=torch.float64)  # in σ: smooth at this spacing, so 1e-9 is generous
    weight = torch.exp(-0.5 * w.square()) / math.sqrt(2 * math.pi)
    exceed = torch.special.ndtr((size * (1.0 - torch.cos(frequency * noise_std * w)) - threshold) / noise_std)
    return CostEdge(bound, found.confidence, found.policies, float(torch.trapezoid(weight * exceed, w)) - 1e-9)


def _leaves_it_later() -> CostEdge:
    """Two states that forget, x⁺ = w, and one that does not, y⁺ = y + Σu + w: an input is 1 where one of the two is out of its
    box ±κσ, so that y costs from then on. J = Σ_t 1 − (1 − 2Φ(−κ))^{2(t−1)}.
    """
    kappa, horizon, noise_std, steep = 2.0, 10, vector(0.1, 0.1, 1e-3), 1e6
    edge = kappa * float(noise_std[0]) * (1 + 1e-6)
    into = torch.tensor([[0.0] * 4, [0.0] * 4, [1.0] * 4], dtype=torch.float64)
    known = AffineKnown(torch.diag(vector(0.0, 0.0, 1.0)), into, torch.zeros(3).double())
    model = GP.create(kernels.rbf(1.0), LAMBDA, nx=3, nu=4, noise_std=noise_std, outputs=(2,), prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=TINY, subgaussian=SUBGAUSSIAN, delta=0.1, unchecked=True)).update(
        model
    )
    sides = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=torch.float64)
    inputs = Box(torch.zeros(4).double(), torch.ones(4).double())
    policies = AffinePolicies(torch.full((1, 4), -steep * edge).double(), steep * sides.unsqueeze(0), inputs)
    cost = IndicatorCost(vector(0.0, 0.0, 1.0).reshape(1, 3), vector(0.5))
    bound = GaussianTube(task=Task(torch.zeros(3).double(), horizon, cost, 0.0, noise_std), width=kappa)
    inside = (1 - 2 * _normal(-(edge + 1 / steep) / float(noise_std[0]))) ** 2
    return CostEdge(bound, confidence, policies, sum(1 - inside ** (t - 1) for t in range(2, horizon)) - 1e-9)


def fewer_steps(factor: float) -> AbstractContextManager[object]:
    """The charge at t counts 1 + g(t − 2) steps at which ν may have left its box, in place of t − 1."""
    whole = GaussianTube.charge
    return mock.patch.object(
        GaussianTube, "charge", lambda tube, stage, t: whole(tube, stage, t if t < 2 else 2 + factor * (t - 2))
    )


def fewer_states(factor: float) -> AbstractContextManager[object]:
    """P(ν leaves its box) is that of 1 + g(nx − 1) states in place of nx."""
    whole = GaussianTube.failure.__get__

    def failure(tube: GaussianTube) -> float:
        number = tube.initial_state.numel()
        return whole(tube) * (1 + factor * (number - 1)) / number

    return mock.patch.object(GaussianTube, "failure", property(failure))


def _parting() -> CostEdge:
    """x⁺ = 3x after a first step of which F_n allows ±c: whether it ends above 0 decides all later costs.

    f depends on the input, which is −1 at x_0 and 1 later, where it is known. Under the centre model the first state has
    mean −c, under f* it has c, so that J(f*) − J(μ) is all that the lemma allows, but for the noise of later steps.
    """
    kernel, cap, noise_std, horizon = kernels.rbf(0.2, variance=1.0, dims=(1,)), 0.1, vector(0.1), 4
    f = attaining(kernel, torch.tensor([[0.0, -1.0]], dtype=torch.float64), vector(1.0), cap)
    # −1 at x_0 = −5, 1 above −1.9; then 3x − 7.5u + 7.5 = 3x
    policies = AffinePolicies(vector(20.0).reshape(1, 1), vector(10.0).reshape(1, 1, 1), Box(vector(-1.0), vector(1.0)))
    start = vector(-5.0 - 0.5 * cap / 3.0)
    seen = torch.tensor([[0.0, 1.0]] * 16, dtype=torch.float64)
    known = _line(3.0, 7.5, -7.5)
    found = make_edge(known, (kernel,), (cap,), seen, (f,), start, policies=policies)
    cost = IndicatorCost(vector(1.0).reshape(1, 1), vector(0.0))
    bound = TotalVariation(task=Task(start, horizon, cost, 0.0, noise_std), seed=7, samples=100_000, delta=0.01)
    mean, variance, truth = float(found.path(found.members[0])[1]), 0.0, 0.0
    for _ in range(
        horizon - 1
    ):  # x_t is Gaussian as long as the input stays 1: it leaves that with probability < 1e-60
        variance = 9.0 * variance + float(noise_std) ** 2
        truth += _normal(mean / math.sqrt(variance))
        mean *= 3.0
    return CostEdge(bound, found.confidence, found.policies, truth - 1e-9)


_MAKERS: Mapping[str, Callable[[], CostEdge]] = {
    "in a cell": lambda: _in_cell(0),
    "in a cell, by the input": lambda: _in_cell(1),
    "gradient": _gradient,
    "value": _value,
    "cap": _cap,
    "known slope": _known_slope,
    "known curve": _known_curve,
    "averaged": _averaged,
    "outside": _outside,
    "outside later": lambda: _outside(later=True),
    "outside below": lambda: _outside(-1.0),
    "known slope, below": lambda: _known_slope(-1.0),
    "stage": _stage,
    "spilled": _spilled,
    "clipped in a cell": lambda: _bent_input(False),
    "curved by input": lambda: _bent_input(True),
    "tails": _tails,
    "sure part": _sure_part,
    "failure": _leaves_its_box,
    "failure later": _leaves_it_later,
    "parting": _parting,
}
EDGES = tuple(_MAKERS)


@lru_cache(maxsize=len(_MAKERS))
def cost_edge(name: str) -> CostEdge:
    """The plant of this name, made once."""
    return _MAKERS[name]()
