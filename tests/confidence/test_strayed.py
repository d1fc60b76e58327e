"""States without a process of their own are said to equal the known part but for their noise: data may refute that."""

import math

import pytest
import torch
from torch import Tensor

from gpsafe.algorithms.actsafe import ActSafe
from gpsafe.algorithms.explain import after_flights
from gpsafe.confidence import ConfidenceSet, Mixture, Strayed, strayed
from gpsafe.confidence.set import RECORDED
from gpsafe.cost import GaussianTube
from gpsafe.data import Transitions
from gpsafe.models import GP
from gpsafe.policies import AffinePolicies
from gpsafe.referee import examine
from gpsafe.rkhs import kernels
from gpsafe.sets import Box
from gpsafe.systems.base import CallableSystem, IndicatorCost
from gpsafe.systems.known import AffineKnown
from gpsafe.systems.task import Task

KNOWN = AffineKnown([[1.0, 0.1], [0.0, 0.9]], [[0.0], [0.2]], [0.0, 0.0])
LIMIT = Box([-1.0], [1.0])
KERNEL = kernels.rbf([1.0, 1.0, 1.0], variance=0.01)


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def plant(off: float, noise: float = 0.0) -> CallableSystem:
    """A position that moves `off` further a step than its known part says; the speed is learned, and as known."""
    return CallableSystem(
        "cart", 2, 1, Box([-2.0, -2.0], [2.0, 2.0]), LIMIT, tensor(noise, 0.02), tensor(0.0, 0.0), 6,
        IndicatorCost([[1.0, 0.0]], [1.0]), 0.2, lambda x, u: KNOWN(x, u) + tensor(off, 0.0), lambda x, u: x[..., 0],
    )  # fmt: skip


def model(noise: float = 0.0) -> GP:
    return GP.create(KERNEL, 4e-4, nx=2, nu=1, noise_std=tensor(noise, 0.02), outputs=(1,), prior=KNOWN)


def rows(system: CallableSystem, count: int = 120) -> Transitions:
    g = torch.Generator().manual_seed(0)
    x, u = system.state_box.sample(count, g), LIMIT.sample(count, g)
    noise = system.noise_std * torch.randn(count, 2, dtype=torch.float64, generator=g)
    return Transitions(x, u, system.mean(x, u) + noise)


@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
def test_what_the_noise_reaches_is_not_accused_and_what_it_does_not_is(noise: float):
    data = rows(plant(0.0, noise), 20_000)
    assert strayed(model(noise), data, tensor(noise, 0.02)) is None
    kept = Transitions(*(part.float().double() for part in (data.x, data.u, data.x_next)))
    assert strayed(model(noise), kept, tensor(noise, 0.02)) is None
    found = strayed(model(noise), rows(plant(15 * noise + 0.001, noise)), tensor(noise, 0.02))
    assert isinstance(found, Strayed) and found.output == 0 and found.value > found.upper
    assert "state 0 is not learned" in str(found)
    everything = GP.create(KERNEL, 4e-4, nx=2, nu=1, noise_std=tensor(noise, 0.02), prior=KNOWN)
    assert strayed(everything, rows(plant(0.5, noise)), tensor(noise, 0.02)) is None


@pytest.mark.parametrize(("known", "before", "scale"), [(0.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 2.0)])
def test_without_noise_only_what_recording_loses_is_allowed(known, before, scale):
    """RECORDED (|known part| + |state| + |next state|): the known part may be a difference of larger terms."""
    one = GP.create(
        KERNEL, 4e-4, nx=2, nu=1, noise_std=tensor(0.0, 0.02), outputs=(1,), prior=lambda x, u: 0 * x + known
    )
    x, room = tensor([before, 0.0]), RECORDED * scale
    for share, accused in ((0.99, False), (1.01, room > 0)):
        told = Transitions(x, x[:, :1], tensor([known + share * room, 0.0]))
        assert (strayed(one, told, tensor(0.0, 0.02)) is not None) == accused


@pytest.mark.parametrize("lost", [math.nan, math.inf, 1e308])
def test_a_row_without_a_known_part_accuses_nobody_and_hides_no_other(lost: float):
    """x_0⁺ = x_0 but beyond 0.9, where the known part has no number."""

    def broken(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.where(x[..., 0] > 0.9, lost, x[..., 0]), x[..., 1]], dim=-1)

    blind = GP.create(KERNEL, 4e-4, nx=2, nu=1, noise_std=0.1, outputs=[1], prior=broken)
    x = torch.linspace(-1.0, 0.8, 12, dtype=torch.float64).reshape(6, 2)
    struck = x.clone()
    struck[2, 0] = 0.95
    for start, accused in ((x, False), (struck, math.isfinite(lost))):
        still = Transitions(start, torch.zeros(6, 1).double(), start)
        assert (strayed(blind, still, tensor(0.1, 0.1)) is not None) is accused
        moved = Transitions(start, torch.zeros(6, 1).double(), start + 5.0 * torch.eye(6, 2).double().roll(4, 0))
        assert strayed(blind, moved, tensor(0.1, 0.1)) is not None


def learner(off: float) -> ActSafe:
    system, bound = plant(off), Mixture(rkhs_norm=0.1, subgaussian=0.02, delta=0.1)
    policies = AffinePolicies(tensor([-0.1], [0.0], [0.1]), tensor(*[[[-0.5, -0.5]]] * 3), LIMIT)
    return ActSafe(system, policies, [0], model(), bound, GaussianTube(task=Task.of(system)), episodes=3)


def test_actsafe_stops_when_an_unlearned_state_strays():
    """A position 0.05 further a step, of which six steps from 0 are 0.3, went unnoticed: episodes went on as guaranteed."""
    assert learner(0.0).run(torch.Generator().manual_seed(0)).falsified is None
    run = learner(0.05).run(torch.Generator().manual_seed(0))
    assert isinstance(run.falsified, Strayed) and len(run.episodes) == 1


def test_nothing_is_certified_of_rows_in_which_an_unlearned_state_strays():
    stated = {"kernels": KERNEL, "prior": KNOWN, "outputs": (1,), "rkhs_norm": 0.1, "subgaussian": 0.02}
    for off in (0.0, 0.05):
        found = examine(rows(plant(off)), task=Task.of(plant(off)), **stated)["policies"]
        assert (off > 0) == ("state 0 is not learned" in found.statement)


def test_a_diagnosis_takes_each_state_of_members_that_agree_once():
    """Twelve members at a limit of the input fly one path: F_n refused the imagined rows as repeated, and so the diagnosis."""
    confidence = ConfidenceSet(Mixture(rkhs_norm=0.1, subgaussian=0.02, delta=0.1)).update(model())
    members = AffinePolicies(torch.full((12, 1), 2.0), torch.zeros(12, 1, 2), LIMIT)
    task = Task.of(plant(0.0)).with_(horizon=12, noise_std=tensor(0.0, 0.0))
    told = after_flights(confidence, members, task)
    assert told is not None and told.model.num_data == 12
