"""The receding-horizon learner flies what a shield admits, S_0 otherwise; the published form is called heuristic."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import identity, planner, practical, sound, swing, theory

from gpsafe.algorithms import learned
from gpsafe.algorithms.learned import PracticalModel, TheoryModel
from gpsafe.algorithms.learner import EpisodePolicy
from gpsafe.algorithms.receding import PilotedPolicy, RecedingActSafe, member
from gpsafe.confidence import Constant
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.planning import EXPLORERS, ICEM, fit, untrained
from gpsafe.policies.rollout import one_episode
from gpsafe.safety.shield import NotCertified, noise_radius, noise_risk
from gpsafe.sets import Box
from gpsafe.systems.reference import reference_pendulum_policies


@cache
def explored() -> RecedingActSafe:
    """Two episodes of S_0 and one under the shield. Not to be told anything."""
    return sound().learn(3)


def continued(**changes: object) -> RecedingActSafe:
    """The same, as by another session."""
    learner = sound(**changes)
    for states, inputs in explored().history:
        learner.tell(states, inputs)
    return learner


@pytest.mark.parametrize("pessimism", ["none", "mean", "sampled", "sound"])
def test_every_explorer_with_every_pessimism(pessimism):
    for name, wanted in EXPLORERS.items():
        learner = sound(explorer=name, pessimism=pessimism)
        found = learner.planner.explorer
        assert (found.extrinsic, found.intrinsic, found.uniform) == (wanted.extrinsic, wanted.intrinsic, wanted.uniform)
        assert found.pessimism == pessimism and learner.verified == (pessimism == "sound")
        assert (learner.unsound is None) == (pessimism == "sound")
        if pessimism != "sound":
            assert f'"{pessimism}" is no bound' in str(learner.unsound) and "heuristic" in repr(learner)


def test_an_explorer_keeps_its_own_pessimism():
    for name, explorer in EXPLORERS.items():
        assert sound(explorer=name).planner.explorer is explorer
    assert sound(explorer=EXPLORERS["opax"]).unsound is not None


def test_sound_pessimism_needs_parts_within_one_theorem():
    gp = untrained(identity, nx=2, nu=1, noise_std=swing().noise_std, generator=torch.Generator().manual_seed(0))
    bare = TheoryModel.create(theory().gp, theory().confidence.bound)
    for model in (PracticalModel(gp), bare):
        with pytest.raises(ValueError, match="a TheoryModel with a judge"):
            sound(model=model)
        assert sound(model=model, pessimism="sampled").unsound is not None
    heuristic = Constant(rkhs_norm=21.5, subgaussian=0.01, delta=0.1, value=1.0)
    parts = {"judge": theory().judge, "tracking": theory().tracking}
    with pytest.raises(ValueError, match="a sound confidence bound"):
        sound(model=TheoryModel.create(theory().gp, heuristic, **parts))
    with pytest.raises(ValueError, match="the confidence set of this gp"):
        replace(theory(), gp=theory(0.5).gp)
    other = replace(swing(), physics=replace(swing().physics, budget=0.3))  # type: ignore[type-var]
    with pytest.raises(ValueError, match="one task throughout, got budget"):
        sound(other)
    wide = Box(vector(-2.0), vector(2.0))
    judge = theory().judge
    assert judge is not None
    affine = reference_pendulum_policies()[0].select(torch.tensor([12]))
    for changes in ({"input_box": wide}, {"fallbacks": replace(affine, input_box=wide)}):
        with pytest.raises(ValueError, match="within the plant's input box"):
            sound(model=replace(theory(), judge=replace(judge, **changes)))
    with pytest.raises(ValueError, match="within the plant's input box"):
        RecedingActSafe(swing(), planner(swing()), theory(), replace(affine, input_box=wide))
    with pytest.raises(ValueError, match="S_0 as `initial`"):
        RecedingActSafe(swing(), planner(swing()), theory())
    with pytest.raises(ValueError, match="explorer in"):
        sound(explorer="bold")
    with pytest.raises(ValueError, match="judge and tracking together"):
        replace(theory(), tracking=None)


def test_the_first_episodes_are_those_of_s_0_and_then_plans_are_flown_under_the_shield():
    rows = explored().logger.rows
    assert [row["phase"] for row in rows] == ["initial", "initial", "explore"]
    assert [row["guaranteed"] for row in rows] == [False, False, True]
    assert rows[0]["unsound"] == "S_0 is assumed safe" and rows[2]["from_plan"] > 0
    assert rows[2]["from_plan"] + rows[2]["from_stored"] + rows[2]["from_fallback"] == swing().horizon


def test_a_planner_that_wants_to_leave_stays_inside():
    greedy = sound(explorer="greedy", pessimism="sound", initial_episodes=2)  # the reward is θ; θ > 1.2 is forbidden
    free = sound(explorer="greedy", pessimism="none", initial_episodes=2)
    for learner in (greedy, free):
        for states, inputs in explored().history[:2]:
            learner.tell(states, inputs)
        learner.learn(1)
    assert greedy.logger.rows[-1]["guaranteed"] and greedy.logger.rows[-1]["cost"] == 0.0
    assert float(greedy.history[-1][0][:, 0].max()) <= 1.2
    assert free.logger.rows[-1]["cost"] > 0.0 and not free.logger.rows[-1]["guaranteed"]  # control: it would


def test_without_a_certified_fallback_an_episode_is_one_of_s_0():
    learner = sound(initial_episodes=0)  # no data: nothing is certified
    policy = learner.ask()
    assert not isinstance(policy, PilotedPolicy) and "no fallback is certified" in str(policy.unsound)
    assert isinstance(learner.task(), NotCertified) and learner.noise_spent == 0.0
    with pytest.raises(ValueError, match="a state from which a fallback is certified"):
        learner.predict(learner.system.initial_state)


def test_an_empty_confidence_set_refutes_the_learner():
    learner = continued(model=theory(norm=0.02))
    policy = learner.ask()
    assert not isinstance(policy, PilotedPolicy) and "F_n is empty" in str(learner.falsified)
    assert learner.learn(2).told == 3 and isinstance(learner.task(), NotCertified)


def test_a_confidence_set_without_members_refutes_the_learner_though_no_anchor_shows_it():
    learner = continued(model=theory(norm=0.15))
    assert not isinstance(learner.ask(), PilotedPolicy) and "no function of norm" in str(learner.falsified)
    known = learner.known
    assert isinstance(known, TheoryModel) and known.judge is not None and known.judge.anchors is not None
    assert not len(known.judge.anchors.refine(known.confidence).empty)


@pytest.mark.parametrize("step", [2, 3])
def test_a_push_that_no_member_explains_refutes_the_learner(step):
    """In the last step, too, after which the shield is asked no more: that episode was guaranteed."""
    learner = continued()
    policy = learner.ask()
    assert isinstance(policy, PilotedPolicy)
    noise = torch.zeros(4, 2).double()
    noise[step, 1] = -0.5
    learner.tell(*one_episode(swing().mean, policy, swing().initial_state, noise))
    row = learner.logger.rows[-1]
    assert "beyond its one-step set" in row["falsified"] and not row["guaranteed"] and row["followed"]
    assert learner.falsified == row["falsified"] and learner.learn(1).told == 4
    assert "refuted" in str(learner.ask().unsound)


def test_a_state_to_which_no_flown_step_led_refutes_nothing():
    """Half of the flight is told: its last state is not that of the shield's last step."""
    learner = continued()
    states, inputs = one_episode(swing().mean, learner.ask(), swing().initial_state, torch.zeros(4, 2).double())
    learner.tell(states[:3], inputs[:2])
    assert learner.falsified is None and not learner.logger.rows[-1]["guaranteed"]


@pytest.mark.parametrize("flown", ["asked", "task", "predict"])
def test_a_refutation_is_known_at_once_even_if_the_episode_is_never_told(flown):
    learner = continued()
    waiting = learner.ask()
    fly = {"asked": waiting, "task": learner.task(), "predict": learner.predict}[flown]
    assert callable(fly) and waiting.unsound is None
    fly(swing().initial_state)
    fly(torch.tensor([0.0, 3.0]))
    assert "beyond its one-step set" in str(learner.falsified)
    assert flown == "predict" or "refuted" in str(fly.unsound)
    assert learner.ask() is not waiting and "refuted" in str(learner.ask().unsound)
    assert isinstance(learner.task(), NotCertified)


def test_telling_alone_leads_where_asking_led():
    """As a run that reads its finished pieces: the judge's grid and the next plan are the same bit by bit."""
    one, other = sound().learn(3), continued()
    assert torch.equal(one.ask()(swing().initial_state), other.ask()(swing().initial_state))
    grids = [learner.known.judge.anchors.local for learner in (one, other)]  # type: ignore[union-attr]
    assert torch.equal(grids[0].middle, grids[1].middle) and torch.equal(grids[0].half, grids[1].half)
    assert one.noise_spent == other.noise_spent > 0.0


def test_an_episode_that_would_overspend_the_noise_box_is_refused():
    radius = theory().judge.noise_radius  # type: ignore[union-attr]
    share = noise_risk(swing().noise_std, radius, steps=swing().horizon)
    learner = continued(delta_noise=2.5 * share)
    assert learner.noise_spent == pytest.approx(share)
    learner.ask()
    learner.ask()  # the same policy: nothing is spent twice
    assert learner.noise_spent == pytest.approx(2 * share)
    with pytest.raises(ValueError, match="a noise box for one more episode"):
        learner.task()
    assert continued(pessimism="sampled", delta_noise=1e-9).noise_spent == 0.0


@given(st.integers(1, 4), st.integers(1, 2000), st.floats(1e-6, 0.5))
def test_noise_risk_inverts_noise_radius(nx, steps, delta):
    sigma = torch.linspace(0.0, 3.0, nx + 1, dtype=torch.float64)[1:]
    found = noise_risk(sigma, noise_radius(sigma, steps=steps, delta=delta), steps=steps)
    assert delta * (1 - 1e-4) <= found <= delta


def test_noise_risk_of_no_noise_and_of_no_box():
    assert noise_risk(vector(0.0, 0.0), vector(0.0, 1.0), steps=9) == 0.0
    assert noise_risk(vector(1.0), vector(0.0), steps=3) == pytest.approx(3.0)  # a union bound may exceed 1
    with pytest.raises(ValueError, match="radius"):
        noise_risk(vector(1.0), vector(-1.0), steps=3)


def test_an_episode_may_begin_where_it_was_measured():
    learner, start = continued(), torch.tensor([0.02, -0.05]).double()
    policy = learner.ask(start)
    assert isinstance(policy, PilotedPolicy) and learner.ask(start.numpy()) is policy
    learner.tell(*learner.rollout(policy))
    assert learner.logger.rows[-1]["guaranteed"] and torch.equal(learner.history[-1][0][0], start)
    policy = learner.ask()  # from x_0, but the plant is elsewhere
    learner.tell(*one_episode(swing().mean, policy, start, torch.zeros(2, 2).double()))
    assert "t = 0" in str(learner.falsified)
    assert "no fallback is certified" in str(continued().ask(torch.tensor([1.1, 4.0])).unsound)


def test_a_copy_with_other_arguments_keeps_the_rest():
    learner = sound(explorer="opax", pessimism="sound").with_(seed=3)
    assert learner.planner.explorer == sound(explorer="opax", pessimism="sound").planner.explorer
    assert learner.with_(explorer="greedy").planner.explorer.extrinsic == 1.0 and learner.seed == 3


def test_predict_goes_on_with_plan_and_shield_from_step_to_step():
    learner = continued()
    x, states = swing().initial_state, [swing().initial_state]
    before = learner.noise_spent
    for _ in range(swing().horizon):
        u = learner.predict(x.numpy())
        assert u.shape == (1,)
        x = swing().mean(x, u)
        states.append(x)
    spent = learner.noise_spent
    assert spent > before and all(float(s[0]) <= 1.2 for s in states)
    learner.predict(swing().initial_state)  # a new episode, and a new share of δ_w
    learner.predict(swing().initial_state, episode_start=True)
    assert learner.noise_spent == pytest.approx(spent + 2 * (spent - before))


def test_tasks_change_nothing_that_is_learnt():
    learner, untouched = continued(), continued()
    task = learner.task(lambda x, u: -x[..., 0].square(), number=0)
    assert isinstance(task, EpisodePolicy) and task.unsound is None
    learner.rollout(task)
    assert torch.equal(learner.ask()(swing().initial_state), untouched.ask()(swing().initial_state))
    assert learner.told == untouched.told


def test_a_task_is_no_more_guaranteed_than_an_episode_is():
    """A flight was left out, or another one refuted an assumption: before the task was asked for, or after."""
    learner = continued()
    waiting = learner.task()
    one_episode(swing().mean, learner.ask(), swing().initial_state, torch.zeros(3, 2).double())
    assert isinstance(waiting, EpisodePolicy) and waiting.unsound is None  # that flight may still be told
    assert "not told" in str(learner.ask().unsound)
    waiting(swing().initial_state)
    for task in (waiting, learner.task()):
        assert isinstance(task, EpisodePolicy) and "not told" in str(task.unsound)

    learner = continued()
    waiting, thrown = learner.task(), learner.task()
    assert isinstance(waiting, PilotedPolicy) and isinstance(thrown, PilotedPolicy)
    thrown(swing().initial_state)
    thrown.arrived(torch.tensor([0.0, 3.0]).double())  # its last state, which no input is asked for
    assert "beyond its one-step set" in str(learner.falsified)
    waiting(swing().initial_state)
    assert "refuted" in str(waiting.unsound) and "refuted" in str(thrown.unsound)


def test_the_practical_form_refits_when_it_is_asked_and_not_before(monkeypatch):
    calls = []
    monkeypatch.setattr(learned, "fit", lambda *args, **options: calls.append(1) or fit(*args, **options))
    learner = practical()
    for states, inputs in explored().history:
        learner.tell(states, inputs)
    assert not calls
    assert len(learner.known.gp.data) == 3 * swing().horizon and len(calls) == 3  # type: ignore[union-attr]
    assert learner.known is learner.known and "heuristic" in repr(learner)


def test_s_0_as_a_class_flies_its_members():
    policies = reference_pendulum_policies()[0]
    x = torch.tensor([0.3, -0.2]).double()
    answers = policies(x.reshape(1, 1, 2))[:, 0]
    found = {float(member(policies, x)(torch.Generator().manual_seed(seed))(x)) for seed in range(20)}
    assert len(found) > 3 and all(bool((answers == u).any()) for u in found)


def test_the_model_of_a_theory_learner_is_conditioned_on_every_transition():
    known = explored().known
    assert isinstance(known, TheoryModel) and isinstance(known.planning(), GP)
    assert known.gp.num_data == 3 * swing().horizon and len(known.confidence.generations) == 4
    assert ICEM(8, 3, 1, 4) == explored().planner.optimiser
