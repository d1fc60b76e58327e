"""The multiplier: its recursion, and a two-armed bandit whose best mixture is known."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

import gpsafe as gs
from gpsafe.baselines import Frame, PPOLagrangian, TRPOLagrangian
from gpsafe.baselines.lagrangian import ascended
from gpsafe.baselines.ppo import Multiplier
from gpsafe.models._flat import Adam
from gpsafe.systems import as_episodic


def test_the_multiplier_climbs_the_excess_and_stays_at_zero_from_below():
    assert (
        ascended(0.5, 2.0, 0.1) == 0.7
        and math.isclose(ascended(0.5, -2.0, 0.1), 0.3)
        and ascended(0.1, -2.0, 0.1) == 0.0
    )
    lam = 1e-3
    for excess in (0.3, 0.0, 0.7, 0.1):  # d = 0: it never falls
        before, lam = lam, ascended(lam, excess, 0.1)
        assert lam >= before


def test_the_published_multiplier_is_adams():
    held, lam, adam = Multiplier(), np.array([1e-3]), Adam((1,), np.float64)
    for excess in (0.9, 0.2, 0.4, 5.0, 0.3):
        held.ascend(excess, 0.035)
        adam.step(lam, np.array([-excess]), 0.035)
        assert math.isclose(held["value"], lam[0], rel_tol=1e-6)
    held.ascend(-1e9, 0.035)
    assert held["value"] >= 0.0


@dataclass(frozen=True)
class Arms:
    """Arm 1 (u > 0) pays 1 and costs 1, arm 0 neither."""

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.where(u > 0, 1.0, -1.0).to(torch.float64)


def paid(x: Tensor, u: Tensor) -> Tensor:
    return (x[..., 0] > 0).to(torch.float64)


def bandit():
    plant = gs.plant(
        Arms(),
        x0=[-1.0],
        horizon=1,
        noise_std=[1e-9],
        states=([-2.0], [2.0]),
        inputs=([-1.0], [1.0]),
        safe=([-2.0], [0.0]),
        reward=paid,
    )
    return as_episodic(plant, gs.Box([-1.1], [-0.9]), torch.neg)


def shares(kind, preset: str, limit: float, batches: int) -> list[float]:
    """How often the dear arm was pulled, batch by batch."""
    frame = Frame(steps=100, plants=100, hidden=(), passes=1, parts=1)
    options = {} if kind is TRPOLagrangian else {"rate": 1e-3}
    one = kind(bandit(), preset=preset, epochs=10_000, limit=limit, frame=frame, multiplier_rate=2.0, **options)
    one.learn(batches)
    assert all(row["reward"] == row["cost"] for row in one.logger.rows)
    return [row["cost"] for row in one.logger.rows]


@pytest.mark.parametrize(
    ("kind", "preset"),
    [(TRPOLagrangian, "published"), (TRPOLagrangian, "corrected"), (PPOLagrangian, "corrected")],
)
def test_on_a_two_armed_bandit_the_share_of_the_dear_arm_ends_at_the_limit(kind, preset):
    """max p subject to p ≤ d has the solution p = d, whatever the start: the mixture is known."""
    found = shares(kind, preset, 0.7, 200)
    late = found[60:]
    assert found[0] < 0.5 and abs(sum(late) / len(late) - 0.7) < 0.03
    assert min(late) > 0.4 and max(late) < 0.95


def test_a_multiplier_under_adam_goes_round_and_round():
    late = shares(PPOLagrangian, "published", 0.7, 200)[60:]
    assert min(late) < 0.15 and max(late) > 0.9


def test_control_with_a_limit_that_allows_it_the_dear_arm_is_taken():
    assert shares(TRPOLagrangian, "corrected", 1.0, 60)[-1] > 0.9
