"""What a learner for a plant of one's own is made of: derived, never believed."""

import itertools
import math

import pytest
import torch

import gpsafe as gs
from gpsafe.algorithms import defaults
from gpsafe.algorithms.defaults import anchor_spacing, brakes, landing_boxes, resting_point, room_of, sound_learner
from gpsafe.linalg import vector
from gpsafe.sets import Box

DT = 0.1
UNIT = Box(vector(-1.0), vector(1.0))


def well(x, u):
    """A Duffing step: rests at x = ±1 and 0 without input."""
    return torch.stack(
        [x[..., 0] + DT * x[..., 1], x[..., 1] + DT * (-0.3 * x[..., 1] + x[..., 0] - x[..., 0] ** 3 + 2 * u[..., 0])],
        -1,
    )


def test_newton_finds_the_equilibrium_nearby_with_an_input_inside():
    for start, end in ((0.9, 1.0), (-1.2, -1.0)):
        rest = resting_point(well, vector(start, 0.3), UNIT)
        assert rest.residual < 1e-9
        assert torch.allclose(well(rest.x, rest.u), rest.x, atol=1e-9)
        assert abs(float(rest.x[0]) - end) < 0.35  # (x, u) of least steps: the input helps
        assert float(rest.u.abs()) < 1


def test_no_equilibrium_is_refused():
    with pytest.raises(ValueError, match="an equilibrium of the known part"):
        resting_point(lambda x, u: x + 0.1 * (x.square() + 1) + 0 * u, vector(0.0), UNIT)
    with pytest.raises(ValueError, match="an equilibrium of the known part"):  # needs u = 5
        resting_point(lambda x, u: x + 0.1 * (u - 5.0), vector(0.0), UNIT)


def test_brakes_hold_the_resting_point_and_are_stable():
    rest = resting_point(well, vector(1.0, 0.0), UNIT)
    policies = brakes(rest, vector(0.7, 1.0), UNIT)
    assert policies.num == len(defaults.EFFORTS)
    assert torch.allclose(policies(rest.x.expand(policies.num, 1, 2))[:, 0], rest.u.expand(policies.num, 1), atol=1e-12)
    loops = rest.A + rest.B @ policies.gain
    assert float(torch.linalg.eigvals(loops).abs().max()) < 1


def test_landing_boxes_fit_into_the_room_and_shrink():
    rest = resting_point(well, vector(1.0, 0.0), UNIT)
    gain, room = brakes(rest, vector(0.7, 1.0), UNIT).gain[0], vector(0.7, math.inf)
    boxes = landing_boxes(rest, gain, vector(0.7, 1.0), room)
    for box, size in zip(boxes, defaults.LANDINGS, strict=True):
        assert float(box.radius[0]) <= size * 0.7 + 1e-12
        assert torch.allclose(box.center, rest.x)
    assert all(bool((a.radius > b.radius).all()) for a, b in itertools.pairwise(boxes))


def test_room_is_the_way_to_the_first_limit():
    cost = gs.IndicatorCost(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double(), vector(1.7, -0.3))
    region = Box(vector(0.0, -1.5), vector(2.0, 1.5))
    assert torch.allclose(room_of(cost, vector(1.0, 0.5), region), vector(0.7, 1.0))


@pytest.mark.parametrize("most", [50, 500, 6000])
def test_the_grid_has_the_same_share_of_every_length_and_not_too_many_points(most):
    box = Box(vector(-1.0, -2.0, -1.0), vector(1.0, 2.0, 1.0))
    kernels = [gs.kernels.rbf([0.5, 2.0], 1.0, dims=[0, 1]), gs.kernels.rbf([1.0], 1.0, dims=[0])]
    spacing = anchor_spacing(kernels, box, most=most)
    assert math.isinf(float(spacing[2]))
    assert float(spacing[0] / 0.5) == pytest.approx(float(spacing[1] / 2.0))
    points = (2 * box.radius[:2] / spacing[:2]).ceil().add(1).prod()
    assert float(points) <= most
    assert anchor_spacing([gs.kernels.linear(1.0)], box, most=most).isfinite().all()


def plant(**change):
    given = {
        "x0": [1.0, 0.0], "horizon": 10, "noise_std": [1e-3, 1e-3], "states": ([0.0, -1.5], [2.0, 1.5]),
        "inputs": ([-1.0], [1.0]), "safe": ([0.3, -1.0], [1.7, 1.0]), **change,
    }  # fmt: skip
    return gs.plant(well, **given)


def test_what_cannot_be_derived_is_asked_for_by_name():
    known = gs.AffineKnown([[1, DT], [-2 * DT, 1 - 0.3 * DT]], [[0], [2 * DT]], [0, 2 * DT])
    kernel = gs.kernels.rbf([2.0], 0.1, dims=[0])
    hinge = gs.HingeCost(vector(1.0, 0.0), 1.7)
    cases = {
        "IndicatorCost": plant(safe=None, cost=hinge),
        "positive noise_std of the learned states": plant(noise_std=[1e-3, 0.0]),
    }
    for match, system in cases.items():
        with pytest.raises(ValueError, match=match):
            sound_learner(system, known, [kernel], [1.0], outputs=(1,))
    with pytest.raises(ValueError, match="explorer"):
        sound_learner(plant(), known, [kernel], [1.0], outputs=(1,), explorer="brave")


def test_bad_defaults_cost_episodes_and_no_promise(monkeypatch):
    """Landing sets far too large are not certified: nothing lands in them, and nobody says that they are safe."""
    monkeypatch.setattr(defaults, "LANDINGS", (5.0,))
    known = gs.AffineKnown([[1, DT], [-2 * DT, 1 - 0.3 * DT]], [[0], [2 * DT]], [0, 2 * DT])
    system = gs.twin(plant(), known, kernels=gs.kernels.rbf([2.0], 0.1, dims=[0]), outputs=(1,), counts=(9, 1, 1))
    learner = sound_learner(system, known, system.kernels, system.rkhs_norm, outputs=(1,))
    learner.learn(2)
    judge = learner.known.judge.refine(learner.known.confidence)
    assert int(judge.certified.max()) == -1
