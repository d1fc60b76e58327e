"""Branches: length, ends, rewards; draws of ensembles and of other models."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpsafe.models import Ensemble, Normalizer, Prediction
from gpsafe.models._mlp import MLP
from gpsafe.planning.mbpo import Ring, Schedule, branch, sampler, starts
from gpsafe.planning.mbpo.rollouts import CHUNK
from gpsafe.systems.double_integrator import DoubleIntegrator
from gpsafe.systems.xmpsc import SafeCartPole, SimplePendulum


def ensemble(members: int, *, clamp: str = "soft") -> Ensemble:
    """Members that disagree by far more than their σ, which differ between rows; nothing normalised by 0 and 1."""
    g = torch.Generator().manual_seed(members)
    network = MLP.random(members, (3, 6, 5, 4), g)
    limits = 2 * torch.tensor([[1e-5, 1e-5], [1e-2, 1e-2]], dtype=torch.float64).log()
    biases = [torch.randn(b.shape, generator=g).double() for b in network.biases]
    biases[-1][:, 2:] -= 15.0  # between the limits
    return Ensemble.from_weights(
        [*(3 * w for w in network.weights[:-1]), 6 * network.weights[-1]],
        biases,
        nx=2,
        nu=1,
        inputs=Normalizer(torch.tensor([0.3, -0.2, 0.1]), torch.tensor([0.5, 2.0, 0.7])),
        targets=Normalizer(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])),
        log_var_limits=limits,
        clamp=clamp,  # type: ignore[arg-type]
        prior=SimplePendulum().prior(),
    )


def spread(members: int, rows: int, clamp: str) -> tuple[np.ndarray, np.ndarray]:
    """Which member each draw is nearest to, and (x⁺ − μ)/σ of it, (rows, 2)."""
    model, g = ensemble(members, clamp=clamp), np.random.default_rng(1)
    x, u = g.uniform(-2, 2, (rows, 2)), g.uniform(-1, 1, (rows, 1))
    drawn = sampler(model)(x, u, g)
    mean, std = (v.numpy() for v in model.evaluate(torch.from_numpy(x), torch.from_numpy(u)))
    member = np.abs(drawn - mean).sum(-1).argmin(0)
    assert std.max() > 4 * std.min() > 1e-4
    return member, ((drawn - mean) / std)[member, np.arange(rows)]


@pytest.mark.parametrize(("members", "clamp"), [(1, "soft"), (3, "soft"), (3, "hard")])
def test_every_row_is_a_gaussian_draw_of_one_member_of_its_own_point(members: int, clamp: str) -> None:
    member, z = spread(members, 6000, clamp)
    share = np.bincount(member, minlength=members) / len(member)
    assert np.abs(share - 1 / members).max() < 0.03
    assert np.abs(z).max() < 6 and np.abs(z.mean(0)).max() < 0.08 and np.abs(z.std(0) - 1).max() < 0.06
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.06


def test_any_other_model_is_drawn_from_its_prediction() -> None:
    class Told:
        def predict(self, x: torch.Tensor, u: torch.Tensor) -> Prediction:
            return Prediction(2 * x + u, torch.full_like(x, 0.3), torch.tensor([0.4, 0.0], dtype=torch.float64))

    g = np.random.default_rng(0)
    x, u = g.standard_normal((5000, 2)), g.standard_normal((5000, 1))
    gap = sampler(Told())(x, u, g) - (2 * x + u)  # type: ignore[arg-type]
    np.testing.assert_allclose(gap.std(0), [0.5, 0.3], rtol=0.05)
    np.testing.assert_allclose(gap.mean(0), 0, atol=0.03)


@given(st.integers(1, 6), st.integers(0, 30), st.integers(0, 9))
def test_a_branch_follows_its_model_and_ends_where_the_limits_do(length: int, count: int, seed: int) -> None:
    plant, g = SafeCartPole(), np.random.default_rng(seed)

    def step(x: np.ndarray, u: np.ndarray, _: np.random.Generator) -> np.ndarray:
        return np.float32(x + np.concatenate([u, u, 0.1 * u, u], -1)).astype(np.float64)

    begin = g.uniform(-2, 2, (count, 4)) * [1, 1, 0.05, 1]
    rows = branch(step, plant, lambda x: np.sin(7 * x[:, :1]) + 1.2 * np.sign(x[:, :1]), begin, length, g)
    x, u, after, ends = rows[:, :4], rows[:, 4:5], rows[:, 6:10], rows[:, 10]
    assert np.array_equal(after, step(x.astype(np.float64), u.astype(np.float64), g))
    truth = torch.from_numpy(after).double()
    assert np.array_equal(ends, plant.cost(truth).numpy())
    np.testing.assert_allclose(rows[:, 5], plant.reward(truth, torch.from_numpy(u).double()), rtol=1e-5)
    # naive: every start for itself
    expected = 0
    for one in np.float32(begin):
        for _ in range(length):
            line = np.float32(np.sin(7 * one[:1]) + 1.2 * np.sign(one[:1]))
            one = np.float32(step(one.astype(np.float64)[None], line.astype(np.float64)[None], g)[0])
            expected += 1
            if plant.cost(torch.from_numpy(one).double()) > 0:
                break
    assert len(rows) == expected


def test_what_is_not_finite_ends_its_branch_and_is_not_stored() -> None:
    def explodes(x: np.ndarray, u: np.ndarray, _: np.random.Generator) -> np.ndarray:
        return np.where(x[:, :1] > 0, [[1e39, 0.0]], x)  # infinite in float32

    begin = np.array([[3.0, 0.0], [-1.0, 0.0], [np.nan, 0.0]])
    plant = DoubleIntegrator()
    rows = branch(explodes, plant, lambda x: 0 * x[:, :1], begin, 3, np.random.default_rng(0))
    assert np.isfinite(rows).all() and len(rows) == 3 and (rows[:, 0] == -1).all()


def test_more_starts_than_fit_a_chunk_all_branch() -> None:
    plant, g = SimplePendulum(), np.random.default_rng(0)
    begin = np.repeat([[3.0, 0.0]], CHUNK + 3, 0)
    rows = branch(lambda x, u, _: x, plant, lambda x: x[:, :1] * 0, begin, 2, g)
    assert len(rows) == 2 * len(begin)


def test_starts_are_states_that_were_visited() -> None:
    ring = Ring(5, 2, 1)
    ring.add(np.arange(6.0).reshape(3, 2), np.zeros((3, 1)), np.zeros(3), np.zeros((3, 2)), np.zeros(3))
    drawn = starts(ring, 200, np.random.default_rng(0))
    assert {tuple(row) for row in drawn.tolist()} == {(0.0, 1.0), (2.0, 3.0), (4.0, 5.0)}
    with pytest.raises(ValueError, match="at least one real"):
        starts(Ring(5, 2, 1), 2, np.random.default_rng(0))


@given(st.integers(-5, 50), st.integers(1, 40), st.integers(1, 9), st.integers(0, 9), st.integers(0, 120))
def test_a_schedule_is_the_truncated_line(first: int, over: int, shortest: int, more: int, epoch: int) -> None:
    found = Schedule(first, first + over, shortest, shortest + more)(epoch)
    exact = shortest + more * min(max((epoch - first) / over, 0.0), 1.0)
    assert found <= exact + 1e-9 and found > exact - 1 - 1e-9 and isinstance(found, int)


def test_what_does_not_fit_is_refused() -> None:
    g, plant = np.random.default_rng(0), SimplePendulum()
    with pytest.raises(ValueError, match="length"):
        branch(lambda x, u, _: x, plant, lambda x: x, np.zeros((1, 2)), 0, g)
    with pytest.raises(ValueError, match=r"starts of shape \(n, 2\)"):
        branch(lambda x, u, _: x, plant, lambda x: x, np.zeros((1, 3)), 1, g)
    for wrong, says in (((3, 3, 1, 2), "first < last"), ((0, 1, 0, 2), "shortest"), ((0, 1, 3, 2), "longest")):
        with pytest.raises(ValueError, match=says):
            Schedule(*wrong)
