"""X-MPSC end to end at toy size: every task and mode runs, accounts for each step, and goes on bit-equal."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_cases import account_for, gaussian, learner, rows, trained

from gpsafe.algorithms.certification import Certification
from gpsafe.algorithms.xmpsc import XMPSC
from gpsafe.systems import SafeCartPole


@pytest.fixture(scope="module")
def pendulum() -> XMPSC:
    return trained(learner())


@pytest.mark.parametrize("task", ["cart-pole", "arm", "drone"])
def test_every_task_learns_behind_the_filter(task):
    account_for(trained(learner(task, pretrain=task == "cart-pole"), 20))


def test_the_accounts_add_up(pendulum):
    account_for(pendulum)
    at = pendulum.standing
    assert at.version > 2 and len(at.virtual) > 0 and at.hull is not None
    assert at.model.data is not None and len(at.model.data) + (0 if at.pending is None else len(at.pending)) == len(
        at.real
    )


def test_rewards_and_ends_are_those_of_the_true_states():
    """The pendulum's measurement is noisy: a state may be measured inside the limits when it is outside."""
    one = learner("pendulum")
    policy = one.ask()
    states, inputs = one.rollout(policy)
    assert policy.truth is not None and not torch.equal(policy.truth, states)
    one.tell(states, inputs)
    assert one.standing.real.reward.sum() == pytest.approx(
        float(one.system.reward(policy.truth[1:], inputs).sum()), rel=1e-5
    )
    np.testing.assert_allclose(one.standing.real.x, states[:-1].numpy(), rtol=1e-6)
    other = learner("pendulum")
    other.tell(states, inputs)  # a robot: nobody knows the true states
    assert other.standing.real.reward.sum() == pytest.approx(
        float(one.system.reward(states[1:], inputs).sum()), rel=1e-5
    )


@pytest.mark.parametrize(
    "how", ["published", "none", *[pytest.param(how, marks=pytest.mark.slow) for how in ("invariant", "certain", "gp")]]
)
def test_a_run_that_was_stopped_goes_on_bit_by_bit(how, tmp_path):
    def fresh() -> XMPSC:
        if how == "gp":
            return gaussian("paper")
        choice = {
            "none": None,
            "invariant": Certification(states=3, terminal="invariant", feedback=None),
            "certain": Certification(states=3, certainty=0.5),
        }
        # noise of the untrained networks is large: the invariant set must be one of the known part almost alone
        more = {"std_limits": (1e-6, 1e-5)} if how == "invariant" else {}
        return learner(seed=3, certification=choice.get(how, "published"), **more)

    whole = trained(fresh(), 70)
    part = fresh().learn(whole.told // 2)
    part.save(tmp_path)
    part = fresh().load(tmp_path)
    part.learn(whole.told - part.told - 1)
    part.save(tmp_path)
    again = fresh().load(tmp_path).learn(1)
    assert rows(again) == rows(whole)
    for (x, u), (y, v) in zip(whole.history, again.history, strict=True):
        assert torch.equal(x, y) and torch.equal(u, v)
    one, other = whole.standing.agent.state(), again.standing.agent.state()
    assert one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_the_same_seed_is_the_same_run_and_another_is_another(pendulum):
    assert rows(trained(learner())) == rows(pendulum)
    assert rows(trained(learner(seed=1))) != rows(pendulum)


def test_copies_in_the_middle_of_an_episode_fly_on_without_each_other():
    """Both drew from one stream of noise."""
    one, alone = trained(learner()), trained(learner())
    x = one.system.initial(1, torch.Generator().manual_seed(0))[0]
    asked, policy = one.ask(x), alone.ask(x)
    assert torch.equal(asked(x), policy(x))
    flying = copy.deepcopy(one)._book.asked
    for _ in range(3):
        asked(x)
        flying(x)
        policy(x)
    assert len(flying.proposed) == 4
    for each in zip(asked.proposed, flying.proposed, policy.proposed, strict=True):
        assert torch.equal(each[0], each[2]) and torch.equal(each[1], each[2])


def test_a_gaussian_process_in_the_place_of_the_ensemble():
    one = trained(gaussian("paper"), 20)
    assert "published tubes" in one.unsound
    account_for(one)
    assert one.standing.model.model.num_data > 10


def test_uncertified_is_mbpo_and_says_so():
    one = trained(learner(certification=None), 20)
    assert one.unsound == "nothing stands between agent and plant"
    last = one.logger.rows[-1]
    assert last["from_unfiltered"] == last["steps"] and one.filter() is None


def test_predict_is_the_filtered_policy_without_noise(pendulum):
    x = pendulum.system.initial_state
    u = pendulum.predict(x.numpy(), episode_start=True)
    assert torch.equal(u, pendulum.predict(x, episode_start=True)) and bool(pendulum.system.input_box.contains(u))
    assert pendulum.told == len(pendulum.history)
    with pytest.raises(ValueError, match="observation"):
        pendulum.predict([0.0])
    new = learner()
    assert torch.equal(new.predict(x), new.system.backup(x.unsqueeze(0))[0])  # before the warm-up is over


def test_what_does_not_fit_is_refused(pendulum):
    from gpsafe.systems import Pendulum

    with pytest.raises(ValueError, match="Episodic"):
        replace(pendulum, system=Pendulum())
    with pytest.raises(ValueError, match="a model of"):
        replace(pendulum, system=SafeCartPole())
