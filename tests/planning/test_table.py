"""The tabulated posterior: exact where linear interpolation is, periodic where told, near its model in between."""

import math

import pytest
import torch
from hypothesis import given
from strategies import seeds

from gpsafe.models import GP, Prediction, identity_prior
from gpsafe.planning import Table
from gpsafe.rkhs import kernels
from gpsafe.sets import Box


class Linear:
    """x⁺ = x + M z + c, std |M| z-linear: interpolation must be exact."""

    nx, nu = 2, 1

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.matrix = torch.randn(2, 3, dtype=torch.float64, generator=generator)

    def predict(self, x, u):
        z = torch.cat([x, u], dim=-1)
        return Prediction(x + z @ self.matrix.mT, 5.0 + 0.1 * z[..., :2], torch.full((2,), 0.01).double())

    def condition(self, data):
        return self


UNIT = Box(-torch.ones(3).double(), 2 * torch.ones(3).double())


@given(seeds())
def test_multilinear_functions_are_reproduced(seed):
    model = Linear(seed)
    table = Table.build(model, identity_prior, UNIT, counts=(3, 4, 2))
    error = table.error(200, generator=torch.Generator().manual_seed(seed))
    assert max(error.mean_max + error.std_max) < 1e-12


def test_nodes_are_exact_and_batches_keep_their_shape():
    model = Linear(0)
    table = Table.build(model, identity_prior, UNIT, counts=(4, 4, 4))
    x = torch.stack(torch.meshgrid(torch.arange(-1, 3.0).double(), torch.arange(-1, 3.0).double(), indexing="ij"), -1)
    u = torch.full((4, 4, 1), 2.0).double()
    found, exact = table.predict(x, u), model.predict(x, u)
    assert found.mean.shape == (4, 4, 2)
    assert torch.allclose(found.mean, exact.mean, atol=1e-12, rtol=0)


def gp(n: int = 60) -> GP:
    generator = torch.Generator().manual_seed(0)
    kernel = kernels.rbf([1.2, 2.0, 1.5], 0.04)
    model = GP.create(kernel, 1e-4, nx=2, nu=1, noise_std=0.01, prior=identity_prior)
    z = UNIT.sample(n, generator)
    return model.condition_on(z, 0.2 * torch.stack([z[:, 0].sin(), z[:, 1] * z[:, 2]], -1))


def test_the_error_to_a_posterior_falls_with_the_square_of_the_spacing():
    coarse, fine = (Table.build(gp(), identity_prior, UNIT, counts=(n, n, n)) for n in (9, 17))
    errors = [t.error(2000, generator=torch.Generator().manual_seed(1)) for t in (coarse, fine)]
    for one, two in zip(errors[0].mean_rms, errors[1].mean_rms, strict=True):
        assert 3.0 < one / two < 5.0


class Wave:
    nx, nu = 1, 1

    def predict(self, x, u):
        return Prediction(x + x.sin(), x.cos().abs(), torch.zeros(1).double())

    def condition(self, data):
        return self


@given(seeds())
def test_periodic_axes_wrap_around(seed):
    box = Box(torch.tensor([-math.pi, -1.0]).double(), torch.tensor([math.pi, 1.0]).double())
    table = Table.build(Wave(), identity_prior, box, counts=(400, 2), periodic=(0,))
    generator = torch.Generator().manual_seed(seed)
    x = 30 * (torch.rand(50, 1, dtype=torch.float64, generator=generator) - 0.5)
    found = table.predict(x, torch.zeros(50, 1).double())
    assert (found.mean - x - x.sin()).abs().max() < 1e-4
    assert (found.std - x.cos().abs()).abs().max() < 1e-2  # |cos| has a kink


def test_beyond_the_box_the_nearest_face_counts_and_nan_stays_nan():
    table = Table.build(Linear(0), identity_prior, UNIT, counts=(3, 3, 3))
    u = torch.zeros(1, 1).double()
    far, face = (table.residual(torch.tensor([[v, 0.0]]).double(), u)[0] for v in (50.0, 2.0))
    assert torch.equal(far, face)
    for periodic in ((), (0,)):
        table = Table.build(Linear(0), identity_prior, UNIT, counts=(3, 3, 3), periodic=periodic)
        assert bool(table.predict(torch.full((1, 2), math.nan).double(), u).mean.isnan().all())


def test_axes_the_model_ignores_can_be_left_out():
    box = Box(torch.tensor([-4.0]).double(), torch.tensor([4.0]).double())
    table = Table.build(Wave(), identity_prior, box, counts=(500,), axes=(0,))
    x = torch.linspace(-3, 3, 40).double()[:, None]
    assert (table.predict(x, torch.full((40, 1), 0.7).double()).mean - x - x.sin()).abs().max() < 1e-4


def test_bad_arguments_are_refused():
    for change in (
        {"counts": (3, 3)},
        {"counts": (1, 3, 3)},
        {"axes": (0, 0, 1)},
        {"axes": (0, 1, 7)},
        {"periodic": (5,)},
    ):
        with pytest.raises(ValueError, match="expected"):
            Table.build(Linear(0), identity_prior, UNIT, **{"counts": (3, 3, 3), **change})
    with pytest.raises(ValueError, match=r"Table\.build"):
        Table.build(Linear(0), identity_prior, UNIT, counts=(3, 3, 3)).condition(None)


def test_the_proven_error_covers_the_measured_one():
    """On a grid of the usual fineness; it is not more than a hundred times as large, and refused where nothing is proved."""
    model = gp()
    coarse, fine = (Table.build(model, identity_prior, UNIT, counts=(n, n, n)) for n in (9, 25))
    for table in (coarse, fine):
        proved, z = table.proven_error(), UNIT.sample(3000, 1)
        exact, near = model.posterior(z), table.residual(z[:, :2], z[:, 2:])
        error = (exact[0] - near[0]).abs().amax(0)
        assert bool((error <= proved.mean).all())
        assert bool((proved.mean <= 100 * error).all())
        assert bool(((exact[1] - near[1]).amax(0) <= proved.std).all())
    assert bool((fine.proven_error().mean < 0.2 * coarse.proven_error().mean).all())
    with pytest.raises(ValueError, match="a GP less its own prior, got Linear"):
        Table.build(Linear(0), identity_prior, UNIT, counts=(3, 3, 3)).proven_error()
    flat = Table.build(model, identity_prior, Box([-1.0, -1.0], [1.0, 1.0]), counts=(3, 3), axes=(0, 1))
    with pytest.raises(ValueError, match="tabulated coordinates"):
        flat.proven_error()
