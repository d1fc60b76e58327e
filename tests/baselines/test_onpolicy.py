"""What an on-policy update is given: costs, estimates, advantages, targets, spread; and what its steps must respect."""

import numpy as np
import pytest
from baseline_cases import small, toy

from gpsafe.baselines import CPO, Batch, Frame, TRPOLagrangian
from gpsafe.baselines._surrogate import advantages
from gpsafe.baselines.onpolicy import Data, OnPolicy

PRESETS = pytest.mark.parametrize("preset", ["published", "corrected"])


def fake(seed: int, steps: int = 8, lanes: int = 5) -> Batch:
    """Random numbers in which true and measured costs differ."""
    random = np.random.default_rng(seed)
    seen, after, inputs = random.normal(size=(3, steps, lanes, 1))
    cost, reported = (random.random((2, steps, lanes)) < [[[0.1]], [[0.4]]]).astype(float)
    terminated, late = cost > 0, random.random((steps, lanes)) < 0.2
    count = int((terminated | late).sum())
    finished = np.abs(random.normal(1.0, 0.3, (count, 4)))
    reward = 3 * random.normal(size=(steps, lanes))
    return Batch(
        seen, after, np.clip(inputs, -1, 1), reward, cost, reported, terminated, late & ~terminated, finished, {}
    )


def told(preset: str, monkeypatch, kind: type[OnPolicy] = CPO, **options):
    """A baseline that was told two batches, and what its updates and critics were given."""
    one = kind(
        toy(), preset=preset, epochs=10, frame=Frame(steps=40, plants=5, hidden=(4,), passes=1, parts=2), **options
    )
    data: list[Data] = []
    targets, values = [], []
    monkeypatch.setattr(kind, "_improve", lambda self, found: data.append(found) or {})
    monkeypatch.setattr(kind, "_criticise", lambda self, rows, drawn, wanted, random: targets.append(wanted))
    for seed in range(2):
        values.append(one._worth(one._parts["seen"](fake(seed).seen.reshape(-1, 1)))[..., 0])
        one.tell(fake(seed))
    return one, data, targets, values


@PRESETS
def test_advantages_and_targets_are_of_the_presets_cost_and_the_scaled_reward(preset, monkeypatch):
    one, data, targets, values = told(preset, monkeypatch)
    sums, seen = [], []
    for k in range(2):
        batch, found = fake(k), data[k]
        past = np.zeros(batch.reward.shape[1])
        for reward, ended in zip(batch.reward, batch.ended, strict=True):
            past = 0.99 * past + reward
            sums.append(past.copy())
            past = np.where(ended, 0.0, past)
        scaled = np.clip(batch.reward / np.concatenate(sums).std(), -10, 10)
        charged = batch.reported if preset == "published" else batch.cost
        mean, std = (np.concatenate(seen).mean(), np.concatenate(seen).std()) if seen else (0.0, 1.0)
        np.testing.assert_allclose(found.rows, (batch.seen.reshape(-1, 1) - mean) / std, atol=1e-12)
        later = one._worth((batch.after.reshape(-1, 1) - mean) / std)[..., 0].reshape(2, *batch.reward.shape)
        for i, signal in enumerate((scaled, charged)):
            value = values[k][i].reshape(signal.shape)
            wanted = advantages(signal, value, later[i], batch.terminated, batch.ended, 0.99, 0.95).reshape(-1)
            np.testing.assert_allclose(found.advantage[i], wanted, atol=1e-10)
            np.testing.assert_allclose(targets[k][i], wanted + values[k][i], atol=1e-10)
        seen.append(batch.seen.reshape(-1))


@PRESETS
def test_the_cost_of_an_episode_is_the_presets_mean_over_those_that_ended(preset, monkeypatch):
    one, data, _, _ = told(preset, monkeypatch)
    for k, found in enumerate(data):
        batch = fake(k)
        measured = batch.reported.sum() / len(batch.finished)
        assert np.isclose(found.cost, measured if preset == "published" else batch.finished[:, 1].mean())
        assert np.isclose(found.discounted, batch.finished[:, 2].mean())
        assert np.isclose(found.length, batch.finished[:, 3].mean())
    quiet = {name: getattr(fake(2), name) for name in Batch.__dataclass_fields__} | {"finished": np.zeros((0, 4))}
    one.tell(Batch(**quiet))
    assert data[2].cost == data[1].cost and data[2].length == data[1].length  # none ended: what was known before


def test_the_spread_is_annealed_over_the_budget_and_stays_at_its_end(monkeypatch):
    one, data, _, _ = told("corrected", monkeypatch)
    np.testing.assert_allclose([one.std(e) for e in (0, 5, 10, 99)], [0.509, 0.2595, 0.01, 0.01])
    assert [found.std for found in data] == [one.std(0), one.std(1)]
    layer = small("safety-layer", "corrected", pretraining=3)
    np.testing.assert_allclose([layer.std(3), layer.std(7)], [0.509, 0.01])


def improved(one: OnPolicy, seed: int, cost: float, length: float = 10.0):
    """One update on random advantages: row, KL, and the changes of the surrogates of reward and cost."""
    random, policy = np.random.default_rng(seed), one._parts["policy"]
    rows, std = random.normal(size=(60, 1)), 0.3
    old = policy(rows)[-1]
    drawn = old + std * random.normal(size=old.shape)
    pull = (drawn - old)[:, 0]
    advantage = np.stack([pull * np.sign(rows[:, 0]), pull * random.choice([-1, 1]) + 0.3 * random.normal(size=60)])
    row = one._improve(Data(rows, drawn, advantage, cost, cost, length, std, random, fake(0)))
    mean = policy(rows)[-1]
    far, near = (np.square(drawn - m).sum(-1) for m in (mean, old))
    ratio = np.exp((near - far) / (2 * std**2))
    return row, np.square(mean - old).mean() / (2 * std**2), (ratio * advantage).mean(-1) - advantage.mean(-1)


@PRESETS
def test_no_step_of_cpo_leaves_its_trust_region_or_what_the_limit_leaves(preset):
    slack, cases, moved = 1.5 if preset == "published" else 1.0, set(), 0
    for seed in range(60):
        one = small("cpo", preset, seed=seed, radius=0.05, limit=0.5)
        cost = (0.0, 0.45, 0.5, 0.55, 5.0)[seed % 5]
        row, divergence, (more, worse) = improved(one, seed, cost, length=0.5)
        c = (cost - 0.5) / 0.5
        assert np.isclose(row["excess"], c) and np.isclose(row["kl"], divergence)
        assert divergence <= slack * 0.05 + 1e-12 and worse <= max(-c, 0.0) + 1e-12
        if row["case"] == "free" or (row["case"] == "bounded" and c < 0):
            assert more >= -1e-12
        cases.add(row["case"])
        moved += divergence > 0
    assert cases == {"free", "bounded", "recovery"} and moved > 20


def test_the_published_step_may_be_half_again_as_far_and_the_corrected_one_not():
    found = {}
    for preset in ("published", "corrected"):
        rows = [improved(small("trpo-lagrangian", preset, seed=s, radius=0.05), s, 0.0) for s in range(40)]
        found[preset] = max(divergence for _, divergence, _ in rows)
        assert all((more > 0) == (row["share"] > 0) for row, _, (more, _) in rows if row["multiplier"] < 1e-2)
    assert found["corrected"] <= 0.05 < found["published"] <= 0.075


def test_the_multiplier_of_trpo_is_that_of_its_costs():
    one = small("trpo-lagrangian", "corrected", limit=0.5, multiplier_rate=0.1)
    assert isinstance(one, TRPOLagrangian)
    for cost, wanted in ((1.5, 0.101), (0.6, 0.111), (0.0, 0.061), (0.0, 0.011), (0.0, 0.0)):
        assert np.isclose(improved(one, 0, cost)[0]["multiplier"], wanted)


@PRESETS
def test_a_step_of_cpo_that_lowers_the_reward_is_taken_for_a_recovery_alone(preset, monkeypatch):
    shares = {}
    for case in ("free", "bounded", "recovery"):
        monkeypatch.setattr(
            f"gpsafe.baselines.cpo.{preset}_step", lambda g, b, c, radius, solve, case=case: (-1e-3 * g, case)
        )
        row, _, (more, _) = improved(small("cpo", preset, limit=50.0), 1, 0.0)
        shares[case] = row["share"]
        assert (more < 0) == (row["share"] > 0)
    assert shares["free"] == shares["bounded"] == 0.0 < shares["recovery"]
