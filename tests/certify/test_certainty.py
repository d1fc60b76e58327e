"""Limits on how far members may disagree along a plan: the rows by hand, who keeps to them, and levels from what was flown."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xmpsc_cases import ensemble_pendulum, gp_pendulum, pendulum_ensemble, plan

from gpsafe.certify import certainty_levels, judge
from gpsafe.planning.mpc.fast import CondensedSQP
from gpsafe.tube import EnsembleTube

X0 = torch.tensor([math.pi + 0.3, 0.2], dtype=torch.float64)
LEARNED = torch.tensor([0.9], dtype=torch.float64)


def levelled(level: float, **changes):
    problem = ensemble_pendulum(members=3, width=8, steps=3)
    return replace(problem, certainty=torch.full((3, 2), level, dtype=torch.float64), **changes)


def paths(model: EnsembleTube, x0: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Every member rolled out by itself, (M, T, nx)."""
    found = []
    for m in range(model.num_members):
        x, path = x0, []
        for u in inputs:
            x = model.ensemble.evaluate(x.unsqueeze(0), u.unsqueeze(0))[0][m, 0]
            path.append(x)
        found.append(torch.stack(path))
    return torch.stack(found)


def test_rows_are_levels_less_what_members_part_from_their_mean():
    problem, inputs = levelled(0.05), plan(0.3, -0.2, 0.7)
    apart = paths(problem.model, X0, inputs)
    apart = apart - apart.mean(0)
    margins = problem.margins(problem.tube(X0, inputs))
    expected = torch.cat([0.05 - apart, 0.05 + apart], dim=-1)
    torch.testing.assert_close(margins.certainty, expected, rtol=1e-10, atol=1e-12)
    assert replace(problem, certainty=None).margins(problem.tube(X0, inputs)).certainty.shape == (3, 3, 0)


def test_the_judge_refuses_a_plan_on_which_members_part_and_no_other():
    inputs = plan(0.3, -0.2, 0.7)
    gap = paths(levelled(1.0).model, X0, inputs)
    worst = (gap - gap.mean(0)).abs().amax()
    held, refused = levelled(float(worst) + 1e-9), levelled(float(worst) - 1e-9)
    easy = {"terminal": held.states, "tolerance": 0.0}  # so that nothing else decides
    assert judge(replace(held, **easy), X0, LEARNED, inputs).certified
    found = judge(replace(refused, **easy), X0, LEARNED, inputs)
    assert not found.certified and found.tightest.kind == "certainty" and "certainty row" in found.reason
    place = (gap - gap.mean(0)).abs().amax(-1).argmax()
    assert (found.tightest.member, found.tightest.stage - 1) == divmod(int(place), 3)


def test_the_judge_lowers_these_margins_for_rounding_too():
    problem, inputs = levelled(0.5), plan(0.3, -0.2, 0.7)
    tube = problem.tube(X0, inputs)
    found, computed = judge(problem, X0, LEARNED, inputs), problem.margins(tube)
    assert found.margins is not None
    reach = (tube.center.abs() + tube.reference.abs() + tube.factor.abs().sum(-1))[:, 1:]
    lowered = computed.certainty - found.margins.certainty
    torch.testing.assert_close(lowered, 1e-12 * (0.5 + reach).repeat(1, 1, 2), rtol=3e-3, atol=0)


@settings(max_examples=6, deadline=None)
@given(scale=st.floats(0.3, 1.5))
def test_the_search_keeps_to_levels_and_says_so_where_it_cannot(scale):
    pytest.importorskip("numba")
    free = replace(ensemble_pendulum(members=3, width=8, steps=3), tolerance=0.0)
    found = CondensedSQP().propose(free, X0, LEARNED)
    gap = paths(free.model, X0, found.inputs)
    most = (gap - gap.mean(0)).abs().amax(0)
    tight = replace(free, certainty=scale * most)
    kept = judge(tight, X0, LEARNED, CondensedSQP().propose(tight, X0, LEARNED))
    if scale >= 1:  # the free plan is still admitted: nothing can be cheaper, and nothing needs to be dearer
        assert kept.certified and kept.distance == pytest.approx(
            float(free.distance(LEARNED, found.inputs[0])), abs=1e-6
        )
    elif kept.certified:
        assert kept.distance >= float(free.distance(LEARNED, found.inputs[0])) - 1e-6
    else:
        assert kept.proposal.reason.startswith("every start ends with")


def episodes(count: int, seed: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=g)  # noqa: E731
    return [(X0 + 0.4 * draw(t + 1, 2), 2 * draw(t, 1) - 1) for t in torch.arange(2, 2 + count).tolist()]


def test_levels_are_a_quantile_of_what_was_flown():
    """Against loops over stretches and members; at least the stated share of stretches is within the levels."""
    model, flown = ensemble_pendulum(members=3, width=8, steps=3).model, episodes(8)
    stretches = [(x[j], u[j : j + 3]) for x, u in flown for j in range(len(u) - 2)]
    gaps = torch.stack([paths(model, x, u) - paths(model, x, u).mean(0) for x, u in stretches]).abs().amax(1)
    spread = gaps.square().mean(0).sqrt()
    scores = (gaps / spread).flatten(1).amax(1)
    for share in (0.5, 0.8, 0.999):
        levels = certainty_levels(model, flown, steps=3, share=share)
        within = (gaps <= levels * (1 + 1e-12)).flatten(1).all(1)
        rank = min(math.ceil((len(scores) + 1) * share), len(scores))
        torch.testing.assert_close(levels, scores.sort().values[rank - 1] * spread, rtol=1e-9, atol=1e-14)
        assert int(within.sum()) == rank
    some = gaps[:: math.ceil(len(gaps) / 5)]
    few = certainty_levels(model, flown, steps=3, share=0.999, limit=5)
    torch.testing.assert_close(few, (some / (own := some.square().mean(0).sqrt())).amax() * own, rtol=1e-9, atol=1e-14)
    assert bool((few < levels + 1e-15).any()) and few.shape == (3, 2)


def test_members_that_agree_have_levels_of_nothing(monkeypatch):
    """The second member is 1e-10 and 1 ahead of the first after every step, or nothing."""
    model, flown = ensemble_pendulum(members=2, width=8, steps=3).model, episodes(4)
    for ahead in (torch.zeros(2, dtype=torch.float64), torch.tensor([1e-10, 1.0], dtype=torch.float64)):
        lead = torch.stack([0 * ahead, ahead])
        monkeypatch.setattr(EnsembleTube, "mean", lambda self, x, u, lead=lead: x + lead)
        levels = certainty_levels(model, [(0 * x, u) for x, u in flown], steps=3)
        wanted = 0.5 * torch.arange(1, 4)[:, None] * ahead
        torch.testing.assert_close(levels, wanted, rtol=1e-9, atol=0)


def test_a_sound_tubes_levels_are_those_of_its_members():
    model = ensemble_pendulum(members=3, width=8, steps=3).model
    sound = EnsembleTube.sound(replace(model.ensemble), steps=3, delta=0.1)
    torch.testing.assert_close(
        certainty_levels(sound, episodes(4), steps=3), certainty_levels(model, episodes(4), steps=3)
    )


def test_what_has_no_levels_is_refused():
    model, flown = ensemble_pendulum(members=3, width=8, steps=3).model, episodes(3)
    alone = EnsembleTube.paper(pendulum_ensemble(1, 8))
    for arguments, message in (
        ((alone, flown), "an ensemble of at least 2 members, got 1"),
        ((gp_pendulum().model, flown), "an EnsembleTube, got GPTube"),
        ((model, flown[:1]), "an episode of at least 3 steps"),
        ((model, [*flown, (math.nan * flown[-1][0], flown[-1][1])]), "all members stay finite, got one that diverges"),
    ):
        with pytest.raises(ValueError, match=message):
            certainty_levels(*arguments, steps=3)
    for share in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="share in"):
            certainty_levels(model, flown, steps=3, share=share)
    for level in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="certainty"):
            levelled(level)
    with pytest.raises(ValueError, match="certainty of shape"):
        replace(levelled(1.0), certainty=torch.ones(2, 2, dtype=torch.float64))
