"""S_n over continuous parameters: only certified vectors enter; certified boxes hold no unsafe policy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.cost.grid import Grid
from gpsafe.cost.robust_dp import RobustDP
from gpsafe.cost.scenario_tube import ScenarioTube
from gpsafe.models import GP
from gpsafe.policies.parametric import ParametricPolicies, set_point_family
from gpsafe.policies.rollout import closed_loop, transitions
from gpsafe.safety.safe_parameters import (
    SafeParameters,
    admit,
    box_upper,
    certified_boxes,
    lipschitz_boxes,
    sound_upper,
)
from gpsafe.safety.safe_set import policy_distance
from gpsafe.sets import Box
from gpsafe.systems.base import sample_noise
from gpsafe.systems.reference import reference_1d
from gpsafe.systems.task import Task

UNIT = Box(torch.tensor([-1.0]), torch.tensor([1.0]))
FAMILY = set_point_family((-0.6, 1.4), (1.0, 6.0), input_box=UNIT)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def planted(theta: torch.Tensor) -> torch.Tensor:
    """A cost that is safe (≤ 0.2) below a curve."""
    return (0.2 + theta[:, 0] - 0.5 * torch.sin(theta[:, 1])).clamp_min(0.0)


def start() -> SafeParameters:
    return SafeParameters.initial(torch.tensor([[-0.5, 1.5], [-0.4, 2.0]]).double(), budget=0.2)


@given(seeds(), st.integers(0, 6))
def test_only_certified_vectors_enter_and_the_set_only_grows(seed, rounds):
    safe = start()
    for episode in (1, 2):
        proposals = FAMILY.box.sample(7, generator(seed + episode))
        grown, decisions = admit(
            safe, proposals, planted, family=FAMILY, episode=episode, bound="planted", rounds=rounds
        )
        assert torch.equal(grown.theta[: len(safe)], safe.theta) and grown.witnesses[: len(safe)] == safe.witnesses
        assert bool((planted(grown.theta[len(safe) :]) <= 0.2).all())
        assert decisions.accepted.tolist() == (planted(proposals) <= 0.2).tolist()
        assert decisions.calls == 7 + rounds * int((~decisions.accepted).sum())
        moved = (decisions.fraction > 0) & (decisions.fraction < 1)
        assert bool((planted(decisions.fallback[moved]) <= 0.2).all())
        assert len(grown) == len(safe) + int((decisions.fraction > 0).sum())
        safe = grown


def test_bisection_ends_next_to_the_border():
    safe = SafeParameters.initial(vector(-0.5, math.pi).reshape(1, 2), budget=0.2)
    proposal = vector(0.5, math.pi).reshape(1, 2)  # the border is at g = 0
    _, decisions = admit(safe, proposal, planted, family=FAMILY, episode=1, bound="planted", rounds=12)
    assert decisions.rule == ("",) and float(decisions.fraction) == pytest.approx(0.5, abs=2**-11)
    assert float(decisions.fallback[0, 0]) <= 1e-9


def test_lipschitz_rule_needs_a_certified_neighbour_and_keeps_the_budget():
    def distance(first, second):
        return (first.offset - second.offset.T).abs() + 0.01

    safe, low = start(), torch.zeros(1).double()
    near = torch.tensor([[-0.5, 1.51]]).double()
    refuse = lambda theta: torch.full((len(theta),), 9.0, dtype=torch.float64)  # noqa: E731
    options = {"family": FAMILY, "episode": 2, "bound": "b", "rounds": 0, "distance": distance}
    unchanged, decisions = admit(safe, near, refuse, **options)
    assert len(unchanged) == 2 and decisions.rule == ("",)  # S_0 has no certified value to add D to
    certified = safe.add(safe.theta[:1], low, episode=1, bound="b", rule="bound")
    grown, decisions = admit(certified, near, refuse, **options)
    assert decisions.rule == ("lipschitz",) and len(grown) == 4
    witness = grown.witnesses[-1]
    assert witness.neighbour == 2 and 0.01 < witness.value <= 0.2
    far = torch.tensor([[0.8, 1.5]]).double()
    assert admit(certified, far, refuse, **options)[1].rule == ("",)


def test_values_above_the_budget_and_nan_are_refused():
    for value in (0.3, math.nan):
        with pytest.raises(ValueError, match="values"):
            start().add(torch.zeros(1, 2).double(), vector(value), episode=1, bound="b", rule="bound")


def test_no_proposals_change_nothing():
    safe, decisions = admit(start(), torch.zeros(0, 2).double(), planted, family=FAMILY, episode=1, bound="b")
    assert len(safe) == 2 and decisions.calls == 0 and len(decisions.accepted) == 0


# ------------------------------------------------------------------ with the reference plant
@pytest.fixture(scope="module")
def learned():
    plant = reference_1d()
    model = GP.create(plant.kernels, 1e-4, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known)
    bound = Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=0.01, delta=0.1)
    confidence, g = ConfidenceSet(bound).update(model), generator(0)
    for theta in ([-0.45, 3.0], [-0.1, 3.0], [0.2, 4.0], [0.5, 3.0]):
        noise = sample_noise(plant.noise_std, (plant.horizon, 1, 1), g)
        states, inputs = closed_loop(plant.mean, FAMILY(vector(*theta)[None]), plant.initial_state, noise)
        model = model.condition(transitions(states[0, 0], inputs[0, 0]))
        confidence = confidence.update(model)
    dp = RobustDP(Grid(Box(vector(-1.2), vector(1.4)), (400,)), Task.of(plant))
    return plant, confidence, dp


def test_box_upper_dominates_the_program_of_every_policy_inside(learned):
    _, confidence, dp = learned
    upper = sound_upper(dp, confidence, FAMILY)
    center = torch.tensor([[0.3, 3.0], [0.55, 4.0], [0.8, 3.0]]).double()
    radius = torch.tensor([[0.02, 0.2], [0.05, 0.5], [0.03, 0.1]]).double()
    whole = box_upper(dp, confidence, FAMILY, center, radius)
    g = generator(1)
    for _ in range(12):
        theta = center + radius * (2 * torch.rand(3, 2, dtype=torch.float64, generator=g) - 1)
        assert bool((upper(theta) <= whole + 1e-6).all())
    assert bool((upper(FAMILY.vertices(center, radius).reshape(-1, 2)).reshape(3, -1).amax(-1) <= whole + 1e-6).all())
    point = box_upper(dp, confidence, FAMILY, center, torch.zeros_like(radius))
    assert torch.allclose(point, upper(center), atol=1e-6)  # a box of one point: the program itself
    assert float(whole[0]) < 0.2 < float(whole[2])


def test_certified_boxes_hold_only_certified_policies(learned):
    _, confidence, dp = learned
    safe = SafeParameters.initial(torch.tensor([[0.3, 3.0], [0.0, 2.5]]).double(), budget=0.2)
    shapes = torch.tensor([[0.5, 2.0], [0.05, 0.3], [0.01, 0.1]]).double()
    boxed, looked = certified_boxes(safe, dp, confidence, family=FAMILY, index=torch.arange(2), shapes=shapes)
    assert looked == 6 and bool((boxed.radius.sum(-1) > 0).any())
    g = generator(2)
    theta = (boxed.theta + boxed.radius * (2 * torch.rand(40, 2, 2, dtype=torch.float64, generator=g) - 1)).reshape(
        -1, 2
    )
    assert bool(boxed.covers(theta).all())
    assert bool((sound_upper(dp, confidence, FAMILY)(theta) <= 0.2).all())
    assert not bool(boxed.covers(vector(1.3, 5.0)[None]))


def test_boxes_of_families_that_bend_are_refused(learned):
    """u = 0.9 sin(πθ) is 0 at −1, 0 and 1: the box about 0 was one of u = 0 alone, and held u = 0.9 at ½. Of a gain that turns,
    a box was certified to cost at most 1e-9 that held a policy of cost 13."""
    _, confidence, dp = learned
    center, radius = torch.zeros(1, 1).double(), torch.ones(1, 1).double()

    def angle(theta):
        return 0.9 * torch.sin(math.pi * theta), torch.zeros(len(theta), 1, 1, dtype=torch.float64)

    def turned(theta):
        return 0.9 * theta, torch.zeros(len(theta), 1, 1, dtype=torch.float64)

    plain, bent = (ParametricPolicies(("angle",), Box([-1.0], [1.0]), UNIT, build) for build in (turned, angle))
    assert float(box_upper(dp, confidence, plain, center, radius)) >= 0.9  # of costs that inputs of 0.9 have
    safe = SafeParameters.initial(center, budget=0.2).add(center, vector(0.1), episode=1, bound="planted", rule="bound")
    far = lambda a, b: 10 * (a.offset - b.offset.mT).abs()  # noqa: E731
    for ask in (
        lambda: box_upper(dp, confidence, bent, center, radius),
        lambda: lipschitz_boxes(safe, bent, far, shape=vector(1.0)),
    ):
        with pytest.raises(ValueError, match="angle bends them"):
            ask()
    assert float(lipschitz_boxes(safe, plain, far, shape=vector(1.0))[1, 0]) == pytest.approx(0.1 / 9, rel=1e-6)


def test_boxes_certified_one_after_the_other_cover_nothing_that_neither_covers():
    safe = SafeParameters.initial(vector(0.3, 3.0)[None], budget=0.2)
    wide, tall = vector(0.5, 0.1)[None], vector(0.05, 1.0)[None]
    both = safe.with_boxes(wide).with_boxes(tall)
    theta = safe.theta + FAMILY.box.sample(400, generator(4)) - FAMILY.box.center
    apart = safe.with_boxes(wide).covers(theta) | safe.with_boxes(tall).covers(theta)
    assert not bool((both.covers(theta) & ~apart).any())
    assert not bool(both.covers(vector(0.75, 3.9)[None]).any())  # the corner of the hull of both
    grown = both.with_boxes(vector(0.6, 0.2)[None])  # contains the one that is kept
    assert bool((grown.covers(theta) | ~both.covers(theta)).all()) and float(grown.radius[0, 0]) == 0.6


def test_lipschitz_boxes_keep_value_plus_distance_within_the_budget(learned):
    plant, confidence, dp = learned

    def distance(first, second):
        return policy_distance(
            first, plant.known, plant.kernels, rkhs_norm=plant.rkhs_norm, outputs=(0,), noise_std=plant.noise_std,
            horizon=plant.horizon, ceiling=1.0, others=second,
        )  # fmt: skip

    theta = torch.tensor([[0.3, 3.0]]).double()
    value = sound_upper(dp, confidence, FAMILY)(theta)
    safe = SafeParameters.initial(theta, budget=0.2).add(theta, value, episode=1, bound="b", rule="bound")
    radius = lipschitz_boxes(safe, FAMILY, distance, shape=vector(0.1, 0.1))
    assert float(radius[0].max()) == 0.0 and 0.0 < float(radius[1, 0]) < 1e-3  # tiny: see the experiment
    g = generator(3)
    inside = theta + radius[1] * (2 * torch.rand(50, 2, dtype=torch.float64, generator=g) - 1)
    assert float((value + distance(FAMILY(theta), FAMILY(inside))).max()) <= 0.2 + 1e-12
    corner = theta + 1.5 * radius[1]
    assert float(value + distance(FAMILY(theta), FAMILY(corner))) > 0.2


def test_unsound_certifiers_are_refused(learned):
    _plant, confidence, dp = learned
    heuristic = Constant(rkhs_norm=4.47, subgaussian=0.01, delta=0.1, value=2.0)
    guess = ConfidenceSet(heuristic).update(confidence.model)
    with pytest.raises(ValueError, match="sound"):
        sound_upper(dp, guess, FAMILY)
    with pytest.raises(ValueError, match="sound"):
        certified_boxes(start(), dp, guess, family=FAMILY, index=torch.arange(1), shapes=torch.ones(1, 2).double())


def test_monte_carlo_certifiers_get_fresh_noise_and_a_limit_of_calls(learned):
    plant, confidence, _ = learned
    tube = ScenarioTube(
        task=Task.of(plant).with_(horizon=4), seed=1, samples=40,
        calls=2, anchors=4,
    )  # fmt: skip
    upper, theta = sound_upper(tube, confidence, FAMILY), torch.tensor([[0.1, 3.0]]).double()
    first = float(upper(theta))
    assert first < 4 and float(upper(theta)) <= 4
    with pytest.raises(ValueError, match="2 calls"):
        upper(theta)
