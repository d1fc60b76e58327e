"""What `experiments/pendulum_policies.py` calls the truth, and its class."""

import torch

from experiments._report.policies_family import FREQUENCY_SQ, GAIN, NAMES, family
from experiments._report.policies_truth import VISITED, SeparableResidual, true_costs, visited
from experiments.pendulum_policies import Arguments, learner, plant, program
from gpsafe.confidence import ConfidenceSet
from gpsafe.systems.reference import reference_pendulum_policies


def test_class_has_two_thousand_members_and_four_given_ones():
    members = family()
    assert members.policies.num == 2032 and len(members.initial) == 4
    assert torch.bincount(members.kind, minlength=len(NAMES)).tolist() == [576, 576, 432, 448]
    assert int((members.policies.coefficients.flatten(1).unsqueeze(1).expand(-1, 1, -1)).unique(dim=0).shape[0]) >= 2000


def test_given_set_points_are_those_of_the_reference_class_up_to_the_believed_gain():
    members, (reference, _) = family(), reference_pendulum_policies()
    chosen = members.policies.select(members.initial[:1])
    x = torch.tensor([[[-0.55, 0.1]]], dtype=torch.float64)
    assert torch.allclose(chosen(x) * GAIN, reference.select(torch.tensor([0]))(x) * 15.0, atol=1e-9)
    angle = float(members.target[members.initial[0]])
    raw = FREQUENCY_SQ * torch.tensor(angle).double().sin() + 40 * (angle - x[0, 0, 0]) - 11 * x[0, 0, 1]
    assert torch.allclose(chosen(x).flatten(), (raw / GAIN).clamp(-1, 1).flatten(), atol=1e-9)


def test_separable_residual_is_the_residual():
    system = plant()
    g = torch.Generator().manual_seed(0)
    x, u = system.state_box.sample(30, g), 2 * torch.rand(3, 30, 1, dtype=torch.float64, generator=g) - 1
    fast = SeparableResidual(system.residual[0])(x, u)
    exact = system.residual_fn(torch.cat([x.expand(3, -1, -1), u], -1))[..., 0]
    assert torch.allclose(fast, exact, atol=1e-10, rtol=0)


def test_visits_are_shares_of_paths():
    inside, outside = torch.tensor([0.05, 0.1]).double(), torch.tensor([9.0, 0.0]).double()
    states = torch.stack([torch.stack([inside, inside, outside]), torch.stack([outside] * 3)]).unsqueeze(0)
    share = visited(states)[0]
    cell = int(VISITED.index(inside))
    assert int(share[cell]) == 128 and int(share.long().sum()) == 128  # half of 255, rounded


def test_both_sides_of_the_truth_hold_the_estimate():
    system, members = plant(), family(targets=7, gains=1)
    model, bound = learner(Arguments())
    chosen = members.select(torch.tensor([0, 6, 12, 13]))  # plain and compensated, harmless to reckless
    grid = program(Arguments(cells_angle=128, cells_speed=80, split=1), system).grid
    confidence = ConfidenceSet(bound).update(model)
    truth = true_costs(system, grid, confidence, chosen.policies, region=chosen.region, seed=3)
    assert bool((truth.lower <= truth.estimate + 0.2).all() and (truth.upper >= truth.estimate - 0.2).all())
    assert bool(truth.safe(0.2)[0]) and bool(truth.unsafe(0.2)[-2:].all())
    assert not bool((truth.safe(0.2) & truth.unsafe(0.2)).any())
