"""Information gains and their bounds equal their formulas, by loops: a bound that is too wide passes every one-sided test."""

import math

import gpytorch
import pytest
import torch

from gpsafe.confidence import info_gain
from gpsafe.rkhs import kernels
from gpsafe.sets import Box

LAM = 0.3


def gram(size: int = 6, kernel=None) -> torch.Tensor:
    points = Box(torch.zeros(2).double(), torch.ones(2).double()).sample(size, torch.Generator().manual_seed(4))
    return kernels.cross(kernels.rbf([0.4, 0.7], variance=1.7) if kernel is None else kernel, points, points)


def gain(block: torch.Tensor) -> float:
    return 0.5 * float(torch.linalg.slogdet(torch.eye(len(block)).double() + block / LAM).logabsdet)


def variances(K: torch.Tensor, chosen: list[int]) -> torch.Tensor:
    if not chosen:
        return K.diagonal()
    block, rows = K[chosen][:, chosen] + LAM * torch.eye(len(chosen)).double(), K[chosen]
    return K.diagonal() - (rows * torch.linalg.solve(block, rows)).sum(0)


def test_greedy_takes_the_point_of_largest_variance_every_time():
    K, count = gram(), 9
    run = info_gain.greedy(K, count, LAM)
    chosen = run.chosen.tolist()
    assert run.gains.shape == run.largest_variance.shape == (count + 1,) and len(chosen) == count
    for t in range(count + 1):
        left = variances(K, chosen[:t])
        assert float(run.largest_variance[t]) == pytest.approx(float(left.max()), rel=1e-9)
        assert float(run.gains[t]) == pytest.approx(gain(K[chosen[:t]][:, chosen[:t]]) if t else 0.0, rel=1e-9)
        if t < count:
            assert float(left[chosen[t]]) == pytest.approx(float(left.max()), rel=1e-9)
    assert len(set(chosen)) < count  # repetitions count
    whole = float(run.gains[-1])
    assert float(info_gain.greedy_bound(K, count, LAM)) == pytest.approx(whole / (1 - 1 / math.e), rel=1e-12)
    online = [
        float(g) + count / 2 * math.log(1 + float(v) / LAM)
        for g, v in zip(run.gains, run.largest_variance, strict=True)
    ]
    assert float(info_gain.online_bound(K, count, LAM)) == pytest.approx(min(online), rel=1e-12)
    assert online.index(min(online)) not in (0, count)  # the minimum is a true one


def test_a_point_without_variance_adds_nothing():
    run = info_gain.greedy(torch.zeros(2, 2).double(), 2, LAM)
    assert run.gains.tolist() == [0.0, 0.0, 0.0] and run.largest_variance.tolist() == [0.0, 0.0, 0.0]


def test_variances_that_rounding_would_make_negative_are_zero():
    for value in torch.linspace(0.1, 1.0, 40, dtype=torch.float64):
        run = info_gain.greedy(value * torch.ones(2, 2).double(), 3, 1e-18)
        assert bool((run.largest_variance >= 0).all()) and bool(torch.isfinite(run.gains).all())


def test_spectral_bounds_are_their_formulas():
    K = gram()
    values = sorted(torch.linalg.eigvalsh(K).tolist(), reverse=True)
    bounds = info_gain.gram_bound(K, LAM)
    assert bounds.shape == (7,)
    for D in range(7):
        head, tail = sum(values[:D]), sum(values[D:])
        expected = (D / 2 * math.log(1 + head / (D * LAM)) if D else 0.0) + tail / (2 * LAM)
        assert float(bounds[D]) == pytest.approx(expected, rel=1e-9)
    rounded = torch.diag(torch.tensor([2.0, -1e-3], dtype=torch.float64))  # rounding made an eigenvalue negative
    torch.testing.assert_close(
        info_gain.gram_bound(rounded, LAM),
        torch.tensor([1 / LAM, 0.5 * math.log(1 + 2 / LAM), math.log(1 + 1 / LAM)], dtype=torch.float64),
    )
    assert info_gain.linear_bound(3, 8, 2.0, LAM) == pytest.approx(1.5 * math.log(1 + 2.0 * 8 / (3 * LAM)), rel=1e-12)
    assert info_gain.linear_bound(1, 1, 2.0, LAM) == pytest.approx(0.5 * math.log(1 + 2.0 / LAM), rel=1e-12)
    batch = torch.stack([K, 2 * K])
    torch.testing.assert_close(info_gain.gram_bound(batch, LAM)[1], info_gain.gram_bound(2 * K, LAM))
    assert float(info_gain.gram_info_gain(batch, LAM)[1]) == pytest.approx(gain(2 * K), rel=1e-9)


def test_orders_count_the_active_inputs_and_the_smoothness():
    some = kernels.matern(1.5, [0.4, 0.4], dims=[0, 2])
    order = info_gain.asymptotic_order(some, 5)
    assert (order.power, order.log_power) == (2 / (3 + 2), 3 / (3 + 2))
    assert order.label == "O(T^0.4 (ln T)^0.6)"
    assert order.growth(2) == pytest.approx(2**0.4 * math.log(2) ** 0.6)
    with pytest.raises(ValueError, match="count >= 2"):
        order.growth(1)
    smooth = info_gain.asymptotic_order(kernels.rbf([0.4, 0.4]), 2)
    assert (smooth.power, smooth.log_power) == (0.0, 3.0)
    linear = info_gain.asymptotic_order(kernels.linear(), 3)
    scaled = gpytorch.kernels.ScaleKernel(gpytorch.kernels.LinearKernel()).double()
    assert info_gain.asymptotic_order(scaled, 3) == linear
    assert (linear.power, linear.log_power) == (0.0, 1.0)
    with pytest.raises(ValueError, match="an RBF, Matérn or linear kernel"):
        info_gain.asymptotic_order(kernels.rbf(0.4) + kernels.linear(), 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_gain.linear_bound(0, 3, 1.0, LAM), "dim >= 1"),
        (lambda: info_gain.linear_bound(2, 0, 1.0, LAM), "count >= 1"),
        (lambda: info_gain.linear_bound(2, 3, 0.0, LAM), "max_variance > 0"),
        (lambda: info_gain.linear_bound(2, 3, 1.0, 0.0), "regularizer > 0"),
        (lambda: info_gain.gram_info_gain(gram(), 0.0), "regularizer > 0"),
        (lambda: info_gain.greedy(torch.ones(3).double(), 2, LAM), "Gram matrix"),
        (lambda: info_gain.greedy(torch.ones(2, 3).double(), 2, LAM), "Gram matrix"),
        (lambda: info_gain.asymptotic_order(kernels.linear(), 0), "dim >= 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
