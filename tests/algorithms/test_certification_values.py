"""The parts of a certification on a plant whose numbers are known: limits, laws about rest, regions, and what is tried when."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from gpsafe.algorithms import certification
from gpsafe.algorithms.certification import SLACKS, Certification, NoInvariantSetError, invariant_about_rest
from gpsafe.certify.terminal_set import AffineLaw
from gpsafe.confidence import ConfidenceSet, Mixture
from gpsafe.linalg import vector
from gpsafe.models import GP, Ensemble
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.planning.mpc.tightened import Tightened
from gpsafe.rkhs import kernels
from gpsafe.sets import Box, Polytope
from gpsafe.systems.arm import TwoLinkArm
from gpsafe.systems.base import CallableSystem, IndicatorCost
from gpsafe.systems.drone import Drone
from gpsafe.systems.known import AffineKnown
from gpsafe.tube import EnsembleTube, GPTube, LinearTube, lqr_gain

A, B = torch.tensor([[1.0, 0.1], [0.05, 0.9]]).double(), torch.tensor([[0.02], [0.3]]).double()
C, AXES, REST, STILL = vector(0.01, -0.02), vector(0.004, 0.01), vector(0.1, -0.2), vector(0.25)
NORMALS = torch.tensor([[1.0, 1.0], [1.0, -2.0], [0.5, 0.0], [1.0, -1.0]]).double()
OFFSETS = vector(
    1.2, 2.5, 0.5, 1.9
)  # of the box -1..1 and -0.8..1 the first two cut corners, one touches a side, one nothing


def plant(**changes: Any) -> CallableSystem:
    made = {
        "name": "double integrator", "nx": 2, "nu": 1, "state_box": Box([-1.0, -0.8], [1.0, 1.0]),
        "input_box": Box([-0.5], [1.0]), "noise_std": AXES, "initial_state": REST, "horizon": 10,
        "cost": IndicatorCost(NORMALS, OFFSETS), "budget": 0.1, "dynamics": lambda x, u: x @ A.mT + u @ B.mT + C,
        "reward_fn": lambda x, u: -x[..., 0],
    }  # fmt: skip
    return CallableSystem(**(made | changes))  # type: ignore[arg-type]


def tube(mode: Any = "sound") -> LinearTube:
    return LinearTube(AffineKnown(A, B, C), AXES, mode)


def test_what_is_taken_where_nothing_is_said():
    """As published, but for the terminal set's delay, which counts from one."""
    how = Certification()
    assert {f.name: getattr(how, f.name) for f in fields(how)} == {
        "states": 5, "mode": "paper", "feedback": 0.5, "terminal": "hull", "dims": None, "delay": 1, "delta": 0.1,
        "input_weight": 1.0, "state_weight": None, "around": None, "error": None, "rest": None, "cells": 16,
        "tolerance": 1e-6, "proposer": None, "apart": 4, "certainty": None,
    }  # fmt: skip
    assert how.steps == 4 and Certification(states=2).steps == 1
    assert SLACKS == (1.0, 3.0, 8.0, 15.0) and certification.BUDGET == 1024
    assert Certification(delay=3).first(plant(), torch.rand(9, 2).double()).delay == 2
    for good in ({"delay": 1}, {"apart": 2}, {"error": [0.0, 0.1]}, {"dims": [1, 0]}):
        Certification(**good)  # type: ignore[arg-type]
    bad_parts = (
        {"input_weight": 0.0}, {"error": [-0.1, 0.0]}, {"around": [-1.0, 1.0]}, {"state_weight": [-1.0, 1.0]},
        {"terminal": "ball"}, {"mode": "exact"}, {"dims": ()}, {"dims": (1, 1)}, {"dims": (-1,)}, {"dims": 1}, {"states": 1},
        {"delay": 0}, {"apart": 1}, {"delta": 0.0}, {"delta": 1.0}, {"certainty": 1.0},
    )  # fmt: skip
    for bad in bad_parts:
        with pytest.raises(ValueError, match="Certification: expected"):
            Certification(**bad)  # type: ignore[arg-type]


def test_hulls_are_of_the_coordinates_asked_for_or_of_the_limited_ones():
    limited = cast(Any, SimpleNamespace(nx=4, limited=(2, 0)))
    bare = cast(Any, SimpleNamespace(nx=4))
    assert Certification(terminal="invariant", dims=(1,)).hulled(limited) == (2, 0)
    assert Certification(terminal="invariant").hulled(bare) == (0, 1, 2, 3)
    assert Certification(dims=(1, 3)).hulled(limited) == (1, 3) and Certification().hulled(limited) == (0, 1, 2, 3)
    assert Certification(dims=(1,)).first(plant(), torch.rand(9, 2).double()).dims == (1,)


def grid(low: float = -1.5, high: float = 1.5) -> torch.Tensor:
    side = torch.linspace(low, high, 61, dtype=torch.float64) + 1e-4
    return torch.cartesian_prod(side, side)


@pytest.mark.parametrize(("error", "rows"), [(None, 6), (vector(0.125, 0.0625), 6)])
def test_limits_are_the_box_and_the_half_spaces_that_cut_it_less_the_error(error, rows):
    states, inputs = Certification(error=error)._limits(plant())
    x, gap = grid(), vector(0.0, 0.0) if error is None else error
    inside = (x >= vector(-1.0, -0.8) + gap).all(-1) & (x <= vector(1.0, 1.0) - gap).all(-1)
    inside &= (x @ NORMALS.mT <= OFFSETS - NORMALS.abs() @ gap).all(-1)
    assert torch.equal(states.contains(x), inside) and states.rows == rows and int(inside.sum()) > 500
    assert torch.equal(
        inputs.contains(vector(-0.51, -0.49, 0.99, 1.01).unsqueeze(-1)), torch.tensor([0, 1, 1, 0]).bool()
    )


def test_a_law_rests_where_it_is_told_and_its_loop_is_the_plants():
    how = Certification(input_weight=2.0, state_weight=vector(3.0, 0.5))
    about = how._about_rest(plant(), tube())
    gain = lqr_gain(A, B, state_weight=torch.diag(vector(3.0, 0.5)), input_weight=2.0 * torch.eye(1).double())
    middle = vector(0.25)  # of the inputs
    assert about.law is not None and torch.allclose(about.law.gain, gain) and torch.allclose(about.law(REST), middle)
    assert torch.equal(about.rest, REST) and torch.allclose(about.spread, AXES)
    y = vector(0.4, 0.3)
    assert torch.allclose(about.closed @ y + about.offset, A @ y + B @ about.law(y) + C)
    there = replace(how, rest=(vector(0.3, 0.0), vector(-0.1)))._about_rest(plant(), tube())
    assert there.law is not None and torch.allclose(there.law(vector(0.3, 0.0)), vector(-0.1))
    assert torch.allclose(there.closed @ y + there.offset, A @ y + B @ there.law(y) + C)
    plain = Certification()._about_rest(plant(), tube())
    assert plain.law is not None and torch.allclose(plain.law.gain, lqr_gain(A, B))


class Apart:
    """A cost of balls about the origin, with or without one inside the box."""

    ceiling = 1.0

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x.norm(dim=-1) > self.radius).double()

    def upper(self, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        return (torch.maximum(lower.abs(), upper.abs()).norm(dim=-1) > self.radius).double()

    def lower(self, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(lower[..., 0])


def test_a_cost_that_is_no_polytope_has_none_in_the_box():
    """The box drawn in by the error reaches to (1, 1), or to (0.7, 0.7)."""
    outside, inside = (cast(Any, SimpleNamespace(state_box=Box([-1.0, -0.8], [1.0, 1.0]), input_box=Box([-1.0], [1.0]),
                                                 cost=Apart(r), nx=2)) for r in (1.5, 1.35))  # fmt: skip
    low = cast(Any, SimpleNamespace(**(vars(inside) | {"state_box": Box([-1.0, -1.0], [0.2, 0.2])})))
    with pytest.raises(ValueError, match="a cost of half-spaces"):
        Certification()._limits(low)
    assert Certification()._limits(outside)[0].rows == 4
    with pytest.raises(
        ValueError, match=r"a cost of half-spaces \(IndicatorCost, HingeCost\), or none in .* got Apart"
    ):
        Certification()._limits(inside)
    drawn = Certification(error=vector(0.3, 0.3))._limits(inside)[0]
    assert drawn.rows == 4 and drawn.support(torch.eye(2).double()).tolist() == pytest.approx([0.7, 0.7])


def test_of_several_members_the_mean_is_controlled_and_the_widest_withstood():
    A3, B3 = A * vector(0.9, 1.0, 1.2).reshape(3, 1, 1), B * vector(1.0, 1.3, 1.6).reshape(3, 1, 1)
    mean, variance = C + vector(0.0, 0.1, 0.3).unsqueeze(-1), torch.tensor([[4e-4, 1e-4], [1e-4, 9e-4], [1e-6, 1e-6]])
    local = SimpleNamespace(A=A3, B=B3, mean=mean, variance=variance.double())
    members = SimpleNamespace(mode="paper", num_members=3, nx=2, nu=1, linearise=lambda x, u: local)
    about = Certification()._about_rest(plant(), cast(Any, members))
    gain = lqr_gain(A3.mean(0), B3.mean(0))
    assert about.law is not None and torch.allclose(about.law.gain, gain)
    assert torch.allclose(about.closed, A3.mean(0) + B3.mean(0) @ gain) and about.spread.tolist() == pytest.approx(
        [0.02, 0.03]
    )
    assert torch.allclose(about.closed @ REST + about.offset, mean.mean(0))
    lost = SimpleNamespace(**(vars(local) | {"A": 1.5 * A3, "B": 0 * B3}))
    members.linearise = lambda x, u: lost
    alone = Certification()._about_rest(plant(), cast(Any, members))
    assert alone.law is None and torch.allclose(alone.closed, 1.5 * A3.mean(0)) and torch.equal(alone.rest, REST)
    assert torch.allclose(alone.closed @ REST + alone.offset, mean.mean(0))
    assert alone.spread.tolist() == pytest.approx([0.02, 0.03])
    with pytest.raises(NoInvariantSetError, match="a stabilisable plant about rest, got no LQR gain"):
        Certification(terminal="invariant").invariant(plant(), cast(Any, members))


def test_a_sound_model_states_at_least_the_plants_noise():
    gp = GP.create(kernels.rbf([1.0] * 3), 0.01, nx=2, nu=1, noise_std=0.1)
    confidence = ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)).update(gp)
    for noise, taken in ((vector(0.1, 0.1), True), (vector(0.05, 0.1), True), (vector(0.05, 0.2), False)):
        sound, paper = (Certification(mode=mode, states=3) for mode in ("sound", "paper"))
        assert paper._tube_of(plant(noise_std=noise), confidence, None).mode == "paper"
        if taken:
            assert sound._tube_of(plant(noise_std=noise), confidence, None).mode == "sound"
            continue
        with pytest.raises(ValueError, match=r"noise_std \[0.05, 0.2\], got \[0.1, 0.1\]"):
            sound._tube_of(plant(noise_std=noise), confidence, None)


def test_a_law_in_some_coordinates_feeds_back_these_alone():
    about = Certification(terminal="invariant", dims=(1,))._about_rest(plant(), tube())
    gain = lqr_gain(A[1:, 1:], B[1:])
    assert about.law is not None and torch.allclose(about.law.gain, torch.cat([torch.zeros(1, 1).double(), gain], -1))
    assert torch.allclose(about.closed, A[1:, 1:] + B[1:] @ gain)
    y = vector(0.3)  # the other coordinate rests
    u = about.law(vector(REST[0], 0.3))
    assert torch.allclose(about.closed @ y + about.offset, A[1:] @ vector(REST[0], 0.3) + B[1:] @ u + C[1:])
    whole = Certification(terminal="hull", dims=(1,))._about_rest(plant(), tube())
    assert whole.law is not None and torch.allclose(whole.law.gain, lqr_gain(A, B))


def tried(
    monkeypatch, how: Certification, verdicts: list[Any], mode: Any = "sound"
) -> tuple[Any, list[Any], list[Any]]:
    """What comes out, was sought and was certified; `verdicts` of the slacks: an exception, or whether it is certified."""
    sought, certified, left = [], [], list(verdicts)

    def propose(closed: Any, offset: Any, region: Any, noise: Any) -> Polytope:
        sought.append((closed, offset, region, noise))
        if isinstance(left[0], Exception):
            raise left.pop(0)
        d = len(offset)
        return Polytope(torch.eye(d).double(), torch.full((d,), float(len(sought)), dtype=torch.float64))

    def judge(self: Certification, problem: Any, law: Any) -> Any:
        certified.append((problem, law))
        return SimpleNamespace(certified=left.pop(0))

    monkeypatch.setattr(certification, "invariant_polytope", propose)
    monkeypatch.setattr(Certification, "_sure", judge)
    model = tube(mode)
    found = how._invariant(plant(), model, how._limits(plant()), how._about_rest(plant(), model))
    return found, sought, certified


SOUND = Certification(mode="sound", terminal="invariant", feedback=None, around=vector(0.6, 0.9))


def test_slacks_are_tried_until_one_is_certified_or_the_last(monkeypatch):
    (found, sure), sought, certified = tried(monkeypatch, SOUND, [False, ValueError("empty"), True, False])
    assert float(found.h[0]) == 3.0 and sure.certified and len(sought) == 3 and len(certified) == 2
    for slack, (*_, noise) in zip(SLACKS, sought, strict=False):
        assert torch.allclose(noise.support(torch.eye(2).double()), slack * AXES)
    (found, sure), sought, _ = tried(monkeypatch, SOUND, [False, False, False, False])
    assert float(found.h[0]) == 4.0 and not sure.certified and len(sought) == 4
    (found, sure), sought, certified = tried(monkeypatch, replace(SOUND, mode="paper"), [False], "paper")
    assert sure is None and len(sought) == 1 and certified == []
    with pytest.raises(NoInvariantSetError, match="an invariant set about rest, got d"):
        tried(monkeypatch, SOUND, [ValueError(name) for name in "abcd"])
    problem, law = tried(monkeypatch, SOUND, [True])[2][0]
    assert problem.steps == SOUND.steps and isinstance(law, AffineLaw) and torch.equal(problem.gain, law.gain)


def test_the_region_is_what_is_near_within_limits_and_does_not_saturate(monkeypatch):
    how = replace(SOUND, error=vector(0.02, 0.01))
    _, sought, _ = tried(monkeypatch, how, [True])
    closed, offset, region, _ = sought[0]
    about = how._about_rest(plant(), tube())
    assert torch.equal(closed, about.closed) and torch.equal(offset, about.offset)
    x, gap = grid(), vector(0.02, 0.01)
    inside = ((x - REST).abs() <= vector(0.6, 0.9)).all(-1)
    inside &= (x >= vector(-1.0, -0.8) + gap).all(-1) & (x <= vector(1.0, 1.0) - gap).all(-1)
    inside &= (x @ NORMALS.mT <= OFFSETS - NORMALS.abs() @ gap).all(-1)
    u = about.law(x)[:, 0]
    inside &= (u >= -0.5) & (u <= 1.0)
    assert torch.equal(region.contains(x), inside) and int(inside.sum()) > 100
    wide = tried(monkeypatch, replace(SOUND, around=None), [True])[1][0][2]  # the half-widths of the state box
    near = ((x - REST).abs() <= vector(1.0, 0.9)).all(-1) & (x.abs() <= 1.0).all(-1) & (x[:, 1] >= -0.8)
    near &= (x @ NORMALS.mT <= OFFSETS).all(-1)
    law = SOUND._about_rest(plant(), tube()).law
    near &= (law(x)[:, 0] >= -0.5) & (law(x)[:, 0] <= 1.0)
    assert torch.equal(wide.contains(x), near)


def test_where_the_cost_adds_no_row_the_region_is_the_box_about_rest(monkeypatch):
    sought: list[Any] = []
    monkeypatch.setattr(
        certification,
        "invariant_polytope",
        lambda *given: sought.append(given) or Polytope(torch.eye(2).double(), REST),
    )
    system, model = plant(cost=IndicatorCost(NORMALS[:1], vector(9.0)), input_box=Box([-9.0], [9.0])), tube("paper")
    how = replace(SOUND, mode="paper", around=vector(0.1, 0.2))
    how._invariant(system, model, how._limits(system), how._about_rest(system, model))
    eye = torch.eye(2).double()
    assert torch.allclose(sought[0][2].support(eye), REST + how.around)
    assert torch.allclose(-sought[0][2].support(-eye), REST - how.around)


def test_a_region_in_some_coordinates_keeps_the_rows_that_are_on_these_alone(monkeypatch):
    cost = IndicatorCost(torch.tensor([[0.0, 1.0], [1.0, 1.0]]).double(), vector(0.4, 0.3))
    how = Certification(mode="sound", terminal="invariant", feedback=None, dims=(1,))
    sought: list[Any] = []
    monkeypatch.setattr(
        certification,
        "invariant_polytope",
        lambda *given: sought.append(given) or Polytope([[2.0], [-1.0]], [0.8, 0.3]),
    )
    system, model = plant(cost=cost), tube()
    found, sure = how._invariant(system, model, how._limits(system), how._about_rest(system, model))
    region = sought[0][2]
    assert sure is None and float(region.support(torch.ones(1, 1).double())) == pytest.approx(0.4)
    assert found.H.tolist() == [[0.0, 2.0], [0.0, -1.0]] and found.h.tolist() == [0.8, 0.3]  # the other one is free


def test_invariance_is_certified_where_no_coordinate_is_free(monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(
        certification, "certify_invariance", lambda *given, **options: asked.append((given, options)) or 7
    )
    problem, law = cast(Any, SimpleNamespace(nx=2)), cast(Any, object())
    assert Certification(dims=(1,))._sure(problem, law) is None and asked == []
    for dims in (None, (0, 1)):
        assert Certification(dims=dims)._sure(problem, law) == 7
    assert asked[0] == ((problem, law), {"budget": 1024})


def filtered(monkeypatch, how: Certification, *, sure: Any = None, **given: Any) -> Any:
    """The filter's parts as they are handed over; invariance is `sure`, of the set that is found and of one that is given."""
    calls: list[Any] = []
    monkeypatch.setattr(
        certification, "SafetyFilter", lambda *args, **options: SimpleNamespace(args=args, options=options)
    )
    monkeypatch.setattr(certification, "CertificationProblem", lambda *args, **options: (args, options))
    monkeypatch.setattr(Certification, "_invariant", lambda *args: ("found", sure))
    monkeypatch.setattr(Certification, "_sure", lambda *args: calls.append(args[1:]) or sure)
    made = how.filter(given.pop("system", plant()), tube(how.mode), **given)
    (made.problem, made.numbers), made.proposer, *rest = made.args
    made.sure, made.calls = (rest[0] if rest else None), calls
    return made


def test_filters_are_of_the_parts_that_were_asked_for(monkeypatch):
    yes, no = SimpleNamespace(certified=True), SimpleNamespace(certified=False)
    paper = filtered(monkeypatch, Certification(proposer=cast(Any, "mine")))
    model, states, inputs, terminal, gain, steps = paper.problem
    assert (terminal, steps, paper.numbers) == ("found", 4, {"tolerance": 1e-6, "certainty": None})
    assert gain.tolist() == [[-0.5, -0.5]] and paper.options["soften"] == 4 and paper.sure is None and paper.calls == []
    assert paper.proposer == "mine" and isinstance(paper.options["backup"], AffineLaw) and model.mode == "paper"
    assert states.rows == 6 and inputs.rows == 2
    sound = filtered(monkeypatch, SOUND, sure=yes)
    assert (
        sound.sure is yes and sound.numbers["tolerance"] == 0.0 and sound.calls == [] and "soften" not in sound.options
    )
    assert torch.allclose(sound.problem[4], lqr_gain(A, B)) and isinstance(sound.proposer, CondensedSQP)
    given = filtered(monkeypatch, SOUND, sure=yes, terminal=cast(Any, "mine"))
    assert given.problem[3] == "mine" and given.sure is yes and len(given.calls) == 1
    assert filtered(monkeypatch, SOUND, sure=no).sure is None and filtered(monkeypatch, SOUND, sure=None).sure is None
    published = CondensedSQP(hardness=100.0, sweeps=25, fruitless=8, patience=4)
    assert filtered(monkeypatch, Certification()).proposer == published != CondensedSQP()
    assert filtered(monkeypatch, SOUND, sure=no, terminal=cast(Any, "mine")).sure is None
    own = filtered(monkeypatch, SOUND, sure=yes, system=cast(Any, Backed(plant())))
    assert own.options["backup"] == "its own"
    with pytest.raises(ValueError, match="an ensemble for levels of certainty, got LinearTube"):
        filtered(monkeypatch, replace(SOUND, certainty=0.9))


class Backed:
    """A plant with a backup of its own."""

    backup = "its own"

    def __init__(self, system: CallableSystem) -> None:
        self._system = system

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)


def test_tubes_are_of_the_mode_asked_for(monkeypatch):
    gp = GP.create(kernels.rbf([1.0] * 3), 0.01, nx=2, nu=1, noise_std=0.1)
    confidence = ConfidenceSet(Mixture(rkhs_norm=1.0, subgaussian=0.1, delta=0.1)).update(gp)
    how = Certification(states=4, mode="sound", delta=0.07, cells=9)
    made = how.tube(confidence, None)
    assert isinstance(made, GPTube) and (made.steps, made.delta, made.mode) == (3, 0.07, "sound")
    own = tube()
    assert how.tube(own, None) is own
    with pytest.raises(ValueError, match="a tube model of mode 'paper', got sound"):
        Certification().tube(own, None)
    networks = Ensemble.create(2, 1, generator=torch.Generator().manual_seed(0), members=2, hidden=(4,))
    asked: list[Any] = []

    def calibrated(model: Any, apart: Any, *, steps: int, delta: float) -> Any:
        asked.append((model, apart, steps, delta))
        return EnsembleTube.paper(model)

    monkeypatch.setattr(EnsembleTube, "calibrated", staticmethod(calibrated))
    found = how.tube(networks, cast(Any, "rows"))
    assert asked == [(networks, "rows", 3, 0.07)] and found.cells == 9
    assert asked == [(networks, "rows", 3, 0.07)] and replace(how, mode="paper").tube(networks, None).radius == 1.0
    with pytest.raises(ValueError, match="rows kept apart for a sound tube"):
        how.tube(networks, None)


def test_searches_are_those_of_the_mode_and_the_model():
    paper, networks, process = (
        certification._search(*which) for which in ((True, True), (False, True), (False, False))
    )
    assert isinstance(paper, CondensedSQP) and isinstance(networks, Tightened) and process == CondensedSQP()
    assert paper == CondensedSQP(hardness=100.0, sweeps=25, fruitless=8, patience=4)


def test_stock_plants_are_tuned_about_their_rest():
    drone = Drone()
    flying = invariant_about_rest(drone)
    assert (flying.states, flying.dims, flying.input_weight) == (4, (3, 4, 9, 10), 0.1)
    assert flying.around is not None and flying.around.tolist() == [4.0] * 12 and flying.rest is not None
    assert flying.state_weight is not None and flying.state_weight.tolist() == [1, 1, 1, 50, 50, 1, 1, 1, 1, 1, 1, 1]
    assert torch.equal(flying.rest[0], drone.initial_state) and flying.rest[1].tolist() == [drone.hover, 0, 0, 0]
    arm = TwoLinkArm()
    bent = invariant_about_rest(arm)
    assert bent.dims == (0, 1, 6, 7) and bent.around is not None and bent.rest is not None
    assert bent.around.tolist() == [0.15, 0.15, 1, 1, 1, 1, 0.2, 0.2] and bent.rest[1].tolist() == [0, 0]
    assert torch.equal(bent.rest[0], arm.of(vector(0.0, 1.5), vector(0.0, 0.0), vector(0.2, 0.2)))
    plain = invariant_about_rest(cast(Any, plant()), delta=0.3)
    assert (plain.terminal, plain.feedback, plain.dims, plain.delta) == ("invariant", None, None, 0.3)
    assert invariant_about_rest(drone, states=7).states == 7
