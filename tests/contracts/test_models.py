"""Contract of every dynamics model: batched, pure, honest about what it does not know."""

import functools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_kernel, seeds

from gpsafe.calibration import Adaptive, Conformal, Isotonic, ScaledStd, Weighted
from gpsafe.data import Transitions
from gpsafe.models import GP, DynamicsModel, Ensemble, LowRankGP, Prediction, Training, identity_prior, zero_prior
from gpsafe.models.dropout import Dropout
from gpsafe.models.laplace import LastLayerLaplace
from gpsafe.models.sparse_gp import SparseGP

NX, NU = 2, 1


def draw(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def data(seed: int, n: int = 12) -> Transitions:
    x, u = draw(seed, n, NX), draw(seed + 1, n, NU)
    return Transitions(x, u, 0.9 * x + 0.1 * torch.sin(3 * x) * u + 0.01 * draw(seed + 2, n, NX))


def gp(*names: str, **options) -> GP:
    chosen = [make_kernel(name, NX + NU) for name in names]
    return GP.create(chosen, 0.05, nx=NX, nu=NU, noise_std=[0.01, 0.02], prior=identity_prior, **options)


@functools.cache  # learns once
def ensemble(**options) -> Ensemble:
    settings = Training(epochs=20, steps=200, batch=8)
    return Ensemble.create(NX, NU, generator=torch.Generator().manual_seed(3), training=settings, **options).condition(
        data(0)
    )


@functools.cache
def network(make, **options) -> Dropout | LastLayerLaplace:
    generator = torch.Generator().manual_seed(3)
    empty = make.create(NX, NU, noise_std=[0.01, 0.02], generator=generator, hidden=(8, 8), steps=100, **options)
    return empty.condition(data(0))


def sparse(**options) -> SparseGP:
    return SparseGP.create(make_kernel("rbf", NX + NU), NX, NU, noise_std=[0.01, 0.02], size=8, **options)


def everywhere_alike(z: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(z[..., 0])


def recalibrated(kind, *more, **options):
    return kind.fit(gp("rbf", "matern-3/2").condition(data(0)), data(20), *more, delta=0.2, **options)


# Every model with some data. Another model joins by one line.
MODELS = {
    "gp": lambda: gp("rbf", "matern-3/2").condition(data(0)),
    "gp-one-output": lambda: gp("matern-5/2", outputs=[1]).condition(data(0)),
    "gp-generic-kernel": lambda: gp("rational-quadratic", "additive").condition(data(0)),
    "gp-practical": lambda: gp("rbf", "linear", mode="practical").condition(data(0)),
    "ensemble": ensemble,
    "ensemble-absolute": lambda: ensemble(prior=zero_prior, hidden=(8,), members=3),
    "sparse": lambda: sparse().condition(data(0)),
    "sparse-one-output": lambda: sparse(outputs=[1], prior=identity_prior).condition(data(0)),
    "dropout": lambda: network(Dropout),
    "laplace": lambda: network(LastLayerLaplace, prior=identity_prior),
    "low-rank": lambda: LowRankGP.create(gp("rbf", "matern-3/2").condition(data(0)), 8),
    "low-rank-exact-mean": lambda: LowRankGP.create(gp("rbf", "additive").condition(data(0)), 8, mean="exact"),
    "recalibrated-scale": lambda: recalibrated(ScaledStd),
    "recalibrated-isotonic": lambda: recalibrated(Isotonic),
    "recalibrated-conformal": lambda: recalibrated(Conformal, outputs="jointly"),
    "recalibrated-weighted": lambda: recalibrated(Weighted, everywhere_alike),
    "recalibrated-adaptive": lambda: recalibrated(Adaptive),
}


@pytest.fixture(params=MODELS, scope="module")
def model(request) -> DynamicsModel:
    return MODELS[request.param]()


def same(a: Prediction, b: Prediction, tol: float = 1e-10) -> None:
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=tol)
    torch.testing.assert_close(a.std, b.std, rtol=0, atol=tol)


def test_it_is_a_dynamics_model(model):
    assert isinstance(model, DynamicsModel)
    assert (model.nx, model.nu) == (NX, NU)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,)])
def test_predictions_have_the_shape_of_their_inputs(model, batch):
    prediction = model.predict(draw(5, *batch, NX), draw(6, *batch, NU))
    assert prediction.mean.shape == (*batch, NX)
    assert prediction.std.shape == (*batch, NX)
    assert prediction.mean.dtype == prediction.std.dtype == torch.float64
    assert torch.broadcast_shapes(prediction.noise_std.shape, prediction.mean.shape) == (*batch, NX)


@given(seeds(), st.sampled_from(sorted(MODELS)))
def test_a_batch_is_a_loop(seed, name):
    model = MODELS[name]()
    x, u = 2 * draw(seed, 6, NX), draw(seed + 1, 6, NU)
    whole = model.predict(x, u)
    for i in range(6):
        one = model.predict(x[i], u[i])
        same(one, Prediction(whole.mean[i], whole.std[i], whole.noise_std), 1e-8)


FORMS = {
    "float32": lambda v: v.float(),
    "numpy": lambda v: v.numpy(),
    "numpy-float32": lambda v: v.float().numpy(),
    "read-only": lambda v: np.broadcast_to(v.numpy(), v.shape),
    "list": lambda v: v.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_points_and_data_come_in_any_form(model, form):
    """Numbers mean themselves: float32 is read exactly and computed on in float64."""
    given, rows = FORMS[form], [draw(5, 4, NX), draw(6, 4, NU), draw(7, 4, NX)]
    exact = [v.float().double() if "32" in form else v for v in rows]
    found, same = model.predict(given(rows[0]), given(rows[1])), model.predict(*exact[:2])
    assert torch.equal(found.mean, same.mean) and torch.equal(found.std, same.std) and found.mean.dtype == torch.float64
    data = Transitions(*(given(v) for v in rows))
    assert all(torch.equal(getattr(data, n), v) for n, v in zip(("x", "u", "x_next"), exact, strict=True))
    if hasattr(model, "posterior"):
        z = torch.cat(exact[:2], dim=-1)
        asked = given(torch.cat(rows[:2], dim=-1))
        for a, b in zip(model.posterior(asked), model.posterior(z), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(model.prior_variance(asked), model.prior_variance(z))
        y = given(rows[0][:, : model.num_outputs])
        learnt = model.condition_on(asked, y).condition_on(z, exact[0][:, : model.num_outputs])
        assert torch.equal(learnt.inputs[-4:], learnt.inputs[-8:-4]) and torch.equal(
            learnt.targets[-4:], learnt.targets[-8:-4]
        )


@pytest.mark.parametrize(
    "bad", [["a", "b"], [[1.0], [1.0, 2.0]], None, np.zeros((2, NX), dtype=bool), np.zeros((2, NX)) * 1j]
)
def test_what_is_no_number_is_refused_by_name(model, bad):
    with pytest.raises(ValueError, match="expected real numbers in x"):
        model.predict(bad, draw(6, 2, NU))


def test_std_is_finite_and_nonnegative(model):
    for scale in (0.1, 1.0, 100.0):
        std = model.predict(scale * draw(5, 50, NX), draw(6, 50, NU)).std
        assert bool(torch.isfinite(std).all())
        assert bool((std >= 0).all())


def test_prediction_is_deterministic(model):
    x, u = draw(5, 9, NX), draw(6, 9, NU)
    first, second = model.predict(x, u), model.predict(x, u)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.std, second.std)


def test_conditioning_returns_a_new_model_and_leaves_the_old_one(model):
    x, u = draw(5, 9, NX), draw(6, 9, NU)
    before = model.predict(x, u)
    later = model.condition(data(7, 5))
    assert type(later) is type(model)
    after = model.predict(x, u)
    assert torch.equal(before.mean, after.mean)
    assert torch.equal(before.std, after.std)
    assert float((later.predict(x, u).mean - before.mean).abs().max()) > 1e-6


@pytest.mark.parametrize("name", [n for n in MODELS if not n.startswith(("ensemble", "dropout", "laplace", "recalib"))])
def test_data_make_it_more_certain_where_they_are(name):
    """A theorem for Gaussian processes only: the spread of networks may grow with data."""
    model = MODELS[name]()
    more = data(7, 30)
    assert float(model.condition(more).predict(more.x, more.u).std.sum()) < float(
        model.predict(more.x, more.u).std.sum()
    )


def test_predictions_are_differentiable(model):
    x, u = draw(5, 3, NX).requires_grad_(True), draw(6, 3, NU).requires_grad_(True)
    prediction = model.predict(x, u)
    (prediction.mean.sum() + prediction.std.sum()).backward()
    assert bool(torch.isfinite(x.grad).all())
    assert bool(torch.isfinite(u.grad).all())
    assert float(u.grad.abs().max()) > 0


def test_it_survives_pickling(model):
    x, u = draw(5, 9, NX), draw(6, 9, NU)
    same(pickle.loads(pickle.dumps(model)).predict(x, u), model.predict(x, u), 1e-12)


def test_nan_inputs_are_not_certain(model):
    x = torch.full((1, NX), float("nan"), dtype=torch.float64)
    prediction = model.predict(x, draw(6, 1, NU))
    learned = [j for j in range(NX) if j in model.outputs]
    assert not bool(torch.isfinite(prediction.mean[..., learned]).any())


def test_wrong_shapes_are_refused(model):
    with pytest.raises(ValueError, match="expected"):
        model.predict(draw(5, 3, NX + 1), draw(6, 3, NU))
    with pytest.raises(ValueError, match="expected"):
        model.predict(draw(5, 3, NX), draw(6, 3, NU + 1))
    with pytest.raises(ValueError, match="expected transitions"):
        model.condition(Transitions(draw(5, 3, NX + 1), draw(6, 3, NU), draw(5, 3, NX + 1)))
