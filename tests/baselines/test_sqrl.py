"""SQRL: the mask on a tabular decision process, the safety critic's fixed point, and the gradient of the safety term."""

import math

import numpy as np
import pytest
from baseline_cases import small, toy
from hypothesis import given
from strategies import seeds

from gpsafe.baselines._risk import RiskAgent, masked, risk_target
from gpsafe.baselines.sqrl import SQRL
from gpsafe.models import _flat
from gpsafe.planning.mbpo import Settings
from gpsafe.planning.mbpo._nets import FLOAT

DISCOUNT, SLIP = 0.7, 0.2
STATES, ACTIONS = 5, 2  # a corridor; state 0 is the cliff; action 0 goes left, 1 right, a slip stays


def corridor() -> np.ndarray:
    """P (S, A, S)."""
    P = np.zeros((STATES, ACTIONS, STATES))
    for s in range(STATES):
        for a, move in enumerate((-1, 1)):
            P[s, a, min(max(s + move, 0), STATES - 1)] += 1 - SLIP
            P[s, a, s] += SLIP
    return P


def exact_risk(policy: np.ndarray) -> np.ndarray:
    """E Σ γ^t c over the first visit of the cliff, of (s, a) under a policy (S, A): a linear system."""
    P, size = corridor(), STATES * ACTIONS
    cost = P[:, :, 0].reshape(size)
    alive = P.copy()
    alive[:, :, 0] = 0.0  # the cliff is terminal
    chain = np.einsum("sat,tb->satb", alive, policy).reshape(size, size)
    return np.linalg.solve(np.eye(size) - DISCOUNT * chain, cost).reshape(STATES, ACTIONS)


def test_the_target_has_the_discounted_probability_to_fail_as_its_fixed_point():
    policy, P = np.full((STATES, ACTIONS), 0.5), corridor()
    found = np.zeros((STATES, ACTIONS))
    fallen = np.eye(STATES)[0]
    for _ in range(200):
        later = (found * policy).sum(-1)
        found = (P * risk_target(fallen, fallen, later, DISCOUNT)).sum(-1)
    np.testing.assert_allclose(found, exact_risk(policy), atol=1e-12)
    assert (found > 0).all() and (found <= 1).all()


@pytest.mark.parametrize("limit", [0.05, 0.3, 0.75])
def test_the_mask_on_the_corridor_gives_the_restricted_policy(limit):
    policy = np.tile([0.7, 0.3], (STATES, 1))
    risk, grid = exact_risk(policy), (np.arange(2000) + 0.5) / 2000
    for s in range(STATES):
        taken = masked(np.tile(risk[s], (2000, 1)), np.tile(policy[s], (2000, 1)), limit, grid)
        share = np.bincount(taken, minlength=ACTIONS) / 2000
        allowed = risk[s] <= limit
        wanted = (
            policy[s] * allowed / (policy[s] * allowed).sum() if allowed.any() else np.eye(ACTIONS)[risk[s].argmin()]
        )
        np.testing.assert_allclose(share, wanted, atol=1e-3)


def test_the_masked_policy_falls_less_and_the_bare_one_is_the_control():
    policy = np.tile([0.7, 0.3], (STATES, 1))
    risk = exact_risk(policy)
    shares = [
        masked(np.tile(risk[s], (500, 1)), np.tile(policy[s], (500, 1)), 0.2, (np.arange(500) + 0.5) / 500)
        for s in range(5)
    ]
    bounded = np.stack([np.bincount(taken, minlength=ACTIONS) / 500 for taken in shares])
    values = [(exact_risk(p) * p).sum(-1) for p in (policy, bounded)]
    assert (values[1][1:] <= values[0][1:] + 1e-12).all() and values[1][1] < 0.5 * values[0][1]


@given(seed=seeds())
def test_no_masked_action_exceeds_the_limit_unless_all_do(seed):
    random = np.random.default_rng(seed)
    risk, weight = random.random((40, 7)), random.random((40, 7))
    taken = masked(risk, weight, 0.3, random.random(40))
    chosen = risk[np.arange(40), taken]
    some = (risk <= 0.3).any(-1)
    assert (chosen[some] <= 0.3).all() and np.array_equal(chosen[~some], risk.min(-1)[~some])


def agent(published: bool = False) -> RiskAgent:
    return RiskAgent(published, (2, 1, [-1.0], [1.0]), 0, Settings(hidden=(16,), learning_rate=1e-3))


def test_the_actor_climbs_value_less_weighted_risk():
    one, random = agent(), np.random.default_rng(0)
    one.weights[1] = math.log(3.0)
    x, a, step = random.normal(size=(1, 20, 2)).astype(FLOAT), random.uniform(-0.9, 0.9, (1, 20, 1)).astype(FLOAT), 1e-2
    found = one._pull(x, a)

    def climbed(a):
        return one.critic(np.concatenate([x, a], -1)[:, None])[-1].min(1) - 3.0 * one.risks(x, a)[..., None]

    slope = (climbed(a + FLOAT(step)) - climbed(a - FLOAT(step))) / (2 * step)
    assert np.median(np.abs(found - slope)) < 1e-3  # finite differences in float32, away from kinks
    bare = agent(published=True)
    bare.weights[1] = math.log(3.0)
    np.testing.assert_array_equal(bare._pull(x, a), super(RiskAgent, bare)._pull(x, a))


def test_the_entropy_weight_falls_where_the_policy_is_random_enough_and_its_multiplier_rises_with_the_risk():
    one, x, noise = (
        agent(),
        np.zeros((1, 50, 2), FLOAT),
        np.random.default_rng(0).standard_normal((1, 50, 1)).astype(FLOAT),
    )
    one.actor.flat[:] = 0.0  # σ = 1: log π is far below dim a
    for limit, sign in ((0.0, 1.0), (1.0, -1.0)):
        before, one.safe_limit = one.weights.copy(), limit
        one.tune(x, noise, alpha_rate=1e-2, nu_rate=1e-2)
        assert one.weights[0] < before[0] and math.copysign(1.0, one.weights[1] - before[1]) == sign
        one.adams[1] = type(one.adams[1])((1,), np.float64)
    one.actor.layers[-1][1][..., 1:] = -8.0  # σ = e⁻⁸: much too sure
    one.adams[0], before = type(one.adams[0])((1,), np.float64), one.weights[0]
    one.tune(x, noise, alpha_rate=1e-2, nu_rate=1e-2)
    assert one.weights[0] > before and math.isclose(one.settings.entropy, math.exp(one.weights[0]))


@pytest.mark.parametrize("published", [False, True])
def test_the_safety_critic_learns_what_fails_and_when(published):
    """u > 0 fails at once; u ≤ 0 stays for good."""
    one, random = agent(published), np.random.default_rng(1)
    for _ in range(1500):
        x, u = random.normal(size=(1, 64, 2)), random.uniform(-1, 1, (1, 64, 1))
        fails = (u > 0).astype(float)
        batch = np.concatenate([x, u, fails, x, fails], -1).astype(FLOAT)
        one.learn_risk(batch, random.standard_normal((1, 64, 1), FLOAT), 0.0, 0.9)
    x = random.normal(size=(1, 200, 2)).astype(FLOAT)
    a = np.linspace(-1, 1, 200, dtype=FLOAT)[None, :, None]
    risk = one.risks(x, a)[0]
    assert (risk[a[0, :, 0] > 0.3] > 0.8).mean() > 0.9 and (risk[a[0, :, 0] < -0.3] < 0.2).mean() > 0.9


def test_the_published_safety_critic_is_frozen_after_the_warm_up_and_its_batches_have_four_rows():
    one = small("sqrl", "published").learn(1)
    frozen = one._parts["agent"].risk.flat.copy()
    seen = []
    ring = one._parts["replay"]
    sample = ring.sample
    ring.sample = lambda generator, count: seen.append(count) or sample(generator, count)
    one.learn(1)
    assert np.array_equal(one._parts["agent"].risk.flat, frozen) and set(seen) == {4}


def test_the_corrected_safety_critic_learns_in_the_pretraining_and_is_frozen_afterwards():
    one = small("sqrl", "corrected").learn(1)
    weights = []
    for _ in range(3):
        weights.append(one._parts["agent"].risk.flat.copy())
        one.learn(1)
    assert not np.array_equal(weights[0], weights[1]) and np.array_equal(weights[1], weights[2])
    assert [row["phase"] for row in one.logger.rows] == ["warm-up", "pre-training", "train", "train"]


def test_masked_actions_are_those_of_low_risk():
    one = SQRL(toy(), warm_up=60, plants=6, sac=Settings(hidden=(8,)), safe_limit=0.5)
    one.learn(1)
    agent, x = one._parts["agent"], np.linspace(-1, 1, 30)[:, None]
    policy = one._act(1, "train")
    _, u = policy(x)
    risk = agent.risks(x[None].astype(FLOAT), u[None].astype(FLOAT))[0]
    assert (risk <= 0.5 + 1e-5).all() or (risk > 0.5).any()
    agent.risk.flat[:] = 0.0
    agent.risk.layers[-1][1][:] = 50.0  # all is risky: the least risky is taken, and nothing breaks
    assert np.isfinite(policy(x)[1]).all()


def test_the_risk_of_candidates_does_not_depend_on_what_the_cache_holds(monkeypatch):
    one, random = small("sqrl", "corrected"), np.random.default_rng(0)
    agent, x, noise = one._parts["agent"], random.normal(size=(5, 1)), random.normal(size=(5, 7, 1))
    whole = agent.candidates(x, noise)
    alone = agent.risks(x.repeat(7, 0)[None].astype(FLOAT), whole[0].reshape(1, 35, 1).astype(FLOAT))
    np.testing.assert_allclose(whole[2].ravel(), alone[0], rtol=1e-6)
    monkeypatch.setattr(_flat, "CACHED", 3 * 16)
    for found, wanted in zip(agent.candidates(x, noise), whole, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_published_candidates_are_weighted_by_their_density_once_more_and_corrected_ones_are_not(monkeypatch):
    for preset in ("published", "corrected"):
        one, weights = small("sqrl", preset).learn(1), []
        monkeypatch.setattr(
            "gpsafe.baselines.sqrl.masked",
            lambda risk, weight, *rest, w=weights: w.append(weight) or masked(risk, weight, *rest),
        )
        one._act(1, "train")(np.zeros((3, 1)))
        assert (weights[0] == 1.0).all() == (preset == "corrected")
        monkeypatch.undo()


@pytest.mark.parametrize("preset", ["published", "corrected"])
def test_the_safety_critic_is_told_the_presets_costs(preset):
    one = small("sqrl", preset)
    batch = one.rollout(one.ask())
    changed = {name: getattr(batch, name) for name in type(batch).__dataclass_fields__}
    shape = batch.cost.shape
    changed |= {"cost": np.eye(*shape), "reported": 1.0 - np.eye(*shape)}
    one.tell(type(batch)(**changed))
    wanted = changed["reported" if preset == "published" else "cost"].reshape(-1)
    np.testing.assert_array_equal(one._parts["risks"].reward, wanted.astype(FLOAT))


def test_published_targets_lack_the_sigmoid_and_slow_copies_follow_slowly(monkeypatch):
    random = np.random.default_rng(0)
    batch = random.normal(size=(1, 30, 7)).astype(FLOAT)
    noise, found = random.standard_normal((1, 30, 1)).astype(FLOAT), {}
    for published in (True, False):
        one, seen = agent(published), []
        one.slow.layers[-1][1][:] = 3.0
        before = one.slow.flat.copy()
        monkeypatch.setattr(
            "gpsafe.baselines._risk.risk_target",
            lambda cost, ends, later, discount, s=seen: s.append(later) or risk_target(cost, ends, later, discount),
        )
        one.learn_risk(batch, noise, 0.7, 0.9)
        found[published] = seen[0]
        np.testing.assert_allclose(one.slow.flat - before, 0.1 * (one.risk.flat - before), atol=1e-6)
        monkeypatch.undo()
    assert found[True].min() > 1 and found[False].max() < 1
    np.testing.assert_allclose(found[False], 1 / (1 + np.exp(-found[True])), rtol=1e-5)
