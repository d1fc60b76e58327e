"""Networks, advantages and natural gradients against autograd, naive sums and exact divergences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from strategies import seeds

from gpsafe.baselines._nets import Net, Running
from gpsafe.baselines._surrogate import Surrogate, advantages, conjugate_gradient, regress
from gpsafe.baselines.lagrangian import trust_region
from gpsafe.baselines.ppo import Clip, clipped
from gpsafe.models import _flat

KINDS = pytest.mark.parametrize("kind", ["tanh", "relu"])


def torch_net(net: Net, flat: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The same network in torch."""
    at, last = 0, len(net.sizes) - 2
    for i, (a, b) in enumerate(zip(net.sizes[:-1], net.sizes[1:], strict=True)):
        w, bias = flat[at : at + a * b].reshape(a, b), flat[at + a * b : at + a * b + b]
        at += a * b + b
        z = z @ w + bias
        if i < last:
            z = torch.tanh(z) if net.kind == "tanh" else torch.relu(z)
    return z


@KINDS
def test_values_gradients_and_directions_are_autograds(kind):
    random = np.random.default_rng(0)
    net = Net((3, 7, 5, 2), kind=kind).randomise(random)
    z, cotangent, direction = random.normal(size=(9, 3)), random.normal(size=(9, 2)), random.normal(size=net.flat.shape)
    flat, rows = torch.tensor(net.flat, requires_grad=True), torch.tensor(z, requires_grad=True)
    out = torch_net(net, flat, rows)
    values = net(z)
    np.testing.assert_allclose(values[-1], out.detach().numpy(), rtol=1e-12)
    by_flat, by_rows = torch.autograd.grad((out * torch.tensor(cotangent)).sum(), (flat, rows))
    np.testing.assert_allclose(net.backward(values, cotangent), by_flat.numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(net.input_gradient(values, cotangent, 1), by_rows.numpy()[:, 1:], rtol=1e-10, atol=1e-12)
    moved = torch.func.jvp(lambda f: torch_net(net, f, rows), (flat,), (torch.tensor(direction),))[1]
    np.testing.assert_allclose(net.along(values, direction), moved.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_a_stack_is_its_single_networks():
    random = np.random.default_rng(1)
    stack, z, cotangent = (
        Net((3, 6, 1), (2,)).randomise(random),
        random.normal(size=(8, 3)),
        random.normal(size=(2, 8, 1)),
    )
    for i in range(2):
        one = Net((3, 6, 1))
        one.flat[:] = stack.flat[i]
        np.testing.assert_allclose(stack(z)[-1][i], one(z)[-1])
        np.testing.assert_allclose(stack.backward(stack(z), cotangent)[i], one.backward(one(z), cotangent[i]))


@pytest.mark.parametrize(("cached", "calls"), [(2**17, 1), (7 * 12, 4), (1, 25)])
def test_a_step_of_regression_is_that_of_all_rows_whatever_the_cache_holds(cached, calls, monkeypatch):
    random = np.random.default_rng(0)
    net, z, goal = Net((3, 6, 1), (2,)).randomise(random), random.normal(size=(25, 3)), random.normal(size=(2, 25, 1))
    whole, seen = Net((3, 6, 1), (2,)), []
    whole.flat[:] = net.flat
    values = whole(z)
    slope = whole.backward(values, 2 * (values[-1] - goal) / 25)
    flat = torch.tensor(net.flat, requires_grad=True)
    loss = sum(((torch_net(net, flat[i], torch.tensor(z)) - torch.tensor(goal[i])) ** 2).mean() for i in range(2))
    np.testing.assert_allclose(slope, torch.autograd.grad(loss, flat)[0].numpy(), rtol=1e-10, atol=1e-12)  # pyright: ignore
    whole.step(slope, 1e-2)
    monkeypatch.setattr(_flat, "CACHED", cached)
    backward = Net.backward
    monkeypatch.setattr(Net, "backward", lambda self, *about: seen.append(0) or backward(self, *about))
    regress(net, z, goal, 1e-2)
    assert len(seen) == calls
    np.testing.assert_allclose(net.flat, whole.flat, rtol=0, atol=0 if calls == 1 else 1e-12)


@given(seed=seeds())
def test_running_mean_and_deviation_are_those_of_all_rows(seed):
    random = np.random.default_rng(seed)
    parts, running = [random.normal(3.0, 2.0, (int(random.integers(1, 30)), 2)) for _ in range(4)], Running(2)
    assert np.array_equal(running.mean, np.zeros(2)) and np.array_equal(running.std, np.ones(2))
    for part in parts:
        running.add(part)
    whole = np.concatenate(parts)
    np.testing.assert_allclose(running.mean, whole.mean(0), rtol=1e-10)
    np.testing.assert_allclose(running.std, whole.std(0), rtol=1e-9, atol=1e-12)


@given(seed=seeds())
def test_advantages_are_the_naive_sum(seed):
    random = np.random.default_rng(seed)
    steps, lanes, discount, decay = 9, 3, 0.9, 0.7
    reward, value, after = random.normal(size=(3, steps, lanes))
    terminated, truncated = random.random((2, steps, lanes)) < 0.2
    ended = terminated | truncated
    found = advantages(reward, value, after, terminated, ended, discount, decay)
    for i in range(lanes):
        for t in range(steps):
            total = 0.0
            for k in range(t, steps):
                delta = reward[k, i] - value[k, i] + (0.0 if terminated[k, i] else discount * after[k, i])
                total += (discount * decay) ** (k - t) * delta
                if ended[k, i]:
                    break
            assert math.isclose(found[t, i], total, rel_tol=1e-9, abs_tol=1e-12)


def test_with_decay_1_an_advantage_is_what_followed_less_the_value():
    random = np.random.default_rng(0)
    reward, value = random.normal(size=(2, 6, 1))
    after, last = np.append(value[1:], [[0.3]], 0), np.zeros((6, 1), bool)
    found = advantages(reward, value, after, last, last, 0.9, 1.0)
    followed = sum(0.9**k * reward[k, 0] for k in range(6)) + 0.9**6 * 0.3
    assert math.isclose(found[0, 0], followed - value[0, 0], rel_tol=1e-12)
    wrong = advantages(reward, value, after, ~last, ~last, 0.9, 1.0)  # control: nothing follows a termination
    np.testing.assert_allclose(wrong, reward - value)


@given(seed=seeds())
def test_conjugate_gradients_solve(seed):
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 8))
    root, b = random.normal(size=(size, size)), random.normal(size=size)
    matrix = root @ root.T + np.eye(size)
    np.testing.assert_allclose(
        conjugate_gradient(lambda v: matrix @ v, b, iterations=3 * size, residual=1e-24),
        np.linalg.solve(matrix, b),
        rtol=1e-6,
        atol=1e-8,
    )


@pytest.mark.parametrize("squash", [False, True])
def test_surrogate_gradient_and_fisher_are_those_of_ratio_and_divergence(squash):
    random, std = np.random.default_rng(2), 0.3
    net = Net((2, 5, 2)).randomise(random)
    few = random.normal(size=(6, 2))
    rows, weight = np.repeat(few, 4, 0), random.normal(size=24)
    drawn = random.normal(size=(24, 2))
    local = Surrogate(net, rows, drawn, std, squash=squash, damping=0.0)
    z, a, w, old = (torch.tensor(v) for v in (rows, drawn, weight, local.old))

    def mean(flat):
        out = torch_net(net, flat, z)
        return torch.tanh(out) if squash else out

    def gain(flat):
        far = (a - mean(flat)).square().sum(-1)
        return (torch.exp(((a - old).square().sum(-1) - far) / (2 * std**2)) * w).mean()

    def divergence(flat):
        return (mean(flat) - old).square().sum(-1).mean() / (2 * std**2)

    flat = torch.tensor(net.flat, requires_grad=True)
    np.testing.assert_allclose(
        local.gradient(weight), torch.autograd.grad(gain(flat), flat)[0].numpy(), rtol=1e-9, atol=1e-11
    )
    hessian = torch.autograd.functional.hessian(divergence, torch.tensor(net.flat)).numpy()
    direction = random.normal(size=net.flat.shape)
    np.testing.assert_allclose(local.fisher(direction), hessian @ direction, rtol=1e-8, atol=1e-10)
    net.flat[:] = net.flat + 0.1 * direction
    _, ratio, kl = local.now()
    assert math.isclose(kl, float(divergence(torch.tensor(net.flat))), rel_tol=1e-10)
    assert math.isclose((ratio * weight).mean(), float(gain(torch.tensor(net.flat))), rel_tol=1e-10)


def linear(seed: int, damping: float = 0.0) -> tuple[Surrogate, np.ndarray]:
    """A linear policy, whose divergence is exactly quadratic, and a weight that its gradient climbs."""
    random = np.random.default_rng(seed)
    net = Net((3, 2)).randomise(random)
    rows = np.repeat(random.normal(size=(20, 3)), 4, 0)
    drawn = net(rows)[-1] + 0.5 * random.normal(size=(80, 2))
    return Surrogate(net, rows, drawn, 0.5, damping=damping), (drawn * [1.0, -2.0]).sum(-1)


@given(seed=seeds())
def test_a_whole_step_of_the_trust_region_has_the_divergence_of_its_radius(seed):
    local, weight = linear(seed)
    share, divergence = trust_region(local, weight, 1e-6, slack=1 + 1e-6)
    assert share == 1.0 and math.isclose(divergence, 1e-6, rel_tol=1e-4)


@given(seed=seeds())
def test_no_step_leaves_the_trust_region_or_lowers_the_objective(seed):
    local, weight = linear(seed, damping=0.1)
    weight = np.random.default_rng(seed).normal(size=80) * weight
    start = local.net.flat.copy()
    share, divergence = trust_region(local, weight, 1e-2)
    _, ratio, kl = local.now()
    assert kl <= 1e-2 and math.isclose(kl, divergence, abs_tol=1e-15)
    assert (ratio * weight).mean() > weight.mean() if share else np.array_equal(local.net.flat, start)


def test_control_a_step_twice_as_long_leaves_the_trust_region():
    local, weight = linear(0)
    x = local.natural(local.gradient(weight))
    step = math.sqrt(2e-3 / (x @ local.fisher(x))) * x
    taken, _ = local.search(2 * step, lambda mean, ratio, divergence, share: divergence <= 1.0001e-3, times=15)
    assert 0 < taken < 1


def test_a_clipped_update_climbs_and_stops_at_its_divergence():
    local, weight = linear(3)
    done, divergence = clipped(local, weight, np.random.default_rng(0), Clip(50, 20, 1e-2, stop=0.02, norm=40.0))
    _, ratio, kl = local.now()
    assert (ratio * weight).mean() > weight.mean() and done < 50 and kl == divergence > 0.02


def test_a_large_step_ends_an_update_at_a_mini_batch_unless_it_is_patient():
    found = []
    for patient in (False, True):
        local, weight = linear(3)
        how = Clip(5, 8, 0.3, stop=1e-3, norm=40.0, patient=patient)
        found.append(clipped(local, weight, np.random.default_rng(0), how)[1])
    assert found[0] < 0.5 * found[1]


def test_a_clipped_update_has_no_gradient_beyond_the_clip():
    local, weight = linear(4)
    start = local.net.flat.copy()
    how = Clip(1, 80, 1e-2, stop=1.0, norm=40.0, patient=True)
    local.net.flat[:] = start + 5.0  # all ratios far from 1
    moved = local.net.flat.copy()
    _, ratio, _ = local.now()
    inert = np.where(ratio > 1.2, 1.0, -1.0)  # better, and beyond the clip
    assert ((ratio > 1.2) | (ratio < 0.8)).all()
    clipped(local, inert, np.random.default_rng(0), how)
    assert np.array_equal(local.net.flat, moved)
    clipped(local, -inert, np.random.default_rng(0), how)
    assert not np.array_equal(local.net.flat, moved) and weight.shape == inert.shape
