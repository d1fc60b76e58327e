"""The filter as a Gymnasium wrapper: the plant gets what was certified, through wrappers, vectors, pickles and agents."""

import importlib.util
import logging
import math
import pickle
from dataclasses import replace
from functools import partial

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from filter_cases import Moody, linear_case, linear_filter
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import (
    ClipAction,
    DelayObservation,
    FrameStackObservation,
    RecordEpisodeStatistics,
    RepeatAction,
    RescaleAction,
    StickyAction,
    TimeLimit,
    TransformAction,
)
from hypothesis import given
from hypothesis import strategies as st

import gpsafe.systems.envs  # noqa: F401 (registers)
from gpsafe.certify.terminal_set import AffineLaw, certify_invariance
from gpsafe.safety import SafetyFilter, SafetyFilterWrapper
from gpsafe.safety.filter_env import _bounds
from gpsafe.sets import Box, Polytope
from gpsafe.systems.actions import Channel
from gpsafe.tube import LinearTube

needs_rl = pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="needs the extra 'rl'")
NOISE = torch.tensor([0.001, 0.004], dtype=torch.float64)


def plain(**options) -> gymnasium.Env:
    return gymnasium.make("gpsafe/DoubleIntegrator-v0", noise_std=NOISE, **options)


def wrapped(inside=lambda env: env, safe: SafetyFilter | None = None, options: dict | None = None, **arguments):
    return SafetyFilterWrapper(inside(plain(**(options or {}))), safe or linear_filter(), **arguments)


def pushed(env: SafetyFilterWrapper, action: float, steps: int = 25) -> list[dict]:
    """Infos of an episode under one action."""
    env.reset(seed=0)
    return [env.step([action])[4] for _ in range(steps)]


def test_an_agent_that_pushes_to_the_limit_is_kept_inside():
    env, safe = wrapped(), 0
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step([1.0])
    for seed in range(2):
        env.reset(seed=seed)
        for step in range(25):
            _, _, _, _, info = env.step([1.0])
            told = info["filter"]
            safe += told["backed"]
            assert math.isnan(told["contained"]) if step == 0 else told["contained"] == 1.0
            assert told["falsified"] == ""
            assert info["cost_next"] == 0.0
            assert told["applied"] <= told["proposed"] + 1e-9
            assert np.array_equal(told["applied"], info["applied"])
    assert safe == 50
    assert env.decision is not None
    env.reset(seed=0)
    assert env.decision is None


def test_only_the_first_refutation_is_logged_and_kept(caplog):
    env = wrapped()
    env.reset(seed=0)
    with caplog.at_level(logging.WARNING):
        env.step([0.0])
        assert not caplog.records and env.falsified is None
        for _ in range(2):
            env.safety_filter = env.safety_filter.refuted("a premise")
            assert env.step([0.0])[4]["filter"]["falsified"] == "a premise"
        assert [r.message for r in caplog.records] == ["an assumption of the safety filter is false: a premise"]
        env.reset(seed=0)
        env.safety_filter = env.safety_filter.refuted("another")
        info = env.step([0.0])[4]["filter"]
    assert (info["falsified"], info["backed"], env.falsified) == ("another", False, "a premise")
    assert len(caplog.records) == 1


class Nudged(gymnasium.Wrapper):
    """Reports an applied input that is off by a share of 1 + |u|."""

    share = 0.0

    def step(self, action):
        *rest, info = self.env.step(action)
        applied = np.asarray(info.get("applied", action), np.float64)
        info["applied"] = applied + self.share * (1.0 + np.abs(applied))
        return *rest, info


@pytest.mark.parametrize(("exact", "allowed"), [(True, 1e-12), (False, 1e-6)])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_an_applied_input_may_differ_by_its_rounding_and_by_no_more(exact, allowed, sign):
    inner = wrapped().env if exact else Foreign()
    env = SafetyFilterWrapper(Nudged(inner), linear_filter(), passing=(Nudged,), state=lambda seen, info: seen)
    assert env._channel.exact == exact
    for share, refuted in ((0.9, False), (1.1, True)):
        env.env.share = sign * share * allowed
        env.reset(seed=0)
        told = env.step([0.2])[4]
        assert abs(float(told["applied"][0])) < 0.9 and bool(told["filter"]["falsified"]) == refuted


class Milli(gymnasium.ActionWrapper):
    """Inputs in units of 10¹³ of the plant's: what is told of them is told in these."""

    unit = 1e-13

    def __init__(self, env, gain):
        super().__init__(env)
        space, self.gain = env.action_space, gain
        self.action_space = spaces.Box(self.unit * space.low, self.unit * space.high, dtype=np.float64)

    def step(self, action):
        *rest, info = self.env.step(self.gain * np.asarray(action) / self.unit)
        info["applied"] = self.unit * np.asarray(info["applied"])
        return *rest, info


@pytest.mark.parametrize(("gain", "refuted"), [(1.0, False), (0.99, True)])
def test_an_input_that_is_not_the_one_applied_is_noticed_in_any_units(gain, refuted):
    problem, sure = linear_case()
    model, unit = problem.model, Milli.unit
    assert isinstance(model, LinearTube)
    plant = replace(model.plant, B=model.plant.B / unit)
    inputs = Polytope(problem.inputs.H, unit * problem.inputs.h)
    small = replace(problem, model=replace(model, plant=plant), inputs=inputs, gain=unit * problem.gain)
    law = AffineLaw(unit * sure.law.gain, unit * sure.law.offset)
    safe = SafetyFilter(small, Moody(works=False), certify_invariance(small, law))
    env = SafetyFilterWrapper(Milli(plain(), gain), safe, passing=(Milli,))
    env.reset(options={"state": [0.2, 0.1]})
    told = env.step([0.0])[4]["filter"]
    assert told["source"] == "backup" and abs(float(told["applied"][0])) > 0.01 * unit
    assert told["backed"] != refuted and bool(told["falsified"]) == refuted


def test_ends_of_the_inputs_are_those_of_rows_in_any_units_and_of_slanted_ones():
    alone = Polytope(torch.tensor([[4.0], [-0.5], [2.0]]).double(), torch.tensor([2.0, 1.0, 7.0]).double())
    low, high = _bounds(alone)
    assert (low.tolist(), high.tolist()) == ([-2.0], [0.5])
    square = Polytope.of_box(Box(-torch.ones(2).double(), 2.0 * torch.ones(2).double()))
    cut = square.intersect(Polytope(torch.tensor([[0.5, 0.25]]).double(), torch.tensor([0.25]).double()))
    low, high = _bounds(cut)
    assert (low.tolist(), high.tolist()) == ([-1.0, -1.0], [1.0, 2.0])
    edge = Polytope.of_box(Box(torch.tensor([-1.0, -2.0]).double(), torch.tensor([0.0, 3.0]).double()))  # a row h = 0
    assert [end.tolist() for end in _bounds(edge)] == [[-1.0, -2.0], [0.0, 3.0]]
    third = Polytope(torch.tensor([[3.0], [-3.0]]).double(), torch.tensor([1.0, 1.0]).double())
    assert [end.tolist() for end in _bounds(third)] == [[-1.0 / 3.0], [1.0 / 3.0]]


class Ending(gymnasium.Wrapper):
    """A gust that the model does not know of, and an end of the episode where a limit is left, as many environments have."""

    def step(self, action):
        _, reward, _, truncated, info = self.env.step(action)
        gone = info["state"] + 2.0
        return gone, reward, bool((np.abs(gone) > 1.0).any()), truncated, {**info, "state": gone}


def test_the_state_with_which_an_episode_ends_refutes_like_any_other():
    """No decision follows it: the one before was told as backed, nothing as falsified, and the next reset forgot it."""
    env = SafetyFilterWrapper(Ending(plain()), linear_filter(), passing=(Ending,))
    env.reset(seed=0)
    *_, terminated, _, info = env.step([0.0])
    told = info["filter"]
    assert terminated and told["source"] == "plan" and not told["backed"]
    assert "in the tube of no member" in told["falsified"] and env.falsified == told["falsified"]
    assert env.decision is not None and env.decision.falsified == told["falsified"] and not env.decision.backed
    env.reset(seed=0)
    assert env.safety_filter.falsified is None and env.falsified == told["falsified"]


def test_control_unfiltered_the_same_agent_leaves():
    env = wrapped().env
    env.reset(seed=0)
    assert sum(env.step([1.0])[4]["cost_next"] for _ in range(25)) > 0


# -------------------------------------------------------------------------------------------------------- actions
def wide(factor: float) -> SafetyFilter:
    """Certificates with inputs that the plant does not apply."""
    problem, _ = linear_case()
    return SafetyFilter(replace(problem, inputs=Polytope(problem.inputs.H, factor * problem.inputs.h)), Moody())


def in_actions(factor: float) -> SafetyFilter:
    """The same plant as seen through actions `factor` times as large as its inputs."""
    problem, _ = linear_case()
    assert isinstance(problem.model, LinearTube)
    plant = replace(problem.model.plant, B=problem.model.plant.B / factor)
    inputs = Polytope(problem.inputs.H, factor * problem.inputs.h)
    return SafetyFilter(
        replace(problem, model=replace(problem.model, plant=plant), inputs=inputs, gain=factor * problem.gain), Moody()
    )


def rescaled(env: gymnasium.Env, limit: float = 3.0) -> gymnasium.Env:
    return RescaleAction(env, np.array([-limit]), np.array([limit]))


@pytest.mark.parametrize("inside", [lambda e: e, ClipAction, lambda e: ClipAction(rescaled(e, 1.0))])
def test_inputs_that_would_be_clipped_are_refused(inside):
    with pytest.raises(ValueError, match="a U whose inputs all reach the plant unclipped"):
        wrapped(inside, wide(1.001))
    assert wrapped(inside, wide(1.0)).reset(seed=0)[1]["filter"]["source"] == "reset"


def test_rescaled_actions_are_refused_until_their_units_are_said():
    with pytest.raises(ValueError, match="units"):
        wrapped(rescaled)
    with pytest.raises(ValueError, match="unclipped"):
        wrapped(rescaled, wide(3.0), units="plant")
    with pytest.raises(ValueError, match="unclipped"):
        wrapped(lambda env: rescaled(env, 0.5), units="action")
    with pytest.raises(ValueError, match="units in"):
        wrapped(rescaled, units="agent")


@pytest.mark.parametrize("units", ["plant", "action"])
def test_what_is_certified_is_what_the_plant_gets_through_a_rescaling(units):
    """Bit for bit the same motion as without it; three times the action, in either reading."""
    bare = pushed(wrapped(), 1.0)
    env = wrapped(rescaled, linear_filter() if units == "plant" else in_actions(3.0), units=units)
    for info, expected in zip(pushed(env, 3.0), bare, strict=True):
        told = info["filter"]
        assert told["backed"]
        assert told["falsified"] == ""
        assert info["cost_next"] == 0.0
        assert info["state"] == pytest.approx(expected["state"], abs=1e-5)
        assert told["action"] == pytest.approx(3.0 * info["applied"], rel=1e-12)
        assert told["applied"] == pytest.approx(info["applied"] * (1.0 if units == "plant" else 3.0), rel=1e-12)
        assert told["proposed"] == pytest.approx([1.0 if units == "plant" else 3.0])


def test_control_a_wrong_reading_of_the_units_is_caught_by_the_tube():
    """A third of what was certified reaches the plant, which then is where it cannot be."""
    infos = pushed(wrapped(rescaled, units="action"), 1.0)
    refuted = [bool(info["filter"]["falsified"]) for info in infos]
    assert any(refuted)
    assert not any(info["filter"]["backed"] for info, false in zip(infos, refuted, strict=True) if false)


@given(st.lists(st.tuples(st.sampled_from(["clip", "scale"]), st.floats(0.1, 5.0), st.floats(-2.0, 2.0)), max_size=4))
def test_the_channel_says_what_arrives(layers):
    """Against the wrappers themselves: all allowed actions arrive as computed, and those beyond are clipped or out of space."""
    env = gymnasium.make("gpsafe/DoubleIntegrator-v0").unwrapped
    inner = env
    for kind, size, middle in layers:
        env = ClipAction(env) if kind == "clip" else env
        if kind == "scale" and np.isfinite(env.action_space.low).all():
            env = RescaleAction(env, np.array([middle - size]), np.array([middle + size]))
    channel = Channel.through(env)
    env.reset(seed=0)
    for share in (0.0, 0.3, 1.0):
        action = channel.low + share * (channel.high - channel.low)
        got = env.step(action)[4]["applied"]
        assert got == pytest.approx(channel.input(action), abs=1e-12)
        assert channel.action(channel.input(action)) == pytest.approx(action, abs=1e-12)
    beyond = channel.high + 0.1 * (channel.high - channel.low)
    assert channel.allows(channel.low, channel.high, plant=False)
    assert not channel.allows(channel.low, beyond, plant=False)
    assert env.step(beyond)[4]["applied"] < channel.input(beyond)
    assert inner is env.unwrapped


class Doubled(gymnasium.Wrapper):
    """Acts in its own way."""

    def step(self, action):
        return self.env.step(2.0 * action)


class Bystander(gymnasium.Wrapper):
    """Has its own step but leaves actions alone."""

    def step(self, action):
        return super().step(action)


class Named(TimeLimit):
    """No step of its own."""


def stubborn(env):
    env.step = partial(gymnasium.Wrapper.step, env)
    return env


@pytest.mark.parametrize(
    ("inside", "name"),
    [
        (Doubled, "Doubled"),
        (Bystander, "Bystander"),
        (lambda env: TransformAction(env, lambda a: 0.5 * a, env.action_space), "TransformAction"),
        (lambda env: StickyAction(env, 0.5), "StickyAction"),
        (lambda env: RepeatAction(env, 2), "RepeatAction"),
        (gymnasium.wrappers.Autoreset, "Autoreset"),
        (lambda env: SafetyFilterWrapper(env, linear_filter()), "SafetyFilterWrapper"),
        (stubborn, "the instance"),
        (lambda env: TimeLimit(Doubled(env), 10), "Doubled"),
    ],
)
def test_wrappers_whose_doing_is_unknown_are_refused(inside, name):
    with pytest.raises(ValueError, match=f"hand actions on.*{name}"):
        wrapped(inside)


def test_known_wrappers_and_those_that_the_user_answers_for_are_let_through():
    env = wrapped(lambda env: RecordEpisodeStatistics(Named(env, 25)))
    assert all(info["filter"]["backed"] for info in pushed(env, 1.0, 5))
    assert not any("hands actions on" in told for told in env.assumptions)
    answered = wrapped(Bystander, passing=(Bystander,))
    assert "Bystander hands actions on as they are" in answered.assumptions
    told = wrapped(Doubled, passing=(Doubled,))
    infos = pushed(told, 1.0, 3)
    assert infos[0]["filter"]["falsified"].startswith("the environment applied")
    assert not any(info["filter"]["backed"] for info in infos)
    told.reset(seed=1)
    assert told.step([0.0])[4]["filter"]["falsified"] == ""  # twice nothing
    assert told.falsified == infos[0]["filter"]["falsified"]


@pytest.mark.parametrize("where", ["step", "measured", "reset"])
def test_after_a_step_that_broke_off_the_state_before_it_is_not_believed(where):
    """The plant may have moved, or not."""
    broken = []

    class Loose(Foreign):
        def step(self, action):
            found = super().step(action)
            if broken == ["step"]:
                raise OSError("the cable is loose")
            return (np.zeros(3), *found[1:]) if broken == ["measured"] else found

        def reset(self, *, seed=None, options=None):
            if broken == ["reset"]:
                raise OSError("the cable is loose")
            return super().reset(seed=seed)

    env = SafetyFilterWrapper(Loose(), linear_filter())
    env.reset(seed=0)
    env.step([1.0])
    broken.append(where)
    with pytest.raises((OSError, ValueError)):
        env.reset(seed=0) if where == "reset" else env.step([1.0])
    broken.clear()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step([1.0])
    env.reset(seed=1)
    assert env.step([1.0])[4]["filter"]["backed"]


class Foreign(gymnasium.Env):
    """An environment of somebody else: float32 spaces, no info, the state as observation."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = torch.zeros(2, dtype=torch.float64)
        return self.x.numpy(), {}

    def step(self, action):
        assert action.dtype == np.float32
        model = linear_case()[0].model
        assert isinstance(model, LinearTube)
        self.x = model.plant(self.x, torch.as_tensor(action.astype(np.float64)))
        return self.x.numpy(), 0.0, False, False, {}


def test_another_environment_is_believed_in_words():
    env = SafetyFilterWrapper(Foreign(), linear_filter())
    assert all(info["filter"]["backed"] for info in pushed(env, 1.0))
    told = " ".join(env.assumptions)
    assert "Foreign applies every action of its action space as it is" in told
    assert "float32" in told
    assert "float32" not in " ".join(wrapped().assumptions)


@pytest.mark.parametrize(("kind", "coarse"), [(np.float32, True), (np.float64, False), (list, False)])
def test_states_that_come_rounded_are_believed_in_words(kind, coarse):
    env = wrapped(state=lambda seen, info: kind(info["state"].tolist()))
    env.reset(seed=0)
    assert ("rounding of states to float32 does not matter" in env.assumptions) == coarse


def test_a_changed_observation_is_not_taken_for_the_state():
    pushed(wrapped(lambda env: DelayObservation(env, 2)), 0.0, 3)  # has info["state"]
    env = SafetyFilterWrapper(DelayObservation(Foreign(), 2), linear_filter())
    with pytest.raises(ValueError, match=r"info\[.state.\]"):
        env.reset(seed=0)
    own = SafetyFilterWrapper(DelayObservation(Foreign(), 2), linear_filter(), state=lambda seen, info: [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="state of shape"):
        own.reset(seed=0)


class Shown(Foreign):
    """The position alone, a number: two of them, stacked, look like a state."""

    observation_space = spaces.Box(-np.inf, np.inf, ())

    def reset(self, *, seed=None, options=None):
        seen, info = super().reset(seed=seed)
        return seen[0], info

    def step(self, action):
        seen, *rest = super().step(action)
        return seen[0], *rest


class Blurred(gymnasium.Wrapper):
    """Hands actions on, and observations not; neither does it when it resets."""

    def reset(self, *, seed=None, options=None):
        seen, info = self.env.reset(seed=seed, options=options)
        return 0.0 * seen, info

    def step(self, action):
        seen, *rest = self.env.step(action)
        return 0.0 * seen, *rest


class BlurredAtFirst(gymnasium.Wrapper):
    reset = Blurred.reset


@pytest.mark.parametrize(
    ("env", "passing"),
    [
        (lambda: FrameStackObservation(Shown(), 2), ()),
        (lambda: Blurred(Foreign()), (Blurred,)),  # the word is given for actions
        (lambda: RecordEpisodeStatistics(BlurredAtFirst(Foreign())), ()),
    ],
)
def test_an_observation_that_a_wrapper_may_change_is_not_taken_for_the_state(env, passing):
    for state in (None, lambda seen, info: [0.0, 0.0]):
        filtered = SafetyFilterWrapper(env(), linear_filter(), passing=passing, state=state)
        if state is None:
            with pytest.raises(ValueError, match=r"info\[.state.\].*may"):
                filtered.reset(seed=0)
        else:
            filtered.reset(seed=0)
    kept = SafetyFilterWrapper(RecordEpisodeStatistics(TimeLimit(ClipAction(Foreign()), 9)), linear_filter())
    assert all(info["filter"]["backed"] for info in pushed(kept, 1.0, 3))


class Plain(gymnasium.Env):
    """Tells what it applied, and its observation, as it is told to."""

    def __init__(self, limit=0.7, dtype=np.float32, told=np.asarray, seen=np.asarray):
        self.action_space, self.observation_space = spaces.Box(-limit, limit, (1,), dtype), spaces.Box(-9.0, 9.0, (2,))
        self.told, self.seen = told, seen

    def reset(self, *, seed=None, options=None):
        return self.seen(np.zeros(2)), {}

    def step(self, action):
        return self.seen(np.zeros(2)), 0.0, False, False, {"applied": self.told(action)}


@pytest.mark.parametrize("limit", [0.7, 1.9, 0.7e-15])
def test_ends_of_a_float32_space_are_taken_as_they_round(limit):
    """0.7 is 0.69999999 there, which was refused: "inputs in ±0.7 where ±0.69999999 pass"."""
    assert float(np.float32(limit)) < limit
    env = SafetyFilterWrapper(Plain(limit), wide(limit))
    assert any("actions to float32" in entry for entry in env.assumptions)
    with pytest.raises(ValueError, match="unclipped"):
        SafetyFilterWrapper(Plain(limit), wide(1.000001 * limit))
    with pytest.raises(ValueError, match="unclipped"):
        SafetyFilterWrapper(Plain(float(np.float32(limit)), np.float64), wide(limit))


@pytest.mark.parametrize("told", [lambda u: float(u[0]), lambda u: u[None], lambda u: u.tolist()])
def test_one_input_may_be_told_in_any_shape(told):
    env = SafetyFilterWrapper(Plain(1.0, np.float64, told), linear_filter())
    env.reset()
    assert (
        "applied" not in env.step([0.2])[4]["filter"]["falsified"]
    )  # the plant, which stands still, is another matter
    env.env.told = lambda u: told(0.9 * np.asarray(u))
    env.reset()
    assert "the environment applied" in env.step([0.2])[4]["filter"]["falsified"]


def test_an_observation_of_parts_is_refused_in_words():
    with pytest.raises(ValueError, match="a function `state`"):
        SafetyFilterWrapper(Plain(1.0, seen=lambda x: {"x": x}), linear_filter()).reset()


def test_wrong_action_spaces_are_refused():
    problem, _ = linear_case()
    plane = replace(
        problem,
        inputs=Polytope.of_box(Box(-torch.ones(2).double(), torch.ones(2).double())),
        gain=torch.zeros(2, 2).double(),
        model=TwoInputs(problem.model),
    )
    with pytest.raises(ValueError, match="actions of shape"):
        wrapped(safe=SafetyFilter(plane, Moody()))
    switch = Foreign()
    switch.action_space = spaces.Discrete(2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Box of real actions"):
        SafetyFilterWrapper(switch, linear_filter())
    env = wrapped()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action of shape"):
        env.step([0.0, 0.0])
    for bad in ("a", [True], None):
        with pytest.raises(ValueError, match=r"SafetyFilterWrapper\.step: expected"):
            env.step(bad)


class TwoInputs:
    """Only its dimensions matter."""

    nx, nu, num_members, mode, assumptions = 2, 2, 1, "sound", ()

    def __init__(self, model):
        self.model = model


# ------------------------------------------------------------------------------------- vectors, pickles, agents
def made(steps: int = 3) -> gymnasium.Env:
    return wrapped(options={"horizon": steps})


KINDS = {"source": object, "backed": bool, "contained": float, "reason": object, "falsified": object} | dict.fromkeys(
    ("proposed", "applied", "action"), float
)


@pytest.mark.parametrize("vector", [SyncVectorEnv, partial(AsyncVectorEnv, context="fork")])
def test_infos_of_vectors_are_those_of_their_environments(vector):
    """At every step, over an automatic reset, which comes at different times: nothing unknown becomes a refutation."""
    lengths, count = (2, 4), 6
    envs = vector([partial(made, n) for n in lengths])
    _, told = envs.reset(seed=[0, 1])
    seen = [told]
    for _ in range(count):
        seen.append(envs.step(np.ones((2, 1)))[4])
    envs.close()
    for i, length in enumerate(lengths):
        env = made(length)
        _, alone = env.reset(seed=i)
        ended = False
        for infos in seen:
            for name, kind in KINDS.items():
                column = infos["filter"][name]
                assert column.dtype == kind
                assert infos["filter"][f"_{name}"][i]
                np.testing.assert_array_equal(column[i], alone["filter"][name])
            assert infos["filter"]["contained"][i] != 0.0
            if ended:
                _, alone = env.reset()
                ended = False
            else:
                *_, ended, alone = env.step([1.0])


def test_an_unknown_containment_is_no_refutation_where_only_some_environments_end():
    envs = SyncVectorEnv([partial(made, 2), partial(made, 9)], autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=0)
    for _ in range(3):
        infos = envs.step(np.ones((2, 1)))[4]
        assert not (infos["filter"]["contained"] == 0.0).any()


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_wrapper_pickles_in_the_middle_of_an_episode(pickler):
    env = wrapped()
    pushed(env, 1.0, 3)
    other = pickle.loads(pickler.dumps(env))
    for _ in range(3):
        a, b = env.step([1.0]), other.step([1.0])
        assert np.array_equal(a[0], b[0])
        assert a[4]["filter"]["applied"] == b[4]["filter"]["applied"]
        assert b[4]["filter"]["backed"]


@needs_rl
@pytest.mark.slow
def test_subprocesses_of_stable_baselines3_tell_the_same():
    from stable_baselines3.common.vec_env import SubprocVecEnv

    envs = SubprocVecEnv([made, made], start_method="fork")
    envs.seed(0)
    envs.reset()
    for _ in range(4):
        _, _, _, infos = envs.step(np.ones((2, 1)))
        assert all(info["filter"]["backed"] for info in infos)
    envs.close()


@needs_rl
def test_replay_buffers_store_what_was_applied():
    from stable_baselines3 import SAC
    from stable_baselines3.common.monitor import Monitor

    from gpsafe.safety.replay import AppliedActions

    env = wrapped(lambda env: Monitor(rescaled(env)), units="plant")
    agent = SAC(
        "MlpPolicy",
        env,
        replay_buffer_class=AppliedActions,
        learning_starts=8,
        buffer_size=64,
        batch_size=8,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [8]},
    )
    seen, step = [], env.step

    def watched(action):
        result = step(action)
        seen.append((result[4]["applied"], result[4]["filter"]["proposed"]))
        return result

    env.step = watched  # type: ignore[method-assign]
    agent.learn(24)
    buffer = agent.replay_buffer
    assert isinstance(buffer, AppliedActions)
    applied, proposed = (np.array(part) for part in zip(*seen, strict=True))
    assert buffer.actions[:24, 0] == pytest.approx(applied, abs=1e-6)
    assert np.abs(applied - proposed).max() > 0.01, "the filter changed something"
    with pytest.raises(ValueError, match="SafetyFilterWrapper"):
        buffer.add(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])


@needs_rl
@pytest.mark.slow
def test_a_stable_baselines3_agent_learns_behind_the_filter():
    from stable_baselines3 import PPO

    env = wrapped()
    agent = PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu")
    seen = []
    step = env.step

    def watched(action):
        result = step(action)
        seen.append((result[4]["filter"]["backed"], result[4]["cost_next"]))
        return result

    env.step = watched  # type: ignore[method-assign]
    agent.learn(128)
    assert len(seen) == 128
    assert all(backed and cost == 0.0 for backed, cost in seen)
