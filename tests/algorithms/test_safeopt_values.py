"""What SafeOpt's learners measure, choose, answer and log, against the sets themselves."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from gpsafe.algorithms import Margins, SafeOpt, Totals
from gpsafe.algorithms._class_learner import ClassLearner
from gpsafe.algorithms.safeopt import SafeOptStanding, _Watched
from gpsafe.confidence import Mixture
from gpsafe.linalg import vector
from gpsafe.models import GP
from gpsafe.policies import PolicyClass
from gpsafe.rkhs import kernels
from gpsafe.safety import SafeOptRule
from gpsafe.safety.gosafe import adopt
from tests.learner_cases import island, one_d, safeopt


def flown(learner: SafeOpt, policy: int, *, push: Tensor | None = None, away: float = 0.0) -> tuple[Tensor, Tensor]:
    """An episode of a policy in which every step ends as far away from its mean; `push` is added to its inputs."""
    system, act = learner.system, learner._act(policy)
    states, inputs = [system.initial_state], []
    for t in range(system.horizon):
        u = act(states[-1])
        inputs.append(u if push is None else u + push[t])
        states.append(system.mean(states[-1], inputs[-1]) + away)
    return torch.stack(states), torch.stack(inputs)


def test_an_episode_is_measured_by_its_sums_or_by_its_least_distance():
    """The last state is not decided in: it counts in neither."""
    system = one_d()
    x, u = torch.linspace(-0.4, 1.3, system.horizon + 1).double().unsqueeze(-1), vector(0.3).expand(system.horizon, 1)
    rewards = [float(system.reward(x[t], u[t])) for t in range(system.horizon)]
    costs = [float(system.cost(x[t])) for t in range(system.horizon)]
    assert sum(costs) > 0 and Totals(system)(x, u).tolist() == pytest.approx([sum(rewards), system.budget - sum(costs)])
    excess = [float(system.cost.excess(x[t])) for t in range(system.horizon)]  # type: ignore[attr-defined]
    assert Margins(system)(x, u).tolist() == pytest.approx([sum(rewards), -max(excess)])
    assert max(excess) == excess[-1] > max(excess[:-1])


def test_assumptions_are_of_the_constraints_bounds_on_their_own_models(monkeypatch):
    asked: list[tuple[Any, GP]] = []
    said = Mixture.assumptions
    monkeypatch.setattr(Mixture, "assumptions", lambda self, model: asked.append((self, model)) or said(self, model))
    learner = safeopt()
    assert learner.assumptions and asked == [(learner.bounds[1], learner.models[1])]
    slopes = learner.with_(rule=SafeOptRule(vector(-torch.inf, 0.0), vector(7.0, 3.0))).assumptions
    assert any("[3.0]" in entry for entry in slopes) and not any("7.0" in entry for entry in slopes)


def test_parts_are_refused_where_they_are_given():
    given = safeopt()
    parts = {
        name: getattr(given, name)
        for name in ("system", "policies", "initial_safe", "points", "models", "bounds", "rule")
    }
    with pytest.raises(ValueError, match=r"SafeOpt: expected points \(81, d\), got \(81,\)"):
        SafeOpt(**(parts | {"points": given.points[:, 0]}))
    fitted = GP.regression(kernels.rbf([0.5]), dim=1, noise_std=10.0, mode="practical")
    with pytest.raises(ValueError, match="theory-mode"):
        SafeOpt(**(parts | {"models": (given.models[0], fitted)}))
    with pytest.raises(ValueError, match="integer seed >= 0"):
        SafeOpt(**parts, seed=-1)
    with pytest.raises(ValueError, match=r"as many models as bounds and thresholds, got \(2, 2, 3\)"):
        SafeOpt(**(parts | {"rule": SafeOptRule(vector(-torch.inf, 0.0, 0.0))}))
    rule = SafeOptRule(vector(-torch.inf, 0.5))
    with pytest.raises(ValueError, match=r"thresholds \(-inf, 0\) with the default measure"):
        SafeOpt(**(parts | {"rule": rule}))
    own = SafeOpt(**(parts | {"rule": rule}), measure=Margins(one_d()))  # of which nothing is promised
    assert own.unsound is not None and own.rule is rule


def test_the_policy_is_the_widest_of_the_newest_sets_and_the_row_tells_of_these():
    learner, differs = safeopt(), 0
    for number in range(4):
        at = learner.standing
        sets, policy = at.sets[-1], learner.rule.choose(at.sets[-1])
        assert at.chosen == (policy, "local") and len(at.sets) == number + 2
        differs += len(at.sets) > 2 and learner.rule.choose(at.sets[-2]) != policy
        learner.tell(*flown(learner, policy, away=1e-3 * number))
        row = learner.logger.rows[-1]
        assert (row["policy"], row["phase"], row["size"]) == (policy, "local", len(sets))
        assert (row["expanders"], row["maximisers"]) == (int(sets.expanders.sum()), int(sets.maximisers.sum()))
        width = sets.width[policy]
        assert row["width"] == float(width.max()) > float(width.min())
        _, episode = learner._decide(at, None)
        assert episode.number == number and learner.told == number + 1
    assert differs


def test_an_episode_that_nobody_was_asked_for_counts_only_as_a_whole():
    """Its later inputs are another's: was it that policy's episode and taken over, or somebody else's? Nobody asked."""
    push = torch.zeros(one_d().horizon, 1, dtype=torch.float64)
    push[5] = 0.25
    for ask in (False, True):
        learner = safeopt()
        policy = learner.standing.chosen[0]
        episode = learner.ask()
        if ask:
            episode(learner.system.initial_state)
        learner.tell(*flown(learner, policy, push=push))
        assert (learner.falsified is not None) == ask and learner.standing.models[1].num_data == 0


def standing(learner: SafeOpt, **changes: Tensor) -> SafeOptStanding:
    """With other newest sets."""
    at = learner.standing
    return replace(at, sets=(*at.sets[:-1], replace(at.sets[-1], **changes)))


def answered(learner: SafeOpt, at: SafeOptStanding) -> int:
    best, x = learner._best(at, None), vector(0.3)
    assert isinstance(best, PolicyClass) and best.num == 1
    mine = best(x.unsqueeze(0))[0]
    return next(i for i in range(4) if torch.equal(mine.flatten(), learner._act(i)(x)))


def test_the_answer_is_of_the_newest_safe_set_and_by_its_lower_ends():
    learner = island()
    lower = torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 0.0], [1.0, 0.0]]).double()
    for safe, best in (([1, 1, 0, 1], 1), ([1, 0, 0, 1], 3), ([1, 0, 0, 0], 0), ([0, 0, 1, 0], 2)):
        assert answered(learner, standing(learner, lower=lower, safe=torch.tensor(safe).bool())) == best
    unknown = lower.clone()
    unknown[1, 0] = torch.nan
    assert answered(learner, standing(learner, lower=unknown, safe=torch.tensor([1, 1, 0, 1]).bool())) == 3
    nothing = torch.full((4, 2), torch.nan, dtype=torch.float64)
    assert answered(learner, standing(learner, lower=nothing, safe=torch.tensor([0, 1, 0, 1]).bool())) == 1
    nobody = standing(learner, lower=lower, safe=torch.zeros(4).bool())
    assert answered(learner, nobody) == 0  # S_0


def test_a_run_under_watch_is_adopted_and_one_of_the_set_is_not():
    learner = replace(island(), settled=1e9)
    before, policy = learner.standing, learner.standing.chosen[0]
    states, inputs = flown(learner, policy)
    learner.tell(states, inputs)
    at = learner.standing
    assert all(a is b for a, b in zip(at.sets[:-1], before.sets, strict=True)) and len(at.rollouts) > 0
    assert at.chosen[1] == "global" and at.chosen[0] != policy and not bool(at.sets[-1].safe[at.chosen[0]])
    watched = learner._flight(at)
    path, applied = [learner.system.initial_state], []
    for _ in range(learner.system.horizon):
        applied.append(watched(path[-1]))
        path.append(learner.system.mean(path[-1], applied[-1]))
    learner.tell(torch.stack(path), torch.stack(applied))
    after = learner.standing
    assert all(a is b for a, b in zip(after.sets[: len(at.sets) - 1], at.sets[:-1], strict=True))
    if watched.stopped is None:
        expected = adopt(at.sets[-1], at.chosen[0], learner.rule.threshold)
        assert torch.equal(after.sets[-2].safe, expected.safe) and torch.equal(after.sets[-2].lower, expected.lower)
        assert not torch.equal(expected.safe, at.sets[-1].safe)
    else:
        assert at.chosen[0] in after.failed and torch.equal(after.failed[at.chosen[0]], watched.stopped)


def test_nothing_is_learned_of_a_run_under_watch_that_was_cut_short():
    learner = replace(island(), settled=1e9)
    states, inputs = flown(learner, learner.standing.chosen[0])
    learner.tell(states[:6], inputs[:5])
    at = learner.standing
    assert [model.num_data for model in at.models] == [0, 0] and len(at.rollouts) == 0


def test_the_newest_sets_alone_take_in_a_run_under_watch():
    learner = replace(island(), settled=0.0)
    for number in range(2):
        learner.tell(*flown(learner, learner.standing.chosen[0], away=1e-9 * number))
    at = replace(learner.standing, chosen=(3, "global"))
    assert len(at.sets) == 4
    after = learner._conclude(at, *flown(learner, 3))
    assert all(a is b for a, b in zip(after.sets[:3], at.sets[:3], strict=True)) and len(after.sets) == 5
    expected = adopt(at.sets[3], 3, learner.rule.threshold)
    assert torch.equal(after.sets[3].safe, expected.safe) and torch.equal(after.sets[3].lower, expected.lower)
    local = learner._conclude(replace(at, chosen=(3, "local")), *flown(learner, 3))
    assert local.sets[3] is at.sets[3]


def test_a_width_is_settled_below_the_limit_not_at_it():
    learner = replace(island(), settled=0.0)
    learner.tell(*flown(learner, learner.standing.chosen[0]))
    at = learner.standing
    width = float(at.sets[-1].width[at.chosen[0]].amax())
    chosen = [replace(learner, settled=limit)._chosen(at).chosen[1] for limit in (width, width * (1 + 1e-9))]
    assert chosen == ["local", "global"]


def test_a_policy_that_called_for_its_backup_stays_with_the_first():
    """Where it did is kept, and who flies from there on."""
    slacks = iter([0.1, -0.1, -0.2, 0.3])
    boundary = SimpleNamespace(slack_at=lambda x: (torch.tensor(next(slacks)), torch.tensor(int(10 * x))))
    watched = _Watched(lambda policy: lambda x: x + 100 * policy, 7, cast(Any, boundary))
    applied = [float(watched(vector(x))) for x in (0.1, 0.2, 0.3, 0.4)]
    assert applied == pytest.approx([700.1, 200.2, 200.3, 200.4])
    assert watched.stopped is not None and float(watched.stopped) == 0.2


def test_what_refuted_first_is_told(monkeypatch):
    learner = safeopt()
    states, inputs = flown(learner, learner.standing.chosen[0])
    for first, told in (("a norm", "a norm"), (None, "an episode of the policy was cut short")):
        monkeypatch.setattr(ClassLearner, "_learn", lambda self, *given, first=first: {"falsified": first})
        assert str(learner._learn(0, None, states[:5], inputs[:4])["falsified"]).startswith(told)
