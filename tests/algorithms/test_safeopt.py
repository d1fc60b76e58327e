"""SafeOpt and GoSafe as learners: what they promise, what they learn from, and jumps over what is unsafe."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gpsafe.algorithms import Margins, SafeOpt, Totals
from gpsafe.algorithms.learner import EpisodePolicy
from gpsafe.algorithms.safeopt import _distances, _empty, _same
from gpsafe.assumptions import Assumption
from gpsafe.confidence import Constant, ConvexProgram
from gpsafe.linalg import vector
from gpsafe.models import GP, zero_prior
from gpsafe.policies import AffinePolicies
from gpsafe.rkhs import kernels
from gpsafe.safety import SafeOptRule
from gpsafe.safety.safeopt import Beliefs
from gpsafe.sets import Box
from gpsafe.systems.base import CallableSystem
from tests.learner_cases import gosafe, island, one_d, safeopt


def test_it_promises_something_only_where_a_theorem_covers_an_episodes_cost():
    sound = safeopt()
    assert sound.unsound is None
    of_bound = {Assumption.RKHS_NORM, Assumption.SUBGAUSSIAN, Assumption.FIXED_KERNEL, Assumption.ALL_OBSERVATIONS}
    of_run = {Assumption.INITIAL_SET, Assumption.TASK, Assumption.EXACT_INPUT, Assumption.ROUNDING}
    assert {e.kind for e in sound.assumptions} == of_bound | of_run
    # Of the reward nothing is promised, so its bound, R and kernel may be anything.
    low = (replace(sound.bounds[0], subgaussian=99.0), replace(sound.bounds[1], subgaussian=9.9))
    by_hand = (sound.bounds[0], Constant(value=2.0))
    assert sound.with_(bounds=(Constant(value=2.0), sound.bounds[1])).unsound is None
    for change, reason in (
        ({"bounds": low}, "10-sub-Gaussian"),
        ({"bounds": by_hand}, "no theorem"),
        ({"measure": Margins(one_d())}, "not the task's J_c"),
        ({"rule": SafeOptRule.released(vector(-torch.inf, 0.0))}, "forget S_0"),
    ):
        assert reason in str(sound.with_(**change).unsound)
    assert "GoSafe's theorem" in str(gosafe().unsound)
    with_slopes = sound.with_(rule=SafeOptRule(vector(-torch.inf, 0.0), vector(0.0, 3.0)))
    assert with_slopes.unsound is None and Assumption.LIPSCHITZ in {e.kind for e in with_slopes.assumptions}


def test_an_episode_is_one_measurement_of_the_policy_that_flew_it_whole_and_no_other():
    learner = safeopt()
    states, inputs = learner.rollout(learner.ask())
    learner.tell(states, inputs)
    assert [model.num_data for model in learner.standing.models] == [1, 1]
    told = learner.standing.models[1].targets
    assert told is not None and float(told) == pytest.approx(0.2 - float(one_d().cost(states[:-1]).sum()))
    assert torch.equal(Totals(one_d())(states, inputs)[1:], told[0])
    for x, u in ((states[:-3], inputs[:-3] * 0.5), (states + 1e-3, inputs), (states, inputs * 0.5)):
        learner.tell(x, u)
    assert [model.num_data for model in learner.standing.models] == [1, 1] and learner.told == 4


def test_an_episode_that_is_cut_short_is_a_missing_measurement_and_ends_the_promise():
    learner = safeopt()
    states, inputs = learner.rollout(learner.ask())
    learner.tell(states[:5], inputs[:4])
    assert "cut short" in str(learner.falsified) and not learner.logger.rows[-1]["guaranteed"]
    assert learner.standing.models[1].num_data == 0


@pytest.mark.parametrize("step", [0, 1, 7])
def test_an_episode_that_was_taken_over_is_a_missing_measurement_too(step):
    """Whoever intervenes when it gets dear leaves only the cheap episodes to be measured."""
    learner = safeopt()
    policy, calls = learner.ask(), []

    def taken(x):
        u = policy(x)
        calls.append(u)
        return u if len(calls) <= step else u + 0.3

    learner.tell(*learner.rollout(policy_like(policy, taken)))
    assert (learner.falsified is None) == (step == 0)  # of an input at x_0 nothing was seen
    assert "taken over" in str(learner.falsified) or step == 0
    assert not learner.logger.rows[-1]["guaranteed"] and learner.standing.models[1].num_data == 0


def policy_like(policy, act):
    """The same episode under other inputs."""
    return EpisodePolicy(act, one_d(), number=policy.number, start=policy.start, unsound=None)


@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e6])
def test_inputs_are_the_policys_own_to_rounding_in_any_units(unit):
    states, box = torch.ones(4, 2).double(), Box(-unit * vector(1.0), unit * vector(1.0))
    own = 0.5 * unit * torch.ones(3, 1).double()
    assert _same(lambda x: own[0], states, own * (1 + 1e-13), box)
    for limits in (box, Box(-1e12 * box.upper, 1e12 * box.upper)):  # one that is there to limit nothing is no unit
        assert not _same(lambda x: own[0], states, own * torch.tensor([[1.0], [1.01], [1.0]]).double(), limits)


@pytest.mark.parametrize("ends", [(-1.0, 0.25), (-0.25, 1.0)])
def test_inputs_beyond_the_box_are_no_unit_either(ends):
    """One of 10⁶ would let another be off by 10⁻³; of the box it is its larger end, whichever that is."""
    states, box = torch.ones(3, 2).double(), Box([ends[0]], [ends[1]])
    for large, off, same in ((1e6, 1e-4, False), (1e6, 0.9e-9, True), (1e6, 1.1e-9, False), (0.1, 0.9e-10, True)):
        own = vector(large, 0.1).unsqueeze(-1)
        steps = iter(own)
        assert _same(lambda x, steps=steps: next(steps), states, own + vector(0.0, off).unsqueeze(-1), box) == same


class Steep:
    """|x| by which costs are said to be at most 1; with a gap, so only where nobody looks before the first episode."""

    ceiling = 1.0

    def __init__(self, gap: float) -> None:
        self.gap = gap

    def __call__(self, x):
        return torch.where((x[..., 0] - 0.8).abs() < self.gap, 5.0 * x[..., 0].abs(), 0.0)

    def upper(self, lower, upper):
        return torch.ones_like(lower[..., 0])

    def lower(self, lower, upper):
        return torch.zeros_like(lower[..., 0])


def test_a_cost_that_leaves_its_range_is_refused_by_a_learner_or_by_the_episode_that_shows_it():
    """An episode's cost is T·C/2-sub-Gaussian only for c in [0, C]: costs of 4 under C = 1 were measured, and guaranteed."""
    parts = {
        name: getattr(one_d(), name) for name in ("nx", "nu", "state_box", "input_box", "noise_std", "initial_state")
    }

    def plant(gap: float) -> CallableSystem:
        asked = {"dynamics": one_d().mean, "reward_fn": one_d().reward}
        return CallableSystem("steep", horizon=20, cost=Steep(gap), budget=0.2, **asked, **parts)

    with pytest.raises(ValueError, match=r"a cost in \[0, 1\] and between its own lower and upper"):
        safeopt(plant(10.0))
    learner = safeopt(plant(1e-6))
    states, inputs = learner.rollout(learner.ask())
    states[3] = 0.8
    with pytest.raises(ValueError, match=r"Steep: expected a cost in \[0, 1\], got 4 in an episode, at \[0.8\]"):
        learner.tell(states, inputs)
    assert learner.ask().unsound is not None  # of what was flown nothing could be told


def test_an_empty_interval_refutes_it():
    learner = safeopt().with_(bounds=(Constant(value=1e-3), Constant(value=1e-3)))
    learner.learn(8)
    assert learner.falsified is not None and learner.told < 8


@pytest.mark.parametrize("unit", [1e9, 1.0, 1e-6, 1e-12])
def test_an_interval_is_empty_in_any_units(unit):
    """Costs of 1e-10 in units of their own: intervals a tenth of them apart refuted nothing."""
    points, ones = vector(0.2, 0.7).unsqueeze(-1), torch.ones(2, 1).double()
    beliefs = SimpleNamespace(mean=0 * ones, half=torch.inf * ones)
    for gap, refuted in ((0.1, True), (1e-12, False), (-0.1, False)):
        lower = vector(-torch.inf, 1.0 + gap).unsqueeze(-1) * unit
        found = _empty(SimpleNamespace(lower=lower, upper=ones * unit), beliefs, points)
        assert (found is not None) == refuted
        assert found is None or (found.point, found.lower, found.upper) == ((0.7,), float(lower[1]), unit)


def test_an_interval_is_told_as_it_is_and_one_that_rounding_crosses_is_none():
    points, ones = vector(0.2, 0.7).unsqueeze(-1), torch.ones(2, 1).double()
    wide = SimpleNamespace(lower=-torch.inf * ones, upper=torch.inf * ones)
    inverted = SimpleNamespace(mean=vector(1.0, 2.0).unsqueeze(-1), half=vector(0.5, -0.25).unsqueeze(-1))
    found = _empty(wide, inverted, points)
    assert found is not None and (found.point, found.output, found.lower, found.upper) == ((0.7,), 0, 2.25, 1.75)
    for mean, half in ((torch.nan, -1.0), (1e300, -1e300), (1.0, -1e300), (1e300, -1.0)):
        assert _empty(wide, SimpleNamespace(mean=mean * ones, half=half * ones), points) is None
    beliefs = SimpleNamespace(mean=0 * ones, half=torch.inf * ones)
    for low, high, refuted in (
        (-1.0, -1.0 - 1e-12, False),
        (-1.0, -1.1, True),
        (1.0, 1.0 - 1e-12, False),
        (torch.inf, 5.0, True),
    ):
        sets = SimpleNamespace(lower=low * ones, upper=high * ones)
        assert (_empty(sets, beliefs, points) is not None) == refuted


def test_a_convex_program_that_nothing_satisfies_refutes_it_too():
    """Its interval comes out inverted. As a belief that is none it was all of ℝ: episodes went on, and were guaranteed."""
    learner = safeopt().with_(
        bounds=tuple(ConvexProgram(rkhs_norm=1e-3, subgaussian=s, delta=0.05) for s in (0.3, 10.0))
    )
    assert learner.unsound is None
    learner.learn(8)
    low, high = learner.bounds[0].interval(learner.standing.models[0], learner.points)
    assert bool((low > high).all()) and "F_n is empty" in str(learner.falsified) and learner.told < 8
    assert not bool((learner.standing.sets[-1].safe & ~learner.standing.sets[0].safe).any())


@pytest.mark.parametrize(("norm", "refuted"), [(4.0, False), (0.05, True)])
def test_a_norm_that_data_exceed_is_refuted(norm, refuted):
    """|d − J_c| ≤ B√k = 5B, and 400 measurements of −15: F_n is clipped to that, and C_0 was all of ℝ."""
    given = safeopt()
    seen = given.models[1].condition_on(given.points[-1:].expand(400, 1), torch.full((400, 1), -15.0).double())
    bounds = (given.bounds[0], replace(given.bounds[1], rkhs_norm=norm))
    learner = given.with_(models=(given.models[0], seen), bounds=bounds)
    assert (learner.standing.falsified is not None) == refuted
    if refuted:
        with pytest.raises(ValueError, match="F_n is empty"):
            learner.ask()


def test_the_norm_of_a_reward_is_no_assumption_that_returns_could_refute():
    """S_n rests on the constraint's alone: returns of −10 under B√k = 0.1 ended every guarantee."""
    given = safeopt()
    learner = given.with_(bounds=(replace(given.bounds[0], rkhs_norm=0.01), given.bounds[1])).learn(6)
    assert learner.falsified is None and all(row["guaranteed"] for row in learner.logger.rows) and learner.told == 6


def test_models_with_a_known_part_are_refused():
    """Their intervals are those of a residual: with d − J_c = 3 − 12θ known and a residual of norm 0.05, θ = 0.3, where it is
    −0.6, was in S_1 after 3000 measurements of S_0."""

    def slope(x, u):
        return 3.0 - 12.0 * x

    given, parts = safeopt(), {"nx": 1, "nu": 0, "noise_std": 10.0, "outputs": [0]}
    plain, known = (GP.create(kernels.rbf([0.5]), 100.0, prior=p, **parts) for p in (zero_prior, slope))
    with pytest.raises(ValueError, match=r"SafeOpt: expected .* without a known part \(GP.regression\), got function"):
        given.with_(models=(given.models[0], known))
    with pytest.raises(ValueError, match=r"Beliefs: expected .* without a known part"):
        Beliefs.of((known,), given.bounds[1:], given.points)
    assert given.with_(models=(given.models[0], plain)).unsound is None


def moved_kernel(model: GP) -> None:
    for name, parameter in model.kernels[0].named_parameters():
        if "outputscale" in name:
            parameter.data.fill_(1e-6)


def moved_targets(model: GP) -> None:
    assert model.targets is not None
    model.targets.fill_(5.0)


@pytest.mark.parametrize("move", [moved_kernel, moved_targets])
def test_models_that_were_edited_since_promise_nothing(move):
    """Of an F_n nothing is answered then; here the next episode was "guaranteed"."""
    learner, claimless = (safeopt().with_(bounds=b) for b in (safeopt().bounds, (Constant(value=2.0),) * 2))
    for one in (learner, claimless):
        one.learn(2)
        move(one.standing.models[1])
    with pytest.raises(ValueError, match=r"SafeOpt: expected .*(kernels|observations)"):
        learner.ask()
    claimless.learn(1)  # it promises nothing anyway


def test_observations_that_were_told_twice_promise_nothing():
    """Each is counted as one with noise of its own: told thirty times, its noise is gone."""
    at, seen = torch.linspace(-0.5, 0.5, 8).double().unsqueeze(-1), torch.linspace(0.0, 0.2, 8).double().unsqueeze(-1)
    told = safeopt()
    once, twice = (tuple(m.condition_on(at.repeat(k, 1), seen.repeat(k, 1)) for m in told.models) for k in (1, 2))
    assert told.with_(models=once).ask().unsound is None
    with pytest.raises(ValueError, match="rows 8 and on repeat rows 0 and on"):
        told.with_(models=twice).ask()
    told.with_(models=twice, bounds=(Constant(value=2.0),) * 2).ask()  # it promises nothing anyway


def test_parts_that_do_not_fit_are_refused():
    given = safeopt()
    for change in (
        {"points": given.points[:-1]},
        {"points": torch.cat([given.points[:-1], given.points[:1]])},
        {"models": given.models[:1]},
        {"models": (given.models[0], GP.regression(kernels.rbf([1.0, 1.0]), dim=2, noise_std=1.0))},
        {"models": (given.models[0], replace(given.models[1], prior=lambda x, u: x - 1.0))},
        {"rule": SafeOptRule(vector(-torch.inf, 0.5))},
        {"initial_safe": []},
    ):
        with pytest.raises(ValueError, match=r"SafeOpt|S_0"):
            given.with_(**change)


def test_policies_are_neighbours_by_differences_not_by_differences_of_squares():
    """Parameters 10⁻⁶ apart at 1000, a slope of 2·10⁵ to the budget: nobody is safe through a neighbour. `cdist` had 0 between
    them, and S_1 was S_0 and its neighbours, although d − J_c may be −0.2 there."""
    given, count = safeopt(), 30
    policies = AffinePolicies(torch.zeros(count, 1), -torch.ones(count, 1, 1), Box([-1.0], [1.0]))
    points = 1000.0 + 1e-6 * torch.arange(count, dtype=torch.float64).unsqueeze(-1)
    rule = SafeOptRule(vector(-torch.inf, 0.0), vector(0.0, 2e5))
    learner = given.with_(policies=policies, points=points, initial_safe=[10], rule=rule)
    assert learner.unsound is None
    assert torch.nonzero(learner.standing.sets[-1].safe).flatten().tolist() == [10]


def test_distances_are_never_below_what_they_are():
    """Half of them would let an L half as large vouch."""
    points = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = [[math.dist(p, q) for q in points.tolist()] for p in points.tolist()]
    found, least = _distances(points), torch.tensor(exact, dtype=torch.float64)
    assert bool((found >= least).all()) and torch.allclose(found, least, rtol=1e-11, atol=0)


def test_policies_that_ask_for_inputs_beyond_the_plants_are_refused():
    given = safeopt()
    assert isinstance(given.policies, AffinePolicies)
    wide = replace(given.policies, input_box=Box([-9.0], [9.0]))
    with pytest.raises(ValueError, match=r"SafeOpt: expected .*input"):
        given.with_(policies=wide)


# ------------------------------------------------------------------------------------------- a gap between safe sets
def test_gosafe_jumps_to_an_island_and_is_brought_back_from_the_cliff():
    learner = island()
    learner.learn(8)
    rows, at = learner.logger.rows, learner.standing
    tried = [row["policy"] for row in rows if row["phase"] == "global"]
    assert set(tried) >= {2, 3} and bool(at.sets[-1].safe[3]) and not bool(at.sets[-1].safe[2])
    assert 2 in at.failed and all(row["cost"] == 0 for row in rows)
    alone = SafeOpt(
        *(
            getattr(learner, n)
            for n in ("system", "policies", "initial_safe", "points", "models", "bounds", "rule", "measure")
        )
    )
    assert not bool(alone.learn(8).standing.sets[-1].safe[3])


def test_a_jump_needs_somebody_to_come_back_to_and_every_width_settled():
    """Without a run in B no backup could be called; one wide function is not settled, however narrow the other."""
    learner = replace(island(), settled=1e9)
    assert learner.standing.chosen[1] == "local" and learner.learn(1).standing.chosen[1] == "global"
    models = (GP.regression(kernels.rbf([0.05], variance=v), dim=1, noise_std=0.01) for v in (4.0, 1e-6))
    at = island().with_(models=tuple(models)).learn(1).standing
    reward, margin = at.sets[-1].width[at.chosen[0]].tolist()
    assert margin < 1.0 < reward and at.chosen[1] == "local"


def test_where_the_released_sets_come_out_empty_the_answer_is_of_s_0():
    rule = SafeOptRule.released(vector(-torch.inf, 0.0))
    learner = safeopt().with_(rule=rule, bounds=(Constant(value=2.0), Constant(value=2.0)))
    first, last = learner.standing.sets
    assert not bool(last.safe.any())
    x = vector(0.3)
    given = learner.predict(x, episode_start=True)
    assert any(torch.equal(given, learner._act(int(a))(x)) for a in torch.nonzero(first.safe))


def test_the_answer_is_the_member_whose_worst_reward_is_best():
    """The one that flew, not the one of which nothing is known, which could earn more."""
    learner = island().with_(initial_safe=[0, 1], settled=0.0).learn(1)
    sets, flown, x = learner.standing.sets[-1], learner.logger.rows[0]["policy"], vector(0.3)
    assert flown in (0, 1) and float(sets.upper[1 - flown, 0]) > float(sets.upper[flown, 0])
    assert torch.equal(learner.predict(x, episode_start=True), learner._act(flown)(x))


def test_control_a_state_slope_that_is_too_small_lets_it_over_the_cliff():
    assert any(row["cost"] > 0 for row in island(1e-3, 0.0).learn(8).logger.rows)
