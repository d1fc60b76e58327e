"""Contestants: the same data and noise for all, every step counted once, certificates held against the truth."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from gpsafe.comparison import (
    Budget,
    PolicySet,
    UnfitError,
    believe,
    combinations,
    compare,
    contestant,
    guard,
    reference,
    run,
    task,
    totals,
)  # fmt: skip
from gpsafe.comparison.contest import Contest
from gpsafe.planning import ICEM
from gpsafe.systems.episodic import Published

SMALL = Budget(
    episodes=1, every=1, pairs=4, goals=200, points=100, optimiser=ICEM(samples=16, elites=4, iterations=1, horizon=4)
)
TWIN = task("twin")


@pytest.fixture(scope="module")
def gp():
    return believe("gp", TWIN)


@pytest.fixture(scope="module")
def ensemble():
    return believe("ensemble", TWIN)


@pytest.mark.slow
def test_without_a_certifier_the_model_makes_no_difference_to_what_is_drawn():
    flown = [contestant(TWIN, model, "none", "uniform", budget=SMALL)[0][0] for model in ("gp", "ensemble")]
    same = ("steps", "violated", "reward", "covered", "corrected")
    assert [flown[0][k] for k in same] == [flown[1][k] for k in same]


@pytest.mark.parametrize(
    ("model", "certifier"),
    [
        ("gp", "none"),
        pytest.param("gp", "shield", marks=pytest.mark.slow), pytest.param("gp", "policy-set", marks=pytest.mark.slow),
        pytest.param("gp", "tube-paper", marks=pytest.mark.slow), pytest.param("gp", "tube-sound", marks=pytest.mark.slow),
        pytest.param("ensemble", "tube-paper", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_step_is_counted_once_and_every_claim_is_tried(model, certifier):
    rows, summary = contestant(TWIN, model, certifier, "uncertainty", budget=SMALL)
    assert [row["phase"] for row in rows] == ["explore", "seek"]
    for row in rows:
        assert 1 <= row["steps"] <= 30
        assert row["backed"] <= row["steps"] and row["passed"] <= row["steps"] and row["corrected"] <= row["steps"]
        assert row["captured"] <= row["captured_of"] <= row["steps"]
        assert row["violated"] == 1 or row["steps"] == 30
    assert all(bad <= n for bad, n in summary["found_false"].values())
    if certifier == "policy-set":
        assert summary["certified_policies"] <= summary["safe_policies"]
        assert summary["false_policies"] == 0  # every assumption is true on the twin
    else:
        assert summary["accepted_of_safe"] <= summary["safe_pairs"]
        assert summary["safe_pairs"] + summary["unsafe_pairs"] == SMALL.pairs
    if certifier in ("shield", "tube-sound", "policy-set"):
        assert "RKHS_NORM" in summary["rests_on"]
        assert summary["found_false"]["f* in F_n"][0] == 0
    if certifier == "none":
        assert summary["rests_on"] == [] and rows[0]["backed"] == 0 and rows[0]["corrected"] == 0


def test_a_belief_that_is_wrong_is_found_to_be(gp, ensemble):
    shifted = replace(TWIN, known=lambda x, u: TWIN.known(x, u) + 0.2)  # the plant is elsewhere than both learned
    x = TWIN.goals(200)
    u = TWIN.plant.input_box.sample(len(x), torch.Generator().manual_seed(0))
    ((bad, n),) = gp.outside(shifted, x, u).values()
    assert 0 < bad <= n == len(x)  # where there are no data F_n is wide
    moved = replace(TWIN, plant=replace(TWIN.plant, system=_Pushed(TWIN.plant.system)))
    ((bad, n),) = ensemble.outside(moved, x, u).values()
    assert bad > n / 2


def test_an_end_that_is_no_number_contains_nothing(gp, monkeypatch):
    x = TWIN.goals(20)
    u = TWIN.plant.input_box.sample(len(x), torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        type(gp.confidence), "bounds", lambda self, z: 2 * (torch.full((len(z), 1), torch.nan).double(),)
    )
    assert list(gp.outside(TWIN, x, u).values()) == [(len(x), len(x))]


class _Pushed:
    def __init__(self, system):
        self._system = system

    def __getattr__(self, name):
        return getattr(self._system, name)

    def mean(self, x, u):
        return self._system.mean(x, u) + 0.5


@pytest.mark.slow
def test_the_set_of_policies_only_grows_and_holds_none_that_is_unsafe_where_all_is_true(gp):
    chosen = PolicySet.create(TWIN)
    first = chosen.member.clone()
    assert int(first.sum()) == 1
    chosen.expand(gp, 0)
    grown = chosen.member.clone()
    assert bool((grown | ~first).all()) and int(grown.sum()) > 1
    unsafe = chosen.unsafe()
    assert not bool(unsafe[grown].any())
    assert bool(unsafe.any())  # else it is no test
    for explorer in ("uniform", "uncertainty", "reward"):
        assert bool(chosen.member[chosen.choose(gp, explorer, torch.Generator().manual_seed(0))])
    chosen.upper.fill_(torch.inf)
    assert int(chosen.outside()["members of S_n cost at most d"][0]) == 0
    chosen.member[:] = True  # a set that certifies everything is caught
    bad, n = chosen.outside()["members of S_n cost at most d"]
    assert 0 < bad < n == 81


def test_what_makes_no_sense_is_a_row_that_says_so(ensemble):
    with pytest.raises(UnfitError, match="F_n"):
        guard("shield", TWIN, ensemble)
    rows, summary = contestant(TWIN, "ensemble", "shield", "uniform", budget=SMALL)
    assert rows == [] and "F_n" in summary["unfit"]
    rows, summary = contestant(task("arm", 0), "gp", "policy-set", "uniform", budget=SMALL)
    assert rows == [] and "no slope at x_0" in summary["unfit"]


def test_a_policy_is_unsafe_where_its_paths_show_it_and_not_where_they_might(monkeypatch):
    """With d at the expected cost of a policy half of all means are above it, and none is called unsafe; well below, all."""
    many = [PolicySet.create(replace(TWIN, seed=seed), count=3) for seed in range(12)]
    flown = [found.costs() for found in many]
    costs = torch.stack(flown)  # (12, 9, PATHS)
    still = replace(TWIN, plant=replace(TWIN.plant, noise_std=torch.zeros(TWIN.plant.nx, dtype=torch.float64)))
    found = PolicySet.create(still, count=3)
    assert torch.equal(found.unsafe(), found.costs()[:, 0] > still.budget)
    middle = costs.mean((0, 2))
    (at,) = torch.nonzero((middle > 1.0) & (middle < 25.0) & (costs.std((0, 2)) > 0.3)).flatten()[:1].tolist()
    monkeypatch.setattr(PolicySet, "costs", lambda self: flown[self.contest.seed])  # of the same paths, whatever d is
    for share, most in ((1.0, 0), (0.3, 12)):
        exact = [replace(found.contest, budget=share * float(middle[at])) for found in many]
        called = [bool(PolicySet.create(contest, count=3).unsafe()[at]) for contest in exact]
        assert sum(called) == most
    assert 2 <= int((costs[:, at].mean(-1) > middle[at]).sum()) <= 10


@pytest.mark.slow
def test_a_free_guard_lets_unsafe_inputs_through_and_is_told_so():
    _, summary = contestant(TWIN, "gp", "none", "uniform", budget=replace(SMALL, pairs=60))
    assert summary["accepted_of_unsafe"] == summary["unsafe_pairs"] > 0
    assert summary["accepted_of_safe"] == summary["safe_pairs"]


def test_the_table_has_a_row_a_contestant_and_names_are_checked():
    told = []
    found = compare(
        TWIN, models=["gp"], certifiers=["none"], explorers=["uniform", "reward"], budget=SMALL, callback=told.append
    )
    frame = found.frame()
    assert told == ["gp/none/uniform", "gp/none/reward"] and len(frame) == 2
    for row in found.contestants:
        mine = [e for e in found.episodes if e["explorer"] == row["explorer"] and e["phase"] == "explore"]
        assert totals(found.episodes, row)["steps"] == sum(e["steps"] for e in mine)
    assert "uniform" in found._repr_html_()
    with pytest.raises(ValueError, match="model"):
        list(combinations(["gpp"], ["none"], ["uniform"]))
    with pytest.raises(ValueError, match="certifier"):
        list(combinations(["gp"], ["tube"], ["uniform"]))


def test_a_planner_that_knows_the_plant_earns_more_than_the_safe_controller():
    safe, planner = reference(TWIN, SMALL, episodes=1)
    assert planner > safe


class Counting(Published):
    """x⁺ = x + 1 from 0 for four steps, rewarded by x⁺; the cost of state k is `costs[k]`."""

    nx, nu, horizon, initial_state = 1, 1, 4, torch.zeros(1, dtype=torch.float64)

    def __init__(self, *costs: float) -> None:
        self.costs = torch.tensor(costs, dtype=torch.float64)

    def cost(self, x: torch.Tensor) -> torch.Tensor:
        return self.costs[x[..., 0].long()]

    def advance(self, x, u, generator):
        return x + 1

    def reward(self, x, u):
        return x[..., 0]


@pytest.mark.parametrize(
    ("costs", "steps", "violated", "reward"),
    [
        ((0.0, 0.0, 0.0, 0.0, 0.0), 4, 0, 10.0),  # a time-out
        ((0.0, 0.0, 0.0, 0.0, 1.0), 4, 1, 10.0),  # in the last state
        ((0.0, 0.0, 1e-9, 1.0, 0.0), 2, 1, 3.0),  # once, and there it ends
        ((0.0, 0.0, math.nan, 0.0, 0.0), 2, 1, 3.0),  # what ends an episode is no safe state
    ],
)
def test_an_episode_is_counted_as_by_hand(costs, steps, violated, reward):
    plant = Counting(*costs)
    contest = cast(Contest, SimpleNamespace(plant=plant, generator=lambda *_: torch.Generator()))
    row, states, inputs = run._flight(contest, 0, lambda x: torch.zeros(1, dtype=torch.float64))
    assert row == {"steps": steps, "violated": violated, "reward": reward}
    assert len(states) == steps + 1 and len(inputs) == steps
    ends = plant.terminated(torch.arange(5.0, dtype=torch.float64).unsqueeze(-1))
    assert ends.tolist() == [cost != 0 for cost in costs]
