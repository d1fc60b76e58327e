"""What the notebooks watch is what happened: flights, learners, plans and error bars, and the pictures made of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from learner_cases import sound
from xmpsc_cases import ensemble_pendulum

from gpsafe.algorithms import XMPSC
from gpsafe.calibration import pointwise
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.cost import Grid, RobustDP
from gpsafe.data import Transitions
from gpsafe.lab import flights, learning, plans
from gpsafe.lab.declared import Declared
from gpsafe.lab.trust import Trust
from gpsafe.models import GP, Ensemble, identity_prior
from gpsafe.planning.mbpo import Settings, preset
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.safety import SafetyFilter, fly
from gpsafe.sets import Box, Polytope
from gpsafe.systems import SafeCartPole, SimplePendulum, reference_1d, reference_1d_policies
from gpsafe.systems.task import Task


def shown(explorer, **moves):
    """Every move of one control makes another picture."""
    first = explorer.picture().png
    for name, values in moves.items():
        for value in values:
            assert explorer.picture(**{name: value}).png != first


# ------------------------------------------------------------------------------------------------------------ flights
def test_a_flight_is_what_the_room_of_flights_flies():
    plant, safe = SimplePendulum(), SafetyFilter(ensemble_pendulum(), CondensedSQP(), soften=4)
    found = flights.flown(plant, safe, steps=6, seed=3)
    for behind, states in ((None, found.free), (safe, found.kept)):
        generator = torch.Generator().manual_seed(3)
        assert torch.equal(fly(plant, behind, flights.push(plant, 1), steps=6, generator=generator).states, states)
    assert len(found.sources) == len(found.plans) == len(found.applied) == len(found.kept) - 1
    assert all(plan is None or plan.certified for plan in found.plans) and found.left == (False, False)
    shown(found.explorer(), step=(2, 6))
    shown(flights.explorer({"one": found, "other": replace(found, dims=(1, 0))}), behind=("other",))


def test_a_shadow_leaves_free_coordinates_out_and_asks_for_those_shown():
    box = Box(torch.tensor([-1.0, -2.0]).double(), torch.tensor([1.0, 2.0]).double())
    flat = Polytope.of_box(box)
    H = torch.zeros(flat.rows, 4, dtype=torch.float64)
    H[:, [0, 2]] = flat.H
    curve = flights.shadow(Polytope(H, flat.h), (0, 2))
    assert torch.equal(curve.amax(0), box.upper) and torch.equal(curve.amin(0), box.lower)
    with pytest.raises(ValueError, match=r"rows on the coordinates \(0, 1\)"):
        flights.shadow(Polytope(H, flat.h), (0, 1))


# ----------------------------------------------------------------------------------------------------------- learning
def toy(certification):
    small = {"epochs": 3, "steps": 16, "model_every": 16, "update_every": 16, "group": 1, "rollouts": 1, "members": 2}
    small |= {"warm_up": 60, "warm_up_epochs": 3, "sac": Settings(hidden=(8,)), "minibatch": 8, "delay": 1}
    settings = replace(preset("cart-pole"), **small)
    plant = replace(SafeCartPole(), horizon=20)
    return XMPSC.create(plant, settings, prior=plant.prior(), certification=certification, seed=0)


@pytest.mark.parametrize("certification", [pytest.param("published", marks=pytest.mark.slow), None])
def test_a_learner_that_is_watched_learns_as_it_does_alone(certification):
    watched, alone = toy(certification), toy(certification)
    found = learning.learned(watched, 40, dims=(0, 2))
    while alone.steps < 40:
        alone.learn(1)
    assert [row["steps"] for row in alone.logger.rows] == [row["steps"] for row in watched.logger.rows]
    rows = [row for row in alone.logger.rows if row["phase"] == "train"]
    assert [len(states) - 1 for states in found.states] == [row["steps"] for row in rows]
    assert list(found.violated) == [row["violations"] > 0 for row in rows]
    for name, count in found.counts.items():
        assert count.tolist() == [row[f"from_{name}"] for row in rows]
    assert bool(torch.isnan(found.areas).all()) == (certification is None)
    assert certification is None or bool((found.areas.diff() >= -1e-12).all()), "hulls only grow"
    shown(found.explorer(), episode=(0,))


def test_the_area_of_a_closed_curve():
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 3.0], [0.0, 3.0], [0.0, 0.0]])
    assert float(learning._area(square)) == float(learning._area(square.flip(0))) == 6.0


# -------------------------------------------------------------------------------------------------------------- plans
@cache
def episodes():
    """Two on S_0 and one of each kind, watched; and the last one unwatched."""
    found = {}
    for pessimism in ("sampled", "sound"):
        learner, again = sound(pessimism=pessimism), sound(pessimism=pessimism)
        given = [plans.flown(learner) for _ in range(3)]
        again.learn(3)
        found[pessimism] = (given, learner, again)
    return found


def test_an_episode_that_is_watched_is_the_one_that_would_have_been_flown():
    for given, learner, again in episodes().values():
        for one, (states, _), (other, _) in zip(given, learner.history, again.history, strict=True):
            assert torch.equal(one.states, states) and torch.equal(states, other)
        assert not given[0].promises and len(given[2].promises) == len(given[2].sources) == 12


def test_what_a_verifier_promises_holds_what_the_plant_does():
    flown = episodes()["sound"][0][2]
    assert flown.verified and not flown.violated
    for step, promise in enumerate(flown.promises):
        assert bool(((promise.low <= promise.would + 1e-9) & (promise.would <= promise.high + 1e-9)).all())
        assert promise.promised <= 0 and not promise.broken
        after = flown.states[step + 1]  # with its noise
        assert bool(((promise.low[1] <= after) & (after <= promise.high[1])).all())


def test_control_a_plant_that_is_not_in_the_set_leaves_the_tube():
    learner = sound().learn(2)
    policy = learner.ask()
    x = policy.start
    u = policy(x)
    shield = policy.pilot.shield  # type: ignore[attr-defined]
    plant = learner.system
    other = SimpleNamespace(mean=lambda x, u: plant.mean(x, u) + 0.05, cost=plant.cost)
    promise = plans._of_tube(other, shield, x, u)  # type: ignore[arg-type]
    assert not bool(((promise.low <= promise.would) & (promise.would <= promise.high)).all())


def test_broken_promises_are_those_that_said_all_was_well():
    one = episodes()["sampled"][0][2].promises[0]
    for promised, excess, broken in ((-1.0, 0.5, True), (0.1, 0.5, False), (-1.0, -0.1, False)):
        assert replace(one, promised=promised, excess=excess).broken is broken


def test_plans_are_shown_and_those_unwatched_refused():
    plane = plans.Plane((0, 1), ("θ", "ω"), (-6.0, 6.0))
    both = {name: given[2] for name, (given, *_) in episodes().items()}
    shown(plans.explorer(plane, both, step=both["sampled"].worst), who=("sound",))
    with pytest.raises(ValueError, match="watched with promises"):
        plans.explorer(plane, {"S_0": both["sound"], "none": episodes()["sound"][0][0]})


# -------------------------------------------------------------------------------------------------------------- trust
def test_shares_and_needed_multiples_are_those_of_the_room_of_calibration():
    generator = torch.Generator().manual_seed(0)
    x, u = torch.randn(40, 2, dtype=torch.float64, generator=generator), torch.zeros(40, 1, dtype=torch.float64)
    rows = Transitions(x, u, 0.9 * x)
    model = Ensemble.create(2, 1, generator=generator, members=2, hidden=(4,), prior=identity_prior)
    for truth in (None, {"all": rows.x_next, "half": rows.x_next[:20]}):
        half = Transitions(x[:20], u[:20], rows.x_next[:20])
        trust = Trust.of({"one": model}, rows, {"all": rows, "half": half}, truth)
        told = model.predict(x, u)
        std = told.std if truth is not None else (told.std.square() + told.noise_std.square()).sqrt()
        need = trust.needed("one", "all")
        assert need >= trust.needed("one", "half")
        assert pointwise(rows.x_next, told.mean, std, need * (1 + 1e-12)).value == 1.0
        assert pointwise(rows.x_next, told.mean, std, need * (1 - 1e-9)).value < 1.0
        assert float(trust.distance["all"].max()) < 1e-6 and trust.models == ("one",) and trust.tests == ("all", "half")
        shown(trust.explorer(), test=("half",), multiple=(0.5, 20.0))
    with pytest.raises(ValueError, match="truth of the tests"):
        Trust.of({"one": model}, rows, {"all": rows}, {"other": rows.x_next})


# ----------------------------------------------------------------------------------------------------------- declared
def test_what_a_statement_buys_is_what_the_judge_says_of_it_and_more_never_buys_more():
    plant, (policies, _) = reference_1d(), reference_1d_policies()
    empty = GP.create(plant.kernels, 1e-4, nx=1, nu=1, noise_std=plant.noise_std, prior=plant.known)
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).unsqueeze(-1)
    rows = Transitions(x, -x, plant.mean(x, -x))
    bound = Mixture(rkhs_norm=tuple(plant.rkhs_norm.tolist()), subgaussian=(0.01,), delta=0.1)
    judge = RobustDP(Grid(Box([-1.0], [1.5]), (40,)), Task.of(plant))
    z = torch.cat([x, torch.zeros_like(x)], -1)
    targets = torch.linspace(-0.5, 1.5, policies.num, dtype=torch.float64)
    sizes = {"norms": (0.5, 1.0), "noises": (1.0, 3.0), "counts": (0, 24)}
    found = Declared.of(empty, rows, bound, judge, policies, targets=targets, points=z, **sizes)
    twice = Mixture(rkhs_norm=bound.rkhs_norm, subgaussian=(0.03,), delta=0.1)
    known = ConfidenceSet(twice).update(empty.condition(rows))
    assert torch.equal(found.upper[1.0, 3.0, 24], judge.evaluate(known, policies).upper)
    assert torch.equal(found.bands[1.0, 3.0, 24][1], known.bounds(z)[1][:, 0])
    assert torch.equal(found.rows[1], (plant.mean(x, -x) - plant.known(x, -x))[:, 0])
    for (norm, noise, n), upper in found.upper.items():
        assert (upper <= found.upper[1.0, noise, n] + 1e-12).all() and (
            upper <= found.upper[norm, 3.0, n] + 1e-12
        ).all()
    assert found.certified(norm=1.0, noise=1.0, n=24).sum() > found.certified(norm=1.0, noise=1.0, n=0).sum()
    shown(found.explorer(), norm=(0.5,), n=(0,))
    with pytest.raises(ValueError, match="counts of 0 to 24 rows"):
        Declared.of(empty, rows, bound, judge, policies, targets=targets, points=z, counts=(25,))
