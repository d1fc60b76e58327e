"""Gaussian noise summed exactly through the linear loop: coverage of plans, width against ellipsoids a step, a control."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from xmpsc_cases import gp_confidence

from gpsafe.systems.known import AffineKnown
from gpsafe.systems.reference import reference_pendulum
from gpsafe.tube import GPTube, LinearTube, Tube, propagate
from gpsafe.tube.ensemble import chi_square_radius
from gpsafe.verdict import clopper_pearson

A = torch.tensor([[1.0, 0.2], [-0.1, 0.95]]).double()
B = torch.tensor([[0.0], [0.2]]).double()
STD, STEPS, DELTA = torch.tensor([0.02, 0.05]).double(), 20, 0.1
GAIN = torch.tensor([[-0.5, -1.0]]).double()


@dataclass(frozen=True)
class Summed(LinearTube):
    """A linear plant with Gaussian noise."""

    factor: float = 1.0

    def growth(self, k: int) -> float:
        return self.factor


def tube(model) -> Tube:
    return propagate(model, torch.zeros(2).double(), torch.zeros(STEPS, 1).double(), GAIN)


def paths(count: int, seed: int) -> Tensor:
    """Deviations of the closed loop, (count, STEPS + 1, 2)."""
    noise = STD * torch.randn(count, STEPS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x, found = torch.zeros(count, 2).double(), []
    for k in range(STEPS):
        found.append(x)
        x = x @ (A + B @ GAIN).T + noise[:, k]
    return torch.stack([*found, x], 1)


def left(found: Tube, states: Tensor) -> int:
    """How many paths leave some cross-section."""
    factor = found.factor[0, 1:]
    ray = torch.linalg.solve_triangular(factor, (states[:, 1:] - found.center[0, 1:]).unsqueeze(-1), upper=False)
    return int((ray.squeeze(-1).norm(dim=-1) > 1).any(-1).sum())


def test_whole_plans_are_held_at_the_stated_rate_and_a_quantile_without_the_union_is_caught():
    radius, states = chi_square_radius(2, DELTA, STEPS), paths(4000, 0)
    plant = AffineKnown(A, B, torch.zeros(2).double())
    exact = tube(Summed(plant, radius * STD))
    assert clopper_pearson(left(exact, states), 4000)[0] <= DELTA
    small = chi_square_radius(2, DELTA, 1) / radius
    assert clopper_pearson(left(tube(Summed(plant, radius * STD, factor=small)), states), 4000)[0] > DELTA
    cov, loop = torch.zeros(2, 2).double(), A + B @ GAIN
    for k in range(STEPS):
        cov = loop @ cov @ loop.T + torch.diag(STD.square())
        torch.testing.assert_close(exact.shape[0, k + 1], radius**2 * cov, rtol=1e-7, atol=1e-9)
    each = tube(LinearTube(plant, radius * STD))
    ratio = each.factor[0].square().sum((-2, -1)).sqrt()[1:] / exact.factor[0].square().sum((-2, -1)).sqrt()[1:]
    assert (
        float(ratio[0]) == pytest.approx(1.0, rel=1e-9) and bool((ratio >= 1 - 1e-9).all()) and float(ratio[-1]) > 1.5
    )


def test_the_tube_of_a_gaussian_process_holds_f_star_and_is_narrower():
    system, confidence = reference_pendulum(), gp_confidence(60)
    inputs = 0.4 * torch.sin(torch.arange(12.0, dtype=torch.float64)).unsqueeze(-1)
    gain, x0 = torch.tensor([[-3.0, -0.6]]).double(), torch.tensor([0.3, -0.5]).double()
    each, sums = (GPTube(confidence, 12, 0.1, noise=noise) for noise in ("each", "sums"))
    wide, narrow = (propagate(model, x0, inputs, gain) for model in (each, sums))
    size = [float(t.factor[0, -1].norm()) for t in (wide, narrow)]
    assert size[1] < 0.9 * size[0]
    noise = system.noise_std * torch.randn(600, 12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x, out = x0.expand(600, 2), torch.zeros(600, dtype=torch.bool)
    for k in range(12):
        u = inputs[k] + (x - narrow.reference[k]) @ gain.T
        x = system.mean(x, u) + noise[:, k]
        ray = torch.linalg.solve_triangular(
            narrow.factor[0, k + 1], (x - narrow.center[0, k + 1]).unsqueeze(-1), upper=False
        )
        out |= ray.squeeze(-1).norm(dim=-1) > 1
    assert clopper_pearson(int(out.sum()), 600)[0] <= 0.1
    assert "summed through the linear loop" in " ".join(sums.assumptions)
    with pytest.raises(ValueError, match="at most 12 steps"):
        propagate(sums, x0, torch.zeros(13, 1).double(), gain)
