"""Questions about regions are answered yes only where every point agrees, no only with a point that shows it."""

import math

import pytest
import torch
from torch import Tensor

from gpsafe import AffineKnown
from gpsafe.confidence import ConfidenceSet, ConvexProgram, Mixture, regions
from gpsafe.confidence.rounding import Rounding
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.sets import Box


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture(scope="module")
def confidence() -> ConfidenceSet:
    """x⁺ = A x + B u + residual, one of two states learned, data in the left half."""
    prior = AffineKnown(torch.tensor([[1.0, 0.1], [0.0, 0.9]]), torch.tensor([[0.0], [0.1]]), torch.zeros(2))
    kernel = kernels.rbf([0.9, 1.1, 1.4])
    model = GP.create(kernel, 1e-4, nx=2, nu=1, noise_std=0.01, outputs=[1], prior=prior)
    z = uniform(80, 3, seed=1)
    z[:, 0] = -z[:, 0].abs()
    y = 0.3 * torch.sin(2 * z[:, :1]) * z[:, 1:2]
    bound = Mixture(rkhs_norm=2.0, subgaussian=0.01, delta=0.1)
    half = model.condition_on(z[:40], y[:40])
    return ConfidenceSet(bound).update(half).update(half.condition_on(z[40:], y[40:]))


def pieces_of(lower: Tensor, upper: Tensor, count: int = 200) -> Tensor:
    return lower + (upper - lower) * (0.5 + 0.5 * uniform(count, *lower.shape, seed=5))


def next_states(confidence: ConfidenceSet, z: Tensor) -> tuple[Tensor, Tensor]:
    model = confidence.model
    low, high = confidence.bounds(z)
    known = model.prior(z[..., :2], z[..., 2:])
    return known + model.embed(low), known + model.embed(high)


def test_nothing_is_said_where_F_n_is_empty():
    """Data at 5 and B = 0.2: l_n = 4.9 and h_n = 0.2 are both "within" [−1, 1] on their side. It said yes, and so did ε."""
    known = AffineKnown(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1))
    model = GP.create(kernels.rbf([1.0, 1.0]), 1e-2, nx=1, nu=1, noise_std=0.1, prior=known)
    z = torch.stack([torch.linspace(-0.5, 0.5, 30), torch.zeros(30)], dim=1).double()
    told = model.condition_on(z, 5.0 + 0.1 * uniform(30, 1))
    confidence = ConfidenceSet(Mixture(rkhs_norm=0.2, subgaussian=0.1, delta=0.1)).update(model).update(told)
    box = torch.tensor([[-0.2, 0.0], [40.0, 0.0]]).double(), torch.tensor([[0.2, 0.0], [40.2, 0.0]]).double()
    assert confidence.empty(box[0]).tolist() == [True, False]
    odd = torch.tensor([[40.0, 0.0], [torch.nan, 0.0], [0.0, 0.0], [40.0, torch.nan]]).double()
    assert confidence.empty(odd).tolist() == [False, True, True, True]  # row by row: what is no number counts as empty
    for question in ({"within": Box([-1.0], [1.0])}, {"epsilon": 6.0}):
        answer = regions.certified(confidence, box, **question)
        assert answer.undecided.tolist() == [True, False] and answer.yes.tolist() == [False, True]
    reach = regions.largest(confidence, torch.zeros(2).double(), torch.tensor([1.0, 0.0]), within=Box([-1.0], [1.0]))
    assert float(reach.scale) == -1.0 and bool(reach.lower.isnan().all())
    line = torch.tensor([-60.0, 0.0]).double(), torch.tensor([62.0, 0.0]).double()  # empty inside alone, off the middle
    assert bool(confidence.empty(torch.zeros(2).double())) and not bool(
        regions.certified(confidence, line, within=Box([-1.0], [1.0])).yes
    )


def test_yes_holds_at_every_point_and_no_at_its_witness(confidence):
    lower = uniform(60, 3, seed=2)
    upper = lower + 0.4 * uniform(60, 1, seed=3).abs()
    model, within = confidence.model, Box([-0.9, -0.7], [0.9, 0.7])
    beta = confidence.bound.beta(model)
    z = pieces_of(lower, upper)
    accurate = regions.certified(confidence, (lower, upper), epsilon=0.2)
    width = beta * model.posterior(z)[1]
    assert bool((width[:, accurate.yes] <= 0.2).all())
    assert bool((beta * model.posterior(accurate.witness[accurate.no])[1] > 0.2).all())
    inside = regions.certified(confidence, (lower, upper), within=within)
    least, most = next_states(confidence, z)
    good = ((least >= within.lower) & (most <= within.upper)).all(-1)
    assert bool(good[:, inside.yes].all())
    least, most = next_states(confidence, inside.witness[inside.no])
    assert bool(((least < within.lower) | (most > within.upper)).any(-1).all())
    for answer in (accurate, inside):
        assert int(answer.yes.sum()) >= 5
        assert int(answer.no.sum()) >= 5
        assert int(answer.undecided.sum()) <= 3
        assert not bool((answer.yes & answer.no).any())
        points = answer.witness[answer.no]
        assert bool(((points >= lower[answer.no]) & (points <= upper[answer.no])).all())
        assert bool(answer.witness[~answer.no].isnan().all())
    both = regions.certified(confidence, (lower, upper), epsilon=0.2, within=within)
    assert torch.equal(both.yes, accurate.yes & inside.yes)
    assert bool((both.no == (accurate.no | inside.no)).all())


def test_the_known_part_is_enclosed_with_its_curvature():
    """x⁺ = x + sin-like curve: a linearisation alone would call the box safe."""

    class Curved:
        hessian_bound = torch.full((1, 1, 1), 8.0, dtype=torch.float64)

        def __call__(self, x: Tensor, u: Tensor) -> Tensor:
            return torch.cos(math.sqrt(8) * x)

    model = GP.create(kernels.rbf(1.0), 1e-2, nx=1, nu=0, noise_std=0.1, prior=Curved())
    model = model.condition_on(torch.zeros(1, 1), torch.zeros(1, 1))
    small = ConfidenceSet(Mixture(rkhs_norm=1e-3, subgaussian=0.1, delta=0.1)).update(model)
    box = torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)
    no = regions.certified(small, box, within=Box([-0.9], [1.1]))
    assert bool(no.no)
    assert abs(float(no.witness)) > 0.9
    assert bool(regions.certified(small, box, within=Box([-1.1], [1.1])).yes)
    few = regions.certified(small, box, within=Box([-1.0 - 1e-3], [1.1]), pieces=2)
    assert bool(few.undecided)


def test_answers_are_monotone_in_the_question(confidence):
    lower = uniform(30, 3, seed=7)
    upper = lower + 0.2
    last = torch.zeros(30, dtype=torch.bool)
    for epsilon in (0.05, 0.1, 0.3, 1.0, 50.0):
        found = regions.certified(confidence, (lower, upper), epsilon=epsilon)
        assert bool((found.yes | ~last).all())
        last = found.yes
    assert bool(last.all())


def test_the_largest_box_found_is_certified_and_no_larger_one_was(confidence):
    z, shape = 0.8 * uniform(12, 3, seed=8), torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    found = regions.largest(confidence, z, shape, epsilon=0.15, limit=1.0, rounds=8)
    held = found.scale >= 0
    assert 3 <= int(held.sum()) < 12
    assert bool(regions.certified(confidence, (found.lower[held], found.upper[held]), epsilon=0.15).yes.all())
    assert bool(found.lower[~held].isnan().all())
    torch.testing.assert_close(found.upper[held] - found.lower[held], 2 * found.scale[held, None] * shape)
    growing = held & (found.scale < 1)
    wider = (found.scale[growing] + 2**-7).unsqueeze(-1) * shape
    again = regions.certified(confidence, (z[growing] - wider, z[growing] + wider), epsilon=0.15)
    assert not bool(again.yes.any())
    whole = regions.largest(confidence, z[:2], shape, epsilon=50.0, limit=3.0)
    assert whole.scale.tolist() == [3.0, 3.0]


def test_boxes_without_sense_are_undecided_and_questions_without_sense_refused(confidence):
    lower = torch.tensor([[0.0, 0.0, 0.0], [math.nan, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    upper = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [0.1, math.inf, 0.1]], dtype=torch.float64)
    found = regions.certified(confidence, (lower, upper), epsilon=50.0)
    assert found.yes.tolist() == [True, False, False]
    assert not bool(found.no.any())
    box = Box(lower[0], upper[0])
    with pytest.raises(ValueError, match="expected epsilon or within, got neither"):
        regions.certified(confidence, box)
    with pytest.raises(ValueError, match="epsilon >= 0"):
        regions.certified(confidence, box, epsilon=-1.0)
    with pytest.raises(ValueError, match="within"):
        regions.certified(confidence, box, within=Box([0.0], [1.0]))
    free = GP.create(kernels.rbf(1.0), 1e-2, nx=1, nu=0, noise_std=0.1, prior=lambda x, u: x.sin())
    bound = Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)
    with pytest.raises(ValueError, match="hessian_bound"):
        regions.certified(ConfidenceSet(bound).update(free), Box([0.0], [1.0]), within=Box([0.0], [1.0]))
    program = ConvexProgram(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)
    known = GP.create(kernels.rbf(1.0), 1e-2, nx=1, nu=0, noise_std=0.1)
    with pytest.raises(ValueError, match="of the form mean ± beta·std"):
        regions.certified(ConfidenceSet(program).update(known), Box([0.0], [1.0]), within=Box([0.0], [1.0]))


def test_the_rounding_of_the_mean_is_part_of_its_accuracy():
    """λ = 1e-12: μ_n is known to 1.42 of what is computed, and "within 41.6" was proved where the interval is 42.5 wide."""
    generator = torch.Generator().manual_seed(60)
    z = 2 * torch.rand(60, 2, generator=generator, dtype=torch.float64) - 1
    y = torch.sin(3 * z[:, :1]) + 1e-6 * torch.randn(60, 1, generator=generator, dtype=torch.float64)
    model = GP.create([kernels.rbf([1.0, 1.0])], 1e-12, nx=1, nu=1, noise_std=1e-6).condition_on(z, y)
    confidence = ConfidenceSet(Mixture(rkhs_norm=5.0, subgaussian=1e-6, delta=0.1)).update(model)
    point = z[:1] + 0.01
    low, high = confidence.bound.interval(model, point)
    half, told = (
        float(high - low) / 2,
        Rounding.of(model).mean(model.prior_variance(point), model.prior_variance(point)),
    )
    for share, proved in ((0.5, False), (1.5, True)):
        epsilon = half + (share - 1) * float(told)
        assert bool(regions.certified(confidence, (point, point), epsilon=epsilon).yes[0]) is proved
