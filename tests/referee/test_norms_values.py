"""What is told beside the lower bound of a norm, by its definitions: growth, other R, random functions through the rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpsafe.referee import norms, trials
from gpsafe.referee.norms import Growth
from gpsafe.referee.trials import Design
from gpsafe.rkhs import kernels

FIRST, ROWS, R = 10, 50, 0.1
SCALES, VARIANCE = (0.5, 0.8), 1.7


def design(**changes) -> Design:
    z = 2 * torch.rand(ROWS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    links = torch.full((ROWS,), -1, dtype=torch.long)
    return Design(**{"kernel": kernels.rbf(SCALES, VARIANCE), "norm": 1.0, "noise": R, "delta": 0.05, "z": z,
                     "first": FIRST, "links": links, "scale": 0.5, **changes})  # fmt: skip


def observed() -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.sin(3 * design().z.sum(-1)) + R * torch.randn(ROWS, dtype=torch.float64, generator=g)


def gram(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return VARIANCE * np.exp(-(((a[:, None] - b[None]) / np.array(SCALES)) ** 2).sum(-1) / 2)


def test_growth_is_of_halved_numbers_of_judging_rows_from_the_last_to_four():
    given, y = design(), observed()
    tried = trials.judge(given, torch.stack([y, 9 * y], -1))
    found = norms.growth(given, y, tried)
    assert found.counts == (4, 5, 10, 20, 40)
    z, later = given.z.numpy()[FIRST:], y.numpy()[FIRST:]
    for count, lower, mean in zip(found.counts, found.lower, found.mean, strict=True):
        k, own = gram(z[:count], z[:count]), later[:count]
        weights = np.linalg.solve(k + R**2 * np.eye(count), own)
        assert mean == pytest.approx(math.sqrt(weights @ k @ weights), rel=1e-9)
        radius, etas = float(tried.radius["own"][count - 1, 0]), np.linalg.eigvalsh(k)[-1] * np.logspace(-9, 6, 80)
        best = max(own @ np.linalg.solve(k + eta * np.eye(count), own) - radius / eta for eta in etas)
        assert lower == pytest.approx(math.sqrt(max(best, 0.0)), rel=1e-5)
    assert found.lower[-1] > found.lower[0] > 0
    many = design(z=torch.rand(140, 2, dtype=torch.float64), links=torch.full((140,), -1))
    y = torch.ones(140, dtype=torch.float64)
    assert norms.growth(many, y, trials.judge(many, y.unsqueeze(-1))).counts == (4, 8, 16, 32, 65, 130)


def test_the_exponent_is_that_of_the_last_factor_of_four():
    def exponent(counts: tuple[int, ...], lower: tuple[float, ...]) -> float:
        return Growth(counts, lower, lower).exponent

    assert exponent((4, 8, 16, 32), (9.0, 3.0, 5.0, 6.0)) == pytest.approx(0.5)
    assert exponent((4, 5, 11, 23, 46), (9.0, 9.0, 1.0, 5.0, 2.0)) == pytest.approx(math.log(2) / math.log(46 / 11))
    for lower in ((0.0, 1.0, 2.0), (-1.0, 1.0, 2.0)):
        assert math.isnan(exponent((4, 8, 16), lower))
    assert math.isnan(exponent((4,), (1.0,)))


def test_other_noise_is_judged_like_the_claimed_one_and_what_arithmetic_does_not_carry_is_left_out(monkeypatch):
    given, y = design(norm=0.3), observed()
    found = norms.alternatives(given, y)
    assert tuple(one.factor for one in found) == norms.FACTORS == (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    for one in found:
        other = replace(given, noise=one.factor * R)
        tried = trials.judge(other, y.unsqueeze(-1))
        assert one.lower == {family: float(v[0]) for family, v in tried.lower.items()}
        told = {test for test, v in tried.refuted(other).items() if bool(v[0])} & set(norms.JOINT)
        assert set(one.refuted) == told
    assert "norm" in found[2].refuted and found[-1].refuted == ()
    judge = trials.judge

    def careful(given: Design, y: torch.Tensor) -> trials.Tried:
        if given.noise < R:
            raise ValueError("too small")
        return judge(given, y)

    monkeypatch.setattr(trials, "judge", careful)
    assert [one.factor for one in norms.alternatives(given, y)] == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_random_functions_are_the_draws_and_the_least_that_then_meets_the_rows(monkeypatch):
    """The same draws; Σ b_i k(z̃_i, ·) of half of ‖μ‖² in norm, and the ridge regression of what it leaves."""
    given, y = design(), observed()
    monkeypatch.setattr(norms, "DRAWS", 20)
    found = norms.random_functions(given, y, seed=3)
    z, own = given.z.numpy(), y.numpy()
    ridge, g = gram(z, z) + R**2 * np.eye(ROWS), torch.Generator().manual_seed(3)
    weights = np.linalg.solve(ridge, own)
    size = math.sqrt(weights @ gram(z, z) @ weights / 2)
    expected = []
    for _ in range(20):
        extra = torch.rand(30, 2, dtype=torch.float64, generator=g).numpy()
        extra = z.min(0) + (z.max(0) - z.min(0)) * extra
        b = 2 * torch.rand(30, 1, dtype=torch.float64, generator=g).numpy()[:, 0] - 1
        b *= size / math.sqrt(b @ gram(extra, extra) @ b)
        points, rest = np.concatenate([z, extra]), np.linalg.solve(ridge, own - gram(z, extra) @ b)
        whole = np.concatenate([rest, b])
        expected.append(math.sqrt(whole @ gram(points, points) @ whole))
    assert found.tolist() == pytest.approx(sorted(expected), rel=1e-6)
    assert not torch.equal(norms.random_functions(given, y), found)
    assert torch.equal(norms.random_functions(given, y), norms.random_functions(given, y, seed=0))
    flat = design(kernel=kernels.linear([1.0, 1.0]), z=0 * given.z)  # a kernel that is 0 at all rows and centres
    assert norms.random_functions(flat, y).tolist() == [0.0] * 20
    again = norms.over_estimate(given, y)  # failure 0.05, seed 0, ⌈0.95 · 21⌉ of 20
    assert (again.value, again.failure) == (float(norms.random_functions(given, y, seed=0)[19]), 0.05)
