"""Refits: the gradient against autograd, a pass against `condition`'s, Adam that goes on, what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpsafe.data import Transitions
from gpsafe.models import Ensemble, Memory, Training, refit
from gpsafe.models._flat import Adam
from gpsafe.models._mlp import MLP
from gpsafe.models._refit import Trainer, flattened, unflattened
from gpsafe.models._training import soft_clamp, train

PLAIN = Training(epochs=1, steps=0, batch=8, learning_rate=1e-2, held_out=0.0, bootstrap=False, restart=False)


def wave(count: int, seed: int = 0, scale: float = 1.0) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    x, u = (scale * torch.randn(count, d, generator=g, dtype=torch.float64) for d in (2, 1))
    return Transitions(x, u, x + 0.1 * torch.sin(3 * x) + 0.2 * u + 0.01 * torch.randn(x.shape, generator=g))


def ensemble(seed: int = 0, **changes) -> Ensemble:
    model = Ensemble.create(2, 1, generator=torch.Generator().manual_seed(seed), members=3, hidden=(6, 5))
    return replace(model, training=replace(PLAIN, **changes))


@settings(max_examples=15)
@given(st.integers(0, 2**16), st.integers(1, 4), st.integers(1, 9), st.sampled_from([0.3, 3.0, 300.0]))
def test_the_gradient_is_that_of_autograd(seed: int, members: int, rows: int, gain: float) -> None:
    g = torch.Generator().manual_seed(seed)
    network = MLP.random(members, (3, 6, 5, 4), g)
    network = MLP(network.weights, tuple(gain * torch.randn(b.shape, generator=g).double() for b in network.biases))
    low, high = torch.tensor([[-6.0, -3.0], [1.0, -1.0]], dtype=torch.float64)
    z, y = (torch.randn(members, rows, d, generator=g, dtype=torch.float64) for d in (3, 2))
    flat = torch.from_numpy(flattened(network)).requires_grad_()
    copy, at = [], 0
    for w, b in zip(network.weights, network.biases, strict=True):
        for part in (w, b):
            copy.append(flat[:, at : at + part[0].numel()].reshape(part.shape))
            at += part[0].numel()
    h = z
    for i in range(0, len(copy), 2):
        h = (torch.tanh(h) if i else h) @ copy[i] + copy[i + 1].unsqueeze(1)
    log_var = soft_clamp(h[..., 2:], low, high)
    published = ((h[..., :2] - y).square() * torch.exp(-log_var)).mean((1, 2)) + log_var.mean((1, 2))
    (true,) = torch.autograd.grad(0.5 * published.sum(), flat)
    core = Trainer(flattened(network), network.sizes, torch.stack([low, high]).numpy())
    core.gradient(z.numpy(), y.numpy())
    assert np.abs(core.slope - true.numpy()).max() <= 1e-12 * float(true.abs().max()) + 1e-14
    # and the parameters come back from their flat form
    back = unflattened(flattened(network), network.sizes)
    assert all(
        torch.equal(a, b)
        for a, b in zip((*back.weights, *back.biases), (*network.weights, *network.biases), strict=False)
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-4)])
def test_a_pass_is_that_of_condition(dtype, tolerance: float) -> None:
    """Same weights and orders: `train` anneals its rate to a tenth in the last epoch, which is its only one here."""
    model, data = ensemble(), wave(43)
    found, memory = refit(model, data, dtype=dtype)
    z, y = found.inputs(data.z), found.targets(data.x_next - data.x)
    limits = model.log_var_limits - 2 * found.targets.scale.log()
    held = torch.zeros(43, dtype=torch.bool)
    generator = torch.Generator().manual_seed((model.seed + 0x9E3779B97F4A7C15 * 43) % 2**63)
    torch.rand(43, generator=generator)  # the held-out rows, of which there are none
    tenfold = replace(model.training, learning_rate=10 * model.training.learning_rate)
    network, fit = train(model.network, (z, y), held, (limits[0], limits[1]), tenfold, generator)
    assert memory.steps == 6  # five batches of eight and one of three
    pairs = zip((*found.network.weights, *found.network.biases), (*network.weights, *network.biases), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < tolerance
    assert found.fit is not None and torch.allclose(found.fit.loss, fit.loss, atol=10 * tolerance)


@given(st.integers(0, 2**16))
@settings(max_examples=5)
def test_stacked_members_have_the_bits_of_single_ones(seed: int) -> None:
    """So that seeds may be stacked, too: what one learns does not depend on who learns beside it."""
    g = torch.Generator().manual_seed(seed)
    network = MLP.random(4, (3, 6, 4), g)
    limits = torch.tensor([[-6.0, -3.0], [1.0, -1.0]]).numpy()
    batches = [[torch.randn(4, 9, d, generator=g).numpy() for d in (3, 2)] for _ in range(5)]

    def learnt(chosen: slice) -> np.ndarray:
        flat = flattened(network).astype(np.float32)[chosen].copy()
        core, adam = Trainer(flat, network.sizes, limits), Adam(flat.shape, np.float32)
        for z, y in batches:
            core.gradient(z[chosen], y[chosen])
            adam.step(flat, core.slope, 1e-2)
        return flat

    stacked = learnt(slice(None))
    for k in range(4):
        np.testing.assert_array_equal(learnt(slice(k, k + 1))[0], stacked[k])


def test_adam_goes_on_and_its_memory_travels_as_arrays() -> None:
    model, memory = refit(ensemble(), wave(40))
    again, later = refit(model, wave(16, 1), Memory.of(memory.state()))
    bits, _ = refit(model, wave(16, 1), memory)
    fresh, first = refit(model, wave(16, 1))
    assert (memory.steps, later.steps, first.steps) == (5, 12, 7)
    assert torch.equal(again.network.weights[0], bits.network.weights[0])
    assert not torch.allclose(again.network.weights[0], fresh.network.weights[0], atol=1e-5)
    adam, flat = Adam((3,), np.float64), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    theirs, ours = torch.optim.Adam([flat], lr=0.1), np.zeros(3)
    for k in range(9):
        slope = np.sin(k + np.arange(3.0)) * 10.0 ** np.arange(-3, 0)
        resumed = Adam((3,), np.float64)
        resumed.load(adam.state())
        adam = resumed
        adam.step(ours, slope, 0.1)
        flat.grad = torch.from_numpy(slope)
        theirs.step()
    np.testing.assert_allclose(ours, flat.detach().numpy(), rtol=1e-12)


def test_it_learns_and_leaves_the_given_ensemble_alone() -> None:
    model = ensemble(batch=32, held_out=0.2)
    before = model.network.weights[0].clone()
    learnt, memory = refit(model, wave(400), epochs=20, held_out=0.0)
    assert torch.equal(model.network.weights[0], before) and model.data is None
    assert learnt.held_out is not None and not learnt.held_out.any()
    later, memory = refit(learnt, wave(100, 1), memory)
    held = later.held_out
    assert held is not None and not held[:400].any() and 5 < int(held.sum()) < 40
    last, _ = refit(later, None, memory, epochs=40)
    assert torch.equal(last.held_out, held) and len(last.data) == 500  # type: ignore[arg-type]
    test = wave(300, 7)
    errors = [float((m.predict(test.x, test.u).mean - test.x_next).square().mean().sqrt()) for m in (learnt, last)]
    assert errors[1] < errors[0] < 0.1


def test_nothing_is_learnt_from_rows_that_are_held_out() -> None:
    model, data = ensemble(held_out=0.3).freeze(), wave(60)
    learnt, _ = refit(model, data)
    held = learnt.held_out
    assert held is not None and 5 < int(held.sum()) < 40
    other, _ = refit(model, Transitions(data.x, data.u, torch.where(held[:, None], 9.0, data.x_next)))
    assert torch.equal(other.network.weights[0], learnt.network.weights[0])
    assert learnt.fit is not None and other.fit is not None and bool((other.fit.loss > learnt.fit.loss + 1).all())
    control, _ = refit(model, Transitions(data.x, data.u, torch.where(held[:, None], data.x_next, data.x_next + 1)))
    assert not torch.equal(control.network.weights[0], learnt.network.weights[0])


def test_the_normalisation_follows_the_data_and_the_function_stays() -> None:
    model, memory = refit(ensemble(), wave(60), epochs=5)
    still = replace(model, training=replace(model.training, learning_rate=1e-30))
    wider, _ = refit(still, wave(60, 3, scale=4.0), memory, dtype=np.float64)
    x, u = wave(9, 5).x, wave(9, 5).u
    assert float(wider.inputs.scale[0]) > 1.5 * float(model.inputs.scale[0])
    assert torch.allclose(wider.evaluate(x, u)[0], model.evaluate(x, u)[0], atol=1e-9)
    frozen, _ = refit(still.freeze(), wave(60, 3, scale=4.0), memory)
    assert frozen.inputs is still.inputs
    new = ensemble(learning_rate=1e-30)  # which has learnt nothing: its random weights are for the new normalisation
    assert torch.allclose(refit(new, wave(60))[0].network.weights[0], new.network.weights[0], atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    model, memory = refit(ensemble(), wave(20))
    with pytest.raises(ValueError, match="none, now or before"):
        refit(ensemble())
    with pytest.raises(ValueError, match=r"\(nx, nu\) = \(2, 1\)"):
        refit(model, Transitions(torch.ones(2, 3), torch.ones(2, 1), torch.ones(2, 3)))
    with pytest.raises(ValueError, match="first of shape"):
        refit(replace(model.member(0), held_out=model.held_out), None, memory)
    with pytest.raises(ValueError, match="held_out"):
        refit(model, held_out=1.0)
    with pytest.raises(ValueError, match="epochs"):
        refit(model, epochs=0)
    with pytest.raises(ValueError, match=r"divergence in members \[0, 1, 2\]"):
        refit(replace(model, training=replace(model.training, learning_rate=1e38)), None, epochs=3)
