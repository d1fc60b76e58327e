"""What every learner promises: one shape, no need of the plant's dynamics, the same numbers after a restart."""

from __future__ import annotations

import copy
import hashlib
import json
from functools import cache

import numpy as np
import pytest
import torch

from gpsafe._files import write_bytes
from gpsafe.algorithms.learner import PLANT, Learner, stream
from gpsafe.cost import monte_carlo
from gpsafe.policies.rollout import one_episode
from gpsafe.saved import _learner as _saved
from gpsafe.systems.base import System
from tests import learner_cases as cases
from tests.learner_cases import LEARNERS, robot_of

EPISODES = 3
SLOW = {"gosafe"}  # the same code as "safeopt" but for the flight
every_learner = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in LEARNERS]
)


@cache
def learnt(name: str) -> Learner:
    return LEARNERS[name]().learn(EPISODES)


def rows(learner: Learner) -> list[dict]:
    """The log without times (NaN as a word, so that it equals itself)."""
    plain = [{k: v for k, v in row.items() if not k.endswith("_s")} for row in learner.logger.rows]
    return json.loads(json.dumps(plain))


def require_equal(one: Learner, other: Learner) -> None:
    assert one.told == other.told
    for (x, u), (y, v) in zip(one.history, other.history, strict=True):
        assert torch.equal(x, y) and torch.equal(u, v)
    assert str(rows(one)) == str(rows(other))
    x = one.system.initial_state
    assert torch.equal(one.ask()(x), other.ask()(x))  # and so would the next episode be


@every_learner
def test_learn_is_ask_rollout_tell_bit_by_bit(name):
    again = LEARNERS[name]()
    for _ in range(EPISODES):
        policy = again.ask()
        again.tell(*again.rollout(policy))
    require_equal(learnt(name), again)


@every_learner
def test_nothing_of_the_plants_dynamics_is_needed_to_ask_and_tell(name):
    plant: System = learnt(name).system
    learner = LEARNERS[name](robot_of(plant))
    with pytest.raises(ValueError, match="ask\\(\\) and tell\\(\\)"):
        learner.learn(1)
    for states, _ in learnt(name).history:  # the robot: whoever flies it knows its dynamics
        policy = learner.ask()
        inputs = torch.stack([policy(x.tolist()) for x in states[:-1]])
        learner.tell(states.numpy(), inputs.numpy())
    for (x, u), (y, v) in zip(learner.history, learnt(name).history, strict=True):
        assert torch.equal(x, y) and torch.equal(u, v)
    assert all(row["followed"] for row in learner.logger.rows)


@every_learner
def test_interrupted_and_resumed_equals_uninterrupted(name, tmp_path):
    first = LEARNERS[name]().learn(1)
    policy = first.ask()  # stopped in the middle of an episode that is never told
    policy(first.system.initial_state)
    second = LEARNERS[name]().load(first.save(tmp_path / "a"))
    third = LEARNERS[name]().load(second.learn(1).save(tmp_path / "b"))
    require_equal(learnt(name), third.learn(EPISODES - 2))


@every_learner
def test_predict_gives_an_input_of_the_plant_and_learns_nothing(name):
    learner = LEARNERS[name]().learn(3)
    x, before = learner.system.initial_state, learner.history
    for observation in (x, x.numpy(), x.tolist()):
        u = learner.predict(observation, episode_start=True)
        assert u.shape == (learner.system.nu,) and bool(learner.system.input_box.contains(u))
    assert learner.told == 3 and all(torch.equal(a[0], b[0]) for a, b in zip(before, learner.history, strict=True))
    assert torch.equal(learner.ask()(x), learnt(name).ask()(x))
    with pytest.raises(ValueError, match="observation"):
        learner.predict([float("nan")] * len(x))


@every_learner
def test_another_seed_is_another_run(name):
    other = LEARNERS[name](seed=1).learn(1)
    assert not torch.equal(other.history[0][0], learnt(name).history[0][0])


@every_learner
def test_a_policy_is_asked_again_until_it_is_used_and_not_after_its_last_step(name):
    learner = LEARNERS[name]()
    policy = learner.ask()
    assert learner.ask() is policy
    x = learner.system.initial_state
    for _ in range(learner.system.horizon):
        u = policy(x)
        assert u.shape == (learner.system.nu,) and bool(learner.system.input_box.contains(u))
    with pytest.raises(ValueError, match="steps an episode"):
        policy(x)
    again = learner.ask()
    assert again is not policy and torch.equal(again(x), policy.inputs[0])
    for wrong in (torch.full_like(x, torch.nan), torch.zeros(7), "x"):
        with pytest.raises(ValueError, match="policy"):
            again(wrong)


@every_learner
def test_copies_in_the_middle_of_an_episode_fly_on_without_each_other(name):
    """They shared planner and shield: the one was told that f* is not in F_n, the other that it is guaranteed."""
    one, alone = (LEARNERS[name]().learn(EPISODES - 1) for _ in range(2))
    system, asked = one.system, one.ask()
    states, inputs = [asked.start], []

    def fly(policy, states, inputs, noise):
        inputs.append(policy(states[-1]))
        states.append(system.mean(states[-1], inputs[-1]) + noise)

    noise = system.noise_std * (2 * torch.rand(3, system.horizon, system.nx, generator=stream(0)).double() - 1)
    for t in range(2):
        fly(asked, states, inputs, noise[0, t])
    other = copy.deepcopy(one)
    flights = [(one, asked, [*states], [*inputs], noise[1]), (other, other._book.asked, states, inputs, noise[2])]
    for t in range(2, system.horizon):
        for _, policy, *flown, w in flights:
            fly(policy, *flown, w[t])
    for learner, _, *flown, _ in flights:
        learner.tell(*map(torch.stack, flown))
    policy = alone.ask()
    assert all(torch.equal(policy(x), u) for x, u in zip(states, inputs, strict=False))
    alone.tell(torch.stack(states), torch.stack(inputs))
    require_equal(other, alone)
    assert one.falsified is None and one.logger.rows[-1]["unsound"] == alone.logger.rows[-1]["unsound"]


@every_learner
def test_what_was_told_is_the_learners_own(name):
    learner, (states, inputs) = LEARNERS[name](), learnt(name).history[0]
    given = states.clone()
    learner.tell(given, inputs)
    for tensor in (given, learner.history[0][0]):
        tensor.fill_(7.0)
    assert torch.equal(learner.history[0][0], states)


@every_learner
def test_what_was_told_is_checked(name):
    learner, (states, inputs) = LEARNERS[name](), learnt(name).history[0]
    for x, u in (
        (states[:-1], inputs),
        (states, inputs[:, :0]),
        (states * torch.nan, inputs),
        (states[:1], inputs[:0]),
    ):
        with pytest.raises(ValueError, match="tell"):
            learner.tell(x, u)
    assert learner.told == 0


@every_learner
def test_an_episode_that_was_not_flown_as_asked_is_learnt_from_and_carries_no_guarantee(name):
    learner, (states, inputs) = LEARNERS[name](), learnt(name).history[0]
    learner.tell(states, inputs)
    policy = learner.ask()
    learner.tell(
        *one_episode(learner.system.mean, lambda x: policy(x) * 0.5, states[0], torch.zeros(3, len(states[0])))
    )
    assert [row["guaranteed"] for row in learner.logger.rows] == [False, False]
    assert all(row["unsound"] for row in learner.logger.rows) and learner.told == 2
    assert learner.logger.rows[1]["steps"] == 3 and not learner.logger.rows[1]["followed"]


@every_learner
def test_an_episode_that_began_elsewhere_than_asked_carries_no_guarantee(name):
    learner, away = LEARNERS[name](), learnt(name).system.initial_state + 1e-6
    learner.tell(*learnt(name).history[0])
    for start in (None, away):
        policy = learner.ask(start)
        learner.tell(*one_episode(learner.system.mean, policy, away, torch.zeros(2, len(away)).double()))
        row = learner.logger.rows[-1]
        measured = name == "receding-sound" and start is not None  # its fallback is certified from what was measured
        assert row["followed"] and row["guaranteed"] == measured
    with pytest.raises(ValueError, match="ask: expected start of shape"):
        learner.ask([0.0] * 9)


def begun(learner: Learner, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is measured in the first steps of the next episode, which nobody tells."""
    system = learner.system
    return one_episode(system.mean, learner.ask(), system.initial_state, system.noise_std * noise(steps))


def noise(steps: int) -> torch.Tensor:
    return torch.randn(steps, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@every_learner
def test_nothing_is_guaranteed_while_a_flight_is_not_told(name, tmp_path):
    """Who leaves out the flights that ended badly leaves noise of another mean in the others: no bound speaks of those."""
    learner, before = LEARNERS[name](), LEARNERS[name]().ask().unsound
    states, inputs = begun(learner, 4)
    for one in (learner, LEARNERS[name]().load(learner.save(tmp_path))):
        policy = one.ask()
        assert "not told" in str(policy.unsound) or before is not None
        assert "guaranteed" not in repr(one)
        one.tell(*one.rollout(policy))
        assert not one.logger.rows[-1]["guaranteed"]
        one.tell(states, inputs)  # late, and by who flew it
        assert "not told" not in str(one.ask().unsound)


@every_learner
def test_an_input_at_the_first_state_is_no_flight(name):
    learner, before = LEARNERS[name](), LEARNERS[name]().ask().unsound
    learner.ask()(learner.system.initial_state)
    assert learner.ask().unsound == before


@every_learner
def test_an_episode_is_told_once(name):
    """Copies of an episode shrink σ_n and say nothing: after twelve of one of 20 steps f* had left F_n of reference-1d."""
    learner = LEARNERS[name]().learn(2)
    for states, inputs in learner.history:
        with pytest.raises(ValueError, match="not told before"):
            learner.tell(states, inputs)
    assert learner.told == 2


@every_learner
def test_a_refuted_learner_stops_and_guarantees_nothing_more(name):
    learner, (states, inputs) = LEARNERS[name](), learnt(name).history[0]
    learner.tell(states, inputs, falsified="a sensor lied")
    assert learner.falsified == "a sensor lied" and "a sensor lied" in repr(learner)
    assert learner.learn(3).told == 1
    policy = learner.ask()
    assert policy.unsound and "guaranteed" not in repr(policy)
    if name != "receding-practical":  # which certifies nothing
        with pytest.raises(ValueError, match="a sensor lied"):
            learner.predict(learner.system.initial_state)
    learner.tell(*learner.rollout(policy))
    assert not learner.logger.rows[-1]["guaranteed"]


@every_learner
def test_a_callback_sees_every_episode_and_may_stop(name):
    seen = []

    def stop(learner: Learner) -> bool:
        seen.append(learner.told)
        return learner.told < 2

    assert LEARNERS[name]().learn(9, callback=stop, progress_bar=name == "finite").told == 2 and seen == [1, 2]


@every_learner
def test_the_log_is_a_table_and_the_repr_is_short(name):
    frame = learnt(name).logger.frame()
    assert len(frame) == EPISODES and {"episode", "cost", "reward", "guaranteed", "unsound"} <= set(frame.columns)
    assert len(repr(learnt(name))) < 300 and len(repr(learnt(name).logger)) < 40


@every_learner
def test_guaranteed_rows_only_where_the_learner_is_sound(name):
    learner = learnt(name)
    guaranteed = [row["guaranteed"] for row in learner.logger.rows]
    assert any(guaranteed) == (learner.unsound is None)
    if learner.unsound is not None:
        assert "heuristic" in repr(learner) and all(row["unsound"] for row in learner.logger.rows)
    assert all(row["cost"] == 0.0 for row in learner.logger.rows if row["guaranteed"])


# ------------------------------------------------------------------ files
@every_learner
def test_a_file_that_is_torn_foreign_or_of_another_learner_is_refused_by_name(name, tmp_path):
    folder = learnt(name).save(tmp_path)
    head, body = folder / "learner.json", next(folder.glob("episodes-*.npz"))
    text, data = head.read_text(), body.read_bytes()
    about = json.loads(text)

    def refused(match: str, new: Learner | None = None) -> None:
        with pytest.raises(ValueError, match=match):
            (new or LEARNERS[name]()).load(folder)
        head.write_text(text)
        body.write_bytes(data)

    refused("saved seed 7", LEARNERS[name](seed=7))
    refused("stream", LEARNERS[name](stream=lambda *numbers: stream(*numbers)))
    refused("a new learner", LEARNERS[name]().learn(1))
    other = "finite" if name != "finite" else "continuous"
    refused("saved learner", LEARNERS[other]())
    head.write_text(text[:-20])
    refused("missing, torn or foreign")
    head.write_text("[1]")
    refused("missing, torn or foreign")
    head.write_text(json.dumps({**about, "format": "gpsafe learner 99"}))
    refused("another version")
    head.write_text(json.dumps({**about, "rows": about["rows"][1:]}))
    refused("foreign in rows")
    head.write_text(json.dumps({**about, "falsified": 3}))
    refused("foreign in \\['falsified'\\]")
    head.write_text(json.dumps({**about, "parts": {**about["parts"], "system.name": "0"}}))
    refused("another system.name")
    body.write_bytes(data[:-9])
    refused("episodes-.*npz: torn")
    body.unlink()
    refused("No such file")


def resealed(folder, about: dict) -> None:
    """Writes learner.json as a forger would."""
    (folder / "learner.json").write_text(json.dumps({**about, "sha256": _saved.seal(about)}))


@every_learner
def test_a_header_that_was_edited_is_not_what_was_saved(name, tmp_path):
    folder = learnt(name).save(tmp_path)
    head = folder / "learner.json"
    text = head.read_text()
    about = json.loads(text)
    assert list(about)[-1] == "sha256" and about["sha256"] == _saved.seal(about)
    edits = [
        {"falsified": None if about["falsified"] else "nothing"},
        {"counts": {**about["counts"], "more": 1}},
        {"rows": [{**row, "guaranteed": True, "unsound": None} for row in about["rows"][::-1]]},
        {"sha256": None},
    ]
    for edit in edits:
        head.write_text(json.dumps({**about, **edit}))
        with pytest.raises(ValueError, match="damaged or edited"):
            LEARNERS[name]().load(folder)
    del about["sha256"]
    head.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="damaged or edited"):
        LEARNERS[name]().load(folder)
    head.write_text(json.dumps({**about, "format": "gpsafe learner 2"}))  # of the time before seals
    assert LEARNERS[name]().load(folder).logger.rows == learnt(name).logger.rows
    head.write_text(text)
    assert LEARNERS[name]().load(folder).told == learnt(name).told


def test_a_refutation_is_not_edited_away(tmp_path):
    """No trajectory shows what its user said."""
    learner = LEARNERS["finite"]().learn(1)
    learner._book.refuted = "a camera slipped"
    head = learner.save(tmp_path) / "learner.json"
    assert LEARNERS["finite"]().load(tmp_path).falsified is not None
    head.write_text(head.read_text().replace('"a camera slipped"', "null"))
    with pytest.raises(ValueError, match="damaged or edited"):
        LEARNERS["finite"]().load(tmp_path)


def test_a_pickle_in_the_arrays_is_not_opened(tmp_path):
    folder = cases.finite().save(tmp_path)
    opened = []

    class Trap:
        def __reduce__(self):
            return (opened.append, (1,))

    np.savez(folder / "trap.npz", **{"states-0000": np.array([Trap()]), "inputs-0000": np.zeros((1, 1))})
    digest = hashlib.sha256((folder / "trap.npz").read_bytes()).hexdigest()
    (folder / "trap.npz").rename(folder / f"episodes-{digest[:16]}.npz")
    about = json.loads((folder / "learner.json").read_text())
    about |= {"arrays": digest, "episodes": 1, "rows": [{}]}
    resealed(folder, about)
    with pytest.raises(ValueError, match="1 episodes of numbers"):
        cases.finite().load(folder)
    assert not opened


def test_a_save_that_is_cut_off_leaves_the_one_before_it_and_a_whole_one_leaves_no_other(tmp_path, monkeypatch):
    learner = LEARNERS["finite"]().learn(1)
    learner.save(tmp_path)
    learner.learn(1)

    def cut(path, data):
        if str(path).endswith("learner.json"):
            raise KeyboardInterrupt
        return write_bytes(path, data)

    monkeypatch.setattr(_saved, "write_bytes", cut)
    with pytest.raises(KeyboardInterrupt):
        learner.save(tmp_path)
    monkeypatch.undo()
    assert LEARNERS["finite"]().load(tmp_path).told == 1
    learner.save(tmp_path)
    assert LEARNERS["finite"]().load(tmp_path).told == 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npz"]


def test_a_forged_log_certifies_nothing(tmp_path):
    folder = learnt("finite").save(tmp_path)
    about = json.loads((folder / "learner.json").read_text())
    about["rows"] = [{**row, "size": 81} for row in about["rows"]]
    resealed(folder, about)
    loaded = cases.finite().load(folder)
    assert loaded.logger.rows[0]["size"] == 81  # a log is what somebody wrote
    assert loaded.standing.safe_set == learnt("finite").standing.safe_set  # S_n is what the data show


def test_the_plant_and_the_certificates_draw_from_streams_of_their_own():
    """With one seed for both, as many use: else data would depend on the noise of the certificates that they enter."""
    plant = {stream(7, PLANT, number).initial_seed() for number in range(200)}
    bounds = {monte_carlo.stream(7, stage, purpose).initial_seed() for stage in range(1, 201) for purpose in range(3)}
    assert len(plant) == 200 and not plant & bounds


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"threshold": 0.2}, "threshold"),
        ({"policies": cases.one_d_policies().select(torch.arange(81).flip(0))}, "policies.offset"),
        ({"model": cases.line_gp(regularizer=2e-4)}, "model.regularizer"),
        ({"initial_safe": [0]}, "initial_safe"),
        ({"view": lambda model: model}, "view"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_that_differ_are_named(tmp_path, change, named):
    folder = cases.finite().save(tmp_path)
    with pytest.raises(ValueError, match=f"another {named}"):
        cases.finite(**change).load(folder)
    assert cases.finite(episodes=99).load(folder).told == 0  # `run` alone reads it
