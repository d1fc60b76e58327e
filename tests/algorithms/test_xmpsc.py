"""X-MPSC end to end at toy size: every task and mode runs, accounts for each step, and goes on bit-equal."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpsafe.algorithms.certification import Certification
from gpsafe.algorithms.xmpsc import SOURCES, XMPSC
from gpsafe.confidence import ConfidenceSet, Constant, Mixture
from gpsafe.models import GP
from gpsafe.planning.mbpo import Preset, Settings, preset
from gpsafe.rkhs import kernels
from gpsafe.systems import Drone, SafeCartPole, SimplePendulum, TwoLinkArm

TASKS = {"pendulum": SimplePendulum, "cart-pole": SafeCartPole, "arm": TwoLinkArm, "drone": Drone}


def tiny(task: str, **changes) -> Preset:
    """The published settings of a task at toy size; everything happens at least twice."""
    small = {
        "warm_up": 120, "warm_up_epochs": 4, "epochs": 2, "steps": 32, "model_every": 16, "update_every": 8, "group": 2,
        "rollouts": 2, "hidden": (4,), "members": 2, "minibatch": 8, "delay": 1, "horizon": 3, "pretrain": False,
        "sac": Settings(hidden=(8, 8)), "real_ratio": 0.5,
    }  # fmt: skip
    return replace(preset(task), **(small | changes))


def learner(task: str = "pendulum", *, seed: int = 0, prior: bool = True, **changes) -> XMPSC:
    plant = replace(TASKS[task](), horizon=20)
    certification = changes.pop("certification", "published")
    known = {"prior": plant.prior()} if prior else {}
    return XMPSC.create(plant, tiny(task, **changes), certification=certification, seed=seed, **known)


def rows(one: XMPSC) -> str:
    return json.dumps([{k: v for k, v in row.items() if not k.endswith("_ms")} for row in one.logger.rows])


def trained(one: XMPSC, steps: int = 40) -> XMPSC:
    return one.learn(50, lambda now: now.steps < steps)


@pytest.fixture(scope="module")
def pendulum() -> XMPSC:
    return trained(learner())


@pytest.mark.parametrize("task", ["cart-pole", "arm", "drone"])
def test_every_task_learns_behind_the_filter(task):
    account_for(trained(learner(task, pretrain=task == "cart-pole"), 20))


def account_for(one: XMPSC) -> None:
    """Each step is exactly one of the sources; warm-up stands apart; counts agree with the trajectories."""
    warm = [row for row in one.logger.rows if row["phase"] == "warm-up"]
    rest = [row for row in one.logger.rows if row["phase"] == "train"]
    assert warm and rest and len(warm) + len(rest) == one.told
    assert sum(row["steps"] for row in warm) >= one.preset.warm_up > sum(row["steps"] for row in warm[:-1])
    assert one.steps == sum(row["steps"] for row in rest) == rest[-1]["env_steps"]
    for row in rest:
        assert sum(row[f"from_{name}"] for name in SOURCES) == row["steps"]
        assert row["backed"] <= row["from_plan"] + row["from_stored"] + row["from_backup"]
        assert not row["guaranteed"]
        if one.certification is not None:
            assert 0 <= row["captured"] <= row["captured_of"] <= row["steps"] and row["certify_ms"] > 0
    for row, (states, inputs) in zip(one.logger.rows, one.history, strict=True):
        assert row["steps"] == len(inputs) == len(states) - 1
        assert row["violations"] in (0, 1) and (row["violations"] == 1 or row["steps"] == one.system.horizon)
        assert bool(one.system.input_box.contains(inputs).all())
    assert len(one.standing.real) == sum(row["steps"] for row in one.logger.rows)
    assert int(one.standing.real.terminal.sum()) == sum(row["violations"] for row in one.logger.rows)


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


@pytest.mark.parametrize("how", ["published", "none", "invariant", "certain", "gp"])
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


def gaussian(mode: str) -> XMPSC:
    """An exact process about the true known part: what is left to learn is 0."""
    plant = replace(SimplePendulum(observation_noise=0.0), horizon=20)
    gp = GP.create(
        kernels.rbf([2.0, 6.0, 2.0], 1e-4), 1e-2, nx=2, nu=1, noise_std=plant.noise_std, prior=plant.prior(scale=1.0)
    )
    bound = (
        Mixture(rkhs_norm=0.01, subgaussian=tuple(plant.noise_std.tolist()), delta=0.1)
        if mode == "sound"
        else Constant(value=2.0, rkhs_norm=(0.01, 0.01))
    )
    how = Certification(
        states=3, mode=mode, terminal="invariant", feedback=None, around=torch.tensor([0.4, 1.0]).double()
    )
    return XMPSC(plant, ConfidenceSet(bound).update(gp), tiny("pendulum"), how, thinned=10)


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
