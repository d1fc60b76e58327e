"""Bands of a convex program for several multipliers: each holds for every member of the set, and is attained by some."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from edge_members import edge_member

from gpsafe.confidence import ConvexProgram, Mixture
from gpsafe.confidence import functionals as module
from gpsafe.confidence.functionals import functional_bands, jet
from gpsafe.models import GP
from gpsafe.rkhs import RKHSFunction, kernels
from gpsafe.rkhs.functions import random_function

B, NOISE = 2.0, 0.05
ASSUMED = {"rkhs_norm": B, "subgaussian": NOISE, "delta": 0.1}
BOUND = ConvexProgram(**ASSUMED)


@lru_cache
def learned(seed: int, count: int = 25) -> tuple[GP, RKHSFunction]:
    kernel, generator = kernels.rbf([0.8, 1.1], 0.5), torch.Generator().manual_seed(seed)
    box = torch.ones(2, dtype=torch.float64)
    f = random_function(kernel, -box, box, num_centers=12, norm=B, generator=generator)
    z = 2 * torch.rand(count, 2, dtype=torch.float64, generator=generator) - 1
    y = f(z) + NOISE * torch.randn(count, dtype=torch.float64, generator=generator)
    return GP.regression(kernel, dim=2, noise_std=NOISE).condition_on(z, y.unsqueeze(-1)), f


def share(band: module.Band, f: RKHSFunction) -> float:
    """‖V_η^{1/2}(f − μ_η)‖ / (√η β_η)."""
    model, eta = band.model, float(band.model.regularizer[0])
    assert model.inputs is not None
    gap = RKHSFunction(f.kernel, torch.cat([f.centers, model.inputs]), torch.cat([f.weights, -model.weights[:, 0]]))
    form = float(gap(model.inputs).square().sum()) + eta * gap.norm_upper**2
    return math.sqrt(form / eta) / float(band.beta[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_every_band_holds_for_the_plant_and_is_attained_at_the_edge(seed):
    model, plant = learned(seed)
    bands = functional_bands(BOUND, model)
    assert len(bands) == 1 + len(module.MULTIPLIERS) and bands[0].model is model
    z = torch.tensor([[1.3, -0.4]], dtype=torch.float64)
    edge = edge_member(BOUND, model, z, torch.ones(1, dtype=torch.float64))
    for band in bands:
        assert share(band, plant) <= 1.0
        assert 1 - 1e-5 <= share(band, edge) <= 1.0  # so that 1e-5 less would be caught


def test_the_narrowest_band_depends_on_what_dominates():
    """A large B calls for trust in the data (small η), many noisy data for trust in B (large η)."""
    model, _ = learned(2)
    small, large = (1 + module.MULTIPLIERS.index(end(module.MULTIPLIERS)) for end in (min, max))
    z = torch.tensor([0.9, -0.9], dtype=torch.float64)
    for norm, best in ((40.0, small), (B, large)):
        bands = functional_bands(ConvexProgram(**ASSUMED | {"rkhs_norm": norm}), model)
        width = [float(band.beta[0] * jet(band.model, z).cov[0, 0, 0].sqrt()) for band in bands]
        assert width[best] < 0.95 * width[0]


def test_only_a_convex_program_has_several_bands_and_an_empty_set_loses_some():
    model, _ = learned(0)
    assert len(functional_bands(Mixture(**ASSUMED), model)) == 1
    assert model.targets is not None and model.inputs is not None
    torn = GP.regression(model.kernels[0], dim=2, noise_std=NOISE).condition_on(model.inputs, 50 * model.targets)
    left = functional_bands(BOUND, torn)  # no f of norm B fits: s(η) < 0 for large η
    assert len(left) < 1 + len(module.MULTIPLIERS) and all(bool(torch.isfinite(band.beta).all()) for band in left)


def test_the_posterior_of_another_multiplier_is_that_of_a_model_made_with_it():
    model, _ = learned(3)
    assert model.inputs is not None and model.targets is not None
    fresh = GP.create(model.kernels[0], NOISE**2 / 16, nx=2, nu=0, noise_std=NOISE, outputs=(0,))
    fresh = fresh.condition_on(model.inputs, model.targets)
    z = torch.tensor([[0.2, 0.1], [3.0, 1.0]], dtype=torch.float64)
    for ours, theirs in zip(model.reweighted(1 / 16).posterior(z), fresh.posterior(z), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert model.reweighted(1 / 16) is model.reweighted(1 / 16)
    with pytest.raises(ValueError, match="factor"):
        model.reweighted(0.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_table_lies_between_the_program_and_the_mixture_bound(seed):
    model, plant = learned(seed)
    z = 3 * torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1.5
    table = ConvexProgram(**ASSUMED, method="table")
    low, high = table.interval(model, z)
    exact, mixture = BOUND.interval(model, z), Mixture(**ASSUMED).interval(model, z)
    assert bool((low <= exact[0] + 1e-9).all()) and bool((high >= exact[1] - 1e-9).all())
    assert bool((low >= mixture[0] - 1e-9).all()) and bool((high <= mixture[1] + 1e-9).all())
    assert float((high - low).mean()) < 1.05 * float((exact[1] - exact[0]).mean())
    for f in (plant, *(edge_member(BOUND, model, point[None], torch.ones(1).double()) for point in z[:3])):
        assert bool((f(z) >= low[:, 0]).all()) and bool((f(z) <= high[:, 0]).all())
