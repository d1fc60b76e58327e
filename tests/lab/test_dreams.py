"""Dreams are those of the world model, their maps lie as the arena does, and every control makes another picture."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from gpsafe.lab.dreams import Dreams
from gpsafe.plotting import figure
from gpsafe.systems.point_goal import PointGoal


@cache
def small() -> Dreams:
    return Dreams.learn(PointGoal(horizon=24), episodes=3, updates=2, tests=2, size=8, side=12)


def test_a_dream_is_the_models_own_and_takes_the_inputs_that_were_taken():
    found = small()
    rssm, test = found.world.rssm, found.test
    states = found.imagined(5)
    assert states.feature.shape[:3] == (20, 5, 2)
    with torch.no_grad():
        belief = rssm.filter(test.images[:, :5], test.actions[:, :5], None).states[-1]
        h, prior = rssm.predict(belief, test.actions[:, 5])
        assert torch.allclose(states.deterministic[0], h, atol=1e-6)
        again, _ = rssm.predict(states[0], test.actions[:, 6].expand(5, -1, -1))
    assert torch.allclose(states.stochastic[0], prior.mean, atol=1e-6)
    assert torch.allclose(states.deterministic[1], again, atol=1e-6)
    with pytest.raises(ValueError, match="frames given"):
        found.imagined(25)


def test_errors_are_distances_and_members_are_no_further_from_their_mean_than_from_the_truth():
    error, spread, still = small().errors(5)
    assert error.shape == spread.shape == still.shape == (20,)
    assert bool((spread <= error + 1e-6).all())  # the mean is the nearest point to all of them
    truth = small().states
    assert float(still[0]) == pytest.approx(float((truth[:, 5] - truth[:, 4]).square().sum(-1).mean().sqrt()))


def test_maps_lie_as_the_arena_does():
    found = small()
    places = found.places.reshape(12, 12, 2)
    assert bool((places[:, 1:, 0] > places[:, :-1, 0]).all()) and bool((places[1:, :, 1] > places[:-1, :, 1]).all())
    visited = found.visited()
    corner = visited[: 12 // 2, : 12 // 2]  # around the start, at the lower left
    assert bool(corner.any()) and not bool(visited[12 // 2 :, 12 // 2 :].any())
    for values in (found.doubt(), found.misread(), found.hazard(known=True), found.hazard(known=False)):
        assert values.shape == (12, 12) and bool((values >= 0).all())
    axes = figure(3, 3).subplots()
    found.draw_map(axes, found.doubt())
    assert axes.images[0].origin == "lower" and len(axes.lines) == len(found.plant.hazards) + 2


def test_every_control_makes_another_picture():
    explorer = small().explorer()
    first = explorer.picture().png
    assert explorer.picture(episode=1).png != first and explorer.picture(given=9).png != first
