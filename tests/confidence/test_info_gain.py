"""Information-gain calculators against brute force and against the model."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.confidence import info_gain
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels
from tests.strategies import seeds

EXACT, SOLVE = 1e-12, 1e-8
lambdas = st.sampled_from([0.01, 0.3, 1.0, 5.0])


def gram_of(seed: int, size: int, *, nu: float | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(size, 2, dtype=torch.float64, generator=generator)
    kernel = kernels.rbf([0.4, 0.4]) if nu is None else kernels.matern(nu, [0.4, 0.4])
    return kernels.cross(kernel, points, points)


def best(gram: torch.Tensor, count: int, lam: float) -> float:
    values = []
    for design in itertools.combinations_with_replacement(range(len(gram)), count):
        block = gram[list(design)][:, list(design)]
        values.append(0.5 * float(torch.linalg.slogdet(torch.eye(count, dtype=torch.float64) + block / lam).logabsdet))
    return max(values)


@given(seed=seeds(), lam=lambdas, count=st.integers(1, 3), size=st.integers(2, 5))
def test_finite_domain_bounds_cover_the_best_design(seed, lam, count, size):
    gram = gram_of(seed, size)
    truth = best(gram, count, lam)
    assert float(info_gain.greedy_bound(gram, count, lam)) >= truth * (1 - EXACT)
    assert float(info_gain.online_bound(gram, count, lam)) >= truth * (1 - EXACT)
    assert float(info_gain.greedy(gram, count, lam).gains[-1]) <= truth * (1 + EXACT)


@given(seed=seeds(), lam=lambdas, count=st.integers(1, 12), size=st.integers(2, 9))
def test_greedy_gains_are_those_of_the_chosen_points(seed, lam, count, size):
    gram = gram_of(seed, size, nu=0.5)
    run = info_gain.greedy(gram, count, lam)
    for t in range(1, count + 1):
        chosen = run.chosen[:t]
        value = float(info_gain.gram_info_gain(gram[chosen][:, chosen], lam))
        assert abs(float(run.gains[t]) - value) <= SOLVE * max(1.0, value)
    chosen = run.chosen
    inverse = torch.linalg.inv(gram[chosen][:, chosen] + lam * torch.eye(count, dtype=torch.float64))
    variance = gram.diagonal() - torch.einsum("im,ij,jm->m", gram[chosen], inverse, gram[chosen])
    assert abs(float(run.largest_variance[-1]) - float(variance.max())) <= SOLVE


@given(seed=seeds(), lam=lambdas)
def test_greedy_batches(seed, lam):
    grams = torch.stack([gram_of(seed + i, 6) for i in range(4)]).reshape(2, 2, 6, 6)
    batch = info_gain.greedy_bound(grams, 5, lam)
    assert batch.shape == (2, 2)
    for i, j in itertools.product(range(2), range(2)):
        assert abs(float(batch[i, j]) - float(info_gain.greedy_bound(grams[i, j], 5, lam))) <= EXACT * float(
            batch[i, j]
        )


@given(seed=seeds(), lam=lambdas, size=st.integers(1, 30), nu=st.sampled_from([None, 0.5, 2.5]))
def test_gram_bound_covers_the_gain_for_every_rank(seed, lam, size, nu):
    gram = gram_of(seed, size, nu=nu)
    truth = float(info_gain.gram_info_gain(gram, lam))
    bounds = info_gain.gram_bound(gram, lam)
    assert bounds.shape == (size + 1,)
    assert bool((bounds >= truth * (1 - 1e-10)).all())
    assert abs(float(bounds[0]) - float(gram.trace()) / (2 * lam)) <= SOLVE * float(bounds[0])


@given(seed=seeds(), lam=lambdas, dim=st.integers(1, 3), count=st.integers(1, 40))
def test_linear_bound_covers_any_design_and_is_attained_by_an_orthonormal_one(seed, lam, dim, count):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, dim, dtype=torch.float64, generator=generator)
    z = 1.5 * z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    bound = info_gain.linear_bound(dim, count, 1.5**2, lam)
    assert float(info_gain.gram_info_gain(z @ z.T, lam)) <= bound * (1 + EXACT)
    basis = 1.5 * torch.eye(dim, dtype=torch.float64).repeat(count, 1)
    full = info_gain.linear_bound(dim, count * dim, 1.5**2, lam)
    assert abs(float(info_gain.gram_info_gain(basis @ basis.T, lam)) - full) <= SOLVE * full


def test_gain_of_a_gram_matrix_is_the_models():
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(12, 2, dtype=torch.float64, generator=generator)
    kernel = kernels.rbf([0.4, 0.4])
    model = GP.create(kernel, 0.1, nx=2, nu=0, noise_std=0.1, outputs=[0]).condition_on(z, z[:, :1])
    value = info_gain.gram_info_gain(kernels.cross(kernel, z, z), 0.1)
    assert abs(float(value) - float(model.info_gain())) <= SOLVE


@pytest.mark.parametrize(
    ("kernel", "dim", "label"),
    [
        (kernels.rbf([0.4, 0.4]), 2, "O((ln T)^3)"),
        (kernels.matern(2.5, 0.4), 1, "O(T^0.167 (ln T)^0.833)"),
        (kernels.linear(), 3, "O(ln T)"),
    ],
)
def test_asymptotic_orders_are_labels(kernel, dim, label):
    order = info_gain.asymptotic_order(kernel, dim)
    assert order.label == label
    assert order.growth(10_000) > order.growth(100)
    expected = 10_000**order.power * math.log(10_000) ** order.log_power
    assert abs(order.growth(10_000) - expected) <= EXACT * expected


def test_bad_input_is_refused():
    gram = gram_of(0, 4)
    for call in (
        lambda: info_gain.greedy_bound(gram, 0, 0.1),
        lambda: info_gain.greedy_bound(gram, 2, 0.0),
        lambda: info_gain.gram_bound(gram[:2], 0.1),
        lambda: info_gain.gram_info_gain(gram * math.nan, 0.1),
        lambda: info_gain.linear_bound(2, 3, -1.0, 0.1),
        lambda: info_gain.gram_bound(gram, -1.0),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
