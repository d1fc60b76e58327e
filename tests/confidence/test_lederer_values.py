"""The Bayesian comparator equals its formula, output by output; where it does not hold it refuses."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from gpsafe.assumptions import Assumption
from gpsafe.confidence import Lederer
from gpsafe.confidence.lederer import covering_number, sample_path_lipschitz
from gpsafe.models import GP
from gpsafe.rkhs import kernels
from gpsafe.sets import Box

tensor = partial(torch.tensor, dtype=torch.float64)
DELTA, EDGES, TAU, COUNT = 0.06, (0.5, 2.0), 0.03, 9
SCALES, VARIANCES, LAMBDAS = ((0.5, 0.75), (1.5, 0.25)), (1.25, 2.0), (0.04, 0.09)
BOUND = Lederer(delta=DELTA, lower=(1.0, -1.0), upper=(1.5, 1.0), grid_radius=TAU)


@pytest.fixture(scope="module")
def model():
    g = torch.Generator().manual_seed(1)
    pair = [kernels.rbf(list(scale), v) for scale, v in zip(SCALES, VARIANCES, strict=True)]
    prior = GP.create(pair, LAMBDAS, nx=2, nu=0, noise_std=[0.2, 0.3])
    return prior.condition_on(BOUND.box.sample(COUNT, g), torch.rand(COUNT, 2, dtype=torch.float64, generator=g))


def lipschitz(scale, variance, delta) -> float:
    r, total = math.hypot(*EDGES), 0.0
    for i in range(2):
        s = math.sqrt(variance) / scale[i]
        slope = s**2 * math.hypot(*[(1.3802 if i == j else 0.6066) / scale[j] for j in range(2)])
        total += (math.sqrt(2 * math.log(4 / delta)) * s + 12 * math.sqrt(12) * max(s, math.sqrt(r * slope))) ** 2
    return math.sqrt(total)


@pytest.mark.parametrize("given", [None, 3.0])
def test_half_widths_are_the_formula_of_each_output(model, given):
    bound = replace(BOUND, lipschitz=given)
    z = tensor([[1.2, 0.3], [1.5, -1.0]])
    (mean, std), (low, high) = model.posterior(z), bound.interval(model, z)
    cells = math.prod(math.ceil(math.sqrt(2) * e / (2 * TAU)) for e in EDGES)
    share = DELTA / 2 / (1 if given else 2)  # of each output; the path's constant takes half
    beta = math.sqrt(2 * math.log(cells * math.pi**2 * (COUNT + 1) ** 2 / (6 * share)))
    torch.testing.assert_close(bound.beta(model), tensor([beta, beta]), rtol=1e-12, atol=0)
    for j in range(2):
        K = kernels.cross(model.kernels[j], model.inputs, model.inputs)
        weights = torch.linalg.solve(K + LAMBDAS[j] * torch.eye(COUNT).double(), model.targets[:, j])
        norm = math.sqrt(float(weights @ K @ weights))
        D = math.sqrt(2 * VARIANCES[j] * (1 - math.exp(-0.5 * (TAU / min(SCALES[j])) ** 2)))
        slope = given or lipschitz(SCALES[j], VARIANCES[j], share)
        if given is None:
            assert sample_path_lipschitz(model.kernels[j], bound.box, share) == pytest.approx(slope, rel=1e-12)
        slack = slope * TAU + (norm + beta) * D
        assert float(bound.slack(model)[j]) == pytest.approx(slack, rel=1e-9)
        for q in range(2):
            half = beta * float(std[q, j]) + slack
            assert float(high[q, j] - mean[q, j]) == pytest.approx(half, rel=1e-8)
            assert float(mean[q, j] - low[q, j]) == pytest.approx(half, rel=1e-8)


def test_the_grid_is_fine_by_default_and_bad_ones_are_refused():
    assert replace(BOUND, grid_radius=None).radius == pytest.approx(2e-6)
    for change in ({"grid_radius": 0.0}, {"lipschitz": -1.0}, {"lower": (1.0, 1.0)}, {"lower": (1.6, -1.0)}):
        with pytest.raises(ValueError, match=r"Lederer|lower"):
            replace(BOUND, **change)


def test_what_the_theorem_does_not_cover_is_refused(model):
    z = tensor([[1.2, 0.3]])
    for outside in ([1.2, 1.1], [0.9, 0.3]):
        with pytest.raises(ValueError, match="points in the box"):
            BOUND.interval(model, torch.cat([z, tensor([outside])]))
    rough, linear = kernels.matern(2.5, [0.5, 0.75]), kernels.linear()
    some = kernels.rbf([0.5], dims=[1])
    for kernel, lip, message in (
        ([model.kernels[0], rough], None, "RBF kernels on all inputs"),
        ([some, model.kernels[0]], None, "RBF kernels on all inputs"),
        ([rough, linear], 3.0, "RBF or Matérn"),
        ([rough, some], 3.0, None),
    ):
        other = GP.create(kernel, LAMBDAS, nx=2, nu=0, noise_std=[0.2, 0.3])
        assert (replace(BOUND, lipschitz=lip).refusal(other) or "").startswith(message or "")
        assert (replace(BOUND, lipschitz=lip).refusal(other) is None) == (message is None)
    one = GP.create(kernels.rbf([0.5]), 0.04, nx=1, nu=0, noise_std=0.2)
    assert BOUND.refusal(one) == "inputs of dimension 2"
    assert "theory-mode" in BOUND.refusal(replace(model, mode="practical"))
    for kernel in (rough, some, linear):
        with pytest.raises(ValueError, match="an RBF kernel on all inputs"):
            sample_path_lipschitz(kernel, BOUND.box, 0.1)
    for factor, accepted in ((1 + 0.9e-6, True), (1 + 1.1e-6, False), (1 - 1.1e-6, False)):
        noise = tensor(LAMBDAS).sqrt() * tensor([1.0, math.sqrt(factor)])
        assert (BOUND.noise_refusal(model, noise) is None) == accepted


@pytest.mark.parametrize("edges", [(0.5, 2.0), (1e-4, 2e-4), (0.03, 0.04)])
def test_the_lipschitz_constant_of_a_path_is_a_maximum_per_axis(model, edges):
    """On small boxes the deviation of the slope leads, on large ones the diameter; between them one on each axis."""
    kernel = kernels.rbf([0.05, 1.5], 1.25)
    box, r, total, led = Box(tensor([0.0, 0.0]), tensor(list(edges))), math.hypot(*edges), 0.0, set()
    for i, scale in enumerate((0.05, 1.5)):
        s = math.sqrt(1.25) / scale
        slope = s**2 * math.hypot(*[(1.3802 if i == j else 0.6066) / other for j, other in enumerate((0.05, 1.5))])
        led.add(s > math.sqrt(r * slope))
        total += (math.sqrt(2 * math.log(4 / 0.1)) * s + 12 * math.sqrt(12) * max(s, math.sqrt(r * slope))) ** 2
    assert sample_path_lipschitz(kernel, box, 0.1) == pytest.approx(math.sqrt(total), rel=1e-12)
    assert led == {(0.5, 2.0): {False}, (1e-4, 2e-4): {True}}.get(edges, {True, False})


def test_what_it_covers_is_its_box_with_its_edge():
    """[1, 1.5] × [−1, 1], for boxes and for points: both ends of every axis count."""
    low = tensor([[1.0, -1.0], [1.1, 0.0], [0.9, 0.0], [1.1, -1.1], [1.1, 0.0], [1.1, 0.0], [1.5, 1.0]])
    high = tensor([[1.5, 1.0], [1.2, 0.5], [1.2, 0.5], [1.2, 0.5], [1.6, 0.5], [1.2, 1.1], [1.5, 1.0]])
    assert BOUND.covers(low, high).tolist() == [True, True, False, False, False, False, True]


def test_a_given_lipschitz_constant_is_believed_of_the_path():
    """The theorem's own constant holds with its share of δ; one that is given holds because its user says so."""
    kinds = [[entry.kind for entry in replace(BOUND, lipschitz=given).beliefs()] for given in (None, 3.0)]
    assert kinds[0] == [Assumption.GAUSSIAN_PRIOR, Assumption.LAMBDA_NOISE]
    assert kinds[1] == [*kinds[0], Assumption.SAMPLE_PATH]
    assert "3.0-Lipschitz" in str(replace(BOUND, lipschitz=3.0).beliefs()[-1])


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_the_lipschitz_constant_of_a_path_needs_a_probability(delta):
    with pytest.raises(ValueError, match="sample_path_lipschitz"):
        sample_path_lipschitz(kernels.rbf([0.5, 0.5], 1.0), BOUND.box, delta)


def test_edges_are_covered_by_cubes_inscribed_in_balls():
    box = Box(tensor([0.0, 0.0]), tensor([1.0, 3.0]))
    side = 2 * 0.5 / math.sqrt(2)  # of the square in a ball of radius ½
    assert covering_number(box, 0.5) == math.ceil(1 / side) * math.ceil(3 / side) == 2 * 5
    assert covering_number(box, 100.0) == 1
    assert covering_number(Box(tensor([0.0, 1.0]), tensor([1.0, 1.0])), 0.5) == 2  # an edge of length 0 counts as one
