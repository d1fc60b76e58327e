"""What every baseline promises: one face, one counter, the same numbers after a restart, no guarantee."""

from __future__ import annotations

import json
from functools import cache
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from baseline_cases import BASELINES, CASES, small, toy
from gymnasium.vector import AutoresetMode

import gpsafe.systems.envs  # noqa: F401  (registers)
from gpsafe import baselines
from gpsafe.baselines import Baseline, Batch, VectorPlant
from gpsafe.baselines.plants import EpisodicPlants, fly
from gpsafe.systems import SimplePendulum
from gpsafe.systems.episodic import Episodic

BATCHES = 3
every_baseline = pytest.mark.parametrize("name", CASES)


@cache
def learnt(name: str) -> Baseline:
    return CASES[name]().learn(BATCHES)


def require_equal(one: Baseline, other: Baseline) -> None:
    assert json.dumps(one.logger.rows) == json.dumps(other.logger.rows)
    mine, others = one._packed(), other._packed()
    assert mine.keys() == others.keys() and all(np.array_equal(mine[k], others[k]) for k in mine)
    x = one.system.initial_state
    assert torch.equal(one.predict(x), other.predict(x))


@every_baseline
def test_learn_is_ask_fly_tell_bit_by_bit(name):
    again = CASES[name]()
    for _ in range(BATCHES):
        again.tell(again.rollout(again.ask()))
    require_equal(learnt(name), again)
    assert all(row["followed"] for row in again.logger.rows)


@every_baseline
def test_interrupted_and_resumed_equals_uninterrupted(name, tmp_path):
    first = CASES[name]().learn(1)
    first.rollout(first.ask())  # stopped after a batch that is never told
    second = CASES[name]().load(first.save(tmp_path / "a"))
    third = CASES[name]().load(second.learn(1).save(tmp_path / "b"))
    require_equal(learnt(name), third.learn(BATCHES - 2))


@every_baseline
def test_another_seed_is_another_run_and_the_same_is_the_same(name):
    one = CASES[name]().learn(1)
    other = CASES[name](seed=1).learn(1)
    assert any(not np.array_equal(a, other._packed()[k]) for k, a in one._packed().items())
    assert json.dumps(one.logger.rows) == json.dumps(learnt(name).logger.rows[:1])


@every_baseline
def test_nothing_is_guaranteed_and_it_says_so(name):
    one = learnt(name)
    assert "baseline" in one.unsound and "heuristic" in repr(one) and len(repr(one)) < 300
    assert all(not row["guaranteed"] and row["unsound"] for row in one.logger.rows)
    frame = one.logger.frame()
    assert len(frame) == one.told == BATCHES and {"phase", "steps", "violations", "violations_observed"} <= set(frame)
    assert "heuristic" in one._repr_html_()


@every_baseline
def test_predict_gives_an_input_of_the_plant_and_learns_nothing(name):
    one, x = learnt(name), toy().initial_state
    before = {k: v.copy() for k, v in one._packed().items()}
    for observation in (x, x.numpy(), x.tolist()):
        u = one.predict(observation, episode_start=True)
        assert u.shape == (1,) and bool(one.system.input_box.contains(u)) and torch.equal(u, one.predict(x))
    assert all(np.array_equal(v, one._packed()[k]) for k, v in before.items())
    for wrong in ([float("nan")], [0.0, 0.0], "x"):
        with pytest.raises(ValueError, match="observation"):
            one.predict(wrong)


@every_baseline
def test_a_robot_is_asked_and_told_and_none_of_its_dynamics_is_needed(name):
    plant = toy()
    one = CASES[name](plant)
    for _ in range(BATCHES):
        policy, episodes, taken = one.ask(), [], 0
        assert one.ask() is policy
        while taken < policy.steps:
            x, states, inputs = torch.zeros(1).double(), [torch.zeros(1).double()], []
            while len(inputs) < plant.horizon and not bool(plant.terminated(x)):
                inputs.append(policy(x.tolist()))
                x = plant.mean(x, inputs[-1])
                states.append(x)
            episodes.append((torch.stack(states).numpy(), torch.stack(inputs)))
            taken += len(inputs)
        batch = Batch.of_episodes(plant, episodes)
        assert batch.steps == taken and len(batch.finished) == len(episodes)
        one.tell(batch)
    assert all(row["followed"] for row in one.logger.rows) and one.logger.rows[-1]["env_steps"] >= 3 * 24
    one.tell(batch)  # somebody else's: learned from, and said to be so
    assert not one.logger.rows[-1]["followed"]


@every_baseline
def test_files_of_another_learner_are_refused_by_name(name, tmp_path):
    folder = learnt(name).save(tmp_path)
    kind, _, preset = name.rpartition("-")
    other = {"published": "corrected", "corrected": "published"}[preset]
    for match, new in (
        ("saved seed", CASES[name](seed=5)),
        ("another .*preset", CASES[f"{kind}-{other}"]()),
        ("another system", CASES[name](toy(horizon=7))),
        ("a new learner", CASES[name]().learn(1)),
    ):
        with pytest.raises(ValueError, match=match):
            new.load(folder)
    state = next(folder.glob("state-*.npz"))
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(ValueError, match="torn"):
        CASES[name]().load(folder)


@pytest.mark.parametrize("name", BASELINES)
def test_the_published_budgets_and_what_is_refused(name):
    one = baselines.create(name, SimplePendulum(), "published")
    wanted = {"sqrl": 101, "safety-layer": 1000 + 4000}.get(name, 1000)
    assert one.budget == wanted and one.told == 0 and one.totals == {}
    for kind, plant, options in (
        ("nobody", SimplePendulum(), {}),
        (name, SimplePendulum(), {"preset": "mended"}),
        (name, SimplePendulum(), {"seed": -1}),
        (name, SimplePendulum(), {"epochs": 0}),
        (name, "a plant", {}),
    ):
        with pytest.raises(ValueError, match="expected"):
            baselines.create(kind, plant, **options)


# ------------------------------------------------------------------ the counter
class Blurred:
    """The toy with a sensor that lies by up to 2."""

    def __init__(self) -> None:
        self._plant = toy()

    def __getattr__(self, name):
        return getattr(self._plant, name)

    def observe(self, x, generator):
        return x + 2.0 * (2 * torch.rand(x.shape, dtype=torch.float64, generator=generator) - 1)


def truths(system: Episodic) -> list[torch.Tensor]:
    """The true states that a plant goes through are written down as they are made."""
    seen, advance = [], system.advance

    def spied(x, u, generator):
        seen.append(advance(x, u, generator))
        return seen[-1]

    system.advance = spied  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("name", CASES)
def test_violations_are_those_of_true_states_and_none_is_left_out(name):
    plant = Blurred()
    assert isinstance(plant, Episodic)
    one, seen = CASES[name](plant), truths(plant)
    one.learn(BATCHES)
    true = sum(int((plant.cost(x) > 0).sum()) for x in seen)
    assert sum(at["violations"] for at in one.totals.values()) == true
    assert (
        sum(at["steps"] for at in one.totals.values()) == sum(len(x) for x in seen) == one.logger.rows[-1]["env_steps"]
    )
    assert sum(at["violations_observed"] for at in one.totals.values()) > true  # the published count charges safe steps
    phases = {"sqrl": "warm-up", "safety-layer": "pre-training"}
    first = phases.get(name.rpartition("-")[0], "train")
    assert one.logger.rows[0]["phase"] == first and one.totals[first]["steps"] > 0


def test_episodes_go_on_from_batch_to_batch_and_every_one_is_counted_once():
    plant, random = EpisodicPlants(toy(horizon=7), 3), torch.Generator().manual_seed(0)
    at, finished, steps = {}, [], 0
    for _ in range(5):
        batch = fly(plant, lambda x: np.zeros_like(x), 5, at, random)
        at, steps = batch.left, steps + batch.steps
        finished.append(batch.finished)
        assert int(batch.ended.sum()) == len(batch.finished)
    rows = np.concatenate(finished)
    assert (rows[:, 3] == 7).all() and (rows[:, 1] == 0).all() and len(rows) == 3 * (25 // 7) and steps == 75
    assert (at["age"] == 25 % 7).all()


def test_a_learners_episodes_go_on_from_batch_to_batch_too_and_after_a_restart(tmp_path):
    one, lengths = small("cpo", "corrected", toy(horizon=50)), []
    for _ in range(4):
        batch = one.rollout(one.ask())
        one.tell(batch)
        lengths.append(batch.finished[:, 3])
        one = small("cpo", "corrected", toy(horizon=50)).load(one.save(tmp_path))
    assert len(batch.seen) == 20 < np.concatenate(lengths).max()
    assert np.concatenate(lengths).sum() + batch.left["age"].sum() == 4 * 120


def test_a_return_is_the_sum_of_its_rewards_and_costs_are_discounted_from_the_start():
    plant, random = EpisodicPlants(toy(), 2), torch.Generator().manual_seed(0)
    batch = fly(plant, lambda x: np.ones_like(x), 20, {}, random)
    lane = 0
    ends = np.flatnonzero(batch.terminated[:, lane])
    first = batch.finished[next(i for i, (_, n) in enumerate(np.argwhere(batch.ended)) if n == lane)]
    assert first[3] == ends[0] + 1 and first[1] == 1.0
    assert np.isclose(first[0], batch.reward[: ends[0] + 1, lane].sum()) and np.isclose(first[2], 0.99 ** ends[0])
    assert not np.array_equal(batch.after[ends[0], lane], batch.seen[ends[0] + 1, lane])  # it began anew
    assert len(ends) > 2 and np.isclose(batch.finished[:, 0].sum() + batch.left["sums"][:, 0].sum(), batch.reward.sum())
    assert np.isclose(batch.finished[:, 3].sum() + batch.left["age"].sum(), batch.steps)
    assert not (batch.terminated & batch.truncated).any()
    alone = Batch.of_episodes(
        toy(),
        [(np.append(batch.seen[: ends[0] + 1, lane], batch.after[ends[0], lane][None], 0), np.ones((ends[0] + 1, 1)))],
    )
    np.testing.assert_allclose(alone.finished[0], first, rtol=1e-12)
    assert alone.terminated.sum() == 1 and not alone.truncated.any()


def test_what_ends_at_the_wall_in_its_last_step_is_no_time_out():
    plant = EpisodicPlants(toy(horizon=1), 2)
    batch = fly(plant, lambda x: np.full_like(x, 1e9), 3, {}, torch.Generator().manual_seed(0))
    assert batch.truncated.all() and not batch.terminated.any()  # clipped inputs do not reach it
    out = fly(plant, np.ones_like, 1, {**batch.left, "x": np.full((2, 1), 0.95)}, torch.Generator().manual_seed(0))
    assert out.terminated.all() and not out.truncated.any()


def test_a_batch_and_a_policy_show_themselves_in_a_line():
    one = small("cpo", "corrected")
    policy = one.ask()
    for thing in (policy, one.rollout(policy), one.logger, VectorPlant(environment, "cart-pole")):
        assert len(repr(thing)) < 300 and "\n" not in repr(thing)


def test_what_is_told_is_checked():
    one = small("cpo", "corrected")
    batch = one.rollout(one.ask())
    wrong = {"seen": batch.seen[..., :0], "inputs": batch.inputs[..., [0, 0]], "after": batch.after * np.nan}
    wrong |= {"cost": batch.cost * np.nan, "reported": batch.cost[:-1]}
    for name, value in wrong.items():
        parts = {f: getattr(batch, f) for f in Batch.__dataclass_fields__} | {name: value}
        with pytest.raises(ValueError, match=f"tell: expected finite {name}"):
            one.tell(Batch(**parts))
    with pytest.raises(ValueError, match="to be a Batch"):
        one.tell(SimpleNamespace())
    with pytest.raises(ValueError, match="at least one episode"):
        Batch.of_episodes(toy(), [])
    with pytest.raises(ValueError, match="states \\(t \\+ 1, 1\\)"):
        Batch.of_episodes(toy(), [(np.zeros((3, 1)), np.zeros((3, 1)))])
    assert one.told == 0


def test_a_run_that_diverges_is_named():
    one = small("cpo", "corrected").learn(1)
    one._parts["critic"].flat[:] = np.inf
    with pytest.raises(ValueError, match="divergence in critic"):
        one.learn(1)


def test_a_callback_sees_every_batch_and_may_stop():
    seen = []
    one = small("ppo-lagrangian", "corrected")
    assert one.learn(9, lambda now: seen.append(now.told) or now.told < 2).told == 2 and seen == [1, 2]


# ------------------------------------------------------------------ Gymnasium
def environment(name: str = "gpsafe/SafeCartPole-v0", mode: AutoresetMode = AutoresetMode.DISABLED):
    return gymnasium.make_vec(name, 4, "sync", vector_kwargs={"autoreset_mode": mode})


@pytest.mark.parametrize("name", ["cpo", "sqrl"])
def test_a_vector_environment_is_a_plant_and_a_run_on_it_goes_on_bit_equal(name, tmp_path):
    def make() -> Baseline:
        return small(name, "corrected", VectorPlant(environment, "cart-pole"))

    one, whole = make().learn(1), make().learn(2)
    assert json.dumps(make().load(one.save(tmp_path)).learn(1).logger.rows) == json.dumps(whole.logger.rows)
    row = whole.logger.rows[-1]
    assert row["violations"] == row["violations_observed"] and row["steps"] == (120 if name == "cpo" else 24)
    assert whole.predict(np.zeros(4)).shape == (1,)


def test_a_vector_environment_counts_what_the_environment_says():
    plant = VectorPlant(environment, "cart-pole")
    batch = fly(plant, lambda x: np.ones((4, 1)), 60, {}, torch.Generator().manual_seed(0))
    assert batch.cost.sum() == batch.terminated.sum() == len(batch.finished) > 3
    assert (batch.finished[:, 1] == 1).all() and (np.abs(batch.after[batch.terminated][:, 2]) > np.radians(12)).all()


def test_a_vector_environment_that_cannot_be_counted_or_reset_is_refused():
    with pytest.raises(ValueError, match="DISABLED"):
        VectorPlant(lambda: environment(mode=AutoresetMode.NEXT_STEP), "cart-pole")
    with pytest.raises(ValueError, match="a flat box as single_action_space"):
        VectorPlant(lambda: environment("CartPole-v1"), "discrete")
    silent = small("cpo", "corrected", VectorPlant(lambda: environment("Pendulum-v1"), "silent"))
    with pytest.raises(ValueError, match="counted on the truth"):
        silent.learn(1)
    with pytest.raises(ValueError, match="half-spaces"):
        small("safety-layer", "corrected", VectorPlant(environment, "cart-pole"))
