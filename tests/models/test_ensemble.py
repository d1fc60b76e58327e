"""Ensembles: formulas against naive loops and automatic differentiation, rigorous ranges, training, refusals."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.data import Transitions
from gpsafe.models import Ensemble, Normalizer, Training, identity_prior, zero_prior
from gpsafe.models._mlp import MLP
from gpsafe.models._training import loss_and_gradient, soft_clamp
from gpsafe.sets import Box
from gpsafe.systems.known import AffineKnown, pendulum_known

NX, NU = 2, 1
PENDULUM = pendulum_known(gravity=10.0, gain=3.0, damping=0.3, dt=0.1, hanging_at_zero=False, semi_implicit=True)
PRIORS = {"identity": identity_prior, "zero": zero_prior, "pendulum": PENDULUM}
PLAIN = {**PRIORS, "plain": lambda x, u: torch.sin(x) * u}  # states neither Jacobian nor curvature


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_ensemble(
    seed: int, members: int = 3, hidden=(7, 5), prior="identity", gain: float = 3.0, clamp="soft"
) -> Ensemble:
    """Random weights, scales and offsets: nothing is left at a default that would hide an error."""
    generator = torch.Generator().manual_seed(seed)
    network = MLP.random(members, (NX + NU, *hidden, 2 * NX), generator)
    scale = [torch.exp(0.5 * draw(seed + i, d)) for i, d in ((1, NX + NU), (2, NX))]
    return Ensemble.from_weights(
        [gain * w for w in network.weights],
        [0.5 * draw(seed + 5 + i, *b.shape) for i, b in enumerate(network.biases)],
        nx=NX,
        nu=NU,
        inputs=Normalizer(draw(seed + 3, NX + NU), scale[0]),
        targets=Normalizer(draw(seed + 4, NX), scale[1]),
        log_var_limits=torch.tensor([[-4.0, -3.0], [1.0, 2.0]], dtype=torch.float64),
        prior=PLAIN[prior],
        clamp=clamp,
    )


def naive_member(model: Ensemble, m: int, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One member at one point, from the definition, with scalar loops over units."""
    z = (torch.cat([x, u]) - model.inputs.offset) / model.inputs.scale
    for i, (w, b) in enumerate(zip(model.network.weights, model.network.biases, strict=True)):
        z = torch.stack([sum(z[k] * w[m, k, j] for k in range(len(z))) + b[m, j] for j in range(w.shape[2])])
        if i < len(model.network.weights) - 1:
            z = torch.tanh(z)
    mean = model.prior(x, u) + model.targets.offset + model.targets.scale * z[:NX]
    raw = z[NX:] + 2 * model.targets.scale.log()
    low, high = model.log_var_limits
    if model.clamp == "hard":
        return mean, torch.clamp(raw, low, high)
    inner = high - torch.log1p(torch.exp(high - raw))
    return mean, low + torch.log1p(torch.exp(inner - low))


@given(seeds(), st.sampled_from(sorted(PRIORS)), st.sampled_from(["soft", "hard"]))
def test_the_batched_call_is_the_loop_over_members_and_points(seed, prior, clamp):
    model = random_ensemble(seed, prior=prior, clamp=clamp)
    x, u = draw(seed + 20, 4, NX), draw(seed + 21, 4, NU)
    mean, std = model.evaluate(x, u)
    for m in range(model.members):
        for i in range(4):
            expected = naive_member(model, m, x[i], u[i])
            torch.testing.assert_close(mean[m, i], expected[0], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(2 * std[m, i].log(), expected[1], rtol=1e-10, atol=1e-10)


@given(seeds())
def test_prediction_has_the_moments_of_the_mixture(seed):
    model = random_ensemble(seed)
    x, u = draw(seed, 5, NX), draw(seed + 1, 5, NU)
    mean, noise = model.evaluate(x, u)
    prediction = model.predict(x, u)
    torch.testing.assert_close(prediction.mean, mean.mean(0))
    second = (mean.square() + noise.square()).mean(0)
    variance = prediction.std.square() + prediction.noise_std.square()
    torch.testing.assert_close(variance, second - mean.mean(0).square(), rtol=1e-9, atol=1e-9)


@given(seeds())
def test_paired_evaluation_gives_each_member_its_own_points(seed):
    model = random_ensemble(seed)
    x, u = draw(seed, 3, 2, 4, NX), draw(seed + 1, 2, 4, NU)
    mean, std = model.evaluate(x, u, paired=True)
    assert mean.shape == (3, 2, 4, NX)
    lines = model.linearize(x, u, paired=True)
    assert lines.jacobian.shape == (3, 2, 4, NX, NX + NU)
    for m in range(3):
        alone = model.evaluate(x[m], u)
        torch.testing.assert_close(mean[m], alone[0][m], rtol=0, atol=1e-12)
        torch.testing.assert_close(std[m], alone[1][m], rtol=0, atol=1e-12)
        torch.testing.assert_close(lines.jacobian[m], model.linearize(x[m], u).jacobian[m], rtol=0, atol=1e-12)


@given(
    seeds(), st.sampled_from(sorted(PLAIN)), st.sampled_from(["soft", "hard"]), st.sampled_from([(), (6,), (7, 5, 4)])
)
def test_jacobians_are_those_of_automatic_differentiation(seed, prior, clamp, hidden):
    model = random_ensemble(seed, hidden=hidden, prior=prior, clamp=clamp)
    z = draw(seed + 30, 3, NX + NU)
    lines = model.linearize(z[:, :NX], z[:, NX:])

    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: model.mean(v[:NX], v[NX:])), out_dims=1)(z)
    torch.testing.assert_close(lines.jacobian, jacobian, rtol=1e-9, atol=1e-10)
    mean, std = model.evaluate(z[:, :NX], z[:, NX:])
    torch.testing.assert_close(lines.mean, mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(lines.log_var, 2 * std.log(), rtol=0, atol=1e-11)


def hessians(model: Ensemble, z: torch.Tensor) -> torch.Tensor:
    def at(v):
        return model.evaluate(v[:NX], v[NX:])[0]

    return torch.func.vmap(torch.func.hessian(at))(z)  # (k, M, nx, nz, nz)


@given(seeds(), st.sampled_from(sorted(PRIORS)), st.sampled_from([(6,), (7, 5), (5, 4, 4)]), st.floats(-5, 0.5))
def test_hessian_bound_holds_over_the_box(seed, prior, hidden, size):
    model = random_ensemble(seed, hidden=hidden, prior=prior)
    center, radius = draw(seed, NX + NU), 10.0**size * torch.rand(NX + NU, dtype=torch.float64)
    box = Box(center - radius, center + radius)
    bound = model.hessian_bound(box)
    z = torch.cat([box.sample(20, torch.Generator().manual_seed(seed)), torch.stack([box.lower, box.upper])])
    assert bool((hessians(model, z).abs() <= bound).all())


@given(seeds())
def test_hessian_bound_is_tight_on_small_boxes_and_grows_with_the_box(seed):
    model = random_ensemble(seed)
    center = draw(seed, NX + NU)
    point = hessians(model, center.unsqueeze(0))[0].abs()
    small = model.hessian_bound(Box(center - 1e-9, center + 1e-9))
    torch.testing.assert_close(small, point, rtol=1e-4, atol=1e-4 * float(point.max()))
    assert bool((model.hessian_bound(Box(center - 0.3, center + 0.3)) >= small * (1 - 1e-12)).all())


def test_control_a_hessian_bound_that_forgets_the_second_layer_is_caught():
    """With a flattened second layer the bound is too small, and samples show it."""
    model = random_ensemble(3)
    first, second, last = model.network.weights
    flat = replace(model, network=MLP((first, 1e-6 * second, last), model.network.biases))
    box = Box(draw(1, NX + NU) - 0.5, draw(1, NX + NU) + 0.5)
    z = box.sample(50, torch.Generator().manual_seed(0))
    assert bool((hessians(model, z).abs() <= model.hessian_bound(box)).all())
    assert not bool((hessians(model, z).abs() <= flat.hessian_bound(box)).all())


@given(seeds())
def test_ranges_of_values_and_jacobians_hold_over_the_box(seed):
    network = random_ensemble(seed, hidden=(6, 5)).network
    center, radius = draw(seed, 2, 3), 0.3 * torch.rand(2, 3, dtype=torch.float64)
    ranges = network.ranges(center - radius, center + radius)
    inside = center + radius * (2 * torch.rand(30, 2, 3, dtype=torch.float64) - 1)
    value, jacobian = network.linearize(inside.reshape(1, 60, 3).expand(3, -1, -1))
    value, jacobian = value.reshape(3, 30, 2, -1), jacobian.reshape(3, 30, 2, 4, 3)
    assert bool(((value - ranges.value.unsqueeze(1)).abs() <= ranges.value_radius.unsqueeze(1)).all())
    assert bool(((jacobian - ranges.jacobian.unsqueeze(1)).abs() <= ranges.jacobian_radius.unsqueeze(1)).all())


def test_training_gradients_are_those_of_automatic_differentiation():
    network = MLP.random(3, (4, 7, 6, 4), torch.Generator().manual_seed(0))
    z, y = 2 * draw(1, 3, 9, 4), draw(2, 3, 9, 2)
    limits = (torch.tensor([-2.0, -3.0]).double(), torch.tensor([1.0, 0.5]).double())
    leaves = [p.clone().requires_grad_(True) for p in network.weights + network.biases]
    out = MLP(tuple(leaves[:3]), tuple(leaves[3:]))(z)
    log_var = soft_clamp(out[..., 2:], *limits)
    loss = 0.5 * ((y - out[..., :2]).square() * torch.exp(-log_var) + log_var).mean((1, 2))
    loss.sum().backward()
    value, gradients = loss_and_gradient(network.weights, network.biases, z, y, limits)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-13, atol=1e-13)
    for leaf, gradient in zip(leaves, [g[0] for g in gradients] + [g[1] for g in gradients], strict=True):
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-11, atol=1e-13)


# ------------------------------------------------------------------------------------------------ learning
def pendulum_data(seed: int, n: int) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.rand(n, NX, dtype=torch.float64, generator=generator) - 1) * torch.tensor([3.0, 2.0])
    u = 2 * torch.rand(n, NU, dtype=torch.float64, generator=generator) - 1
    w = 0.01 * torch.randn(n, NX, dtype=torch.float64, generator=generator)
    return Transitions(x, u, PENDULUM(x, u) + w)


FAST = Training(epochs=40, steps=800, learning_rate=1e-2)
SKETCH = Training(epochs=1, steps=60, learning_rate=1e-2)  # where it does not matter what is learnt


@pytest.fixture(scope="module")
def learnt() -> Ensemble:
    empty = Ensemble.create(NX, NU, generator=torch.Generator().manual_seed(0), training=FAST)
    return empty.condition(pendulum_data(1, 500))


def test_it_learns_a_pendulum_and_its_noise(learnt):
    fresh = pendulum_data(2, 400)
    prediction = learnt.predict(fresh.x, fresh.u)
    error = (prediction.mean - PENDULUM(fresh.x, fresh.u)).square().mean().sqrt()
    step = (PENDULUM(fresh.x, fresh.u) - fresh.x).square().mean().sqrt()
    assert float(error) < 0.1 * float(step), (error, step)
    assert 0.005 < float(prediction.noise_std.median()) < 0.05
    assert learnt.fit is not None and bool((learnt.fit.loss < 0).all())


def test_learning_is_deterministic_and_starts_with_the_generator(learnt):
    def again(seed):
        empty = Ensemble.create(NX, NU, generator=torch.Generator().manual_seed(seed), training=SKETCH)
        return empty.condition(pendulum_data(1, 60))

    first, second, other = again(0), again(0), again(1)
    pairs = list(zip(first.network.weights, second.network.weights, strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.network.weights[0], other.network.weights[0])


def test_held_out_rows_stay_held_out(learnt):
    assert learnt.held_out is not None
    more = replace(learnt, training=SKETCH).condition(pendulum_data(5, 100))
    assert torch.equal(more.held_out[:500], learnt.held_out)
    assert 0.1 < float(learnt.held_out.double().mean()) < 0.3
    assert len(more.data) == 600


def test_held_out_rows_stop_the_training_and_choose_the_weights():
    """A wide network on 40 noisy rows: the weights kept are the best of all passes on the held-out rows, by the definition."""
    data = pendulum_data(3, 40)

    def learn(patience: float) -> Ensemble:
        settings = Training(epochs=400, steps=0, patience=patience, batch=40)
        model = Ensemble.create(NX, NU, generator=torch.Generator().manual_seed(0), hidden=(40, 40), training=settings)
        return model.condition(data)

    model, patient = learn(0.1), learn(1.0)
    assert model.fit is not None
    assert patient.fit is not None
    assert model.fit.epochs < patient.fit.epochs == 400
    assert bool((patient.fit.loss <= model.fit.loss).all())  # the same passes, and more of them
    assert torch.equal(patient.held_out, model.held_out)
    mean, std = model.evaluate(data.x[model.held_out], data.u[model.held_out])
    gap = (data.x_next[model.held_out] - mean) / std
    loss = (0.5 * gap.square() + std.log() - model.targets.scale.log()).mean((1, 2))
    torch.testing.assert_close(loss, model.fit.loss)


def test_members_learn_independently():
    """The same member alone, from the same weights on the same rows, becomes the same network."""
    training = Training(epochs=3, steps=0, bootstrap=False, held_out=0.0, restart=False, batch=500)
    generator = torch.Generator().manual_seed(0)
    model = Ensemble.create(NX, NU, generator=generator, members=3, training=training)
    data = pendulum_data(1, 64)  # one batch an epoch: the order of rows does not matter
    together, alone = model.condition(data), model.member(1).condition(data)
    for a, b in zip(together.network.weights, alone.network.weights, strict=True):
        torch.testing.assert_close(a[1], b[0], rtol=1e-9, atol=1e-10)


def test_frozen_normalisation_does_not_move_and_continued_training_keeps_the_function():
    data = pendulum_data(1, 80)
    model = Ensemble.create(NX, NU, generator=torch.Generator().manual_seed(0), training=SKETCH).condition(data)
    frozen = model.freeze().condition(pendulum_data(2, 20))
    assert torch.equal(frozen.inputs.scale, model.inputs.scale)
    assert torch.equal(frozen.targets.offset, model.targets.offset)
    inputs, targets = Normalizer(draw(1, 3), draw(2, 3).exp()), Normalizer(draw(3, 2), draw(4, 2).exp())
    moved = Ensemble(
        model._reexpressed(inputs, targets), NX, NU, inputs, targets, model.log_var_limits, prior=model.prior
    )
    for a, b in zip(model.evaluate(data.x, data.u), moved.evaluate(data.x, data.u), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_a_good_prior_model_helps(learnt):
    data, fresh = pendulum_data(1, 40), pendulum_data(2, 300)
    short = Training(epochs=1, steps=300)

    def error(prior):
        empty = Ensemble.create(NX, NU, generator=torch.Generator().manual_seed(0), training=short, prior=prior)
        return float((empty.condition(data).predict(fresh.x, fresh.u).mean - PENDULUM(fresh.x, fresh.u)).norm())

    assert error(PENDULUM) < 0.5 * error(identity_prior)


def test_bootstrap_members_disagree_more_where_there_are_no_data(learnt):
    near, far = pendulum_data(7, 200), draw(8, 200, NX) + 20.0
    u = near.u
    assert float(learnt.predict(far, u).std.mean()) > 5 * float(learnt.predict(near.x, u).std.mean())


def test_predicted_std_stays_within_its_limits(learnt):
    x, u = 100 * draw(8, 200, NX), draw(9, 200, NU)
    low, high = learnt.log_var_limits
    log_var = 2 * learnt.evaluate(x, u)[1].log()
    assert bool((log_var >= low - 1e-12).all())
    assert bool((log_var <= high + math.log1p(math.exp(float((low - high).max()))) + 1e-12).all())


# ------------------------------------------------------------------------------------------------ refusals
def test_bad_weights_are_refused():
    network = random_ensemble(0).network
    bad = [w.clone() for w in network.weights]
    bad[1][2, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"finite weights\[1\]"):
        Ensemble.from_weights(bad, network.biases, nx=NX, nu=NU)
    with pytest.raises(ValueError, match="networks from 4 inputs"):
        Ensemble.from_weights(network.weights, network.biases, nx=NX, nu=NU + 1)
    shapes = [network.weights[0], network.weights[1][:, :3], network.weights[2]]
    with pytest.raises(ValueError, match=r"weights\[1\] of shape \(3, 7, d_out\)"):
        Ensemble.from_weights(shapes, network.biases, nx=NX, nu=NU)
    with pytest.raises(ValueError, match=r"biases\[0\]"):
        Ensemble.from_weights(network.weights, [b[:2] for b in network.biases], nx=NX, nu=NU)
    with pytest.raises(ValueError, match="scale > 0"):
        Normalizer(torch.zeros(2), torch.tensor([1.0, 0.0]))


def test_a_diverged_member_is_named():
    model = random_ensemble(1, members=3)
    weights = [w.clone() for w in model.network.weights]
    weights[-1][1] = 1e200  # the squared error of member 1 overflows
    training = Training(epochs=2, steps=0, restart=False)
    hot = Ensemble.from_weights(weights, model.network.biases, nx=NX, nu=NU, training=training)
    with pytest.raises(ValueError, match=r"divergence in members \[1\]"):
        hot.condition(pendulum_data(1, 30))


def test_a_known_part_without_a_curvature_bound_is_refused():
    model = Ensemble.create(NX, NU, generator=torch.Generator().manual_seed(0), prior=lambda x, u: x.sin())
    box = Box(torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="hessian_bound"):
        model.hessian_bound(box)
    with pytest.raises(ValueError, match=r"box\.lower"):
        model.hessian_bound(Box(torch.zeros(2), torch.ones(2)))


def test_an_affine_known_part_adds_no_curvature():
    affine = AffineKnown(torch.eye(2), torch.ones(2, 1), torch.zeros(2))
    create = lambda prior: Ensemble.create(NX, NU, generator=torch.Generator().manual_seed(0), prior=prior)  # noqa: E731
    box = Box(torch.zeros(3), torch.ones(3))
    assert torch.equal(create(affine).hessian_bound(box), create(zero_prior).hessian_bound(box))


@pytest.mark.parametrize("options", [{"epochs": 0}, {"held_out": 1.0}, {"learning_rate": 0.0}, {"batch": True}])
def test_bad_training_settings_are_refused(options):
    with pytest.raises(ValueError, match="Training"):
        Training(**options)


def test_weights_come_in_the_layout_of_torch_too():
    layers = [[torch.nn.Linear(a, b).double() for a, b in ((3, 3), (3, 4))] for _ in range(2)]
    stacked = [torch.stack([member[i].weight.detach() for member in layers]) for i in range(2)]
    biases = [torch.stack([member[i].bias.detach() for member in layers]) for i in range(2)]
    model = Ensemble.from_weights(stacked, biases, nx=2, nu=1, prior=zero_prior, layout="out-in")
    x, u = torch.rand(5, 2, dtype=torch.float64), torch.rand(5, 1, dtype=torch.float64)
    mean, _ = model.evaluate(x, u)
    for m, (first, second) in enumerate(layers):
        own = second(torch.tanh(first(torch.cat([x, u], dim=-1))))[:, :2].detach()
        torch.testing.assert_close(mean[m], own, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="layout"):
        Ensemble.from_weights(stacked, biases, nx=2, nu=1, layout="torch")  # pyright: ignore[reportArgumentType]
