"""Maps refined where it helps: bounds tighten, hold the truth, and wait for data where data are what is wanted."""

import itertools

import pytest
import torch
from scipy.stats import beta

from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.multilevel import Multilevel
from gpsafe.cost.partition import Partition
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.policies.rollout import closed_loop
from gpsafe.rkhs import kernels
from gpsafe.safety import CertifiedMap, certified_map
from gpsafe.sets import Box
from gpsafe.systems.base import IndicatorCost, sample_noise
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task

STEPS = 5
CELLS = {1: 16, 2: 8, 3: 6}
DEEPEST = {1: 256, 2: 64, 3: 12}


def plant(nx: int, norm: float = 1e-9):
    """x⁺ = A x + u + w, a contraction that turns; safe is x_1 ≤ 0.5; two policies. `norm` of a residual that is nothing."""
    eye = torch.eye(nx, dtype=torch.float64)
    turned = 0.8 * eye + 0.15 * (torch.diag(torch.ones(nx - 1).double(), 1) if nx > 1 else 0.0)
    std = vector(0.1, 0.12, 0.2)[:nx]
    known = AffineKnown(turned, eye[:, :1], torch.zeros(nx).double())
    model = GP.create(kernels.rbf([1.0] * (nx + 1)), 1e-4, nx=nx, nu=1, noise_std=std, prior=known)
    confidence = ConfidenceSet(Mixture(rkhs_norm=norm, subgaussian=0.2, delta=0.1)).update(model)
    gains = torch.zeros(2, 1, nx, dtype=torch.float64)
    policies = AffinePolicies(vector(0.05, -0.02).reshape(2, 1), gains, Box(vector(-1.0), vector(1.0)))
    task = Task(torch.zeros(nx).double(), STEPS, IndicatorCost(eye[:1], vector(0.5)), 0.1, std)
    return known, confidence, policies, task


def first_map(nx: int, norm: float = 1e-9, *, reach: bool = False, cells: int | None = None) -> CertifiedMap:
    _, confidence, policies, task = plant(nx, norm)
    sides = torch.ones(nx, dtype=torch.float64)
    goal = Box(-0.4 * sides, 0.1 * sides) if reach else None
    grid = Grid(Box(-2.0 * sides, 1.6 * sides), (cells or CELLS[nx],) * nx, (2,) * nx)
    return certified_map(confidence, policies, task, grid, goal=goal)


def points(found: CertifiedMap, count: int, seed: int) -> torch.Tensor:
    box, g = found.partition.grid.box, torch.Generator().manual_seed(seed)
    return box.lower + (box.upper - box.lower) * torch.rand(count, box.dim, dtype=torch.float64, generator=g)


def loosened(before: CertifiedMap, after: CertifiedMap) -> int:
    """Places and policies at which a bound of `after` says less than that of `before`."""
    x = points(before, 3000, 1)
    (low, high), (lower, upper) = before.at(x), after.at(x)
    return int(((lower < low) | (upper > high)).sum())


def refuted(found: CertifiedMap, seed: int, *, runs: int = 2000, starts: int = 40, level: float = 1e-6) -> int:
    """States and policies at which runs of the plant contradict a bound (Clopper–Pearson)."""
    known, _, policies, task = plant(found.task.nx)
    wrong = 0
    for i, start in enumerate(points(found, starts, seed)):
        noise = sample_noise(task.noise_std, (STEPS - 1, 1, runs), torch.Generator().manual_seed(seed + i))
        states, _ = closed_loop(known, policies, start, noise)
        safe = (task.cost(states) == 0).cumprod(-1).bool()
        happened = safe.all(-1)
        if found.goal is not None:
            there = ((states >= found.goal.lower) & (states <= found.goal.upper)).all(-1)
            happened = (there & safe).any(-1)
        for k, a, b in zip(
            happened.sum(-1).tolist(), *(end[:, 0].tolist() for end in found.at(start[None])), strict=True
        ):
            most = beta.ppf(1 - level, k + 1, runs - k) if k < runs else 1.0
            least = beta.ppf(level, k, runs - k + 1) if k else 0.0
            wrong += a > most or b < least
    return wrong


@pytest.mark.parametrize("reach", [False, True])
@pytest.mark.parametrize("nx", [1, 2, 3])
def test_a_refined_map_is_tighter_holds_the_plant_and_is_uneven(nx, reach):
    coarse = first_map(nx, reach=reach)
    found = coarse.refined(tolerance=0.02, cells=DEEPEST[nx])
    assert loosened(coarse, found) == 0 and refuted(found, 3) == 0
    assert loosened(found, coarse) > 0  # the control: coarse bounds do say less
    assert len(found.partition.level.unique()) > 1
    assert float(found.mean(found.gap).mean()) < (0.7 if nx < 3 else 0.9) * float(coarse.mean(coarse.gap).mean())
    again = found.refined(tolerance=0.02, cells=DEEPEST[nx])
    assert again is found


def test_control_bounds_that_are_handed_to_other_halves_are_caught(monkeypatch):
    honest = Partition.halved

    def broken(self, where):
        made, source = honest(self, where)
        return made, source.flip(0)

    monkeypatch.setattr(Partition, "halved", broken)
    coarse = first_map(2)
    found = coarse.refined(tolerance=0.02, cells=16)
    assert refuted(found, 3) > 0


@pytest.mark.parametrize("reach", [False, True])
def test_the_bounds_are_the_two_recursions_on_the_leaves_and_those_of_the_parents(reach):
    coarse = first_map(1, 0.05, reach=reach)
    found = coarse.refined(tolerance=0.02, cells=32)
    where = torch.minimum(coarse.gap, coarse.by_cells()).amax(0) > 0.02
    partition, source = coarse.partition.halved(where)
    assert torch.equal(found.partition.boxes()[0], partition.boxes()[0]) and 0 < int(where.sum()) < len(where)
    task, (centers, radius) = found.task, partition.boxes()
    left, right = (centers - radius)[:, 0], (centers + radius)[:, 0]
    meets, inside = right > 0.5, left > 0.5
    goal = found.goal or Box(vector(9.0), vector(9.0))
    touches = (right >= goal.lower) & (left <= goal.upper) & ~inside
    within = (left >= goal.lower) & (right <= goal.upper) & ~meets
    step = Multilevel.build(partition, task.noise_std, found.cells.low, found.cells.high)
    ends = []
    for yes, no, last in ((meets, within, float(reach)), (touches, inside, float(not reach))):
        value = torch.full((2, partition.num), last, dtype=torch.float64)
        for t in range(STEPS):
            value = value if t == 0 else step(value, 1.0)
            value = torch.where(yes, 1.0, torch.where(no, 0.0, value))
        ends.append(value)
    lower, upper = (1 - ends[0] - 1e-9).clamp_min(0), (ends[1] + 1e-9).clamp_max(1)
    torch.testing.assert_close(found.lower, torch.maximum(lower, coarse.lower[:, source]), rtol=0, atol=1e-14)
    torch.testing.assert_close(
        found.upper, torch.minimum(upper, coarse.upper[:, source]).maximum(found.lower), rtol=0, atol=1e-14
    )
    assert bool((found.upper < coarse.upper[:, source]).any()) and bool((found.lower > coarse.lower[:, source]).any())


def test_boxes_of_halves_are_those_of_cells_of_their_own():
    coarse = first_map(2, 0.05)
    found = coarse.refined(tolerance=0.02, cells=16)
    whole = first_map(2, 0.05, cells=16)
    fine = found.partition.level == 1
    same = whole.partition.index(found.partition.boxes()[0][fine])
    for name in ("low", "high", "middle_low", "middle_high"):
        ours, theirs = (getattr(map_.cells, name) for map_ in (found, whole))
        torch.testing.assert_close(ours[:, fine], theirs[:, same], rtol=1e-12, atol=1e-12)
    kept = coarse.partition.index(found.partition.boxes()[0][~fine])
    assert torch.equal(found.cells.low[:, ~fine], coarse.cells.low[:, kept])


def test_it_is_as_tight_as_a_grid_of_the_smallest_cells_but_for_the_tolerance():
    whole = first_map(2, cells=64)
    found = first_map(2).refined(tolerance=0.01, cells=64)
    assert found.partition.num < 0.75 * whole.partition.num
    difference = float((found.mean(found.gap) - whole.mean(whole.gap)).max())
    assert -0.01 < difference < 0.01


def test_it_says_why_a_gap_is_left_and_does_not_halve_where_data_are_missing():
    known, unknown = first_map(1, cells=64), first_map(1, 0.4, cells=64)
    assert float(unknown.gap.max()) > 0.9
    assert float(unknown.reducible(0.05).double().mean()) < 0.5 * float((unknown.gap > 0.05).double().mean())
    assert known.refined(tolerance=1.0).why_open(1.0) == "no gap exceeds 1"
    words = unknown.why_open(0.05)
    wide = 100 * float(unknown.mean((unknown.gap > 0.05).double()).mean())
    small = 100 * float(unknown.mean(unknown.reducible(0.05).double()).mean())
    assert words.startswith(f"the gap exceeds 0.05 on {wide:.3g} % of the grid: on {small:.3g} % smaller cells")
    assert f"on {wide - small:.3g} % more data" in words
    waits = unknown.refined(tolerance=0.05, cells=256)
    eager = known.refined(tolerance=0.05, cells=256)
    left = [float(map_.mean(map_.reducible(0.05).double()).mean()) for map_ in (known, eager)]
    assert left[1] < 0.5 * left[0] and waits.partition.num < 200


def test_smaller_cells_take_off_no_more_than_the_smallest_and_none_take_off_nothing():
    """The estimate grows with the number of cells that may be had, up to that of any number."""
    found = first_map(1, 0.1)
    estimates = [found.by_cells(cells) for cells in (16, 64, 256, None)]
    assert float(estimates[0].max()) < 1e-8
    for fewer, more in itertools.pairwise(estimates):
        assert bool((fewer <= more).all()) and float((more - fewer).max()) > 1e-4


def test_an_average_over_the_grid_is_by_volume():
    """Of 1: 1. Of 1 on the leaves in a half of the box: ½, however many leaves there are."""
    found = first_map(2).refined(tolerance=0.02, cells=64)
    centers, _ = found.partition.boxes()
    ones = torch.ones(1, found.partition.num, dtype=torch.float64)
    left = (centers[:, 0] < found.partition.grid.box.center[0]).double().unsqueeze(0)
    assert float(found.mean(ones)[0]) == pytest.approx(1.0, rel=1e-12)
    assert float(found.mean(left)[0]) == pytest.approx(0.5, rel=1e-12) and abs(float(left.mean()) - 0.5) > 0.02
