"""F_n without a member: no function of the ball is in the ellipsoid, although nothing need cross at any point."""

import math

import pytest
import torch
from torch import Tensor

from gpsafe.confidence import ConfidenceSet, Constant, ConvexProgram, Memberless, Mixture
from gpsafe.confidence.bounds import ConfidenceBound
from gpsafe.confidence.members import extremal_member
from gpsafe.confidence.set import _memberless
from gpsafe.models import GP
from gpsafe.rkhs import RKHSFunction, kernels

SIGMA = 0.02
KERNELS = (kernels.rbf(0.5, dims=(0,)), kernels.matern(2.5, 0.5, dims=(0,)))


def uniform(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=g)


def observed(seed: int, *, scaled: bool = False) -> GP:
    """Forty observations of (0, f), ‖f‖ = 1; `scaled`: of unequal noise. For even seeds close to each other."""
    g, kernel = torch.Generator().manual_seed(seed), KERNELS[seed // 2 % 2]
    f = RKHSFunction(kernel, 4 * uniform(g, 8, 3), uniform(g, 8) - 0.5).scaled_to(1.0)
    z, scale = 4 * uniform(g, 40, 3), 1 + 2 * uniform(g, 40)
    z = z if seed % 2 else 1 + 0.2 * z
    noise = SIGMA * torch.randn(40, 2, dtype=torch.float64, generator=g)
    y = torch.stack([torch.zeros(40, dtype=torch.float64), f(z)], -1) + (scale.unsqueeze(-1) if scaled else 1.0) * noise
    model = GP.create((kernel, kernel), SIGMA**2, nx=2, nu=1, noise_std=SIGMA)
    return model.condition_on(z, y, noise_scale=scale if scaled else None)


def mixture(norm: float) -> Mixture:
    return Mixture(rkhs_norm=(1.0, norm), subgaussian=SIGMA, delta=0.1)


def nearest(bound: ConfidenceBound, model: GP, output: int) -> float:
    """min over ‖f‖ ≤ B of ‖V^{1/2}(f − μ)‖/(√λ β), by bisection for the multiplier of the ball in the eigenvectors of K."""
    lam, norm = float(model.regularizer[output]), float(bound.norms(model.num_outputs)[output])
    scale = torch.ones(model.num_data, dtype=torch.float64) if model.noise_scale is None else model.noise_scale
    assert model.inputs is not None
    gram = kernels.cross(model.kernels[output], model.inputs, model.inputs) / torch.outer(scale, scale)
    values, vectors = torch.linalg.eigh(gram)
    values, mean = values.clamp_min(0.0), vectors.T @ (model.weights[:, output] * scale)
    low, high = 1e-12, 1e12
    for _ in range(200):
        middle = math.sqrt(low * high)
        f = (values + lam) * mean / (values + lam + middle)
        low, high = (middle, high) if float((values * f.square()).sum()) > norm**2 else (low, middle)
    gap = (values + lam) * mean / (values + lam + high) - mean
    form = float((values * gap.square() * (values + lam)).sum())
    return math.sqrt(form / lam) / float(bound.beta(model)[output])


@pytest.mark.parametrize("scaled", [False, True])
def test_the_set_is_called_empty_where_ball_and_ellipsoid_do_not_meet_and_nowhere_else(scaled):
    unseen, told = 0, 0
    for seed in range(24):
        model = observed(seed, scaled=scaled)
        z = torch.linspace(-1.0, 5.0, 301, dtype=torch.float64).unsqueeze(-1).expand(-1, 3)
        for norm in (0.9, 0.7, 0.4):
            confidence = ConfidenceSet(mixture(norm)).update(model)
            share, found = nearest(confidence.bound, model, 1), confidence.falsified()
            assert abs(share - 1) > 1e-6 and (found is not None) == (share > 1), (seed, norm, share)
            if isinstance(found, Memberless):
                assert found.output == 1 and found.lower > found.upper == norm and found.point == ()
                assert f"no function of norm <= {norm:g}" in str(found)
                with pytest.raises(ValueError, match="an ellipsoid that meets the ball"):
                    extremal_member(confidence.bound, model, z[0], 1.0, output=1)
                unseen += not bool(confidence.empty(z).any())
            told += found is not None
    assert unseen >= 10 and told < 72  # of what is empty, most shows at no point


def test_a_norm_that_is_true_is_not_refuted():
    assert all(ConfidenceSet(mixture(1.0)).update(observed(seed)).falsified() is None for seed in range(60))


def test_every_output_is_asked_with_its_own_norm_and_the_first_empty_one_is_told():
    model = observed(3)
    assert model.inputs is not None and model.targets is not None
    twice = GP.create(model.kernels, SIGMA**2, nx=2, nu=1, noise_std=SIGMA)
    twice = twice.condition_on(model.inputs, model.targets[:, [1, 1]])
    for norms, output in (((1.0, 0.5), 1), ((0.5, 1.0), 0), ((0.5, 0.5), 0), ((1.0, 1.0), None)):
        bound = Mixture(rkhs_norm=norms, subgaussian=SIGMA, delta=0.1)
        found = ConfidenceSet(bound).update(twice).falsified(torch.full((1, 3), 9.0).double())  # where nothing is known
        assert (None if found is None else found.output) == output
        free = ConfidenceSet(Mixture(rkhs_norm=norms, subgaussian=SIGMA, delta=0.1, unchecked=True)).update(twice)
        assert free.falsified(torch.full((1, 3), 9.0).double()) is None  # it claims nothing


@pytest.mark.parametrize(("exponent", "told"), [(-12, False), (-8, True), (-4, True)])
def test_nothing_is_said_where_the_rounding_of_the_gram_matrix_is_not_below_the_regularizer(exponent, told):
    g, kernel = torch.Generator().manual_seed(0), kernels.rbf(0.5, dims=(0,))
    f, z = RKHSFunction(kernel, 4 * uniform(g, 8, 3), uniform(g, 8) - 0.5).scaled_to(1.0), 4 * uniform(g, 80, 3)
    model = GP.create((kernel,), 10.0**exponent, nx=2, nu=1, noise_std=1e-9, outputs=(0,))
    model = model.condition_on(z, f(z).unsqueeze(-1))
    found = _memberless(Mixture(rkhs_norm=0.5, subgaussian=1e-9, delta=0.1), model)
    assert (found is not None) == told


@pytest.mark.parametrize(
    "bound", [ConvexProgram(rkhs_norm=(1.0, 0.3), subgaussian=SIGMA, delta=0.1), Constant(value=3.0)]
)
def test_bounds_whose_set_is_no_ellipsoid_tell_by_their_intervals(bound):
    confidence = ConfidenceSet(bound).update(observed(1))
    found = confidence.falsified()
    assert not isinstance(found, Memberless) and (found is not None) == isinstance(bound, ConvexProgram)


def test_without_data_there_are_members():
    assert ConfidenceSet(mixture(0.1)).update(GP.create(KERNELS, 1e-4, nx=2, nu=1, noise_std=SIGMA)).falsified() is None
