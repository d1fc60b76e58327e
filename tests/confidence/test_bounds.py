"""The formulas of the bounds, against the theory's table and as controls."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.confidence import (
    AbbasiYadkori,
    ActSafeForm,
    ChowdhuryGopalan,
    Constant,
    Fiedler,
    Lederer,
    Mixture,
    Srinivas,
)
from gpsafe.confidence.lederer import covering_number, sample_path_lipschitz
from gpsafe.models.gp import GP
from gpsafe.rkhs import kernels
from gpsafe.sets.box import Box
from tests.strategies import seeds

EXACT, SOLVE = 1e-12, 1e-8
B, R, DELTA = 1.3, 0.4, 0.05
ASSUMED = {"rkhs_norm": B, "subgaussian": R, "delta": DELTA}


def model(seed: int, lam: float, count: int = 15) -> tuple[GP, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kernel = kernels.matern(2.5, 0.4)
    z = torch.rand(count, 1, dtype=torch.float64, generator=generator)
    y = torch.randn(count, 1, dtype=torch.float64, generator=generator)
    return GP.create(kernel, lam, nx=1, nu=0, noise_std=R).condition_on(z, y), kernels.cross(kernel, z, z)


def logdet(matrix: torch.Tensor) -> float:
    return float(torch.linalg.slogdet(matrix).logabsdet)


@given(seed=seeds(), lam=st.sampled_from([0.01, 0.3, 1.0, 2.5]))
def test_formulas_equal_the_table_with_log_determinants(seed, lam):
    posterior, gram = model(seed, lam)
    eye = torch.eye(len(gram), dtype=torch.float64)
    log = 2 * math.log(1 / DELTA)
    own = logdet(eye + gram / lam)
    bar = max(1.0, lam)
    other = logdet(bar / lam * gram + bar * eye)
    scale = R / math.sqrt(lam)
    expected = {
        Mixture(**ASSUMED): math.sqrt(B**2 + R**2 / lam * (own + log)),
        AbbasiYadkori(**ASSUMED): B + scale * math.sqrt(own + log),
        Fiedler(**ASSUMED): B + scale * math.sqrt(other + log),
        Fiedler(**ASSUMED, convention="published", unchecked=True): B + R / lam * math.sqrt(other + log),
        ActSafeForm(**ASSUMED, unchecked=True): B + R * math.sqrt(own + 2 + log),
    }
    for bound, value in expected.items():
        assert abs(float(bound.beta(posterior)) - value) <= SOLVE * value


@given(seed=seeds(), horizon=st.integers(15, 200))
def test_chowdhury_gopalan_covers_its_own_determinant(seed, horizon):
    """½ log det((1 + η)I + K) ≤ g_n + 1, the step of the proof that puts the data's g_n into the formula."""
    posterior, gram = model(seed, 1 + 2 / horizon)
    eye = torch.eye(len(gram), dtype=torch.float64)
    inside = logdet((1 + 2 / horizon) * eye + gram)
    proof = B + R * math.sqrt(inside + 2 * math.log(1 / DELTA))
    assert float(ChowdhuryGopalan(**ASSUMED, max_data=horizon).beta(posterior)) >= proof - EXACT


def test_the_actsafe_form_on_its_usual_posterior_lacks_a_factor_of_one_over_sigma():
    posterior, _ = model(0, R**2)
    short = float(ActSafeForm(**ASSUMED, unchecked=True).beta(posterior)) - B
    sound = float(AbbasiYadkori(**ASSUMED).beta(posterior)) - B
    assert sound / short > 0.8 / R


@given(seed=seeds(), lam=st.sampled_from([0.05, 0.5, 1.0]))
def test_fiedler_equals_abbasi_yadkori_up_to_lambda_one_and_published_is_wider(seed, lam):
    posterior, _ = model(seed, lam)
    value = float(AbbasiYadkori(**ASSUMED).beta(posterior))
    assert abs(float(Fiedler(**ASSUMED).beta(posterior)) - value) <= EXACT * value
    assert float(Fiedler(**ASSUMED, convention="published").beta(posterior)) >= value * (1 - EXACT)


def test_fiedler_refuses_an_unknown_convention():
    with pytest.raises(ValueError, match="convention in"):
        Fiedler(**ASSUMED, convention="R/lambda")


@given(seed=seeds(), count=st.integers(1, 30))
def test_srinivas_uses_the_given_information_gain_if_larger(seed, count):
    posterior, _ = model(seed, R**2, count)
    gain = max(50.0, 2 * float(posterior.info_gain()))
    bound = Srinivas(**ASSUMED, max_info_gain=lambda n: gain)
    expected = math.sqrt(2 * B**2 + 300 * gain * math.log((count + 1) / DELTA) ** 3)
    assert abs(float(bound.beta(posterior)) - expected) <= EXACT * expected
    assert float(Srinivas(**ASSUMED).beta(posterior)) < expected


def test_srinivas_refuses_data_whose_gain_is_too_small_for_its_formula():
    kernel = kernels.rbf(1.0, variance=1e-6)
    posterior = GP.create(kernel, R**2, nx=1, nu=0, noise_std=R).condition_on(
        torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    )
    with pytest.raises(ValueError, match="information gain large enough"):
        Srinivas(rkhs_norm=1e-3, subgaussian=R, delta=DELTA).beta(posterior)
    assert float(Srinivas(**ASSUMED, max_info_gain=lambda n: 1.0).beta(posterior)) > B


def test_constant_is_no_bound_and_says_so():
    posterior, _ = model(0, 0.1)
    bound = Constant(value=3.0)
    assert float(bound.beta(posterior)) == 3.0
    assert not bound.sound
    assert any("not a theorem" in line for line in bound.assumptions(posterior))
    with pytest.raises(ValueError, match="value > 0"):
        Constant(value=0.0)


# ------------------------------------------------------------------ Lederer
def gaussian_process(seed: int, scale: float, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample paths of GP(0, RBF(scale)) on a fine grid of [0, 1]."""
    z = torch.linspace(0, 1, count, dtype=torch.float64).unsqueeze(-1)
    values, vectors = torch.linalg.eigh(kernels.cross(kernels.rbf(scale), z, z))
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(200, count, dtype=torch.float64, generator=generator)
    return z, normal @ (vectors * values.clamp_min(0.0).sqrt()).T


@pytest.mark.parametrize("scale", [0.1, 0.5])
def test_sample_paths_are_lipschitz_with_the_stated_constant(scale):
    z, paths = gaussian_process(0, scale, 400)
    slopes = (paths.diff(dim=-1) / z.diff(dim=0).T).abs().amax(-1)
    constant = sample_path_lipschitz(kernels.rbf(scale), Box(z[0], z[-1]), 0.01)
    assert float(slopes.max()) <= constant
    assert float(slopes.max()) > 1 / scale  # the paths are not trivially flat


def test_kernel_derivative_slopes_are_bounded_by_the_constants_used():
    a = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    decay = torch.exp(-a.square() / 2)
    assert float((a * (3 - a.square()) * decay).abs().max()) <= 1.3802
    assert float((a * decay).abs().max()) <= 0.6066
    assert float(((1 - a.square()) * decay).abs().max()) <= 1.0


@given(seed=seeds(), dim=st.integers(1, 3), radius=st.floats(0.05, 1.0))
def test_covering_number_counts_a_covering_of_cubes(seed, dim, radius):
    generator = torch.Generator().manual_seed(seed)
    upper = torch.rand(dim, dtype=torch.float64, generator=generator) + 0.1
    box = Box(torch.zeros(dim, dtype=torch.float64), upper)
    number = covering_number(box, radius)
    counts = [math.ceil(math.sqrt(dim) * edge / (2 * radius)) for edge in upper.tolist()]
    points = box.sample(200, generator)
    cells = upper / torch.tensor(counts, dtype=torch.float64)
    nearest = (torch.floor(points / cells) + 0.5) * cells
    assert math.prod(counts) == number
    assert float(torch.linalg.vector_norm(points - nearest, dim=-1).max()) <= radius * (1 + EXACT)


def test_lederer_interval_includes_the_grid_term_and_refuses_points_outside():
    posterior = GP.create(kernels.rbf(0.4), R**2, nx=1, nu=0, noise_std=R).condition_on(
        torch.tensor([[0.2], [0.7]], dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    )
    z = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    widths = {}
    for radius in (1e-6, 1e-2):
        bound = Lederer(delta=DELTA, lower=(0.0,), upper=(1.0,), grid_radius=radius, lipschitz=10.0)
        low, high = bound.interval(posterior, z)
        _, std = posterior.posterior(z)
        added = 0.5 * (high - low) - bound.beta(posterior) * std
        slack = bound.slack(posterior)
        assert float((added - slack).abs().max()) <= 1e-9
        assert float(slack) > 10.0 * radius
        widths[radius] = float(slack)
    assert widths[1e-2] > 100 * widths[1e-6]
    with pytest.raises(ValueError, match="points in the box"):
        bound.interval(posterior, z + 1.0)


def test_lederer_needs_a_lipschitz_constant_for_rough_kernels():
    posterior = GP.create(kernels.matern(1.5, 0.4), R**2, nx=1, nu=0, noise_std=R)
    box = {"lower": (0.0,), "upper": (1.0,)}
    with pytest.raises(ValueError, match="RBF kernels on all inputs, or a given lipschitz"):
        Lederer(delta=DELTA, **box).beta(posterior)
    assert float(Lederer(delta=DELTA, **box, lipschitz=5.0).beta(posterior)) > 1
    with pytest.raises(ValueError, match="lower < upper"):
        Lederer(delta=DELTA, lower=(0.0,), upper=(0.0,))
