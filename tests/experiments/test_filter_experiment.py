"""The safety-filter experiment: its arms meet the same world, and its counts of containment see a wrong tube."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from experiments._report.xmpsc_filter import arm, followed
from experiments._report.xmpsc_filter_questions import CASES, Knowledge, Sizes, question
from gpsafe.certify import judge
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.planning.mpc.tightened import Tightened
from gpsafe.sets import Polytope
from proofs_checks._defects import forged

SIZES = Sizes(
    data=400,
    calibration=80,
    training=300,
    members=2,
    width=4,
    initial=20,
    epochs=2,
    episodes=1,
    steps=5,
    delay=0,
    delta=0.1,
    cells=1,
    probe=2,
    copies=16,
    audits=0,
    audit_iterations=1,
)
CASE = CASES["pendulum-exact"]


@lru_cache(maxsize=2)
def known(mode: str) -> Knowledge:
    return Knowledge.first(CASE, "paper" if mode == "paper" else "sound", SIZES, 0)


def certified(mode):
    """A plan from rest for the whole state box as terminal set."""
    asked = question(CASE, mode, SIZES, known(mode), Polytope.of_box(CASE.plant.state_box))
    problem, zero = asked.filter.problem, torch.zeros(1).double()
    x0 = CASE.plant.initial_state
    found = judge(problem, x0, zero, Tightened().propose(problem, x0, zero))
    assert found.certified, found.reason
    return found


def test_all_modes_meet_the_same_noise_and_proposals():
    steps = {}
    for mode in ("none", "paper"):
        rows = arm(CASE, mode, "uniform", SIZES, 0, lambda mode=mode: known(mode)).rows
        steps[mode] = [row for row in rows if row["kind"] == "step"]
    assert [row["learned"] for row in steps["paper"]] == [row["learned"] for row in steps["none"]]
    pairs = list(zip(steps["paper"], steps["none"], strict=True))
    assert [a["x0"] == b["x0"] and a["x1"] == b["x1"] for a, b in pairs if a["step"] == 0] == [True, True]
    assert all(row["applied"] == row["learned"] for row in steps["none"])
    alike = [a["applied"] == a["learned"] for a, _ in pairs]
    for k, (a, b) in enumerate(pairs):  # until the first correction of an episode the noise alone decides
        if all(alike[k - a["step"] : k]):
            assert a["x1"] == b["x1"]


@pytest.mark.parametrize(("size", "inside"), [(1e3, 16), (1e-6, 0)])
def test_containment_is_counted(size, inside):
    plan = certified("paper")
    assert plan.tube is not None
    plan = forged(plan, tube=replace(plan.tube, factor=size * plan.tube.factor))
    x = CASE.plant.initial_state
    found = followed(CASE, plan, x, x, SIZES, torch.Generator().manual_seed(0))
    assert [found[key] for key in ("real_any", "real_all", "seen_any", "seen_all")] == [inside] * 4
    assert found["left"] == 0


def test_sound_plans_are_certified_where_the_search_on_the_published_recursion_fails():
    """The terminal set is so small that the sound tube, started from the published recursion's plan, does not fit."""
    plan = certified("sound")
    assert plan.tube is not None
    asked = question(CASE, "sound", SIZES, known("sound"), Polytope.of_box(CASE.plant.state_box))
    problem, zero = asked.filter.problem, torch.zeros(1).double()
    H = torch.tensor([[0.0, 1.0], [0.0, -1.0]]).double()
    x0 = CASE.plant.initial_state + torch.tensor([0.0, 1.0]).double()
    first = Tightened(rounds=1)
    bounds = torch.linspace(0.1, 2.1, 21).double()
    tight = [replace(problem, terminal=Polytope(H, torch.stack([b, b]))) for b in bounds]
    once = [judge(p, x0, zero, first.propose(p, x0, zero)).certified for p in tight]
    often = [judge(p, x0, zero, Tightened().propose(p, x0, zero)).certified for p in tight]
    assert all(b or not a for a, b in zip(once, often, strict=True))
    assert sum(often) > sum(once)
    plain = CondensedSQP(iterations=10)
    k = once.index(True) - 1
    assert judge(tight[k], x0, zero, plain.propose(tight[k], x0, zero)).certified
