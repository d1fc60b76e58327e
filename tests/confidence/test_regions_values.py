"""Questions about regions: each part against its formula in loops, the halving against one box at a time."""

import math
from inspect import signature
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Mixture, ranges, regions
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.sets import Box

A = torch.tensor([[0.9, 0.3, -0.2], [0.1, 0.8, 0.4]], dtype=torch.float64)
BEND = torch.tensor(
    [
        [[0.3, 0.1, 0.0], [0.1, 0.0, 0.2], [0.0, 0.2, 0.4]],
        [[0.0, 0.0, 0.1], [0.0, 0.6, 0.0], [0.1, 0.0, 0.0]],
    ],
    dtype=torch.float64,
)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


class Curved:
    """p_i(z) = A_i z + ½ zᵀ B_i z."""

    hessian_bound = 2 * BEND

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        z = torch.cat([x, u], dim=-1)
        return z @ A.T + 0.5 * torch.einsum("...j,ijk,...k->...i", z, BEND, z)


class Local(Curved):
    """With curvature over boxes."""

    def hessian_over(self, low: Tensor, high: Tensor) -> Tensor:
        return BEND * (1 + low[:, 0].abs())[:, None, None, None] + 0 * high[:, 0, None, None, None]


class Bounded:
    """p(x, u) = arctan x."""

    hessian_bound = torch.ones(2, 3, 3, dtype=torch.float64)

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.atan(x)


def confidence_of(prior, n: int = 12) -> ConfidenceSet:
    """The second of two states is learned; two generations."""
    model = GP.create(kernels.rbf([0.9, 1.1, 1.4]), 1e-2, nx=2, nu=1, noise_std=0.1, outputs=[1], prior=prior)
    z = uniform(n, 3, seed=1)
    half = model.condition_on(z[: n // 2], 0.3 * torch.sin(2 * z[: n // 2, :1]))
    whole = half.condition_on(z[n // 2 :], 0.3 * torch.sin(2 * z[n // 2 :, :1]))
    return ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)).update(half).update(whole)


def quadratic(z: list[float]) -> list[float]:
    a, b = A.tolist(), BEND.tolist()
    return [
        sum(a[i][j] * z[j] for j in range(3))
        + 0.5 * sum(z[j] * b[i][j][k] * z[k] for j in range(3) for k in range(3))
        for i in range(2)
    ]  # fmt: skip


def slopes(z: list[float]) -> list[list[float]]:
    return [[A[i, j].item() + sum(BEND[i, j, k].item() * z[k] for k in range(3)) for j in range(3)] for i in range(2)]


@pytest.mark.parametrize("prior", [Curved(), Local()])
def test_the_known_part_is_its_linearisation_and_half_its_curvature(prior, monkeypatch):
    monkeypatch.setattr(regions, "GROW", 0.01)
    model = confidence_of(prior).model
    low = uniform(5, 3, seed=2)
    high = low + uniform(5, 3, seed=3).abs()
    middle, half = regions._known_over(model, prior, low, high)
    for n in range(5):
        center, radius = ((low + high) / 2)[n].tolist(), ((high - low) / 2)[n].tolist()
        curve = (BEND * (1 + abs(float(low[n, 0]))) if isinstance(prior, Local) else 2 * BEND).tolist()
        steep = slopes(center)
        assert middle[n].tolist() == pytest.approx(quadratic(center))
        for i in range(2):
            expected = sum(abs(steep[i][j]) * radius[j] for j in range(3))
            expected += 0.5 * sum(radius[j] * curve[i][j][k] * radius[k] for j in range(3) for k in range(3))
            terms = abs(float(middle[n, i])) + sum(
                abs(s) * (abs(c) + r) for s, c, r in zip(steep[i], center, radius, strict=True)
            )
            assert float(half[n, i]) == pytest.approx(1.01 * expected + 0.01 * terms, rel=1e-12)
    monkeypatch.setattr(regions, "GROW", 0.0)
    eps = 2.0**-52
    ends = (
        torch.tensor([[1.0] * 3, [1 + eps] * 3]).double(),
        torch.tensor([[1 + 3 * eps] * 3, [1 + 4 * eps] * 3]).double(),
    )
    ends = ends[0] + 0.0, ends[1] + 0.0
    if isinstance(prior, Curved):
        far = regions._known_over(model, prior, *ends)[1]
        steep = torch.tensor(slopes([1 + 2 * eps] * 3)).abs().sum(-1)
        assert far.flatten().tolist() == pytest.approx((2 * eps * steep).repeat(2).tolist(), rel=1e-5)


def test_axes_reach_by_length_scales_and_slopes():
    model = confidence_of(Curved()).model
    low = uniform(4, 3, seed=2)
    high = low + torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    high[1, 2] = low[1, 2]
    found = regions._reach(model, Curved(), low, high)
    for n in range(4):
        steep = slopes(((low + high) / 2)[n].tolist())
        for j, scale in enumerate((0.9, 1.1, 1.4)):
            weight = 1 / scale + max(abs(steep[i][j]) for i in range(2))
            radius = float(high[n, j] - low[n, j]) / 2
            assert float(found[n, j]) == pytest.approx(radius * weight if radius > 0 else -1.0)


def between(model: GP, low: float, high: float) -> ConfidenceSet:
    """A band of one output that is the same everywhere."""
    own = SimpleNamespace(
        model=model,
        bounds=lambda z: (low + 0 * z[..., :1], high + 0 * z[..., :1]),
        empty=lambda z: torch.full(z.shape[:-1], low > high),
    )
    return cast(ConfidenceSet, own)


def test_points_leave_where_the_band_ends_outside_by_more_than_rounding():
    """X touches the ends of the band at one point: from there on, side by side and state by state."""
    model = confidence_of(Curved()).model
    z = uniform(3, 2, 3, seed=4)
    confidence = between(model, -0.25, 0.5)
    known = torch.tensor([[quadratic(p) for p in row] for row in z.tolist()], dtype=torch.float64)
    low, high = known - torch.tensor([0.0, 0.25]), known + torch.tensor([0.0, 0.5])
    for i in range(2):
        for shift, leaves in ((0.0, False), (2e-10, False), (3e-9, True), (0.1, True)):
            for side in (0, 1):
                lower, upper = low[1, 1] - 10, high[1, 1] + 10
                lower[i], upper[i] = (low[1, 1, i] + shift, 1e3) if side == 0 else (-1e3, high[1, 1, i] - shift)
                found = regions._leaves(confidence, z, Box(lower, upper))
                assert bool(found[1, 1]) == leaves
                room = 1e-9 * (known.abs() + torch.tensor([0.0, 0.5]))
                assert torch.equal(found, ((low < lower - room) | (high > upper + room)).any(-1))
    center = quadratic([2.0, 1.0, 2.0])  # the room grows with the known part
    point = torch.tensor([[[2.0, 1.0, 2.0]]], dtype=torch.float64)
    for shift, leaves in ((0.9, False), (1.1, True)):
        edge = center[0] + shift * 1e-9 * abs(center[0])
        assert bool(regions._leaves(confidence, point, Box([2 * center[0] - edge, -99.0], [99.0, 99.0]))) is False
        assert bool(regions._leaves(confidence, point, Box([edge, -99.0], [99.0, 99.0]))) == leaves

    def parted(z: Tensor) -> tuple[Tensor, Tensor]:
        """Empty at every second point: nothing is known to leave from there."""
        return 0 * z[..., :1] + torch.tensor([[0.5], [-0.25]]).double(), 0 * z[..., :1] + torch.tensor([[-0.25], [0.5]])

    half = cast(ConfidenceSet, SimpleNamespace(model=model, bounds=parted))
    found = regions._leaves(half, z, Box([-1e-3] * 2, [1e-3] * 2))
    assert found.tolist() == [[False, True]] * 3


class Padded(Mixture):
    """With a slack."""

    def slack(self, model: GP) -> Tensor:
        return torch.tensor([0.02, 0.05], dtype=torch.float64)

    def beta(self, model: GP) -> Tensor:
        return torch.tensor([1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("slack", [False, True])
def test_accuracy_is_the_half_width_at_its_largest(slack, monkeypatch):
    monkeypatch.setattr(regions, "GROW", 0.01)
    family = [kernels.rbf([0.9, 1.1]), kernels.matern(2.5, 0.8, 0.5)]
    z = uniform(10, 2, seed=1)
    model = GP.create(family, 1e-2, nx=2, nu=0, noise_std=0.1).condition_on(z, 0.3 * z)
    bound = (Padded if slack else Mixture)(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)
    confidence = ConfidenceSet(bound).update(model)
    low = uniform(6, 2, seed=2)
    high = low + 0.2 * uniform(6, 2, seed=3).abs()
    std, beta = ranges.std(model, (low, high)), bound.beta(model)
    added = torch.tensor([0.02, 0.05] if slack else [0.0, 0.0], dtype=torch.float64)
    above, below = 1.01 * (beta * std.upper + added), 0.99 * (beta * std.attained_high + added)
    for n in range(6):
        for factor in (0.9, 0.999999, 1.000001):
            epsilon = factor * above[n]
            found = regions.certified(confidence, (low, high), epsilon=epsilon)
            assert found.yes.tolist() == (above <= epsilon).all(-1).tolist()
            assert found.no.tolist() == (below > epsilon).any(-1).tolist()
        epsilon = below[n] * torch.tensor([0.9, 1.1] if n % 2 else [0.99, 0.9], dtype=torch.float64)
        found = regions.certified(confidence, (low[n], high[n]), epsilon=epsilon)
        excess = torch.where(below[n] > epsilon, below[n] - epsilon, -torch.inf)
        assert bool(found.no)
        assert torch.equal(found.witness, std.argmax[n, int(excess.argmax())])
    edge = regions.certified(confidence, (low, high), epsilon=below.amax())
    assert not bool(edge.no.any())


def fake_band(confidence, box, *, tol, cells):
    """A band over a box of the second state: ±0.1, and more with the size and place of the box."""
    assert (tol, cells) == (0.1, 256)
    low, high = box
    size = 0.3 * (high - low).sum(-1, keepdim=True)
    points = 0.55 * low + 0.45 * high, 0.4 * low + 0.6 * high
    return SimpleNamespace(
        lower=-0.2 - size + 0.1 * low[:, :1], upper=0.2 + size + 0.1 * high[:, 1:2],
        argmin=points[0].unsqueeze(1), argmax=points[1].unsqueeze(1),
    )  # fmt: skip


def one_by_one(confidence, known, low, high, within, pieces):
    """Whether a box is inside, whether a point of it is not, which, and how many parts it took."""
    model, queue, used = confidence.model, [(low, high)], 0
    no = given_up = False
    witness = torch.full_like(low, torch.nan)
    while queue:
        used, open_parts = used + len(queue), []
        for a, b in queue:
            band = fake_band(confidence, (a[None], b[None]), tol=0.1, cells=256)
            middle, half = regions._known_over(model, known, a[None], b[None])
            least, most = (middle - half)[0], (middle + half)[0]
            least[1], most[1] = least[1] + band.lower[0, 0], most[1] + band.upper[0, 0]
            size = (middle.abs() + half)[0]
            size[1] += max(abs(float(band.lower)), abs(float(band.upper)))
            least, most = least - regions.GROW * size, most + regions.GROW * size
            if bool((least >= within.lower).all() and (most <= within.upper).all()):
                continue
            open_parts.append((a, b))
        for a, b in queue:
            band = fake_band(confidence, (a[None], b[None]), tol=0.1, cells=256)
            for point in (0.5 * a + 0.5 * b, band.argmin[0, 0], band.argmax[0, 0]):
                if not no and bool(regions._leaves(confidence, point[None, None], within)):
                    no, witness = True, point
        given_up = given_up or any(used >= pieces or bool((a == b).all()) for a, b in open_parts)
        left, right = [], []
        for a, b in open_parts if not (no or given_up) else []:
            axis = int(regions._reach(model, known, a[None], b[None])[0].argmax())
            first, second = b.clone(), a.clone()
            first[axis] = second[axis] = 0.5 * a[axis] + 0.5 * b[axis]
            left.append((a, first))
            right.append((second, b))
        queue = left + right
    return not (no or given_up), no, witness, used


@pytest.mark.parametrize(("pieces", "grow"), [(1, 1e-12), (9, 1e-12), (20, 0.01)])
def test_halving_of_many_boxes_is_halving_one_by_one(pieces, grow, monkeypatch):
    monkeypatch.setattr(regions, "GROW", grow)
    monkeypatch.setattr(ranges, "band", fake_band)

    confidence, known = between(confidence_of(Curved()).model, -0.1, 0.1), Curved()
    low = 0.6 * uniform(16, 3, seed=5) - 0.2
    high = low + 0.5 * uniform(16, 3, seed=6).abs()
    high[0], high[1, 0] = low[0], low[1, 0]
    low[2] = high[2] = 0.65
    within = Box([-0.8, -0.8], [0.8, 0.8])
    found = regions._inside(confidence, known, low.clone(), high.clone(), within, pieces)
    counts = []
    for n in range(16):
        yes, no, witness, used = one_by_one(confidence, known, low[n], high[n], within, pieces)
        assert (bool(found.yes[n]), bool(found.no[n])) == (yes, no)
        torch.testing.assert_close(found.witness[n], witness, rtol=0, atol=0, equal_nan=True)
        counts.append(used)
    assert found.yes.any() and found.no.any() and (pieces > 1 or bool((~(found.yes | found.no)).any()))
    assert pieces == 1 or max(counts) > 4


def test_the_next_state_grows_by_the_rounding_at_each_of_its_ends(monkeypatch):
    """X ends where the grown next state does, on either side of 0; a hair less at one end is no longer enough."""
    monkeypatch.setattr(regions, "GROW", 0.01)
    monkeypatch.setattr(ranges, "band", fake_band)
    confidence, known = between(confidence_of(Curved()).model, -0.1, 0.1), Curved()
    for start, sign in ((0.9, 1.0), (-0.9, -1.0)):
        low = torch.full((1, 3), start, dtype=torch.float64)
        high = low + torch.tensor([[0.01, 0.02, 0.03]], dtype=torch.float64)
        band = fake_band(confidence, (low, high), tol=0.1, cells=256)
        middle, half = regions._known_over(confidence.model, known, low, high)
        least, most = (middle - half)[0].tolist(), (middle + half)[0].tolist()
        least[1], most[1] = least[1] + float(band.lower), most[1] + float(band.upper)
        assert all(sign * v > 0.1 for v in (*least, *most))
        size = (middle.abs() + half)[0].tolist()
        size[1] += max(abs(float(band.lower)), abs(float(band.upper)))
        ends = [v - 0.01 * s for v, s in zip(least, size, strict=True)]
        ends += [v + 0.01 * s for v, s in zip(most, size, strict=True)]
        for moved in (None, 0, 1, 2, 3):
            by = [(-1e-9 if i < 2 else 1e-9) * (-1 if i == moved else 1) for i in range(4)]
            X = Box([ends[i] + by[i] for i in (0, 1)], [ends[i] + by[i] for i in (2, 3)])
            found = regions._inside(confidence, known, low.clone(), high.clone(), X, pieces=1)
            assert bool(found.yes) == (moved is None) and not bool(found.no)


def test_questions_are_asked_in_turn_and_boxes_without_sense_not_at_all():
    confidence = confidence_of(Curved())
    low, high = torch.zeros(6, 3).double(), torch.full((6, 3), 0.1).double()
    low[1, 0], high[2, 1], low[3, 2], low[4, 0] = -math.inf, math.inf, 0.2, math.nan
    low[5] = high[5] = 0.05
    questions: tuple[dict[str, Any], ...] = ({"epsilon": 50.0}, {"within": Box([-9.0] * 2, [9.0] * 2)})
    for question in questions:
        found = regions.certified(confidence, (low, high), **question)
        assert found.yes.tolist() == [True, False, False, False, False, True] and not bool(found.no.any())
        assert found.undecided.tolist() == [False, True, True, True, True, False]
    found = regions.certified(confidence, (low, high), within=Box([8.0] * 2, [9.0] * 2))
    assert found.no.tolist() == [True, False, False, False, False, True] and found.witness[1:5].isnan().all()
    rows, away = (low.reshape(2, 3, 3), high.reshape(2, 3, 3)), Box([8.0] * 2, [9.0] * 2)
    shaped = regions.certified(confidence, rows, epsilon=50.0, within=away)
    assert shaped.no.shape == (2, 3) and torch.equal(shaped.no.flatten(), found.no) and not bool(shaped.yes.any())
    assert torch.equal(shaped.witness.reshape(6, 3)[5], found.witness[5])
    first = regions.certified(confidence, (low, high), epsilon=1e-6, within=Box([-9.0] * 2, [9.0] * 2))
    assert first.no.tolist() == found.no.tolist() and not bool(first.yes.any())
    assert torch.equal(first.witness[5], low[5])
    one = regions.certified(confidence, Box([0.0] * 3, [0.1] * 3), epsilon=50.0)
    assert one.yes.shape == () and bool(one.yes) and one.witness.shape == (3,)
    arctan = confidence_of(Bounded())  # whose next state at −∞ is a number outside X
    far = regions.certified(arctan, (low[1:2], high[1:2]), within=away)
    assert far.undecided.tolist() == [True] and bool(far.witness.isnan().all())
    questions = {"epsilon": [0.1, 0.1]}, {"within": Box([0.0], [1.0])}, {"epsilon": 1.0, "pieces": 0}
    for bad in questions:
        with pytest.raises(ValueError, match=r"regions.certified: expected"):
            regions.certified(confidence, (low, high), **bad)
    assert regions.GROW == 1e-12
    defaults = [signature(ask).parameters["pieces"].default for ask in (regions.certified, regions.largest)]
    assert defaults == [64, 64]


def test_the_largest_box_is_found_by_bisection(monkeypatch):
    """With `certified` saying yes to scales up to a number of each point: which scales are tried, and which is returned."""
    edges, asked = torch.tensor([-1.0, 0.0, 0.3, 0.77, 5.0]).double(), []
    step = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    z = torch.arange(5.0)[:, None].double() * torch.tensor([10.0, 1.0, 1.0]).double()
    confidence = confidence_of(Curved())

    def certified(of, box, **options):
        assert of is confidence and options == {"epsilon": 0.1, "within": None, "pieces": 7}
        middle = (box[0] + box[1]) / 2
        scale = (box[1] - box[0])[:, 0] / 2
        torch.testing.assert_close(box[1] - middle, scale[:, None] * step)
        which = (middle[:, 0] / 10).round().long()
        asked.extend(zip(which.tolist(), scale.tolist(), strict=True))
        return SimpleNamespace(yes=scale <= edges[which])

    monkeypatch.setattr(regions, "certified", certified)
    found = regions.largest(confidence, z.reshape(5, 1, 3), step, epsilon=0.1, limit=2.0, rounds=4, pieces=7)
    assert found.scale.tolist() == [[-1.0], [0.0], [0.25], [0.75], [2.0]]
    tried = {n: [round(s, 9) for k, s in asked if k == n] for n in range(5)}
    assert tried == {
        0: [0.0], 1: [0.0, 2.0, 1.0, 0.5, 0.25, 0.125], 2: [0.0, 2.0, 1.0, 0.5, 0.25, 0.375],
        3: [0.0, 2.0, 1.0, 0.5, 0.75, 0.875], 4: [0.0, 2.0],
    }  # fmt: skip
    assert bool(found.lower[0].isnan().all() and found.upper[0].isnan().all())
    for n in range(1, 5):
        torch.testing.assert_close(found.lower[n, 0], z[n] - found.scale[n, 0] * step)
        torch.testing.assert_close(found.upper[n, 0], z[n] + found.scale[n, 0] * step)
    refused: tuple[dict[str, Any], ...] = ({"limit": 0.0}, {"rounds": 0})
    for bad in refused:
        with pytest.raises(ValueError, match=r"regions.largest: expected"):
            regions.largest(confidence, z, step, epsilon=0.1, **bad)
    with pytest.raises(ValueError, match="shape"):
        regions.largest(confidence, z, -step, epsilon=0.1)


def test_a_witness_is_a_point_at_which_the_set_is_not_empty():
    """Two outputs: one whose ends cross says nothing of f; ends that meet say all of it."""
    low = torch.tensor([[[0.0, 0.0], [2.0, 1.0], [1.0, 2.0], [0.5, 5.0]]]).double()
    high = torch.tensor([[[0.5, 5.0], [3.0, 0.5], [0.5, 1.5], [0.5, 5.0]]]).double()
    model = SimpleNamespace(nx=2, prior=lambda x, u: 0.0 * x, embed=lambda value: value)
    confidence = SimpleNamespace(model=model, bounds=lambda z: (low, high))
    found = regions._leaves(cast(Any, confidence), torch.zeros(1, 4, 2).double(), Box([-1.0, -1.0], [1.0, 1.0]))
    assert found.tolist() == [[True, False, False, True]]
