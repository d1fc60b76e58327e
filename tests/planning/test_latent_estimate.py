"""What a learner would need: counts that are known, bytes that grow as they must, nothing of it flown."""

from dataclasses import replace

import pytest
import torch
from latent_cases import PLANT, SMALL, learner

from gpsafe.planning.latent import LatentAgent, Schedule, estimate
from gpsafe.planning.latent.estimate import _cost, _Kept


def test_parameters_and_bytes_are_those_of_the_learner():
    one = learner("lambda", compact=True)
    found = estimate(one, 7, updates=1)
    assert found.world_parameters == sum(p.numel() for p in one.world.parameters())
    behaviour: object = one.behaviour
    nets = (behaviour.actor, behaviour.critics)  # type: ignore[attr-defined]
    assert found.behaviour_parameters == sum(p.numel() for net in nets for p in net.parameters())
    assert found.weights == found.moments == 8 * (found.world_parameters + found.behaviour_parameters)  # float32, twice
    frame = 8 * 8 * 3 + 8 * (2 + 1 + 1 + 2)  # bytes of a picture; inputs, reward, cost and readings in float64
    assert found.replay == 5 * (PLANT.horizon + 1) * frame  # the capacity is five
    assert found.peak == 0 and found.memory == found.weights + found.moments + found.activations + found.replay
    assert min(found.world_seconds, found.behaviour_seconds, found.act_seconds) > 0
    # small updates are bound by their launches
    assert found.gpu_seconds(100, 0) == pytest.approx(100 * 1e-5 * found.world_launches)
    assert found.gpu_seconds(3, 4) == pytest.approx(1e-5 * (3 * found.world_launches + 4 * found.behaviour_launches))
    with pytest.raises(ValueError, match="new learner"):
        estimate(learner("actsafe").learn(1), 1)


def test_arithmetic_and_launches_are_counted_forwards_and_backwards_and_views_not():
    net, x = torch.nn.Linear(3, 5, bias=False), torch.ones(7, 3, requires_grad=True)
    world = learner("actsafe").world
    found = _cost(world, [net], lambda: net(x).T.sum().backward(), 1)
    assert found.flops == 3 * 2 * 7 * 3 * 5  # the product, and one for each gradient
    assert 4 <= found.launches <= 10
    assert _cost(world, [net], lambda: None, 0).flops == 0


def test_activations_grow_with_the_batch_and_a_planner_learns_nothing_itself():
    kept = []
    for batch in (8, 16):
        schedule = Schedule(batch=batch, updates=1)
        one = learner("actsafe")
        made = LatentAgent(PLANT, one.sight, replace(SMALL, depth=2), one.behaviour, schedule=schedule)
        found = estimate(made, 3, updates=1)
        assert found.behaviour_parameters == 0 == found.behaviour_seconds
        assert found.replay == 3 * 10 * 4 * (4 * 8 * 8 * 3 + 48)  # no capacity, pictures in float32
        kept.append(found.activations)
    assert 1.7 < kept[1] / kept[0] <= 2.0


def test_bytes_kept_for_a_gradient_are_counted_once_and_parameters_not():
    net = torch.nn.Linear(3, 5, bias=False)
    kept, x = _Kept(net), torch.ones(7, 3)
    with kept():
        y = net(x)  # keeps x, 84 bytes
        (y * y).sum()  # keeps y once, 140 bytes
    assert kept.total == 84 + 140
