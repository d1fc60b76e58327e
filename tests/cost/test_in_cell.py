"""Boxes of next means from posterior gradients: they hold every member of F_n, shrink with data, and broken ones are caught."""

import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from edge_members import edge_member
from hypothesis import given, settings
from hypothesis import strategies as st
from step_cases import Curved, draw

from gpsafe.confidence import ConfidenceSet, Constant, ConvexProgram, Mixture, functionals, members
from gpsafe.cost import in_cell
from gpsafe.cost.enclosure import Enclosure, enclose
from gpsafe.cost.grid import Grid
from gpsafe.cost.in_cell import InCell, Loop, turn
from gpsafe.cost.local_affine import Displacements, LocalAffine
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.data import Transitions
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.rkhs.functions import random_function
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task

KERNELS = {
    "rbf": lambda: kernels.rbf([0.8, 1.1, 1.5], 0.5),
    "matern-5/2": lambda: kernels.matern(2.5, [0.8, 1.1, 1.5], 0.5),
    "matern-3/2": lambda: kernels.matern(1.5, [0.8, 1.1, 1.5], 0.5),
}
B, NOISE = 2.0, 0.05


@lru_cache
def learned(name: str, seed: int, count: int = 30, parts: int = 3) -> tuple[ConfidenceSet, tuple[RKHSFunction, ...]]:
    """F_n of a plant with one learned output, in some generations, and members of it: the plant and extremal ones."""
    kernel, generator = KERNELS[name](), torch.Generator().manual_seed(seed)
    box = torch.tensor([1.0, 1.0, 1.0]).double()
    f = random_function(kernel, -box, box, num_centers=12, norm=B, generator=generator)
    known = AffineKnown(0.8 * torch.eye(2).double(), torch.tensor([[0.1], [0.3]]).double(), torch.zeros(2).double())
    model = GP.create(kernel, NOISE**2, nx=2, nu=1, noise_std=NOISE, outputs=(1,), prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=(B,), subgaussian=NOISE, delta=0.1)).update(model)
    for _ in range(parts):
        z = 2 * torch.rand(count // parts, 3, dtype=torch.float64, generator=generator) - 1
        y = known(z[:, :2], z[:, 2:])
        y[:, 1] += f(z) + NOISE * torch.randn(len(z), dtype=torch.float64, generator=generator)
        model = model.condition(Transitions(z[:, :2], z[:, 2:], y))
        confidence = confidence.update(model)
    return confidence, (f,)


def policies(rest: float = 0.0):
    loops = AffinePolicies(draw(6, 4, 1), 1.5 * draw(7, 4, 1, 2), Box(-torch.ones(1), 0.8 * torch.ones(1)))
    return Curved(loops, rest) if rest else loops


def cells(radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    return 0.7 * draw(8, 9, 2), radius * (0.3 + draw(9, 9, 2).abs().clamp_max(1.0))


def excess(cells_: Enclosure, confidence: ConfidenceSet, adversaries, count: int = 8) -> float:
    """Largest distance by which p + f leaves the boxes, over points of the cells, corners among them."""
    assert cells_.policies is not None and cells_.inner is not None and cells_.peak is not None
    generator, worst = torch.Generator().manual_seed(1), -math.inf
    low, high = cells_.boxes()
    model = confidence.model
    for k in range(count):
        s = 2 * torch.rand(cells_.centers.shape, dtype=torch.float64, generator=generator) - 1
        x = cells_.centers + (s if k % 2 else torch.sign(s)) * cells_.radius
        u = cells_.policies(x.unsqueeze(0))
        z = torch.cat([x.expand(len(u), *x.shape), u], -1)
        for f in adversaries:
            mean = model.prior(z[..., :2], u) + model.embed(f(z).unsqueeze(-1))
            worst = max(worst, float(torch.maximum(low - mean, mean - high).max()))
        worst = max(worst, float((model.posterior(z)[1] - cells_.peak).max()))
    return worst


def extremes(confidence: ConfidenceSet, cells_: Enclosure) -> list[RKHSFunction]:
    """Members of the ball and of the newest ellipsoid that are extreme at a corner of a cell, in value or in difference."""
    found = []
    for cell in (4,):
        x = cells_.centers[cell] + cells_.radius[cell]
        assert cells_.policies is not None
        z = torch.cat([x, cells_.policies(x[None, None])[1, 0]])
        for sign in (1.0, -1.0):
            found.append(members.extremal_member(confidence.bound, confidence.model, z, sign))
            both = torch.stack([z, cells_.z[1, cell]])
            found.append(
                members.extremal_member(confidence.bound, confidence.model, both, sign * torch.tensor([1.0, -1.0]))
            )
    return found


@settings(max_examples=4, deadline=None)
@given(
    st.sampled_from(sorted(KERNELS)), st.integers(0, 3), st.sampled_from([0.02, 0.1, 0.4]), st.sampled_from([0.0, 0.05])
)
def test_boxes_hold_every_member_and_are_within_the_old_ones(name, seed, radius, rest):
    confidence, plant = learned(name, seed)
    bare = enclose(*cells(radius), confidence, policies(rest))
    old, new = replace(bare, policies=None).refine(confidence), bare.refine(confidence)
    assert excess(new, confidence, plant) <= 1e-12
    for (a, b), (c, d) in zip([old.boxes()], [new.boxes()], strict=True):
        assert bool((c >= a).all()) and bool((d <= b).all()) and bool((c <= d).all())
    assert torch.equal(replace(new, inner=None).boxes()[0], old.boxes()[0])


@pytest.mark.parametrize("name", ["rbf", "matern-5/2"])
def test_members_reach_the_ends_so_that_a_smaller_box_is_caught(name, monkeypatch):
    confidence, _ = learned(name, 1)
    one = ConfidenceSet(confidence.bound, (confidence.model,))
    bare = enclose(*cells(0.05), one, policies())
    adversaries = extremes(one, bare)
    assert excess(bare.refine(one), one, adversaries) <= 1e-12
    whole = Loop.seminorm
    broken = {
        "deviation of the value": lambda self, gram, lean=None: (
            whole(self, gram, lean) * (1.0 if lean is None else 0.8)
        ),
        "no growth over the cell": lambda self, gram, lean=None: (
            whole(self, gram) if lean is None else lean[..., 0].clamp_min(0.0).sqrt()
        ),
    }
    for wrong in broken.values():
        monkeypatch.setattr(Loop, "seminorm", wrong)
        assert excess(bare.refine(one), one, adversaries) > 1e-6


def test_shared_anchors_cost_little_and_hold(monkeypatch):
    confidence, plant = learned("rbf", 2)
    axis = torch.linspace(-0.2, 0.2, 40, dtype=torch.float64)
    centers = torch.cartesian_prod(axis, axis)
    bare = enclose(centers, torch.full_like(centers, 0.005), confidence, policies())
    calls = []
    original = in_cell.jet
    monkeypatch.setattr(in_cell, "jet", lambda model, z: calls.append(len(z)) or original(model, z))
    shared = bare.refine(confidence)
    part = bare.select(torch.tensor([1, 3])).refine(confidence)
    for one, whole in zip(part.boxes(), shared.boxes(), strict=True):  # the lattice stands still
        torch.testing.assert_close(one, whole[[1, 3]], rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(in_cell, "SPACING", 1e-9)
    own = bare.refine(confidence)
    assert 4 * calls[0] <= calls[2] == 4 * 1600
    assert excess(shared, confidence, plant, 6) <= 1e-12 and excess(own, confidence, plant, 6) <= 1e-12
    width = [float((e.boxes()[1] - e.boxes()[0])[..., 1].mean()) for e in (own, shared)]
    assert width[0] <= width[1] <= 1.2 * width[0]


def test_with_data_the_slack_of_a_cell_shrinks():
    """The half-width over a cell beyond that at its centre, new against B d_k: less with more data."""
    share = []
    for count in (30, 300):
        confidence, _ = learned("rbf", 5, count)
        bare = enclose(*cells(0.02), confidence, policies())
        (found,) = InCell.of(confidence, bare.z, in_cell.Loop(bare.radius, *_slopes(bare)))
        at = torch.stack(confidence.bound.interval(confidence.model, bare.z))
        share.append(float(((found.half - 0.5 * (at[1] - at[0])) / bare.slack).median()))
    assert share[1] < 0.3 * share[0] and share[1] < 0.4


def _slopes(cells_: Enclosure):
    assert cells_.policies is not None
    gain, low, high = cells_.policies.slopes(
        (cells_.centers - cells_.radius)[None], (cells_.centers + cells_.radius)[None]
    )
    return gain.unsqueeze(1).expand(-1, len(cells_.centers), -1, -1), low, high, torch.zeros_like(low)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(KERNELS)), st.integers(0, 10**6))
def test_the_turn_of_a_derivative_is_bounded(name, seed):
    """‖∂_vφ_c − ∂_vφ_a‖ by the kernel's second derivatives, at any angle."""
    form = kernels.stationary(KERNELS[name]())
    assert form is not None
    generator = torch.Generator().manual_seed(seed)
    v, w = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    w = w * 10 ** float(-3 * torch.rand(1, generator=generator))
    delta, h = v / form.lengthscale, w / form.lengthscale

    def second(t):  # −∂_v∂_v k at distance w, by automatic differentiation
        return -form.variance * form.profile((h + t * delta).square().sum())

    at = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(second(at), at, create_graph=True)[0]
    inner = float(torch.autograd.grad(first, at)[0])
    curvature = form.variance * float(form.slope(torch.zeros((), dtype=torch.float64)) * delta.square().sum())
    exact = math.sqrt(max(2 * (curvature - inner), 0.0))
    assert exact <= float(turn(form, h.norm())) * float(delta.norm()) * (1 + 1e-6) + 1e-7


def test_bounds_that_say_nothing_of_gradients_change_nothing():
    confidence, _ = learned("rbf", 0)
    constant = ConfidenceSet(Constant(rkhs_norm=(B,), subgaussian=NOISE, delta=0.1, value=3.0), (confidence.model,))
    bare = enclose(*cells(0.1), constant, policies())
    assert bare.refine(constant).inner is None
    known = bare.refine(constant).with_residual(torch.zeros_like(bare.slack))
    assert known.inner is None and known.policies is None and known.refine(constant) is known


def test_a_part_of_the_policies_keeps_its_boxes():
    confidence, _ = learned("rbf", 0)
    whole = enclose(*cells(0.1), confidence, policies()).refine(confidence)
    part = whole.select(torch.tensor([2, 0]))
    for a, b in zip(part.boxes(), whole.boxes(), strict=True):
        assert torch.equal(a, b[[2, 0]])
    assert part.peak is not None and whole.peak is not None and torch.equal(part.peak, whole.peak[[2, 0]])


BOUND = ConvexProgram(rkhs_norm=(B,), subgaussian=NOISE, delta=0.1, method="table")


def program_set(name: str = "rbf", seed: int = 1) -> tuple[ConfidenceSet, RKHSFunction]:
    """The newest posterior of `learned`, with the convex program; the plant."""
    confidence, (plant,) = learned(name, seed, 150, 1)
    return ConfidenceSet(BOUND).update(confidence.model), plant


@pytest.mark.parametrize("name", ["rbf", "matern-3/2"])
def test_cells_hold_the_edge_and_are_within_those_of_one_band(name, monkeypatch):
    confidence, plant = program_set(name)
    bare = enclose(*cells(0.05), confidence, policies())
    several = bare.refine(confidence)
    x = bare.centers[4] + bare.radius[4]
    z = torch.cat([x, policies()(x[None, None])[1, 0]])
    both = torch.stack([z, bare.z[1, 4]])
    ways = [(z[None], s * torch.ones(1).double()) for s in (1, -1)]
    ways += [(both, s * torch.tensor([1.0, -1.0]).double()) for s in (1, -1)]
    adversaries = [plant, *(edge_member(BOUND, confidence.model, *way) for way in ways)]
    assert excess(several, confidence, adversaries) <= 1e-12
    monkeypatch.setattr(functionals, "MULTIPLIERS", ())
    one = bare.refine(confidence)
    (a, b), (c, d) = one.boxes(), several.boxes()
    assert bool((c >= a).all()) and bool((d <= b).all())
    assert name != "rbf" or float(((d - c) / (b - a))[..., 1].mean()) < 0.98
    monkeypatch.setattr(functionals, "MULTIPLIERS", (4.0, 16.0, 64.0))
    whole = ConvexProgram.beta_at
    monkeypatch.setattr(ConvexProgram, "beta_at", lambda self, model, ratio: 0.6 * whole(self, model, ratio))
    assert excess(bare.refine(confidence), confidence, adversaries) > 1e-6


def test_affine_ranges_hold_the_edge_and_are_within_those_of_one_band(monkeypatch):
    confidence, plant = program_set()
    anchors = 0.8 * draw(3, 12, 3)
    cross = Displacements(0.02 * draw(4, 12, 3), 0.05 * draw(5, 12, 3, 2), 0.01 * draw(6, 12, 3).abs())
    several = LocalAffine.at(confidence, anchors, multipliers=True)
    found, one = several.range_outer(cross), replace(several, further=()).range_outer(cross)
    assert bool((found.error <= one.error).all()) and float((found.error / one.error).mean()) < 0.97
    index = torch.tensor([[0, 3]])
    picked = LocalAffine.at(confidence, anchors[None], multipliers=True).gather(index)
    assert torch.equal(picked.further[1][1][0], several.further[1][1][[0, 3]])

    def leaves(local: LocalAffine, f: RKHSFunction) -> float:
        ranges, worst = local.range_outer(cross), -1.0
        for k in range(8):
            xi = torch.sign(draw(20 + k, 2))
            z = anchors + cross.offset + cross.generators @ xi + torch.sign(draw(40 + k, 12, 3)) * cross.error
            gap = (f(z).unsqueeze(-1) - ranges.value - ranges.linear @ xi).abs() - ranges.error
            worst = max(worst, float(gap.max()))
        return worst

    edge = [edge_member(BOUND, confidence.model, anchors[i : i + 1], torch.ones(1).double()) for i in range(4)]
    assert max(leaves(several, f) for f in (plant, *edge)) <= 1e-12
    small = replace(several, further=tuple((mean, 0.3 * cov) for mean, cov in several.further))
    assert max(leaves(small, f) for f in edge) > 1e-6


def test_bounds_of_cost_only_fall(monkeypatch):
    confidence, _ = program_set()
    cost = IndicatorCost(torch.tensor([[0.0, 1.0]]).double(), torch.tensor([0.8]).double())
    task = Task(torch.zeros(2).double(), 6, cost, 0.5, torch.full((2,), NOISE, dtype=torch.float64))
    grid = Grid(Box(-2 * torch.ones(2).double(), 2 * torch.ones(2).double()), (24, 24))
    bounds = (RobustDP(grid, task), ScenarioTube(task=task, seed=3, samples=64, anchors=4))
    after = [bound.evaluate(confidence, policies()).upper for bound in bounds]
    monkeypatch.setattr(functionals, "MULTIPLIERS", ())
    before = [bound.evaluate(confidence, policies()).upper for bound in bounds]
    assert bool((after[0] <= before[0]).all())
    assert all(float(a.sum()) < float(b.sum()) for a, b in zip(after, before, strict=True))
