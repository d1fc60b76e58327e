"""Sampled and hallucinated pessimism against their definitions: adversaries, dynamics and limits by naive loops."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from cost_cases import generator, make_case

from gpsafe.confidence import ConfidenceSet
from gpsafe.cost import monte_carlo, sampled
from gpsafe.cost.hallucinated import Adversary, Hallucinated
from gpsafe.cost.sampled import Sampled
from gpsafe.models import LowRankGP
from gpsafe.models.samples import sample_functions
from gpsafe.policies.rollout import closed_loop
from gpsafe.systems.base import HingeCost

tensor = partial(torch.tensor, dtype=torch.float64)
SLOPED = HingeCost(tensor([1.0, 0.5]), -3.0, 6.0)


@pytest.fixture(scope="module")
def case():
    return make_case("pendulum", (3,))


def options(case, **changes) -> dict:
    """Four steps from a state that is thrown back to the unsafe side: the last one is the worst."""
    start = {"initial_state": tensor([-0.4, -1.5])}
    return case.task_with(horizon=4, cost=SLOPED, **start | changes) | {"samples": 3}


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def adversaries(policies: int, count: int, horizon: int) -> Adversary:
    return Adversary(
        0.6 * draws(policies, count, horizon, 1, seed=1),
        0.4 * draws(policies, count, horizon, 1, 2, seed=2),
        0.1 * draws(policies, horizon, 2, seed=3),
        draws(policies, horizon, 2, seed=4).abs() + 0.2,
    )


def test_adversaries_answer_the_state_relative_to_their_path():
    found, x = adversaries(2, 3, 4), draws(2, 3, 5, 2, seed=5)
    for smooth, clip in ((False, lambda v: min(max(v, -1.0), 1.0)), (True, math.tanh)):
        eta, edges = found(2, x, smooth=smooth), 0
        for p in range(2):
            for k in range(3):
                for n in range(5):
                    raw = float(found.bias[p, k, 2, 0])
                    for i in range(2):
                        xi = (float(x[p, k, n, i]) - float(found.path[p, 2, i])) / float(found.scale[p, 2, i])
                        raw += float(found.slope[p, k, 2, 0, i]) * xi
                    edges += abs(raw) > 1.0
                    assert float(eta[p, k, n, 0]) == pytest.approx(clip(raw), rel=1e-13, abs=1e-15)
        assert 3 < edges < 27
    one = found.pick(torch.tensor([2, 0]))
    assert torch.equal(one.bias, torch.stack([found.bias[0, 2:], found.bias[1, :1]]))
    assert torch.equal(one.slope, torch.stack([found.slope[0, 2:], found.slope[1, :1]]))
    assert one.path is found.path and one.scale is found.scale


@pytest.mark.parametrize("smooth", [False, True])
def test_hallucinated_states_follow_the_adversary_inside_the_set(case, smooth):
    bound, policies, F = Hallucinated(**options(case)), case.choose(3, 9), case.confidence
    adversary, noise = adversaries(2, 2, 4), 0.05 * draws(4, 1, 3, 2, seed=6)
    states = bound._states(F, policies, adversary, noise, smooth=smooth)
    assert len(states) == 4
    total = torch.zeros(2, 2, 3).double()
    for p in range(2):
        own = case.choose((3, 9)[p])
        for k in range(2):
            for n in range(3):
                x = bound.initial_state
                for t in range(4):
                    torch.testing.assert_close(states[t][p, k, n], x, rtol=1e-9, atol=1e-12)
                    total[p, k, n] += SLOPED(x)
                    u = own(x.reshape(1, 1, 2)).reshape(-1)
                    z = torch.cat([x, u])[None]
                    low, high = F.bound.interval(F.model, z) if smooth else F.bounds(z)
                    raw = adversary.bias[p, k, t] + adversary.slope[p, k, t] @ (
                        (x - adversary.path[p, t]) / adversary.scale[p, t]
                    )
                    eta = raw.tanh() if smooth else raw.clamp(-1.0, 1.0)
                    residual = (low + high)[0] / 2 + eta * (high - low)[0] / 2
                    x = F.model.prior(x, u) + F.model.embed(residual) + noise[t, 0, n]
    if smooth:
        return
    torch.testing.assert_close(bound.simulate(F, policies, adversary, noise), total, rtol=1e-9, atol=0)
    near = torch.stack([SLOPED.excess(x)[..., 0] for x in states]).amax(0).mean(-1)
    expected = total.mean(-1) + 1e-3 * near.tanh()
    torch.testing.assert_close(bound._score(F, policies, adversary, noise), expected, rtol=1e-9, atol=0)


def test_where_the_set_is_empty_every_adversary_takes_the_middle(case):
    bound, policies, model = Hallucinated(**options(case)), case.choose(3, 9), case.confidence.model
    adversary, noise = adversaries(2, 2, 4), 0.05 * draws(4, 1, 3, 2, seed=6)

    def between(low: float, high: float) -> list[torch.Tensor]:
        own = SimpleNamespace(model=model, bounds=lambda z: (low + 0 * z[..., :1], high + 0 * z[..., :1]))
        return bound._states(own, policies, adversary, noise)  # type: ignore[arg-type]

    for empty, middle in zip(between(0.75, 0.25), between(0.5, 0.5), strict=True):
        assert torch.equal(empty, middle)


def test_candidates_are_corners_feedback_and_walks_about_the_mean_path(case):
    bound, policies, F = Hallucinated(**options(case), random=2), case.choose(3, 9), case.confidence
    noise = 0.05 * draws(4, 1, 5, 2, seed=7)
    found = bound.candidates(F, policies, noise)
    states, _ = closed_loop(lambda x, u: F.model.predict(x, u).mean, policies, bound.initial_state, noise)
    torch.testing.assert_close(found.path, states[:, :, :4].mean(1))
    torch.testing.assert_close(found.scale, states[:, :, :4].std(1) + 10 * bound.noise_std + 1e-9, rtol=0, atol=1e-13)
    walk = torch.randn(2, 4, 1, dtype=torch.float64, generator=bound.generator(F, 7))
    for p in range(2):
        corners = [[1.0], [-1.0], [0.0], [0.0], [0.0], [0.0], [0.0]]
        for k, value in enumerate(corners):
            assert found.bias[p, k].tolist() == [value] * 4
        for k, step in ((7, walk[0]), (8, walk[1])):
            by_hand = [sum(float(step[s, 0]) for s in range(t + 1)) for t in range(4)]
            assert found.bias[p, k, :, 0].tolist() == pytest.approx(by_hand, rel=1e-14)
        slopes = [[0.0, 0.0]] * 3 + [[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]] + [[0.0, 0.0]] * 2
        for k, slope in enumerate(slopes):
            assert found.slope[p, k].tolist() == [[slope]] * 4
    assert found.bias.shape == (2, 9, 4, 1) and found.slope.shape == (2, 9, 4, 1, 2)
    assert Hallucinated(**options(case), random=0).candidates(F, policies, noise).bias.shape == (2, 7, 4, 1)


def test_the_search_keeps_the_best_candidate_and_only_fresh_noise_counts(case):
    bound, policies, F = Hallucinated(**options(case), steps=0, search_paths=5), case.choose(3, 9), case.confidence
    noise = bound.noise(F, 5, paths=5)
    every = bound.candidates(F, policies, noise)
    best = bound._score(F, policies, every, noise).argmax(-1)
    found = bound.search(F, policies)
    assert torch.equal(found.bias, every.pick(best).bias) and torch.equal(found.slope, every.pick(best).slope)
    final = bound.simulate(F, policies, found, bound.noise(F, 6))
    share = 0.5 * bound.stage_delta(F) / 2
    own = monte_carlo.mean_lower(final[:, 0], 24.0, share)
    half = Sampled(**options(case) | {"delta": 0.005}).evaluate(F, policies).lower
    interval = bound.evaluate(F, policies)
    torch.testing.assert_close(interval.lower, torch.maximum(own, half).clamp_min(0.0), rtol=1e-14, atol=0)
    assert interval.upper.tolist() == [24.0, 24.0] and not interval.sound_upper and bool(interval.vacuous.all())
    assert interval.delta == bound.stage_delta(F)
    given = Sampled(**options(case), draws=3, mode="particles", features=16)
    inner = Hallucinated(**options(case), sampled=given)._sampled()
    assert (inner.draws, inner.mode, inner.features, inner.delta) == (3, "particles", 16, 0.005)
    assert inner.task is not given.task and inner.seed == 11 and inner.samples == 3


@pytest.mark.parametrize("std", [0.5, 1e-3])  # the surrogate's width: with the second the sigmoids are flat
def test_the_first_step_of_the_ascent_moves_every_bias_that_matters_by_the_rate(case, std):
    """Adam's first step is rate·sign of the gradient; the last η is never used; biases start at 0.7 of themselves."""
    wide = options(case, noise_std=tensor([std, std]))
    bound, policies, F = Hallucinated(**wide, steps=1, rate=0.25), case.choose(3), case.confidence
    start = Adversary(
        tensor([0.5, -0.5, 2.0, 1.0]).reshape(1, 1, 4, 1), torch.zeros(1, 1, 4, 1, 2).double(),
        torch.zeros(1, 4, 2).double(), torch.ones(1, 4, 2).double(),
    )  # fmt: skip
    noise = torch.zeros(4, 1, 2, 2).double()
    found = bound._ascend(F, policies, start, noise, SLOPED)
    with torch.no_grad():
        for t, first in enumerate((0.7 * 0.5, -0.7 * 0.5, 0.7 * 1.5)):
            moved = []
            for nudge in (-1e-3, 1e-3):
                bias = 0.7 * start.bias.clamp(-1.5, 1.5)
                bias[0, 0, t, 0] += nudge
                states = bound._states(
                    F, policies, Adversary(bias, start.slope, start.path, start.scale), noise, smooth=True
                )
                moved.append(float(SLOPED.excess(torch.stack(states)).sum()))
            sign = math.copysign(1.0, moved[1] - moved[0])
            assert float(found.bias[0, 0, t, 0]) == pytest.approx(2 * (first + 0.25 * sign), abs=1e-4)
    assert float(found.bias[0, 0, 3, 0]) == pytest.approx(2 * 0.7)
    assert not bool(found.slope[0, 0, 3].any())
    for t in (0, 1):
        torch.testing.assert_close(found.slope[0, 0, t].abs(), tensor([[0.5, 0.5]]), rtol=0, atol=1e-3)


def test_the_ascent_climbs_towards_the_half_space_that_is_nearest(case):
    """A second one on the other side, far away, changes nothing."""
    both = HingeCost(tensor([[1.0, 0.5], [-1.0, -0.5]]), tensor([-3.0, 90.0]), 6.0)
    bound, policies, F = Hallucinated(**options(case), steps=3, rate=0.25), case.choose(3, 9), case.confidence
    start, noise = adversaries(2, 1, 4), 0.05 * draws(4, 1, 3, 2, seed=6)
    found, alone = (bound._ascend(F, policies, start, noise, cost) for cost in (both, SLOPED))
    torch.testing.assert_close(found.bias, alone.bias)
    torch.testing.assert_close(found.slope, alone.slope)


def test_policies_whose_paths_are_lost_do_not_spoil_the_ascent(case):
    bound, policies, F = Hallucinated(**options(case), steps=2), case.choose(3, 9), case.confidence
    start, noise = adversaries(2, 1, 4), torch.zeros(4, 1, 2, 2).double()
    start.path[1, 0] = math.nan
    found = bound._ascend(F, policies, start, noise, SLOPED)
    assert bool(torch.isfinite(found.bias).all() and torch.isfinite(found.slope).all())
    torch.testing.assert_close(found.bias[1], 1.4 * start.bias[1].clamp(-1.5, 1.5))
    alone = Adversary(start.bias[:1], start.slope[:1], start.path[:1], start.scale[:1])
    torch.testing.assert_close(found.bias[:1], bound._ascend(F, case.choose(3), alone, noise, SLOPED).bias)


@pytest.mark.parametrize("mode", ["functions", "particles"])
def test_sampled_costs_are_those_of_their_draws_clipped_into_the_set(case, mode):
    bound = Sampled(**options(case) | {"samples": 2}, draws=3, mode=mode, features=32)
    policies, F, model = case.choose(3, 9), case.confidence, case.confidence.model
    found, noise, g = bound.costs(F, policies), bound.noise(F, 1), bound.generator(F, 2)
    if mode == "functions":
        functions = sample_functions(model, 3, generator=g, num_features=32)
    units = [torch.randn(1, 6, 1, dtype=torch.float64, generator=g) for _ in range(4)] if mode == "particles" else []
    assert found.shape == (2, 3, 2)
    clipped = 0
    for p in range(2):
        own = case.choose((3, 9)[p])
        for m in range(3):
            for n in range(2):
                x, total = bound.initial_state, 0.0
                for t in range(4):
                    total += float(SLOPED(x))
                    u = own(x.reshape(1, 1, 2)).reshape(-1)
                    z = torch.cat([x, u])[None]
                    low, high = F.bounds(z)
                    if mode == "functions":
                        value = functions(z.expand(3, 1, -1))[m]
                    else:
                        mean, std = model.posterior(z)
                        value = mean + std * units[t][0, m * 2 + n]
                    inside = torch.minimum(torch.maximum(value, low), high)
                    clipped += not torch.equal(inside, value)
                    x = model.prior(x, u) + model.embed(inside[0]) + noise[t, 0, n]
                assert float(found[p, m, n]) == pytest.approx(total, rel=1e-8)
    torch.testing.assert_close(bound.estimate(F, policies), found.mean(-1).amax(-1))
    lower = monte_carlo.mean_lower(found, 24.0, bound.stage_delta(F) / 6).amax(-1).clamp_min(0.0)
    interval = bound.evaluate(F, policies)
    torch.testing.assert_close(interval.lower, lower)
    assert interval.upper.tolist() == [24.0, 24.0] and not interval.sound_upper and bool(interval.vacuous.all())


@pytest.mark.parametrize(
    ("kind", "change"),
    [(Sampled, {"draws": 0}), (Sampled, {"features": 0}), (Sampled, {"mode": "both"}), (Hallucinated, {"search_paths": 1}),
     (Hallucinated, {"random": -1}), (Hallucinated, {"steps": -1}), (Hallucinated, {"rate": 0.0}), (Sampled, {"samples": 1})],
)  # fmt: skip
def test_bad_options_are_refused(case, kind, change):
    with pytest.raises(ValueError, match=kind.__name__):
        kind(**options(case) | change)


def test_options_that_are_not_given_are_the_documented_ones(case):
    plain, sampled = Hallucinated(**case.task), Sampled(**case.task)
    assert (plain.search_paths, plain.random, plain.steps, plain.rate, plain.sampled) == (16, 4, 15, 0.3, None)
    assert (sampled.draws, sampled.features, sampled.mode, sampled.samples) == (8, 128, "functions", 256)
    assert (plain.delta, plain.calls, plain.samples) == (0.01, 1, 256) and not plain.sound and not sampled.sound
    assert (plain.name, sampled.name) == ("hallucinated", "sampled")
    assert Sampled(**case.task | {"seed": 0}).seed == 0
    for kind in (Hallucinated, Sampled):  # what a bound is cannot be handed in
        for own in ({"name": "exact"}, {"sound": True}):
            with pytest.raises(TypeError):
                kind(**case.task, **own)


def test_scores_look_at_the_worst_of_several_half_spaces(case):
    """Ties of cost are broken by the mean over paths of the largest excess over times and half-spaces."""
    both = HingeCost(tensor([[1.0, 0.5], [-1.0, 0.3]]), tensor([2.0, 1.5]), 6.0)
    bound, policies, F = (
        Hallucinated(**options(case) | case.task_with(horizon=4, cost=both)),
        case.choose(3, 9),
        case.confidence,
    )
    adversary, noise = adversaries(2, 2, 4), 0.3 * draws(4, 1, 3, 2, seed=6)
    states = bound._states(F, policies, adversary, noise)
    for p in range(2):
        for k in range(2):
            near = sum(max(float(both.excess(x[p, k, n]).max()) for x in states) for n in range(3)) / 3
            costs = sum(float(both(x[p, k, n])) for x in states for n in range(3)) / 3
            score = bound._score(F, policies, adversary, noise)[p, k]
            assert float(score) == pytest.approx(costs + 1e-3 * math.tanh(near), rel=1e-12, abs=0)


def test_a_poor_adversary_does_not_spoil_the_lower_limit(case, monkeypatch):
    task = options(case) | {"samples": 200}
    bound, policies, F = Hallucinated(**task), case.choose(3, 9), case.confidence
    poor = adversaries(2, 1, 4)
    poor = Adversary(0 * poor.bias - 1.0, 0 * poor.slope, poor.path, poor.scale)
    monkeypatch.setattr(Hallucinated, "search", lambda *_: poor)
    final = bound.simulate(F, policies, poor, bound.noise(F, 6))[:, 0]
    own = monte_carlo.mean_lower(final, 24.0, 0.5 * bound.stage_delta(F) / 2)
    half = Sampled(**task | {"delta": 0.005}).evaluate(F, policies).lower
    assert bool((half > own + 1e-3).any()) and bool((own > 0.1).all())
    torch.testing.assert_close(bound.evaluate(F, policies).lower, torch.maximum(own, half), rtol=1e-14, atol=0)


def test_functions_of_a_low_rank_view_are_drawn_from_its_exact_process(case):
    bound = Sampled(**options(case), draws=2, mode="functions", features=16)
    view = ConfidenceSet(case.confidence.bound).update(LowRankGP.create(case.confidence.model, 3))
    seen: list[object] = []

    def drawn(model, *arguments, **options):
        seen.append(model)
        return sample_functions(model, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled, "sample_functions", drawn)
        costs = bound.costs(view, case.choose(3, 9))
    assert len(seen) == 1 and seen[0] is view.model.exact and bool(torch.isfinite(costs).all())
