"""What a tube model gives as mean alone is what it linearises about, and tubes are the same with and without it."""

import pytest
import torch
from xmpsc_cases import ensemble_pendulum, pendulum_ensemble

from gpsafe.tube import EnsembleTube
from gpsafe.tube.core import propagate


class WithoutMeans:
    """The same model, which says no more than it must."""

    def __init__(self, model: EnsembleTube) -> None:
        self.nx, self.nu, self.num_members, self.mode = model.nx, model.nu, model.num_members, model.mode
        self.assumptions, self.linearise, self.remainder = model.assumptions, model.linearise, model.remainder
        self.unseen = model.unseen


@pytest.mark.parametrize("mode", ["paper", "sound"])
def test_tubes_are_those_of_one_linearisation_after_another(mode):
    ensemble = pendulum_ensemble(3, 8)
    model = EnsembleTube.paper(ensemble) if mode == "paper" else EnsembleTube.sound(ensemble, steps=3, delta=0.1)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 2, dtype=torch.float64, generator=g) + torch.tensor([3.0, 0.0]).double()
    u = 2 * torch.rand(4, 1, 1, dtype=torch.float64, generator=g) - 1
    torch.testing.assert_close(model.mean(x, u), model.linearise(x, u).mean, rtol=1e-13, atol=1e-13)
    starts, plans = x[:, 0], 0.5 * torch.randn(4, 3, 1, dtype=torch.float64, generator=g)
    gain = ensemble_pendulum().gain
    quick, slow = (propagate(one, starts, plans, gain) for one in (model, WithoutMeans(model)))
    for name in ("center", "factor", "inputs", "reference"):
        torch.testing.assert_close(getattr(quick, name), getattr(slow, name), rtol=1e-10, atol=1e-12)
    assert quick.mode == slow.mode == mode


def test_gradients_pass_through_all_stages():
    model, gain = EnsembleTube.paper(pendulum_ensemble(2, 8)), ensemble_pendulum().gain
    start, plan = torch.tensor([3.0, 0.1]).double(), torch.tensor([[0.3], [-0.2]]).double()

    def last(plan: torch.Tensor) -> torch.Tensor:
        tube = propagate(model, start, plan, gain)
        return torch.cat([tube.center[:, -1].flatten(), tube.factor[:, -1].square().flatten()])

    assert torch.autograd.gradcheck(last, plan.requires_grad_(), atol=1e-6)
